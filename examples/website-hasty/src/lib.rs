//! A revision of the website reconciler that means to change the page, and restarts every server with it: the mass change that
//! nobody has announced, and that a plan shows.

nagaya_sdk::export!(website::Sites<website::Hasty>);
