//! What of a data directory goes into a base backup, and how relation files are named.
//!
//! It decides by names and kinds alone and reads no file. Facts: `excludeDirContents`,
//! `excludeFiles` and `sendDir` in `src/backend/backup/basebackup.c`, file names from
//! `src/common/relpath.c` and `src/backend/storage/file/reinit.c`. Signal files
//! (`standby.signal`, `recovery.signal`) are included, as PostgreSQL's own base backup does:
//! a restore decides about them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;

/// The control file, relative to the data directory. It is copied last: a standby's backup
/// takes its minimum recovery point from it.
pub const CONTROL_FILE: &str = "global/pg_control";

/// The label that starts a backup's recovery, at the top of the data directory.
pub const BACKUP_LABEL: &str = "backup_label";

/// The map of tablespaces beside it.
pub const TABLESPACE_MAP: &str = "tablespace_map";

/// PostgreSQL's list of a backup's files.
pub const BACKUP_MANIFEST: &str = "backup_manifest";

/// What an entry of a directory is, as `lstat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A socket, a pipe, a device.
    Other,
}

/// What a base backup does with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It belongs to the backup. For a symbolic link: `pg_tblspc/OID`, a tablespace.
    Include,
    /// Keep it as an empty directory, also where it is a link to one.
    SkipContents,
    /// Leave it out.
    Skip,
    /// Leave it out and say so: a link that is no tablespace, a socket, a device. PostgreSQL's
    /// own base backup warns and skips these too.
    SkipSpecial,
}

/// Directories at the top whose contents a server makes anew.
const EMPTIED: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// Files at the top that describe a running server or another backup.
const LEFT_OUT: [&str; 7] = [
    BACKUP_LABEL,
    BACKUP_MANIFEST,
    TABLESPACE_MAP,
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
];

/// What a base backup does with `path`, relative to the data directory; what lies in a
/// tablespace is named through its link, `pg_tblspc/OID/PG_15_202209061/…`.
///
/// Unlogged relations cannot be known by their own name: ask [`UnloggedInDirectory`] too.
/// Other versions' directories beside a tablespace's own are not entered in the first place:
/// see [`tablespace_version_directory`].
pub fn classify(path: &Path, kind: EntryKind) -> Rule {
    let Some(name) = path.file_name() else {
        return Rule::Include; // The data directory itself.
    };
    let at_top = path.components().count() == 1;
    let is = |list: &[&str]| list.iter().any(|known| name == *known);
    let begins = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());

    if begins("pgsql_tmp") || begins("pg_internal.init") || (at_top && is(&LEFT_OUT)) {
        return Rule::Skip;
    }
    if at_top && is(&EMPTIED) {
        return match kind {
            EntryKind::Directory | EntryKind::Symlink => Rule::SkipContents,
            EntryKind::File | EntryKind::Other => Rule::SkipSpecial,
        };
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    match kind {
        EntryKind::Symlink if parent == Path::new("pg_tblspc") => Rule::Include,
        EntryKind::Symlink | EntryKind::Other => Rule::SkipSpecial,
        _ if is_temporary_relation(name) && is_database_directory(parent) => Rule::Skip,
        _ => Rule::Include,
    }
}

/// Which part of a relation a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fork {
    /// The data itself.
    Main,
    /// The free space map.
    Fsm,
    /// The visibility map.
    Vm,
    /// What an unlogged relation starts from after a crash.
    Init,
}

/// A relation's file, from its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationFile {
    /// Which part of the relation.
    pub kind: Fork,
    /// The number that names the file; it changes when a table is rewritten.
    pub relfilenode: u32,
    /// Which segment of [`ControlFile::relation_segment_blocks`](super::control::ControlFile)
    /// pages, from 0.
    pub segment: u32,
    /// The tablespace's OID: 1663 for `base`, 1664 for `global`.
    pub tablespace: u32,
    /// The database's OID, 0 for relations that all databases share.
    pub database: u32,
}

/// OID of `pg_default`, whose relations lie in `base`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// OID of `pg_global`, whose relations lie in `global`.
pub const GLOBAL_TABLESPACE: u32 = 1664;

impl RelationFile {
    /// The relation's file that `path`, relative to the data directory, names; none if it is
    /// another kind of file or a temporary relation.
    pub fn parse(path: &Path) -> Option<Self> {
        let (tablespace, database) = directory_of_relations(path.parent()?)?;
        let (relfilenode, kind, segment) = file_name(path.file_name()?.to_str()?)?;
        Some(Self {
            kind,
            relfilenode,
            segment,
            tablespace,
            database,
        })
    }
}

/// Whether `path`, relative to the data directory, is a relation's file: only these consist of
/// pages with checksums. Temporary relations are none.
pub fn is_relation_path(path: &Path) -> bool {
    RelationFile::parse(path).is_some()
}

/// Whether `path` is the directory of one database: `base/OID` or
/// `pg_tblspc/OID/PG_…/OID`.
pub fn is_database_directory(path: &Path) -> bool {
    directory_of_relations(path).is_some_and(|(tablespace, _)| tablespace != GLOBAL_TABLESPACE)
}

/// The unlogged relations of one database's directory: those with an init fork. Only that fork
/// is backed up.
#[derive(Debug, Clone, Default)]
pub struct UnloggedInDirectory(HashSet<u32>);

impl UnloggedInDirectory {
    /// Finds them among all names of one [database directory](is_database_directory).
    pub fn scan<I, S>(names: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let init = |name: &OsStr| match file_name(name.to_str()?)? {
            (relfilenode, Fork::Init, 0) => Some(relfilenode),
            _ => None,
        };
        Self(names.into_iter().filter_map(|n| init(n.as_ref())).collect())
    }

    /// Whether the file of that name, in the same directory, is to be left out.
    pub fn excludes(&self, name: &OsStr) -> bool {
        match name.to_str().and_then(file_name) {
            Some((relfilenode, kind, _)) => kind != Fork::Init && self.0.contains(&relfilenode),
            None => false,
        }
    }
}

/// The directory inside a tablespace that belongs to one version: `PG_15_202209061`.
pub fn tablespace_version_directory(major: u32, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

/// The tablespace and database whose relations lie in `directory`.
fn directory_of_relations(directory: &Path) -> Option<(u32, u32)> {
    let mut parts = directory.iter().map(OsStr::to_str);
    match (
        parts.next()??,
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) {
        ("global", None, None, None, None) => Some((GLOBAL_TABLESPACE, 0)),
        ("base", Some(database), None, None, None) => {
            Some((DEFAULT_TABLESPACE, number(database?)?))
        }
        ("pg_tblspc", Some(tablespace), Some(version), Some(database), None)
            if version?.starts_with("PG_") =>
        {
            Some((number(tablespace?)?, number(database?)?))
        }
        _ => None,
    }
}

/// `OID[_fork][.segment]`
fn file_name(name: &str) -> Option<(u32, Fork, u32)> {
    let (name, segment) = match name.split_once('.') {
        // Segment 0 has no suffix.
        Some((name, segment)) => (name, number(segment)?),
        None => (name, 0),
    };
    let (relfilenode, kind) = match name.split_once('_') {
        None => (name, Fork::Main),
        Some((relfilenode, "fsm")) => (relfilenode, Fork::Fsm),
        Some((relfilenode, "vm")) => (relfilenode, Fork::Vm),
        Some((relfilenode, "init")) => (relfilenode, Fork::Init),
        Some(_) => return None,
    };
    Some((number(relfilenode)?, kind, segment))
}

/// `tBACKEND_OID[_fork][.segment]`
fn is_temporary_relation(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix('t')?.split_once('_'))
        .is_some_and(|(backend, rest)| {
            !backend.is_empty()
                && backend.bytes().all(|b| b.is_ascii_digit())
                && file_name(rest).is_some()
        })
}

/// A positive number as PostgreSQL prints it: digits, without a leading zero.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    (digits && !text.starts_with('0'))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::control::ControlFile;
    use crate::postgres::testing::Server;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_a_server_makes_anew_is_left_out_and_its_directories_stay() {
        use EntryKind::{Directory, File, Other, Symlink};
        for (path, kind, rule) in [
            ("pg_wal", Directory, Rule::SkipContents),
            ("pg_wal", Symlink, Rule::SkipContents),
            ("pg_replslot", Directory, Rule::SkipContents),
            ("pg_stat_tmp", Symlink, Rule::SkipContents),
            ("base/5/pg_wal", Directory, Rule::Include),
            ("postmaster.pid", File, Rule::Skip),
            ("backup_label", File, Rule::Skip),
            ("backup_label.old", File, Rule::Include),
            ("backup_manifest", File, Rule::Skip),
            ("standby.signal", File, Rule::Include),
            ("global/pg_control", File, Rule::Include),
            ("global/pg_internal.init", File, Rule::Skip),
            ("base/5/pg_internal.init.4711", File, Rule::Skip),
            ("base/pgsql_tmp", Directory, Rule::Skip),
            ("base/5/t3_16384", File, Rule::Skip),
            ("base/5/t3_16384_fsm.1", File, Rule::Skip),
            ("base/5/t3_", File, Rule::Include),
            ("t3_16384", File, Rule::Include),
            (
                "pg_tblspc/16999/PG_15_202209061/5/t12_16384",
                File,
                Rule::Skip,
            ),
            ("pg_tblspc/16999", Symlink, Rule::Include),
            ("base/5/16384", Symlink, Rule::SkipSpecial),
            ("log", Symlink, Rule::SkipSpecial),
            (".s.PGSQL.5432", Other, Rule::SkipSpecial),
            ("", Directory, Rule::Include),
        ] {
            assert_eq!(classify(Path::new(path), kind), rule, "{path} {kind:?}");
        }
    }

    #[test]
    fn relation_files_are_known_by_directory_and_name() {
        let parse = |path: &str| {
            RelationFile::parse(Path::new(path))
                .map(|f| (f.tablespace, f.database, f.relfilenode, f.kind, f.segment))
        };
        assert_eq!(parse("base/5/1259"), Some((1663, 5, 1259, Fork::Main, 0)));
        assert_eq!(
            parse("base/5/1259.12"),
            Some((1663, 5, 1259, Fork::Main, 12))
        );
        assert_eq!(parse("global/1262_vm"), Some((1664, 0, 1262, Fork::Vm, 0)));
        assert_eq!(
            parse("pg_tblspc/16999/PG_15_202209061/5/16384_fsm.1"),
            Some((16999, 5, 16384, Fork::Fsm, 1))
        );
        for none in [
            "global/pg_control",
            "global/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/1259_old",
            "base/5/01259",
            "base/5/1259.0",
            "base/5/1259.01",
            "base/5/1259.1.1",
            "base/5/99999999999",
            "base/5/t3_16384",
            "base/x/1259",
            "base/1259",
            "1259",
            "pg_tblspc/16999/5/1259",
            "pg_xact/0000",
        ] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    #[test]
    fn of_an_unlogged_relation_only_the_init_fork_is_kept() {
        let names = ["16384", "16384.1", "16384_fsm", "16384_init", "16390", "x"];
        let unlogged = UnloggedInDirectory::scan(names);
        let kept = names
            .into_iter()
            .filter(|n| !unlogged.excludes(OsStr::new(n)));
        assert_eq!(kept.collect::<Vec<_>>(), ["16384_init", "16390", "x"]);
    }

    /// All files and directories that a backup keeps, by our rules.
    fn kept(data: &Path) -> BTreeSet<String> {
        let mut kept = BTreeSet::new();
        let mut open = vec![String::new()];
        while let Some(directory) = open.pop() {
            let entries = std::fs::read_dir(data.join(&directory)).unwrap();
            let names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            let unlogged = match is_database_directory(Path::new(&directory)) {
                true => UnloggedInDirectory::scan(&names),
                false => UnloggedInDirectory::default(),
            };
            for name in names {
                let path = Path::new(&directory).join(&name);
                let text = path.to_str().unwrap().to_owned();
                let is_directory = data.join(&path).symlink_metadata().unwrap().is_dir();
                let kind = match is_directory {
                    true => EntryKind::Directory,
                    false => EntryKind::File,
                };
                match classify(&path, kind) {
                    Rule::Include if unlogged.excludes(&name) => {}
                    Rule::Include if is_directory => {
                        open.push(text.clone());
                        kept.insert(text);
                    }
                    Rule::Include | Rule::SkipContents => {
                        kept.insert(text);
                    }
                    Rule::Skip | Rule::SkipSpecial => {}
                }
            }
        }
        kept
    }

    #[test]
    fn the_backup_holds_exactly_what_pg_basebackup_takes() {
        let server = Server::with(&[], "");
        server.sql(
            "create table a(x text); create index on a(x); create unlogged table b(x text); \
             insert into a select 1; insert into b select 1",
        );
        server.sql("vacuum");
        let temporary = server.data().join("base/1/t3_16384");
        server.write(&temporary, "");
        let copy = server.path().join("copy");
        let (host, port) = (server.path(), server.port().to_string());
        server.run(
            "pg_basebackup",
            &[
                "-h",
                &host.to_string_lossy(),
                "-p",
                &port,
                "-U",
                "postgres",
                "-X",
                "none",
                "-D",
                &copy.to_string_lossy(),
            ],
        );
        let mut theirs = BTreeSet::new();
        let mut open = vec![copy.clone()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let path = entry.path();
                theirs.insert(path.strip_prefix(&copy).unwrap().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    open.push(path);
                }
            }
        }
        // What it makes itself is not of the directory; a starting server makes the third.
        for own in [
            BACKUP_LABEL,
            BACKUP_MANIFEST,
            "pg_wal/archive_status",
            "pg_wal/summaries",
        ] {
            theirs.remove(own);
        }
        let ours = kept(&server.data());
        assert_eq!(ours, theirs);

        let oid = server.sql("select oid from pg_database where datname = 'postgres'");
        let node = server.sql("select pg_relation_filenode('b')");
        assert!(ours.contains(&format!("base/{oid}/{node}_init")));
        assert!(!ours.contains(&format!("base/{oid}/{node}")));
    }

    #[test]
    fn the_directory_in_a_tablespace_is_named_as_the_server_names_it() {
        let server = Server::start();
        let place = server.path().join("space");
        std::fs::create_dir(&place).unwrap();
        server.give_away(&place);
        let place = place.to_string_lossy().into_owned();
        server.sql(&format!("create tablespace s location '{place}'"));
        let control = ControlFile::read(&server.data()).unwrap();
        let name = tablespace_version_directory(control.major, control.catalog_version);
        assert!(Path::new(&place).join(name).is_dir());
    }

    proptest! {
        #[test]
        fn no_name_panics(path in ".{0,60}", name in "[t0-9_.a-z]{0,20}") {
            let _ = classify(Path::new(&path), EntryKind::File);
            let _ = RelationFile::parse(Path::new(&path));
            let path = format!("base/5/{name}");
            let temporary = classify(Path::new(&path), EntryKind::File) == Rule::Skip;
            prop_assert!(!(temporary && is_relation_path(Path::new(&path))));
        }
    }
}
