//! Fetching and opening the frames of one backup's packs that somebody needs, in ascending
//! order, and no others. Neighbours come with one request, and several requests are under way
//! while frames are opened.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::walk::Pack;
use crate::error::{Error, Result};
use crate::repository::codec::FrameDecompressor;
use crate::repository::pack::FRAME_SIZE;
use crate::repository::waiter::Waiter;
use crate::storage::Store;

/// How much is fetched ahead.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    /// Neighbouring frames are fetched together up to so many stored bytes; a frame that has
    /// more comes alone.
    pub range: u64,
    /// Requests at once.
    pub requests: usize,
}

/// Neighbouring frames of a pack.
#[derive(Debug, Clone)]
pub struct Run {
    /// The pack.
    pub pack: Arc<Pack>,
    /// Its frames.
    pub frames: Range<u32>,
}

/// The frames that hold these bytes of the plain tar stream.
pub fn frames_of(offset: u64, length: u64) -> Range<u32> {
    let size = FRAME_SIZE as u64;
    // The seek table holds fewer than 2^27 frames: what is beyond is not found there.
    let number = |frame: u64| u32::try_from(frame).unwrap_or(u32::MAX);
    number(offset / size)..number((offset + length).div_ceil(size))
}

/// Frames as they arrived.
struct Fetched {
    run: Run,
    bytes: Bytes,
}

/// Goes through runs of frames. Memory: two ranges more than requests at once, and one plain
/// frame. Blocks: use it on a thread that may.
pub struct Cursor {
    waiter: Waiter,
    fetching: AbortHandle,
    arriving: mpsc::Receiver<Result<Fetched>>,
    arrived: Option<Fetched>,
    /// The frame that is open: the number of its pack and its own.
    open: Option<(usize, u32)>,
    plain: Vec<u8>,
    decompressor: FrameDecompressor,
    /// Stored bytes that arrived.
    pub fetched: u64,
    /// How long this thread waited for them.
    pub waited: Duration,
}

impl Cursor {
    /// Begins to fetch `runs`, in that order.
    pub fn new(store: &Store, waiter: &Waiter, runs: Vec<Run>, ahead: Ahead) -> Result<Self> {
        let (sender, arriving) = mpsc::channel(1);
        let store = store.clone();
        let fetching = waiter.runtime().spawn(async move {
            let ranges = futures::stream::iter(runs)
                .then(|run| cut(run, ahead.range, store.clone()))
                .flat_map(|ranges| {
                    futures::stream::iter(match ranges {
                        Ok(ranges) => ranges.into_iter().map(Ok).collect(),
                        Err(error) => vec![Err(error)],
                    })
                });
            let fetched = ranges
                .map(|range| fetch(range, store.clone()))
                .buffered(ahead.requests);
            let mut fetched = std::pin::pin!(fetched);
            while let Some(fetched) = fetched.next().await {
                let last = fetched.is_err();
                if sender.send(fetched).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Self {
            waiter: waiter.clone(),
            fetching: fetching.abort_handle(),
            arriving,
            arrived: None,
            open: None,
            plain: Vec::new(),
            decompressor: FrameDecompressor::new()
                .map_err(|error| Error::failed("cannot start zstd").because(error))?,
            fetched: 0,
            waited: Duration::ZERO,
        })
    }

    /// Hands over these plain bytes of a pack's tar stream, in pieces of one frame at most. All
    /// of their frames must be in the runs, and frames must not be asked for backwards.
    pub fn read(
        &mut self,
        pack: &Pack,
        offset: u64,
        length: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let size = FRAME_SIZE as u64;
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let frame = frames_of(at, 1).start;
            self.open(pack, frame)?;
            let start = (at % size) as usize;
            let count = (end - at).min(size - start as u64) as usize;
            let bytes = self.plain.get(start..start + count).ok_or_else(|| {
                Error::failed(format!(
                    "{} is damaged: frame {frame} has only {} bytes",
                    pack.key,
                    self.plain.len()
                ))
            })?;
            sink(bytes)?;
            at += count as u64;
        }
        Ok(())
    }

    fn open(&mut self, pack: &Pack, frame: u32) -> Result<()> {
        if self.open == Some((pack.number, frame)) {
            return Ok(());
        }
        self.waiter.check()?;
        let fetched = loop {
            match &self.arrived {
                Some(arrived)
                    if arrived.run.pack.number == pack.number
                        && arrived.run.frames.contains(&frame) =>
                {
                    break arrived;
                }
                _ => self.arrive(pack, frame)?,
            }
        };
        let stored = fetched
            .bytes_of(frame)
            .ok_or_else(|| out_of_order(pack, frame))?;
        let (bytes, plain_size) = stored;
        self.open = None;
        self.decompressor
            .decompress_into(&bytes, plain_size, &mut self.plain)
            .map_err(|error| {
                Error::failed(format!(
                    "{} is damaged or did not arrive whole: frame {frame}: {error}",
                    pack.key
                ))
            })?;
        self.open = Some((pack.number, frame));
        Ok(())
    }

    fn arrive(&mut self, pack: &Pack, frame: u32) -> Result<()> {
        self.arrived = None;
        let started = Instant::now();
        let arriving = &mut self.arriving;
        let fetched = self.waiter.wait(async {
            let fetched = arriving.recv().await;
            fetched.unwrap_or_else(|| Err(out_of_order(pack, frame)))
        });
        self.waited += started.elapsed();
        let fetched = fetched?;
        self.fetched += fetched.bytes.len() as u64;
        self.arrived = Some(fetched);
        Ok(())
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.fetching.abort();
    }
}

impl Fetched {
    fn bytes_of(&self, frame: u32) -> Option<(Bytes, usize)> {
        let table = self.run.pack.fetched_seek_table()?;
        let first = table.start(self.run.frames.start);
        let stored = table.stored(frame);
        let range = (stored.start - first) as usize..(stored.end - first) as usize;
        (range.end <= self.bytes.len()).then(|| (self.bytes.slice(range), table.plain(frame)))
    }
}

/// Cuts a run into ranges that are fetched with one request each.
async fn cut(run: Run, range: u64, store: Store) -> Result<Vec<Run>> {
    let table = run.pack.seek_table(&store).await?;
    if run.frames.end > table.frames() {
        return Err(Error::failed(format!(
            "{} has {} frames, its index names {}",
            run.pack.key,
            table.frames(),
            run.frames.end
        )));
    }
    let mut ranges: Vec<Run> = Vec::new();
    for frame in run.frames.clone() {
        match ranges.last_mut() {
            Some(last) if table.start(frame + 1) - table.start(last.frames.start) <= range => {
                last.frames.end = frame + 1;
            }
            _ => ranges.push(Run {
                pack: Arc::clone(&run.pack),
                frames: frame..frame + 1,
            }),
        }
    }
    Ok(ranges)
}

async fn fetch(run: Result<Run>, store: Store) -> Result<Fetched> {
    let run = run?;
    let table = run.pack.seek_table(&store).await?;
    let range = table.start(run.frames.start)..table.start(run.frames.end);
    let bytes = store.get_range(&run.pack.key, range).await?;
    let bytes = bytes.ok_or_else(|| run.pack.missing(&store))?;
    Ok(Fetched { run, bytes })
}

fn out_of_order(pack: &Pack, frame: u32) -> Error {
    Error::failed(format!(
        "the index of {} is damaged: its files are not in the order of their frames (frame {frame})",
        pack.key
    ))
}
