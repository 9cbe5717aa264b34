//! What a verification finds: what is wrong, where, and what to do about it.

use serde::Serialize;

use crate::repository::keys::BackupId;
use crate::wal::object::Trouble;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A backup names it, and it is not there.
    Missing,
    /// It is not what was written.
    Damaged,
    /// The store did not deliver it: nothing is known of it.
    Unread,
    /// It is what was written, and does not fit the rest of its backup.
    Inconsistent,
    /// A page whose checksum is wrong, which the backup does not know of.
    Page,
    /// The WAL that the backup needs itself is not all there, or cannot be read.
    Wal,
    /// An incremental backup whose chain does not reach a full one.
    Chain,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// The key of the object.
    pub key: String,
    /// Files of the data directory that it concerns, at most [`NAMED`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Of a page: the blocks, counted in the whole relation, at most [`NAMED`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<u32>,
    /// What exactly.
    pub what: String,
    /// What to do next.
    pub hint: &'static str,
}

/// Files and blocks that one finding names; its text says how many there are.
pub const NAMED: usize = 100;

impl Finding {
    pub(super) fn new(kind: Kind, key: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            kind,
            key: key.into(),
            files: Vec::new(),
            blocks: Vec::new(),
            what: what.into(),
            hint: hint(kind),
        }
    }

    /// An object that the store does not have.
    pub(super) fn missing(key: impl Into<String>, id: &BackupId) -> Self {
        let what = format!("backup {id} names it, and the store does not have it");
        Self::new(Kind::Missing, key, what)
    }

    /// Why an object could not be read.
    pub(super) fn of_trouble(key: impl Into<String>, trouble: &Trouble) -> Self {
        let kind = match trouble {
            Trouble::Damaged(_) => Kind::Damaged,
            Trouble::Unread(_) => Kind::Unread,
        };
        Self::new(kind, key, trouble.to_string())
    }
}

fn hint(kind: Kind) -> &'static str {
    match kind {
        Kind::Missing | Kind::Damaged => {
            "restore from another repository that holds the backup (--repository), or from another backup (--backup); take a full backup soon"
        }
        Kind::Unread => "see that the store answers, and run it again",
        Kind::Inconsistent => {
            "no storage did this: keep the objects, report it with the version that wrote the backup, and take a full backup"
        }
        Kind::Page => {
            "look at the same page of the source with pg_amcheck and pg_checksums; an older backup may hold it whole"
        }
        Kind::Wal => {
            "restore from another repository that holds this WAL, or from a later backup; `seawall wal verify` reads all of it"
        }
        Kind::Chain => "take a full backup: nothing restores this one",
    }
}

/// Numbers as people read them: `3, 7-9`, at most so many of them.
pub(super) fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let text = runs.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_told_as_a_range() {
        assert_eq!(ranges(&[3, 7, 8, 9, 11]), "3, 7-9, 11");
        assert_eq!(ranges(&[0, 1]), "0-1");
        assert_eq!(ranges(&[u32::MAX]), u32::MAX.to_string());
        assert_eq!(ranges(&[]), "");
    }
}
