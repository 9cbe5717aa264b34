//! Packing a data directory with its tablespaces.

use crate::backup::file;
use crate::backup::incremental::{self, Baseline};
use crate::backup::pages::Pages;
use crate::backup::resume::Earlier;
use crate::backup::scan::{self, Found, Tree};
use crate::error::Result;

use super::{DonePack, Packed, Packer};

/// Reads the files of a data directory into packs.
pub struct TreePacker {
    /// What makes the packs.
    pub packer: Packer,
    /// What the pages look like.
    pub pages: Pages,
    /// What an interrupted backup left.
    pub earlier: Earlier,
}

impl TreePacker {
    /// Packs all of `tree` with `jobs` threads, and hands each finished pack to `done`; of files
    /// that the `baseline` knows what changed since. Blocks; call it on a thread that may.
    pub fn pack(
        &self,
        tree: &Tree,
        jobs: usize,
        mut baseline: Option<Baseline>,
        done: impl FnMut(DonePack) -> Result<()>,
    ) -> Result<()> {
        let block_size = self.pages.block_size;
        let weigh = |found: &mut Found| {
            if let Some(baseline) = &mut baseline {
                found.basis = baseline.basis(found)?;
            }
            Ok(found.basis.weight(found.member.size, block_size))
        };
        let cut = |path: &str| self.earlier.begins_at(path);
        let make = |number, batch| self.pack_batch(number, batch);
        std::thread::scope(|scope| {
            let progress = &self.packer.progress;
            if progress.is_shown() {
                // Beside the work: nobody waits for a total.
                scope.spawn(|| {
                    let total = scan::total_size(tree, || self.packer.waiter.check());
                    if let Ok(total) = total {
                        progress.set_total(total);
                    }
                });
            }
            let plan = |hand_out: &mut dyn FnMut(Vec<Found>) -> Result<()>| {
                scan::scan(tree, weigh, cut, hand_out)
            };
            self.packer.in_parallel(jobs, plan, make, done)
        })
    }

    fn pack_batch(&self, number: u32, batch: Vec<Found>) -> Result<Packed> {
        if let Some(pack) = self.take_over(number, &batch)? {
            return Ok(Packed::Done(pack));
        }
        let members = batch.iter().map(|found| found.member.size + 1536);
        let expected = members.sum::<u64>() + 1024;
        let passed = |bytes| self.packer.passed(bytes);
        let pack = self.packer.write_pack(number, expected, |pack, read| {
            for found in batch {
                self.packer.waiter.check()?;
                let changed = incremental::file::read_into(pack, &found, self.pages, &passed)?;
                read.push(match changed {
                    None => file::read_into(pack, found, self.pages, &passed)?,
                    changed => changed,
                });
            }
            Ok(())
        })?;
        Ok(Packed::Written(pack))
    }
}
