//! The author's part, and how a call of the host reaches it.

use kube_core::Resource;

use crate::{Action, Config, Context, Error, Manifest, Object, Request};
#[cfg(target_family = "wasm")]
use crate::{
    api::{Api, Host},
    bindings::exports::nagaya::controller::guest as wit,
};

/// A reconciler of one kind of object.
///
/// It reads the current state, compares it with what the primary asks for and corrects the difference. It must end
/// in the same state however often and in whatever order it is called; nothing it keeps in memory outlives a call.
pub trait Reconciler {
    /// The reconciled kind.
    type Primary: Object;

    /// What the reconciler needs. It may read the config and refuse it; it reads nothing else.
    fn manifest(config: &Config) -> Result<Manifest, Error>;

    /// Brings the world in line with `primary`, which exists and is not being deleted.
    fn reconcile(primary: &Self::Primary, cx: &Context) -> Result<Action, Error>;

    /// `primary` is being deleted: cleans up what the garbage collector does not, then takes the manifest's
    /// finalizer away ([`Context::remove_finalizer`]). Unless overridden, nothing is left to do.
    fn deleting(_primary: &Self::Primary, _cx: &Context) -> Result<Action, Error> {
        Ok(Action::AwaitChange)
    }

    /// The primary is gone. Unless overridden, nothing is left to do: the garbage collector deletes its children.
    fn gone(_request: &Request, _cx: &Context) -> Result<Action, Error> {
        Ok(Action::AwaitChange)
    }
}

/// Reads the primary and calls what its state asks for.
pub(crate) fn run<R: Reconciler>(request: &Request, cx: &Context) -> Result<Action, Error> {
    let primary = cx.get::<R::Primary>(request.namespace.as_deref(), &request.name);
    match primary {
        Ok(None) => R::gone(request, cx),
        Ok(Some(primary)) if primary.meta().deletion_timestamp.is_some() => {
            R::deleting(&primary, cx)
        }
        Ok(Some(primary)) => R::reconcile(&primary, cx),
        Err(Error::Terminal(message)) => Err(Error::Invalid(message)),
        Err(error) => Err(error),
    }
}

/// The export `describe`; [`crate::export!`] calls it.
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub fn describe<R: Reconciler>() -> Result<String, String> {
    log_panics();
    match R::manifest(&Config::new(Host.config())) {
        Ok(manifest) => Ok(manifest.to_json()),
        Err(error) => Err(error.to_string()),
    }
}

/// The export `reconcile`; [`crate::export!`] calls it.
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub fn reconcile<R: Reconciler>(request: wit::Request) -> Result<wit::Action, String> {
    log_panics();
    match run::<R>(&request.into(), &Context::new(Host)) {
        Ok(action) => Ok(action.into()),
        Err(error) => error.answer(),
    }
}

/// Sends the place and the text of a panic to the host's log before the trap, so that all guests look alike.
#[cfg(target_family = "wasm")]
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| Host.log(crate::Level::Error, &panic.to_string(), &[])));
}
