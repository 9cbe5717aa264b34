//! Whether what arrived is what the server says it sent: its manifest names every file with
//! size and checksum, in the order in which it sent them.
//!
//! Memory: 8 bytes a file.

use std::io::Read;
use std::path::Path;

use super::belongs;
use crate::digest::PlainDigest;
use crate::error::{Error, Result};
use crate::postgres::layout::EntryKind;
use crate::postgres::manifest::{FileChecksum, ManifestSummary, read_manifest};

/// The files that arrived.
#[derive(Debug, Default)]
pub struct Agreement {
    files: Vec<u64>,
}

impl Agreement {
    /// One more, the next in the order of the archives.
    pub fn arrived(&mut self, path: &str, size: u64, crc32c: u32) {
        self.files.push(folded(path, size, crc32c));
    }

    /// Compares them with the server's manifest, which is read to its end.
    ///
    /// # Errors
    /// The first file that differs, by its path; a manifest that is damaged itself.
    pub fn check(&self, manifest: impl Read) -> Result<ManifestSummary> {
        let mut arrived = self.files.iter();
        let summary = read_manifest(manifest, |file| {
            if !belongs(&file.path, EntryKind::File) {
                return Ok(());
            }
            let crc32c = file.checksum.as_ref().and_then(FileChecksum::as_crc32c);
            let path = file.path.to_str();
            let told = path
                .zip(crc32c)
                .map(|(path, crc32c)| folded(path, file.size, crc32c));
            match told.is_some() && arrived.next().copied() == told {
                true => Ok(()),
                false => Err(differs(&file.path)),
            }
        })?;
        match arrived.next() {
            None => Ok(summary),
            Some(_) => Err(Error::failed(
                "the server sent files that its manifest does not name",
            )),
        }
    }
}

fn differs(path: &Path) -> Error {
    Error::failed(format!(
        "what arrived differs from the server's own manifest at {}",
        path.display()
    ))
    .hint("nothing of this backup is kept; take it again, and look at network and memory if it stays so")
}

/// Path, size and checksum as one number.
fn folded(path: &str, size: u64, crc32c: u32) -> u64 {
    let all = format!("{size} {crc32c} {path}");
    PlainDigest::of(all.as_bytes()).as_number() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SystemId;
    use crate::postgres::manifest::{ManifestVersion, ManifestWriter};
    use jiff::Timestamp;

    fn manifest(files: &[(&str, u64, u32)]) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), ManifestVersion::V2, SystemId(7)).unwrap();
        for (path, size, crc) in files {
            writer
                .file(path.as_bytes(), *size, Timestamp::UNIX_EPOCH, *crc)
                .unwrap();
        }
        writer.finish(&[]).unwrap()
    }

    #[test]
    fn a_file_that_differs_is_missing_or_is_not_named_is_an_error() {
        let files = [
            ("backup_label", 5, 1),
            ("base/5/1", 8192, 2),
            ("global/pg_control", 3, 4),
        ];
        let mut agreement = Agreement::default();
        for (path, size, crc) in files {
            agreement.arrived(path, size, crc);
        }
        let check = |files: &[(&str, u64, u32)]| {
            let checked = agreement.check(&manifest(files)[..]);
            checked.map_err(|error| error.what().to_owned())
        };
        assert_eq!(check(&files).unwrap().files, 3);
        // What we leave out is not missed.
        let [label, page, control] = files;
        check(&[label, page, ("pg_wal/x", 1, 1), control]).unwrap();
        for (other, at) in [
            (("base/5/1", 8192, 3), "base/5/1"),
            (("base/5/1", 8191, 2), "base/5/1"),
            (("base/5/2", 8192, 2), "base/5/2"),
        ] {
            let error = check(&[label, other, control]).unwrap_err();
            assert!(error.ends_with(&format!("at {at}")), "{error}");
        }
        assert!(
            check(&[label, control])
                .unwrap_err()
                .ends_with("global/pg_control")
        );
        assert!(check(&[label, page]).unwrap_err().contains("does not name"));
        assert!(
            check(&[label, page, control, ("x", 0, 0)])
                .unwrap_err()
                .ends_with("at x")
        );
        let mut damaged = manifest(&files);
        let at = damaged.len() - 10;
        damaged[at] ^= 1;
        assert!(agreement.check(&damaged[..]).is_err());
    }
}
