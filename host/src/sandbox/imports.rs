//! Answers the guest's imports of `nagaya:controller`: the cluster through [`Cluster`], the rest itself.
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

use self::bindings::nagaya::controller::{cluster, common, runtime};
use super::{
    chance::Source,
    entrance,
    limits::Meter,
    log::{GuestLog, Level},
};
use crate::{
    cluster::{self as ours, Answer, Ask, Cluster},
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
    pub(super) chance: Source,
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
    pub(super) cluster: Arc<dyn Cluster>,
    /// Where calls go on.
    pub(super) control: Handle,
    /// Time for one call.
    pub(super) limit: Duration,
    /// Held by every write that is not answered.
    pub(super) open: mpsc::Sender<()>,
}

/// Links `nagaya:controller/reconciler`; what `reconciler-http` has besides is not built yet and therefore not linked.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    common::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    cluster::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    runtime::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

impl Calls {
    /// A read dies with its guest, a write does not.
    async fn ask(&self, ask: Ask) -> Result<Answer, cluster::Error> {
        let is_write = ask.is_write();
        let call = self.cluster.call(ask);
        if is_write { self.detached(call).await } else { self.attached(call).await }
    }

    /// A call that ends with its guest.
    async fn attached<T, F>(&self, call: F) -> Result<T, cluster::Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ours::Error>> + Send + Unpin + 'static,
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
        F: Future<Output = Result<T, ours::Error>> + Send + 'static,
    {
        let open = self.open.clone();
        let call = async move {
            let answer = call.await;
            drop(open);
            answer
        };
        match self.first_step(call.boxed()) {
            Ok(answer) => Ok(answer?),
            Err(rest) => self.answer(&mut self.control.spawn(rest)).await,
        }
    }

    /// Most reads and many writes are answered from memory at once; that saves a change of threads.
    fn first_step<F>(&self, mut call: F) -> Result<F::Output, F>
    where
        F: Future + Send + Unpin + 'static,
    {
        // Whatever it starts, timers and connections, belongs to the control runtime.
        let _control = self.control.enter();
        (&mut call).now_or_never().ok_or(call)
    }

    async fn answer<T>(
        &self,
        task: &mut JoinHandle<Result<T, ours::Error>>,
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

impl common::Host for State {}

impl State {
    async fn ask(&mut self, ask: Ask) -> Result<Answer, cluster::Error> {
        self.last_call = ask.name();
        self.calls.ask(ask).await
    }

    /// An object's text.
    async fn object(&mut self, ask: Ask) -> Result<String, cluster::Error> {
        match self.ask(ask).await? {
            Answer::Object(text) => Ok(text.to_string()),
            other => Err(unlike(&other)),
        }
    }
}

/// An answer to another question, which would be a bug of whoever answers.
fn unlike(answer: &Answer) -> cluster::Error {
    tracing::error!(?answer, "a call of a guest was answered by something else");
    cluster::Error::Unavailable("the host failed".to_owned())
}

fn reference(
    kind: common::Kind,
    namespace: String,
    name: String,
) -> Result<ObjectReference, cluster::Error> {
    entrance::object(&kind, &namespace, &name)?;
    Ok(ObjectReference { kind: kind.into(), namespace: some(namespace), name })
}

/// Where nothing is an empty text.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl cluster::Host for State {
    async fn get(
        &mut self,
        kind: common::Kind,
        namespace: String,
        name: String,
    ) -> Result<String, cluster::Error> {
        let object = reference(kind, namespace, name)?;
        crate::fail::point("host-call");
        self.object(Ask::Get(object)).await
    }

    async fn find(
        &mut self,
        kind: common::Kind,
        options: cluster::FindOptions,
    ) -> Result<cluster::Page, cluster::Error> {
        entrance::find(&kind, &options)?;
        match self.ask(Ask::List(kind.into(), options.into())).await? {
            Answer::Page(page) => Ok(page.into()),
            other => Err(unlike(&other)),
        }
    }

    async fn get_live(
        &mut self,
        kind: common::Kind,
        namespace: String,
        name: String,
    ) -> Result<String, cluster::Error> {
        self.object(Ask::GetLive(reference(kind, namespace, name)?)).await
    }

    async fn apply(
        &mut self,
        object: String,
        ownership: cluster::Ownership,
    ) -> Result<String, cluster::Error> {
        self.object(Ask::Apply(object, ownership.into())).await
    }

    async fn apply_status(&mut self, object: String) -> Result<String, cluster::Error> {
        self.object(Ask::ApplyStatus(object)).await
    }

    async fn create(&mut self, object: String, child: bool) -> Result<String, cluster::Error> {
        self.object(Ask::Create(object, child)).await
    }

    async fn patch(
        &mut self,
        kind: common::Kind,
        namespace: String,
        name: String,
        body: cluster::PatchBody,
    ) -> Result<String, cluster::Error> {
        self.object(Ask::Patch(reference(kind, namespace, name)?, body.into())).await
    }

    async fn remove(
        &mut self,
        kind: common::Kind,
        namespace: String,
        name: String,
        removal: cluster::Removal,
    ) -> Result<(), cluster::Error> {
        entrance::preconditions(&removal.uid, &removal.resource_version)?;
        let object = reference(kind, namespace, name)?;
        self.ask(Ask::Delete(object, removal.into())).await.map(drop)
    }

    async fn emit_event(&mut self, event: cluster::Event) -> Result<(), cluster::Error> {
        let event = entrance::event(event)?;
        self.ask(Ask::Event(event.into())).await.map(drop)
    }
}

impl runtime::Host for State {
    #[expect(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
    fn now(&mut self) -> wasmtime::Result<f64> {
        self.last_call = "runtime.now";
        Ok(self.chance.now() as f64)
    }

    fn random(&mut self, length: u32) -> wasmtime::Result<Vec<u8>> {
        self.last_call = "runtime.random";
        self.chance.random(length.into())
    }

    fn config(&mut self) -> wasmtime::Result<String> {
        self.last_call = "runtime.config";
        Ok(self.config.to_string())
    }

    fn log(
        &mut self,
        level: runtime::Level,
        message: String,
        fields: Vec<common::Field>,
    ) -> wasmtime::Result<()> {
        self.last_call = "runtime.log";
        let level = match level {
            runtime::Level::Error => Level::Error,
            runtime::Level::Warn => Level::Warn,
            runtime::Level::Info => Level::Info,
            runtime::Level::Debug => Level::Debug,
        };
        let fields: Vec<_> = fields.into_iter().map(|field| (field.key, field.value)).collect();
        self.log.line(level, &message, &fields);
        Ok(())
    }
}

impl From<ours::Error> for cluster::Error {
    fn from(error: ours::Error) -> Self {
        match error {
            ours::Error::NotFound => Self::NotFound,
            ours::Error::AlreadyExists(text) => Self::AlreadyExists(text),
            ours::Error::Conflict(text) => Self::Conflict(text),
            ours::Error::Forbidden(text) => Self::Forbidden(text),
            ours::Error::Invalid(text) => Self::Invalid(text),
            ours::Error::NotDeclared(text) => Self::NotDeclared(text),
            ours::Error::BudgetExceeded(text) => Self::BudgetExceeded(text),
            ours::Error::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

impl From<common::Kind> for Kind {
    fn from(kind: common::Kind) -> Self {
        Self { group: kind.group, version: kind.version, kind: kind.name }
    }
}

impl From<cluster::FindOptions> for ours::ListOptions {
    fn from(options: cluster::FindOptions) -> Self {
        let cluster::FindOptions { namespace, label_selector, index, value, limit, after } =
            options;
        Self {
            namespace: some(namespace),
            label_selector: some(label_selector),
            index: some(index).map(|index| (index, value)),
            limit,
            from: some(after),
        }
    }
}

impl From<ours::Page> for cluster::Page {
    fn from(page: ours::Page) -> Self {
        let items = page.items.iter().map(ToString::to_string).collect();
        Self { items, next: page.next.unwrap_or_default() }
    }
}

impl From<cluster::Ownership> for ours::Ownership {
    fn from(ownership: cluster::Ownership) -> Self {
        match ownership {
            cluster::Ownership::Standard => Self::Standard,
            cluster::Ownership::Child => Self::Child,
            cluster::Ownership::Adopt => Self::Adopt,
            cluster::Ownership::Force => Self::Force,
        }
    }
}

impl From<cluster::PatchBody> for ours::PatchBody {
    fn from(body: cluster::PatchBody) -> Self {
        match body {
            cluster::PatchBody::Json(text) => Self::Json(text),
            cluster::PatchBody::Merge(text) => Self::Merge(text),
        }
    }
}

impl From<cluster::Removal> for ours::DeleteOptions {
    fn from(removal: cluster::Removal) -> Self {
        let cluster::Removal { uid, resource_version, propagation } = removal;
        let propagation = match propagation {
            cluster::Propagation::Background => ours::Propagation::Background,
            cluster::Propagation::Foreground => ours::Propagation::Foreground,
            cluster::Propagation::Orphan => ours::Propagation::Orphan,
        };
        Self { uid: some(uid), resource_version: some(resource_version), propagation }
    }
}

impl From<cluster::Event> for ours::GuestEvent {
    fn from(event: cluster::Event) -> Self {
        let cluster::Event { regarding, severity, reason, action, note } = event;
        let severity = match severity {
            cluster::Severity::Normal => Severity::Normal,
            cluster::Severity::Warning => Severity::Warning,
        };
        let regarding = ObjectReference {
            kind: regarding.kind.into(),
            namespace: some(regarding.namespace),
            name: regarding.name,
        };
        Self { regarding, severity, reason, action, note }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;
    use tokio::sync::oneshot;

    use super::*;

    fn calls(limit: Duration) -> (Calls, mpsc::Receiver<()>) {
        let (open, closed) = mpsc::channel(1);
        (
            Calls { cluster: Arc::new(ours::Refusing), control: Handle::current(), limit, open },
            closed,
        )
    }

    /// A call that has begun and is answered by the sender; it holds the sender's other end.
    fn slow() -> (oneshot::Sender<u8>, BoxFuture<'static, Result<u8, ours::Error>>) {
        let (answer, answered) = oneshot::channel();
        (answer, async move { Ok(answered.await.unwrap()) }.boxed())
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
        let at_once = async { Err::<(), _>(ours::Error::NotFound) };
        assert!(matches!(calls.detached(at_once).await, Err(cluster::Error::NotFound)));
    }
}
