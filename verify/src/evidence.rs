//! Evidence: every command that a drill ran, in order, with its time and exit status. The
//! list is the runbook of the recovery, for a person to repeat.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Instant;

use jiff::Timestamp;
use seawall::error::{Error, Result};
use serde::Serialize;

/// One command, or one step that stands for a command.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// As a person would type it.
    pub command: String,
    /// When it began.
    pub started: Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// Its exit status; absent for what was ended by a signal.
    pub exit: Option<i32>,
}

/// What a command printed.
#[derive(Debug)]
pub struct Ran {
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output and standard error, the end of each.
    pub text: String,
}

/// The steps so far.
#[derive(Debug, Default)]
pub struct Evidence {
    steps: Mutex<Vec<Step>>,
    directory: Option<PathBuf>,
}

impl Evidence {
    /// For commands that work in `directory`: the next drill finds what a killed one left
    /// running by where it works.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            steps: Mutex::default(),
            directory: Some(directory.to_owned()),
        }
    }

    /// Records a step that was not a command of its own.
    pub fn add(&self, command: String, started: (Timestamp, Instant), exit: i32) {
        let seconds = round(started.1.elapsed().as_secs_f64());
        self.push(Step {
            command,
            started: started.0,
            seconds,
            exit: Some(exit),
        });
    }

    /// Records a command that was ended before its end, for lack of time.
    pub fn add_ended(
        &self,
        program: &std::path::Path,
        arguments: &[&str],
        started: (Timestamp, Instant),
    ) {
        self.push(Step {
            command: as_typed(program, arguments),
            started: started.0,
            seconds: round(started.1.elapsed().as_secs_f64()),
            exit: None,
        });
    }

    /// Runs a command to its end and records it. It is killed if this is given up.
    pub async fn run(&self, program: &Path, arguments: &[&str]) -> Result<Ran> {
        self.run_client(program, arguments, "").await
    }

    /// The same with a client of the instance's, whose sessions begin with `options`.
    pub async fn run_client(
        &self,
        program: &Path,
        arguments: &[&str],
        options: &str,
    ) -> Result<Ran> {
        let command = as_typed(program, arguments);
        let started = (Timestamp::now(), Instant::now());
        let mut child = tokio::process::Command::new(program);
        if let Some(directory) = &self.directory {
            child.current_dir(directory);
        }
        for variable in variables_of_postgres(std::env::vars_os()) {
            child.env_remove(variable);
        }
        let output = child
            .args(arguments)
            .env("PGOPTIONS", options)
            // The arguments that come from us are in UTF-8, whatever a database is in.
            .env("PGCLIENTENCODING", "UTF8")
            // Nothing can lie there: no password of this user's goes anywhere.
            .env("PGPASSFILE", "/dev/null/none")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| Error::failed(format!("cannot run {command}")).because(error))?;
        let seconds = round(started.1.elapsed().as_secs_f64());
        self.push(Step {
            command,
            started: started.0,
            seconds,
            exit: output.status.code(),
        });
        let text = [output.stdout, output.stderr]
            .iter()
            .map(|text| tail(&String::from_utf8_lossy(text), 20))
            .collect::<Vec<_>>()
            .join("\n");
        Ok(Ran {
            success: output.status.success(),
            text: text.trim().to_owned(),
        })
    }

    /// The steps so far, in order.
    pub fn steps(&self) -> Vec<Step> {
        self.steps
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    fn push(&self, step: Step) {
        self.steps
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(step);
    }
}

/// The variables that lead PostgreSQL's programs: `PGHOSTADDR` or `PGSERVICE` would take a client
/// of the scratch instance to another server, and that may be production.
pub fn variables_of_postgres(
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = OsString> {
    let names = environment.map(|(name, _)| name);
    names.filter(|name| name.as_encoded_bytes().starts_with(b"PG"))
}

fn as_typed(program: &std::path::Path, arguments: &[&str]) -> String {
    let words = std::iter::once(program.to_string_lossy())
        .chain(arguments.iter().map(|word| quoted(word).into()));
    words.collect::<Vec<_>>().join(" ")
}

/// Milliseconds are enough.
pub fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// The last `count` lines.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A word as a shell reads it.
pub fn quoted(word: &str) -> String {
    if word
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c))
        && !word.is_empty()
    {
        word.to_owned()
    } else {
        seawall::postgres::recovery::shell_quote(word)
    }
}
