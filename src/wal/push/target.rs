//! One repository during a run of pushes: registered once, listed once for many files.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::file::{Compressed, WalFile};
use super::{Outcome, Workshops};
use crate::digest::PlainDigest;
use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::{SegmentName, WalFileName};
use crate::repository::System;
use crate::repository::bridge::ObjectWriter;
use crate::repository::keys::WalObject;
use crate::repository::wal_objects::Held;
use crate::storage::ObjectInfo;

/// For how long what was set aside is not listed again: one listing does for a run.
const ASIDE_BELIEVED: Duration = Duration::from_secs(10);

/// The contents that lost a conflict.
type Aside = Arc<BTreeSet<(WalFileName, PlainDigest)>>;

/// One repository that files are pushed into.
pub(super) struct Target {
    system: System,
    /// PostgreSQL may be told that WAL is archived which is not here.
    others_are_enough: bool,
    registered: OnceCell<()>,
    /// Counts the puts that have ended: the time by which listings are ordered.
    puts: AtomicU64,
    /// The newest listing of a log's directory. Who waits for it while another lists finds
    /// its own answer in it afterwards, or lists for all who wait then.
    listing: tokio::sync::Mutex<Option<Listing>>,
    /// What was set aside, and when that was looked at.
    aside: tokio::sync::Mutex<Option<(Instant, Aside)>>,
    /// The segments that are being pushed.
    pending: Mutex<BTreeSet<SegmentName>>,
}

/// What lay in the directory of one log.
struct Listing {
    /// The puts that had ended when it began.
    began: u64,
    /// It holds everything of this segment's log from this segment on.
    from: SegmentName,
    objects: Vec<(WalObject, ObjectInfo)>,
}

impl Listing {
    fn covers(&self, segment: SegmentName) -> bool {
        let log = |segment: SegmentName| (segment.timeline, segment.log);
        log(self.from) == log(segment) && self.from <= segment
    }
}

impl Target {
    pub(super) fn new(system: System) -> Self {
        Self {
            system,
            others_are_enough: false,
            registered: OnceCell::new(),
            puts: AtomicU64::new(0),
            listing: tokio::sync::Mutex::new(None),
            aside: tokio::sync::Mutex::new(None),
            pending: Mutex::default(),
        }
    }

    /// PostgreSQL may be told that WAL is archived which is not here.
    pub(super) fn may_be_left_out(&mut self) {
        self.others_are_enough = true;
    }

    pub(super) fn system(&self) -> &System {
        &self.system
    }

    /// Brings one file there, unless it is there already: looks while the file is compressed,
    /// puts, and looks again, for another host may have pushed at the same moment, having
    /// seen nothing either.
    pub(super) async fn store(
        &self,
        file: &Arc<WalFile>,
        control: &ControlFile,
        compressed: impl Future<Output = Result<Arc<Compressed>>>,
        workshops: &Arc<Workshops>,
    ) -> Result<Outcome> {
        let name = file.name();
        let _pending = Pending::of(self, name);
        self.register(control).await?;
        let (held, aside) = tokio::try_join!(self.held(name, 0), self.aside())?;
        let compressed = compressed.await?;
        let object = WalObject {
            name,
            digest: compressed.digest,
            encrypted: false,
        };
        match held {
            Held::One(there, info) if there.digest == object.digest => {
                // Who put it may have died before its name was durable.
                self.system.store().confirm_durable(&info.key).await?;
                return Ok(Outcome::Present);
            }
            Held::One(there, _) => return Err(self.other_content(object, &[there.digest])),
            Held::Conflict(digests) => return Err(self.other_content(object, &digests)),
            Held::Absent => self.refuse_set_aside(object, &aside)?,
        }
        let key = self.system.keys().wal_object(object);
        match &compressed.bytes {
            Some(bytes) => self.system.store().put(&key, bytes.clone()).await?,
            None => self.upload(&key, object, file, workshops).await?,
        }
        self.confirm(object).await?;
        Ok(Outcome::Stored)
    }

    /// Makes sure, once a run, that the repository is there and knows the cluster.
    pub(super) async fn register(&self, control: &ControlFile) -> Result<()> {
        let once = self.registered.get_or_try_init(|| async {
            let registered = self.system.register(control.major, control.segment_size);
            registered.await?;
            match self.others_are_enough {
                true => self.system.note_acknowledged_without_it().await,
                false => Ok(()),
            }
        });
        once.await.map(|_| ())
    }

    /// Looks whether an object that was just put is there, and alone.
    pub(super) async fn confirm(&self, object: WalObject) -> Result<()> {
        let since = self.puts.fetch_add(1, Ordering::SeqCst) + 1;
        match self.held(object.name, since).await? {
            Held::One(there, _) if there.digest == object.digest => Ok(()),
            Held::One(there, _) => Err(self.other_content(object, &[there.digest])),
            Held::Conflict(digests) => Err(self.other_content(object, &digests)),
            Held::Absent => Err(Error::failed(format!(
                "the store took {} and does not list it",
                object.name
            ))
            .at(self.system.place())
            .hint("nothing is acknowledged; check the store with `seawall check`")),
        }
    }

    /// What lost a conflict here, as of a moment ago.
    pub(super) async fn aside(&self) -> Result<Aside> {
        let mut known = self.aside.lock().await;
        if let Some((at, aside)) = &*known
            && at.elapsed() < ASIDE_BELIEVED
        {
            return Ok(Arc::clone(aside));
        }
        let began = Instant::now();
        let aside = Arc::new(self.system.contents_set_aside().await?);
        *known = Some((began, Arc::clone(&aside)));
        Ok(aside)
    }

    /// Whoever lost a conflict and goes on archiving must not bring back what was decided
    /// against: where it had no rival, nothing else would stop it.
    pub(super) fn refuse_set_aside(&self, object: WalObject, aside: &Aside) -> Result<()> {
        if !aside.contains(&(object.name, object.digest)) {
            return Ok(());
        }
        let key = self.system.keys().set_aside(object);
        Err(Error::refused(format!("this content of {} was set aside", object.name))
            .at(self.system.place())
            .because(format!("`seawall wal resolve` decided for another branch than this server's, and moved it to {key}"))
            .hint("stop archiving here, and build this server anew with pg_rewind or from a backup; if the decision was wrong, move the object back to its path below wal/; if it was set aside because it was damaged, remove it there by hand"))
    }

    /// What a listing holds of `name` that began when `since` puts had ended, or later.
    async fn held(&self, name: WalFileName, since: u64) -> Result<Held> {
        let Some(segment) = name.segment() else {
            return self.system.held(name).await;
        };
        let mut newest = self.listing.lock().await;
        let listing = match newest.take() {
            Some(listing) if listing.began >= since && listing.covers(segment) => listing,
            _ => self.list(segment).await?,
        };
        let ours = listing.objects.iter().filter(|(o, _)| o.name == name);
        let held = Held::of(ours.cloned().collect());
        *newest = Some(listing);
        Ok(held)
    }

    /// Lists from the first of the pending segments of that log on, so that one listing answers
    /// all of them.
    async fn list(&self, segment: SegmentName) -> Result<Listing> {
        let first_of_log = SegmentName { low: 0, ..segment };
        let from = {
            let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.range(first_of_log..=segment).next().copied()
        };
        let from = from.unwrap_or(segment);
        let began = self.puts.load(Ordering::SeqCst);
        Ok(Listing {
            began,
            from,
            objects: self.system.objects_from(from).await?,
        })
    }

    async fn upload(
        &self,
        key: &str,
        object: WalObject,
        file: &Arc<WalFile>,
        workshops: &Arc<Workshops>,
    ) -> Result<()> {
        let writer = ObjectWriter::new(self.system.store(), key.to_owned(), file.size());
        let (file, workshops) = (Arc::clone(file), Arc::clone(workshops));
        let (written, writer) = tokio::task::spawn_blocking(move || {
            let written =
                workshops.with(|workshop| file.compress_into(&writer, object.digest, workshop));
            (written, writer)
        })
        .await
        .map_err(|error| Error::failed("compression died").because(error))?;
        match written {
            Ok(()) => writer.finish().await.map(|_| ()),
            Err(error) => Err(writer.give_up(error).await),
        }
    }

    fn other_content(&self, object: WalObject, there: &[PlainDigest]) -> Error {
        let there: Vec<String> = there
            .iter()
            .filter(|d| **d != object.digest)
            .map(PlainDigest::to_string)
            .collect();
        Error::refused(format!("{} is already archived with other content", object.name))
            .at(self.system.place())
            .because(format!("archived: {}; this file: {}", there.join(", "), object.digest))
            .hint("two servers archive under one name and system identifier (a copy or a restored cluster that still archives?); what is stored stays as it is")
    }
}

/// Keeps a segment among those that a listing must cover.
struct Pending<'a> {
    target: &'a Target,
    segment: Option<SegmentName>,
}

impl<'a> Pending<'a> {
    fn of(target: &'a Target, name: WalFileName) -> Self {
        let segment = name.segment();
        let mut pending = target
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pending.extend(segment);
        drop(pending);
        Self { target, segment }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let pending = &self.target.pending;
        let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(segment) = &self.segment {
            pending.remove(segment);
        }
    }
}
