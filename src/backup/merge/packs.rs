//! Writing what a chain comes to into new packs, several at once.

use crate::backup::file::FileRead;
use crate::backup::manifest::StreamedManifest;
use crate::backup::packer::{Pack, Packed, Packer};
use crate::backup::scan::{BATCH_BYTES, BATCH_MEMBERS};
use crate::backup::sums::Sums;
use crate::error::Result;
use crate::postgres::{label, layout};
use crate::repository::chain::files::ChainFile;
use crate::repository::chain::join::{Entry, Join};
use crate::repository::chain::read::{Part, Reader};
use crate::repository::index::{Member, MemberKind};

/// Makes the packs of a merged backup.
pub(super) struct Merger {
    pub(super) packer: Packer,
    pub(super) block_size: u32,
}

/// What becomes one pack.
enum Content {
    Directory(Box<Member>),
    File(Part),
}

struct Batch {
    bytes: u64,
    contents: Vec<Content>,
}

impl Merger {
    /// Reads all of `join` and writes it with `jobs` threads. Blocks.
    pub(super) fn run(
        &self,
        join: Join,
        mut manifest: StreamedManifest,
        jobs: usize,
    ) -> Result<(Sums, StreamedManifest)> {
        let mut sums = Sums::default();
        let plan = |hand_out: &mut dyn FnMut(Batch) -> Result<()>| Batches::new(hand_out).run(join);
        let make = |number, batch| self.pack(number, &batch);
        self.packer.in_parallel(jobs, plan, make, |pack| {
            manifest.add(&pack.files)?;
            sums.add(&pack, self.block_size);
            Ok(())
        })?;
        Ok((sums, manifest))
    }

    fn pack(&self, number: u32, batch: &Batch) -> Result<Packed> {
        let fill = |pack: &mut Pack<'_>, read: &mut _| self.fill(pack, &batch.contents, read);
        let pack = self.packer.write_pack(number, batch.bytes, fill)?;
        Ok(Packed::Written(pack))
    }

    fn fill(
        &self,
        pack: &mut Pack<'_>,
        contents: &[Content],
        read: &mut Vec<Option<FileRead>>,
    ) -> Result<()> {
        let parts = contents.iter().filter_map(|content| match content {
            Content::File(part) => Some(part),
            Content::Directory(_) => None,
        });
        let mut reader = Reader::new(&self.packer.store, &self.packer.waiter, parts)?;
        for content in contents {
            let part = match content {
                Content::Directory(member) => {
                    pack.directory(Member::clone(member))?;
                    continue;
                }
                Content::File(part) => part,
            };
            let file = &part.file;
            let mut crc32c = 0;
            let is_label = file.path == layout::BACKUP_LABEL;
            if is_label {
                // That of a full backup.
                let label = label::without_increment(&reader.read_small(part)?);
                pack.begin_file(member_of(file, label.len() as u64))?;
                pack.write(&label)?;
                crc32c = crc32c::crc32c(&label);
            } else {
                pack.begin_file(member_of(file, file.size))?;
                reader.read(part, &mut |bytes| {
                    crc32c = crc32c::crc32c_append(crc32c, bytes);
                    pack.write(bytes)
                })?;
            }
            pack.end_file(file.damaged_blocks.clone())?;
            let packed = pack.members().last().and_then(|member| member.digest);
            if let Some(packed) = packed.filter(|_| !is_label) {
                file.verify(packed)?;
            }
            let damaged = file.damaged_blocks.len() as u64;
            read.push(Some(FileRead { crc32c, damaged }));
            self.packer.passed(file.size)?;
        }
        Ok(())
    }
}

/// Gathers what becomes one pack, in order.
struct Batches<'a> {
    hand_out: &'a mut dyn FnMut(Batch) -> Result<()>,
    current: Vec<Content>,
    bytes: u64,
}

impl<'a> Batches<'a> {
    fn new(hand_out: &'a mut dyn FnMut(Batch) -> Result<()>) -> Self {
        Self {
            hand_out,
            current: Vec::new(),
            bytes: 0,
        }
    }

    fn run(mut self, join: Join) -> Result<()> {
        let mut is_last = false;
        for entry in join {
            match entry? {
                Entry::Directory(member) => self.add(Content::Directory(Box::new(member)), 0)?,
                Entry::File(file) => {
                    // pg_control and the labels stand alone, outside of the order.
                    if file.is_of_last_pack() && !is_last {
                        is_last = true;
                        self.flush()?;
                    }
                    let size = file.size;
                    self.add(Content::File(Part::whole(file)), size)?;
                }
            }
        }
        self.flush()
    }

    fn add(&mut self, content: Content, size: u64) -> Result<()> {
        if self.bytes + size > BATCH_BYTES || self.current.len() >= BATCH_MEMBERS {
            self.flush()?;
        }
        self.bytes += size;
        self.current.push(content);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let batch = Batch {
            bytes: self.bytes + 1536 * self.current.len() as u64,
            contents: std::mem::take(&mut self.current),
        };
        self.bytes = 0;
        (self.hand_out)(batch)
    }
}

fn member_of(file: &ChainFile, size: u64) -> Member {
    let mut member = Member::directory(file.path.clone(), file.mode, file.modified);
    member.kind = MemberKind::File;
    member.size = size;
    member.identity = file.identity.clone();
    member
}
