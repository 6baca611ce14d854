//! Which host works, and until when: the [`lease`] and, behind each write, the [`fence`].

pub mod fence;
pub mod lease;
