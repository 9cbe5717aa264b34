//! Incremental files, `INCREMENTAL.<relfilenode>[.<segment>]`: the header in front of the blocks,
//! and what a file and its increments make together.
//!
//! Facts: PostgreSQL 17 and 18, `sendFile` and `GetIncrementalHeaderSize` in
//! `src/backend/backup/`, `reconstruct_from_incremental_file` in
//! `src/bin/pg_combinebackup/reconstruct.c`.

use super::FormatError;

/// What the first four bytes say.
const MAGIC: u32 = 0xd3ae_1f0d;

/// What stands before a relation file's name where only some of its blocks are there.
pub const PREFIX: &str = "INCREMENTAL.";

/// The header of an incremental file. The blocks follow it, in the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncrementalHeader {
    /// The shortest that the file has been since the parent, in blocks: of what lies behind,
    /// older backups know nothing.
    pub truncation_block_length: u32,
    /// The blocks that are there, counted in this segment file, ascending.
    pub blocks: Vec<u32>,
}

impl IncrementalHeader {
    /// Bytes of a header with so many blocks: padded to a block unless there are none.
    pub fn size(blocks: usize, block_size: u32) -> u64 {
        let bare = 12 + 4 * blocks as u64;
        match blocks {
            0 => bare,
            _ => bare.next_multiple_of(u64::from(block_size)),
        }
    }

    /// The header's bytes, padding included.
    pub fn encode(&self, block_size: u32) -> Vec<u8> {
        let size = Self::size(self.blocks.len(), block_size) as usize;
        let mut bytes = Vec::with_capacity(size);
        let count = self.blocks.len() as u32; // a segment file has at most 2^32 - 1 blocks
        for number in [MAGIC, count, self.truncation_block_length] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for block in &self.blocks {
            bytes.extend_from_slice(&block.to_le_bytes());
        }
        bytes.resize(size, 0);
        bytes
    }

    /// Reads the header at the beginning of `bytes`.
    ///
    /// # Errors
    /// Another magic number, more blocks than `blocks_per_file`, numbers that do not ascend or
    /// lie behind the end of a segment file, too few bytes.
    pub fn parse(bytes: &[u8], blocks_per_file: u32) -> Result<Self, FormatError> {
        let damaged = |why: String| FormatError::new("incremental file", why);
        let (words, _) = bytes.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = |what: &str| {
            words
                .next()
                .ok_or_else(|| damaged(format!("it ends before {what}")))
        };
        let magic = next("its magic number")?;
        if magic != MAGIC {
            return Err(damaged(format!("its magic number is {magic:#010x}")));
        }
        let count = next("the number of its blocks")?;
        let truncation_block_length = next("its truncation length")?;
        if count > blocks_per_file || truncation_block_length > blocks_per_file {
            return Err(damaged(format!(
                "{count} blocks of a file of {truncation_block_length}: a segment file has at most {blocks_per_file}"
            )));
        }
        let mut blocks = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let block = next("the numbers of its blocks")?;
            if block >= blocks_per_file || blocks.last().is_some_and(|last| *last >= block) {
                return Err(damaged(format!("block {block} is out of order")));
            }
            blocks.push(block);
        }
        Ok(Self {
            truncation_block_length,
            blocks,
        })
    }
}

/// `base/5/16384.1` for `base/5/INCREMENTAL.16384.1`; `None` for any other file.
pub fn original_path(path: &str) -> Option<String> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let name = name.strip_prefix(PREFIX)?;
    Some(match directory {
        "" => name.to_owned(),
        _ => format!("{directory}/{name}"),
    })
}

/// `base/5/INCREMENTAL.16384.1` for `base/5/16384.1`.
pub fn incremental_path(path: &str) -> String {
    match path.rsplit_once('/') {
        None => format!("{PREFIX}{path}"),
        Some((directory, name)) => format!("{directory}/{PREFIX}{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_without_blocks_is_twelve_bytes_and_others_fill_blocks() {
        let header = |blocks: Vec<u32>| IncrementalHeader {
            truncation_block_length: 9,
            blocks,
        };
        assert_eq!(header(vec![]).encode(8192).len(), 12);
        assert_eq!(header(vec![1, 4]).encode(8192).len(), 8192);
        assert_eq!(header((0..2045).collect()).encode(8192).len(), 8192);
        assert_eq!(header((0..2046).collect()).encode(8192).len(), 16_384);
        let bytes = header(vec![1, 4]).encode(8192);
        assert_eq!(bytes[..4], [0x0d, 0x1f, 0xae, 0xd3]);
        assert_eq!(
            IncrementalHeader::parse(&bytes, 10).unwrap(),
            header(vec![1, 4])
        );
    }

    #[test]
    fn numbers_that_no_segment_file_has_are_refused() {
        let header = |blocks: Vec<u32>, length| {
            let header = IncrementalHeader {
                truncation_block_length: length,
                blocks,
            };
            IncrementalHeader::parse(&header.encode(8192), 10)
        };
        assert!(header(vec![3, 9], 10).is_ok());
        assert!(header(vec![3, 3], 10).is_err());
        assert!(header(vec![10], 10).is_err());
        assert!(header(vec![], 11).is_err());
        assert!(IncrementalHeader::parse(&[0; 12], 10).is_err());
    }

    #[test]
    fn names_go_there_and_back() {
        for path in ["base/5/16384.1", "16384", "pg_tblspc/1/PG_15_2/5/6_init"] {
            assert_eq!(original_path(&incremental_path(path)).unwrap(), path);
            assert_eq!(original_path(path), None);
        }
        assert_eq!(incremental_path("base/5/1"), "base/5/INCREMENTAL.1");
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>, limit: u32) {
            let _ = IncrementalHeader::parse(&bytes, limit);
        }
    }
}
