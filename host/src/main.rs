//! The nagaya binary: host and command line in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The TLS libraries come without a provider; whoever installed one before wins.
    let _ = rustls::crypto::ring::default_provider().install_default();
    nagaya::cli::main()
}
