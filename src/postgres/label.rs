//! `backup_label`, the `.backup` history file and `tablespace_map`: what pg_backup_stop hands
//! out about a base backup.
//!
//! They are stored byte for byte as they came; this module only reads them. Facts:
//! `build_backup_content` in `src/backend/access/transam/xlogbackup.c`, `read_backup_label`
//! and `read_tablespace_map` in `xlogrecovery.c`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{FormatError, Lsn, SegmentName, TimelineId};

/// What a `backup_label` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay starts: the redo position of the backup's checkpoint.
    pub start: Lsn,
    /// The segment that holds it.
    pub start_segment: SegmentName,
    /// The backup's checkpoint record.
    pub checkpoint: Lsn,
    /// `streamed`, or `pg_rewind`.
    pub method: String,
    /// Whether it was taken on a standby.
    pub from_standby: bool,
    /// When it began, as PostgreSQL printed it in its `log_timezone`; it does not always name
    /// a zone that can be read back.
    pub start_time: String,
    /// The label that was given to pg_backup_start; empty where there is none (pg_rewind).
    pub label: String,
    /// The timeline where it began.
    pub timeline: TimelineId,
    /// The start of the backup that an incremental one builds upon.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

/// What a `.backup` history file in the archive says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupHistory {
    /// What the label says too.
    pub label: BackupLabel,
    /// Where the backup ended: WAL up to here makes it consistent.
    pub stop: Lsn,
    /// The segment that PostgreSQL names for it.
    pub stop_segment: SegmentName,
    /// When it ended, as PostgreSQL printed it.
    pub stop_time: String,
    /// The timeline where it ended.
    pub stop_timeline: TimelineId,
}

impl BackupLabel {
    /// Reads a `backup_label`.
    pub fn parse(content: &[u8]) -> Result<Self, FormatError> {
        Lines::read(content, "backup_label")?.label()
    }
}

/// The label of an incremental backup: `label` with the two lines that name where its parent
/// starts, as PostgreSQL's own base backup writes them (17 and later). A server does not start
/// with them.
pub fn with_parent(label: &[u8], timeline: TimelineId, start: Lsn) -> Vec<u8> {
    let lines = format!("INCREMENTAL FROM LSN: {start}\nINCREMENTAL FROM TLI: {timeline}\n");
    [label, lines.as_bytes()].concat()
}

impl BackupHistory {
    /// Reads a `.backup` history file.
    pub fn parse(content: &[u8]) -> Result<Self, FormatError> {
        let lines = Lines::read(content, "backup history file")?;
        let (stop, stop_segment) = lines.position_and_segment("STOP WAL LOCATION")?;
        Ok(Self {
            label: lines.label()?,
            stop,
            stop_segment,
            stop_time: lines.need("STOP TIME")?.to_owned(),
            stop_timeline: lines.number("STOP TIMELINE")?,
        })
    }
}

/// The `backup_label` of an incremental backup without the two lines that make it one: that of
/// what is put together from it and its parents (PostgreSQL 18, `write_backup_label` in
/// pg_combinebackup/backup_label.c).
pub fn without_increment(content: &[u8]) -> Vec<u8> {
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    let kept = lines.filter(|line| {
        !line.starts_with(b"INCREMENTAL FROM LSN: ") && !line.starts_with(b"INCREMENTAL FROM TLI: ")
    });
    kept.collect::<Vec<_>>().concat()
}

/// The lines that exist, in PostgreSQL's order.
const TITLES: [&str; 12] = [
    "START WAL LOCATION",
    "STOP WAL LOCATION",
    "CHECKPOINT LOCATION",
    "BACKUP METHOD",
    "BACKUP FROM",
    "START TIME",
    "LABEL",
    "START TIMELINE",
    "STOP TIME",
    "STOP TIMELINE",
    "INCREMENTAL FROM LSN",
    "INCREMENTAL FROM TLI",
];

/// `TITLE: value` lines.
struct Lines {
    what: &'static str,
    values: [Option<String>; TITLES.len()],
}

impl Lines {
    fn read(content: &[u8], what: &'static str) -> Result<Self, FormatError> {
        let mut values: [Option<String>; TITLES.len()] = Default::default();
        let mut last = None;
        for line in String::from_utf8_lossy(content).split('\n') {
            let known = line.split_once(": ").and_then(|(title, value)| {
                let at = TITLES.into_iter().position(|known| known == title)?;
                Some((at, value))
            });
            match (known, last) {
                (Some((at, value)), _) if values[at].is_none() => {
                    values[at] = Some(value.to_owned());
                    last = Some(TITLES[at]);
                }
                // A label may hold line breaks: PostgreSQL checks nothing but its length.
                (None, Some("LABEL")) => {}
                (None, _) if line.is_empty() => {}
                (_, _) => {
                    let line: String = line.chars().take(120).collect();
                    return Err(FormatError::new(what, format!("unexpected line {line:?}")));
                }
            }
        }
        Ok(Self { what, values })
    }

    fn label(&self) -> Result<BackupLabel, FormatError> {
        let (start, start_segment) = self.position_and_segment("START WAL LOCATION")?;
        let from_standby = match self.get("BACKUP FROM") {
            None | Some("primary") => false,
            Some("standby") => true,
            Some(other) => return Err(self.wrong("BACKUP FROM", other)),
        };
        let timeline = match self.get("START TIMELINE") {
            None => start_segment.timeline,
            Some(_) => self.number("START TIMELINE")?,
        };
        if timeline != start_segment.timeline {
            return Err(self.wrong("START TIMELINE", &format!("{timeline} for {start_segment}")));
        }
        let from = "INCREMENTAL FROM LSN";
        let incremental_from = match self.get(from) {
            None => None,
            Some(lsn) => {
                let lsn = lsn.parse().map_err(|_| self.wrong(from, lsn))?;
                Some((lsn, self.number("INCREMENTAL FROM TLI")?))
            }
        };
        let checkpoint = self.need("CHECKPOINT LOCATION")?;
        Ok(BackupLabel {
            start,
            start_segment,
            checkpoint: checkpoint
                .parse()
                .map_err(|_| self.wrong("CHECKPOINT LOCATION", checkpoint))?,
            method: self.need("BACKUP METHOD")?.to_owned(),
            from_standby,
            start_time: self.get("START TIME").unwrap_or_default().to_owned(),
            label: self.get("LABEL").unwrap_or_default().to_owned(),
            timeline,
            incremental_from,
        })
    }

    /// `0/2000028 (file 000000010000000000000002)`
    fn position_and_segment(&self, title: &str) -> Result<(Lsn, SegmentName), FormatError> {
        let value = self.need(title)?;
        let parse = || {
            let (lsn, rest) = value.split_once(" (file ")?;
            let segment = rest.strip_suffix(')')?;
            Some((lsn.parse().ok()?, segment.parse().ok()?))
        };
        parse().ok_or_else(|| self.wrong(title, value))
    }

    fn number<T: FromStr>(&self, title: &str) -> Result<T, FormatError> {
        let value = self.need(title)?;
        value.parse().map_err(|_| self.wrong(title, value))
    }

    fn get(&self, title: &str) -> Option<&str> {
        let at = TITLES.into_iter().position(|known| known == title)?;
        self.values[at].as_deref()
    }

    fn need(&self, title: &str) -> Result<&str, FormatError> {
        self.get(title)
            .ok_or_else(|| FormatError::new(self.what, format!("it has no line {title}")))
    }

    fn wrong(&self, title: &str, value: &str) -> FormatError {
        let value: String = value.chars().take(120).collect();
        FormatError::new(self.what, format!("{title}: {value:?}"))
    }
}

/// Reads a `tablespace_map`: each tablespace's OID and the directory that its link pointed to.
///
/// A path may hold anything: line breaks and backslashes carry a backslash before them. A
/// relative path (`pg_tblspc/OID`) is a tablespace made in place, without a link.
pub fn parse_tablespace_map(content: &[u8]) -> Result<Vec<(u32, PathBuf)>, FormatError> {
    let wrong = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        let line: String = line.chars().take(120).collect();
        FormatError::new("tablespace_map", format!("{line:?} is no `oid path`"))
    };
    let mut map = Vec::new();
    let mut line = Vec::new();
    let mut escaped = false;
    for byte in content {
        match byte {
            b'\n' | b'\r' if !escaped => {
                if line.is_empty() {
                    continue;
                }
                let space = line.iter().position(|b| *b == b' ');
                let (oid, path) = line.split_at(space.ok_or_else(|| wrong(&line))?);
                let digits = oid.iter().all(u8::is_ascii_digit);
                let oid = std::str::from_utf8(oid).ok().filter(|_| digits);
                let oid = oid.and_then(|oid| oid.parse().ok());
                let (Some(oid), true) = (oid, path.len() > 1) else {
                    return Err(wrong(&line));
                };
                map.push((oid, PathBuf::from(OsString::from_vec(path[1..].to_vec()))));
                line.clear();
            }
            b'\\' if !escaped => escaped = true,
            byte => {
                line.push(*byte);
                escaped = false;
            }
        }
    }
    if line.is_empty() && !escaped {
        Ok(map)
    } else {
        Err(wrong(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::testing::Server;
    use crate::postgres::{SegmentSize, WalFileName};
    use proptest::prelude::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
         CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
         START TIME: 2026-11-20 11:09:25 UTC\nLABEL: nightly\nSTART TIMELINE: 1\n";

    #[test]
    fn a_label_says_where_replay_starts() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        assert_eq!(label.start, Lsn(0x200_0028));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000002");
        assert_eq!(label.checkpoint, Lsn(0x200_0060));
        assert_eq!(
            (label.label.as_str(), label.from_standby),
            ("nightly", false)
        );
        assert_eq!(label.incremental_from, None);
        let child = format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let child = BackupLabel::parse(child.as_bytes()).unwrap();
        assert_eq!(
            child.incremental_from,
            Some((Lsn(0x100_0028), TimelineId::FIRST))
        );
        let child = format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        assert_eq!(without_increment(child.as_bytes()), LABEL.as_bytes());
        assert_eq!(without_increment(LABEL.as_bytes()), LABEL.as_bytes());
    }

    #[test]
    fn labels_with_line_breaks_read_and_contradictions_do_not() {
        let broken = LABEL.replace("nightly", "night\n\nly é");
        let broken = BackupLabel::parse(broken.as_bytes()).unwrap();
        assert_eq!(broken.label, "night");
        for (from, to) in [
            ("START TIMELINE: 1", "START TIMELINE: 2"),
            ("START TIMELINE: 1", "START TIMELINE: 0"),
            ("0/2000028", "2000028"),
            ("000000010000000000000002", "x"),
            ("primary", "secondary"),
            ("CHECKPOINT LOCATION: 0/2000060\n", ""),
            ("BACKUP METHOD", "METHOD"),
            ("LABEL: nightly", "START TIME: again"),
            ("START TIMELINE: 1", "INCREMENTAL FROM LSN: 0/1"),
        ] {
            let wrong = LABEL.replace(from, to);
            assert!(BackupLabel::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_live_server_hands_out_reads() {
        let server = Server::with(&[], "archive_mode = on\narchive_command = 'false'");
        let odd = server.path().join("odd \\ na\nme");
        std::fs::create_dir(&odd).unwrap();
        server.give_away(&odd);
        // CREATE TABLESPACE refuses no line break or backslash.
        let quoted = odd.to_string_lossy().replace('\'', "''");
        server.sql(&format!("create tablespace odd location '{quoted}'"));
        let oid: u32 = server
            .sql("select oid from pg_tablespace where spcname = 'odd'")
            .parse()
            .unwrap();
        let (start, stop) = match server.major() {
            14 => (
                "pg_start_backup('a label', true, false)",
                "pg_stop_backup(false, false)",
            ),
            _ => ("pg_backup_start('a label', true)", "pg_backup_stop(false)"),
        };
        let hex = |file: &str| format!("encode(convert_to({file}, 'UTF8'), 'hex')");
        let files = format!("{} || ' ' || {}", hex("labelfile"), hex("spcmapfile"));
        let answers = server.sql_session(&[
            &format!("select {start}"),
            &format!("select {files} from {stop}"),
        ]);
        let (start, files) = answers.split_once('\n').unwrap();
        let (label, map) = files.split_once(' ').unwrap();
        let label = BackupLabel::parse(&hex::decode(label).unwrap()).unwrap();
        assert_eq!(label.start.to_string(), start);
        assert_eq!(label.label, "a label");
        let map = parse_tablespace_map(&hex::decode(map).unwrap()).unwrap();
        assert_eq!(map, [(oid, odd)]);

        let mut histories = 0;
        for entry in std::fs::read_dir(server.data().join("pg_wal")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if let Ok(WalFileName::BackupHistory(segment, offset)) = name.parse() {
                let history = BackupHistory::parse(&std::fs::read(entry.path()).unwrap());
                let history = history.unwrap();
                assert_eq!(history.label, label);
                assert_eq!(segment, label.start_segment);
                assert_eq!(label.start.offset(SegmentSize::DEFAULT), u64::from(offset));
                assert!(history.stop > label.start);
                assert_eq!(history.stop_timeline, TimelineId::FIRST);
                histories += 1;
            }
        }
        assert_eq!(histories, 1);
    }

    #[test]
    fn a_map_keeps_every_byte_of_a_path() {
        let map =
            parse_tablespace_map(b"16384 /a b\r\n\n16385  /x\\\ny\\\\z\\\r\n16386 \xff\n").unwrap();
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        assert_eq!(
            map,
            [
                (16384, path(b"/a b")),
                (16385, path(b" /x\ny\\z\r")),
                (16386, path(b"\xff"))
            ]
        );
        for wrong in [
            "1 /a",
            "x /a\n",
            "1\n",
            "1 \n",
            " /a\n",
            "+1 /a\n",
            "1 /a\\",
            "99999999999 /a\n",
        ] {
            assert!(parse_tablespace_map(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_tablespace_map(b""), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), at in 0usize..230, byte: u8
        ) {
            let _ = parse_tablespace_map(&bytes);
            let _ = BackupLabel::parse(&bytes);
            let mut label = LABEL.as_bytes().to_vec();
            if let Some(place) = label.get_mut(at) {
                *place = byte;
            }
            let _ = BackupLabel::parse(&label);
            let _ = BackupHistory::parse(&label);
        }
    }
}
