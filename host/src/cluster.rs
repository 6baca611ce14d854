//! What a guest may ask of its cluster, and who answers.
//!
//! The sandbox hands every call of a guest on as an [`Ask`], and knows nobody who answers it: the live client of a run, one that
//! refuses while a guest describes itself, a test. A run that is played back would be another [`Cluster`]; one whose
//! writes are only tried keeps the client, which knows owners and preconditions, and ends where a write leaves.

use std::{fmt::Debug, sync::Arc};

use futures::future::BoxFuture;

use crate::model::{
    kind::Kind,
    object::{ObjectReference, Severity},
};

/// One call of a guest.
#[derive(Clone, Debug)]
pub enum Ask {
    /// One object as the host has it.
    Get(ObjectReference),
    /// A page of objects as the host has them.
    List(Kind, ListOptions),
    /// One object as the API server has it.
    GetLive(ObjectReference),
    /// Server-side apply of an object's text.
    Apply(String, Ownership),
    /// The same of its status.
    ApplyStatus(String),
    /// Makes an object of its text, as the primary's child or not.
    Create(String, bool),
    /// Patches an object.
    Patch(ObjectReference, PatchBody),
    /// Deletes an object.
    Delete(ObjectReference, DeleteOptions),
    /// Tells people something.
    Event(GuestEvent),
}

/// What a guest is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The object's text.
    Object(Arc<str>),
    /// Several.
    Page(Page),
    /// It was done.
    Done,
}

/// Whoever answers the calls of one run.
pub trait Cluster: Debug + Send + Sync + 'static {
    /// Answers a call. A read may be dropped before it is answered; a write is driven to its end, whatever becomes of the guest.
    fn call(&self, ask: Ask) -> BoxFuture<'static, Result<Answer, Error>>;

    /// The guest has ended: nothing new is done for it.
    fn guest_is_gone(&self) {}
}

/// Refuses whatever a guest asks while it describes itself.
#[derive(Clone, Copy, Debug)]
pub struct Refusing;

impl Ask {
    /// The import that was called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Get(_) => "cluster.get",
            Self::List(..) => "cluster.find",
            Self::GetLive(_) => "cluster.get-live",
            Self::Apply(..) => "cluster.apply",
            Self::ApplyStatus(_) => "cluster.apply-status",
            Self::Create(..) => "cluster.create",
            Self::Patch(..) => "cluster.patch",
            Self::Delete(..) => "cluster.remove",
            Self::Event(_) => "cluster.emit-event",
        }
    }

    /// Whether it goes on when its guest is gone.
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Get(_) | Self::List(..) | Self::GetLive(_) | Self::Event(_))
    }
}

impl Cluster for Refusing {
    fn call(&self, _: Ask) -> BoxFuture<'static, Result<Answer, Error>> {
        let text = "describe may not read the cluster; it only says what the revision needs";
        Box::pin(std::future::ready(Err(Error::NotDeclared(text.to_owned()))))
    }
}

/// Why a call did not do what the guest asked; each case has one way to arise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such object.
    #[error("not found")]
    NotFound,
    /// `create`: the name is taken.
    #[error("already exists: {0}")]
    AlreadyExists(String),
    /// Another writer, another owner or a failed precondition.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The account lacks a right; the text is the server's.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// The object or the arguments are wrong, or something in the cluster refuses them as they are.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The manifest does not declare it.
    #[error("not declared: {0}")]
    NotDeclared(String),
    /// Too many writes or deletes.
    #[error("budget exceeded: {0}")]
    BudgetExceeded(String),
    /// No answer; after a write the outcome is unknown.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// Which objects a list returns.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only objects that match this selector.
    pub label_selector: Option<String>,
    /// Only objects under this value of this index.
    pub index: Option<(String, String)>,
    /// At most so many; 0: the host's choice.
    pub limit: u32,
    /// `next` of the page before.
    pub from: Option<String>,
}

/// A part of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The objects' texts.
    pub items: Vec<Arc<str>>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// How an apply treats fields of other managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Forced on the primary's own children only.
    Standard,
    /// The same, and the host adds the owner reference that makes the primary the controller.
    Child,
    /// As a child, forced, and an object that the primary does not own becomes its own.
    Adopt,
    /// Forced.
    Force,
}

/// A patch.
#[derive(Clone, Debug)]
pub enum PatchBody {
    /// RFC 6902.
    Json(String),
    /// RFC 7386.
    Merge(String),
}

/// The dependents' fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Deleted after the object.
    Background,
    /// Deleted before the object.
    Foreground,
    /// Left.
    Orphan,
}

/// Conditions and manner of a deletion.
#[derive(Clone, Debug)]
pub struct DeleteOptions {
    /// Only this uid.
    pub uid: Option<String>,
    /// Only this resourceVersion.
    pub resource_version: Option<String>,
    /// The dependents' fate.
    pub propagation: Propagation,
}

/// An Event as a guest asks for it.
#[derive(Clone, Debug)]
pub struct GuestEvent {
    /// What it is about.
    pub regarding: ObjectReference,
    /// Normal or Warning.
    pub severity: Severity,
    /// Why.
    pub reason: String,
    /// What was done.
    pub action: String,
    /// For people.
    pub note: String,
}
