//! The two objects beside the packs: `backup_manifest`, whose files are those of the packs, and
//! the configuration that lay outside the data directory.

use std::io::BufReader;
use std::os::unix::ffi::OsStrExt;

use crate::postgres::manifest::read_manifest;
use crate::progress::Progress;
use crate::repository::bridge::ObjectReader;
use crate::repository::marker::{Marker, StoredObject};
use crate::repository::{codec, keys};
use crate::wal::object::Trouble;

use super::finding::{Finding, Kind};
use super::frames::HashedObject;
use super::members::FoldedFiles;
use super::{Backup, blocking, pack};

/// Configuration is text; what is larger is none.
const LARGEST_CONFIGURATION: u64 = 64 << 20;

/// Reads the manifest to its end. `packed` are the files of all packs; `None` if some of them
/// could not be read. Memory does not grow with the number of files.
pub(super) async fn check(
    backup: &Backup<'_>,
    packed: Option<FoldedFiles>,
    progress: &Progress,
) -> Vec<Finding> {
    let object = match backup.marker.object(keys::backup::MANIFEST) {
        Ok(object) => object,
        Err(error) => {
            let key = backup.marker_key();
            return vec![Finding::new(Kind::Inconsistent, key, error.what())];
        }
    };
    let key = backup.key(object);
    match compare(backup, object, packed, progress).await {
        Ok(found) => found.into_iter().collect(),
        Err(trouble) => vec![Finding::of_trouble(key, &trouble)],
    }
}

async fn compare(
    backup: &Backup<'_>,
    object: &StoredObject,
    packed: Option<FoldedFiles>,
    progress: &Progress,
) -> Result<Option<Finding>, Trouble> {
    let (key, object) = (backup.key(object), object.clone());
    let Some(stream) = backup.stream(&key).await? else {
        return Ok(Some(Finding::missing(key, &backup.marker.id)));
    };
    let reader = ObjectReader::new(stream);
    let (marker, progress) = (backup.marker.clone(), progress.clone());
    blocking(move || {
        let mut stored = HashedObject::new(reader);
        let read = read(&mut stored, &marker);
        let (found, bytes) = stored.finish()?;
        progress.add(bytes);
        if found != object.sha256 {
            let what = pack::other_digest(found, &object);
            return Ok(Some(Finding::new(Kind::Damaged, key, what)));
        }
        let differs = read.and_then(|manifest| match packed {
            Some(packed) => differs(manifest, packed),
            None => Ok(()),
        });
        let finding = |why| Finding::new(Kind::Inconsistent, key, why);
        Ok(differs.err().map(finding))
    })
    .await
}

/// What a manifest's files fold into, and how many of them have no CRC-32C.
type Manifest = (FoldedFiles, u64);

fn read(stored: &mut HashedObject, marker: &Marker) -> Result<Manifest, String> {
    let plain = codec::stream_decoder(stored).map_err(|error| error.to_string())?;
    let (mut folded, mut unsummed) = (FoldedFiles::default(), 0);
    let summary = read_manifest(BufReader::new(plain), |file| {
        let crc32c = file.checksum.and_then(|checksum| checksum.as_crc32c());
        unsummed += u64::from(crc32c.is_none());
        let path = file.path.as_os_str().as_bytes();
        folded.add(path, file.size, crc32c.unwrap_or_default());
        Ok(())
    });
    let summary = summary.map_err(|error| error.one_line())?;
    if summary.system_id.is_some_and(|id| id != marker.system_id) {
        return Err("it is of another system".to_owned());
    }
    let covers = summary.wal_ranges.iter().any(|range| {
        range.timeline == marker.timeline
            && range.start <= marker.start_lsn
            && range.end >= marker.stop_lsn
    });
    match covers {
        true => Ok((folded, unsummed)),
        false => Err("its WAL range is not that of the backup".to_owned()),
    }
}

fn differs((manifest, unsummed): Manifest, packed: FoldedFiles) -> Result<(), String> {
    let which = "`pg_verifybackup -n` on the restored directory names them";
    if manifest.count != packed.count {
        return Err(format!(
            "it names {} files, the packs hold {}: {which}",
            manifest.count, packed.count
        ));
    }
    if manifest.names != packed.names {
        return Err(format!(
            "it names other files, or other sizes, than the packs hold: {which}"
        ));
    }
    if unsummed == 0 && manifest.contents != packed.contents {
        return Err(format!(
            "it has other checksums than the files in the packs: {which}"
        ));
    }
    Ok(())
}

/// The configuration: that it opens, and holds the files that the marker names, in order.
pub(super) async fn check_configuration(backup: &Backup<'_>, progress: &Progress) -> Vec<Finding> {
    let mut findings = Vec::new();
    let named = &backup.marker.configuration_files;
    let Ok(object) = backup.marker.object(keys::backup::CONFIGURATION) else {
        if !named.is_empty() {
            let what = "it names files of configuration and no object that holds them";
            findings.push(Finding::new(Kind::Inconsistent, backup.marker_key(), what));
        }
        return findings;
    };
    if let Some(stored) = pack::small(backup, object, progress, &mut findings).await
        && let Err(why) = same_files(&stored, named)
    {
        findings.push(Finding::new(Kind::Inconsistent, backup.key(object), why));
    }
    findings
}

fn same_files(stored: &[u8], named: &[String]) -> Result<(), String> {
    let broken = |error: std::io::Error| error.to_string();
    let plain = codec::decode(stored, LARGEST_CONFIGURATION).map_err(broken)?;
    let mut archive = tar::Archive::new(&plain[..]);
    let mut named = named.iter();
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let path = format!("/{}", String::from_utf8_lossy(&entry.path_bytes()));
        if named.next() != Some(&path) {
            return Err(format!(
                "it holds {path}, which the marker does not name there"
            ));
        }
    }
    match named.next() {
        None => Ok(()),
        Some(path) => Err(format!("it lacks {path}")),
    }
}
