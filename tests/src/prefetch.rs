//! What is fetched ahead for a data directory, seen from outside, and an archive to fetch from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::wait_until;
use crate::scratch::give_to_owner;
use crate::segment::name;
use crate::site::PATIENCE;
use crate::{Cluster, PostgresVersion, Segment, Site};

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

/// A cluster that never started, and an archive of so many segments of 1 MiB.
#[derive(Debug)]
pub struct Archive {
    /// The cluster and its repository.
    pub site: Site,
    base: Segment,
    /// What is fetched ahead for it.
    pub prefetched: Prefetched,
}

impl Archive {
    /// With the defaults of `[fetch]`.
    #[track_caller]
    pub fn of(count: u64) -> Self {
        Self::configured(count, "")
    }

    /// With these settings below `[fetch]`.
    #[track_caller]
    pub fn configured(count: u64, fetch: &str) -> Self {
        let builder = Cluster::builder(PostgresVersion::find(15)).segment_size(1);
        let site = Site::configured(builder, |file| file.extra(&format!("[fetch]\n{fetch}")));
        let mut files = std::fs::read_dir(site.wal("")).unwrap().flatten();
        let any = files.find(|file| file.file_name().len() == 24).unwrap();
        let archive = Self {
            base: Segment::read(any.path()),
            prefetched: Prefetched::of(site.cluster.data()),
            site,
        };
        archive.push(1..=count);
        archive
    }

    /// Archives segments of these numbers.
    #[track_caller]
    pub fn push(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let path = self.site.wal(&name(number));
            std::fs::write(&path, self.plain(number)).unwrap();
            give_to_owner(&path);
            self.site.push(&name(number)).success();
        }
    }

    /// What segment `number` holds.
    pub fn plain(&self, number: u64) -> Vec<u8> {
        let content = (number % 250 + 1) as u8;
        self.base.clone().content(content).numbered(number).0
    }

    /// Asks for it and expects it.
    #[track_caller]
    pub fn deliver(&self, number: u64) {
        let _ = std::fs::remove_file(self.site.fetched());
        self.site.fetch(&name(number)).success();
        self.holds(number);
    }

    /// That the destination holds it.
    #[track_caller]
    pub fn holds(&self, number: u64) {
        let delivered = std::fs::read(self.site.fetched()).unwrap();
        assert!(
            delivered == self.plain(number),
            "segment {number} is another"
        );
    }

    /// Delivers the first, and waits until the spool is full: 16 behind it.
    #[track_caller]
    pub fn fill_spool(&self) {
        self.deliver(1);
        self.prefetched.wait_for(&name(17));
        wait_until("the spool is full", PATIENCE, || {
            self.prefetched.files().len() == 16
        });
    }
}
