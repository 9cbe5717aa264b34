//! `seawall-archive`: PostgreSQL's archive_command, a thin main over `seawall::wal`.
//!
//! Only 0 and 1 to 125 ever come out: clap's own code for bad arguments is 2, a panic becomes
//! 120, and what the verb returns lies below 6.

use std::process::ExitCode;

use clap::Parser;
use seawall::cli::archive::{self, ArchiveArgs};
use seawall::cli::{report, set_umask, start_logging};

fn main() -> ExitCode {
    set_umask();
    let exit = std::panic::catch_unwind(|| {
        let args = ArchiveArgs::parse();
        start_logging(args.common.log_level);
        if let Err(error) = archive::become_owner(&args) {
            return report(&error);
        }
        archive::run(&args).unwrap_or_else(|error| report(&error))
    });
    exit.map_or(ExitCode::from(archive::PANICKED), ExitCode::from)
}
