//! Restoring some databases out of many: relation files of the others become files of zeros
//! that take no space. PostgreSQL recovers over them and can drop those databases; nobody can
//! use them.
//!
//! Replay writes whole pages first, since a backup begins with a checkpoint: what it touches of
//! such a file it makes right. What else it meets is a page of zeros, which is valid under page
//! checksums.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use seawall::error::{Error, IoContext, Result};
use seawall::postgres::layout::RelationFile;
use seawall::repository::chain::files::ChainFile;
use seawall::repository::marker::{Database, Marker};
use serde::Serialize;

use crate::delta;
use crate::engine::Means;
use crate::objects::create;

/// Numbers below are those of initdb's databases: template1, and template0 and postgres as
/// initdb made them (PostgreSQL, `FirstNormalObjectId`).
const FIRST_NORMAL_OID: u32 = 16_384;

/// Databases that are always restored, so that the cluster can be connected to and new
/// databases be made.
const ALWAYS: [&str; 3] = ["postgres", "template0", "template1"];

/// Which databases are restored, and what was left out so far.
#[derive(Debug)]
pub(crate) struct Only {
    kept: BTreeSet<u32>,
    left_out: Mutex<Sum>,
}

#[derive(Debug, Default)]
struct Sum {
    databases: BTreeSet<u32>,
    files: u64,
    bytes: u64,
}

/// What was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The databases.
    pub databases: Vec<Database>,
    /// Files that hold zeros.
    pub files: u64,
    /// Their bytes, which were not fetched.
    pub bytes: u64,
}

impl Only {
    /// `names` are names of databases as they were when the backup began, or their oids. `None`
    /// where there are no names: all are restored.
    ///
    /// # Errors
    /// Exit code 2: the backup has no database of that name.
    pub(crate) fn of(names: &[String], marker: &Marker) -> Result<Option<Self>> {
        if names.is_empty() {
            return Ok(None);
        }
        let known = &marker.databases;
        let mut kept: BTreeSet<u32> = known
            .iter()
            .filter(|database| ALWAYS.contains(&database.name.as_str()))
            .map(|database| database.oid)
            .collect();
        for name in names {
            let named = known.iter().find(|database| database.name == *name);
            let oid = match (named, name.parse::<u32>()) {
                (Some(database), _) => database.oid,
                (None, Ok(oid)) if known.is_empty() => oid,
                (None, Ok(oid)) if known.iter().any(|database| database.oid == oid) => oid,
                _ => return Err(unknown(name, marker)),
            };
            kept.insert(oid);
        }
        Ok(Some(Self::keeping(kept)))
    }

    fn keeping(kept: BTreeSet<u32>) -> Self {
        Self {
            kept,
            left_out: Mutex::default(),
        }
    }

    /// What was left out.
    pub(crate) fn left_out(&self, marker: &Marker) -> LeftOut {
        let sum = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |oid: &u32| {
            let known = marker.databases.iter().find(|known| known.oid == *oid);
            known.cloned().unwrap_or(Database {
                oid: *oid,
                name: oid.to_string(),
            })
        };
        LeftOut {
            databases: sum.databases.iter().map(named).collect(),
            files: sum.files,
            bytes: sum.bytes,
        }
    }

    /// The database of the file that a restore makes at `path`, if zeros are to stand for it:
    /// relations in other databases. Their PG_VERSION and pg_filenode.map are kept, and all that is shared.
    fn leaves_out(&self, path: &str) -> Option<u32> {
        let relation = RelationFile::parse(Path::new(path))?;
        let kept = relation.database < FIRST_NORMAL_OID || self.kept.contains(&relation.database);
        (!kept).then_some(relation.database)
    }
}

fn unknown(name: &str, marker: &Marker) -> Error {
    let error = Error::usage(format!("backup {} has no database {name}", marker.id));
    if marker.databases.is_empty() {
        return error.hint(
            "it was taken by an older Seawall and does not know names: give the database's oid, the directory below base/",
        );
    }
    let names: Vec<&str> = marker
        .databases
        .iter()
        .map(|database| database.name.as_str())
        .collect();
    error.hint(format!(
        "it has {}; names are those of the time when it began",
        names.join(", ")
    ))
}

impl Means {
    /// Makes the file of zeros that stands for `file`, where that is one that is left out.
    /// Says whether it is.
    pub(crate) fn stub(&self, file: &ChainFile) -> Result<bool> {
        let only = self.only.as_deref();
        let left_out = only.and_then(|only| Some((only, only.leaves_out(&file.path)?)));
        let Some((only, database)) = left_out else {
            return Ok(false);
        };
        let path = self.root.join(&file.path);
        let made = match self.delta {
            true => delta::create_anew(&path, file.mode)?,
            false => create(&path, file.mode)?,
        };
        made.set_len(file.size).on("extend", &path)?;
        if let Some(manifest) = &self.manifest {
            let crc32c = crc32c_of_zeros(file.size);
            manifest.add(&file.path, file.size, file.modified, crc32c)?;
        }
        self.progress.add(file.size);
        let mut sum = only.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        sum.databases.insert(database);
        sum.files += 1;
        sum.bytes += file.size;
        Ok(true)
    }
}

impl LeftOut {
    /// What the person must know.
    pub fn warning(&self) -> Option<String> {
        if self.databases.is_empty() {
            return None;
        }
        let names: Vec<&str> = self
            .databases
            .iter()
            .map(|database| database.name.as_str())
            .collect();
        Some(format!(
            "not restored: {}. Of these databases there are files of zeros only: they cannot be connected to, hold nothing, and autovacuum's attempts fail in the log. Drop them soon after recovery (DROP DATABASE), before any other use: they hold up the freezing of transaction ids",
            names.join(", ")
        ))
    }
}

/// The CRC-32C of `size` zeros, in time that grows with the digits of `size`.
fn crc32c_of_zeros(size: u64) -> u32 {
    let (mut whole, mut power, mut length) = (0, crc32c::crc32c(&[0]), 1u64);
    let mut left = size;
    while left > 0 {
        if left & 1 == 1 {
            whole = crc32c::crc32c_combine(whole, power, length as usize);
        }
        left >>= 1;
        if left > 0 {
            power = crc32c::crc32c_combine(power, power, length as usize);
            length *= 2;
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(kept: &[u32]) -> Only {
        Only::keeping(kept.iter().copied().collect())
    }

    #[test]
    fn only_relations_of_other_databases_are_left_out() {
        let only = only(&[16_400]);
        for kept in [
            "base/16400/1259",
            "base/1/1259",
            "base/5/1259_vm",
            "base/16500/PG_VERSION",
            "base/16500/pg_filenode.map",
            "global/1262",
            "pg_xact/0000",
            "pg_tblspc/16390/PG_15_202209061/16400/16384.1",
        ] {
            assert_eq!(only.leaves_out(kept), None, "{kept}");
        }
        for left_out in [
            "base/16500/1259",
            "base/16500/16384_fsm",
            "base/16500/16384_init",
            "pg_tblspc/16390/PG_15_202209061/16500/16384.1",
        ] {
            assert_eq!(only.leaves_out(left_out), Some(16_500), "{left_out}");
        }
    }

    #[test]
    fn the_checksum_of_zeros_is_that_of_zeros() {
        for size in [0, 1, 2, 3, 8192, 8193, 100_000] {
            let zeros = vec![0; size];
            assert_eq!(
                crc32c_of_zeros(size as u64),
                crc32c::crc32c(&zeros),
                "{size}"
            );
        }
    }
}
