//! The whole job over any repositories: a cluster that archives, backups, a restore, a drill,
//! a listing, a check. And the proof that no secret came to light meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::Call;
use crate::judge::{self, Dump};
use crate::site::PATIENCE;
use crate::{
    Cluster, Config, ConfigFile, Output, PostgresVersion, Repository, Scratch, cli, process,
};

/// A cluster called `main` with a configuration; made, not started, nothing initialised.
#[derive(Debug)]
pub struct Job {
    /// The cluster.
    pub cluster: Cluster,
    /// Its configuration.
    pub config: Config,
    environment: Vec<(String, String)>,
    said: std::cell::RefCell<String>,
}

impl Job {
    /// A cluster that archives into `repositories`. `environment` is what the programs and
    /// the servers find in theirs.
    #[track_caller]
    pub fn over(
        scratch: &Scratch,
        repositories: impl IntoIterator<Item = Repository>,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut cluster = Cluster::builder(PostgresVersion::find(15))
            .fsync()
            .create_in(scratch, "main");
        let mut file = ConfigFile::new().cluster(&cluster);
        for repository in repositories {
            file = file.repository(repository);
        }
        let config = file.write(scratch);
        cluster.archive_with(&config);
        for (name, value) in environment {
            cluster.env(name, value);
        }
        Self {
            cluster,
            config,
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            said: std::cell::RefCell::default(),
        }
    }

    /// Completes a call with this job's environment, runs it and remembers what it said.
    #[track_caller]
    pub fn run(&self, call: Call) -> Output {
        let output = self.complete(call).run();
        self.said
            .borrow_mut()
            .push_str(&format!("{}{}", output.stdout, output.stderr));
        output
    }

    /// A call with this job's environment.
    pub fn complete(&self, call: Call) -> Call {
        call.with(|mut run| {
            for (name, value) in &self.environment {
                run = run.env(name, value);
            }
            run.timeout(Duration::from_secs(300))
        })
    }

    /// `seawall WORDS…`.
    #[track_caller]
    pub fn seawall(&self, words: &[&str]) -> Output {
        self.run(cli::seawall(&self.config).args(words))
    }

    /// Initialises, starts, and archives a first segment.
    #[track_caller]
    pub fn begin(&mut self) {
        self.seawall(&["init"]).success();
        self.cluster.start();
        self.cluster
            .sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n");
    }

    /// Takes a backup into `repository`, goes on writing, and archives what was written.
    #[track_caller]
    pub fn backup_and_go_on(&self, repository: &str) {
        let words = ["backup", "--json", "--repository", repository];
        let marker = self.seawall(&words).success().json();
        assert_eq!(marker["kind"], "full");
        self.cluster
            .sql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 1000) n");
        self.cluster.archive_all(PATIENCE);
    }

    /// Restores the latest state from `repository`, starts it, and holds it against the
    /// source by PostgreSQL's own word. Returns the data directory.
    #[track_caller]
    pub fn restore_and_compare(&self, scratch: &Scratch, repository: &str) -> PathBuf {
        let name = format!("from-{repository}");
        let to = scratch.join(format!("{name}-data"));
        let to_text = to.display().to_string();
        self.seawall(&["restore", "--repository", repository, "--to", &to_text])
            .success();
        judge::verifybackup(self.cluster.version(), &to).must_pass();
        let mut restored = self.adopt(scratch, &name, &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        self.dump().must_equal(&judge::dump(&restored));
        judge::amcheck(&restored).must_pass();
        self.said.borrow_mut().push_str(&restored.log());
        to
    }

    /// A handle for what was restored, with this job's environment.
    #[track_caller]
    pub fn adopt(&self, scratch: &Scratch, name: &str, to: &Path) -> Cluster {
        let mut restored = Cluster::adopt(self.cluster.version().clone(), scratch, name, to);
        for (name, value) in &self.environment {
            restored.env(name, value);
        }
        restored
    }

    /// The source as SQL.
    #[track_caller]
    pub fn dump(&self) -> Dump {
        judge::dump(&self.cluster)
    }

    /// From the first archived file to the drill's report, with each of `repositories`.
    #[track_caller]
    pub fn whole(&mut self, scratch: &Scratch, repositories: &[&str]) {
        self.begin();
        let early = self.seawall(&["check", "--json"]).exits_with(3).json();
        let problems = problems_of(&early);
        assert_eq!(problems.len(), repositories.len(), "{early:#}");
        for (finding, advice) in &problems {
            assert_eq!(finding, "there is no finished backup");
            assert!(advice.contains("seawall backup"), "{advice}");
        }
        for repository in repositories {
            self.backup_and_go_on(repository);
        }
        for repository in repositories {
            self.restore_and_compare(scratch, repository);
            let drill = ["drill", "--json", "--repository", repository];
            let report = self.seawall(&drill).success().json();
            assert_eq!(report["passed"], true, "{report:#}");
            assert_eq!(report["source"]["repository"], *repository);
        }
        let list = self.seawall(&["list"]).success().stdout;
        assert_eq!(list.matches("-full-").count(), repositories.len(), "{list}");
        let check = self.seawall(&["check", "--json"]).success().json();
        assert_eq!(
            (&check["passed"], problems_of(&check).len()),
            (&true.into(), 0)
        );
        self.seawall(&["check"]).success();
    }

    /// Panics where one of `secrets` was printed, logged by a server, or stands in a command
    /// line or below one of `directories`.
    #[track_caller]
    pub fn must_not_tell(&self, secrets: &[&str], directories: &[&Path]) {
        for secret in secrets {
            assert!(secret.len() > 8, "too short to be looked for");
            assert!(!self.said.borrow().contains(secret), "a program told it");
            assert!(!self.cluster.log().contains(secret), "the log tells it");
            for directory in directories {
                for path in files_below(directory) {
                    let content = std::fs::read(&path).unwrap_or_default();
                    let told = content
                        .windows(secret.len())
                        .any(|window| window == secret.as_bytes());
                    assert!(!told, "{} holds a secret", path.display());
                }
            }
        }
    }
}

/// The problems that a check found, with their advice.
pub fn problems_of(check: &serde_json::Value) -> Vec<(String, String)> {
    let findings = check["findings"].as_array().expect("a list of findings");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    findings
        .iter()
        .filter(|finding| finding["level"] == "problem")
        .map(|finding| (text(&finding["finding"]), text(&finding["advice"])))
        .collect()
}

/// The words of every process that descends from this one.
pub fn command_lines() -> String {
    process::process_tree(std::process::id())
        .into_iter()
        .map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .map(|words| String::from_utf8_lossy(&words).replace('\0', " ") + "\n")
        .collect()
}

/// Every file below a directory; links are not followed.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}
