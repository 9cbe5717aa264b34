//! What must be known of the server before a backup starts: that it is the one whose data
//! directory we read, and that its WAL is archived.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::sql::Client;
use crate::repository::marker::{CollationVersion, Database};

/// The server and its data directory, which belong together.
#[derive(Debug)]
pub struct Source {
    /// `global/pg_control` before the start.
    pub control: ControlFile,
    /// What it says of itself.
    pub answers: Answers,
}

/// What only SQL tells, wherever the files come from.
#[derive(Debug)]
pub struct Answers {
    /// `server_version_num`.
    pub server_version_num: u32,
    /// When the postmaster started.
    pub postmaster_start_time: Timestamp,
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
    /// Whether it is a standby.
    pub standby: bool,
}

/// Looks at the server behind `client` and at `data_directory`.
///
/// # Errors
/// Different system identifiers, a primary that does not archive.
pub async fn inspect(client: &Client, data_directory: &Path) -> Result<Source> {
    let control = ControlFile::read(data_directory)?;
    let system_id = client.system_identifier().await?;
    if system_id != control.system_id {
        return Err(Error::refused(format!(
            "the server has the system identifier {system_id}, the data directory {}",
            control.system_id
        ))
        .at(data_directory.display())
        .hint("`connection` and `data_directory` of this cluster name two different servers"));
    }
    let answers = ask(client).await?;
    Ok(Source { control, answers })
}

/// Asks the server.
///
/// # Errors
/// A primary that does not archive. (Of a standby, the primary archives.)
pub async fn ask(client: &Client) -> Result<Answers> {
    let standby = client.is_in_recovery().await?;
    if !standby && client.setting("archive_mode").await? == "off" {
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
    let included = client.query_column(included).await?;
    configuration.extend(included.into_iter().map(PathBuf::from));
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
    Ok(Answers {
        server_version_num: client.server_version_num(),
        postmaster_start_time: client.postmaster_start_time().await?,
        configuration,
        collations: collations(client).await?,
        superuser,
        databases,
        logical_slots: client.query_column(slots).await?,
        standby,
    })
}

/// Where the databases were just before a backup began.
#[derive(Debug)]
pub struct Places(HashMap<String, Place>);

/// What a move changes of a row of pg_database, and what it does not.
#[derive(Debug)]
struct Place {
    name: String,
    tablespace: String,
    /// The row's version. (VACUUM changes its row in place.)
    xmin: String,
    rest: String,
}

impl Place {
    /// Whether the database went to another tablespace since it was at `before`, or went there
    /// and came back: then the row is another one, and all the same.
    fn has_moved(&self, before: &Self) -> bool {
        self.tablespace != before.tablespace
            || (self.xmin != before.xmin && self.rest == before.rest)
    }
}

impl Places {
    /// Looks.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn look(client: &Client) -> Result<Self> {
        let query = "SELECT oid::text, datname::text, dattablespace::text, xmin::text, \
             (to_jsonb(d) - '{datfrozenxid,datminmxid}'::text[])::text FROM pg_database d";
        let mut places = HashMap::new();
        for row in client.query_rows(query).await? {
            let mut fields = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || fields.next().unwrap_or_default();
            let oid = next();
            let place = Place {
                name: next(),
                tablespace: next(),
                xmin: next(),
                rest: next(),
            };
            places.insert(oid, place);
        }
        Ok(Self(places))
    }

    /// Called when all files were read: each database must still be where it was.
    ///
    /// Where one was moved meanwhile, recovery repeats that as a copy of its old directory
    /// (PostgreSQL 18, dbcommands.c, `dbase_redo`: "forcibly drop the target subdirectory if
    /// present, then re-copy the source data"), which the server may have removed before it was
    /// read: the database would be there, and empty. What was created meanwhile is in WAL.
    ///
    /// # Errors
    /// A database was moved.
    pub async fn check_unmoved(&self, client: &Client) -> Result<()> {
        let now = Self::look(client).await?;
        let moved = now.0.iter().find(|(oid, place)| {
            let before = self.0.get(*oid);
            before.is_some_and(|before| place.has_moved(before))
        });
        let Some((oid, Place { name, .. })) = moved else {
            return Ok(());
        };
        Err(Error::failed(format!(
            "the database {name:?} (oid {oid}) was moved to another tablespace while the backup \
             was taken: recovery from it could leave that database empty"
        ))
        .hint("take the backup again, and ALTER DATABASE … SET TABLESPACE before or after it"))
    }
}

async fn collations(client: &Client) -> Result<Vec<CollationVersion>> {
    if client.major() < 15 {
        return Ok(Vec::new());
    }
    let query = "SELECT datname || ' ' || datcollate || '=' || \
         coalesce(pg_database_collation_actual_version(oid), '') FROM pg_database";
    let rows = client.query_column(query).await?;
    let versions = rows.iter().filter_map(|row| row.rsplit_once('='));
    Ok(versions
        .map(|(name, version)| CollationVersion {
            name: name.into(),
            version: version.into(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_came_back_has_moved_and_one_with_new_rights_has_not() {
        let place = |tablespace: &str, xmin: &str, rest: &str| Place {
            name: "shop".into(),
            tablespace: tablespace.into(),
            xmin: xmin.into(),
            rest: rest.into(),
        };
        let before = place("1663", "700", "no rights");
        for (now, moved) in [
            (place("1663", "700", "no rights"), false),
            (place("16384", "701", "no rights"), true),
            (place("1663", "702", "no rights"), true),
            (place("1663", "703", "rights"), false),
        ] {
            assert_eq!(now.has_moved(&before), moved, "{now:?}");
        }
    }
}
