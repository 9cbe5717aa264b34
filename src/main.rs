//! `seawall`: the one command to remember. Verbs that are programs of their own are run from
//! beside this one.

use std::process::ExitCode;

use clap::Parser;
use seawall::cli::{
    self, Seawall, Verb, backup, check, copy, daemon, expire, heartbeat, init, list, merge, pin,
    restore_point, schedule, siblings, status, verify, wal,
};
use seawall::error::{Error, Exit, Result};

fn main() -> ExitCode {
    let verb = std::env::args_os().nth(1).unwrap_or_default();
    if let Some((name, program)) = siblings::SIBLINGS.iter().find(|(name, _)| verb == *name) {
        let error = siblings::exec(program, std::env::args_os().skip(2));
        cli::report(&error);
        // To PostgreSQL, 1 to 125 of a restore_command means "absent".
        return if *name == "fetch" {
            ExitCode::from(cli::fetch::DOUBT)
        } else {
            ExitCode::from(Exit::Failed)
        };
    }
    cli::main(|| {
        let (level, run) = verb_of(Seawall::parse().verb);
        cli::start_logging(level);
        run().unwrap_or_else(|error| cli::report(&error))
    })
}

type Run = Box<dyn FnOnce() -> Result<Exit>>;

/// What to log, and what to do.
fn verb_of(verb: Verb) -> (tracing::Level, Run) {
    match verb {
        Verb::Init(args) => (args.common.log_level, Box::new(move || init::run(&args))),
        Verb::Check(args) => (args.common.log_level, Box::new(move || check::run(&args))),
        Verb::Backup(args) => (args.common.log_level, Box::new(move || backup::run(&args))),
        Verb::Copy(args) => (args.common.log_level, Box::new(move || copy::run(&args))),
        Verb::Status(args) => (args.log_level, Box::new(move || status::run(&args))),
        Verb::List(args) => (args.common.log_level, Box::new(move || list::run(&args))),
        Verb::Expire(args) => (args.common.log_level, Box::new(move || expire::run(&args))),
        Verb::Merge(args) => (args.common.log_level, Box::new(move || merge::run(&args))),
        Verb::Pin(args) => (args.common.log_level, Box::new(move || pin::run(&args))),
        Verb::Unpin(args) => (
            args.common.log_level,
            Box::new(move || pin::run_unpin(&args)),
        ),
        Verb::RestorePoint(args) => (
            args.common.log_level,
            Box::new(move || restore_point::run(&args)),
        ),
        Verb::Daemon(args) => (args.log_level, Box::new(move || daemon::run(&args))),
        Verb::Schedule(args) => (args.log_level, Box::new(move || schedule::run(&args))),
        Verb::Heartbeat(args) => (
            args.common.log_level,
            Box::new(move || heartbeat::run(&args)),
        ),
        Verb::Verify(args) => (args.common.log_level, Box::new(move || verify::run(&args))),
        Verb::Wal(args) => (args.common().log_level, Box::new(move || wal::run(&args))),
        Verb::Restore(_) | Verb::Drill(_) | Verb::Archive(_) | Verb::Fetch(_) => {
            let error = Error::usage("this verb is a program of its own")
                .hint("write it first: seawall VERB [OPTIONS]");
            (tracing::Level::INFO, Box::new(move || Err(error)))
        }
    }
}
