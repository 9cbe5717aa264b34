//! Chains of one file through everything that may happen to it, by both rules: what the links
//! make together is the file, byte for byte.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::backup::pages::Pages;
use crate::backup::scan;
use crate::config::Compression;
use crate::postgres::checksum;
use crate::postgres::incremental::IncrementalHeader;
use crate::postgres::wal_summary::tests::encode;
use crate::repository::codec;
use crate::repository::pack::PackWriter;

const BLOCK: usize = 8192;
const BLOCKS_PER_FILE: u32 = 131_072;
const NO_LIMIT: u32 = u32::MAX;

/// What may happen to a file between two links.
#[derive(Debug, Clone)]
enum Event {
    /// A page is changed, with a record in the WAL.
    Change(u32),
    /// A page is marked all-visible without a new LSN, as without page checksums.
    Mark(u32),
    /// Pages are added, with records.
    Extend(u32),
    /// Pages of zeros are added, of which no WAL tells.
    ExtendByZeros(u32),
    Truncate(u32),
    /// The number is used again, for pages that are older than the parent: a database that is
    /// copied file by file.
    Replace(u32),
    /// Another file with the same bytes.
    CopyBack,
    /// The disk damages a page.
    Damage(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u32..40).prop_map(Event::Change),
        1 => (0u32..40).prop_map(Event::Mark),
        2 => (1u32..9).prop_map(Event::Extend),
        2 => (1u32..5).prop_map(Event::ExtendByZeros),
        2 => (0u32..40).prop_map(Event::Truncate),
        1 => (1u32..30).prop_map(Event::Replace),
        1 => Just(Event::CopyBack),
        1 => (0u32..40).prop_map(Event::Damage),
    ]
}

/// The file as it is, what WAL tells of it, and how it is read.
struct World {
    directory: tempfile::TempDir,
    /// Which file of the relation it is.
    segment: u32,
    pages: Vec<Vec<u8>>,
    lsn: u64,
    checksums: bool,
    limit: u32,
    logged: BTreeSet<u32>,
    database_made: bool,
}

/// One backup of the file: its line in the index and its bytes.
struct Link {
    start: Lsn,
    member: Member,
    bytes: Vec<u8>,
}

impl World {
    fn new(blocks: u32, checksums: bool) -> Self {
        Self::of_segment(0, blocks, checksums)
    }

    fn of_segment(segment: u32, blocks: u32, checksums: bool) -> Self {
        let mut world = Self {
            directory: tempfile::tempdir().unwrap(),
            segment,
            pages: Vec::new(),
            lsn: 1000,
            checksums,
            limit: NO_LIMIT,
            logged: BTreeSet::new(),
            database_made: false,
        };
        world.happen(&Event::Extend(blocks));
        world
    }

    /// The relation's block with which the file begins.
    fn first(&self) -> u32 {
        self.segment * BLOCKS_PER_FILE
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("16384")
    }

    /// A page that a record at this position made.
    fn page(&self, block: u32, lsn: u64, seed: u64) -> Vec<u8> {
        let mut page = vec![0; BLOCK];
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[14..16].copy_from_slice(&8000u16.to_le_bytes());
        page[100..108].copy_from_slice(&seed.to_le_bytes());
        self.seal(block, &mut page);
        page
    }

    fn seal(&self, block: u32, page: &mut [u8]) {
        if self.checksums {
            let sum = checksum::page_checksum(page, self.first() + block);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn happen(&mut self, event: &Event) {
        self.lsn += 10;
        let blocks = self.pages.len() as u32;
        match *event {
            Event::Change(block) if block < blocks => {
                self.pages[block as usize] = self.page(block, self.lsn, self.lsn);
                self.logged.insert(block);
            }
            Event::Mark(block) if block < blocks => {
                // Zeros have no rows, and with checksums the mark is logged.
                let mut page = self.pages[block as usize].clone();
                if crate::postgres::page::is_new(&page) {
                    return;
                }
                page[10] |= 4;
                if self.checksums {
                    page[4..8].copy_from_slice(&(self.lsn as u32).to_le_bytes());
                }
                self.logged.insert(block);
                self.seal(block, &mut page);
                self.pages[block as usize] = page;
            }
            Event::Extend(count) => {
                for block in blocks..blocks + count {
                    let page = self.page(block, self.lsn, u64::from(block));
                    self.pages.push(page);
                    self.logged.insert(block);
                }
            }
            Event::ExtendByZeros(count) => {
                let length = (blocks + count) as usize;
                self.pages.resize(length, vec![0; BLOCK]);
            }
            Event::Truncate(length) if length < blocks => {
                self.pages.truncate(length as usize);
                self.limit = self.limit.min(length);
            }
            Event::Replace(length) => {
                self.pages = (0..length).map(|b| self.page(b, 7, self.lsn)).collect();
                self.database_made = true;
                std::fs::remove_file(self.path()).unwrap();
            }
            Event::CopyBack => {
                // WAL knows nothing of it, and need not.
                std::fs::remove_file(self.path()).unwrap();
            }
            Event::Damage(block) if block < blocks && self.checksums => {
                // Only checksums find it, and only where the page is read.
                self.pages[block as usize][4000] ^= 0x40;
                self.logged.insert(block);
            }
            _ => {}
        }
        self.write();
    }

    fn write(&self) {
        let file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path())
            .unwrap();
        file.set_len((self.pages.len() * BLOCK) as u64).unwrap();
        file.write_all_at(&self.pages.concat(), 0).unwrap();
    }

    /// Takes a backup of the file, on top of `parent`.
    fn take(&mut self, parent: Option<&Link>, by_summaries: bool) -> Link {
        self.lsn += 10;
        let metadata = std::fs::metadata(self.path()).unwrap();
        let path = match self.segment {
            0 => "base/5/16384".to_owned(),
            segment => format!("base/5/16384.{segment}"),
        };
        let mut member = scan::member(Path::new(&path), &metadata).unwrap();
        member.kind = MemberKind::File;
        member.size = metadata.len();
        member.identity = Some(scan::identity(&metadata));
        let mut found = Found {
            member,
            source: self.path(),
            basis: Basis::Nothing,
        };
        if let Some(parent) = parent {
            let comparison = Comparison {
                start: parent.start,
                rule: self.rule(by_summaries),
                block_size: BLOCK as u32,
                blocks_per_file: BLOCKS_PER_FILE,
            };
            let relation = Comparison::applies_to(&found).unwrap();
            let parent = parent.member.clone();
            found.basis = comparison.basis(&relation, found.member.size, parent);
        }
        let (limit, logged) = (NO_LIMIT, BTreeSet::new());
        (self.limit, self.logged, self.database_made) = (limit, logged, false);
        let start = Lsn(self.lsn);
        let pages = Pages {
            block_size: BLOCK as u32,
            blocks_per_file: BLOCKS_PER_FILE,
            checksums: self.checksums,
            backup_start: start,
        };
        let mut stored = Vec::new();
        let sink = |bytes: bytes::Bytes| {
            stored.extend_from_slice(&bytes);
            Ok(())
        };
        let mut pack = PackWriter::new(Compression::default(), sink).unwrap();
        let passed = |_| Ok(());
        if file::read_into(&mut pack, &found, pages, &passed)
            .unwrap()
            .is_none()
        {
            let read = crate::backup::file::read_into(&mut pack, found, pages, &passed);
            read.unwrap().unwrap();
        }
        let member = pack.finish().unwrap().members.remove(0);
        let plain = codec::decode(&stored, 1 << 30).unwrap();
        let first = member.offset as usize;
        let bytes = plain[first..first + member.size as usize].to_vec();
        Link {
            start,
            member,
            bytes,
        }
    }

    fn rule(&self, by_summaries: bool) -> Rule {
        if !by_summaries {
            return Rule::PageLsn {
                every_change_is_logged: self.checksums,
            };
        }
        let first = self.first();
        let limit = match self.limit {
            NO_LIMIT => NO_LIMIT,
            limit => first + limit,
        };
        let logged = self.logged.iter().map(|block| first + block).collect();
        let mut entries = vec![([1663, 5, 16384, 0, limit], logged)];
        if self.database_made {
            entries.push(([1663, 5, 0, 0, 0], BTreeSet::new()));
        }
        let mut changes = BlockChanges::default();
        changes.add(&encode(&entries)).unwrap();
        Rule::WalSummaries(changes)
    }
}

/// What the links, oldest first, make together.
fn combine(links: &[Link]) -> Vec<Vec<u8>> {
    let newest = links.last().unwrap();
    let length = newest.member.target_size(BLOCK as u32) / BLOCK as u64;
    (0..length as u32)
        .map(|block| {
            for link in links.iter().rev() {
                let Some(increment) = &link.member.increment else {
                    let at = block as usize * BLOCK;
                    let page = link.bytes.get(at..at + BLOCK);
                    return page.map_or(vec![0; BLOCK], <[u8]>::to_vec);
                };
                let header = IncrementalHeader::parse(&link.bytes, BLOCKS_PER_FILE).unwrap();
                assert_eq!(runs(&header.blocks), increment.blocks);
                if let Ok(at) = header.blocks.binary_search(&block) {
                    let size = IncrementalHeader::size(header.blocks.len(), BLOCK as u32);
                    let at = size as usize + at * BLOCK;
                    return link.bytes[at..at + BLOCK].to_vec();
                }
                if block >= header.truncation_block_length {
                    break;
                }
            }
            vec![0; BLOCK]
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_to_a_file_its_chain_makes_the_same_bytes(
        segment in 0u32..2, blocks in 1u32..40, checksums: bool, by_summaries: bool,
        links in prop::collection::vec(prop::collection::vec(event(), 0..6), 1..5)
    ) {
        let mut world = World::of_segment(segment, blocks, checksums);
        let mut chain = vec![world.take(None, false)];
        for events in &links {
            events.iter().for_each(|event| world.happen(event));
            let link = world.take(chain.last(), by_summaries);
            chain.push(link);
            let combined = combine(&chain);
            prop_assert_eq!(combined.len(), world.pages.len());
            for (block, (made, is)) in combined.iter().zip(&world.pages).enumerate() {
                prop_assert!(made == is, "block {} after {:?}", block, events);
            }
        }
    }
}

#[test]
fn of_an_untouched_file_no_block_is_stored_and_of_one_that_mostly_changed_all() {
    for (checksums, by_summaries) in [(true, false), (false, false), (true, true)] {
        let mut world = World::new(30, checksums);
        let full = world.take(None, false);
        let idle = world.take(Some(&full), by_summaries);
        assert_eq!(idle.bytes.len(), 12);
        world.happen(&Event::Change(3));
        let one = world.take(Some(&idle), by_summaries);
        assert_eq!(one.bytes.len(), 2 * BLOCK);
        assert_eq!(one.member.path, "base/5/INCREMENTAL.16384");
        (0..28).for_each(|block| world.happen(&Event::Change(block)));
        let whole = world.take(Some(&one), by_summaries);
        assert_eq!(
            (whole.bytes.len(), whole.member.increment),
            (30 * BLOCK, None)
        );
    }
}

#[test]
fn without_page_checksums_pages_that_were_marked_all_visible_are_copied() {
    let mut world = World::new(20, false);
    let full = world.take(None, false);
    world.happen(&Event::Mark(7));
    let link = world.take(Some(&full), false);
    assert_eq!(link.member.increment.unwrap().blocks, [[7, 1]]);
}

#[test]
fn a_damaged_page_is_copied_and_marked_and_copied_once_more_when_it_has_healed() {
    let mut world = World::of_segment(1, 20, true);
    let full = world.take(None, false);
    let sound = world.pages.clone();
    world.happen(&Event::Damage(4));
    let damaged = world.take(Some(&full), false);
    assert_eq!(damaged.member.damaged_blocks, [BLOCKS_PER_FILE + 4]);
    assert_eq!(damaged.member.increment.as_ref().unwrap().blocks, [[4, 1]]);
    world.pages = sound;
    world.write();
    let healed = world.take(Some(&damaged), false);
    assert!(healed.member.damaged_blocks.is_empty());
    assert_eq!(healed.member.increment.unwrap().blocks, [[4, 1]]);
}
