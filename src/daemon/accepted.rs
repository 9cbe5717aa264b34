//! The configuration that counts: the one that was read last and found right. A file that was
//! edited since changes nothing before it is read again, for the commands neither.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Options;
use super::child::Order;
use crate::config::Config;
use crate::digest::PlainDigest;
use crate::durable;
use crate::error::{Error, Result};

/// A configuration that was read and found right, and its text.
pub struct Accepted {
    /// The configuration.
    pub config: Arc<Config>,
    text: String,
}

impl Accepted {
    /// Reads the configuration at `path`, or from [where it lies](Config::locate).
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let path = Config::locate(path)?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Error::usage("cannot read the configuration")
                .at(path.display())
                .because(error)
                .hint("name it with --config FILE or in $SEAWALL_CONFIG")
        })?;
        Ok(Self {
            config: Arc::new(Config::parse(&text, path)?),
            text,
        })
    }

    /// A command of ours with these words and this configuration.
    pub(super) fn order(&self, options: &Options, words: &[String]) -> Order {
        let path = self.file().display().to_string();
        let mut words = words.to_vec();
        words.extend(["--config".to_owned(), path]);
        words.extend(["--log-level".to_owned(), options.log_level.clone()]);
        Order {
            program: options.program.clone(),
            words,
            name: String::new(),
            stop_timeout: self.config.daemon.stop_timeout.0,
        }
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
