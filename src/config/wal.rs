//! How WAL is archived and fetched: how far ahead, with how much of the machine, and when an
//! archived file counts as archived.

use bytesize::ByteSize;
use serde::Deserialize;

/// The most segments that may be stored behind one that is not stored yet.
///
/// A rule of the repository's format, so that a reader can tell from listings alone what may
/// be missing because its archiver died, and what was lost.
pub const SEGMENTS_AHEAD: u64 = 16;

/// How many of the repositories must hold a file before it counts as archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acknowledge {
    /// Every one.
    #[default]
    All,
    /// So many of them.
    AtLeast(usize),
}

impl Acknowledge {
    /// How many of `repositories` it takes.
    pub fn needed(self, repositories: usize) -> usize {
        match self {
            Self::All => repositories,
            Self::AtLeast(number) => number.min(repositories),
        }
    }

    pub(super) fn validate(self, repositories: usize) -> Result<(), String> {
        match self {
            Self::AtLeast(number) if number == 0 || number > repositories => Err(format!(
                "archive_ack = {number}: WAL would be acknowledged {}; there are {repositories} repositories",
                if number == 0 {
                    "that is stored nowhere"
                } else {
                    "never"
                }
            )),
            _ => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for Acknowledge {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "archive_ack is \"all\", \"any\" or a number of repositories"
        )]
        enum Written {
            Number(usize),
            Word(Word),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Word {
            All,
            Any,
        }
        Ok(match Written::deserialize(d)? {
            Written::Number(number) => Self::AtLeast(number),
            Written::Word(Word::All) => Self::All,
            Written::Word(Word::Any) => Self::AtLeast(1),
        })
    }
}

/// How WAL is archived.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArchiveConfig {
    /// How many segments behind the one that PostgreSQL asks for are archived as well; 0 to
    /// [`SEGMENTS_AHEAD`].
    pub ahead: u64,
    /// How many segments are compressed at once.
    pub jobs: usize,
    /// How much memory the segments that are being archived may take together.
    pub memory: ByteSize,
    /// How much less urgent than the server's own work working ahead is: nice(1)'s 0 to 19.
    pub nice: i32,
}

impl Default for ArchiveConfig {
    fn default() -> Self {
        Self {
            ahead: SEGMENTS_AHEAD,
            jobs: super::default_jobs().min(4),
            memory: ByteSize::mib(40),
            nice: 0,
        }
    }
}

impl ArchiveConfig {
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.ahead > SEGMENTS_AHEAD {
            return Err(format!("archive.ahead must be from 0 to {SEGMENTS_AHEAD}"));
        }
        if self.jobs == 0 {
            return Err("archive.jobs must be at least 1".to_owned());
        }
        if !(0..=19).contains(&self.nice) {
            return Err("archive.nice must be from 0 to 19".to_owned());
        }
        Ok(())
    }
}

/// How WAL is fetched for recovery.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// How many segments behind the one that PostgreSQL asks for are fetched as well; 0 turns
    /// it off.
    pub ahead: u64,
    /// How many segments are fetched at once.
    pub jobs: usize,
    /// How much the segments that wait for PostgreSQL may take of the disk beside pg_wal.
    pub spool: ByteSize,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            ahead: 16,
            jobs: super::default_jobs().min(4),
            spool: ByteSize::mib(512),
        }
    }
}

impl FetchConfig {
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.ahead > 1024 {
            return Err("fetch.ahead must be from 0 to 1024".to_owned());
        }
        if self.jobs == 0 {
            return Err("fetch.jobs must be at least 1".to_owned());
        }
        Ok(())
    }
}
