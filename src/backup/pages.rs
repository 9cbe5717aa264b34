//! The pages of relations' files: what those of a cluster look like, and which are damaged.

use std::path::Path;

use crate::postgres::Lsn;
use crate::postgres::checksum::{self, PageVerdict};
use crate::postgres::layout::RelationFile;

/// A file's line in an index names at most this many damaged blocks: where it names so many,
/// there may be more behind the last.
pub const NAMED_BLOCKS: usize = 1000;

/// What the pages of a cluster look like.
#[derive(Debug, Clone, Copy)]
pub struct Pages {
    /// Bytes of a page.
    pub block_size: u32,
    /// Pages in one file of a relation.
    pub blocks_per_file: u32,
    /// Whether they carry checksums.
    pub checksums: bool,
    /// Pages with an LSN from here on may be torn; WAL replaces them.
    pub backup_start: Lsn,
}

impl Pages {
    /// The relation's block with which the file at `path`, of the data directory, begins. `None`
    /// where it is not the file of a relation, and has no pages.
    pub fn first_block(&self, path: &str) -> Option<u32> {
        let relation = RelationFile::parse(Path::new(path))?;
        Some(relation.segment.wrapping_mul(self.blocks_per_file))
    }

    /// Whether `page` is not what the server wrote as block `block` of its relation. Without
    /// checksums that cannot be told.
    pub fn is_damaged(&self, page: &[u8], block: u32) -> bool {
        self.checksums
            && matches!(
                checksum::verify_page(page, block, self.backup_start),
                PageVerdict::Bad { .. } | PageVerdict::NewButNotZero
            )
    }
}

/// The damaged blocks of one file.
#[derive(Debug, Default)]
pub struct Damage {
    /// The first of them, counted in the whole relation.
    pub blocks: Vec<u32>,
    /// How many there are.
    pub count: u64,
}

impl Damage {
    /// One more, behind the others.
    pub fn add(&mut self, block: u32) {
        self.count += 1;
        if self.blocks.len() < NAMED_BLOCKS {
            self.blocks.push(block);
        }
    }
}
