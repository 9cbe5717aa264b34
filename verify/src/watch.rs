//! Watching what a drill takes while it runs: the size of its scratch directory, the memory of
//! its processes, and what is left on the disk. What exceeds a limit ends the drill with a
//! report, before somebody else feels it.
//!
//! It looks, and does not hold back: between two looks a process may take more. The kernel's
//! control groups would hold back, and take rights that a drill does not have.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::limits::Limits;
use crate::{host, processes};

/// How often it looks, unless looking takes long: then a twentieth of the time goes into it, and
/// a fifth where there is a limit. Files and memory are looked at apart: to walk through a million
/// files takes seconds, in which processes can take all memory.
const EVERY: Duration = Duration::from_millis(200);

/// How often it looks at memory that has no limit: only the report asks.
const MEMORY_EVERY: Duration = Duration::from_secs(1);

/// What is left on the disk for others, whatever the limit.
const RESERVE: u64 = 32 << 20;

/// The threads that look. They end when this is dropped.
pub struct Watch {
    peaks: Arc<Peaks>,
    exceeded: watch::Receiver<Option<String>>,
    looking: Vec<(mpsc::Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug, Default)]
struct Peaks {
    disk: AtomicU64,
    memory: AtomicU64,
}

impl Watch {
    /// Watches from now on.
    pub fn start(scratch: &Path, limits: Limits) -> Self {
        let peaks = Arc::new(Peaks::default());
        let (tell, exceeded) = watch::channel(None);
        let looking = [Part::Files, Part::Memory].map(|part| {
            let (stop, stopped) = mpsc::channel();
            let look = Look {
                scratch: scratch.to_owned(),
                limits,
                peaks: Arc::clone(&peaks),
                part,
                tell: tell.clone(),
            };
            (stop, std::thread::spawn(move || look.until(&stopped)))
        });
        Self {
            peaks,
            exceeded,
            looking: looking.into(),
        }
    }

    /// Waits until a limit is exceeded, and says which. As long as none is, it waits.
    pub fn exceeded(&self) -> impl Future<Output = String> + use<> {
        let mut exceeded = self.exceeded.clone();
        async move {
            let why = exceeded.wait_for(Option::is_some).await;
            match why.map(|why| why.clone()) {
                Ok(Some(why)) => why,
                _ => std::future::pending().await,
            }
        }
    }

    /// Which limit was exceeded so far, if one was.
    pub fn why(&self) -> Option<String> {
        self.exceeded.borrow().clone()
    }

    /// The most that the scratch directory held, in bytes of the disk.
    pub fn disk_peak(&self) -> u64 {
        self.peaks.disk.load(Ordering::Relaxed)
    }

    /// The most memory that the drill's processes took together, in bytes.
    pub fn memory_peak(&self) -> u64 {
        self.peaks.memory.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let (stop, threads): (Vec<_>, Vec<_>) = self.looking.drain(..).unzip();
        drop(stop);
        for thread in threads {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Files,
    /// And what is left on the disk, which is known at once.
    Memory,
}

struct Look {
    scratch: PathBuf,
    limits: Limits,
    peaks: Arc<Peaks>,
    part: Part,
    tell: watch::Sender<Option<String>>,
}

impl Look {
    fn until(self, stopped: &mpsc::Receiver<()>) {
        let mut memory_next = Instant::now();
        loop {
            let began = Instant::now();
            let mut pause = EVERY;
            let exceeded = match self.part {
                Part::Files => {
                    let exceeded = self.files();
                    let share = if self.limits.disk.is_some() { 4 } else { 19 };
                    pause = pause.max(began.elapsed() * share);
                    exceeded
                }
                Part::Memory => {
                    let mut exceeded = None;
                    if began >= memory_next {
                        exceeded = self.memory_exceeded();
                        let rest = match self.limits.memory {
                            Some(_) => began.elapsed() * 4,
                            None => MEMORY_EVERY.max(began.elapsed() * 19),
                        };
                        memory_next = Instant::now() + rest;
                    }
                    // What takes long to count can be full before it is counted again.
                    exceeded.or_else(|| self.nearly_full())
                }
            };
            if let Some(why) = exceeded {
                // The first says why.
                self.tell.send_if_modified(|told| {
                    let first = told.is_none();
                    told.get_or_insert(why);
                    first
                });
            }
            match stopped.recv_timeout(pause) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                _ => return,
            }
        }
    }

    fn files(&self) -> Option<String> {
        let disk = size_of(&self.scratch);
        self.peaks.disk.fetch_max(disk, Ordering::Relaxed);
        let limit = self.limits.disk.filter(|limit| disk > *limit)?;
        Some(format!(
            "the scratch directory grew to {} MiB, and {} MiB are allowed (--disk, drill.disk)",
            disk >> 20,
            limit >> 20
        ))
    }

    fn memory_exceeded(&self) -> Option<String> {
        let memory = self.memory();
        self.peaks.memory.fetch_max(memory, Ordering::Relaxed);
        let limit = self.limits.memory.filter(|limit| memory > *limit)?;
        Some(format!(
            "the drill's processes took {} MiB of memory, and {} MiB are allowed (--memory, drill.memory)",
            memory >> 20,
            limit >> 20
        ))
    }

    fn nearly_full(&self) -> Option<String> {
        let free = host::free_bytes(&self.scratch).ok()?;
        (free < RESERVE).then(|| {
            format!(
                "the disk of the scratch directory is nearly full: {} MiB are free, and the last {} MiB are left to others",
                free >> 20,
                RESERVE >> 20
            )
        })
    }

    /// What this program, all that it started, and all that works in its scratch directory
    /// take. (What fetches WAL ahead is nobody's child any more.)
    fn memory(&self) -> u64 {
        let mut pids = processes::tree(std::process::id() as i32);
        pids.extend(processes::working_in(&self.scratch));
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().map(processes::memory_of).sum()
    }
}

/// Bytes of the disk below a directory. Links are not followed; what vanishes is not counted.
fn size_of(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_outgrows_its_limit_is_told_with_both_sizes() {
        let scratch = tempfile::tempdir().unwrap();
        let limits = Limits {
            disk: Some(4 << 20),
            ..Limits::default()
        };
        let watch = Watch::start(scratch.path(), limits);
        let patience = Duration::from_millis(700);
        let early = tokio::time::timeout(patience, watch.exceeded()).await;
        assert!(early.is_err(), "{early:?}");
        let below = scratch.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let content = vec![1; 6 << 20];
        seawall::durable::write_file(&below.join("file"), &content, 0o600).unwrap();
        let why = tokio::time::timeout(Duration::from_secs(10), watch.exceeded()).await;
        let why = why.unwrap();
        assert!(why.contains("grew to 6 MiB, and 4 MiB"), "{why}");
        assert!(watch.disk_peak() >= 6 << 20);
        assert!(watch.memory_peak() > 1 << 20);
    }

    #[tokio::test]
    async fn processes_that_take_more_memory_than_they_may_are_told() {
        let scratch = tempfile::tempdir().unwrap();
        let limits = Limits {
            memory: Some(1 << 20),
            ..Limits::default()
        };
        let watch = Watch::start(scratch.path(), limits);
        let why = tokio::time::timeout(Duration::from_secs(20), watch.exceeded()).await;
        assert!(why.unwrap().contains("and 1 MiB are allowed (--memory"));
    }
}
