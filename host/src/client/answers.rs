//! The live client answers a guest's calls.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};

use super::Client;
use crate::cluster::{Answer, Ask, Cluster, Error};

impl Cluster for Client {
    fn call(&self, ask: Ask) -> BoxFuture<'static, Result<Answer, Error>> {
        let client = self.clone();
        async move { client.answer(ask).await }.boxed()
    }

    fn guest_is_gone(&self) {
        self.end_guest();
    }
}

impl Client {
    async fn answer(&self, ask: Ask) -> Result<Answer, Error> {
        let text: Arc<str> = match ask {
            Ask::Get(of) => self.get(&of.kind, of.namespace.as_deref(), &of.name).await?,
            Ask::List(kind, options) => return self.list(&kind, options).await.map(Answer::Page),
            Ask::GetLive(of) => {
                self.get_live(&of.kind, of.namespace.as_deref(), &of.name).await?.into()
            }
            Ask::Apply(object, ownership) => self.apply(object, ownership).await?,
            Ask::ApplyStatus(object) => self.apply_status(object).await?,
            Ask::Create(object, child) => self.create(object, child).await?.into(),
            Ask::Patch(of, body) => {
                self.patch(&of.kind, of.namespace.as_deref(), &of.name, body).await?.into()
            }
            Ask::Delete(of, options) => {
                self.delete(&of.kind, of.namespace.as_deref(), &of.name, options).await?;
                return Ok(Answer::Done);
            }
            Ask::Event(event) => return self.emit(event).map(|()| Answer::Done),
        };
        Ok(Answer::Object(text))
    }
}
