//! What the packs of a backup add up to.

use super::packer::DonePack;
use crate::repository::marker::StoredObject;

/// Damaged pages that the marker names; the indexes name all.
const NAMED_DAMAGE: usize = 1000;

/// What the packs of a backup add up to.
#[derive(Debug, Default)]
pub struct Sums {
    /// All objects so far.
    pub objects: Vec<StoredObject>,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub plain_bytes: u64,
    /// Bytes of the files that a restore makes of them.
    pub whole_bytes: u64,
    /// Pages whose checksum was wrong, as `path: block`.
    pub damaged_pages: Vec<String>,
    /// How many there were.
    pub damaged_page_count: u64,
    /// Packs of an interrupted backup, and their bytes as stored.
    pub taken_over: (u64, u64),
}

impl Sums {
    /// Adds a finished pack whose pages were just checked, and tells of damaged ones.
    pub fn add_checked(&mut self, pack: &DonePack, block_size: u32) {
        for file in &pack.files {
            let path = file.member.target_path();
            for block in &file.member.damaged_blocks {
                tracing::error!("page checksum is wrong: {path} block {block}");
            }
        }
        self.add(pack, block_size);
    }

    /// Adds a finished pack.
    pub fn add(&mut self, pack: &DonePack, block_size: u32) {
        if pack.taken_over {
            self.taken_over.0 += 1;
            self.taken_over.1 += pack.objects[0].size;
        }
        self.objects.extend(pack.objects.iter().cloned());
        for file in &pack.files {
            let path = file.member.target_path();
            self.files += 1;
            self.plain_bytes += file.member.size;
            self.whole_bytes += file.member.target_size(block_size);
            self.damaged_page_count += file.damaged;
            for block in &file.member.damaged_blocks {
                if self.damaged_pages.len() < NAMED_DAMAGE {
                    self.damaged_pages.push(format!("{path}: block {block}"));
                }
            }
        }
    }
}
