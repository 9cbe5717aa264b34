//! `backup_manifest`: PostgreSQL's own list of a base backup's files, written and read as a
//! stream, so that five million files cost no more memory than five.
//!
//! It does not look at the files themselves. Facts: `src/backend/backup/backup_manifest.c`
//! (the text, to the byte) and `src/common/parse_manifest.c` (what is accepted).

mod reader;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::history::TimelineHistory;
use super::{FormatError, Lsn, SystemId, TimelineId};

pub use reader::read_manifest;

/// The version of the manifest's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestVersion {
    /// Of PostgreSQL 13 to 16.
    V1,
    /// From PostgreSQL 17 on: the same with the system identifier.
    V2,
}

/// WAL that a restored backup needs on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// From here.
    pub start: Lsn,
    /// Up to, and without, here.
    pub end: Lsn,
}

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory; tablespaces appear under `pg_tblspc/OID`. Never
    /// absolute and never upwards.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Last modified, in whole seconds; none if the text is no time (PostgreSQL ignores it).
    pub modified: Option<Timestamp>,
    /// Its checksum, if the backup was made with one.
    pub checksum: Option<FileChecksum>,
}

/// A file's checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChecksum {
    /// How it was computed.
    pub algorithm: ChecksumAlgorithm,
    /// Its bytes, of the algorithm's length.
    pub bytes: Vec<u8>,
}

/// How a file's checksum was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    /// CRC-32C, the default.
    Crc32c,
    /// SHA-224
    Sha224,
    /// SHA-256
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

/// What a manifest says besides its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestSummary {
    /// The version of its text.
    pub version: ManifestVersion,
    /// The cluster; only in version 2.
    pub system_id: Option<SystemId>,
    /// The WAL that a restore needs, newest timeline first.
    pub wal_ranges: Vec<WalRange>,
    /// How many files it names.
    pub files: u64,
}

impl ManifestVersion {
    /// The version that a server of that major version writes.
    pub fn of_major(major: u32) -> Self {
        if major >= 17 { Self::V2 } else { Self::V1 }
    }
}

impl ChecksumAlgorithm {
    /// The bytes of one checksum.
    pub fn size(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl FileChecksum {
    /// A CRC-32C.
    pub fn crc32c(crc: u32) -> Self {
        Self {
            algorithm: ChecksumAlgorithm::Crc32c,
            bytes: crc.to_le_bytes().to_vec(),
        }
    }

    /// The CRC-32C that it is, if it is one.
    pub fn as_crc32c(&self) -> Option<u32> {
        let bytes = self.bytes.as_slice().try_into().ok()?;
        (self.algorithm == ChecksumAlgorithm::Crc32c).then(|| u32::from_le_bytes(bytes))
    }
}

/// Writes a manifest, one file after the other, in constant memory.
///
/// It makes one small write a file: give it a `BufWriter`. After an error what was written is
/// no manifest.
pub struct ManifestWriter<W: Write> {
    to: W,
    hasher: Sha256,
    /// The line being made.
    line: String,
    first: bool,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest; `system_id` appears only in version 2.
    pub fn new(to: W, version: ManifestVersion, system_id: SystemId) -> io::Result<Self> {
        let mut writer = Self {
            to,
            hasher: Sha256::new(),
            line: String::new(),
            first: true,
        };
        let _ = match version {
            ManifestVersion::V1 => {
                writer
                    .line
                    .push_str("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n");
                Ok(())
            }
            ManifestVersion::V2 => write!(
                writer.line,
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_id},\n"
            ),
        };
        writer.line.push_str("\"Files\": [");
        writer.flush_line()?;
        Ok(writer)
    }

    /// Adds a file: its path relative to the data directory, its size in bytes, when it was
    /// modified, and its CRC-32C.
    pub fn file(
        &mut self,
        path: &[u8],
        size: u64,
        modified: Timestamp,
        crc32c: u32,
    ) -> io::Result<()> {
        self.line.push_str(if self.first { "\n" } else { ",\n" });
        self.first = false;
        match std::str::from_utf8(path) {
            Ok(text) => {
                self.line.push_str("{ \"Path\": ");
                push_json(&mut self.line, text);
            }
            Err(_) => {
                let encoded = hex::encode(path);
                let _ = write!(self.line, "{{ \"Encoded-Path\": \"{encoded}\"");
            }
        }
        let crc = hex::encode(crc32c.to_le_bytes());
        let modified = modified.strftime("%Y-%m-%d %H:%M:%S GMT");
        // Writing to a string cannot fail.
        let _ = write!(
            self.line,
            ", \"Size\": {size}, \"Last-Modified\": \"{modified}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}"
        );
        self.flush_line()
    }

    /// Ends the manifest with the WAL that a restore needs, and its own checksum. What the
    /// writer holds in buffers of its own is not flushed.
    pub fn finish(mut self, wal_ranges: &[WalRange]) -> io::Result<W> {
        self.line.push_str("\n],\n\"WAL-Ranges\": [\n");
        for (i, range) in wal_ranges.iter().enumerate() {
            let separator = if i == 0 { "" } else { ",\n" };
            let _ = write!(
                self.line,
                "{separator}{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                range.timeline, range.start, range.end
            );
        }
        self.line.push_str("\n],\n");
        self.flush_line()?;
        let digest = hex::encode(self.hasher.finalize());
        self.to
            .write_all(format!("\"Manifest-Checksum\": \"{digest}\"}}\n").as_bytes())?;
        Ok(self.to)
    }

    fn flush_line(&mut self) -> io::Result<()> {
        self.hasher.update(&self.line);
        self.to.write_all(self.line.as_bytes())?;
        self.line.clear();
        Ok(())
    }
}

/// A JSON string as PostgreSQL's `escape_json` writes it.
fn push_json(line: &mut String, text: &str) {
    line.push('"');
    for char in text.chars() {
        match char {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '\u{8}' => line.push_str("\\b"),
            '\u{c}' => line.push_str("\\f"),
            control if control < ' ' => {
                let _ = write!(line, "\\u{:04x}", u32::from(control));
            }
            other => line.push(other),
        }
    }
    line.push('"');
}

/// The WAL between a backup's start and its stop, newest timeline first, as PostgreSQL lists
/// it: one range for each timeline that was crossed (on a standby, upstream may be promoted
/// meanwhile).
///
/// `history` is that of the timeline where the backup stopped. An error if the start does not
/// lie on it.
pub fn wal_ranges(
    history: &TimelineHistory,
    start: (TimelineId, Lsn),
    stop: Lsn,
) -> Result<Vec<WalRange>, FormatError> {
    if !history.contains(start.0, start.1) || stop < start.1 {
        return Err(FormatError::new(
            "backup",
            format!(
                "it starts at {} on timeline {}, which does not lie before {stop} on timeline {}",
                start.1, start.0, history.timeline
            ),
        ));
    }
    let mut ranges: Vec<WalRange> = history
        .spans()
        .skip_while(|span| span.timeline != start.0)
        .filter(|span| span.start <= stop)
        .map(|span| WalRange {
            timeline: span.timeline,
            start: span.start.max(start.1),
            end: span.end.map_or(stop, |end| end.min(stop)),
        })
        .collect();
    ranges.reverse();
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::postgres::control::ControlFile;
    use crate::postgres::testing::Server;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    pub(super) fn write(
        version: ManifestVersion,
        system_id: SystemId,
        files: &[ManifestFile],
        ranges: &[WalRange],
    ) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), version, system_id).unwrap();
        for file in files {
            let crc = file.checksum.as_ref().and_then(FileChecksum::as_crc32c);
            writer
                .file(
                    file.path.as_os_str().as_bytes(),
                    file.size,
                    file.modified.unwrap(),
                    crc.unwrap(),
                )
                .unwrap();
        }
        writer.finish(ranges).unwrap()
    }

    fn read(manifest: &[u8]) -> Result<(ManifestSummary, Vec<ManifestFile>)> {
        let mut files = Vec::new();
        let summary = read_manifest(manifest, |file| {
            files.push(file);
            Ok(())
        })?;
        Ok((summary, files))
    }

    fn base_backup(server: &Server, more: &[&str]) -> PathBuf {
        let (host, port) = (
            server.path().display().to_string(),
            server.port().to_string(),
        );
        let copy = server.path().join("copy");
        let to = copy.display().to_string();
        let connect = ["-h", &host, "-p", &port, "-U", "postgres", "-D", &to];
        server.run("pg_basebackup", &[&connect[..], more].concat());
        copy
    }

    #[test]
    fn what_pg_basebackup_wrote_is_written_again_byte_for_byte() {
        let server = Server::start();
        let odd = server.data().join(OsStr::from_bytes(b"odd \\ \"\x01\xff"));
        server.write(&odd, "x");
        server.write(&server.data().join("a\u{7}b\tcé"), "y");
        let copy = base_backup(&server, &["-c", "fast", "-X", "none"]);
        let theirs = std::fs::read(copy.join("backup_manifest")).unwrap();
        let (summary, files) = read(&theirs).unwrap();
        assert!(summary.files > 900 && summary.files == files.len() as u64);
        assert_eq!(summary.version, ManifestVersion::of_major(server.major()));
        let id = summary.system_id.unwrap_or(SystemId(0));
        let ours = write(summary.version, id, &files, &summary.wal_ranges);
        assert!(ours == theirs, "{}", String::from_utf8_lossy(&ours));
    }

    #[test]
    fn every_checksum_algorithm_of_pg_basebackup_reads() {
        let server = Server::start();
        for algorithm in ["none", "sha224", "sha256", "sha384", "sha512"] {
            let how = format!("--manifest-checksums={algorithm}");
            let copy = base_backup(&server, &["-c", "fast", "-X", "none", &how]);
            let manifest = std::fs::read(copy.join("backup_manifest")).unwrap();
            let (_, files) = read(&manifest).unwrap();
            let checksum = files.iter().find(|f| f.size > 0).unwrap().checksum.clone();
            let size = checksum.map(|c| c.bytes.len());
            let bits = algorithm
                .strip_prefix("sha")
                .map(|n| n.parse::<usize>().unwrap());
            assert_eq!(size, bits.map(|n| n / 8), "{algorithm}");
            std::fs::remove_dir_all(copy).unwrap();
        }
    }

    fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => files_below(&path, found),
                false => found.push(path),
            }
        }
    }

    #[test]
    fn pg_verifybackup_accepts_our_manifest_and_refuses_a_changed_file() {
        let server = Server::start();
        let copy = base_backup(&server, &["-c", "fast", "-X", "none", "--no-manifest"]);
        server.write(&copy.join(OsStr::from_bytes(b"\xff \"'\n")), "odd");
        let mut paths = Vec::new();
        files_below(&copy, &mut paths);
        let control = ControlFile::read(&copy).unwrap();
        let version = ManifestVersion::of_major(server.major());
        let mut writer = ManifestWriter::new(Vec::new(), version, control.system_id).unwrap();
        for path in paths {
            let content = std::fs::read(&path).unwrap();
            let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
            let inside = path.strip_prefix(&copy).unwrap();
            let (size, crc) = (content.len() as u64, crc32c::crc32c(&content));
            writer
                .file(
                    inside.as_os_str().as_bytes(),
                    size,
                    modified.try_into().unwrap(),
                    crc,
                )
                .unwrap();
        }
        let range = WalRange {
            timeline: control.timeline,
            start: control.redo,
            end: Lsn(control.redo.0 + 1),
        };
        let manifest = writer.finish(&[range]).unwrap();
        let path = copy.join("backup_manifest");
        crate::durable::write_file(&path, &manifest, 0o644).unwrap();
        let arguments = ["-n", copy.to_str().unwrap()];
        let said = server.run("pg_verifybackup", &arguments);
        assert!(said.contains("backup successfully verified"), "{said}");

        server.write(&copy.join("PG_VERSION"), "99\n");
        let said = server.try_run("pg_verifybackup", &arguments).unwrap_err();
        assert!(
            said.contains("checksum mismatch for file \"PG_VERSION\""),
            "{said}"
        );
    }

    #[test]
    fn the_ranges_follow_the_timelines_that_a_backup_crossed() {
        let two = TimelineId::new(2).unwrap();
        let history = TimelineHistory::parse(two, b"1\t0/5000000\tx\n").unwrap();
        let range = |timeline, start, end| WalRange {
            timeline,
            start: Lsn(start),
            end: Lsn(end),
        };
        let first = TimelineId::FIRST;
        let ranges = |start, stop| wal_ranges(&history, start, Lsn(stop));
        assert_eq!(
            ranges((first, Lsn(0x400_0028)), 0x600_0000).unwrap(),
            [
                range(two, 0x500_0000, 0x600_0000),
                range(first, 0x400_0028, 0x500_0000)
            ]
        );
        assert_eq!(
            ranges((two, Lsn(0x500_0028)), 0x600_0000).unwrap(),
            [range(two, 0x500_0028, 0x600_0000)]
        );
        assert!(ranges((first, Lsn(0x500_0001)), 0x600_0000).is_err());
        assert!(ranges((two, Lsn(0x500_0001)), 0x400_0000).is_err());
    }
}
