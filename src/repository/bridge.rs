//! Between the asynchronous store and the threads that compress and decompress: a reader over
//! an object that arrives, and a writer into an upload. Memory is a few pieces on each side.

use std::io::Read;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use crate::error::{Error, Result};
use crate::storage::{ObjectStream, StorageError, Store};

/// Pieces that may wait between the two sides.
const PIECES: usize = 4;

/// A blocking reader of an object's bytes. Use it on a thread that may block.
pub struct ObjectReader {
    pieces: mpsc::Receiver<std::result::Result<Bytes, StorageError>>,
    current: Bytes,
    fetching: AbortHandle,
}

impl ObjectReader {
    /// Starts to fetch; must be called inside the runtime.
    pub fn new(mut stream: ObjectStream) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        let fetching = tokio::spawn(async move {
            while let Some(piece) = stream.next().await {
                let last = piece.is_err();
                if sender.send(piece).await.is_err() || last {
                    break;
                }
            }
        });
        Self {
            pieces,
            current: Bytes::new(),
            fetching: fetching.abort_handle(),
        }
    }

    /// Ends the fetching from elsewhere: the thread that reads finds the end of the object
    /// soon, and need not wait for a store that hangs. For one whose result nobody wants.
    pub fn abort_handle(&self) -> AbortHandle {
        self.fetching.clone()
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(error)) => return Err(std::io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// A blocking writer into an object. The object exists only after [`finish`](Self::finish).
pub struct ObjectWriter {
    pieces: mpsc::Sender<Bytes>,
    upload: JoinHandle<Result<u64, StorageError>>,
}

impl ObjectWriter {
    /// Starts an upload; must be called inside the runtime. `size_hint` is the most that may
    /// come; it decides the size of the parts.
    pub fn new(store: &Store, key: String, size_hint: u64) -> Self {
        Self::start(store, key, size_hint, None)
    }

    /// The same, with parts that share `slots` with other objects: each part under way takes one.
    pub fn sharing(store: &Store, key: String, size_hint: u64, slots: Arc<Semaphore>) -> Self {
        Self::start(store, key, size_hint, Some(slots))
    }

    fn start(store: &Store, key: String, size_hint: u64, slots: Option<Arc<Semaphore>>) -> Self {
        let (pieces, mut receiver) = mpsc::channel::<Bytes>(PIECES);
        let store = store.clone();
        let upload = tokio::spawn(async move {
            // The end mark tells a finished object from a writer that was dropped.
            let upload = store.upload(&key, part_size(size_hint), 2).await?;
            let mut upload = match slots {
                Some(slots) => upload.sharing(slots),
                None => upload,
            };
            let mut finished = false;
            while let Some(piece) = receiver.recv().await {
                if piece.is_empty() {
                    finished = true;
                    break;
                }
                if let Err(error) = upload.write(piece).await {
                    upload.abort().await;
                    return Err(error);
                }
            }
            if finished {
                upload.finish().await
            } else {
                upload.abort().await;
                Ok(0)
            }
        });
        Self { pieces, upload }
    }

    /// The next bytes. Blocks while the store is slower than we are.
    pub fn write(&self, piece: Bytes) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        // Why is told by `give_up`.
        self.pieces
            .blocking_send(piece)
            .map_err(|_| Error::failed("the upload has ended early"))
    }

    /// Says that all bytes have come, and waits until the object is durable; returns its size.
    pub async fn finish(self) -> Result<u64> {
        // A failed send means that the upload ended early; its result tells why.
        let _ = self.pieces.send(Bytes::new()).await;
        let size = self
            .upload
            .await
            .map_err(|error| Error::failed("an upload died").because(error))?;
        Ok(size?)
    }

    /// Gives the object up, and says why the upload ended if it did by itself.
    pub async fn give_up(self, error: Error) -> Error {
        drop(self.pieces);
        match self.upload.await {
            Ok(Err(cause)) => cause.into(),
            _ => error,
        }
    }
}

/// S3 takes at most 10,000 parts of one object, and all but the last should be equal.
pub(crate) fn part_size(size_hint: u64) -> usize {
    const SMALLEST: u64 = 8 << 20;
    let needed = size_hint.div_ceil(9_000).next_multiple_of(1 << 20);
    needed.max(SMALLEST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_small_until_an_object_needs_larger_ones() {
        assert_eq!(part_size(0), 8 << 20);
        assert_eq!(part_size(1 << 30), 8 << 20);
        let huge = 5u64 << 40;
        assert!(huge / (part_size(huge) as u64) < 10_000);
    }
}
