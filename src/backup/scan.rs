//! Walking a data directory and its tablespaces, and cutting what is found into batches that
//! become packs. Memory: the names of one directory at a time.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::incremental::Basis;
use crate::error::{Error, IoContext, Result};
use crate::postgres::layout::{self, EntryKind, Rule, UnloggedInDirectory};
use crate::repository::index::{FileIdentity, Member, MemberKind};

/// A pack of several files aims at this many plain bytes; a larger file has one of its own.
pub const BATCH_BYTES: u64 = 256 << 20;

/// So many members make a batch, however small they are: it bounds the index.
pub const BATCH_MEMBERS: usize = 16_384;

/// A file or directory that belongs to the backup.
#[derive(Debug, Clone)]
pub struct Found {
    /// As the index will say it, with the size at the time of the scan.
    pub member: Member,
    /// Where it lies on this host.
    pub source: PathBuf,
    /// What is known of it before it is read.
    pub basis: Basis,
}

/// Where a scan starts.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The data directory.
    pub data_directory: PathBuf,
    /// `PG_15_202209061`: what of a tablespace belongs to this server.
    pub tablespace_version: String,
    /// The links in `pg_tblspc` just after the backup began: a younger tablespace is not of
    /// this backup, and replay creates it.
    pub tablespaces: Vec<OsString>,
}

/// The links in `pg_tblspc`, by their names: the tablespaces outside the data directory.
pub fn tablespace_links(data_directory: &Path) -> Result<Vec<OsString>> {
    let directory = data_directory.join("pg_tblspc");
    let names = names_in(&directory).on("read the directory", &directory)?;
    let links = names
        .iter()
        .filter(|name| directory.join(name).is_symlink());
    Ok(links.map(OsStr::to_owned).collect())
}

/// Walks the tree and hands over batch after batch, each one pack's worth, in the repository's
/// [order](crate::repository::order). `pg_control` is left out: it is copied last, by whoever
/// ends the backup. `weigh` sees each file in that order, and says how many bytes of it a pack
/// will hold. A batch ends before every path for which `cut` is true.
pub fn scan(
    tree: &Tree,
    mut weigh: impl FnMut(&mut Found) -> Result<u64>,
    cut: impl Fn(&str) -> bool,
    mut batch: impl FnMut(Vec<Found>) -> Result<()>,
) -> Result<()> {
    let pack_bytes = pack_bytes();
    let mut current = Vec::new();
    let mut bytes = 0;
    let mut found = |mut found: Found| {
        let size = weigh(&mut found)?;
        if bytes + size > pack_bytes || current.len() >= BATCH_MEMBERS || cut(&found.member.path) {
            bytes = 0;
            if !current.is_empty() {
                batch(std::mem::take(&mut current))?;
            }
        }
        if size >= pack_bytes {
            return batch(vec![found]);
        }
        bytes += size;
        current.push(found);
        Ok(())
    };
    walk(tree, &mut found)?;
    if current.is_empty() {
        Ok(())
    } else {
        batch(current)
    }
}

/// How many bytes the files have together that a scan finds; `go_on` is asked at each.
pub fn total_size(tree: &Tree, go_on: impl Fn() -> Result<()>) -> Result<u64> {
    let mut total = 0;
    walk(tree, &mut |found: Found| {
        total += found.member.size;
        go_on()
    })?;
    Ok(total)
}

/// How much makes a pack. In builds for tests `SEAWALL_TEST_PACK_BYTES` says so: few databases
/// of tests would have more than one.
fn pack_bytes() -> u64 {
    #[cfg(feature = "fault-injection")]
    if let Some(bytes) = std::env::var("SEAWALL_TEST_PACK_BYTES")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return bytes;
    }
    BATCH_BYTES
}

fn walk(tree: &Tree, found: &mut impl FnMut(Found) -> Result<()>) -> Result<()> {
    // Directories still to be read: relative path and where it lies.
    let mut pending: Vec<(PathBuf, PathBuf)> = vec![(PathBuf::new(), tree.data_directory.clone())];
    while let Some((relative, directory)) = pending.pop() {
        let first_of_ours = pending.len();
        let names = match names_in(&directory) {
            // Dropped meanwhile, with all that was in it.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && relative != Path::new("") =>
            {
                continue;
            }
            names => names.on("read the directory", &directory)?,
        };
        let unlogged = UnloggedInDirectory::scan(names.iter());
        for name in names.iter() {
            if unlogged.excludes(name) && layout::is_database_directory(&relative) {
                continue;
            }
            let path = relative.join(name);
            if path == Path::new(layout::CONTROL_FILE) {
                continue;
            }
            let source = directory.join(name);
            let Some(metadata) = metadata(&source)? else {
                continue;
            };
            let kind = kind_of(&metadata);
            match (layout::classify(&path, kind), kind) {
                (Rule::Skip, _) => {}
                (Rule::SkipSpecial, _) => {
                    tracing::warn!(
                        "{} is neither a file nor a directory of PostgreSQL's and is left out",
                        source.display()
                    );
                }
                (Rule::SkipContents, _) => found(directory_found(&path, &metadata, source)?)?,
                (Rule::Include, EntryKind::Directory) => {
                    found(directory_found(&path, &metadata, source.clone())?)?;
                    pending.push((path, source));
                }
                (Rule::Include, EntryKind::Symlink)
                    if !tree.tablespaces.iter().any(|known| known == name) => {}
                (Rule::Include, EntryKind::Symlink) => {
                    // A tablespace: only what belongs to this server's version.
                    let (path, source) = (
                        path.join(&tree.tablespace_version),
                        source.join(&tree.tablespace_version),
                    );
                    if let Some(metadata) = metadata_of_target(&source)? {
                        found(directory_found(&path, &metadata, source.clone())?)?;
                        pending.push((path, source));
                    }
                }
                (Rule::Include, _) => {
                    let mut member = member(&path, &metadata)?;
                    member.kind = MemberKind::File;
                    member.size = metadata.len();
                    if layout::is_relation_path(&path) {
                        member.identity = Some(identity(&metadata));
                    }
                    let basis = Basis::Nothing;
                    found(Found {
                        member,
                        source,
                        basis,
                    })?;
                }
            }
        }
        // The first by name is entered first.
        pending[first_of_ours..].reverse();
    }
    Ok(())
}

/// The names of one directory, sorted. A database of millions of relations is one directory:
/// memory is their bytes and eight more for each.
struct Names {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<[u32; 2]>,
}

impl Names {
    fn iter(&self) -> impl Iterator<Item = &OsStr> {
        self.places
            .iter()
            .map(|[from, to]| OsStr::from_bytes(&self.bytes[*from as usize..*to as usize]))
    }
}

fn names_in(directory: &Path) -> std::io::Result<Names> {
    let too_many = || std::io::Error::other("the directory has more names than 4 GiB");
    let (mut bytes, mut places) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(directory)? {
        let from = bytes.len() as u32;
        bytes.extend_from_slice(entry?.file_name().as_bytes());
        let to = u32::try_from(bytes.len()).map_err(|_| too_many())?;
        places.push([from, to]);
    }
    let name = |[from, to]: &[u32; 2]| &bytes[*from as usize..*to as usize];
    places.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    Ok(Names { bytes, places })
}

/// What `lstat` says; `None` for what vanished meanwhile.
fn metadata(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(Some).on("look at", path),
    }
}

fn metadata_of_target(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(Some).on("look at", path),
    }
}

fn kind_of(metadata: &Metadata) -> EntryKind {
    match metadata.file_type() {
        kind if kind.is_file() => EntryKind::File,
        kind if kind.is_dir() => EntryKind::Directory,
        kind if kind.is_symlink() => EntryKind::Symlink,
        _ => EntryKind::Other,
    }
}

fn directory_found(path: &Path, metadata: &Metadata, source: PathBuf) -> Result<Found> {
    let mut member = member(path, metadata)?;
    if metadata.is_symlink() {
        // pg_wal behind a link: what is kept is an empty directory like that one.
        let target = metadata_of_target(&source)?;
        member.mode = target.map_or(0o700, |target| target.permissions().mode() & 0o7777);
    }
    Ok(Found {
        member,
        source,
        basis: Basis::Nothing,
    })
}

/// What tells a file from another that later takes its name.
pub fn identity(metadata: &Metadata) -> FileIdentity {
    let born = metadata.created().ok();
    FileIdentity {
        inode: metadata.ino(),
        born: born.and_then(|born| Timestamp::try_from(born).ok()),
    }
}

/// The index's line for `path`, as a directory of size 0.
pub fn member(path: &Path, metadata: &Metadata) -> Result<Member> {
    let text = path.to_str().ok_or_else(|| {
        Error::failed(format!("the name of {} is not UTF-8", path.display()))
            .hint("PostgreSQL makes no such files: move it out of the data directory")
    })?;
    let mtime = Timestamp::from_second(metadata.mtime()).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(Member::directory(
        text.to_owned(),
        metadata.permissions().mode() & 0o7777,
        mtime,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::order;

    fn weigh(found: &mut Found) -> Result<u64> {
        Ok(found.member.size)
    }

    fn paths(directory: &Path) -> Vec<String> {
        let tree = Tree {
            data_directory: directory.to_owned(),
            tablespace_version: "PG_15_202209061".to_owned(),
            tablespaces: vec!["16399".into()],
        };
        let mut paths = Vec::new();
        scan(
            &tree,
            weigh,
            |_| false,
            |batch| {
                paths.extend(batch.into_iter().map(|found| found.member.path));
                Ok(())
            },
        )
        .unwrap();
        paths.sort();
        paths
    }

    fn touch(root: &Path, path: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap();
    }

    #[test]
    fn a_scan_finds_what_belongs_to_a_backup_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("data");
        let elsewhere = scratch.path().join("wal");
        let space = scratch.path().join("space");
        for path in [
            "PG_VERSION",
            "postmaster.pid",
            "backup_label",
            "base/5/1259",
            "base/5/1259_fsm",
            "base/5/16384",
            "base/5/16384_init",
            "base/5/t3_16390",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "global/pg_control",
            "pg_replslot/slot/state",
        ] {
            touch(&data, path);
        }
        std::fs::create_dir(&elsewhere).unwrap();
        touch(&elsewhere, "000000010000000000000001");
        std::os::unix::fs::symlink(&elsewhere, data.join("pg_wal")).unwrap();
        touch(&space, "PG_15_202209061/5/16400");
        touch(&space, "PG_14_202107181/5/16400");
        std::fs::create_dir(data.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16399")).unwrap();
        assert_eq!(
            paths(&data),
            [
                "PG_VERSION",
                "base",
                "base/5",
                "base/5/1259",
                "base/5/1259_fsm",
                "base/5/16384_init",
                "global",
                "pg_replslot",
                "pg_tblspc",
                "pg_tblspc/16399/PG_15_202209061",
                "pg_tblspc/16399/PG_15_202209061/5",
                "pg_tblspc/16399/PG_15_202209061/5/16400",
                "pg_wal",
            ]
        );
    }

    #[test]
    fn files_are_found_in_the_order_of_the_repository() {
        let scratch = tempfile::tempdir().unwrap();
        for path in [
            "base/5/1",
            "base/5/1.1",
            "base/10/2",
            "base/5/1_fsm",
            "global/3",
            "x",
            "a",
        ] {
            touch(scratch.path(), path);
        }
        let tree = Tree {
            data_directory: scratch.path().to_owned(),
            tablespace_version: String::new(),
            tablespaces: Vec::new(),
        };
        let mut files = Vec::new();
        scan(
            &tree,
            weigh,
            |_| false,
            |batch| {
                let of_files = batch
                    .into_iter()
                    .filter(|f| f.member.kind == MemberKind::File);
                files.extend(of_files.map(|found| found.member.path));
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(files.len(), 7);
        assert!(
            files.is_sorted_by(|a, b| order::compare(a, b).is_lt()),
            "{files:?}"
        );
    }

    #[test]
    fn the_total_is_that_of_all_files_and_counting_can_be_ended() {
        let scratch = tempfile::tempdir().unwrap();
        for path in ["base/5/1", "global/3", "x"] {
            touch(scratch.path(), path);
            let file = std::fs::File::options()
                .write(true)
                .open(scratch.path().join(path));
            file.unwrap().set_len(1000).unwrap();
        }
        let tree = Tree {
            data_directory: scratch.path().to_owned(),
            tablespace_version: String::new(),
            tablespaces: Vec::new(),
        };
        assert_eq!(total_size(&tree, || Ok(())).unwrap(), 3000);
        assert!(total_size(&tree, || Err(Error::failed("stop"))).is_err());
    }

    #[test]
    fn small_files_share_batches_of_a_bounded_number() {
        let scratch = tempfile::tempdir().unwrap();
        for number in 0..20 {
            touch(scratch.path(), &format!("base/5/{}", 16384 + number));
        }
        let tree = Tree {
            data_directory: scratch.path().to_owned(),
            tablespace_version: String::new(),
            tablespaces: Vec::new(),
        };
        let mut batches = 0;
        scan(
            &tree,
            weigh,
            |_| false,
            |_| {
                batches += 1;
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(batches, 1);
    }
}
