//! The last pack of a backup: what is read when all else is stored.

use std::path::Path;

use super::packer::{DonePack, Packer};
use super::{file, scan};
use crate::error::{IoContext, Result};
use crate::postgres::layout;
use crate::repository::index::Member;

/// `pg_control`, `backup_label` and `tablespace_map`, byte for byte.
pub fn pack<'a>(
    packer: &Packer,
    members: impl Iterator<Item = (Member, &'a [u8])>,
) -> Result<DonePack> {
    packer.pack(1 << 20, |pack, read| {
        for (mut member, content) in members {
            member.size = content.len() as u64;
            pack.begin_file(member)?;
            pack.write(content)?;
            pack.end_file(Vec::new())?;
            let crc32c = crc32c::crc32c(content);
            read.push(Some(file::FileRead { crc32c, damaged: 0 }));
        }
        Ok(())
    })
}

/// The same of a data directory; the files' modes and times are those of its `pg_control`.
pub fn of_files(
    packer: &Packer,
    data_directory: &Path,
    control: &[u8],
    label: &[u8],
    tablespace_map: &[u8],
) -> Result<DonePack> {
    let control_path = data_directory.join(layout::CONTROL_FILE);
    let metadata = std::fs::metadata(&control_path).on("look at", &control_path)?;
    let mut members = Vec::new();
    for (path, content) in [
        (layout::CONTROL_FILE, control),
        (layout::BACKUP_LABEL, label),
        (layout::TABLESPACE_MAP, tablespace_map),
    ] {
        // Without tablespaces there is no map.
        if !content.is_empty() {
            members.push((scan::member(Path::new(path), &metadata)?, content));
        }
    }
    pack(packer, members.into_iter())
}
