//! The push engine: WAL files into every repository, within bounds of memory and processor.
//!
//! [`Engine::push`] says `Ok` only when the file is durable in as many repositories as the
//! configuration asks for. The same content again is fine; other content under the same name
//! is refused, and nothing is overwritten, for the key carries the content's digest. One
//! engine serves one call of the archive_command, a run of files ahead of it, or a daemon.

mod file;
mod repair;
mod target;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::config::{ArchiveConfig, Compression, Config};
use crate::error::{Error, Exit, Result};
use crate::postgres::WalFileName;
use crate::postgres::control::ControlFile;
use crate::repository::{Repository, System};

pub use file::WalFile;
use file::{Compressed, Workshop};
use target::Target;

/// How long repositories that are not needed for the acknowledgement are waited for.
const GRACE: Duration = Duration::from_secs(5);

/// The unit in which memory is counted.
const KIB: u64 = 1 << 10;

/// What became of a file in one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was put now.
    Stored,
    /// The same content was there already.
    Present,
}

/// A file that is durable where it must be.
#[derive(Debug, Default)]
pub struct Pushed {
    /// The repositories that hold it, by name, and whether it was there before.
    pub held_by: Vec<(String, Outcome)>,
    /// The repositories that lack it. Empty unless fewer than all are needed.
    pub lacking: Vec<String>,
}

/// Pushes files of one cluster into all repositories.
pub struct Engine {
    targets: Vec<Target>,
    /// Repositories that could not be opened, and why.
    unusable: Vec<(String, Error)>,
    control: ControlFile,
    workshops: Arc<Workshops>,
    /// How many repositories must hold a file.
    needed: usize,
    /// Repositories that lack earlier files: they are not waited for unless they are needed.
    lagging: Mutex<BTreeSet<String>>,
    jobs: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    memory_bytes: u64,
}

impl Engine {
    /// Opens the repositories, without touching the network.
    ///
    /// # Errors
    /// More of them cannot be opened than may be missing.
    pub fn open(
        config: &Config,
        cluster: &str,
        control: &ControlFile,
        lagging: BTreeSet<String>,
    ) -> Result<Self> {
        let mut repositories = Vec::new();
        let mut unusable = Vec::new();
        for repository in config.push_targets() {
            match Repository::open(repository) {
                Ok(opened) => repositories.push(opened),
                Err(error) => unusable.push((repository.name.clone(), error)),
            }
        }
        let mut engine = Self::over(
            &repositories,
            cluster,
            control,
            config.compression,
            &config.archive,
        );
        let pushed_to = config.push_targets().count();
        engine.needed = config.archive_ack.needed(pushed_to);
        if engine.needed < pushed_to {
            engine.targets.iter_mut().for_each(Target::may_be_left_out);
        }
        engine.unusable = unusable;
        engine.lagging = Mutex::new(lagging);
        Ok(engine)
    }

    /// An engine over repositories that are open, all of which must hold each file.
    pub fn over(
        repositories: &[Repository],
        cluster: &str,
        control: &ControlFile,
        compression: Compression,
        archive: &ArchiveConfig,
    ) -> Self {
        let memory = archive.memory.as_u64().max(4 << 20) / KIB * KIB;
        let target =
            |repository: &Repository| Target::new(repository.system(cluster, control.system_id));
        Self {
            targets: repositories.iter().map(target).collect(),
            unusable: Vec::new(),
            control: control.clone(),
            workshops: Arc::new(Workshops::new(compression)),
            needed: repositories.len(),
            lagging: Mutex::default(),
            jobs: Arc::new(Semaphore::new(archive.jobs)),
            memory: Arc::new(Semaphore::new((memory / KIB) as usize)),
            memory_bytes: memory,
        }
    }

    /// The cluster in each repository that could be opened.
    pub fn systems(&self) -> impl Iterator<Item = &System> {
        self.targets.iter().map(Target::system)
    }

    /// Pushes one file into every repository at once. Comes back when enough of them hold it
    /// and the others had their time, or when too many failed.
    ///
    /// # Errors
    /// The file cannot be read, too few repositories hold it, or one holds other content.
    pub async fn push(&self, file: WalFile) -> Result<Pushed> {
        let mut pushed = self.push_into(file, self.needed, |_| true).await?;
        pushed.lacking = self.lacking(&pushed);
        self.lagging().extend(pushed.lacking.iter().cloned());
        Ok(pushed)
    }

    /// Pushes one file into that repository alone.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub async fn push_to(&self, file: WalFile, repository: &str) -> Result<()> {
        self.push_into(file, 1, |name| name == repository)
            .await
            .map(|_| ())
    }

    async fn push_into(
        &self,
        file: WalFile,
        needed: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Pushed> {
        let name = file.name();
        let file = Arc::new(file);
        let (publish, compressed) = watch::channel(None);
        let compressing = async {
            let (reserved, result) = self.compress(&file).await?;
            publish.send_replace(Some(Arc::new(result)));
            Ok(reserved)
        };
        let stores: FuturesUnordered<_> = self
            .targets
            .iter()
            .map(|target| (target.system().repository().name(), target))
            .filter(|(repository, _)| wanted(repository))
            .map(|(repository, target)| {
                let mut compressed = compressed.clone();
                let file = &file;
                async move {
                    let compressed = async {
                        let found = compressed.wait_for(Option::is_some).await;
                        let found = found.ok().and_then(|found| (*found).clone());
                        found.ok_or_else(|| Error::failed(format!("{name} cannot be read")))
                    };
                    let stored = target.store(file, &self.control, compressed, &self.workshops);
                    (repository, stored.await)
                }
            })
            .collect();
        // Memory stays reserved until every repository has the file.
        let (_reserved, pushed) =
            tokio::try_join!(compressing, self.collect(name, needed, stores))?;
        Ok(pushed)
    }

    /// Waits for the repositories: without an end while a needed one is missing, then for a
    /// while.
    async fn collect<'a, F>(
        &self,
        name: WalFileName,
        needed: usize,
        mut stores: FuturesUnordered<F>,
    ) -> Result<Pushed>
    where
        F: Future<Output = (&'a str, Result<Outcome>)>,
    {
        let mut pushed = Pushed::default();
        let mut failures: Vec<(&str, Error)> = Vec::new();
        let mut deadline = None;
        while !stores.is_empty() {
            let next = if pushed.held_by.len() < needed {
                stores.next().await
            } else if self.only_lagging_are_left(&pushed, &failures) {
                break;
            } else {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + GRACE);
                match tokio::time::timeout_at(deadline, stores.next()).await {
                    Ok(next) => next,
                    Err(_) => break,
                }
            };
            match next {
                Some((repository, Ok(outcome))) => {
                    tracing::debug!("{name}: {outcome:?} in repository {repository}");
                    pushed.held_by.push((repository.to_owned(), outcome));
                }
                // Another content is no outage: it is said, whoever else holds the file.
                Some((_, Err(error))) if error.exit() == Exit::Refused => return Err(error),
                Some((repository, Err(error))) => failures.push((repository, error)),
                None => break,
            }
        }
        let unusable = self.unusable.iter().map(|(_, error)| error.again());
        let failures = failures.into_iter().map(|(_, error)| error);
        let mut failures = failures.chain(unusable);
        if pushed.held_by.len() >= needed {
            failures.for_each(|error| tracing::warn!("{}", error.one_line()));
            return Ok(pushed);
        }
        // Each is said, and the first decides.
        let first = failures.next();
        failures.for_each(|error| tracing::error!("{}", error.one_line()));
        Err(first.unwrap_or_else(|| Error::usage("no repository is configured")))
    }

    /// Whether nobody is left but repositories that are behind anyway: working ahead brings
    /// them what they lack.
    fn only_lagging_are_left(&self, pushed: &Pushed, failures: &[(&str, Error)]) -> bool {
        let lagging = self.lagging();
        let answered = |name: &str| {
            pushed.held_by.iter().any(|(held, _)| held == name)
                || failures.iter().any(|(failed, _)| *failed == name)
        };
        let mut all = self.systems().map(|system| system.repository().name());
        all.all(|name| lagging.contains(name) || answered(name))
    }

    /// Tells the engine that `repository` lacks nothing any more.
    pub fn caught_up(&self, repository: &str) {
        self.lagging().remove(repository);
    }

    fn lagging(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.lagging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lacking(&self, pushed: &Pushed) -> Vec<String> {
        let opened = self
            .targets
            .iter()
            .map(|target| target.system().repository().name());
        let unusable = self.unusable.iter().map(|(name, _)| name.as_str());
        opened
            .chain(unusable)
            .filter(|name| !pushed.held_by.iter().any(|(held, _)| held == name))
            .map(str::to_owned)
            .collect()
    }

    /// Digests and compresses the file within the bounds, and keeps the memory that the
    /// result takes reserved.
    async fn compress(&self, file: &Arc<WalFile>) -> Result<(OwnedSemaphorePermit, Compressed)> {
        let died = |error| Error::failed("compression died").because(error);
        let closed = |_| Error::failed("the engine is closed");
        // What cannot be compressed grows a little; the difference is not worth counting.
        let kib = file.size().min(self.memory_bytes).div_ceil(KIB) as u32;
        let memory = Arc::clone(&self.memory).acquire_many_owned(kib.max(1));
        let mut reserved = memory.await.map_err(closed)?;
        let job = Arc::clone(&self.jobs)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let (file, workshops) = (Arc::clone(file), Arc::clone(&self.workshops));
        let too_large = file.size() > self.memory_bytes;
        let compressed = tokio::task::spawn_blocking(move || {
            let _job = job;
            workshops.with(|workshop| file.read(too_large, workshop))
        })
        .await
        .map_err(died)??;
        if let Some(bytes) = &compressed.bytes {
            let used = (bytes.len() as u64).div_ceil(KIB) as usize;
            let unused = reserved.num_permits().saturating_sub(used);
            drop(reserved.split(unused));
        }
        Ok((reserved, compressed))
    }
}

/// The workshops that nobody works in just now: as many as ever worked at once.
struct Workshops {
    compression: Compression,
    free: Mutex<Vec<Workshop>>,
}

impl Workshops {
    fn new(compression: Compression) -> Self {
        let free = Mutex::default();
        Self { compression, free }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Workshop) -> Result<T>) -> Result<T> {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free().pop();
        let mut workshop = match found {
            Some(workshop) => workshop,
            None => Workshop::new(self.compression)?,
        };
        let done = work(&mut workshop);
        free().push(workshop);
        done
    }
}
