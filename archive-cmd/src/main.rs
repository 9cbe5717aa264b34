//! `seawall-archive`: PostgreSQL's archive_command, a thin main over `seawall::wal`.
//!
//! Only 0 and 1 to 125 ever come out: clap's own code for bad arguments is 2, a panic becomes
//! 120, and what the verb returns lies below 6.

use std::process::ExitCode;

use clap::Parser;
use seawall::cli::archive::{self, ArchiveArgs};
use seawall::cli::{report, set_umask, start_logging};
use seawall::error::Error;

fn main() -> ExitCode {
    set_umask();
    let exit = std::panic::catch_unwind(|| {
        let args = ArchiveArgs::parse();
        start_logging(args.common.log_level);
        if let Err(error) = archive::become_owner(&args) {
            return report(&error);
        }
        // One thread for the store, and tokio's blocking threads for compression and files: a
        // start costs less than with a pool.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => {
                let exit = runtime
                    .block_on(archive::run(&args))
                    .unwrap_or_else(|error| report(&error));
                // A disk that hangs must not keep us: what is not finished does not count.
                runtime.shutdown_background();
                exit
            }
            Err(error) => report(&Error::failed("cannot start the runtime").because(error)),
        }
    });
    exit.map_or(ExitCode::from(archive::PANICKED), ExitCode::from)
}
