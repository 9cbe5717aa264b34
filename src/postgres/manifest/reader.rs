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
mod tests {
    use super::*;
    use crate::postgres::manifest::ManifestWriter;
    use crate::postgres::manifest::tests::write;
    use proptest::prelude::*;

    fn file(path: &str, size: u64) -> ManifestFile {
        ManifestFile {
            path: path.into(),
            size,
            modified: Some("2026-11-20T11:09:25Z".parse().unwrap()),
            checksum: Some(FileChecksum::crc32c(0xE3CE_F9AC)),
        }
    }

    fn range() -> WalRange {
        WalRange {
            timeline: TimelineId::FIRST,
            start: Lsn(0x200_0028),
            end: Lsn(0x200_0100),
        }
    }

    fn read(manifest: &[u8]) -> Result<ManifestSummary> {
        read_manifest(manifest, |_| Ok(()))
    }

    /// `text` with the checksum that its lines before the last have.
    fn sealed(text: &str) -> String {
        let digest = hex::encode(Sha256::digest(text));
        format!("{text}\"Manifest-Checksum\": \"{digest}\"}}\n")
    }

    #[test]
    fn both_versions_are_written_to_the_byte() {
        let text = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 77,\n\
             \"Files\": [\n{ \"Path\": \"a \\\"b\\\"\", \"Size\": 3, \"Last-Modified\": \
             \"2026-11-20 11:09:25 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \
             \"Checksum\": \"acf9cee3\" }\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \
             \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
        let written = write(
            ManifestVersion::V2,
            SystemId(77),
            &[file("a \"b\"", 3)],
            &[range()],
        );
        assert_eq!(String::from_utf8(written).unwrap(), sealed(text));
        let written = write(ManifestVersion::V1, SystemId(77), &[], &[]);
        assert_eq!(
            String::from_utf8(written).unwrap(),
            sealed(
                "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n],\n\"WAL-Ranges\": [\n\n],\n"
            )
        );
    }

    #[test]
    fn a_changed_byte_anywhere_is_found() {
        let manifest = write(
            ManifestVersion::V2,
            SystemId(77),
            &[file("a", 3), file("b", 4)],
            &[range()],
        );
        let summary = read(&manifest).unwrap();
        assert_eq!((summary.files, summary.system_id), (2, Some(SystemId(77))));
        assert_eq!(summary.wal_ranges, [range()]);
        for at in 0..manifest.len() {
            let mut changed = manifest.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "byte {at}");
            assert!(read(&manifest[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_is_not_of_the_format_is_refused_even_with_a_right_checksum() {
        let with = |file: &str| {
            sealed(&format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{file}\n],\n"
            ))
        };
        let good = [
            r#"{"Path":"a","Size":1}"#,
            r#"{"Encoded-Path":"ff","Size":1,"Last-Modified":"whenever"}"#,
            r#"{"Path":"a","Size":1,"Checksum-Algorithm":"none"}"#,
            r#"{"Path":"a","Size":1,"Checksum-Algorithm":"crc32c","Checksum":"ACF9CEE3"}"#,
        ];
        for file in good {
            assert!(read(with(file).as_bytes()).is_ok(), "{file}");
        }
        for file in [
            r#"{"Path":"a"}"#,
            r#"{"Size":1}"#,
            r#"{"Path":"a","Encoded-Path":"61","Size":1}"#,
            r#"{"Path":"a","Path":"a","Size":1}"#,
            r#"{"Path":"a","Size":-1}"#,
            r#"{"Path":"a","Size":1,"Mode":1}"#,
            r#"{"Path":"/a","Size":1}"#,
            r#"{"Path":"a/../../b","Size":1}"#,
            r#"{"Path":"","Size":1}"#,
            r#"{"Encoded-Path":"2f61","Size":1}"#,
            r#"{"Encoded-Path":"xx","Size":1}"#,
            r#"{"Path":"a","Size":1,"Checksum":"acf9cee3"}"#,
            r#"{"Path":"a","Size":1,"Checksum-Algorithm":"CRC32C"}"#,
            r#"{"Path":"a","Size":1,"Checksum-Algorithm":"CRC32C","Checksum":"acf9"}"#,
            r#"{"Path":"a","Size":1,"Checksum-Algorithm":"MD5","Checksum":"acf9"}"#,
        ] {
            assert!(read(with(file).as_bytes()).is_err(), "{file}");
        }
        for text in [
            "{ \"PostgreSQL-Backup-Manifest-Version\": 3,\n\"Files\": [],\n",
            "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"Files\": [],\n",
            "{ \"Files\": [],\n\"PostgreSQL-Backup-Manifest-Version\": 1,\n",
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n\"Files\": [],\n",
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n\"More\": 1,\n",
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n",
        ] {
            assert!(read(sealed(text).as_bytes()).is_err(), "{text}");
        }
        let one_line = sealed("{ \"PostgreSQL-Backup-Manifest-Version\": 1, \"Files\": [], ");
        assert!(read(one_line.as_bytes()).is_err());
    }

    #[test]
    fn an_error_of_the_callback_ends_the_reading() {
        let manifest = write(
            ManifestVersion::V1,
            SystemId(77),
            &[file("a", 1), file("b", 1)],
            &[],
        );
        let mut seen = 0;
        let error = read_manifest(manifest.as_slice(), |_| {
            seen += 1;
            Err(Error::failed("enough"))
        });
        assert_eq!((error.unwrap_err().what(), seen), ("enough", 1));
    }

    #[test]
    fn a_million_files_pass_through_a_small_pipe() {
        let (from, to) = std::io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let to = std::io::BufWriter::new(to);
            let mut writer = ManifestWriter::new(to, ManifestVersion::V2, SystemId(7)).unwrap();
            for i in 0..1_000_000u32 {
                let path = format!("base/16384/{i}");
                writer
                    .file(path.as_bytes(), u64::from(i), Timestamp::UNIX_EPOCH, i)
                    .unwrap();
            }
            let to = writer.finish(&[range()]).unwrap();
            to.into_inner().unwrap();
        });
        let mut sum = 0;
        let summary = read_manifest(from, |file| {
            sum += file.size;
            assert_eq!(file.checksum.unwrap().as_crc32c(), Some(file.size as u32));
            Ok(())
        });
        writer.join().unwrap();
        assert_eq!(summary.unwrap().files, 1_000_000);
        assert_eq!(sum, 999_999 * 500_000);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            text in "[{}\\[\\]\",:a-zA-Z0-9\n -]{0,60}"
        ) {
            prop_assert!(read(&bytes).is_err());
            prop_assert!(read(sealed(&text).as_bytes()).is_err());
        }

        #[test]
        fn every_path_reads_back(
            path in proptest::collection::vec(1u8.., 1..40), size: u64, crc: u32
        ) {
            let mut writer =
                ManifestWriter::new(Vec::new(), ManifestVersion::V1, SystemId(1)).unwrap();
            writer.file(&path, size, Timestamp::UNIX_EPOCH, crc).unwrap();
            let manifest = writer.finish(&[]).unwrap();
            let mut files = Vec::new();
            let result = read_manifest(manifest.as_slice(), |file| {
                files.push(file);
                Ok(())
            });
            match result {
                Ok(_) => {
                    prop_assert_eq!(
                        std::os::unix::ffi::OsStrExt::as_bytes(files[0].path.as_os_str()),
                        path.as_slice()
                    );
                    prop_assert_eq!(files[0].size, size);
                    prop_assert_eq!(files[0].checksum.clone(), Some(FileChecksum::crc32c(crc)));
                }
                Err(error) => prop_assert!(error.what().contains("leads out"), "{}", error),
            }
        }
    }
}
