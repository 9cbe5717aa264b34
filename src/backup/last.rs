//! The last pack of a backup: what is read when all else is stored.

use std::path::Path;

use super::packer::{DonePack, Packer};
use super::{file, scan};
use crate::error::{IoContext, Result};
use crate::postgres::layout;

/// `pg_control`, `backup_label` and `tablespace_map`, byte for byte.
pub fn pack(
    packer: &Packer,
    data_directory: &Path,
    control: &[u8],
    label: &[u8],
    tablespace_map: &[u8],
) -> Result<DonePack> {
    let control_path = data_directory.join(layout::CONTROL_FILE);
    let metadata = std::fs::metadata(&control_path).on("look at", &control_path)?;
    let mut members = vec![
        (layout::CONTROL_FILE, control),
        (layout::BACKUP_LABEL, label),
    ];
    if !tablespace_map.is_empty() {
        members.push((layout::TABLESPACE_MAP, tablespace_map));
    }
    packer.pack(1 << 20, |pack, read| {
        for (path, content) in members {
            let mut member = scan::member(Path::new(path), &metadata)?;
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
