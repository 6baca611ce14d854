//! The website reconciler's second revision: another page, and a label on every child.

nagaya_sdk::export!(website::Sites<website::Framed>);
