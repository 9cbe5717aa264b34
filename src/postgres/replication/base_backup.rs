//! `BASE_BACKUP`: a cluster's files as tar archives, one a tablespace, and PostgreSQL's own
//! manifest of them.
//!
//! From 15 on all of it comes in one COPY whose messages begin with a letter; 14 makes one COPY
//! of each archive and has an older grammar. In both, the stop comes as a row after all data,
//! and an error may still follow that row: only [`Piece::End`] says that there is a backup.
//! Facts: `src/backend/backup/basebackup.c` and `basebackup_copy.c`, for 14
//! `src/backend/replication/basebackup.c` and `repl_gram.y`.

use std::time::Duration;

use bytes::{Buf, Bytes};

use super::wire::{Message, tag};
use super::{Session, quoted};
use crate::error::{Error, Result};
use crate::postgres::{Lsn, TimelineId};

/// What the server is asked for. Checksums of pages are always verified, WAL is never sent,
/// and the manifest comes with CRC-32C.
#[derive(Debug, Clone)]
pub struct Request {
    /// What backup_label says.
    pub label: String,
    /// An immediate checkpoint instead of a spread one.
    pub fast: bool,
    /// At most so many kilobytes a second; the server takes 32 to 1,048,576.
    pub max_rate: Option<u32>,
    /// How long the backup's checkpoint may take.
    pub checkpoint_limit: Duration,
    /// How long the server may be silent once data flows.
    pub silence_limit: Duration,
}

/// A base backup that is being sent.
pub struct BaseBackup {
    session: Session,
    start: (Lsn, TimelineId),
    tablespaces: Vec<SentTablespace>,
    silence_limit: Duration,
    state: State,
}

/// A tablespace that is sent, in the order of the archives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentTablespace {
    /// Its oid; `None` is the data directory itself.
    pub oid: Option<u32>,
    /// About so many bytes.
    pub size: u64,
}

/// What comes, in this order: each archive with its data, the manifest with its data, the end.
#[derive(Debug)]
pub enum Piece {
    /// An archive begins: of a tablespace, or of the data directory.
    Archive(Option<u32>),
    /// The manifest begins.
    Manifest,
    /// More of what began last.
    Data(Bytes),
    /// The backup is complete and the server has nothing to add: where it ends.
    End(Lsn, TimelineId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between two COPYs, and how many there were.
    Between(usize),
    /// In one of them.
    Copying(usize),
}

const DOING: &str = "take a base backup";

impl Session {
    /// Starts a base backup and waits for its checkpoint.
    ///
    /// # Errors
    /// The server's own words: no right to, `full_page_writes` off, too many walsenders.
    pub async fn base_backup(mut self, request: &Request) -> Result<BaseBackup> {
        let command = request.command(self.major);
        self.send(&command).await?;
        let rows = self.rows(request.checkpoint_limit, DOING).await?;
        let start = rows.first().map(Vec::as_slice).unwrap_or_default();
        let what = "where the backup starts";
        let start = (self.parsed(start, 0, what)?, self.parsed(start, 1, what)?);
        let rows = self.rows(request.silence_limit, DOING).await?;
        let mut tablespaces = Vec::with_capacity(rows.len());
        for row in rows {
            let what = "the list of tablespaces";
            let oid = match row.first() {
                Some(None) => None,
                _ => Some(self.parsed(&row, 0, what)?),
            };
            let kibibytes: u64 = match row.get(2) {
                Some(None) => 0,
                _ => self.parsed(&row, 2, what)?,
            };
            tablespaces.push(SentTablespace {
                oid,
                size: kibibytes.saturating_mul(1024),
            });
        }
        Ok(BaseBackup {
            session: self,
            start,
            tablespaces,
            silence_limit: request.silence_limit,
            state: State::Between(0),
        })
    }
}

impl Request {
    fn command(&self, major: u32) -> String {
        let label = quoted(&self.label, '\'');
        let rate = self.max_rate.map(|rate| rate.clamp(32, 1 << 20));
        if major >= 15 {
            let checkpoint = if self.fast { "fast" } else { "spread" };
            let rate = rate.map_or(String::new(), |rate| format!(", MAX_RATE {rate}"));
            return format!(
                "BASE_BACKUP (LABEL {label}, PROGRESS true, CHECKPOINT '{checkpoint}', \
                 WAIT false, TABLESPACE_MAP true, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', \
                 VERIFY_CHECKSUMS true{rate})"
            );
        }
        let fast = if self.fast { " FAST" } else { "" };
        let rate = rate.map_or(String::new(), |rate| format!(" MAX_RATE {rate}"));
        format!(
            "BASE_BACKUP LABEL {label} PROGRESS{fast} NOWAIT{rate} TABLESPACE_MAP \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        )
    }
}

impl BaseBackup {
    /// Where recovery of it starts, and on which timeline.
    pub fn start(&self) -> (Lsn, TimelineId) {
        self.start
    }

    /// What is sent, in this order.
    pub fn tablespaces(&self) -> &[SentTablespace] {
        &self.tablespaces
    }

    /// The next piece; after [`Piece::End`] there is none.
    ///
    /// # Errors
    /// Whatever ends this early: there is no backup then, however much data came. That pages
    /// are damaged the server says at the very end (SQLSTATE XX001).
    pub async fn next(&mut self) -> Result<Piece> {
        loop {
            let message = self.session.wire.expect(self.silence_limit, DOING).await;
            let message = message.map_err(explain)?;
            match (self.state, message.tag) {
                (State::Between(count), tag::COPY_OUT_RESPONSE) => {
                    self.state = State::Copying(count + 1);
                    if self.session.major < 15 {
                        // One for each tablespace, then the manifest.
                        return match self.tablespaces.get(count) {
                            Some(tablespace) => Ok(Piece::Archive(tablespace.oid)),
                            None if count == self.tablespaces.len() => Ok(Piece::Manifest),
                            None => Err(self.session.wire.strange("one archive too many")),
                        };
                    }
                }
                (State::Copying(_), tag::COPY_DATA) if self.session.major < 15 => {
                    return Ok(Piece::Data(message.body));
                }
                (State::Copying(_), tag::COPY_DATA) => {
                    if let Some(piece) = self.lettered(message.body)? {
                        return Ok(piece);
                    }
                }
                (State::Copying(count), tag::COPY_DONE) => self.state = State::Between(count),
                (State::Between(count), tag::ROW_DESCRIPTION) if count > 0 => {
                    return self.end(message).await;
                }
                _ => return Err(self.session.wire.unexpected(&message, DOING)),
            }
        }
    }

    /// A message of the one COPY that 15 and later make.
    fn lettered(&self, mut body: Bytes) -> Result<Option<Piece>> {
        let strange = |what: &str| self.session.wire.strange(what);
        let letter = body.try_get_u8().map_err(|_| strange("an empty message"))?;
        match letter {
            b'd' => Ok(Some(Piece::Data(body))),
            b'm' => Ok(Some(Piece::Manifest)),
            b'p' => Ok(None),
            b'n' => {
                // `base.tar` or `16399.tar`, and where the tablespace lies: empty for the first.
                let mut texts = body.split(|byte| *byte == 0);
                let name = texts.next().and_then(|name| std::str::from_utf8(name).ok());
                let name = name.and_then(|name| name.strip_suffix(".tar"));
                let name = name.ok_or_else(|| strange("the name of an archive"))?;
                if name == "base" {
                    return Ok(Some(Piece::Archive(None)));
                }
                let oid = name.parse();
                let oid = oid.map_err(|_| strange(&format!("the archive {name:?}")))?;
                Ok(Some(Piece::Archive(Some(oid))))
            }
            other => Err(strange(&format!(
                "message '{}' of a backup",
                other.escape_ascii()
            ))),
        }
    }

    /// The row with the stop, the end of the command, and whatever the server still has to say.
    async fn end(&mut self, first: Message) -> Result<Piece> {
        let rows = self.session.rows_after(first, DOING).await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        let what = "where the backup ends";
        let lsn = self.session.parsed(row, 0, what)?;
        let timeline = self.session.parsed(row, 1, what)?;
        loop {
            let message = self.session.wire.expect(self.silence_limit, DOING).await;
            let message = message.map_err(explain)?;
            match message.tag {
                tag::COMMAND_COMPLETE => {}
                tag::READY_FOR_QUERY => return Ok(Piece::End(lsn, timeline)),
                _ => return Err(self.session.wire.unexpected(&message, DOING)),
            }
        }
    }
}

/// What to do about errors that only a base backup has.
fn explain(error: Error) -> Error {
    let text = error.to_string();
    if text.contains("XX001") {
        return error.hint("the server found pages with wrong checksums, and its log names them: look at the hardware; find the relation with pg_filenode_relation(); a backup from the data directory (backup_from = \"files\") keeps damaged pages and marks them");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_in_its_own_grammar() {
        let mut request = Request {
            label: "it's".into(),
            fast: true,
            max_rate: Some(1),
            checkpoint_limit: Duration::ZERO,
            silence_limit: Duration::ZERO,
        };
        assert_eq!(
            request.command(14),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 32 TABLESPACE_MAP \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        request.max_rate = None;
        request.fast = false;
        assert_eq!(
            request.command(18),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS true, CHECKPOINT 'spread', WAIT false, \
             TABLESPACE_MAP true, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', \
             VERIFY_CHECKSUMS true)"
        );
    }
}
