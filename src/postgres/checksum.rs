//! Checksums of data pages, computed and judged as PostgreSQL's own base backup does.
//!
//! Facts: `src/include/storage/checksum_impl.h` (the 32 base offsets, the mixing and the
//! reduction), the page header in `bufpage.h`, and the rules of `sendFile` in
//! `src/backend/backup/basebackup.c`. Which files consist of pages is `layout`'s knowledge,
//! whether checksums are on is `control`'s.

use super::Lsn;

/// Running sums a page is spread over.
const LANES: usize = 32;
/// Bytes that one step of all lanes takes.
const ROW: usize = LANES * 4;
/// The multiplier of the FNV-1a hash.
const FNV_PRIME: u32 = 16_777_619;
/// Where the page header keeps the checksum.
const CHECKSUM_AT: usize = 8;
/// Where it keeps `pd_upper`, which is 0 on a page that was never initialised.
const UPPER_AT: usize = 14;

/// `checksumBaseOffsets`: where each lane starts.
#[rustfmt::skip]
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F_36E9, 0xB852_5960, 0x02AB_50AA, 0x1DE6_6D2A, 0x79FF_467A, 0x9BB9_F8A3, 0x217E_7CD2,
    0x83E1_3D2C, 0xF8D4_474F, 0xE39E_B970, 0x42C6_AE16, 0x9932_16FA, 0x7B09_3B5D, 0x98DA_FF3C,
    0xF718_902A, 0x0B1C_9CDB, 0xE58F_764B, 0x1876_36BC, 0x5D7B_3BB1, 0xE73D_E7DE, 0x92BE_C979,
    0xCCA6_C0B2, 0x304A_0979, 0x85AA_43D4, 0x7831_25BB, 0x6CA8_EAA2, 0xE407_EAC6, 0x4B5C_FC3E,
    0x9FBF_8C76, 0x15CA_20BE, 0xF2CA_9FD3, 0x959B_D756,
];

/// What a page turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageVerdict {
    /// Its checksum is right.
    Good,
    /// All zeros: the relation was extended and the page not yet written. Fine.
    New,
    /// Not initialised, and yet not all zeros: report it.
    NewButNotZero,
    /// Changed since the backup began: it may be torn, and WAL brings it back whole.
    SkippedByLsn,
    /// The checksum is wrong. Read the page once more before reporting it: the read may have
    /// been torn.
    Bad {
        /// What the content gives.
        expected: u16,
        /// What the page says.
        found: u16,
    },
    /// Not of a page's size: the file ends inside a page. PostgreSQL verifies nothing there.
    Partial,
}

/// The checksum of a page, never 0. Its own two bytes at 8 count as zeros.
///
/// `page` has the cluster's block size, a multiple of 128 bytes; `absolute_block` counts from
/// the relation's start: segment number x blocks a segment + block in segment.
pub fn page_checksum(page: &[u8], absolute_block: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW>();
    let mut sums = BASE_OFFSETS;
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        first[CHECKSUM_AT] = 0;
        first[CHECKSUM_AT + 1] = 0;
        mix_row(&mut sums, &first);
        for row in rest {
            mix_row(&mut sums, row);
        }
    }
    for _ in 0..2 {
        mix_row(&mut sums, &[0; ROW]);
    }
    let folded = sums.into_iter().fold(0, |all, sum| all ^ sum) ^ absolute_block;
    // 65535, so that the result fits 16 bits and is never 0.
    (folded % 65_535 + 1) as u16
}

/// One step of all lanes. The lanes do not depend on each other: it compiles to vectors.
#[inline(always)]
fn mix_row(sums: &mut [u32; LANES], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

/// Judges one page of a relation's file, in a backup that began at `backup_start`.
///
/// Call it only while checksums are on; `page` must have the cluster's block size.
pub fn verify_page(page: &[u8], absolute_block: u32, backup_start: Lsn) -> PageVerdict {
    if page.len() < ROW || !page.len().is_multiple_of(ROW) {
        return PageVerdict::Partial;
    }
    let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let u32_at = |at: usize| u64::from(u16_at(at)) | u64::from(u16_at(at + 2)) << 16;
    if u16_at(UPPER_AT) == 0 {
        return match page.iter().all(|byte| *byte == 0) {
            true => PageVerdict::New,
            false => PageVerdict::NewButNotZero,
        };
    }
    // Two words, the high one first, each in the machine's order.
    let lsn = Lsn(u32_at(0) << 32 | u32_at(4));
    if lsn >= backup_start {
        return PageVerdict::SkippedByLsn;
    }
    let (expected, found) = (page_checksum(page, absolute_block), u16_at(CHECKSUM_AT));
    if expected == found {
        PageVerdict::Good
    } else {
        PageVerdict::Bad { expected, found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::control::ControlFile;
    use crate::postgres::layout::RelationFile;
    use crate::postgres::testing::Server;
    use proptest::prelude::*;
    use std::path::{Path, PathBuf};

    /// Every relation file of a data directory.
    fn relation_files(data: &Path) -> Vec<(PathBuf, RelationFile)> {
        let mut found = Vec::new();
        let mut open = vec![data.join("base"), data.join("global")];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if let Some(file) = RelationFile::parse(path.strip_prefix(data).unwrap()) {
                    found.push((path, file));
                }
            }
        }
        found
    }

    #[test]
    fn every_page_of_a_live_cluster_is_good_and_a_flipped_bit_is_found_as_pg_checksums_finds_it() {
        let mut server = Server::start();
        server.sql(
            "create table t as select g, md5(g::text) from generate_series(1, 20000) g; \
             create index on t(g)",
        );
        let node = server.sql("select pg_relation_filepath('t')");
        server.stop();
        let control = ControlFile::read(&server.data()).unwrap();
        assert!(control.data_checksums);
        let (mut good, mut new) = (0, 0);
        for (path, file) in relation_files(&server.data()) {
            let content = std::fs::read(&path).unwrap();
            let first = file.segment * control.relation_segment_blocks;
            for (page, block) in content.chunks(control.block_size as usize).zip(first..) {
                match verify_page(page, block, Lsn(u64::MAX)) {
                    PageVerdict::Good => good += 1,
                    PageVerdict::New => new += 1,
                    other => panic!("{} block {block}: {other:?}", path.display()),
                }
            }
        }
        assert!(good > 500, "{good} good, {new} new");

        let data = server.data();
        let data = data.to_string_lossy();
        server.run("pg_checksums", &["--check", "-D", &data]);
        let path = server.data().join(node);
        let mut content = std::fs::read(&path).unwrap();
        content[3 * 8192 + 5000] ^= 0x10;
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        std::io::Write::write_all(&mut file.unwrap(), &content).unwrap();
        let verdict = verify_page(&content[3 * 8192..4 * 8192], 3, Lsn(u64::MAX));
        let PageVerdict::Bad { expected, found } = verdict else {
            panic!("{verdict:?}")
        };
        let said = server.try_run("pg_checksums", &["--check", "-D", &data]);
        let said = said.unwrap_err();
        assert!(
            said.contains(&format!(
                "block 3: calculated checksum {expected:X} but block contains {found:X}"
            )),
            "{said}"
        );
    }

    #[test]
    fn a_page_is_judged_by_its_header_first() {
        let mut page = vec![0; 8192];
        assert_eq!(verify_page(&page, 0, Lsn(1)), PageVerdict::New);
        page[8191] = 1;
        assert_eq!(verify_page(&page, 0, Lsn(1)), PageVerdict::NewButNotZero);
        page[UPPER_AT] = 1;
        page[0] = 2; // The high half: 2/0.
        page[4] = 1;
        let at = Lsn(0x2_0000_0001);
        assert_eq!(verify_page(&page, 0, at), PageVerdict::SkippedByLsn);
        let verdict = verify_page(&page, 0, Lsn(at.0 + 1));
        assert!(matches!(verdict, PageVerdict::Bad { found: 0, .. }));
        assert_eq!(verify_page(&page[..100], 0, at), PageVerdict::Partial);
        assert_eq!(verify_page(&[], 0, at), PageVerdict::Partial);
    }

    /// The same by the book: one word after the other.
    fn slowly(page: &[u8], block: u32) -> u16 {
        let mut sums = BASE_OFFSETS;
        let mix = |sum: u32, value: u32| {
            let mixed = sum ^ value;
            mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
        };
        for (i, word) in page.chunks_exact(4).enumerate() {
            let mut word = [word[0], word[1], word[2], word[3]];
            if i == 2 {
                (word[0], word[1]) = (0, 0);
            }
            sums[i % 32] = mix(sums[i % 32], u32::from_le_bytes(word));
        }
        for sum in &mut sums {
            *sum = mix(mix(*sum, 0), 0);
        }
        ((sums.iter().fold(0, |a, b| a ^ b) ^ block) % 65_535 + 1) as u16
    }

    proptest! {
        #[test]
        fn the_wide_way_gives_what_the_plain_way_gives(
            seed in proptest::collection::vec(any::<u8>(), 256), power in 10u32..=15, block: u32
        ) {
            let page: Vec<u8> = seed.iter().cycle().take(1 << power).copied().collect();
            let sum = page_checksum(&page, block);
            prop_assert_eq!(sum, slowly(&page, block));
            let mut same = page.clone();
            same[8] ^= 0xFF;
            prop_assert_eq!(page_checksum(&same, block), sum);
        }

        #[test]
        fn no_length_panics(page in proptest::collection::vec(any::<u8>(), 0..400), start: u64) {
            let _ = verify_page(&page, 0, Lsn(start));
            let _ = page_checksum(&page, 0);
        }
    }
}
