//! Logs and errors go to standard error: standard output is data.

use std::io::Write;
use std::sync::OnceLock;

use crate::error::{Error, Exit};

/// `text`, for people, or `json`: one object a line.
pub const LOG_FORMAT: &str = "SEAWALL_LOG_FORMAT";

static JSON: OnceLock<bool> = OnceLock::new();

/// Starts to log at this level and above, in the format that the environment asks for.
pub fn start_logging(level: tracing::Level) {
    let wanted = std::env::var(LOG_FORMAT).unwrap_or_default();
    let json = *JSON.get_or_init(|| wanted == "json");
    let verbose = level >= tracing::Level::DEBUG;
    let filter = tracing_subscriber::EnvFilter::new(format!(
        "warn,seawall={level},seawall_restore={level},seawall_drill={level}"
    ));
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // It would say on standard error that standard error cannot be written, and panic.
        .log_internal_errors(false)
        .with_target(verbose || json);
    match (json, verbose) {
        (true, _) => format.json().flatten_event(true).init(),
        (false, true) => format.init(),
        (false, false) => format.without_time().init(),
    }
    if !matches!(wanted.as_str(), "" | "text" | "json") {
        tracing::warn!("{LOG_FORMAT} is {wanted:?}, and neither text nor json");
    }
}

/// Says an error, and returns its exit code.
pub fn report(error: &Error) -> Exit {
    match JSON.get() {
        Some(true) => tracing::error!(exit = error.exit() as i32, "{}", error.one_line()),
        _ => say(&format!("error: {error}")),
    }
    error.exit()
}

/// Says something on standard error. Where nobody reads it, that is no failure of ours:
/// `eprintln!` would panic, and the exit code would no longer tell what happened.
pub fn say(text: &str) {
    let _ = match JSON.get() {
        Some(true) => {
            tracing::info!("{text}");
            Ok(())
        }
        _ => writeln!(std::io::stderr(), "{text}"),
    };
}
