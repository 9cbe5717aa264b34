//! A file that a restore makes, and where each of its bytes is stored: whole in one backup, or
//! block by block in several, each block in the newest that has it.
//!
//! Facts: PostgreSQL 18, `reconstruct_from_incremental_file` in
//! `src/bin/pg_combinebackup/reconstruct.c`.

use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;

use super::walk::Pack;
use crate::digest::PlainDigest;
use crate::error::{Error, Result};
use crate::postgres::incremental::IncrementalHeader;
use crate::repository::index::{FileIdentity, Member};

/// A file as it is to be, and the members that it is made of.
#[derive(Debug, Clone)]
pub struct ChainFile {
    /// Relative to the data directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When its content last changed on the source.
    pub modified: Timestamp,
    /// BLAKE3 of its bytes, where one backup holds it whole and no newer one has a block of it.
    pub digest: Option<PlainDigest>,
    /// What tells it from a later file of the same name, where the newest backup says it.
    pub identity: Option<FileIdentity>,
    /// Blocks that any of the backups found damaged, counted in the whole relation.
    pub damaged_blocks: Vec<u32>,
    /// Newest first. All but the last hold some blocks, the last one holds it whole.
    layers: Vec<Layer>,
    block_size: u64,
}

/// What one backup of the chain holds of a file.
#[derive(Debug, Clone)]
struct Layer {
    link: usize,
    pack: Arc<Pack>,
    /// Where its first byte, or block, lies in the plain tar stream.
    offset: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// So many bytes.
    Whole(u64),
    Blocks {
        runs: Vec<[u32; 2]>,
        truncation: u64,
    },
}

/// Bytes of a file that lie in one piece in a pack.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Where they belong in the file.
    pub at: u64,
    /// How many.
    pub length: u64,
    /// The backup that holds them, counted from the newest of the chain.
    pub link: usize,
    /// Its pack.
    pub pack: Arc<Pack>,
    /// Where they lie in the plain tar stream.
    pub offset: u64,
}

impl ChainFile {
    /// A file whose newest backup has `member` of it.
    pub(super) fn new(pack: Arc<Pack>, member: Member, block_size: u32) -> Result<Self> {
        let mut file = Self {
            path: member.target_path().into_owned(),
            size: member.target_size(block_size),
            mode: member.mode,
            modified: member.mtime,
            digest: None,
            identity: member.identity.clone(),
            damaged_blocks: Vec::new(),
            layers: Vec::new(),
            block_size: u64::from(block_size),
        };
        file.add(0, pack, member)?;
        Ok(file)
    }

    /// Whether the backups so far hold all of it.
    pub(super) fn is_complete(&self) -> bool {
        let last = self.layers.last();
        last.is_some_and(|layer| matches!(layer.content, Content::Whole(_)))
    }

    /// Adds what the next older backup holds of it.
    pub(super) fn add(&mut self, link: usize, pack: Arc<Pack>, member: Member) -> Result<()> {
        // What was damaged in its parent an incremental backup reads anew: the newest tells.
        if link == 0 {
            self.damaged_blocks = member.damaged_blocks;
        }
        let mut offset = member.offset;
        let content = match member.increment {
            None => Content::Whole(member.size),
            Some(increment) => {
                let count = increment.block_count();
                let header = IncrementalHeader::size(count as usize, self.block_size as u32);
                let mut end = 0;
                for [first, blocks] in &increment.blocks {
                    let apart = u64::from(*first) >= end && *blocks > 0;
                    end = u64::from(*first) + u64::from(*blocks);
                    if !apart {
                        return Err(damaged(&member.path, "its blocks are out of order"));
                    }
                }
                if header + count * self.block_size != member.size {
                    return Err(damaged(&member.path, "its size is not that of its blocks"));
                }
                offset += header;
                Content::Blocks {
                    runs: increment.blocks,
                    truncation: u64::from(increment.truncation_block_length),
                }
            }
        };
        if let Content::Whole(size) = content
            && size == self.size
            && self
                .layers
                .iter()
                .all(|newer| newer.changes_nothing_of(size / self.block_size))
        {
            self.digest = member.digest;
        }
        self.layers.push(Layer {
            link,
            pack,
            offset,
            content,
        });
        Ok(())
    }

    /// Whether it lies in the last pack of the newest backup, outside of the order of files.
    pub fn is_of_last_pack(&self) -> bool {
        self.layers.first().is_some_and(|layer| layer.pack.is_last)
    }

    /// Compares the digest of what was read of it with the index's.
    ///
    /// # Errors
    /// It is another. (A file that is put together from several backups has none: each frame
    /// had its checksum.)
    pub fn verify(&self, found: PlainDigest) -> Result<()> {
        match self.digest {
            Some(digest) if digest != found => Err(Error::failed(format!(
                "the backup is damaged: {} has another digest than the index says",
                self.path
            ))),
            _ => Ok(()),
        }
    }

    /// Where these bytes of the file are stored, ascending. What lies between is zeros. The
    /// range begins, and ends unless with the file, with a block.
    pub fn extents(&self, range: Range<u64>) -> Vec<Extent> {
        if let [layer] = &self.layers[..]
            && matches!(layer.content, Content::Whole(_))
        {
            let length = range.end.saturating_sub(range.start);
            return match length {
                0 => Vec::new(),
                _ => vec![layer.extent(range.start, length, range.start)],
            };
        }
        let mut extents = Vec::new();
        let wanted = range.start / self.block_size..range.end.div_ceil(self.block_size);
        let mut missing = Vec::from([wanted]);
        // Of blocks behind this the older backups know nothing that is still true.
        let mut limit = u64::MAX;
        for layer in &self.layers {
            let mut left = Vec::new();
            for wanted in missing {
                self.cover(layer, wanted, limit, &mut extents, &mut left);
            }
            missing = left;
            if let Content::Blocks { truncation, .. } = layer.content {
                limit = limit.min(truncation);
            }
        }
        extents.sort_unstable_by_key(|extent| extent.at);
        extents
    }

    /// Takes from `layer` what it has of the blocks `wanted`, and says which are still missing.
    fn cover(
        &self,
        layer: &Layer,
        wanted: Range<u64>,
        limit: u64,
        extents: &mut Vec<Extent>,
        left: &mut Vec<Range<u64>>,
    ) {
        let mut from = wanted.start;
        let mut take = |run: Range<u64>, stored: u64| {
            let start = run.start.max(from);
            let end = run.end.min(wanted.end).min(limit);
            if start < end {
                if from < start {
                    left.push(from..start);
                }
                let bytes = (end - start) * self.block_size;
                let offset = (stored + start - run.start) * self.block_size;
                extents.push(layer.extent(start * self.block_size, bytes, offset));
                from = end;
            }
        };
        match &layer.content {
            // A block that is there in part only is none (reconstruct.c).
            Content::Whole(size) => take(0..size / self.block_size, 0),
            Content::Blocks { runs, .. } => {
                let mut stored = 0;
                for [first, count] in runs {
                    let (first, count) = (u64::from(*first), u64::from(*count));
                    take(first..first + count, stored);
                    stored += count;
                }
            }
        }
        if from < wanted.end {
            left.push(from..wanted.end);
        }
    }
}

impl Layer {
    /// Whether it has no block, and leaves all of so many to older backups.
    fn changes_nothing_of(&self, count: u64) -> bool {
        match &self.content {
            Content::Whole(_) => false,
            Content::Blocks { runs, truncation } => runs.is_empty() && *truncation >= count,
        }
    }

    fn extent(&self, at: u64, length: u64, offset: u64) -> Extent {
        Extent {
            at,
            length,
            link: self.link,
            pack: Arc::clone(&self.pack),
            offset: self.offset + offset,
        }
    }
}

fn damaged(path: &str, why: &str) -> Error {
    Error::failed(format!("the index is damaged: {path}: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repository::index::Increment;

    const BLOCK: u32 = 8192;

    fn member(content: &Sketch) -> Member {
        let mut member = Member::directory("base/5/1".into(), 0o600, Timestamp::UNIX_EPOCH);
        match content {
            Sketch::Whole(blocks) => member.size = u64::from(*blocks) * u64::from(BLOCK),
            Sketch::Blocks(truncation, there) => {
                member.path = "base/5/INCREMENTAL.1".into();
                let mut runs: Vec<[u32; 2]> = Vec::new();
                for (block, _) in there.iter().enumerate().filter(|(_, there)| **there) {
                    match runs.last_mut() {
                        Some([first, count]) if *first + *count == block as u32 => *count += 1,
                        _ => runs.push([block as u32, 1]),
                    }
                }
                let increment = Increment {
                    truncation_block_length: *truncation,
                    blocks: runs,
                };
                let count = increment.block_count();
                member.size =
                    IncrementalHeader::size(count as usize, BLOCK) + count * u64::from(BLOCK);
                member.increment = Some(increment);
            }
        }
        member
    }

    #[derive(Debug, Clone)]
    enum Sketch {
        Whole(u32),
        Blocks(u32, Vec<bool>),
    }

    fn file(layers: &[Sketch]) -> ChainFile {
        let pack = |_| Arc::new(Pack::unfetchable());
        let mut file = ChainFile::new(pack(0), member(&layers[0]), BLOCK).unwrap();
        for (link, layer) in layers.iter().enumerate().skip(1) {
            assert!(!file.is_complete());
            file.add(link, pack(link), member(layer)).unwrap();
        }
        assert!(file.is_complete());
        file
    }

    /// For each block the backup that has it and the block's number there.
    fn sources(file: &ChainFile, range: Range<u64>) -> Vec<Option<(usize, u64)>> {
        let block = u64::from(BLOCK);
        let mut all = vec![None; ((range.end - range.start) / block) as usize];
        for extent in file.extents(range.clone()) {
            for i in 0..extent.length / block {
                let at = (extent.at - range.start) / block + i;
                assert_eq!(all[at as usize], None, "each block is read once");
                all[at as usize] = Some((extent.link, extent.offset / block + i));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn each_block_comes_from_the_newest_backup_that_has_it_within_all_truncations(
            whole in 0u32..40,
            layers in prop::collection::vec((0u32..40, prop::collection::vec(any::<bool>(), 0..40)), 1..5),
            cut in 0u64..40,
        ) {
            let mut sketches: Vec<Sketch> = layers
                .iter()
                .map(|(truncation, there)| Sketch::Blocks(*truncation, there.clone()))
                .collect();
            sketches.push(Sketch::Whole(whole));
            let file = file(&sketches);
            let highest = layers[0].1.iter().rposition(|there| *there).map_or(0, |at| at as u64 + 1);
            prop_assert_eq!(file.size, highest.max(u64::from(layers[0].0)) * u64::from(BLOCK));
            // The rule, block by block, as pg_combinebackup states it.
            let expected: Vec<Option<(usize, u64)>> = (0..file.size / u64::from(BLOCK))
                .map(|block| {
                    let mut limit = u64::MAX;
                    for (link, (truncation, there)) in layers.iter().enumerate() {
                        if block < limit && there.get(block as usize) == Some(&true) {
                            let before = there[..block as usize].iter().filter(|t| **t).count();
                            let count = there.iter().filter(|t| **t).count();
                            let header = IncrementalHeader::size(count, BLOCK) / u64::from(BLOCK);
                            return Some((link, header + before as u64));
                        }
                        limit = limit.min(u64::from(*truncation));
                    }
                    (block < limit.min(u64::from(whole))).then_some((layers.len(), block))
                })
                .collect();
            prop_assert_eq!(sources(&file, 0..file.size), expected.clone());
            let cut = (cut * u64::from(BLOCK)).min(file.size);
            let mut parts = sources(&file, 0..cut);
            parts.extend(sources(&file, cut..file.size));
            prop_assert_eq!(parts, expected);
        }
    }
}
