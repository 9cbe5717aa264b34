//! The pages of one relation's file as they pass: whole files, and the blocks of incremental
//! ones behind their header.

use crate::backup::pages::{NAMED_BLOCKS, Pages};
use crate::postgres::incremental::IncrementalHeader;
use crate::repository::index::Member;

use super::finding::NAMED;

/// Checks one file.
pub(super) struct PageChecker {
    pages: Pages,
    /// Bytes of the incremental header that are still to come.
    header_left: u64,
    header: Vec<u8>,
    blocks: Box<dyn Iterator<Item = u32> + Send>,
    /// The beginning of a page whose end is in the next frame.
    part: Vec<u8>,
    known: Vec<u32>,
    checked: u64,
    wrong: Vec<u32>,
    wrong_count: u64,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// Pages that were looked at.
    pub(super) pages: u64,
    /// Blocks that are wrong and that the backup does not know of, counted in the whole
    /// relation: the first of them.
    pub(super) wrong: Vec<u32>,
    /// How many there are.
    pub(super) wrong_count: u64,
    /// The header of an incremental file does not say what the index does.
    pub(super) header: Option<String>,
}

impl PageChecker {
    /// For the file of `member`; `None` where it has no pages, or they have no checksums.
    /// Headers of incremental files are compared in any case.
    pub(super) fn of(member: &Member, pages: Pages) -> Option<Self> {
        let first = pages.first_block(&member.target_path());
        let with_checksums = first.is_some() && pages.checksums;
        if !with_checksums && member.increment.is_none() {
            return None;
        }
        let first = first.unwrap_or(0);
        let (header_left, blocks): (u64, Box<dyn Iterator<Item = u32> + Send>) = match &member
            .increment
        {
            None => (0, Box::new((0..).map(move |at| first.wrapping_add(at)))),
            Some(increment) => {
                let count = increment.block_count();
                let size = IncrementalHeader::size(count as usize, pages.block_size);
                let runs = increment.blocks.clone().into_iter();
                let blocks = runs
                    .flat_map(|[start, count]| (0..count).map(move |at| start.wrapping_add(at)));
                (
                    size,
                    Box::new(blocks.map(move |block| first.wrapping_add(block))),
                )
            }
        };
        Some(Self {
            pages,
            header_left,
            header: Vec::new(),
            blocks,
            part: Vec::new(),
            known: member.damaged_blocks.clone(),
            checked: 0,
            wrong: Vec::new(),
            wrong_count: 0,
        })
    }

    /// The next bytes of the file.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        if self.header_left > 0 {
            let now = bytes.len().min(self.header_left as usize);
            self.header.extend_from_slice(&bytes[..now]);
            self.header_left -= now as u64;
            bytes = &bytes[now..];
        }
        if !self.pages.checksums {
            return;
        }
        let size = self.pages.block_size as usize;
        if !self.part.is_empty() {
            let now = bytes.len().min(size - self.part.len());
            self.part.extend_from_slice(&bytes[..now]);
            bytes = &bytes[now..];
            if self.part.len() < size {
                return;
            }
            let page = std::mem::take(&mut self.part);
            self.page(&page);
        }
        let mut whole = bytes.chunks_exact(size);
        for page in whole.by_ref() {
            self.page(page);
        }
        // A file that ends inside a page: PostgreSQL verifies nothing there.
        self.part.extend_from_slice(whole.remainder());
    }

    fn page(&mut self, page: &[u8]) {
        let Some(block) = self.blocks.next() else {
            return;
        };
        self.checked += 1;
        if !self.pages.is_damaged(page, block) || self.is_known(block) {
            return;
        }
        self.wrong_count += 1;
        if self.wrong.len() < NAMED {
            self.wrong.push(block);
        }
    }

    fn is_known(&self, block: u32) -> bool {
        let behind_the_named =
            self.known.len() >= NAMED_BLOCKS && self.known.last().is_some_and(|last| block > *last);
        behind_the_named || self.known.contains(&block)
    }

    /// What came of it, once all bytes have come.
    pub(super) fn finish(self, member: &Member) -> Checked {
        let header = member.increment.as_ref().and_then(|increment| {
            let header = match IncrementalHeader::parse(&self.header, self.pages.blocks_per_file) {
                Ok(header) => header,
                Err(error) => return Some(error.to_string()),
            };
            let runs = increment.blocks.iter();
            let blocks =
                runs.flat_map(|[start, count]| (0..*count).map(move |at| start.wrapping_add(at)));
            let same = header.truncation_block_length == increment.truncation_block_length
                && blocks.eq(header.blocks);
            (!same).then(|| "its header names other blocks than its index".to_owned())
        });
        Checked {
            pages: self.checked,
            wrong: self.wrong,
            wrong_count: self.wrong_count,
            header,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::postgres::{Lsn, checksum};
    use crate::repository::index::{Increment, MemberKind};

    const PAGES: Pages = Pages {
        block_size: 8192,
        blocks_per_file: 131_072,
        checksums: true,
        backup_start: Lsn(u64::MAX),
    };

    fn member(path: &str) -> Member {
        let mut member = Member::directory(path.into(), 0o600, Timestamp::UNIX_EPOCH);
        member.kind = MemberKind::File;
        member
    }

    /// A page that is right as `block`.
    fn page(block: u32) -> Vec<u8> {
        let mut page = vec![5; 8192];
        let sum = checksum::page_checksum(&page, block).to_le_bytes();
        page[8..10].copy_from_slice(&sum);
        page
    }

    fn check(member: &Member, bytes: &[u8], piece: usize) -> Checked {
        let mut checker = PageChecker::of(member, PAGES).unwrap();
        bytes.chunks(piece).for_each(|bytes| checker.update(bytes));
        checker.finish(member)
    }

    #[test]
    fn a_wrong_page_is_found_wherever_frames_cut_it_and_a_known_one_is_not_told_again() {
        let mut member = member("base/5/16384.1");
        let first = 131_072;
        let mut bytes: Vec<u8> = (first..first + 5).flat_map(page).collect();
        bytes[2 * 8192 + 100] ^= 1;
        bytes[4 * 8192 + 100] ^= 1;
        for piece in [100_000, 8192, 5000, 513] {
            let checked = check(&member, &bytes, piece);
            assert_eq!((checked.pages, checked.wrong_count), (5, 2));
            assert_eq!(checked.wrong, [first + 2, first + 4]);
        }
        member.damaged_blocks = vec![first + 2];
        assert_eq!(check(&member, &bytes, 8192).wrong, [first + 4]);
        member.path = "base/5/PG_VERSION".into();
        assert!(PageChecker::of(&member, PAGES).is_none());
    }

    #[test]
    fn blocks_of_an_incremental_file_are_judged_by_their_numbers() {
        let mut member = member("base/5/INCREMENTAL.16384");
        let header = IncrementalHeader {
            truncation_block_length: 20,
            blocks: vec![3, 4, 17],
        };
        member.increment = Some(Increment {
            truncation_block_length: 20,
            blocks: vec![[3, 2], [17, 1]],
        });
        let mut bytes = header.encode(8192);
        bytes.extend([3, 4, 17].into_iter().flat_map(page));
        let expected = Checked {
            pages: 3,
            ..Checked::default()
        };
        assert_eq!(check(&member, &bytes, 5000), expected);
        bytes.truncate(8192);
        bytes.extend([3, 5, 17].into_iter().flat_map(page));
        assert_eq!(check(&member, &bytes, 8192).wrong, [4]);
        member.increment.as_mut().unwrap().blocks[1] = [18, 1];
        assert!(check(&member, &bytes, 8192).header.is_some());
    }
}
