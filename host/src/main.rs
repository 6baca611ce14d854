//! The nagaya binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(nagaya::sandbox::SUBCOMMAND) {
        return nagaya::sandbox::child_main();
    }
    ExitCode::SUCCESS
}
