//! What most tests begin with: a cluster that archives, one local repository, a
//! configuration; and calls of the programs as PostgreSQL would make them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall::config::SEGMENTS_AHEAD;

use crate::cli::{Call, archive, fetch, restore, seawall};
use crate::postgres::{Builder, Cluster};
use crate::process::Output;
use crate::stored::Stored;
use crate::version::PostgresVersion;
use crate::{Config, ConfigFile, Repository, Scratch, Segment, judge, segment, wait_until};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster called `main` that archives into a repository called `near`.
#[derive(Debug)]
pub struct Site {
    /// The cluster; made, not started.
    pub cluster: Cluster,
    /// Its configuration.
    pub config: Config,
    /// What lies in the repository.
    pub near: Stored,
    // Last: it takes the files of all others away.
    /// Where all of it lies.
    pub scratch: Scratch,
}

impl Site {
    /// A plain cluster of that major version. Nothing runs yet, `seawall init` has run.
    #[track_caller]
    pub fn of(major: u32) -> Self {
        Self::with(Cluster::builder(PostgresVersion::find(major)))
    }

    /// A running cluster of version 15 whose repository holds an object of every class: a full
    /// backup with configuration from outside, whose marker comes with it, an incremental one on
    /// top of it, segments, and the history of a second timeline.
    #[track_caller]
    pub fn of_every_class() -> (Self, serde_json::Value) {
        let mut site = Self::with(Cluster::builder(PostgresVersion::find(15)).config_outside());
        site.cluster.start();
        site.cluster
            .sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n");
        let marker = site.backup();
        site.cluster.sql("UPDATE t SET md5 = '' WHERE n % 5000 = 0");
        let call = site.seawall("backup").args(["--kind", "incremental"]);
        call.run().success();
        site.cluster.archive_all(PATIENCE);
        let promoted = site.restore_and_start("promoted", &["--archive", "on"]);
        promoted.archive_all(PATIENCE);
        drop(promoted);
        (site, marker)
    }

    /// A cluster of another making.
    #[track_caller]
    pub fn with(builder: Builder) -> Self {
        Self::configured(builder, |file| file)
    }

    /// A cluster of another making, with more in the configuration file.
    #[track_caller]
    pub fn configured(builder: Builder, more: impl FnOnce(ConfigFile) -> ConfigFile) -> Self {
        let scratch = Scratch::new();
        let mut cluster = builder.create_in(&scratch, "main");
        let root = scratch.directory("near");
        let file = ConfigFile::new()
            .cluster(&cluster)
            .repository(Repository::local("near", &root));
        let config = more(file).write(&scratch);
        seawall(&config).arg("init").run().success();
        cluster.archive_with(&config);
        Self {
            cluster,
            config,
            near: Stored::at(&root),
            scratch,
        }
    }

    /// The same with a second push target, called `second`, and this at the top of its
    /// configuration.
    #[track_caller]
    pub fn with_second(mut self, top: &str) -> (Self, Stored) {
        let root = self.scratch.directory("second");
        self.config = ConfigFile::new()
            .top(top)
            .cluster(&self.cluster)
            .repository(Repository::local("near", self.near.root()))
            .repository(Repository::local("second", &root))
            .write(&self.scratch);
        seawall(&self.config).arg("init").run().success();
        (self, Stored::at(&root))
    }

    /// The same, running.
    #[track_caller]
    pub fn start(mut self) -> Self {
        self.cluster.start();
        self
    }

    /// Where PostgreSQL keeps `name` in pg_wal.
    pub fn wal(&self, name: &str) -> PathBuf {
        self.cluster.data().join("pg_wal").join(name)
    }

    /// Archives a file of pg_wal, as the archive_command does.
    #[track_caller]
    pub fn push(&self, name: &str) -> Output {
        self.pushing(name).run()
    }

    /// The same call, to be changed or started.
    #[track_caller]
    pub fn pushing(&self, name: &str) -> Call {
        archive(&self.config)
            .arg(format!("pg_wal/{name}"))
            .with(|run| run.directory(self.cluster.data()))
    }

    /// Waits until no process works ahead of this server any more: it holds a lock as long as it
    /// lives.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        let lock = self.wal("seawall/archive/worker.lock");
        wait_until("nobody works ahead any more", PATIENCE, || {
            std::fs::File::open(&lock).map_or(true, |file| file.try_lock().is_ok())
        });
    }

    /// Archives a segment that no server wrote, so far behind `name` on timeline 1 that the
    /// absence of `name` is a gap: what is nearer may only have been stored ahead of it.
    #[track_caller]
    pub fn archive_far_behind(&self, name: &str) {
        let mut files = std::fs::read_dir(self.wal("")).unwrap().flatten();
        let any = files.find(|file| file.file_name().len() == 24);
        let far = segment::number(name) + SEGMENTS_AHEAD + 1;
        let made = Segment::read(any.expect("pg_wal holds a segment").path()).numbered(far);
        let path = self.scratch.file(segment::name(far), made.0);
        archive(&self.config).arg(path).run().success();
    }

    /// Asks for a file, as the restore_command does: into `pg_wal/RECOVERYXLOG`.
    #[track_caller]
    pub fn fetch(&self, name: &str) -> Output {
        self.fetching(name).run()
    }

    /// The same call, to be changed or started.
    #[track_caller]
    pub fn fetching(&self, name: &str) -> Call {
        fetch(&self.config)
            .args([name, "pg_wal/RECOVERYXLOG"])
            .with(|run| run.directory(self.cluster.data()))
    }

    /// Where [`fetch`](Self::fetch) puts the file.
    pub fn fetched(&self) -> PathBuf {
        self.wal("RECOVERYXLOG")
    }

    /// `seawall VERB`, to be completed.
    #[track_caller]
    pub fn seawall(&self, verb: &str) -> Call {
        seawall(&self.config).arg(verb)
    }

    /// Takes a full backup and returns its marker.
    #[track_caller]
    pub fn backup(&self) -> serde_json::Value {
        let call = self.seawall("backup").arg("--json");
        call.run().success().json()
    }

    /// `seawall-restore` into `to`, to be completed.
    #[track_caller]
    pub fn restoring(&self, to: &Path) -> Call {
        restore(&self.config).arg("--to").arg(to)
    }

    /// A handle for what was restored into `to`; not started.
    #[track_caller]
    pub fn adopt(&self, name: &str, to: &Path) -> Cluster {
        Cluster::adopt(self.cluster.version().clone(), &self.scratch, name, to)
    }

    /// What a killed restore left with a `pg_control`, which PostgreSQL would start, is whole:
    /// nothing is missing but that its mark is taken away.
    #[track_caller]
    pub fn is_whole_but_for_the_mark(&self, to: &Path) {
        let mark = "seawall-restore.json";
        judge::verifybackup_without(self.cluster.version(), to, mark).must_pass();
    }

    /// Restores into `scratch`/`name`-data with these arguments and starts it.
    #[track_caller]
    pub fn restore_and_start(&self, name: &str, args: &[&str]) -> Cluster {
        let to = self.scratch.join(format!("{name}-data"));
        self.restoring(&to).args(args).run().success();
        let mut restored = self.adopt(name, &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        restored
    }
}
