//! PostgreSQL's archiver without a server: segments that wait, asked for one at a time, oldest
//! first, `.ready` renamed to `.done` after 0 (PostgreSQL 18, pgarch.c).

use std::path::PathBuf;

use crate::process::Output;
use crate::scratch::{give_to_owner, make_directory};
use crate::segment::name;
use crate::{Segment, Site};

/// The segments of a [`Site`] that never started.
#[derive(Debug)]
pub struct Archiver<'a> {
    site: &'a Site,
    template: Segment,
}

impl<'a> Archiver<'a> {
    /// Nothing waits yet.
    #[track_caller]
    pub fn of(site: &'a Site) -> Self {
        make_directory(&site.wal("archive_status"));
        let entries = std::fs::read_dir(site.wal("")).expect("pg_wal is there");
        let mut files = entries.flatten().map(|entry| entry.path());
        let any = files.find(|path| path.is_file());
        let template = Segment::read(any.expect("initdb leaves a segment"));
        Self { site, template }
    }

    /// What segment `number` holds.
    pub fn content(&self, number: u64) -> Vec<u8> {
        let segment = self.template.clone().numbered(number);
        segment.content(number as u8).0
    }

    /// Something else that it might hold.
    pub fn other_content(&self, number: u64) -> Vec<u8> {
        let segment = self.template.clone().numbered(number);
        segment.content(!(number as u8)).0
    }

    /// Writes these segments and says that they are ready.
    pub fn make(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.write(number, &self.content(number));
            let status = self.status(number, "ready");
            std::fs::write(&status, "").expect("the status can be written");
            give_to_owner(&status);
        }
    }

    /// Writes other content into a segment, or the same again.
    pub fn write(&self, number: u64, content: &[u8]) {
        let path = self.site.wal(&name(number));
        std::fs::write(&path, content).expect("the segment can be written");
        give_to_owner(&path);
    }

    /// Where the state of a segment is told.
    pub fn status(&self, number: u64, state: &str) -> PathBuf {
        let status = format!("archive_status/{}.{state}", name(number));
        self.site.wal(&status)
    }

    /// The file that remembers a segment that was archived ahead.
    pub fn remembered(&self, number: u64) -> PathBuf {
        self.site.wal("seawall/archive").join(name(number))
    }

    /// Believes an answer of the archive_command.
    pub fn take(&self, number: u64, output: &Output) {
        if output.code == 0 {
            let (ready, done) = (self.status(number, "ready"), self.status(number, "done"));
            std::fs::rename(ready, done).expect("it was ready");
        }
    }

    /// Asks for one segment as PostgreSQL does.
    #[track_caller]
    pub fn ask(&self, number: u64) -> Output {
        let output = self.site.push(&name(number));
        self.take(number, &output);
        output
    }

    /// Panics unless the repository holds exactly this content of the segment.
    #[track_caller]
    pub fn assert_stored(&self, number: u64) {
        let near = &self.site.near;
        let plain = near.plain(&near.one_wal(&name(number)));
        assert!(plain == self.content(number), "segment {number}");
    }
}
