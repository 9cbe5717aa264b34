//! The members of a pack, held against its plain tar stream as that passes: tar's own headers,
//! offsets, digests, checksums, pages. Bytes that could not be opened cost the files that they
//! belong to, and no other.

use crate::digest::{PlainDigest, PlainHasher};
use crate::error::Result;
use crate::postgres::layout;
use crate::repository::index::{Member, MemberKind};
use crate::repository::pack::FRAME_SIZE;
use crate::repository::seek_table::SeekTable;

use super::checker::PageChecker;
use super::finding::{Finding, Kind, NAMED, ranges};
use crate::backup::pages::Pages;

/// Between two files lie headers and names of directories: 16,384 of them at the most, in any
/// pack that was ever written.
const LARGEST_GAP: u64 = 64 << 20;

/// Walks along the plain bytes of one pack. Memory: what lies between two files, and one page.
pub(super) struct Walker<'a, I> {
    members: I,
    pages: Pages,
    table: &'a SeekTable,
    /// The pack, as findings name it.
    key: &'a str,
    at: u64,
    /// Members whose headers lie before the next file's bytes; that file comes last.
    ahead: Vec<Member>,
    /// Whether `ahead` holds a file, or all that is left.
    looked_ahead: bool,
    gap: Vec<u8>,
    gap_is_lost: bool,
    file: Option<OpenFile>,
    /// The index cannot be followed any further.
    lost: bool,
    out: Walked,
}

struct OpenFile {
    member: Member,
    left: u64,
    hasher: PlainHasher,
    crc32c: u32,
    checker: Option<PageChecker>,
    is_lost: bool,
}

/// What came of a pack.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Regular files.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) plain_bytes: u64,
    /// Pages that were checked.
    pub(super) pages: u64,
    /// Pages that the backup knows to be damaged.
    pub(super) known_damaged: u64,
    /// Files that cannot be restored from it: the first of them.
    pub(super) lost_files: Vec<String>,
    /// How many there are.
    pub(super) lost_file_count: u64,
    /// All files, folded, for the comparison with the manifest.
    pub(super) folded: FoldedFiles,
    /// What else is wrong.
    pub(super) findings: Vec<Finding>,
}

/// Paths, sizes and CRC-32Cs of any number of files, in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FoldedFiles {
    pub(super) names: u128,
    pub(super) contents: u128,
    pub(super) count: u64,
}

impl FoldedFiles {
    /// Adds a file. A restored directory has no tablespace_map, and the manifest names none.
    pub(super) fn add(&mut self, path: &[u8], size: u64, crc32c: u32) {
        if path == layout::TABLESPACE_MAP.as_bytes() {
            return;
        }
        let mut text = [format!("{size} ").as_bytes(), path].concat();
        self.names = self.names.wrapping_add(PlainDigest::of(&text).as_number());
        text.extend_from_slice(&crc32c.to_le_bytes());
        self.contents = self
            .contents
            .wrapping_add(PlainDigest::of(&text).as_number());
        self.count += 1;
    }

    pub(super) fn join(&mut self, other: Self) {
        self.names = self.names.wrapping_add(other.names);
        self.contents = self.contents.wrapping_add(other.contents);
        self.count += other.count;
    }
}

impl<'a, I: Iterator<Item = Result<Member>>> Walker<'a, I> {
    pub(super) fn new(members: I, pages: Pages, table: &'a SeekTable, key: &'a str) -> Self {
        Self {
            members,
            pages,
            table,
            key,
            at: 0,
            ahead: Vec::new(),
            looked_ahead: false,
            gap: Vec::new(),
            gap_is_lost: false,
            file: None,
            lost: false,
            out: Walked::default(),
        }
    }

    /// The next frame: so many plain bytes, and those if it could be opened.
    pub(super) fn frame(&mut self, size: u64, plain: Option<&[u8]>) {
        let mut done = 0;
        while done < size && !self.lost {
            let left = size - done;
            let taken = match &self.file {
                Some(file) => file.left.min(left),
                None => {
                    self.look_ahead();
                    if self.lost {
                        return;
                    }
                    let next = self.next_file().map_or(u64::MAX, |file| file.offset);
                    (next - self.at).min(left)
                }
            };
            let bytes = plain.map(|plain| &plain[done as usize..(done + taken) as usize]);
            match &mut self.file {
                Some(file) => file.update(bytes, taken),
                None => self.pass_gap(bytes, taken),
            }
            done += taken;
            self.at += taken;
            self.step();
        }
    }

    /// Ends the walk behind the last frame.
    pub(super) fn finish(mut self) -> Walked {
        self.step();
        if !self.lost {
            self.look_ahead();
        }
        if self.lost {
            return self.out;
        }
        let unmet = self.file.take().map(|file| file.member);
        let unmet = unmet.or_else(|| self.next_file().cloned());
        if let Some(member) = unmet {
            self.inconsistent(format!("it ends before the end of {}", member.path));
            return self.out;
        }
        self.check_gap();
        self.out
    }

    /// Ends and begins files as far as the bytes have come.
    fn step(&mut self) {
        loop {
            if let Some(file) = self.file.take_if(|file| file.left == 0) {
                self.end_file(file);
            }
            let may_begin = self.file.is_none() && self.looked_ahead && !self.lost;
            let offset = self.next_file().map(|file| file.offset);
            if !may_begin || offset != Some(self.at) {
                return;
            }
            self.check_gap();
            let Some(member) = self.ahead.pop() else {
                return;
            };
            self.ahead.clear();
            self.looked_ahead = false;
            self.file = Some(OpenFile {
                left: member.size,
                hasher: PlainHasher::default(),
                crc32c: 0,
                checker: PageChecker::of(&member, self.pages),
                is_lost: false,
                member,
            });
            if self.file.as_ref().is_some_and(|file| file.left > 0) {
                return;
            }
        }
    }

    fn next_file(&self) -> Option<&Member> {
        let last = self.ahead.last()?;
        (last.kind == MemberKind::File).then_some(last)
    }

    /// Reads the index up to the next file.
    fn look_ahead(&mut self) {
        while !self.looked_ahead {
            match self.members.next() {
                None => self.looked_ahead = true,
                Some(Ok(member)) => {
                    self.looked_ahead = member.kind == MemberKind::File;
                    if self.looked_ahead && member.offset < self.at {
                        let what = format!("its index names {} out of order", member.path);
                        self.lose(what);
                        return;
                    }
                    self.ahead.push(member);
                }
                Some(Err(error)) => {
                    self.lose(error.one_line());
                    return;
                }
            }
        }
    }

    fn lose(&mut self, what: String) {
        self.inconsistent(what);
        self.lost = true;
    }

    fn inconsistent(&mut self, what: String) {
        self.out
            .findings
            .push(Finding::new(Kind::Inconsistent, self.key, what));
    }

    fn pass_gap(&mut self, bytes: Option<&[u8]>, size: u64) {
        let too_large = self.gap.len() as u64 + size > LARGEST_GAP;
        match bytes {
            Some(bytes) if !too_large => self.gap.extend_from_slice(bytes),
            Some(_) => self.lose("between two of its files lies more than an index tells".into()),
            None => self.gap_is_lost = true,
        }
    }

    /// What lies before a file, or at the end: the headers of those members that the index
    /// names, and zeros. So `tar x` brings what a restore brings.
    fn check_gap(&mut self) {
        let gap = std::mem::take(&mut self.gap);
        if std::mem::take(&mut self.gap_is_lost) {
            return;
        }
        // What fills up the block of the file before.
        let begins = self.at - gap.len() as u64;
        let padding = (begins.next_multiple_of(512) - begins) as usize;
        let headers = gap.get(padding..).unwrap_or_default();
        if let Err(why) = same_headers(headers, &self.ahead) {
            self.inconsistent(why);
        }
    }

    fn end_file(&mut self, file: OpenFile) {
        let member = &file.member;
        self.out.files += 1;
        self.out.plain_bytes += member.size;
        self.out.known_damaged += member.damaged_blocks.len() as u64;
        if file.is_lost {
            self.lose_file(member);
            return;
        }
        if Some(file.hasher.finish()) != member.digest
            || member.crc32c.is_some_and(|crc32c| crc32c != file.crc32c)
        {
            self.lose_file(member);
            return;
        }
        self.out
            .folded
            .add(member.path.as_bytes(), member.size, file.crc32c);
        if let Some(why) = misplaced(member, self.table) {
            self.inconsistent(why);
        }
        let Some(checked) = file.checker.map(|checker| checker.finish(member)) else {
            return;
        };
        self.out.pages += checked.pages;
        if let Some(why) = checked.header {
            self.inconsistent(format!("{}: {why}", member.path));
        }
        if checked.wrong_count > 0 {
            let shown = &checked.wrong[..checked.wrong.len().min(10)];
            let more = checked.wrong_count - shown.len() as u64;
            let more = match more {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let what = format!(
                "the page checksum is wrong in {} block {}{more}, and the backup does not know of it",
                member.path,
                ranges(shown)
            );
            self.out.findings.push(Finding {
                files: vec![member.path.clone()],
                blocks: checked.wrong,
                ..Finding::new(Kind::Page, self.key, what)
            });
        }
    }

    fn lose_file(&mut self, member: &Member) {
        self.out.lost_file_count += 1;
        if self.out.lost_files.len() < NAMED {
            self.out.lost_files.push(member.path.clone());
        }
    }
}

impl OpenFile {
    fn update(&mut self, bytes: Option<&[u8]>, size: u64) {
        self.left -= size;
        match bytes {
            None => self.is_lost = true,
            Some(_) if self.is_lost => {}
            Some(bytes) => {
                self.hasher.update(bytes);
                self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
                if let Some(checker) = &mut self.checker {
                    checker.update(bytes);
                }
            }
        }
    }
}

/// Why a reader that wants this file alone would fetch the wrong bytes.
fn misplaced(member: &Member, table: &SeekTable) -> Option<String> {
    let frame = FRAME_SIZE as u64;
    let first = member.offset / frame;
    let end = member.offset.saturating_add(member.size);
    let past = end.div_ceil(frame).max(first);
    let [start, end] = member.frames;
    if (u64::from(start), u64::from(end)) != (first, past) {
        return Some(format!(
            "its index says that {} is in the frames {start} to {end}; it is in {first} to {past}",
            member.path
        ));
    }
    let stored = [table.start(start), table.start(end)];
    (member.stored != stored).then(|| {
        format!(
            "its index says that {} is stored at {} to {}; it is at {} to {}",
            member.path, member.stored[0], member.stored[1], stored[0], stored[1]
        )
    })
}

/// Whether `headers` are those of `members`, and nothing behind them.
fn same_headers(headers: &[u8], members: &[Member]) -> Result<(), String> {
    let mut archive = tar::Archive::new(headers);
    let broken = |error: std::io::Error| format!("tar cannot read it: {error}");
    let mut entries = archive.entries().map_err(broken)?;
    for member in members {
        let entry = entries
            .next()
            .ok_or_else(|| format!("its index names {}, and tar would not find it", member.path))?;
        let entry = entry.map_err(broken)?;
        let path = entry.path_bytes();
        let path = path.strip_suffix(b"/").unwrap_or(&path);
        let kind = entry.header().entry_type();
        let same_kind = match member.kind {
            MemberKind::Directory => kind.is_dir(),
            MemberKind::File => kind.is_file(),
        };
        if path != member.path.as_bytes() || !same_kind || entry.size() != member.size {
            return Err(format!(
                "its index names {} ({} bytes) where tar finds {} ({} bytes)",
                member.path,
                member.size,
                String::from_utf8_lossy(path),
                entry.size()
            ));
        }
        if member.kind == MemberKind::File {
            // Its bytes are not in the gap, and nothing comes before them.
            return Ok(());
        }
    }
    match entries.next() {
        None => {}
        Some(Ok(entry)) => {
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            return Err(format!("tar finds {path}, which its index does not name"));
        }
        Some(Err(error)) => return Err(broken(error)),
    }
    match headers.ends_with(&[0; 1024]) {
        true => Ok(()),
        false => Err("its tar stream has no end".to_owned()),
    }
}
