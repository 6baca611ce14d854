//! Is built for the world with outbound HTTP, which is not served: the host must refuse it at staging, by the import's name.

#![cfg(target_family = "wasm")]

wit_bindgen::generate!({ path: "../../../wit", world: "reconciler-http" });

use exports::nagaya::controller::guest::{Action, Guest, Request};
use nagaya::controller::http;

struct HttpUser;

export!(HttpUser);

impl Guest for HttpUser {
    fn describe() -> Result<String, String> {
        let primary = r#"{"apiVersion": "examples.nagaya.dev/v1", "kind": "Website"}"#;
        Ok(format!(r#"{{"primary": {primary}}}"#))
    }

    fn reconcile(_: Request) -> Result<Action, String> {
        let request = http::Request {
            method: "GET".to_owned(),
            url: "https://example.com/".to_owned(),
            headers: vec![],
            body: vec![],
            timeout: 1_000,
        };
        match http::send(&request) {
            Ok(_) => Ok(Action::AwaitChange),
            Err(error) => Ok(Action::Terminal(format!("{error:?}"))),
        }
    }
}
