//! The website reconciler's first revision.

nagaya_sdk::export!(website::Sites<website::Plain>);
