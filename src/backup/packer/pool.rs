//! Threads that make packs, of work that another thread plans.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::Semaphore;

use super::{DonePack, Packer, WrittenPack};
use crate::error::{Error, Result};
use crate::repository::frames::Owner;

/// What became of a batch.
pub(in crate::backup) enum Packed {
    /// Its bytes are on their way.
    Written(WrittenPack),
    /// It is durable already.
    Done(DonePack),
}

impl Packer {
    /// Makes packs with `jobs` threads: `plan` hands out batches in the order of the files,
    /// `make` makes a pack of one under its number, and each that is durable goes to `done`.
    /// After the first error all of them end soon. Blocks; call it on a thread that may.
    pub(in crate::backup) fn in_parallel<B: Send>(
        &self,
        jobs: usize,
        plan: impl FnOnce(&mut dyn FnMut(B) -> Result<()>) -> Result<()> + Send,
        make: impl Fn(u32, B) -> Result<Packed> + Sync,
        mut done: impl FnMut(DonePack) -> Result<()>,
    ) -> Result<()> {
        let jobs = jobs.max(1);
        // A batch waits for each job at most: who plans never runs far ahead.
        let (batches, received) = mpsc::sync_channel::<(u32, B)>(1);
        let received = Mutex::new(Some(received));
        let (finished, results) = mpsc::channel::<Result<DonePack>>();
        let finishing = Arc::new(Semaphore::new(jobs));
        // All at once: who is early must not think that there is nobody to help.
        let owners: Vec<Owner<'_>> = (0..jobs).map(|_| self.frames.own()).collect();
        std::thread::scope(|scope| {
            for owner in owners {
                let (received, finished, make) = (&received, finished.clone(), &make);
                let finishing = Arc::clone(&finishing);
                scope.spawn(move || {
                    while let Some((number, batch)) = next_batch(received) {
                        match make(number, batch) {
                            Ok(Packed::Written(pack)) => {
                                self.finish_later(pack, &finishing, finished.clone());
                            }
                            Ok(Packed::Done(pack)) => {
                                let _ = finished.send(Ok(pack));
                            }
                            Err(error) => {
                                let _ = finished.send(Err(error));
                                return;
                            }
                        }
                    }
                    drop(owner);
                    if let Err(error) = self.frames.help() {
                        let _ = finished.send(Err(error));
                    }
                });
            }
            let planning = {
                let finished = finished.clone();
                scope.spawn(move || {
                    let planned = plan(&mut |batch| {
                        self.waiter.check()?;
                        batches
                            .send((self.next_number(), batch))
                            .map_err(|_| Error::failed("packing ended early"))
                    });
                    if let Err(error) = planned {
                        let _ = finished.send(Err(error));
                    }
                })
            };
            drop(finished);
            let mut first_error = None;
            for result in results {
                if first_error.is_some() {
                    continue;
                }
                if let Err(error) = result.and_then(&mut done) {
                    first_error = Some(error);
                    self.waiter.stop();
                    // The next batch finds nobody, and who plans ends.
                    lock(&received).take();
                }
            }
            // Nobody takes batches any more, also where threads died.
            lock(&received).take();
            let died = || Error::failed("the thread that plans packs died");
            planning.join().map_err(|_| died())?;
            first_error.map_or(Ok(()), Err)
        })
    }

    /// Waits for the pack's last bytes and puts its index while this thread goes on with the
    /// next. Blocks while as many packs as there are jobs have not become durable.
    fn finish_later(
        &self,
        pack: WrittenPack,
        finishing: &Arc<Semaphore>,
        finished: mpsc::Sender<Result<DonePack>>,
    ) {
        let runtime = self.waiter.runtime();
        let permit = runtime.block_on(Arc::clone(finishing).acquire_owned());
        let finishing = self.finish_ahead(pack);
        runtime.spawn(async move {
            // Also where the task died: a pack that nobody hears of would be left out.
            let done = finishing.end().await;
            drop(permit);
            let _ = finished.send(done);
        });
    }
}

fn next_batch<T>(received: &Mutex<Option<mpsc::Receiver<T>>>) -> Option<T> {
    // Held while waiting: the others wait for the same.
    lock(received).as_ref()?.recv().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
