//! The configuration file, shared by all programs: its types, where it is found, and errors
//! that name the line and the nearest known key. Nothing is opened or connected to here.

mod drill;
mod duration;
mod explain;
mod http;
mod retention;
mod schedule;
mod secret;
mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytesize::ByteSize;
use serde::Deserialize;

pub use drill::{AmcheckScope, DrillConfig, SqlCheck};
pub use duration::HumanDuration;
pub use http::{HttpConfig, Listen};
pub use retention::RetentionConfig;
pub(crate) use schedule::LONGEST_RETRY;
pub use schedule::{DaemonConfig, HeartbeatConfig, ScheduleConfig, ScheduleLines};
pub use secret::SecretValue;
pub use wal::{Acknowledge, ArchiveConfig, FetchConfig, SEGMENTS_AHEAD};

use crate::digest::PlainDigest;
use crate::error::{Error, Result};
use explain::explain;

/// Where the configuration lies unless `--config` or `$SEAWALL_CONFIG` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/seawall/seawall.toml";

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The clusters by name; the name is the first part of every key in a repository.
    pub cluster: BTreeMap<String, ClusterConfig>,
    /// The repositories, in the order in which they are asked.
    pub repository: Vec<RepositoryConfig>,
    /// How many of the repositories must hold a WAL file before PostgreSQL is told that it is
    /// archived.
    #[serde(default)]
    pub archive_ack: Acknowledge,
    /// How WAL is archived.
    #[serde(default)]
    pub archive: ArchiveConfig,
    /// How WAL is fetched for recovery.
    #[serde(default)]
    pub fetch: FetchConfig,
    /// How objects are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Settings of base backups.
    #[serde(default)]
    pub backup: BackupConfig,
    /// Settings of restores.
    #[serde(default)]
    pub restore: RestoreConfig,
    /// When the daemon does what, unless the cluster has a schedule of its own.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Settings of the daemon.
    #[serde(default)]
    pub daemon: DaemonConfig,
    /// Where the daemon shows its metrics and its status page.
    #[serde(default)]
    pub http: HttpConfig,
    /// How the daemon keeps the age of the newest recoverable moment known.
    #[serde(default)]
    pub heartbeat: HeartbeatConfig,
    /// What a disaster may cost; drills are judged by it.
    #[serde(default)]
    pub objectives: Objectives,
    /// Settings of drills.
    #[serde(default)]
    pub drill: DrillConfig,
    /// The file that this was read from, absolute.
    #[serde(skip)]
    pub path: PathBuf,
    /// The digest of the file's text: another one may mean other repositories.
    #[serde(skip, default = "no_text")]
    pub digest: PlainDigest,
}

/// One PostgreSQL cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// PostgreSQL's data directory on this host; absent where this host has none.
    #[serde(default)]
    pub data_directory: Option<PathBuf>,
    /// Where base backups come from. Default: from the files if there is a `data_directory`,
    /// otherwise over the replication protocol.
    #[serde(default)]
    pub backup_from: Option<BackupFrom>,
    /// How to reach the server, in libpq's words. Default: libpq's defaults.
    #[serde(default)]
    pub connection: Option<SecretValue>,
    /// Where `connection` is a standby's: how to reach its primary, which a backup asks to
    /// finish its last segment.
    #[serde(default)]
    pub primary: Option<SecretValue>,
    /// Where PostgreSQL's programs lie. Default: found by the cluster's major version.
    #[serde(default)]
    pub bin_directory: Option<PathBuf>,
    /// When the daemon does what for this cluster. Default: `[schedule]`.
    #[serde(default)]
    pub schedule: Option<ScheduleConfig>,
}

/// Where base backups come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupFrom {
    /// The server's own files, on this host.
    Files,
    /// The server sends them: `BASE_BACKUP`.
    Replication,
}

impl ClusterConfig {
    /// The data directory, for what cannot be done without.
    pub fn data_directory(&self) -> Result<&Path> {
        self.data_directory.as_deref().ok_or_else(|| {
            Error::usage("the configuration names no data_directory for this cluster").hint(
                "this needs the server's files: do it on the server's host, where data_directory is set",
            )
        })
    }

    /// Where base backups come from.
    pub fn backup_from(&self) -> BackupFrom {
        self.backup_from.unwrap_or(match self.data_directory {
            Some(_) => BackupFrom::Files,
            None => BackupFrom::Replication,
        })
    }
}

/// One repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// What people call it.
    pub name: String,
    /// `file:///…`, `s3://bucket/prefix`, `gs://…` or `az://…`.
    pub url: String,
    /// The repository that this one is a copy of: it is never pushed to, and filled from there.
    #[serde(default)]
    pub copy_from: Option<String>,
    /// What is kept here, and how long. Default: everything.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// object_store's own keys: `aws_region`, `aws_endpoint`, ….
    #[serde(default)]
    pub options: BTreeMap<String, SecretValue>,
    /// How often one request is tried, the first time included.
    #[serde(default)]
    pub attempts: Option<u32>,
    /// How long one attempt of one request may take.
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
}

/// zstd's parameters. Measured over heap, btree and WAL, level 1 with a minimum match of 5 beats
/// level 3 in size and in time together; `bench/` holds the time for a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compression {
    /// zstd's level, -7 to 19.
    pub level: i32,
    /// The shortest match that zstd looks for, 3 to 7; 0 leaves it to the level.
    pub minimum_match: u32,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            level: 1,
            minimum_match: 5,
        }
    }
}

/// Settings of base backups.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupConfig {
    /// How many threads read and compress, and how many packs are uploaded at once.
    pub jobs: usize,
    /// How many bytes a second go to the repository at most.
    pub bandwidth: Option<ByteSize>,
    /// How long to wait until the backup's own WAL is in the repository.
    pub wal_timeout: HumanDuration,
    /// How long a server that sends a backup may be silent before it is given up.
    pub server_timeout: HumanDuration,
}

impl Default for BackupConfig {
    fn default() -> Self {
        Self {
            jobs: default_jobs(),
            bandwidth: None,
            wal_timeout: HumanDuration::from_secs(600),
            server_timeout: HumanDuration::from_secs(300),
        }
    }
}

/// Settings of restores.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreConfig {
    /// How many packs are fetched and written at once.
    pub jobs: usize,
}

impl Default for RestoreConfig {
    fn default() -> Self {
        Self {
            jobs: default_jobs(),
        }
    }
}

/// What a disaster may cost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objectives {
    /// How much time's worth of commits may be lost.
    pub rpo: Option<HumanDuration>,
    /// How long it may take until the database answers again.
    pub rto: Option<HumanDuration>,
}

fn no_text() -> PlainDigest {
    PlainDigest::of(b"")
}

fn default_jobs() -> usize {
    // Asking takes the reading of several files, and several defaults need it.
    static JOBS: LazyLock<usize> = LazyLock::new(|| {
        std::thread::available_parallelism()
            .map_or(2, usize::from)
            .clamp(1, 8)
    });
    *JOBS
}

fn unusable(path: &Path) -> Error {
    Error::usage("cannot read the configuration").at(path.display())
}

impl Config {
    /// Where the configuration lies: `explicit`, else `$SEAWALL_CONFIG`, else
    /// [`DEFAULT_PATH`]; absolute.
    pub fn locate(explicit: Option<&Path>) -> Result<PathBuf> {
        let path = match (explicit, std::env::var_os("SEAWALL_CONFIG")) {
            (Some(path), _) => path.to_owned(),
            (None, Some(path)) => PathBuf::from(path),
            (None, None) => PathBuf::from(DEFAULT_PATH),
        };
        std::path::absolute(&path).map_err(|error| unusable(&path).because(error))
    }

    /// Reads the configuration from [where it lies](Self::locate).
    pub fn load(explicit: Option<&Path>) -> Result<Self> {
        let (config, _) = Self::load_with_text(explicit)?;
        Ok(config)
    }

    /// The same, and the text that was read.
    pub fn load_with_text(explicit: Option<&Path>) -> Result<(Self, String)> {
        let path = Self::locate(explicit)?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            unusable(&path)
                .because(error)
                .hint("name it with --config FILE or in $SEAWALL_CONFIG; the README shows one")
        })?;
        Ok((Self::parse(&text, path)?, text))
    }

    /// Reads the configuration from `text`; `path` is for messages and for the commands that
    /// are handed to PostgreSQL.
    pub fn parse(text: &str, path: PathBuf) -> Result<Self> {
        let mut config: Self =
            toml::from_str(text).map_err(|error| explain(&error, text, &path))?;
        config.path = path;
        config.digest = PlainDigest::of(text.as_bytes());
        config.validate()?;
        Ok(config)
    }

    /// The cluster called `name`, or the only one.
    pub fn cluster(&self, name: Option<&str>) -> Result<(&str, &ClusterConfig)> {
        let names = || self.cluster.keys().cloned().collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => self
                .cluster
                .get_key_value(name)
                .map(|(name, cluster)| (name.as_str(), cluster))
                .ok_or_else(|| {
                    Error::usage(format!("there is no cluster {name:?} in the configuration"))
                        .at(self.path.display())
                        .hint(format!("it knows: {}", names()))
                }),
            None => match self.cluster.iter().collect::<Vec<_>>().as_slice() {
                [(name, cluster)] => Ok((name.as_str(), *cluster)),
                _ => Err(Error::usage("the configuration has several clusters")
                    .at(self.path.display())
                    .hint(format!("choose one with --cluster: {}", names()))),
            },
        }
    }

    /// The repositories called `names`, in that order, or all where none is named.
    pub fn repositories(&self, names: &[String]) -> Result<Vec<&RepositoryConfig>> {
        if names.is_empty() {
            return Ok(self.repository.iter().collect());
        }
        names
            .iter()
            .map(|name| {
                self.repository
                    .iter()
                    .find(|r| r.name == *name)
                    .ok_or_else(|| {
                        let known: Vec<_> =
                            self.repository.iter().map(|r| r.name.as_str()).collect();
                        Error::usage(format!(
                            "there is no repository {name:?} in the configuration"
                        ))
                        .at(self.path.display())
                        .hint(format!("it knows: {}", known.join(", ")))
                    })
            })
            .collect()
    }

    /// Checks what only the daemon needs: schedules, its own settings, the heartbeat's. Loading
    /// does not: a slip in a schedule must hold up neither archiving nor a restore.
    ///
    /// # Errors
    /// A field is wrong (exit code 2); it is named.
    pub fn check_schedules(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::usage(what).at(self.path.display()));
        let own = self.cluster.iter();
        let own = own.filter_map(|(name, cluster)| {
            Some((
                format!("cluster.{name}.schedule"),
                cluster.schedule.as_ref()?,
            ))
        });
        for (place, schedule) in own.chain([("schedule".to_owned(), &self.schedule)]) {
            if let Err(why) = schedule.lines() {
                return wrong(format!("{place}.{why}"));
            }
        }
        let settings = self.daemon.validate();
        settings
            .and_then(|()| self.heartbeat.validate())
            .and_then(|()| self.http.validate())
            .or_else(wrong)
    }

    /// When the daemon does what for `cluster`: its own schedule as a whole, else `[schedule]`.
    ///
    /// # Errors
    /// A line is wrong; [`check_schedules`](Self::check_schedules) names it.
    pub fn schedule_of(&self, cluster: &ClusterConfig) -> Result<ScheduleLines> {
        let schedule = cluster.schedule.as_ref().unwrap_or(&self.schedule);
        schedule
            .lines()
            .map_err(|why| Error::usage(why).at(self.path.display()))
    }

    /// The repositories that WAL is pushed to: all that are no copy of another one.
    pub fn push_targets(&self) -> impl Iterator<Item = &RepositoryConfig> {
        self.repository.iter().filter(|r| r.copy_from.is_none())
    }

    fn validate(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::usage(what).at(self.path.display()));
        if self.cluster.is_empty() || self.repository.is_empty() {
            return wrong("the configuration needs a [cluster.NAME] and a [[repository]]".into());
        }
        for (name, cluster) in &self.cluster {
            if !is_plain_name(name) {
                return wrong(format!(
                    "cluster name {name:?} may hold letters, digits, '-', '_' and '.' only, and starts with a letter or digit"
                ));
            }
            let relative = |path: &PathBuf| !path.is_absolute();
            if cluster.data_directory.as_ref().is_some_and(relative) {
                return wrong(format!(
                    "data_directory of cluster {name} must be an absolute path"
                ));
            }
            if cluster.data_directory.is_none() && cluster.backup_from == Some(BackupFrom::Files) {
                return wrong(format!(
                    "backup_from = \"files\" of cluster {name} needs its data_directory"
                ));
            }
        }
        for (at, repository) in self.repository.iter().enumerate() {
            if !is_plain_name(&repository.name) {
                return wrong(format!(
                    "repository name {:?} is not usable",
                    repository.name
                ));
            }
            repository
                .retention
                .validate()
                .map_err(|why| format!("repository {:?}: {why}", repository.name))
                .or_else(wrong)?;
            for other in &self.repository[..at] {
                if other.name == repository.name {
                    return wrong(format!("two repositories are called {:?}", other.name));
                }
                if other.url.trim_end_matches('/') == repository.url.trim_end_matches('/')
                    && other.options.keys().eq(repository.options.keys())
                {
                    return wrong(format!(
                        "repositories {:?} and {:?} are the same place",
                        other.name, repository.name
                    ));
                }
            }
        }
        self.validate_copies().or_else(wrong)?;
        if !(-7..=19).contains(&self.compression.level) {
            return wrong("compression.level must be from -7 to 19".into());
        }
        if !matches!(self.compression.minimum_match, 0 | 3..=7) {
            return wrong("compression.minimum_match must be from 3 to 7, or 0".into());
        }
        if self.backup.jobs == 0 || self.restore.jobs == 0 {
            return wrong("jobs must be at least 1".into());
        }
        if self.backup.bandwidth == Some(ByteSize(0)) {
            return wrong("backup.bandwidth must be more than 0".into());
        }
        self.archive_ack
            .validate(self.push_targets().count())
            .and_then(|()| self.archive.validate())
            .and_then(|()| self.fetch.validate())
            .or_else(wrong)?;
        self.drill.validate().or_else(wrong)?;
        Ok(())
    }
}

impl Config {
    /// Each copy has a source, and following sources ends at a repository that is pushed to.
    fn validate_copies(&self) -> Result<(), String> {
        for repository in &self.repository {
            let mut at = repository;
            for _ in 0..self.repository.len() {
                let Some(source) = &at.copy_from else { break };
                at = self
                    .repository
                    .iter()
                    .find(|other| other.name == *source)
                    .ok_or_else(|| {
                        format!(
                            "repository {:?} is a copy of {source:?}, which is not configured",
                            at.name
                        )
                    })?;
            }
            if at.copy_from.is_some() {
                return Err(format!(
                    "repository {:?} is, in the end, a copy of itself: copy_from goes in a circle",
                    repository.name
                ));
            }
        }
        Ok(())
    }
}

/// Letters, digits, `-`, `_` and `.`, not starting with a sign: safe as a part of any key.
pub fn is_plain_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(fine)
}

#[cfg(test)]
mod tests;
