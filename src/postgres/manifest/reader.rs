//! Reads a `backup_manifest` as a stream, with its checksum computed over the raw bytes on
//! the way. It accepts what PostgreSQL accepts and is stricter where that costs nothing: keys
//! twice and paths that lead out of the directory are refused.

use std::fmt;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use super::{
    ChecksumAlgorithm, FileChecksum, ManifestFile, ManifestSummary, ManifestVersion, WalRange,
};
use crate::error::{Error, Result};
use crate::postgres::{FormatError, Lsn, SystemId, TimelineId};

/// Reads a manifest of version 1 or 2 to its end and calls `each` for every file, in its
/// order, with memory for one file at a time.
///
/// The manifest's own checksum stands at its end: what `each` was given is vouched for only
/// when this returns `Ok`. An error of `each` ends the reading and is returned as it is.
pub fn read_manifest<R, F>(from: R, each: F) -> Result<ManifestSummary>
where
    R: Read,
    F: FnMut(ManifestFile) -> Result<()>,
{
    let mut raw = RawHasher::new(from);
    let mut state = State {
        each,
        failed: None,
        files: 0,
    };
    let mut json =
        serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 16, &mut raw));
    let parsed = (&mut json).deserialize_map(Top(&mut state));
    let parsed = parsed.and_then(|top| json.end().map(|()| top));
    drop(json);
    if let Some(failed) = state.failed {
        return Err(failed);
    }
    let (summary, expected) = parsed.map_err(|error| match error.io_error_kind() {
        Some(_) => {
            Error::failed("cannot read backup_manifest").because(std::io::Error::from(error))
        }
        None => wrong(error.to_string()),
    })?;
    let found = raw.before_last_line()?;
    if expected.eq_ignore_ascii_case(&found) {
        Ok(summary)
    } else {
        Err(wrong(format!(
            "its checksum is {found} where it says {expected}"
        )))
    }
}

fn wrong(why: String) -> Error {
    FormatError::new("backup_manifest", why).into()
}

/// Passes bytes through and hashes all of them but the last line.
struct RawHasher<R> {
    from: R,
    all: Sha256,
    /// The hash up to and with the last line break, and the one before it.
    breaks: [Option<Sha256>; 2],
    ends_with_break: bool,
}

impl<R: Read> RawHasher<R> {
    fn new(from: R) -> Self {
        Self {
            from,
            all: Sha256::new(),
            breaks: [None, None],
            ends_with_break: false,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        let is_break = |byte: &u8| *byte == b'\n';
        let last = bytes.iter().rposition(is_break);
        let before = last.and_then(|last| bytes[..last].iter().rposition(is_break));
        let mut hashed = 0;
        for at in [before, last].into_iter().flatten() {
            self.all.update(&bytes[hashed..=at]);
            hashed = at + 1;
            self.breaks = [Some(self.all.clone()), self.breaks[0].take()];
        }
        self.all.update(&bytes[hashed..]);
        self.ends_with_break = hashed == bytes.len();
    }

    fn before_last_line(&self) -> Result<String> {
        match &self.breaks {
            [Some(_), Some(before)] if self.ends_with_break => {
                Ok(hex::encode(before.clone().finalize()))
            }
            _ => Err(wrong("it does not end with a line of its own".into())),
        }
    }
}

impl<R: Read> Read for RawHasher<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        if count > 0 {
            self.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// What reading carries along.
struct State<F> {
    each: F,
    /// The callback's error: serde's own cannot carry it.
    failed: Option<Error>,
    files: u64,
}

/// The whole document; gives the summary and the checksum that it claims.
struct Top<'a, F>(&'a mut State<F>);

impl<'de, F: FnMut(ManifestFile) -> Result<()>> Visitor<'de> for Top<'_, F> {
    type Value = (ManifestSummary, String);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut version = None;
        let mut system_id = None;
        let mut files_seen = false;
        let mut wal_ranges = None;
        while let Some(key) = map.next_key::<String>()? {
            if version.is_none() && key != "PostgreSQL-Backup-Manifest-Version" {
                return Err(A::Error::custom("it does not begin with its version"));
            }
            match key.as_str() {
                "PostgreSQL-Backup-Manifest-Version" if version.is_none() => {
                    version = Some(match map.next_value::<u64>()? {
                        1 => ManifestVersion::V1,
                        2 => ManifestVersion::V2,
                        other => {
                            return Err(A::Error::custom(format!("version {other} is unknown")));
                        }
                    });
                }
                "System-Identifier" if system_id.is_none() => {
                    system_id = Some(SystemId(map.next_value()?));
                }
                "Files" if !files_seen => {
                    files_seen = true;
                    map.next_value_seed(Files(&mut *self.0))?;
                }
                "WAL-Ranges" if wal_ranges.is_none() => {
                    let ranges: Vec<RawRange> = map.next_value()?;
                    let ranges = ranges.into_iter().map(WalRange::try_from);
                    let ranges: Result<Vec<_>, _> = ranges.collect();
                    wal_ranges = Some(ranges.map_err(A::Error::custom)?);
                }
                "Manifest-Checksum" => {
                    let checksum = map.next_value()?;
                    if let Some(key) = map.next_key::<String>()? {
                        let why = format!("{key:?} follows the checksum");
                        return Err(A::Error::custom(why));
                    }
                    let (Some(version), true) = (version, files_seen) else {
                        return Err(A::Error::custom("it has no list of files"));
                    };
                    if version == ManifestVersion::V2 && system_id.is_none() {
                        return Err(A::Error::custom("it has no system identifier"));
                    }
                    let summary = ManifestSummary {
                        version,
                        system_id,
                        wal_ranges: wal_ranges.unwrap_or_default(),
                        files: self.0.files,
                    };
                    return Ok((summary, checksum));
                }
                other => return Err(A::Error::custom(format!("unexpected key {other:?}"))),
            }
        }
        Err(A::Error::custom("it has no checksum: it is cut off"))
    }
}

/// The list of files.
struct Files<'a, F>(&'a mut State<F>);

impl<'de, F: FnMut(ManifestFile) -> Result<()>> DeserializeSeed<'de> for Files<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> Visitor<'de> for Files<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(raw) = list.next_element::<RawFile>()? {
            let file = ManifestFile::try_from(raw).map_err(A::Error::custom)?;
            self.0.files += 1;
            if let Err(error) = (self.0.each)(file) {
                self.0.failed = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct RawFile {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: Option<String>,
    #[serde(rename = "Checksum-Algorithm")]
    checksum_algorithm: Option<String>,
    checksum: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl TryFrom<RawRange> for WalRange {
    type Error = FormatError;

    fn try_from(raw: RawRange) -> Result<Self, FormatError> {
        Ok(Self {
            timeline: TimelineId::new(raw.timeline)?,
            start: raw.start,
            end: raw.end,
        })
    }
}

impl TryFrom<RawFile> for ManifestFile {
    type Error = String;

    fn try_from(raw: RawFile) -> Result<Self, String> {
        let path = match (raw.path, raw.encoded_path) {
            (Some(path), None) => PathBuf::from(path),
            (None, Some(encoded)) => {
                let bytes = hex::decode(&encoded);
                let bytes = bytes.map_err(|_| format!("Encoded-Path {encoded:?} is not hex"))?;
                PathBuf::from(std::ffi::OsString::from_vec(bytes))
            }
            _ => return Err("a file needs one of Path and Encoded-Path".into()),
        };
        let mut parts = path.components().peekable();
        if parts.peek().is_none() || !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("the path {path:?} leads out of the directory"));
        }
        let algorithm = raw.checksum_algorithm.map(|name| name.to_ascii_uppercase());
        let algorithm = match algorithm.as_deref() {
            None if raw.checksum.is_some() => {
                return Err(format!("{path:?} has a checksum of no algorithm"));
            }
            None | Some("NONE") => None,
            Some("CRC32C") => Some(ChecksumAlgorithm::Crc32c),
            Some("SHA224") => Some(ChecksumAlgorithm::Sha224),
            Some("SHA256") => Some(ChecksumAlgorithm::Sha256),
            Some("SHA384") => Some(ChecksumAlgorithm::Sha384),
            Some("SHA512") => Some(ChecksumAlgorithm::Sha512),
            Some(other) => return Err(format!("checksum algorithm {other:?} is unknown")),
        };
        let checksum = match algorithm {
            None => None,
            Some(algorithm) => {
                let bytes = hex::decode(raw.checksum.unwrap_or_default()).unwrap_or_default();
                if bytes.len() != algorithm.size() {
                    return Err(format!("{path:?} has a checksum that is no {algorithm:?}"));
                }
                Some(FileChecksum { algorithm, bytes })
            }
        };
        Ok(Self {
            path,
            size: raw.size,
            modified: raw.last_modified.as_deref().and_then(parse_time),
            checksum,
        })
    }
}

/// `2026-11-20 11:09:25 GMT`
fn parse_time(text: &str) -> Option<Timestamp> {
    let time = text.strip_suffix(" GMT")?.replace(' ', "T");
    format!("{time}Z").parse().ok()
}

#[cfg(test)]
mod tests;
