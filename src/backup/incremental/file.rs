//! Reading one file on top of what the parent knows: an incremental file with the blocks that
//! changed, or the decision that the whole file is to be copied.
//!
//! By the LSN rule each page is read, and its checksum verified, as in a full backup. A page is
//! unchanged only if its LSN is below the parent's start, it is not new, it is sound, and the
//! file is the very file that the parent read. Blocks that changed are read once more when they
//! are written: what the server writes in between is in the WAL of this backup.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{Basis, Changed, Known, is_mostly, runs};
use crate::backup::file::FileRead;
use crate::backup::pages::{Damage, Pages};
use crate::backup::scan::{self, Found};
use crate::digest::{PlainDigest, PlainHasher};
use crate::error::{IoContext, Result};
use crate::postgres::incremental::{IncrementalHeader, incremental_path};
use crate::postgres::page;
use crate::repository::index::Increment;
use crate::repository::pack::PackWriter;

/// Bytes that are read at once; a multiple of every page size.
const READ_SIZE: usize = 256 << 10;

/// Writes `found` as an incremental file. `None`: it is to be copied whole, or it vanished.
/// `passed` is told of bytes that need not be read again, and may end it with an error.
pub fn read_into<S: FnMut(Bytes) -> Result<()>>(
    pack: &mut PackWriter<S>,
    found: &Found,
    pages: Pages,
    passed: &dyn Fn(u64) -> Result<()>,
) -> Result<Option<FileRead>> {
    let (changed, whole_digest) = match &found.basis {
        Basis::Nothing => return Ok(None),
        Basis::Changed(Changed {
            truncation_block_length,
            runs,
            ..
        }) => {
            let increment = Increment {
                truncation_block_length: *truncation_block_length,
                blocks: runs.clone(),
            };
            (increment, None)
        }
        Basis::Parent(known) => {
            let Some(source) = Source::open(found, pages)? else {
                return Ok(None);
            };
            match source.compare(known, passed)? {
                Some(compared) => compared,
                None => return Ok(None),
            }
        }
    };
    let read = write(pack, found, pages, changed, whole_digest)?;
    passed(found.member.size)?;
    Ok(read)
}

/// The header, and the blocks as they are now.
fn write<S: FnMut(Bytes) -> Result<()>>(
    pack: &mut PackWriter<S>,
    found: &Found,
    pages: Pages,
    increment: Increment,
    whole_digest: Option<PlainDigest>,
) -> Result<Option<FileRead>> {
    let count = increment.block_count();
    // Nothing of an unchanged file is read, not even opened.
    let source = match count {
        0 => None,
        _ => match Source::open(found, pages)? {
            Some(source) => Some(source),
            None => return Ok(None),
        },
    };
    let header = IncrementalHeader {
        truncation_block_length: increment.truncation_block_length,
        blocks: increment
            .blocks
            .iter()
            .flat_map(|[first, count]| *first..first + count)
            .collect(),
    }
    .encode(pages.block_size);
    let runs = increment.blocks.clone();
    let mut member = found.member.clone();
    member.path = incremental_path(&member.path);
    member.size = header.len() as u64 + count * u64::from(pages.block_size);
    member.increment = Some(increment);
    // The blocks are read once more below: they may be others by then.
    member.whole_digest = whole_digest.filter(|_| count == 0);
    pack.begin_file(member)?;
    let mut crc32c = crc32c::crc32c(&header);
    pack.write(&header)?;
    let mut damage = Damage::default();
    if let Some(source) = source {
        let at_once = (READ_SIZE / pages.block_size as usize).max(1) as u32;
        let mut buffer = vec![0; at_once as usize * pages.block_size as usize];
        for [first, count] in runs {
            for start in (first..first + count).step_by(at_once as usize) {
                let blocks = at_once.min(first + count - start);
                let bytes = &mut buffer[..blocks as usize * pages.block_size as usize];
                source.read_blocks(start, bytes)?;
                source.find_damage(start, bytes, &mut damage)?;
                crc32c = crc32c::crc32c_append(crc32c, bytes);
                pack.write(bytes)?;
            }
        }
    }
    pack.end_file(damage.blocks)?;
    let damaged = damage.count;
    Ok(Some(FileRead { crc32c, damaged }))
}

/// An open file of a relation.
struct Source<'a> {
    file: File,
    found: &'a Found,
    pages: Pages,
    /// The relation's block with which this file begins.
    first: u32,
}

impl<'a> Source<'a> {
    /// `None`: it vanished since the scan.
    fn open(found: &'a Found, pages: Pages) -> Result<Option<Self>> {
        let file = match File::open(&found.source) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.on("open", &found.source)?,
        };
        Ok(Some(Self {
            file,
            found,
            pages,
            first: pages.first_block(&found.member.path).unwrap_or(0),
        }))
    }

    /// What changed since the parent. `None`: the file is to be copied whole.
    fn compare(
        &self,
        known: &Known,
        passed: &dyn Fn(u64) -> Result<()>,
    ) -> Result<Option<(Increment, Option<PlainDigest>)>> {
        let metadata = self.file.metadata().on("look at", &self.found.source)?;
        let block_size = u64::from(self.pages.block_size);
        let blocks = metadata.len() / block_size;
        if !metadata.len().is_multiple_of(block_size)
            || blocks == 0
            || blocks > u64::from(self.pages.blocks_per_file)
        {
            return Ok(None);
        }
        let blocks = blocks as u32;
        let identity = scan::identity(&metadata);
        // Without the time of its birth an inode may have been another file's meanwhile.
        let same_file = identity.born.is_some() && known.identity.as_ref() == Some(&identity);
        let same_size = blocks == known.blocks && known.damaged.is_empty();
        let compared = known.digest.filter(|_| same_size);
        if !same_file {
            // Only the very same bytes show that nothing happened to it.
            let Some(parents) = compared else {
                return Ok(None);
            };
            let (_, digest) = self.changed_blocks(blocks, None, true, passed)?;
            return Ok((digest == Some(parents)).then(|| (unchanged(blocks), digest)));
        }
        let hash = !known.every_change_is_logged;
        let (changed, digest) = self.changed_blocks(blocks, Some(known), hash, passed)?;
        if compared.is_some() && compared == digest {
            return Ok(Some((unchanged(blocks), digest)));
        }
        Ok(changed.map(|changed| {
            let increment = Increment {
                truncation_block_length: blocks.min(known.blocks),
                blocks: runs(&changed),
            };
            (increment, digest)
        }))
    }

    /// Reads all pages: those that changed since the parent (none if they are over 90 %), and
    /// the digest of all bytes if it is asked for.
    #[allow(clippy::type_complexity)]
    fn changed_blocks(
        &self,
        blocks: u32,
        known: Option<&Known>,
        hash: bool,
        passed: &dyn Fn(u64) -> Result<()>,
    ) -> Result<(Option<Vec<u32>>, Option<PlainDigest>)> {
        let size = self.pages.block_size as usize;
        let at_once = (READ_SIZE / size).max(1);
        let mut hasher = hash.then(PlainHasher::default);
        let mut changed = Vec::new();
        let mut buffer = vec![0; at_once * size];
        for start in (0..blocks).step_by(at_once) {
            let count = at_once.min((blocks - start) as usize);
            let bytes = &mut buffer[..count * size];
            self.read_blocks(start, bytes)?;
            passed(0)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            let Some(known) = known else { continue };
            for (block, page) in (start..).zip(bytes.chunks_exact_mut(size)) {
                if self.has_changed(block, page, known)? {
                    changed.push(block);
                }
            }
            if hasher.is_none() && is_mostly(changed.len() as u64, blocks) {
                return Ok((None, None));
            }
        }
        let mostly = is_mostly(changed.len() as u64, blocks);
        let digest = hasher.map(|hasher| hasher.finish());
        Ok(((!mostly).then_some(changed), digest))
    }

    fn has_changed(&self, block: u32, page: &mut [u8], known: &Known) -> Result<bool> {
        Ok(block >= known.blocks
            || page::is_new(page)
            || page::lsn(page) >= known.start
            || (!known.every_change_is_logged && page::is_all_visible(page))
            || known.damaged.contains(&block)
            // What a damaged page says of its LSN tells nothing.
            || self.is_damaged(block, page)?)
    }

    /// Reads blocks, counted in this file. What was truncated meanwhile is zeros.
    fn read_blocks(&self, first: u32, bytes: &mut [u8]) -> Result<()> {
        let offset = u64::from(first) * u64::from(self.pages.block_size);
        let mut count = 0;
        while count < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[count..], offset + count as u64)
            {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).on("read", &self.found.source),
            }
        }
        bytes[count..].fill(0);
        Ok(())
    }

    fn find_damage(&self, first: u32, bytes: &mut [u8], damage: &mut Damage) -> Result<()> {
        let size = self.pages.block_size as usize;
        for (block, page) in (first..).zip(bytes.chunks_exact_mut(size)) {
            if self.is_damaged(block, page)? {
                damage.add(self.first.wrapping_add(block));
            }
        }
        Ok(())
    }

    /// Whether a page's checksum is wrong, also when the page is read again: the server may have
    /// been writing it.
    fn is_damaged(&self, block: u32, page: &mut [u8]) -> Result<bool> {
        let number = self.first.wrapping_add(block);
        if !self.pages.is_damaged(page, number) {
            return Ok(false);
        }
        self.read_blocks(block, page)?;
        Ok(self.pages.is_damaged(page, number))
    }
}

fn unchanged(blocks: u32) -> Increment {
    Increment {
        truncation_block_length: blocks,
        blocks: Vec::new(),
    }
}
