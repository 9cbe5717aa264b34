//! WAL summaries, `pg_wal/summaries/*.summary` (17 and later): which blocks of which relations a
//! stretch of WAL changed, and what was created or truncated.
//!
//! Facts: `src/common/blkreftable.c` (the format), `src/backend/backup/walsummary.c` (names),
//! `src/backend/postmaster/walsummarizer.c` (what is recorded of databases). All integers
//! little-endian. Only main forks are kept: the others are always copied whole.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use roaring::RoaringBitmap;

use super::history::TimelineHistory;
use super::layout::RelationFile;
use super::{FormatError, Lsn, TimelineId};

const WHAT: &str = "WAL summary";
const MAGIC: u32 = 0x652b_137b;
/// Blocks that one chunk covers.
const CHUNK_BLOCKS: u32 = 1 << 16;
/// A chunk with so many 16-bit words is a bitmap; with fewer, each word is a block.
const BITMAP_WORDS: usize = 4096;
/// `limit_block` of a fork that was neither made nor truncated.
const NO_LIMIT: u32 = u32::MAX;
const MAIN_FORK: u32 = 0;
/// So many relations are kept in mind, at about 150 bytes each: it bounds the memory of a backup.
const MOST_RELATIONS: usize = 500_000;

/// What a summary's file name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SummaryName {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first position that it covers.
    pub start: Lsn,
    /// The first that it does not.
    pub end: Lsn,
}

impl fmt::Display for SummaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (timeline, start, end) = (self.timeline.get(), self.start.0, self.end.0);
        write!(f, "{timeline:08X}{start:016X}{end:016X}.summary")
    }
}

impl FromStr for SummaryName {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        let wrong = || FormatError::new(WHAT, format!("{name:?} is not its name"));
        let digits = name.strip_suffix(".summary").ok_or_else(wrong)?;
        if digits.len() != 40
            || !digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
        {
            return Err(wrong());
        }
        let number = |at: usize, length: usize| {
            u64::from_str_radix(&digits[at..at + length], 16).map_err(|_| wrong())
        };
        let timeline = TimelineId::new(number(0, 8)? as u32).map_err(|_| wrong())?;
        let (start, end) = (Lsn(number(8, 16)?), Lsn(number(24, 16)?));
        if start >= end {
            return Err(wrong());
        }
        Ok(Self {
            timeline,
            start,
            end,
        })
    }
}

/// Those of `there` that a recovery along `history` from `start` to `end` passes; or the first
/// position that none of them covers.
pub fn covering(
    there: &[SummaryName],
    history: &TimelineHistory,
    start: Lsn,
    end: Lsn,
) -> Result<Vec<SummaryName>, Lsn> {
    let mut wanted = Vec::new();
    for span in history.spans() {
        let from = span.start.max(start);
        let to = span.end.map_or(end, |switch| switch.min(end));
        if from >= to {
            continue;
        }
        let mut own: Vec<&SummaryName> = there
            .iter()
            .filter(|name| name.timeline == span.timeline && name.end > from && name.start < to)
            .collect();
        own.sort();
        let mut reached = from;
        for name in own {
            if name.start > reached {
                break;
            }
            reached = reached.max(name.end);
            wanted.push(*name);
        }
        if reached < to {
            return Err(reached);
        }
    }
    Ok(wanted)
}

/// What changed, summed up over any number of summaries.
#[derive(Debug, Default)]
pub struct BlockChanges {
    /// By tablespace, database and relation number.
    forks: HashMap<[u32; 3], ForkChanges>,
    /// By tablespace and database.
    databases: HashSet<[u32; 2]>,
}

/// What changed of the main fork of a relation.
#[derive(Debug, Default, PartialEq)]
pub struct ForkChanges {
    /// The fewest blocks that it had meanwhile, if it was made (0) or truncated.
    pub limit_block: Option<u32>,
    /// Blocks that were changed, counted in the whole relation.
    pub blocks: RoaringBitmap,
}

impl BlockChanges {
    /// Whether a database was made or dropped in that tablespace: no file of it is what it was.
    pub fn database_was_made(&self, tablespace: u32, database: u32) -> bool {
        self.databases.contains(&[tablespace, database])
    }

    /// What changed of a relation, if anything did.
    pub fn of(&self, relation: &RelationFile) -> Option<&ForkChanges> {
        self.forks
            .get(&[relation.tablespace, relation.database, relation.relfilenode])
    }

    /// Adds what one summary says.
    ///
    /// # Errors
    /// Another magic number, a wrong checksum, an end inside an entry. What was added until then
    /// is no harm: more counts as changed.
    pub fn add(&mut self, summary: &[u8]) -> Result<(), FormatError> {
        let damaged = |why: &str| FormatError::new(WHAT, why);
        let (content, sum) = summary
            .split_last_chunk::<4>()
            .ok_or_else(|| damaged("it is too short"))?;
        if crc32c::crc32c(content) != u32::from_le_bytes(*sum) {
            return Err(damaged("its checksum does not match its content"));
        }
        let mut rest = Words(content);
        if rest.next_u32()? != MAGIC {
            return Err(damaged("it begins with another magic number"));
        }
        loop {
            let [tablespace, database, relation] =
                [rest.next_u32()?, rest.next_u32()?, rest.next_u32()?];
            let [fork, limit, chunks] = [rest.next_u32()?, rest.next_u32()?, rest.next_u32()?];
            if [tablespace, database, relation, fork, limit, chunks] == [0; 6] {
                break;
            }
            if chunks > u32::MAX / CHUNK_BLOCKS + 1 {
                return Err(damaged("an entry has more chunks than a relation"));
            }
            let usage = rest.take_u16(chunks as usize)?;
            let mut changed = RoaringBitmap::new();
            for (number, usage) in (0..chunks).zip(usage) {
                let words = rest.take_u16(usize::from(usage))?;
                let first = number * CHUNK_BLOCKS;
                if words.len() == BITMAP_WORDS {
                    for (at, word) in (0..).zip(words) {
                        let bits = (0..16).filter(|bit| word >> bit & 1 == 1);
                        changed.extend(bits.map(|bit| first + at * 16 + bit));
                    }
                } else {
                    changed.extend(words.into_iter().map(|block| first + u32::from(block)));
                }
            }
            if fork != MAIN_FORK {
                continue;
            }
            if relation == 0 {
                self.databases.insert([tablespace, database]);
                continue;
            }
            let key = [tablespace, database, relation];
            if self.forks.len() >= MOST_RELATIONS && !self.forks.contains_key(&key) {
                return Err(damaged("more relations changed than are kept in mind"));
            }
            let known = self.forks.entry(key).or_default();
            known.blocks |= changed;
            if limit != NO_LIMIT {
                known.limit_block = Some(known.limit_block.map_or(limit, |l| l.min(limit)));
            }
        }
        match rest.0.is_empty() {
            true => Ok(()),
            false => Err(damaged("something follows its end")),
        }
    }
}

/// Little-endian numbers, one after the other.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next_u32(&mut self) -> Result<u32, FormatError> {
        let (word, rest) = self.0.split_first_chunk::<4>().ok_or_else(ends_early)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*word))
    }

    fn take_u16(&mut self, count: usize) -> Result<Vec<u16>, FormatError> {
        let (words, rest) = self.0.split_at_checked(2 * count).ok_or_else(ends_early)?;
        self.0 = rest;
        let (words, _) = words.as_chunks::<2>();
        Ok(words.iter().map(|word| u16::from_le_bytes(*word)).collect())
    }
}

fn ends_early() -> FormatError {
    FormatError::new(WHAT, "it ends inside an entry")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::postgres::layout::Fork;
    use proptest::prelude::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn name(number: u32, start: u64, end: u64) -> SummaryName {
        SummaryName {
            timeline: timeline(number),
            start: Lsn(start),
            end: Lsn(end),
        }
    }

    #[test]
    fn names_are_those_that_postgresql_gives() {
        let text = "0000000100000002030000280000000203111111.summary";
        assert_eq!(
            text.parse::<SummaryName>().unwrap(),
            name(1, 0x2_0300_0028, 0x2_0311_1111)
        );
        assert_eq!(name(1, 0x2_0300_0028, 0x2_0311_1111).to_string(), text);
        for wrong in [
            "temp.summary",
            "0000000100000002030000280000000203000028.summary",
            "0000000000000002030000280000000203111111.summary",
            "0000000100000002030000280000000203111111",
            "000000010000000203000028000000020311111g.summary",
        ] {
            assert!(wrong.parse::<SummaryName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn summaries_cover_a_stretch_without_a_hole_on_the_timelines_that_were_lived() {
        let first = TimelineHistory::first();
        let there = [name(1, 10, 20), name(1, 20, 35), name(1, 40, 50)];
        let of = |start, end| covering(&there, &first, Lsn(start), Lsn(end));
        assert_eq!(of(12, 30).unwrap(), there[..2]);
        assert_eq!(of(20, 35).unwrap(), there[1..2]);
        assert_eq!(of(12, 45), Err(Lsn(35)));
        assert_eq!(of(5, 15), Err(Lsn(5)));
        assert_eq!(of(45, 60), Err(Lsn(50)));

        let second = TimelineHistory::parse(timeline(2), b"1\t0/1E\tx\n").unwrap();
        let there = [name(1, 10, 35), name(2, 30, 40)];
        let of = |end| covering(&there, &second, Lsn(12), Lsn(end));
        assert_eq!(of(40).unwrap(), there);
        assert_eq!(of(41), Err(Lsn(40)));
    }

    /// As PostgreSQL writes it: tablespace, database, relation, fork, limit; and the blocks.
    pub(crate) type Entry = ([u32; 5], BTreeSet<u32>);

    pub(crate) fn encode(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        for (head, blocks) in entries {
            let chunks = blocks.last().map_or(0, |last| last / CHUNK_BLOCKS + 1);
            for number in head.iter().chain([&chunks]) {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            let words: Vec<Vec<u16>> = (0..chunks)
                .map(|chunk| {
                    let first = chunk * CHUNK_BLOCKS;
                    let own = blocks.range(first..=first + (CHUNK_BLOCKS - 1));
                    let own: Vec<u16> = own.map(|block| (block - first) as u16).collect();
                    if own.len() < BITMAP_WORDS {
                        return own;
                    }
                    let mut bitmap = vec![0u16; BITMAP_WORDS];
                    for block in own {
                        bitmap[usize::from(block / 16)] |= 1 << (block % 16);
                    }
                    bitmap
                })
                .collect();
            let usage = words.iter().map(|words| words.len() as u16);
            for word in usage.chain(words.iter().flatten().copied()) {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&[0; 24]);
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn relation(number: u32) -> RelationFile {
        RelationFile {
            kind: Fork::Main,
            relfilenode: number,
            segment: 0,
            tablespace: 1663,
            database: 5,
        }
    }

    #[test]
    fn later_summaries_add_to_earlier_ones_and_other_forks_do_not_count() {
        let mut changes = BlockChanges::default();
        let entry = |relation, fork, limit, blocks: &[u32]| {
            let blocks = blocks.iter().copied().collect();
            ([1663, 5, relation, fork, limit], blocks)
        };
        let one = encode(&[
            entry(10, 0, NO_LIMIT, &[1, 70_000]),
            entry(10, 2, 0, &[9]),
            ([1663, 7, 0, 0, 0], BTreeSet::new()),
        ]);
        changes.add(&one).unwrap();
        changes.add(&encode(&[entry(10, 0, 40, &[2])])).unwrap();
        changes.add(&encode(&[entry(10, 0, 60, &[3])])).unwrap();
        let fork = changes.of(&relation(10)).unwrap();
        assert_eq!(fork.limit_block, Some(40));
        assert_eq!(fork.blocks, RoaringBitmap::from_iter([1, 2, 3, 70_000]));
        assert!(changes.of(&relation(11)).is_none());
        assert!(changes.database_was_made(1663, 7) && !changes.database_was_made(1663, 5));
    }

    #[test]
    fn a_flipped_bit_and_a_missing_end_are_errors() {
        let whole = encode(&[([1663, 5, 10, 0, NO_LIMIT], [1, 2].into())]);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            assert!(BlockChanges::default().add(&damaged).is_err(), "{at}");
            assert!(BlockChanges::default().add(&whole[..at]).is_err(), "{at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_block_comes_back_however_dense_the_chunks_are(
            sparse in prop::collection::btree_set(0u32..300_000, 0..50),
            dense in prop::option::of((0u32..3, 4000u32..65_536)), limit: u32
        ) {
            let mut blocks = sparse;
            if let Some((chunk, count)) = dense {
                blocks.extend((0..count).map(|block| chunk * CHUNK_BLOCKS + block));
            }
            let mut changes = BlockChanges::default();
            changes.add(&encode(&[([1663, 5, 10, 0, limit], blocks.clone())])).unwrap();
            let fork = changes.of(&relation(10)).unwrap();
            prop_assert_eq!(&fork.blocks, &blocks.into_iter().collect::<RoaringBitmap>());
            prop_assert_eq!(fork.limit_block, (limit != NO_LIMIT).then_some(limit));
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let mut bytes = [&MAGIC.to_le_bytes()[..], &bytes].concat();
            let sum = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            let _ = BlockChanges::default().add(&bytes);
        }
    }
}
