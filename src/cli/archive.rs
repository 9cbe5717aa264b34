//! `seawall-archive`, the archive_command. It speaks to PostgreSQL: 0 means durable in every
//! push target, 1 to 125 that it will be tried again, and nothing else ever comes out, for
//! PostgreSQL hides what ends by a signal or with more than 125.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::Common;
use crate::error::{Error, Exit, Result};
use crate::postgres::control::ControlFile;
use crate::repository::Repository;
use crate::wal::push::{self, Outcome, WalFile};

/// The exit code after a panic: a failure that PostgreSQL counts and tries again.
pub const PANICKED: u8 = 120;

/// Archive one WAL file into every repository: PostgreSQL's archive_command
///
/// Set archive_command = '/usr/bin/seawall-archive %p'. Exit code 0: the file is durable in
/// every push target. Exit code 1 to 125: it is not, and PostgreSQL tries again.
#[derive(Debug, Parser)]
#[command(name = "seawall-archive", version, max_term_width = 100)]
pub struct ArchiveArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// The file, relative to the data directory, as PostgreSQL's %p gives it
    #[arg(value_name = "%p")]
    pub path: PathBuf,
}

/// As root: becomes the owner of the data directory, so that the server's own archive_command
/// may read and extend what this stores. Call it before the runtime starts.
pub fn become_owner(args: &ArchiveArgs) -> Result<()> {
    if !crate::privileges::is_root() {
        return Ok(());
    }
    let config = args.common.load()?;
    let (_, cluster) = config.cluster(args.common.cluster.as_deref())?;
    super::become_owner_of(&data_directory(&args.path, &cluster.data_directory))
}

/// Archives the file.
pub async fn run(args: &ArchiveArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, cluster_config) = config.cluster(args.common.cluster.as_deref())?;
    let control = ControlFile::read(&data_directory(&args.path, &cluster_config.data_directory))?;
    let file = WalFile::open(&args.path, &control)?;
    let name = file.name();
    let (repositories, mut failures) = Repository::open_each(&config, &[])?;
    if repositories.is_empty() && failures.is_empty() {
        return Err(Error::usage("no repository is configured"));
    }
    let outcomes = push::push(&repositories, cluster, &control, file, config.compression).await?;
    for (repository, outcome) in repositories.iter().zip(outcomes) {
        match outcome {
            Ok(Outcome::Stored) => tracing::debug!("{name}: stored in {}", repository.place()),
            Ok(Outcome::Present) => {
                tracing::debug!("{name}: already there in {}", repository.place());
            }
            Err(error) => failures.push(error),
        }
    }
    // Each is said, and the first decides.
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else {
        return Ok(Exit::Done);
    };
    for error in failures {
        tracing::error!("{}", error.one_line());
    }
    Err(first)
}

/// The data directory that the file belongs to: what holds its pg_wal, as PostgreSQL's
/// working directory does, otherwise the configured one.
fn data_directory(path: &Path, configured: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute
        .parent()
        .and_then(Path::parent)
        .filter(|directory| {
            directory
                .join(crate::postgres::layout::CONTROL_FILE)
                .is_file()
        })
        .unwrap_or(configured)
        .to_owned()
}
