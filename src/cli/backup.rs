//! `seawall backup`.

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};

use super::output::{print, print_json, size};
use super::{Common, become_cluster_owner, connect};
use crate::backup::{self, Settings};
use crate::config::{BackupFrom, Config, HumanDuration, RepositoryConfig};
use crate::error::{Error, Exit, Result};
use crate::postgres::connection::{ConnectionString, Surroundings};
use crate::postgres::replication::Session;
use crate::repository::Repository;
use crate::repository::keys::{BackupId, BackupKind};
use crate::storage::Bandwidth;

/// Take a base backup
///
/// Reads the server's own files, several at once, or has the server send them where there is no
/// data directory here, and returns when the backup and all WAL that it needs are durable in the
/// repository.
#[derive(Debug, Parser)]
pub struct BackupArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// The kind of backup
    #[arg(long, value_name = "KIND", default_value = "full")]
    pub kind: Kind,
    /// The backup that an incremental one is taken on top of [default: the newest that fits]
    #[arg(long, value_name = "ID")]
    pub parent: Option<BackupId>,
    /// The repository to write to [default: the first that is no copy of another]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Threads that read and compress, and packs that are uploaded at once [default: backup.jobs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Wait for PostgreSQL's next checkpoint instead of asking for one at once
    #[arg(long)]
    pub spread_checkpoint: bool,
    /// How much goes to the repository each second at most, `50MB` say [default: backup.bandwidth]
    #[arg(long, value_name = "SIZE")]
    pub bandwidth: Option<ByteSize>,
    /// Compress and upload everything anew, whatever an interrupted backup has stored
    #[arg(long)]
    pub no_resume: bool,
    /// How long to wait for the backup's own WAL [default: backup.wal_timeout]
    #[arg(long, value_name = "DURATION")]
    pub wal_timeout: Option<HumanDuration>,
    /// Print the backup's marker as JSON
    #[arg(long)]
    pub json: bool,
}

/// The kinds of backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Every file whole
    Full,
    /// What changed since the last backup; a full one where there is none to build upon
    Incremental,
}

impl From<Kind> for BackupKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Full => Self::Full,
            Kind::Incremental => Self::Incremental,
        }
    }
}

/// Takes the backup.
pub fn run(args: &BackupArgs) -> Result<Exit> {
    let kind = BackupKind::from(args.kind);
    if args.parent.is_some() && kind == BackupKind::Full {
        return Err(Error::usage("a full backup has no parent").hint("add --kind incremental"));
    }
    let config = args.common.load()?;
    let (name, cluster) = config.cluster(args.common.cluster.as_deref())?;
    become_cluster_owner(cluster)?;
    let primary = cluster
        .primary
        .as_ref()
        .map(|primary| ConnectionString::parse(&primary.resolve()?, &Surroundings::of_process()));
    let settings = Settings {
        cluster: name.to_owned(),
        kind,
        parent: args.parent.clone(),
        data_directory: cluster.data_directory.clone().unwrap_or_default(),
        compression: config.compression,
        jobs: args.jobs.map_or(config.backup.jobs, usize::from),
        wal_timeout: args.wal_timeout.unwrap_or(config.backup.wal_timeout).0,
        primary: primary.transpose()?,
        server_timeout: config.backup.server_timeout.0,
        fast: !args.spread_checkpoint,
        label: format!("seawall {kind}"),
        resume: !args.no_resume,
    };
    let repository = target(&config, args.repository.as_deref())?;
    Ok(super::run(async {
        let mut repository = Repository::open(repository)?;
        if let Some(limit) = args.bandwidth.or(config.backup.bandwidth) {
            repository = repository.limited(Bandwidth::new(limit.0));
        }
        let repository = &repository;
        let client = connect(cluster).await?;
        let started = std::time::Instant::now();
        let taken = match cluster.backup_from() {
            BackupFrom::Files => backup::take(&settings, &client, repository).await?,
            BackupFrom::Replication => {
                let session = Session::of_cluster(cluster).await?;
                backup::remote::take(&settings, &client, session, repository).await?
            }
        };
        let marker = &taken.marker;
        if args.json {
            print_json(&taken)?;
        } else {
            print(&format!(
                "backup {} is complete in {}: {} files, {}, stored as {}, in {:.1} s",
                marker.id,
                repository.place(),
                marker.files,
                size(marker.restored_bytes()),
                size(marker.stored_bytes),
                started.elapsed().as_secs_f64()
            ));
        }
        if marker.damaged_page_count > 0 {
            eprintln!(
                "warning: {} pages of the server have wrong checksums; the backup holds them as they are\n  first: {}\n  hint: look at the hardware; find the relation with pg_filenode_relation(); restore an older backup elsewhere to compare",
                marker.damaged_page_count,
                marker.damaged_pages.first().map_or("", String::as_str)
            );
            return Ok(Exit::Missed);
        }
        Ok(Exit::Done)
    }))
}

/// The repository that is written to. A copy is filled from its source, and by nobody else.
fn target<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a RepositoryConfig> {
    let Some(name) = name else {
        let first = config.push_targets().next();
        return first.ok_or_else(|| Error::usage("no repository is configured"));
    };
    let found = config.repositories(&[name.to_owned()])?;
    let found = found
        .first()
        .ok_or_else(|| Error::usage("no repository is configured"))?;
    match &found.copy_from {
        None => Ok(found),
        Some(source) => Err(Error::usage(format!(
            "repository {name:?} is a copy of {source:?}, and takes no backups of its own"
        ))
        .at(config.path.display())
        .hint(format!(
            "take the backup into {source}; `seawall copy` brings it to {name}"
        ))),
    }
}
