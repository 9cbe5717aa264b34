//! What must be known of the server before a backup starts: that it is the one whose data
//! directory we read, and that it archives.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::sql::Client;
use crate::repository::marker::{CollationVersion, Database};

/// The server and its data directory, which belong together.
#[derive(Debug)]
pub struct Source {
    /// `global/pg_control` before the start.
    pub control: ControlFile,
    /// `server_version_num`.
    pub server_version_num: u32,
    /// Configuration files, wherever they lie.
    pub configuration: Vec<PathBuf>,
    /// The versions of the collations that the databases use.
    pub collations: Vec<CollationVersion>,
    /// The role that initdb made.
    pub superuser: String,
    /// The databases, by their numbers.
    pub databases: Vec<Database>,
    /// Logical replication slots; a restore loses them.
    pub logical_slots: Vec<String>,
}

/// Looks at the server behind `client` and at `data_directory`.
///
/// # Errors
/// Different system identifiers, a standby, a server that does not archive.
pub async fn inspect(client: &Client, data_directory: &Path) -> Result<Source> {
    let control = ControlFile::read(data_directory)?;
    let server_version_num = client.server_version_num();
    let system_id = client.system_identifier().await?;
    if system_id != control.system_id {
        return Err(Error::refused(format!(
            "the server has the system identifier {system_id}, the data directory {}",
            control.system_id
        ))
        .at(data_directory.display())
        .hint("`connection` and `data_directory` of this cluster name two different servers"));
    }
    if client.is_in_recovery().await? {
        return Err(Error::refused("the server is a standby")
            .hint("this version takes base backups from a primary only: connect to that"));
    }
    let archive_mode = client.setting("archive_mode").await?;
    if archive_mode == "off" {
        return Err(
            Error::refused("archive_mode is off: the backup's WAL would never arrive")
                .hint("`seawall init` prints the lines that postgresql.conf lacks"),
        );
    }
    let mut configuration = Vec::new();
    for name in ["config_file", "hba_file", "ident_file"] {
        configuration.push(PathBuf::from(client.setting(name).await?));
    }
    let included = "SELECT DISTINCT sourcefile FROM pg_settings WHERE sourcefile IS NOT NULL";
    configuration.extend(
        client
            .query_column(included)
            .await?
            .into_iter()
            .map(PathBuf::from),
    );
    let collations = if server_version_num >= 150_000 {
        let query = "SELECT datname || ' ' || datcollate || '=' || \
             coalesce(pg_database_collation_actual_version(oid), '') FROM pg_database";
        client
            .query_column(query)
            .await?
            .iter()
            .filter_map(|row| row.rsplit_once('='))
            .map(|(name, version)| CollationVersion {
                name: name.into(),
                version: version.into(),
            })
            .collect()
    } else {
        Vec::new()
    };
    let superuser = client
        .query_text("SELECT rolname FROM pg_roles WHERE oid = 10")
        .await?
        .ok_or_else(|| Error::failed("the server has no role with oid 10").at(client.place()))?;
    let databases = client
        .query_column("SELECT oid || ' ' || datname FROM pg_database ORDER BY oid")
        .await?
        .iter()
        .filter_map(|row| {
            let (oid, name) = row.split_once(' ')?;
            let (oid, name) = (oid.parse().ok()?, name.to_owned());
            Some(Database { oid, name })
        })
        .collect();
    let slots = "SELECT slot_name::text FROM pg_replication_slots WHERE slot_type = 'logical'";
    let logical_slots = client.query_column(slots).await?;
    Ok(Source {
        control,
        server_version_num,
        configuration,
        collations,
        superuser,
        databases,
        logical_slots,
    })
}
