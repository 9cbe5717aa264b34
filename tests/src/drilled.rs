//! What tests of drills begin with: a cluster that archives, with a backup and some work after
//! it, all of it archived; and its drills.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::cli::{Call, drill, seawall};
use crate::config::{Config, ConfigFile, Repository};
use crate::garage::Garage;
use crate::postgres::{Builder, Cluster};
use crate::process::Output;
use crate::proxy::FaultProxy;
use crate::scratch::{Scratch, give_to_owner};
use crate::stored::Stored;
use crate::version::PostgresVersion;

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster that archives, with a table `t` of 6000 rows: 5000 in a backup, 1000 in WAL.
#[derive(Debug)]
pub struct DrillSite {
    /// The cluster, running.
    pub cluster: Cluster,
    /// Its configuration.
    pub config: Config,
    /// What lies in the repository, where it is a local one.
    pub near: Stored,
    /// Its store, where it is not.
    pub garage: Option<(Garage, FaultProxy)>,
    // Last: it takes the files of all others away.
    /// Where all of it lies.
    pub scratch: Scratch,
}

impl DrillSite {
    /// A plain cluster of that major version; `extra` follows `[drill]` in the configuration.
    #[track_caller]
    pub fn new(version: u32, extra: &str) -> Self {
        Self::build(version, extra, |builder| builder)
    }

    /// A cluster of another making.
    #[track_caller]
    pub fn build(version: u32, extra: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        let scratch = Scratch::new();
        let near = Repository::local("near", &scratch.directory("repository"));
        Self::over(scratch, version, extra, near, None, change)
    }

    /// A plain cluster whose repository lies in Garage, behind a proxy.
    #[track_caller]
    pub fn in_garage(version: u32, extra: &str) -> Self {
        let scratch = Scratch::new();
        let garage = Garage::start(&scratch);
        let proxy = FaultProxy::start(garage.address());
        let near = garage.repository_through(&proxy, "near", "near", "pg");
        Self::over(scratch, version, extra, near, Some((garage, proxy)), |b| b)
    }

    #[track_caller]
    fn over(
        scratch: Scratch,
        version: u32,
        extra: &str,
        near: Repository,
        garage: Option<(Garage, FaultProxy)>,
        change: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let builder = Cluster::builder(PostgresVersion::find(version));
        let mut cluster = change(builder).create_in(&scratch, "main");
        let drills = scratch.directory("drills");
        let config = ConfigFile::new()
            .cluster(&cluster)
            .repository(near)
            .extra(&format!(
                "[drill]\nscratch = '{}'\n{extra}",
                drills.display()
            ))
            .write(&scratch);
        let programs = scratch.directory("programs");
        for program in std::fs::read_dir(&cluster.version().bin).unwrap().flatten() {
            let link = programs.join(program.file_name());
            std::os::unix::fs::symlink(program.path(), link).unwrap();
        }
        cluster.archive_with(&config);
        cluster.start();
        let near = Stored::at(&scratch.join("repository"));
        let site = Self {
            cluster,
            config,
            near,
            garage,
            scratch,
        };
        site.set_bin_directory(&programs);
        seawall(&site.config).arg("init").run().success();
        site.cluster
            .sql("CREATE TABLE t AS SELECT x, md5(x::text) FROM generate_series(1, 5000) x");
        site.backup();
        site.cluster
            .sql("INSERT INTO t SELECT x, 'later' FROM generate_series(5001, 6000) x");
        site.archive_all();
        site
    }

    /// Takes a full backup.
    #[track_caller]
    pub fn backup(&self) {
        seawall(&self.config).arg("backup").run().success();
    }

    /// Switches the segment and waits until it is archived. Returns its name.
    #[track_caller]
    pub fn archive_all(&self) -> String {
        self.cluster.archive_all(LIMIT)
    }

    /// `seawall drill --json`, to be completed.
    #[track_caller]
    pub fn drilling(&self, arguments: &[&str]) -> Call {
        drill(&self.config).args(arguments).arg("--json")
    }

    /// Runs a drill to its end.
    #[track_caller]
    pub fn drill(&self, arguments: &[&str]) -> Output {
        self.drilling(arguments).run()
    }

    /// Runs a drill that must pass, and leave nothing. Returns its report.
    #[track_caller]
    pub fn passes(&self, arguments: &[&str]) -> Value {
        let report = self.drill(arguments).success().json();
        assert_eq!(report["passed"], true);
        assert!(self.is_clean());
        report
    }

    /// Runs a drill that must come to its report and not pass, with these words among the
    /// reasons, and leave nothing. Returns its report.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str], words: &[&str]) -> Value {
        let report = self.drill(arguments).exits_with(3).json();
        assert_eq!(report["passed"], false);
        let reasons = report["reasons"].as_array().expect("reasons");
        let reasons: Vec<&str> = reasons.iter().filter_map(Value::as_str).collect();
        let reasons = reasons.join("\n");
        for words in words {
            assert!(reasons.contains(words), "{words:?} is not in {reasons}");
        }
        assert!(self.is_clean());
        report
    }

    /// Nothing of a drill may be left.
    pub fn is_clean(&self) -> bool {
        std::fs::read_dir(self.scratch.join("drills"))
            .unwrap()
            .next()
            .is_none()
    }

    /// Lets the cluster's drills find PostgreSQL's programs there alone.
    #[track_caller]
    pub fn set_bin_directory(&self, directory: &Path) {
        let text = std::fs::read_to_string(self.config.path()).unwrap();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with("bin_directory"))
            .map(str::to_owned)
            .collect();
        let cluster = lines
            .iter()
            .position(|line| line.starts_with("[cluster."))
            .unwrap();
        lines.insert(
            cluster + 1,
            format!("bin_directory = '{}'", directory.display()),
        );
        std::fs::write(self.config.path(), lines.join("\n")).unwrap();
        give_to_owner(self.config.path());
    }

    /// Changes the text of the configuration.
    #[track_caller]
    pub fn configure(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config.path()).unwrap();
        assert!(text.contains(from), "{from:?} is not in {text}");
        std::fs::write(self.config.path(), text.replace(from, to)).unwrap();
        give_to_owner(self.config.path());
    }

    /// A directory with these of the version's programs alone.
    #[track_caller]
    pub fn only_programs(&self, names: &[&str]) -> PathBuf {
        let bare = self.scratch.directory("bare");
        for name in names {
            let program = self.cluster.version().bin.join(name);
            std::os::unix::fs::symlink(program, bare.join(name)).unwrap();
        }
        bare
    }
}

/// The check of that name in a report.
#[track_caller]
pub fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks
        .iter()
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("no check {name} in {checks:#?}"))
}

/// That check's outcome and detail.
#[track_caller]
pub fn outcome<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let check = check(report, name);
    let text = |field: &str| check[field].as_str().expect("a text");
    (text("outcome"), text("detail"))
}
