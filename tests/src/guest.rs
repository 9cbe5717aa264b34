//! A site for drills that are watched as guests of their host: limits, walls, places, kills.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::cli::{Call, drill, seawall};
use crate::config::{Config, ConfigFile, Repository};
use crate::postgres::{Builder, Cluster};
use crate::process::{Output, Running, wait_until};
use crate::scratch::Scratch;
use crate::version::PostgresVersion;

/// Longer than anything here takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A check that takes as long as a test needs to look at the instance.
pub const SLOW: &str =
    "[[drill.check]]\nname = 'slow'\nsql = 'SELECT 1 FROM pg_sleep(6)'\nequals = '1'\n";

/// A cluster with a backup and archived work behind it, and a place for drills.
#[derive(Debug)]
pub struct Guest {
    /// The cluster, running.
    pub cluster: Cluster,
    /// Its configuration.
    pub config: Config,
    // Last: it takes the files of all others away.
    /// Where all of it lies.
    pub scratch: Scratch,
}

impl Guest {
    /// A plain cluster; `extra` goes into `[drill]` of its configuration.
    #[track_caller]
    pub fn new(version: u32, extra: &str) -> Self {
        Self::build(version, extra, |builder| builder, |_| {})
    }

    /// A cluster of another making; `prepare` works on the running cluster before its backup.
    #[track_caller]
    pub fn build(
        version: u32,
        extra: &str,
        change: impl FnOnce(Builder) -> Builder,
        prepare: impl FnOnce(&mut Cluster),
    ) -> Self {
        let scratch = Scratch::new();
        let builder = Cluster::builder(PostgresVersion::find(version));
        let mut cluster = change(builder).create_in(&scratch, "main");
        let drills = scratch.directory("drills");
        scratch.directory("t");
        // pg_verifybackup and pg_amcheck take long, and other tests look at them.
        let programs = scratch.directory("programs");
        let config = ConfigFile::new()
            .cluster(&cluster)
            .repository(Repository::local("near", &scratch.join("repository")))
            .extra(&format!(
                "[drill]\nscratch = '{}'\n{extra}",
                drills.display()
            ))
            .write(&scratch);
        let text = std::fs::read_to_string(config.path()).unwrap();
        let bin = format!("[cluster.main]\nbin_directory = '{}'\n", programs.display());
        std::fs::write(config.path(), text.replacen("[cluster.main]\n", &bin, 1)).unwrap();
        for program in ["postgres", "pg_checksums"] {
            add(program, &cluster, &scratch);
        }
        cluster.archive_with(&config);
        cluster.start();
        seawall(&config).arg("init").run().success();
        cluster.sql("CREATE TABLE t AS SELECT x, md5(x::text) FROM generate_series(1, 5000) x");
        prepare(&mut cluster);
        seawall(&config).arg("backup").run().success();
        cluster.sql("INSERT INTO t SELECT x, 'later' FROM generate_series(5001, 6000) x");
        cluster.archive_all(LIMIT);
        Self {
            scratch,
            cluster,
            config,
        }
    }

    /// Runs a drill to its end.
    #[track_caller]
    pub fn drill(&self, arguments: &[&str]) -> Output {
        self.call(arguments).run()
    }

    /// Starts a drill.
    #[track_caller]
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.call(arguments).start()
    }

    fn call(&self, arguments: &[&str]) -> Call {
        let temporary = self.scratch.join("t");
        drill(&self.config)
            .args(arguments)
            .arg("--json")
            .with(|run| run.env("TMPDIR", temporary))
    }

    /// Lets the drill find one more of PostgreSQL's programs.
    #[track_caller]
    pub fn add_program(&self, program: &str) {
        add(program, &self.cluster, &self.scratch);
    }

    /// Adds lines to the end of the configuration.
    #[track_caller]
    pub fn configure(&self, more: &str) {
        let text = std::fs::read_to_string(self.config.path()).unwrap();
        std::fs::write(self.config.path(), text + more).unwrap();
    }

    /// What drills have in their temporary directory: where sockets lie whose path would be
    /// too long.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.scratch.join("t")).unwrap().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Where drills are made.
    pub fn drills(&self) -> PathBuf {
        self.scratch.join("drills")
    }

    /// Nothing of a drill may be left, nor run.
    #[track_caller]
    pub fn must_be_clean(&self) {
        self.must_be_clean_in(&self.drills());
    }

    /// The same in another place.
    #[track_caller]
    pub fn must_be_clean_in(&self, place: &Path) {
        wait_until("no process works for a drill", LIMIT, || {
            working_in(place).is_empty()
        });
        let left: Vec<_> = std::fs::read_dir(place).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.sockets(), Vec::<PathBuf>::new());
    }
}

#[track_caller]
fn add(program: &str, cluster: &Cluster, scratch: &Scratch) {
    let link = scratch.join("programs").join(program);
    std::os::unix::fs::symlink(cluster.version().bin.join(program), link).unwrap();
}

/// Processes whose working directory lies there, with their words.
pub fn working_in(directory: &Path) -> Vec<(i32, String)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            std::fs::read_link(process.path().join("cwd"))
                .is_ok_and(|cwd| cwd.starts_with(directory))
        })
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            Some((pid, String::from_utf8_lossy(&words).replace('\0', " ")))
        })
        .collect()
}

/// Waits until the scratch server has come to the slow check, and returns its postmaster.
#[track_caller]
pub fn server_in(place: &Path, running: &mut Running) -> i32 {
    let mut found = None;
    wait_until("the scratch instance answers checks", LIMIT, || {
        assert!(
            running.is_running(),
            "{}{}",
            running.stdout(),
            running.stderr()
        );
        let processes = working_in(place);
        let asked = processes.iter().any(|(_, words)| words.contains("SELECT"));
        found = processes
            .into_iter()
            .find(|(_, words)| words.contains("/postgres -D "))
            .map(|(pid, _)| pid);
        asked && found.is_some()
    });
    found.unwrap()
}

/// The check of that name in a report.
#[track_caller]
pub fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("no check {name}: {report:#}"))
}

/// The texts of an array, each on a line.
pub fn texts(value: &Value) -> String {
    let lines = value.as_array().unwrap().iter();
    lines
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join("\n")
}
