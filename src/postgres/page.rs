//! What the header of a data page says.
//!
//! Facts: `PageHeaderData` in `src/include/storage/bufpage.h`; the LSN is two words, the high
//! one first, each in the machine's order. A page has the cluster's block size.

use super::Lsn;

/// `PD_ALL_VISIBLE`: all tuples of the page are visible to everyone.
const ALL_VISIBLE: u8 = 0x04;
/// Where the flags are.
const FLAGS_AT: usize = 10;
/// Where `pd_upper` is, which is 0 on a page that was never initialised.
const UPPER_AT: usize = 14;

/// The position of the WAL record that changed it last.
pub fn lsn(page: &[u8]) -> Lsn {
    let word = |at: usize| {
        let bytes = page.get(at..at + 4).and_then(|b| b.try_into().ok());
        u64::from(u32::from_le_bytes(bytes.unwrap_or_default()))
    };
    Lsn(word(0) << 32 | word(4))
}

/// Whether it was never initialised (`PageIsNew`), all zeros or not.
pub fn is_new(page: &[u8]) -> bool {
    page.get(UPPER_AT..UPPER_AT + 2)
        .is_none_or(|upper| upper == [0, 0])
}

/// Whether it is marked as visible to everyone. Where hints are not logged (neither page
/// checksums nor `wal_log_hints`), that mark is set without a new [`lsn`].
pub fn is_all_visible(page: &[u8]) -> bool {
    page.get(FLAGS_AT)
        .is_some_and(|flags| flags & ALL_VISIBLE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_says_its_position_and_flags() {
        let mut page = vec![0; 8192];
        assert!(is_new(&page) && !is_all_visible(&page));
        page[..8].copy_from_slice(&[2, 0, 0, 0, 0x28, 0, 0, 1]);
        page[10] = 0x05;
        page[14] = 1;
        assert_eq!(lsn(&page), Lsn(0x2_0100_0028));
        assert!(!is_new(&page) && is_all_visible(&page));
    }

    proptest! {
        #[test]
        fn no_length_panics(page in proptest::collection::vec(any::<u8>(), 0..30)) {
            let _ = (lsn(&page), is_new(&page), is_all_visible(&page));
        }
    }
}
