//! What the daemon remembers over a restart: one small JSON file, written durably.
//!
//! It only saves work and keeps failures visible: without it everything is done, at worst
//! once more. So neither a file that is damaged nor a disk that is full stops anything.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::agenda::{Record, Waiting};
use crate::durable;
use crate::error::{IoContext, Result};

/// The format that this version reads and writes.
const FORMAT: u32 = 1;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The format of this file.
    pub format: u32,
    /// Of each job, by `CLUSTER/OPERATION`.
    #[serde(default)]
    pub jobs: BTreeMap<String, Record>,
    /// Commands that never end and do not stay up, by `CLUSTER/COMMAND`: since when, and what
    /// they say.
    #[serde(default)]
    pub continuous: BTreeMap<String, Waiting>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            format: FORMAT,
            jobs: BTreeMap::new(),
            continuous: BTreeMap::new(),
        }
    }
}

impl State {
    /// Where it lies in the state directory.
    pub fn path(directory: &Path) -> PathBuf {
        directory.join("state.json")
    }

    /// Reads it without changing anything; an empty one where there is none.
    ///
    /// # Errors
    /// It cannot be read; the inner one says that it is damaged, or of a newer version.
    pub fn read(directory: &Path) -> Result<Result<Self, String>> {
        let path = Self::path(directory);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Ok(Self::default()));
            }
            text => text.on("read", &path)?,
        };
        Ok(match serde_json::from_slice::<Self>(&text) {
            Ok(state) if state.format <= FORMAT => Ok(state),
            Ok(state) => Err(format!(
                "it has format {}, this version knows {FORMAT}",
                state.format
            )),
            Err(error) => Err(error.to_string()),
        })
    }

    /// The same for the daemon: what cannot be used is set aside, with a word in the log.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take(directory: &Path) -> Result<Self> {
        match Self::read(directory)? {
            Ok(state) => Ok(state),
            Err(why) => {
                let path = Self::path(directory);
                let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
                let aside = path.with_file_name(format!("state.json.damaged-{now}"));
                let kept = match durable::publish(&path, &aside) {
                    Ok(()) => format!("it is kept as {}", aside.display()),
                    Err(error) => format!("it cannot be set aside: {error}"),
                };
                tracing::error!(
                    "{} is damaged ({why}); {kept}. What ran before is not known any more",
                    path.display()
                );
                Ok(Self::default())
            }
        }
    }

    /// Writes it; after `Ok` it is durable.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)? + "\n";
        durable::write_file(&Self::path(directory), text.as_bytes(), 0o640)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_and_a_damaged_one_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::take(directory.path()).unwrap();
        assert_eq!(state, State::default());
        state.jobs.insert("main/full".into(), Record::default());
        state.write(directory.path()).unwrap();
        assert_eq!(State::take(directory.path()).unwrap(), state);

        for damaged in ["{\"format\": 1, \"jobs\"", "{\"format\": 9}", ""] {
            durable::write_file(&State::path(directory.path()), damaged.as_bytes(), 0o600).unwrap();
            assert!(State::read(directory.path()).unwrap().is_err());
            assert_eq!(State::take(directory.path()).unwrap(), State::default());
            assert!(!State::path(directory.path()).exists());
        }
        let kept = std::fs::read_dir(directory.path()).unwrap().flatten();
        let kept: Vec<_> = kept.map(|entry| entry.file_name()).collect();
        assert!(
            kept.iter()
                .any(|name| name.to_string_lossy().contains("damaged")),
            "{kept:?}"
        );
    }
}
