//! Between the session, which is asynchronous, and the thread that reads archives and fills
//! packs. Memory: the pieces in between, each of at most 128 KiB.

use std::io::Read;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::postgres::replication::base_backup::{BaseBackup, Piece};
use crate::postgres::{Lsn, TimelineId};

/// Pieces that may wait: a few megabytes, so that neither side waits for each single one.
const WAITING: usize = 128;

/// What a backup sends, for a thread that may block.
pub struct Pieces {
    received: mpsc::Receiver<Result<Piece>>,
    /// What came and belongs to the next part.
    next: Option<Part>,
    current: Bytes,
    /// Why reading failed: an `io::Error` on its way through a reader loses it.
    failure: Option<Error>,
}

/// A part of what is sent. An archive and the manifest have bytes: [`Pieces`] reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The archive of a tablespace, or of the data directory.
    Archive(Option<u32>),
    /// The server's manifest.
    Manifest,
    /// The backup is complete.
    End(Lsn, TimelineId),
}

impl Pieces {
    /// Starts to receive; must be called inside the runtime. Receiving ends with this value.
    pub fn of(mut backup: BaseBackup) -> Self {
        let (send, received) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let piece = tokio::select! {
                    piece = backup.next() => piece,
                    () = send.closed() => return,
                };
                let last = matches!(piece, Err(_) | Ok(Piece::End(..)));
                if send.send(piece).await.is_err() || last {
                    return;
                }
            }
        });
        Self {
            received,
            next: None,
            current: Bytes::new(),
            failure: None,
        }
    }

    /// The next part. What is left of the one before is passed over: the end of an archive.
    pub fn next_part(&mut self) -> Result<Part> {
        self.current.clear();
        loop {
            if let Some(part) = self.next.take() {
                return Ok(part);
            }
            self.receive()?;
        }
    }

    /// What a failure of reading was, or `otherwise`.
    pub fn why(&mut self, otherwise: Error) -> Error {
        self.failure.take().unwrap_or(otherwise)
    }

    fn receive(&mut self) -> Result<()> {
        let ended = || Err(Error::failed("the backup was stopped"));
        match self.received.blocking_recv().unwrap_or_else(ended)? {
            Piece::Data(bytes) => self.current = bytes,
            Piece::Archive(oid) => self.next = Some(Part::Archive(oid)),
            Piece::Manifest => self.next = Some(Part::Manifest),
            Piece::End(lsn, timeline) => self.next = Some(Part::End(lsn, timeline)),
        }
        Ok(())
    }
}

/// The bytes of the current part.
impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            if self.next.is_some() {
                return Ok(0);
            }
            if let Err(error) = self.receive() {
                let told = std::io::Error::other(error.one_line());
                self.failure = Some(error);
                return Err(told);
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
impl Pieces {
    /// Of pieces that a test made.
    pub fn made(pieces: Vec<Result<Piece>>) -> Self {
        let (send, received) = mpsc::channel(pieces.len().max(1));
        for piece in pieces {
            send.try_send(piece).unwrap();
        }
        Self {
            received,
            next: None,
            current: Bytes::new(),
            failure: None,
        }
    }
}
