//! Imports outbound HTTP, which is not served: the host must refuse it at staging, by the import's name.

#![cfg(target_family = "wasm")]

use nagaya_sdk::bindings::{
    exports::nagaya::controller::guest::{
        Action, Failure, Guest, Kind, Manifest, Primary, Request,
    },
    nagaya::controller::http,
};

struct HttpUser;

nagaya_sdk::bindings::export!(HttpUser with_types_in nagaya_sdk::bindings);

impl Guest for HttpUser {
    fn describe() -> Result<Manifest, String> {
        let kind = Kind {
            group: "examples.nagaya.dev".to_owned(),
            version: "v1".to_owned(),
            kind: "Website".to_owned(),
        };
        let primary =
            Primary { kind, label_selector: None, field_selector: None, predicate: vec![] };
        Ok(Manifest {
            primary,
            owned: vec![],
            watches: vec![],
            live: vec![],
            writes: vec![],
            indexes: vec![],
            http: vec![],
            finalizer: None,
        })
    }

    fn reconcile(_: Request) -> Result<Action, Failure> {
        let request = http::Request {
            method: "GET".to_owned(),
            url: "https://example.com/".to_owned(),
            headers: vec![],
            body: vec![],
            timeout: 1_000,
        };
        match http::send(&request) {
            Ok(_) => Ok(Action::AwaitChange),
            Err(error) => Err(Failure::Terminal(format!("{error:?}"))),
        }
    }
}
