//! What is fetched ahead for a data directory, seen from outside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::wait_until;

/// `pg_wal/seawall/fetch` of one data directory.
#[derive(Debug, Clone)]
pub struct Prefetched {
    data: PathBuf,
}

impl Prefetched {
    /// That of this data directory.
    pub fn of(data: &Path) -> Self {
        Self { data: data.into() }
    }

    /// The directory, which exists only while there is a worker, or where one was killed.
    pub fn directory(&self) -> PathBuf {
        self.data.join("pg_wal/seawall/fetch")
    }

    /// The files of whole segments, in the order of their names.
    pub fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory()).into_iter().flatten();
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.len() == 24 + 1 + 32 && name.contains('-')
        });
        files.sort();
        files
    }

    /// The file of one segment.
    pub fn file(&self, segment: &str) -> Option<PathBuf> {
        let is = |path: &PathBuf| path.to_string_lossy().contains(&format!("/{segment}-"));
        self.files().into_iter().find(is)
    }

    /// Waits until a segment is there, and returns its file.
    #[track_caller]
    pub fn wait_for(&self, segment: &str) -> PathBuf {
        wait_until(
            &format!("{segment} is fetched ahead"),
            Duration::from_secs(30),
            || self.file(segment).is_some(),
        );
        self.file(segment).expect("it was just there")
    }

    /// The processes that fetch ahead into this directory.
    pub fn workers(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|id| {
            let process = PathBuf::from(format!("/proc/{id}"));
            let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let cwd = std::fs::read_link(process.join("cwd")).unwrap_or_default();
            let is_worker = command.split(|b| *b == 0).any(|word| word == b"--prefetch");
            is_worker && cwd == self.data
        })
        .collect()
    }

    /// `kill -9` for them. Returns how many there were.
    pub fn kill_workers(&self) -> usize {
        let workers = self.workers();
        for worker in &workers {
            let _ = kill(Pid::from_raw(*worker as i32), Signal::SIGKILL);
        }
        workers.len()
    }

    /// Waits until no worker is left, nor anything that one wrote.
    #[track_caller]
    pub fn wait_until_gone(&self, limit: Duration) {
        let left = self.data.join("pg_wal/seawall");
        wait_until("nothing of a prefetch is left", limit, || {
            !left.exists() && self.workers().is_empty()
        });
    }
}
