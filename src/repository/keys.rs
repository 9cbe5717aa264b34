//! Every key of format 1 is made and read here, and nowhere else.
//!
//! No key is ever written twice with different content: each carries a digest or random
//! digits, but for what is made once (`seawall.json`, `system.json`, a backup's marker).

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::digest::PlainDigest;
use crate::error::Error;
use crate::postgres::{SegmentName, SystemId, TimelineId, WalFileName};

/// Proof that a repository is there.
pub const REPOSITORY_RECORD: &str = "seawall.json";

/// The ending of a compressed object.
const ZSTD: &str = ".zst";
/// The ending of an object that is compressed and then encrypted. Written by later versions.
const ZSTD_AGE: &str = ".zst.age";

/// The keys of one cluster and system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemKeys {
    root: String,
}

/// A WAL object as its key names it: `SEGMENT-DIGEST.zst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalObject {
    /// The file that PostgreSQL archived.
    pub name: WalFileName,
    /// BLAKE3 of its plain bytes.
    pub digest: PlainDigest,
    /// Whether it is encrypted (`.age`).
    pub encrypted: bool,
}

/// The kinds of base backups.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Holds every file whole.
    Full,
    /// Holds what changed since its parent. Not made by this version.
    Incremental,
}

/// A backup's name: start time, kind, 8 random hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    text: String,
    kind: BackupKind,
}

impl SystemKeys {
    /// The keys of `system` in `cluster`.
    pub fn new(cluster: &str, system: SystemId) -> Self {
        Self {
            root: format!("{cluster}/{system}"),
        }
    }

    /// `system.json`.
    pub fn system_record(&self) -> String {
        format!("{}/system.json", self.root)
    }

    /// Says that WAL was acknowledged that this repository may lack.
    pub fn acknowledged_without_it(&self) -> String {
        format!("{}/acknowledged-without-it.json", self.root)
    }

    /// The directory of `.history` files, whose sub-directories are the timelines.
    pub fn wal(&self) -> String {
        format!("{}/wal", self.root)
    }

    /// The directory of one timeline, whose sub-directories are its logs.
    pub fn timeline(&self, timeline: TimelineId) -> String {
        format!("{}/wal/{}", self.root, timeline.hex())
    }

    /// The directory that holds a segment and what lies beside it.
    pub fn log(&self, segment: SegmentName) -> String {
        format!(
            "{}/wal/{}/{:08X}",
            self.root,
            segment.timeline.hex(),
            segment.log
        )
    }

    /// The directory to list for `name`.
    pub fn wal_directory(&self, name: WalFileName) -> String {
        name.segment()
            .map_or_else(|| self.wal(), |segment| self.log(segment))
    }

    /// The key of a WAL object.
    pub fn wal_object(&self, object: WalObject) -> String {
        format!("{}/{object}", self.wal_directory(object.name))
    }

    /// The directory of the WAL objects that lost a conflict.
    pub fn all_set_aside(&self) -> String {
        format!("{}/set-aside", self.root)
    }

    /// Where a WAL object goes that lost a conflict: the same path below `set-aside`.
    pub fn set_aside(&self, object: WalObject) -> String {
        let (wal, key) = (self.wal(), self.wal_object(object));
        let below = key.strip_prefix(&wal).unwrap_or(&key);
        format!("{}{below}", self.all_set_aside())
    }

    /// A key that sorts before every object of `name` and after those of smaller names.
    pub fn before_wal_objects(&self, name: WalFileName) -> String {
        format!("{}/{name}", self.wal_directory(name))
    }

    /// The directory that says which segments of a timeline retention removed.
    pub fn expired(&self, timeline: TimelineId) -> String {
        format!("{}/expired/{}", self.root, timeline.hex())
    }

    /// The directory of restore points.
    pub fn points(&self) -> String {
        format!("{}/points", self.root)
    }

    /// The directory of pins.
    pub fn pins(&self) -> String {
        format!("{}/pins", self.root)
    }

    /// A new key for a pin of `id`: whoever pins a backup once more has a pin of their own.
    pub fn new_pin(&self, id: &BackupId) -> String {
        let random: u32 = rand::random();
        format!("{}/{id}-{random:08x}.json", self.pins())
    }

    /// The directory of all base backups.
    pub fn backups(&self) -> String {
        format!("{}/backups", self.root)
    }

    /// The directory of one base backup.
    pub fn backup(&self, id: &BackupId) -> String {
        format!("{}/backups/{id}", self.root)
    }

    /// The commit marker of a base backup.
    pub fn marker(&self, id: &BackupId) -> String {
        format!("{}/backup.json", self.backup(id))
    }
}

/// The directory of a cluster's drill results.
pub fn drills(cluster: &str) -> String {
    format!("{cluster}/drills")
}

/// The directory of the leases on a cluster.
pub fn leases(cluster: &str) -> String {
    format!("{cluster}/leases")
}

/// The directory of what is about to be deleted from a cluster.
pub fn tombstones(cluster: &str) -> String {
    format!("{cluster}/tombstones")
}

/// The backup that a key below [`SystemKeys::backups`] belongs to.
pub fn backup_of_key(directory: &str, key: &str) -> Option<BackupId> {
    let below = key.strip_prefix(directory)?.strip_prefix('/')?;
    below.split('/').next()?.parse().ok()
}

/// Keys inside a base backup's directory.
pub mod backup {
    /// The data of pack `number`, counted from 1.
    pub fn pack(number: u32) -> String {
        format!("data/{number:06}.tar.zst")
    }

    /// The index of pack `number`.
    pub fn index(number: u32) -> String {
        format!("data/{number:06}.index.zst")
    }

    /// Configuration that lies outside the data directory.
    pub const CONFIGURATION: &str = "config.tar.zst";

    /// PostgreSQL's own manifest.
    pub const MANIFEST: &str = "backup_manifest.zst";
}

impl fmt::Display for WalObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = if self.encrypted { ZSTD_AGE } else { ZSTD };
        write!(f, "{}-{}{ending}", self.name, self.digest)
    }
}

impl WalObject {
    /// Reads the last part of a key. `None` for what is no WAL object: stray files are not
    /// ours to judge.
    pub fn parse(file_name: &str) -> Option<Self> {
        let (rest, encrypted) = match file_name.strip_suffix(ZSTD_AGE) {
            Some(rest) => (rest, true),
            None => (file_name.strip_suffix(ZSTD)?, false),
        };
        let (name, digest) = rest.rsplit_once('-')?;
        Some(Self {
            name: name.parse().ok()?,
            digest: digest.parse().ok()?,
            encrypted,
        })
    }

    /// Reads a whole key.
    pub fn of_key(key: &str) -> Option<Self> {
        Self::parse(key.rsplit('/').next()?)
    }
}

impl BackupKind {
    fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incr",
        }
    }
}

impl fmt::Display for BackupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        })
    }
}

impl BackupId {
    /// A new name for a backup that starts now.
    pub fn new(kind: BackupKind, start: Timestamp) -> Self {
        let random: u32 = rand::random();
        let text = format!(
            "{}-{}-{random:08x}",
            start.strftime("%Y%m%dT%H%M%SZ"),
            kind.word()
        );
        Self { text, kind }
    }

    /// The time in it, such as `20261120T110925Z`.
    pub fn start_second(&self) -> &str {
        self.text.split('-').next().unwrap_or_default()
    }

    /// Full or incremental.
    pub fn kind(&self) -> BackupKind {
        self.kind
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::usage(format!("{text:?} is not the name of a backup"))
                .hint("`seawall list` prints them: 20261120T110925Z-full-3fa9c1d2")
        };
        let mut parts = text.split('-');
        let (Some(time), Some(kind), Some(random), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let kind = match kind {
            "full" => BackupKind::Full,
            "incr" => BackupKind::Incremental,
            _ => return Err(wrong()),
        };
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let time_is_right = time.len() == 16
            && time.char_indices().all(|(at, c)| match at {
                8 => c == 'T',
                15 => c == 'Z',
                _ => c.is_ascii_digit(),
            });
        if !time_is_right || random.len() != 8 || !random.bytes().all(hex) {
            return Err(wrong());
        }
        Ok(Self {
            text: text.to_owned(),
            kind,
        })
    }
}

impl serde::Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        text.parse()
            .map_err(|error: Error| serde::de::Error::custom(error.what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_those_of_the_documented_layout() {
        let keys = SystemKeys::new("main", SystemId(7_300_000_000_000_000_001));
        let digest = PlainDigest::of(b"abc");
        let object = |name: &str| WalObject {
            name: name.parse().unwrap(),
            digest,
            encrypted: false,
        };
        let root = "main/7300000000000000001";
        let d = "6437b3ac38465133ffb63b75273a8db5";
        for (name, key) in [
            (
                "000000010000000200000003",
                "wal/00000001/00000002/000000010000000200000003",
            ),
            ("00000002.history", "wal/00000002.history"),
            (
                "000000010000000200000003.00000028.backup",
                "wal/00000001/00000002/000000010000000200000003.00000028.backup",
            ),
            (
                "000000010000000200000003.partial",
                "wal/00000001/00000002/000000010000000200000003.partial",
            ),
        ] {
            let key = format!("{root}/{key}-{d}.zst");
            assert_eq!(keys.wal_object(object(name)), key);
            assert_eq!(WalObject::of_key(&key), Some(object(name)));
            let aside = key.replace("/wal/", "/set-aside/");
            assert_eq!(keys.set_aside(object(name)), aside);
        }
        let id: BackupId = "20261120T110925Z-full-3fa9c1d2".parse().unwrap();
        assert_eq!(keys.marker(&id), format!("{root}/backups/{id}/backup.json"));
    }

    #[test]
    fn an_encrypted_object_and_a_plain_one_of_one_digest_are_the_same_thing() {
        let plain =
            WalObject::parse("00000002.history-6437b3ac38465133ffb63b75273a8db5.zst").unwrap();
        let age =
            WalObject::parse("00000002.history-6437b3ac38465133ffb63b75273a8db5.zst.age").unwrap();
        assert_eq!((plain.name, plain.digest), (age.name, age.digest));
        assert!(age.encrypted && !plain.encrypted);
    }

    #[test]
    fn a_new_backup_id_reads_back_and_sorts_by_time() {
        let early = BackupId::new(
            BackupKind::Full,
            Timestamp::from_second(1_790_000_000).unwrap(),
        );
        let late = BackupId::new(
            BackupKind::Full,
            Timestamp::from_second(1_790_000_001).unwrap(),
        );
        assert_eq!(early.as_str().parse::<BackupId>().unwrap(), early);
        assert!(early < late);
        for wrong in [
            "",
            "..",
            "20261120T110925Z-full-3fa9c1d",
            "20261120T110925Z-half-3fa9c1d2",
            "a/b-full-00000000",
        ] {
            assert!(wrong.parse::<BackupId>().is_err());
        }
    }

    proptest! {
        #[test]
        fn a_stray_name_is_no_wal_object_and_never_a_panic(text in ".{0,80}") {
            let _ = WalObject::of_key(&text);
            let _ = text.parse::<BackupId>();
        }
    }
}
