//! The configuration that counts: the one that was read last and found right. A file that was
//! edited since changes nothing before it is read again, for the commands neither.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::Options;
use super::child::Order;
use crate::config::Config;
use crate::digest::PlainDigest;
use crate::durable;
use crate::error::Result;

/// A configuration that was read and found right, and its text.
pub struct Accepted {
    /// The configuration.
    pub config: Arc<Config>,
    text: String,
}

impl Accepted {
    /// Reads the configuration at `path`, or from [where it lies](Config::locate).
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let (config, text) = Config::load_with_text(path)?;
        config.check_schedules()?;
        Ok(Self {
            config: Arc::new(config),
            text,
        })
    }

    /// A file that holds it: the one it was read from, or a copy in the state directory where
    /// that one was edited or removed since.
    fn file(&self) -> PathBuf {
        let original = &self.config.path;
        let is_it = |path: &Path| {
            std::fs::read(path).is_ok_and(|text| PlainDigest::of(&text) == self.config.digest)
        };
        if is_it(original) {
            return original.clone();
        }
        let copy = self.config.daemon.state_directory.join("accepted.toml");
        if is_it(&copy) {
            return copy;
        }
        // Whoever may read the original may read the copy, and nobody else.
        let old = std::fs::metadata(original);
        let mode = old
            .as_ref()
            .map_or(0o600, |old| old.permissions().mode() & 0o777);
        match durable::write_file(&copy, self.text.as_bytes(), mode) {
            Ok(()) => {
                if let Ok(old) = old {
                    let _ = chown(&copy, Some(old.uid()), Some(old.gid()));
                }
                tracing::warn!(
                    "{} was changed and not read again (SIGHUP): commands use {}",
                    original.display(),
                    copy.display()
                );
                copy
            }
            Err(error) => {
                tracing::warn!(
                    "{} was changed and not read again, and {} cannot be written: {error}",
                    original.display(),
                    copy.display()
                );
                original.clone()
            }
        }
    }
}

/// What a command is made of. Its configuration's file is looked at each time it is run.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) accepted: Arc<Accepted>,
    pub(super) options: Arc<Options>,
    /// Its arguments, but for the configuration.
    pub(super) words: Vec<String>,
    /// What stands before each of its lines in our log.
    pub(super) name: String,
    /// Where the lines of its standard output go; nothing is kept of them then, and only errors
    /// are logged.
    pub(super) lines: Option<UnboundedSender<String>>,
}

impl Recipe {
    /// The command as it is to be run now.
    pub(super) async fn order(&self) -> Order {
        let accepted = Arc::clone(&self.accepted);
        // Disks may hang; the daemon's loop must not.
        let file = tokio::task::spawn_blocking(move || accepted.file()).await;
        let file = file.unwrap_or_else(|_| self.accepted.config.path.clone());
        let mut words = self.words.clone();
        words.extend(["--config".to_owned(), file.display().to_string()]);
        let log_level = match self.lines {
            Some(_) => "error",
            None => &self.options.log_level,
        };
        words.extend(["--log-level".to_owned(), log_level.to_owned()]);
        Order {
            program: self.options.program.clone(),
            words,
            name: self.name.clone(),
            stop_timeout: self.accepted.config.daemon.stop_timeout.0,
            lines: self.lines.clone(),
        }
    }
}
