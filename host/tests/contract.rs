//! Components of every contract that was ever published run on this host.
//!
//! Each is text: a core module, and the contract as it was. Nothing in `contract/` is changed once it is published; a host with a
//! newer contract has one more component here.

use std::sync::Arc;

use futures::future::BoxFuture;
use nagaya::{
    cluster::{Answer, Ask, Cluster, Error, Page},
    sandbox::Action,
};
use parking_lot::Mutex;
use serde_json::json;
use std::time::Duration;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::{Hostile, compile};

/// The component of this core module and contract.
pub(crate) fn component(module: &str, contract: &str, world: &str) -> Arc<[u8]> {
    let mut module = wat::parse_str(module).unwrap();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("contract.wit", contract).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let encoder = ComponentEncoder::default().module(&module).unwrap();
    encoder.validate(true).encode().unwrap().into()
}

/// Answers everything, and keeps what was asked.
#[derive(Debug, Default)]
struct Asked(Mutex<Vec<String>>);

impl Cluster for Asked {
    fn call(&self, ask: Ask) -> BoxFuture<'static, Result<Answer, Error>> {
        let answer = match &ask {
            Ask::List(..) => Answer::Page(Page { items: vec!["{}".into()], next: None }),
            Ask::Delete(..) | Ask::Event(_) => Answer::Done,
            _ => Answer::Object("{}".into()),
        };
        self.0.lock().push(format!("{ask:?}"));
        Box::pin(std::future::ready(Ok(answer)))
    }
}

#[tokio::test]
async fn a_component_of_0_2_runs() {
    let component = component(
        include_str!("contract/guest-0.2.wat"),
        include_str!("contract/0.2.wit"),
        "reconciler",
    );
    let mut guest = Hostile::new().await;
    guest.program = compile(&guest.sandbox, component).await.unwrap();
    let manifest = json!({"primary": {"apiVersion": "examples.nagaya.dev/v1", "kind": "Website"}});
    assert_eq!(guest.configured(manifest).await.unwrap().primary.kind.kind, "Website");

    let asked = Arc::new(Asked::default());
    let run = nagaya::sandbox::Run { cluster: asked.clone(), ..guest.run(&json!({})) };
    let action = guest.sandbox.reconcile(&guest.program, run, Some("demo"), "web").await;
    assert_eq!(action.unwrap(), Action::RequeueAfter(Duration::from_millis(7)));
    let asked = asked.0.lock().join("\n") + "\n";
    assert_eq!(asked, include_str!("contract/asked-0.2.txt"), "{asked}");
}
