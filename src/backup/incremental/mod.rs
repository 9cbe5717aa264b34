//! Incremental backups: which files a parent knows, what of them has changed since, and how
//! they are written in PostgreSQL's own format.
//!
//! The thread that scans the data directory joins what it finds with the parent's indexes, as
//! two sorted lists, and says of each file what is known before it is read ([`Basis`]); the
//! threads that pack read it accordingly ([`file`](mod@file)). Whatever cannot be told is copied whole.

pub mod file;
pub mod parent;
pub mod summaries;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::pages::NAMED_BLOCKS;
use super::scan::Found;
use crate::digest::PlainDigest;
use crate::error::Result;
use crate::postgres::Lsn;
use crate::postgres::layout::{Fork, RelationFile};
use crate::postgres::wal_summary::BlockChanges;
use crate::repository::chain::members::Members;
use crate::repository::index::{FileIdentity, Member, MemberKind};
use crate::repository::marker::ChangeRule;

/// What is known of a file before it is read.
#[derive(Debug, Clone, Default)]
pub enum Basis {
    /// Nothing: it is copied whole.
    #[default]
    Nothing,
    /// The parent has it: its pages tell which of them changed since.
    Parent(Known),
    /// The server's WAL tells what changed since the parent.
    Changed(Changed),
}

/// What the parent knows of a file of a relation.
#[derive(Debug, Clone)]
pub struct Known {
    /// Where the parent starts: pages with an LSN from here on have changed.
    pub start: Lsn,
    /// Blocks that the file had.
    pub blocks: u32,
    /// What told it from a later one of the same name.
    pub identity: Option<FileIdentity>,
    /// BLAKE3 of the whole file, where it was computed.
    pub digest: Option<PlainDigest>,
    /// Blocks, counted in this file, that were damaged: what the parent has of them counts for
    /// nothing.
    pub damaged: Vec<u32>,
    /// Whether each change of a page that matters moves its LSN. Without page checksums a page
    /// is marked all-visible without that.
    pub every_change_is_logged: bool,
}

/// The blocks of a file that changed, by the server's WAL.
#[derive(Debug, Clone)]
pub struct Changed {
    /// Blocks that the file had at the scan.
    pub blocks: u32,
    /// Of what lies behind, the parent knows nothing.
    pub truncation_block_length: u32,
    /// The blocks to be copied, counted in this file, ascending: the first of a run, and how many.
    pub runs: Vec<[u32; 2]>,
}

/// The rule by which changed blocks are told from others.
pub enum Rule {
    /// By the LSN of each page.
    PageLsn {
        /// See [`Known::every_change_is_logged`].
        every_change_is_logged: bool,
    },
    /// By the server's WAL summaries from the parent's start to ours.
    WalSummaries(BlockChanges),
}

impl Rule {
    /// As the marker names it.
    pub fn name(&self) -> ChangeRule {
        match self {
            Self::PageLsn { .. } => ChangeRule::PageLsn,
            Self::WalSummaries(_) => ChangeRule::WalSummaries,
        }
    }
}

/// The parent, as far as its files are concerned.
pub struct Baseline {
    /// Its files, in order.
    pub members: Members,
    /// How what is found is compared with them.
    pub comparison: Comparison,
}

/// How a file is compared with what the parent has of it.
pub struct Comparison {
    /// Where the parent starts.
    pub start: Lsn,
    /// How changes are told.
    pub rule: Rule,
    /// Bytes of a page.
    pub block_size: u32,
    /// Pages in one file of a relation.
    pub blocks_per_file: u32,
}

impl Baseline {
    /// What is known of `found`. Ask in the order of the scan.
    ///
    /// # Errors
    /// An index of the parent cannot be read.
    pub fn basis(&mut self, found: &Found) -> Result<Basis> {
        let Some(relation) = Comparison::applies_to(found) else {
            return Ok(Basis::Nothing);
        };
        Ok(match self.members.find(&found.member.path)? {
            Some((_, parent)) => self.comparison.basis(&relation, found.member.size, parent),
            None => Basis::Nothing,
        })
    }
}

impl Comparison {
    /// Only main forks are compared. The maps of free space and visibility change without a new
    /// LSN, and WAL summaries of older releases miss changes of the latter. An unlogged
    /// relation's init fork is tiny.
    pub fn applies_to(found: &Found) -> Option<RelationFile> {
        RelationFile::parse(Path::new(&found.member.path))
            .filter(|relation| relation.kind == Fork::Main && found.member.kind == MemberKind::File)
    }

    /// What is known of a file of `size` bytes that the `parent` has, too.
    pub fn basis(&self, relation: &RelationFile, size: u64, parent: Member) -> Basis {
        match self.known(relation, parent) {
            Some(known) => self.by_rule(relation, size, known),
            None => Basis::Nothing,
        }
    }

    /// What the parent's line says, where blocks of it can be relied upon.
    fn known(&self, relation: &RelationFile, parent: Member) -> Option<Known> {
        let blocks = self.whole_blocks(parent.target_size(self.block_size))?;
        if parent.damaged_blocks.len() >= NAMED_BLOCKS {
            return None;
        }
        let first = relation.segment.checked_mul(self.blocks_per_file)?;
        let damaged = parent.damaged_blocks.iter();
        let damaged = damaged.filter_map(|block| block.checked_sub(first));
        Some(Known {
            start: self.start,
            blocks,
            damaged: damaged.collect(),
            digest: match parent.increment {
                Some(_) => parent.whole_digest,
                None => parent.digest,
            },
            identity: parent.identity,
            every_change_is_logged: match self.rule {
                Rule::PageLsn {
                    every_change_is_logged,
                } => every_change_is_logged,
                Rule::WalSummaries(_) => true,
            },
        })
    }

    /// Blocks of a file of `size` bytes; none if it is not made of blocks alone, or is larger
    /// than a segment.
    fn whole_blocks(&self, size: u64) -> Option<u32> {
        if !size.is_multiple_of(u64::from(self.block_size)) {
            return None;
        }
        let blocks = u32::try_from(size / u64::from(self.block_size)).ok()?;
        (blocks <= self.blocks_per_file).then_some(blocks)
    }

    fn by_rule(&self, relation: &RelationFile, size: u64, known: Known) -> Basis {
        let changes = match &self.rule {
            Rule::PageLsn { .. } => return Basis::Parent(known),
            Rule::WalSummaries(changes) => changes,
        };
        let Some(blocks) = self.whole_blocks(size).filter(|blocks| *blocks > 0) else {
            return Basis::Nothing;
        };
        if changes.database_was_made(relation.tablespace, relation.database) {
            return Basis::Nothing;
        }
        let first = relation.segment.saturating_mul(self.blocks_per_file);
        let mut truncation_block_length = blocks.min(known.blocks);
        let mut changed = Vec::new();
        if let Some(fork) = changes.of(relation) {
            if let Some(limit) = fork.limit_block {
                if limit <= first {
                    return Basis::Nothing;
                }
                truncation_block_length = truncation_block_length.min(limit - first);
            }
            let range = first..first.saturating_add(truncation_block_length);
            changed.extend(fork.blocks.range(range).map(|block| block - first));
        }
        let damaged = known.damaged.into_iter();
        changed.extend(damaged.filter(|block| *block < truncation_block_length));
        changed.sort_unstable();
        changed.dedup();
        // What lies behind is new, or was made again: also pages that no WAL tells of.
        let mut runs = runs(&changed);
        if truncation_block_length < blocks {
            add_run(
                &mut runs,
                [truncation_block_length, blocks - truncation_block_length],
            );
        }
        let copied: u64 = runs.iter().map(|[_, count]| u64::from(*count)).sum();
        if is_mostly(copied, blocks) {
            return Basis::Nothing;
        }
        Basis::Changed(Changed {
            blocks,
            truncation_block_length,
            runs,
        })
    }
}

impl Basis {
    /// Bytes that a file of `size` bytes is likely to take in a pack.
    pub fn weight(&self, size: u64, block_size: u32) -> u64 {
        match self {
            Self::Nothing | Self::Parent(_) => size,
            Self::Changed(changed) => {
                let runs = changed.runs.iter();
                let blocks: u64 = runs.map(|[_, count]| u64::from(*count)).sum();
                blocks * u64::from(block_size)
            }
        }
    }
}

/// Whether so many blocks of `all` are better copied as the whole file: over 90 %, as
/// PostgreSQL's server does.
pub fn is_mostly(copied: u64, all: u32) -> bool {
    copied * 10 > u64::from(all) * 9
}

/// Ascending numbers as runs: the first of each, and how many.
pub fn runs(blocks: &[u32]) -> Vec<[u32; 2]> {
    let mut runs = Vec::new();
    for block in blocks {
        add_run(&mut runs, [*block, 1]);
    }
    runs
}

/// Adds a run behind the others.
fn add_run(runs: &mut Vec<[u32; 2]>, [first, count]: [u32; 2]) {
    match runs.last_mut() {
        Some([start, length]) if *start + *length == first => *length += count,
        _ => runs.push([first, count]),
    }
}
