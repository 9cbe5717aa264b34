//! Compressing the frames of packs on several threads. Frames are independent, so one large
//! file occupies every processor: whoever writes a pack offers its full frames to threads that
//! have no pack of their own, compresses what nobody takes, and puts all back in order.
//!
//! Memory: the frames that were offered and not yet put back, at most [`Frames::most_away`] for
//! each pack, and a few spare buffers that go from frame to frame.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use super::codec::FrameCompressor;
use super::pack::FRAME_SIZE;
use crate::config::Compression;
use crate::error::{Error, Result};

/// Frames that wait for each helping thread: enough that it never waits for the next.
const WAITING_FOR_EACH: usize = 2;

/// The place where threads meet that write packs and threads that help them.
pub struct Frames {
    compression: Compression,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Threads in [`Frames::help`].
    helpers: usize,
    /// Threads that write packs, and may still offer frames.
    owners: usize,
    /// Buffers for plain frames, each of [`FRAME_SIZE`] bytes.
    spare: Vec<Vec<u8>>,
}

/// A frame to compress.
struct Job {
    plain: Vec<u8>,
    size: usize,
    done: mpsc::SyncSender<Result<Vec<u8>>>,
}

/// A frame on its way: stored already, or with a thread that will send it.
pub enum Frame {
    /// As it is to be stored.
    Stored(Vec<u8>),
    /// It could not be compressed.
    Failed(Error),
    /// Where it will come from.
    Away(mpsc::Receiver<Result<Vec<u8>>>),
}

impl Frame {
    /// Whether nobody would have to wait for it.
    pub fn is_ready(&mut self) -> bool {
        if let Self::Away(receiver) = self {
            match receiver.try_recv() {
                Ok(Ok(stored)) => *self = Self::Stored(stored),
                Ok(Err(error)) => *self = Self::Failed(error),
                Err(mpsc::TryRecvError::Empty) => return false,
                // Waiting tells.
                Err(mpsc::TryRecvError::Disconnected) => {}
            }
        }
        true
    }
}

/// Says that a thread writes packs, as long as it lives.
pub struct Owner<'a>(&'a Frames);

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        self.0.lock().owners -= 1;
        self.0.changed.notify_all();
    }
}

impl Frames {
    /// A meeting place where nobody is yet.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A compressor for one thread.
    pub fn compressor(&self) -> Result<FrameCompressor> {
        FrameCompressor::new(self.compression)
    }

    /// Announces a thread that writes packs: helpers wait for what it offers.
    pub fn own(&self) -> Owner<'_> {
        self.lock().owners += 1;
        Owner(self)
    }

    /// Compresses what others offer, until nobody writes packs any more. Blocks.
    pub fn help(&self) -> Result<()> {
        let mut compressor = self.compressor()?;
        let mut state = self.lock();
        state.helpers += 1;
        loop {
            if let Some(job) = state.waiting.pop_front() {
                drop(state);
                self.run(job, &mut compressor);
                state = self.lock();
            } else if state.owners == 0 {
                state.helpers -= 1;
                return Ok(());
            } else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// How many frames of one pack may be away at once.
    pub fn most_away(&self) -> usize {
        (WAITING_FOR_EACH + 1) * self.lock().helpers + 1
    }

    /// Gives the first `size` bytes of `plain` to a helper, if one has room for it, and puts an
    /// empty buffer in its place.
    pub fn offer(&self, plain: &mut Vec<u8>, size: usize) -> Option<Frame> {
        let mut state = self.lock();
        if state.waiting.len() >= WAITING_FOR_EACH * state.helpers {
            return None;
        }
        let empty = state.spare.pop().unwrap_or_else(new_buffer);
        let (done, receiver) = mpsc::sync_channel(1);
        state.waiting.push_back(Job {
            plain: std::mem::replace(plain, empty),
            size,
            done,
        });
        drop(state);
        self.changed.notify_one();
        Some(Frame::Away(receiver))
    }

    /// The stored form of `frame`. Instead of waiting the calling thread compresses what waits.
    pub fn wait(&self, frame: Frame, compressor: &mut FrameCompressor) -> Result<Vec<u8>> {
        let receiver = match frame {
            Frame::Stored(stored) => return Ok(stored),
            Frame::Failed(error) => return Err(error),
            Frame::Away(receiver) => receiver,
        };
        loop {
            match receiver.try_recv() {
                Ok(stored) => return stored,
                Err(mpsc::TryRecvError::Disconnected) => break,
                Err(mpsc::TryRecvError::Empty) => {}
            }
            let job = self.lock().waiting.pop_front();
            match job {
                Some(job) => self.run(job, compressor),
                None => match receiver.recv() {
                    Ok(stored) => return stored,
                    Err(_) => break,
                },
            }
        }
        Err(Error::failed("a thread that compressed died"))
    }

    /// A buffer of [`FRAME_SIZE`] bytes with any content.
    pub fn buffer(&self) -> Vec<u8> {
        self.lock().spare.pop().unwrap_or_else(new_buffer)
    }

    /// Takes a buffer back.
    pub fn give_back(&self, buffer: Vec<u8>) {
        let mut state = self.lock();
        if buffer.len() == FRAME_SIZE && state.spare.len() <= 2 * (state.helpers + state.owners) {
            state.spare.push(buffer);
        }
    }

    fn run(&self, job: Job, compressor: &mut FrameCompressor) {
        let stored = compressor.compress(&job.plain[..job.size]);
        self.give_back(job.plain);
        // Whoever wrote the pack may have failed.
        let _ = job.done.send(stored);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_buffer() -> Vec<u8> {
    vec![0; FRAME_SIZE]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use jiff::Timestamp;

    use super::*;
    use crate::repository::index::Member;
    use crate::repository::pack::PackWriter;

    /// One pack of three files, and whether all of it was asked for in pieces of any size.
    fn pack(frames: Arc<Frames>) -> (Vec<u8>, Vec<Member>) {
        let mut stored = Vec::new();
        let mut pack = PackWriter::with_helpers(frames, |bytes: Bytes| {
            stored.extend_from_slice(&bytes);
            Ok(())
        })
        .unwrap();
        for (name, size) in [("a", 9 << 20), ("b", 77), ("c", (5 << 20) + 3)] {
            let mut member = Member::directory(name.into(), 0o600, Timestamp::UNIX_EPOCH);
            member.size = size as u64;
            pack.begin_file(member).unwrap();
            let mut left = size;
            while left > 0 {
                let count = pack.room().min(left).min(100_000);
                let fill = |bytes: &mut [u8]| {
                    for (at, byte) in bytes.iter_mut().enumerate() {
                        *byte = (((left - at) * 2_654_435_761) >> 11) as u8;
                    }
                    Ok(())
                };
                pack.fill(count, fill).unwrap();
                left -= count;
            }
            pack.end_file(Vec::new()).unwrap();
        }
        let summary = pack.finish().unwrap();
        (stored, summary.members)
    }

    #[test]
    fn a_pack_is_the_same_whoever_compresses_its_frames() {
        let alone = pack(Arc::new(Frames::new(Compression::default())));
        for helpers in 1..4 {
            let frames = Arc::new(Frames::new(Compression::default()));
            let owner = frames.own();
            std::thread::scope(|scope| {
                for _ in 0..helpers {
                    scope.spawn(|| frames.help().unwrap());
                }
                while frames.lock().helpers < helpers {
                    std::thread::yield_now();
                }
                let together = pack(Arc::clone(&frames));
                assert!(together == alone, "{helpers} helpers");
                drop(owner);
            });
            let state = frames.lock();
            assert!(state.waiting.is_empty() && state.helpers == 0 && state.owners == 0);
            assert!(state.spare.len() <= 2 * helpers + 3);
        }
    }

    #[test]
    fn who_writes_a_pack_does_not_wait_for_helpers_that_are_busy() {
        let frames = Frames::new(Compression::default());
        let mut compressor = frames.compressor().unwrap();
        // A helper that never comes to its turn.
        frames.lock().helpers = 1;
        let mut plain = frames.buffer();
        let mut away: Vec<Frame> = std::iter::from_fn(|| frames.offer(&mut plain, 1000)).collect();
        assert_eq!(away.len(), WAITING_FOR_EACH);
        assert!(!away[0].is_ready());
        for frame in away {
            let stored = frames.wait(frame, &mut compressor).unwrap();
            assert_eq!(stored, compressor.compress(&[0; 1000]).unwrap());
        }
    }
}
