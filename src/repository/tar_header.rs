//! The headers of a pack's tar stream: ustar, with pax records where a name or a size needs them.

use super::index::{Member, MemberKind};
use crate::digest::PlainDigest;
use crate::error::{Error, Result};

/// tar counts in blocks of this many bytes.
pub const TAR_BLOCK: u64 = 512;
/// The largest size that a ustar header's eleven octal digits hold.
const LARGEST_USTAR_SIZE: u64 = 0o77_777_777_777;

/// What comes before the bytes of a member, in whole tar blocks. `number` tells members apart
/// whose names are too long for readers that do not know pax.
pub fn of(member: &Member, number: usize) -> Result<Vec<u8>> {
    let mut records = Vec::new();
    let mut header = tar::Header::new_ustar();
    let directory = member.kind == MemberKind::Directory;
    let path = if directory {
        format!("{}/", member.path)
    } else {
        member.path.clone()
    };
    if header.set_path(&path).is_err() {
        pax_record(&mut records, "path", &path);
        // Readers that do not know pax still get a name that cannot clash.
        fallback_name(&mut header, &path, number)?;
    }
    if member.size > LARGEST_USTAR_SIZE {
        pax_record(&mut records, "size", &member.size.to_string());
    }
    header.set_size(if member.size > LARGEST_USTAR_SIZE {
        0
    } else {
        member.size
    });
    header.set_mode(member.mode);
    header.set_mtime(member.mtime.as_second().max(0) as u64);
    header.set_entry_type(if directory {
        tar::EntryType::Directory
    } else {
        tar::EntryType::Regular
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    let mut bytes = Vec::with_capacity(TAR_BLOCK as usize);
    if !records.is_empty() {
        let mut extended = tar::Header::new_ustar();
        fallback_name(&mut extended, "pax-header", number)?;
        extended.set_entry_type(tar::EntryType::XHeader);
        extended.set_size(records.len() as u64);
        extended.set_mode(0o600);
        extended.set_cksum();
        bytes.extend_from_slice(extended.as_bytes());
        bytes.extend_from_slice(&records);
        bytes.resize(bytes.len().next_multiple_of(TAR_BLOCK as usize), 0);
    }
    bytes.extend_from_slice(header.as_bytes());
    Ok(bytes)
}

fn fallback_name(header: &mut tar::Header, path: &str, number: usize) -> Result<()> {
    let digest = PlainDigest::of(path.as_bytes());
    header
        .set_path(format!("long-name-{number}-{digest}"))
        .map_err(|error| Error::failed("cannot write a tar header").because(error))
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself (POSIX.1-2001, pax).
fn pax_record(records: &mut Vec<u8>, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_count_their_own_length() {
        for length in [1, 90, 91, 92, 93, 94, 985, 986, 987, 988, 989, 990] {
            let mut records = Vec::new();
            pax_record(&mut records, "path", &"x".repeat(length));
            let text = String::from_utf8(records).unwrap();
            let counted: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(counted, text.len());
        }
    }
}
