//! Reading one file into a pack: exactly as many bytes as it had when it was opened, with the
//! page checksums of relation files verified on the way, as PostgreSQL's own base backup does.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::pages::{Damage, Pages};
use super::scan::Found;
use crate::error::{IoContext, Result};
use crate::repository::index::MemberKind;
use crate::repository::pack::PackWriter;

/// Bytes that are read at once; a multiple of every page size. All that looks at them finds
/// them in the processor's own cache.
const READ_SIZE: usize = 256 << 10;

/// What was read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRead {
    /// CRC-32C of its bytes, for the backup_manifest.
    pub crc32c: u32,
    /// Pages whose checksum was wrong.
    pub damaged: u64,
}

/// Reads `found` into the pack. `None`: it vanished since the scan, or it is a directory.
///
/// A file that grew is cut at the size that it had when it was opened, one that shrank is
/// padded with zeros: WAL replay brings both to their right state. `passed` is told of bytes as
/// they pass, and may end it with an error.
pub fn read_into<S: FnMut(Bytes) -> Result<()>>(
    pack: &mut PackWriter<S>,
    found: Found,
    pages: Pages,
    passed: &dyn Fn(u64) -> Result<()>,
) -> Result<Option<FileRead>> {
    if found.member.kind == MemberKind::Directory {
        pack.directory(found.member)?;
        return Ok(None);
    }
    let file = match File::open(&found.source) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.on("open", &found.source)?,
    };
    let mut member = found.member;
    member.size = file.metadata().on("look at", &found.source)?.len();
    let first_block = pages.first_block(&member.path);
    let mut checker = first_block
        .filter(|_| pages.checksums)
        .map(|next_block| Checker {
            pages,
            next_block,
            damage: Damage::default(),
        });
    let size = member.size;
    pack.begin_file(member)?;
    if size > READ_SIZE as u64 {
        // The kernel reads further ahead. Nothing depends on it.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    }
    let page_size = pages.block_size as usize;
    let (mut crc32c, mut at, mut page) = (0, 0, Vec::new());
    let mut take = |at: u64, bytes: &mut [u8]| {
        let count = read_up_to(&file, bytes).on("read", &found.source)?;
        // What is missing was truncated meanwhile.
        bytes[count..].fill(0);
        if let Some(checker) = &mut checker {
            let checked = checker.check(&file, at, &mut bytes[..count]);
            checked.on("read", &found.source)?;
        }
        crc32c = crc32c::crc32c_append(crc32c, bytes);
        Ok(())
    };
    while at < size {
        let left = size - at;
        let room = pack.room().min(READ_SIZE);
        let count = match left <= room as u64 {
            true => left as usize,
            false => room - room % page_size,
        };
        let count = if count > 0 {
            pack.fill(count, |bytes| take(at, bytes))?;
            count
        } else {
            // A page that lies in two frames.
            page.resize(left.min(page_size as u64) as usize, 0);
            take(at, &mut page)?;
            pack.write(&page)?;
            page.len()
        };
        at += count as u64;
        passed(count as u64)?;
    }
    let damage = checker.map_or_else(Damage::default, |checker| checker.damage);
    pack.end_file(damage.blocks)?;
    let damaged = damage.count;
    Ok(Some(FileRead { crc32c, damaged }))
}

fn read_up_to(mut file: &File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Verifies the pages of one relation file as they pass.
struct Checker {
    pages: Pages,
    next_block: u32,
    damage: Damage,
}

impl Checker {
    /// Checks the whole pages of `bytes`, which were read at `offset`. A page that looks
    /// damaged is read once more: the server may have been writing it.
    fn check(&mut self, file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        let size = self.pages.block_size as usize;
        for (at, page) in bytes.chunks_exact_mut(size).enumerate() {
            let block = self.next_block;
            self.next_block = self.next_block.wrapping_add(1);
            if !self.pages.is_damaged(page, block) {
                continue;
            }
            let mut again = vec![0; size];
            if read_page_again(file, offset + (at * size) as u64, &mut again)? {
                page.copy_from_slice(&again);
            }
            if self.pages.is_damaged(page, block) {
                self.damage.add(block);
            }
        }
        Ok(())
    }
}

/// False if the page is no longer there: the file was truncated.
fn read_page_again(file: &File, offset: u64, page: &mut [u8]) -> std::io::Result<bool> {
    match file.read_exact_at(page, offset) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::postgres::Lsn;
    use crate::postgres::checksum::page_checksum;

    const SIZE: usize = 8192;

    fn checker() -> Checker {
        Checker {
            pages: Pages {
                block_size: SIZE as u32,
                blocks_per_file: 131_072,
                checksums: true,
                backup_start: Lsn(1 << 40),
            },
            // Of the second file of its relation.
            next_block: 131_072,
            damage: Damage::default(),
        }
    }

    /// A page of an initialised relation, with its checksum.
    fn page(block: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..SIZE)
            .map(|at| (at * 7 + block as usize) as u8)
            .collect();
        // An old LSN, and pd_upper.
        page[0..8].fill(0);
        page[14..16].copy_from_slice(&4096u16.to_le_bytes());
        let checksum = page_checksum(&page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    fn file_of(pages: &[Vec<u8>]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pages.concat()).unwrap();
        file
    }

    #[test]
    fn a_page_that_was_torn_while_it_was_read_is_read_again_and_then_whole() {
        let pages = [page(131_072), page(131_073), page(131_074)];
        let file = file_of(&pages);
        let mut read = pages.concat();
        read[SIZE + 4096..2 * SIZE].fill(9);
        let mut checker = checker();
        checker.check(&file, 0, &mut read).unwrap();
        assert!(read == pages.concat(), "the second read counts");
        assert_eq!((checker.damage.count, checker.damage.blocks.len()), (0, 0));
    }

    #[test]
    fn a_page_that_is_wrong_twice_is_named_by_its_block_in_the_whole_relation() {
        let mut pages = [page(131_072), page(131_073), vec![0; SIZE]];
        pages[1][5000] ^= 1;
        // Not initialised, and yet not all zeros.
        pages[2][100] = 1;
        let file = file_of(&pages);
        let mut checker = checker();
        checker.check(&file, 0, &mut pages.concat()).unwrap();
        assert_eq!(checker.damage.blocks, [131_073, 131_074]);
        assert_eq!(checker.damage.count, 2);
    }

    #[test]
    fn a_page_that_a_truncation_took_before_it_was_read_again_is_kept_as_it_was_read() {
        let pages = [page(131_072), page(131_073)];
        let file = file_of(&pages[..1]);
        let mut torn = pages.concat();
        torn[SIZE + 5000] ^= 1;
        let before = torn.clone();
        let mut checker = checker();
        checker.check(&file, 0, &mut torn).unwrap();
        assert!(torn == before);
        assert_eq!(checker.damage.blocks, [131_073]);
    }
}
