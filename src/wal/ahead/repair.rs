//! Bringing repositories what they lack because a file was acknowledged without them.

use std::sync::Arc;

use futures::StreamExt;

use super::Ahead;
use crate::error::{Exit, Result};
use crate::postgres::WalFileName;
use crate::wal::push::WalFile;

impl Ahead {
    /// The repositories that lack anything and whose repair may be tried.
    pub(super) fn due(&self) -> impl Iterator<Item = &str> {
        self.missing
            .due(self.repositories.iter().map(String::as_str))
    }

    /// Brings every repository that is due all that it lacks. Says whether it could.
    pub(super) async fn repair(self: Arc<Self>) -> bool {
        let mut whole = true;
        for repository in self.due() {
            let trouble = self.repair_one(repository).await;
            if trouble.is_none() {
                self.engine.caught_up(repository);
            }
            whole &= trouble.is_none();
            self.missing.ended(repository, trouble.as_deref());
        }
        whole
    }

    /// A file that nobody has any more, or that is there with other content, must not keep the
    /// repository from the others; one that does not answer is left in peace. Returns what is
    /// to be said of it.
    async fn repair_one(&self, repository: &str) -> Option<String> {
        let mut names: Vec<WalFileName> = self.missing.of(repository).collect();
        // As PostgreSQL does it: history first.
        names.sort_by_key(|name| (!matches!(name, WalFileName::History(_)), *name));
        let mut repairs = futures::stream::iter(names)
            .map(|name| async move { (name, self.bring(repository, name).await) })
            .buffered(self.jobs);
        let mut trouble = None;
        while let Some((name, done)) = repairs.next().await {
            match done {
                Ok(()) => self.missing.repaired(repository, name),
                Err(error) => {
                    let goes_on = error.exit() == Exit::Refused || !error.is_retryable();
                    trouble.get_or_insert(error.one_line());
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        trouble
    }

    async fn bring(&self, repository: &str, name: WalFileName) -> Result<()> {
        let path = self.data.pg_wal().join(name.to_string());
        let pushed = match WalFile::open(&path, &self.control) {
            Ok(file) => self.engine.push_to(file, repository).await,
            Err(error) => Err(error),
        };
        match pushed {
            Err(error) if path.exists() && error.exit() == Exit::Refused => Err(error),
            // PostgreSQL has recycled it, perhaps under our eyes.
            Err(_) => self.engine.copy_to(name, repository).await,
            Ok(()) => Ok(()),
        }
    }
}
