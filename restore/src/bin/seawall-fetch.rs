//! `seawall-fetch`: PostgreSQL's restore_command.
//!
//! 0 (delivered), 1 (certainly absent) and 200 (anything else) come out, and nothing else:
//! not after a panic, not after bad arguments, not after `--help`.

use std::process::ExitCode;

use clap::Parser;
use seawall::cli::fetch::{self, DOUBT, FetchArgs};
use seawall::cli::{say, set_umask, start_logging};

fn main() -> ExitCode {
    set_umask();
    ExitCode::from(std::panic::catch_unwind(fetch_one).unwrap_or(DOUBT))
}

fn fetch_one() -> u8 {
    let args = match FetchArgs::try_parse() {
        Ok(args) => args,
        Err(message) => {
            // Help for a person is a success; to PostgreSQL a success means "delivered".
            let person = std::io::IsTerminal::is_terminal(&std::io::stdout());
            let _ = message.print();
            return if person && !message.use_stderr() {
                0
            } else {
                DOUBT
            };
        }
    };
    start_logging(args.common.log_level);
    if let Err(error) = fetch::become_owner(&args) {
        say(&format!("seawall-fetch: {}", error.one_line()));
        return DOUBT;
    }
    fetch::run(&args)
}
