//! Answers the guest's imports of `nagaya:controller`: the cluster through [`Client`], the rest itself.
//!
//! A call of the cluster is never polled by a guest's thread beyond its first step: it goes on in the control runtime.
//! A read dies with its guest; a write does not, and the run is over only when the write is. No call waits for a
//! place in the sandbox.
//!
//! Invariants: `a_write_outlives_its_guest_and_keeps_the_run_open`, `a_read_ends_with_its_guest`,
//! `a_call_without_an_answer_is_unavailable_in_time`.

use std::{future::Future, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::WasiCtx;

use self::bindings::nagaya::controller::{cluster, runtime, types};
use super::{
    entrance,
    limits::Meter,
    log::{GuestLog, Level},
    wasi,
};
use crate::{
    client::{self, Client},
    model::{
        kind::Kind,
        object::{ObjectReference, Severity},
    },
};

/// What wasmtime makes of `wit/`.
pub(super) mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "reconciler",
        imports: {
            "nagaya:controller/cluster": async,
            default: trappable,
        },
        exports: { default: async },
    });
}

/// What the host keeps for one run.
pub(super) struct State {
    pub(super) table: ResourceTable,
    pub(super) wasi: WasiCtx,
    pub(super) meter: Meter,
    pub(super) log: GuestLog,
    pub(super) calls: Calls,
    pub(super) config: Arc<str>,
    /// Why the epoch callback ended the run.
    pub(super) cut: Option<Cut>,
    /// The import that the guest called last.
    pub(super) last_call: &'static str,
}

/// Why a run was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Deadline,
    Drained,
}

/// A run's way to the cluster.
pub(super) struct Calls {
    /// `None`: the guest describes itself.
    pub(super) client: Option<Client>,
    /// Where calls go on.
    pub(super) control: Handle,
    /// Time for one call.
    pub(super) limit: Duration,
    /// Held by every write that is not answered.
    pub(super) open: mpsc::Sender<()>,
}

/// Links `nagaya:controller`. Its `http` is not built yet and therefore not linked.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    types::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    cluster::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    runtime::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

impl Calls {
    async fn read<T, F>(&self, call: impl FnOnce(Client) -> F) -> Result<T, cluster::Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, client::Error>> + Send + 'static,
    {
        self.attached(call(self.client()?)).await
    }

    async fn write<T, F>(&self, call: impl FnOnce(Client) -> F) -> Result<T, cluster::Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, client::Error>> + Send + 'static,
    {
        self.detached(call(self.client()?)).await
    }

    /// A call that ends with its guest.
    async fn attached<T, F>(&self, call: F) -> Result<T, cluster::Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, client::Error>> + Send + 'static,
    {
        match self.first_step(call) {
            Ok(answer) => Ok(answer?),
            Err(rest) => self.answer(&mut AbortOnDrop(self.control.spawn(rest)).0).await,
        }
    }

    /// A call that goes on when its guest is gone, and keeps the run open.
    async fn detached<T, F>(&self, call: F) -> Result<T, cluster::Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, client::Error>> + Send + 'static,
    {
        let open = self.open.clone();
        let call = async move {
            let answer = call.await;
            drop(open);
            answer
        };
        match self.first_step(call) {
            Ok(answer) => Ok(answer?),
            Err(rest) => self.answer(&mut self.control.spawn(rest)).await,
        }
    }

    fn client(&self) -> Result<Client, cluster::Error> {
        self.client.clone().ok_or_else(|| {
            cluster::Error::NotDeclared(
                "describe may not read the cluster; it only says what the revision needs"
                    .to_owned(),
            )
        })
    }

    /// Most reads and many writes are answered from memory at once; that saves a change of threads.
    fn first_step<F: Future + Send + 'static>(
        &self,
        call: F,
    ) -> Result<F::Output, std::pin::Pin<Box<F>>> {
        let mut call = Box::pin(call);
        // Whatever it starts, timers and connections, belongs to the control runtime.
        let _control = self.control.enter();
        call.as_mut().now_or_never().ok_or(call)
    }

    async fn answer<T>(
        &self,
        task: &mut JoinHandle<Result<T, client::Error>>,
    ) -> Result<T, cluster::Error> {
        match tokio::time::timeout(self.limit, task).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(error)) => {
                tracing::error!(%error, "a host call did not end as it should");
                Err(cluster::Error::Unavailable("the host failed".to_owned()))
            }
            Err(_) => {
                Err(cluster::Error::Unavailable(format!("no answer within {:?}", self.limit)))
            }
        }
    }
}

/// Ends a task with the future that waits for it.
pub(super) struct AbortOnDrop<T>(pub(super) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl types::Host for State {}

impl cluster::Host for State {
    async fn get(
        &mut self,
        kind: types::Kind,
        namespace: Option<String>,
        name: String,
    ) -> Result<String, cluster::Error> {
        self.last_call = "cluster.get";
        entrance::object(&kind, namespace.as_deref(), &name)?;
        crate::fail::point("host-call");
        let call =
            async move |client: Client| client.get(&kind.into(), namespace.as_deref(), &name).await;
        self.calls.read(call).await.map(|text| text.to_string())
    }

    async fn list(
        &mut self,
        kind: types::Kind,
        options: cluster::ListOptions,
    ) -> Result<cluster::Page, cluster::Error> {
        self.last_call = "cluster.list";
        entrance::list(&kind, &options)?;
        let call = async move |client: Client| client.list(&kind.into(), options.into()).await;
        self.calls.read(call).await.map(Into::into)
    }

    async fn get_live(
        &mut self,
        kind: types::Kind,
        namespace: Option<String>,
        name: String,
    ) -> Result<String, cluster::Error> {
        self.last_call = "cluster.get-live";
        entrance::object(&kind, namespace.as_deref(), &name)?;
        let call = async move |client: Client| {
            client.get_live(&kind.into(), namespace.as_deref(), &name).await
        };
        self.calls.read(call).await
    }

    async fn apply(
        &mut self,
        object: String,
        ownership: cluster::Ownership,
    ) -> Result<String, cluster::Error> {
        self.last_call = "cluster.apply";
        let call = async move |client: Client| client.apply(object, ownership.into()).await;
        self.calls.write(call).await.map(|text| text.to_string())
    }

    async fn apply_status(&mut self, object: String) -> Result<String, cluster::Error> {
        self.last_call = "cluster.apply-status";
        let call = async move |client: Client| client.apply_status(object).await;
        self.calls.write(call).await.map(|text| text.to_string())
    }

    async fn create(&mut self, object: String) -> Result<String, cluster::Error> {
        self.last_call = "cluster.create";
        self.calls.write(async move |client: Client| client.create(object).await).await
    }

    async fn patch(
        &mut self,
        kind: types::Kind,
        namespace: Option<String>,
        name: String,
        body: cluster::PatchBody,
    ) -> Result<String, cluster::Error> {
        self.last_call = "cluster.patch";
        entrance::object(&kind, namespace.as_deref(), &name)?;
        let call = async move |client: Client| {
            client.patch(&kind.into(), namespace.as_deref(), &name, body.into()).await
        };
        self.calls.write(call).await
    }

    async fn delete(
        &mut self,
        kind: types::Kind,
        namespace: Option<String>,
        name: String,
        options: cluster::DeleteOptions,
    ) -> Result<(), cluster::Error> {
        self.last_call = "cluster.delete";
        entrance::object(&kind, namespace.as_deref(), &name)?;
        entrance::preconditions(options.uid.as_deref(), options.resource_version.as_deref())?;
        let call = async move |client: Client| {
            client.delete(&kind.into(), namespace.as_deref(), &name, options.into()).await
        };
        self.calls.write(call).await
    }

    async fn emit_event(&mut self, event: cluster::Event) -> Result<(), cluster::Error> {
        self.last_call = "cluster.emit-event";
        let event = entrance::event(event)?;
        Ok(self.calls.client()?.emit(event.into())?)
    }
}

impl runtime::Host for State {
    #[expect(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
    fn now(&mut self) -> wasmtime::Result<f64> {
        self.last_call = "runtime.now";
        Ok(wasi::now() as f64)
    }

    fn random(&mut self, length: u32) -> wasmtime::Result<Vec<u8>> {
        self.last_call = "runtime.random";
        wasi::random(length.into())
    }

    fn config(&mut self) -> wasmtime::Result<String> {
        self.last_call = "runtime.config";
        Ok(self.config.to_string())
    }

    fn log(
        &mut self,
        level: runtime::Level,
        message: String,
        fields: Vec<(String, String)>,
    ) -> wasmtime::Result<()> {
        self.last_call = "runtime.log";
        let level = match level {
            runtime::Level::Error => Level::Error,
            runtime::Level::Warn => Level::Warn,
            runtime::Level::Info => Level::Info,
            runtime::Level::Debug => Level::Debug,
        };
        self.log.line(level, &message, &fields);
        Ok(())
    }
}

impl From<client::Error> for cluster::Error {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::NotFound => Self::NotFound,
            client::Error::AlreadyExists(text) => Self::AlreadyExists(text),
            client::Error::Conflict(text) => Self::Conflict(text),
            client::Error::Forbidden(text) => Self::Forbidden(text),
            client::Error::Invalid(text) => Self::Invalid(text),
            client::Error::NotDeclared(text) => Self::NotDeclared(text),
            client::Error::BudgetExceeded(text) => Self::BudgetExceeded(text),
            client::Error::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

impl From<types::Kind> for Kind {
    fn from(kind: types::Kind) -> Self {
        Self { group: kind.group, version: kind.version, kind: kind.kind }
    }
}

impl From<cluster::ListOptions> for client::ListOptions {
    fn from(options: cluster::ListOptions) -> Self {
        let cluster::ListOptions { namespace, label_selector, index, limit, from } = options;
        Self { namespace, label_selector, index, limit, from }
    }
}

impl From<client::Page> for cluster::Page {
    fn from(page: client::Page) -> Self {
        let items = page.items.iter().map(ToString::to_string).collect();
        Self { items, next: page.next }
    }
}

impl From<cluster::Ownership> for client::Ownership {
    fn from(ownership: cluster::Ownership) -> Self {
        match ownership {
            cluster::Ownership::Standard => Self::Standard,
            cluster::Ownership::Force => Self::Force,
            cluster::Ownership::Adopt => Self::Adopt,
        }
    }
}

impl From<cluster::PatchBody> for client::PatchBody {
    fn from(body: cluster::PatchBody) -> Self {
        match body {
            cluster::PatchBody::Json(text) => Self::Json(text),
            cluster::PatchBody::Merge(text) => Self::Merge(text),
        }
    }
}

impl From<cluster::DeleteOptions> for client::DeleteOptions {
    fn from(options: cluster::DeleteOptions) -> Self {
        let cluster::DeleteOptions { uid, resource_version, propagation } = options;
        let propagation = match propagation {
            cluster::Propagation::Background => client::Propagation::Background,
            cluster::Propagation::Foreground => client::Propagation::Foreground,
            cluster::Propagation::Orphan => client::Propagation::Orphan,
        };
        Self { uid, resource_version, propagation }
    }
}

impl From<cluster::Event> for client::GuestEvent {
    fn from(event: cluster::Event) -> Self {
        let cluster::Event { regarding, severity, reason, action, note } = event;
        let severity = match severity {
            cluster::Severity::Normal => Severity::Normal,
            cluster::Severity::Warning => Severity::Warning,
        };
        let regarding = ObjectReference {
            kind: regarding.kind.into(),
            namespace: regarding.namespace,
            name: regarding.name,
        };
        Self { regarding, severity, reason, action, note }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn calls(limit: Duration) -> (Calls, mpsc::Receiver<()>) {
        let (open, closed) = mpsc::channel(1);
        (Calls { client: None, control: Handle::current(), limit, open }, closed)
    }

    /// A call that has begun and is answered by the sender; it holds the sender's other end.
    fn slow() -> (oneshot::Sender<u8>, impl Future<Output = Result<u8, client::Error>>) {
        let (answer, answered) = oneshot::channel();
        (answer, async move { Ok(answered.await.unwrap()) })
    }

    #[tokio::test]
    async fn a_write_outlives_its_guest_and_keeps_the_run_open() {
        let (calls, mut closed) = calls(Duration::from_secs(60));
        let (answer, call) = slow();
        assert!(calls.detached(call).now_or_never().is_none());
        drop(calls);
        tokio::task::yield_now().await;
        assert!(closed.recv().now_or_never().is_none(), "the write is not over");
        answer.send(1).unwrap();
        assert_eq!(closed.recv().await, None);
    }

    #[tokio::test]
    async fn a_read_ends_with_its_guest() {
        let (calls, _closed) = calls(Duration::from_secs(60));
        let (mut answer, call) = slow();
        assert!(calls.attached(call).now_or_never().is_none());
        answer.closed().await;
    }

    #[tokio::test]
    async fn a_call_without_an_answer_is_unavailable_in_time() {
        let (calls, _closed) = calls(Duration::from_millis(20));
        let (_answer, call) = slow();
        let result = calls.attached(call).await;
        assert!(
            matches!(&result, Err(cluster::Error::Unavailable(text)) if text.contains("20ms")),
            "{result:?}"
        );
        let at_once = async { Err::<(), _>(client::Error::NotFound) };
        assert!(matches!(calls.detached(at_once).await, Err(cluster::Error::NotFound)));
    }
}
