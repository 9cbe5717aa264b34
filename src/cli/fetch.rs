//! `seawall-fetch`, the restore_command. It returns 0 (delivered), 1 (certainly absent) or
//! 200 (anything else) and nothing else, whatever happens: PostgreSQL takes every code from 1
//! to 125 for "absent", and opens the database.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::Common;
use crate::error::{Error, Result};
use crate::postgres::WalFileName;
use crate::postgres::control::ControlFile;
use crate::repository::{Repository, System};
use crate::wal::fetch::{self, Fetched, Left, NewTablespaces, Request};

/// The file is at its destination, whole.
pub const DELIVERED: u8 = 0;
/// The file certainly does not exist.
pub const ABSENT: u8 = 1;
/// Anything else: recovery must stop.
pub const DOUBT: u8 = 200;

/// Fetch one WAL file: PostgreSQL's restore_command
///
/// Set restore_command = '/usr/bin/seawall-fetch %f %p'; `seawall restore` does it. Exit code
/// 0: delivered. Exit code 1: it certainly does not exist. Exit code 200: anything else, so
/// that recovery stops instead of opening the database too early. On a standby doubt becomes
/// 1, since that only makes PostgreSQL try streaming, unless --strict is given.
#[derive(Debug, Parser)]
#[command(name = "seawall-fetch", version, max_term_width = 100)]
pub struct FetchArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository to ask, in this order; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Return 200 on a standby, too, where a doubt remains
    #[arg(long)]
    pub strict: bool,
    /// Let recovery end where a segment is missing though later ones are there
    #[arg(long)]
    pub end_at_gap: bool,
    /// Deliver nothing of this timeline from there on: recovery leaves it for another; may be
    /// repeated
    #[arg(long, value_name = "TIMELINE@LSN")]
    pub left: Vec<Left>,
    /// What to do with WAL that creates a tablespace outside the data directory
    #[arg(long, value_name = "RULE", default_value = "allow")]
    pub new_tablespaces: NewTablespaces,
    /// The file's name, as PostgreSQL's %f gives it
    #[arg(value_name = "%f")]
    pub name: String,
    /// Where to put it, as PostgreSQL's %p gives it
    #[arg(value_name = "%p")]
    pub path: PathBuf,
}

/// As root: becomes the owner of the data directory, so that the server may read and remove
/// what this delivers. Call it before the runtime starts.
pub fn become_owner(args: &FetchArgs) -> Result<()> {
    let destination = std::path::absolute(&args.path).unwrap_or_else(|_| args.path.clone());
    super::become_owner_of(&data_directory(&destination))
}

/// Fetches the file, and turns every outcome into one of the three codes.
pub async fn run(args: &FetchArgs) -> u8 {
    let destination = std::path::absolute(&args.path).unwrap_or_else(|_| args.path.clone());
    let data_directory = data_directory(&destination);
    match fetch(args, &destination, &data_directory).await {
        Ok(Fetched::Delivered) => DELIVERED,
        Ok(Fetched::Absent) => ABSENT,
        Err(error) => {
            super::say(&format!("seawall-fetch: {}", error.one_line()));
            let standby = data_directory.join("standby.signal").exists();
            if standby && !args.strict {
                super::say("seawall-fetch: this is a standby; PostgreSQL will try streaming");
                return ABSENT;
            }
            DOUBT
        }
    }
}

async fn fetch(args: &FetchArgs, destination: &Path, data_directory: &Path) -> Result<Fetched> {
    let name: WalFileName = args.name.parse()?;
    let config = args.common.load()?;
    let (cluster, _) = config.cluster(args.common.cluster.as_deref())?;
    let control = ControlFile::read(data_directory).map_err(|error| {
        Error::failed("cannot tell which cluster asks for WAL")
            .because(error)
            .hint("%p must lie in the pg_wal of a data directory")
    })?;
    let (repositories, unusable) = Repository::open_each(&config, &args.repository)?;
    let systems: Vec<System> = repositories
        .iter()
        .map(|repository| repository.system(cluster, control.system_id))
        .collect();
    if systems.is_empty() && unusable.is_empty() {
        return Err(Error::usage("no repository is configured"));
    }
    let request = Request {
        name,
        segment_size: control.segment_size,
        destination,
        end_at_gap: args.end_at_gap,
        left: &args.left,
        new_tablespaces: args.new_tablespaces,
    };
    match (
        fetch::fetch(&systems, request).await?,
        unusable.into_iter().next(),
    ) {
        // Whoever was not asked may have it.
        (Fetched::Absent, Some(error)) => Err(error),
        (fetched, _) => Ok(fetched),
    }
}

/// `%p` is `pg_wal/RECOVERYXLOG` below PostgreSQL's working directory; pg_rewind gives
/// `TARGET/pg_wal/SEGMENT`. Either way the data directory is two levels up.
fn data_directory(destination: &Path) -> PathBuf {
    destination
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("/"))
        .to_owned()
}
