//! The order in which the files of a backup lie in its packs, and the packs in its marker: a
//! directory's files by their names, then its directories, one after the other. Readers join
//! the indexes of a chain like sorted lists, and never hold one of them.

use std::cmp::Ordering;

/// Compares two files by their paths. An incremental file has the place of the file it is of:
/// pass [`Member::target_path`](super::index::Member::target_path).
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('/').peekable(), b.split('/').peekable());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(one), Some(other)) => {
                let directories = (a.peek().is_some(), b.peek().is_some());
                // A name of this directory comes before all that lies deeper.
                let order = directories.0.cmp(&directories.1).then(one.cmp(other));
                if order.is_ne() {
                    return order;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_directory_come_before_its_directories() {
        let sorted = [
            "PG_VERSION",
            "postgresql.conf",
            "base/1/1259",
            "base/1/1259.1",
            "base/1/1259_fsm",
            "base/1/PG_VERSION",
            "base/16384/2619",
            "base/5/1259",
            "global/1262",
            "pg_tblspc/16385/PG_15_2/5/16386",
            "pg_xact/0000",
        ];
        let mut shuffled = sorted;
        shuffled.reverse();
        shuffled.sort_by(|a, b| compare(a, b));
        assert_eq!(shuffled, sorted);
        assert!(compare("a/b", "a/b").is_eq());
    }
}
