//! Acknowledged commits, written down outside the database: the proof that a recovery lost
//! nothing that it had to keep and kept nothing that it had to drop.
//!
//! Writers insert one row a transaction. Before each they note the time, after each
//! acknowledgement again. PostgreSQL stamps a commit between the two, with the same clock. So
//! for a recovery to the moment T:
//!
//! - acknowledged by T: the commit record was in the WAL before anything stamped after T
//!   could be. It must be there.
//! - begun after T: it is stamped after T. It must not be there.
//! - in between: PostgreSQL may have stamped it on either side; if it is there, its own stamp
//!   (`pg_xact_commit_timestamp`) must not lie after T.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seawall::postgres::Lsn;
use tokio_postgres::{Client, NoTls};

use crate::moment::Moment;
use crate::postgres::Cluster;
use crate::scratch::Scratch;

/// One attempted commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The row's key.
    pub id: i64,
    /// The connection that wrote it.
    pub writer: usize,
    /// Just before it was sent.
    pub begun: Moment,
    /// What is known once the server has acknowledged it.
    pub acknowledged: Option<Acknowledged>,
}

/// An acknowledged commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// Just after the acknowledgement.
    pub at: Moment,
    /// A position in the WAL before its commit record.
    pub after: Lsn,
    /// Its transaction id.
    pub xid: u64,
}

/// A row of the table, found after a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The row's key.
    pub id: i64,
    /// When PostgreSQL says that it was committed, if the server keeps that.
    pub committed: Option<Moment>,
}

/// What a recovery was to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `--time`, inclusive.
    Time(Moment),
    /// `--lsn`, inclusive.
    Lsn(Lsn),
    /// Every commit that was acknowledged by then; later ones may be there.
    AllUntil(Moment),
}

/// The rows on the wrong side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Acknowledged before the target and not there.
    pub missing: Vec<Entry>,
    /// There, and committed after the target, or never sent by any writer.
    pub unexpected: Vec<Row>,
    /// How many rows had to be there.
    pub required: usize,
    /// How many had to be absent.
    pub forbidden: usize,
}

/// The table and the writers on it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    runtime: Option<tokio::runtime::Runtime>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    last_error: Arc<Mutex<Option<String>>>,
    first_id: i64,
}

impl Ledger {
    /// Makes the table in the database `postgres` and a file for the acknowledgements in
    /// `scratch`. Nothing is written yet.
    #[track_caller]
    pub fn create(cluster: &Cluster, scratch: &Scratch) -> Self {
        cluster.sql(
            "CREATE TABLE IF NOT EXISTS ledger (
                 id bigint PRIMARY KEY,
                 writer int NOT NULL,
                 filler text NOT NULL DEFAULT md5(random()::text))",
        );
        let name = format!("ledger-{}", cluster.name());
        Self::over(scratch.file(name, ""))
    }

    fn over(path: PathBuf) -> Self {
        Self {
            path,
            runtime: None,
            stop: Arc::default(),
            count: Arc::default(),
            last_error: Arc::default(),
            first_id: 1,
        }
    }

    /// Starts `writers` connections to `cluster`, each pausing for `pause` after each commit.
    /// A writer that loses its connection connects again until it is stopped, so restarts and
    /// crashes may happen meanwhile; after a failover call [`stop`](Self::stop), then this
    /// with the new primary.
    #[track_caller]
    pub fn start(&mut self, cluster: &Cluster, writers: usize, pause: Duration) {
        assert!(self.runtime.is_none(), "the writers run already");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let file = std::fs::OpenOptions::new()
            .append(true)
            .open(&self.path)
            .expect("the ledger opens");
        let file = Arc::new(Mutex::new(file));
        self.stop = Arc::default();
        self.first_id += 1_000_000_000;
        for number in 0..writers {
            runtime.spawn(
                Writer {
                    number,
                    connection: cluster.connection("postgres"),
                    next: self.first_id + 10_000_000 * number as i64,
                    file: Arc::clone(&file),
                    count: Arc::clone(&self.count),
                    last_error: Arc::clone(&self.last_error),
                    stop: Arc::clone(&self.stop),
                }
                .run(pause),
            );
        }
        self.runtime = Some(runtime);
    }

    /// Commits acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until `more` further commits have been acknowledged.
    #[track_caller]
    pub fn wait_for_more(&self, more: u64, limit: Duration) {
        let goal = self.acknowledged() + more;
        let started = std::time::Instant::now();
        while self.acknowledged() < goal {
            assert!(
                started.elapsed() < limit,
                "no {more} more commits in {limit:?}; last error: {:?}",
                self.last_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the writers; what is under way is finished or given up within a second.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    /// Everything written down so far, by id.
    #[track_caller]
    pub fn entries(&self) -> BTreeMap<i64, Entry> {
        read(&self.path)
    }

    /// The moment of the last acknowledgement.
    #[track_caller]
    pub fn last_acknowledged(&self) -> Option<Entry> {
        self.entries()
            .into_values()
            .filter(|entry| entry.acknowledged.is_some())
            .max_by_key(|entry| entry.acknowledged.as_ref().map(|a| a.at))
    }

    /// The rows that are in `cluster` now.
    #[track_caller]
    pub fn rows(cluster: &Cluster) -> Vec<Row> {
        cluster
            .sql(
                "SELECT id, CASE WHEN current_setting('track_commit_timestamp')::bool THEN
                     (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint END
                 FROM ledger ORDER BY id",
            )
            .lines()
            .map(|line| {
                let (id, committed) = line.split_once('|').expect("two columns");
                Row {
                    id: id.parse().expect("a number"),
                    committed: committed.parse().ok().map(Moment),
                }
            })
            .collect()
    }

    /// Compares the rows of a recovered cluster with what had to be there.
    #[track_caller]
    pub fn compare(&self, rows: &[Row], target: Target) -> Verdict {
        compare(&self.entries(), rows, target)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Verdict {
    /// Panics unless nothing is missing and nothing unexpected, and the test was able to see
    /// both: there was something that had to be there.
    #[track_caller]
    pub fn must_hold(&self) {
        assert!(
            self.missing.is_empty() && self.unexpected.is_empty(),
            "{} acknowledged commits are missing (first: {:?}), {} rows should not be there (first: {:?})",
            self.missing.len(),
            self.missing.first(),
            self.unexpected.len(),
            self.unexpected.first()
        );
        assert!(
            self.required > 0,
            "no commit was acknowledged before the target"
        );
    }
}

fn compare(entries: &BTreeMap<i64, Entry>, rows: &[Row], target: Target) -> Verdict {
    let found: BTreeMap<i64, &Row> = rows.iter().map(|row| (row.id, row)).collect();
    let mut verdict = Verdict::default();
    for entry in entries.values() {
        let (required, forbidden) = match target {
            Target::Time(moment) => (
                entry.acknowledged.as_ref().is_some_and(|a| a.at <= moment),
                entry.begun > moment,
            ),
            Target::AllUntil(moment) => (
                entry.acknowledged.as_ref().is_some_and(|a| a.at <= moment),
                false,
            ),
            Target::Lsn(lsn) => (
                // Its commit record lies before whatever the same writer began later.
                entries
                    .range(entry.id + 1..)
                    .map(|(_, next)| next)
                    .take_while(|next| next.id / 10_000_000 == entry.id / 10_000_000)
                    .find_map(|next| next.acknowledged.as_ref())
                    .is_some_and(|next| entry.acknowledged.is_some() && next.after <= lsn),
                entry.acknowledged.as_ref().is_some_and(|a| a.after > lsn),
            ),
        };
        verdict.required += usize::from(required);
        verdict.forbidden += usize::from(forbidden);
        match found.get(&entry.id) {
            None if required => verdict.missing.push(entry.clone()),
            Some(&row) if forbidden => verdict.unexpected.push(row.clone()),
            Some(&row) => {
                if let (Target::Time(moment), Some(committed)) = (target, row.committed)
                    && committed > moment
                {
                    verdict.unexpected.push(row.clone());
                }
            }
            None => {}
        }
    }
    let unknown = rows.iter().filter(|row| !entries.contains_key(&row.id));
    verdict.unexpected.extend(unknown.cloned());
    verdict
}

/// Lines are `begin ID WRITER TIME` and `done ID TIME LSN XID`; a killed process leaves at
/// worst half a line at the end.
fn read(path: &Path) -> BTreeMap<i64, Entry> {
    let text = std::fs::read_to_string(path).expect("the ledger can be read");
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut entries = BTreeMap::new();
    for line in whole.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| -> i64 { words[at].parse().expect("a number in the ledger") };
        match words[0] {
            "begin" => {
                let entry = Entry {
                    id: number(1),
                    writer: number(2) as usize,
                    begun: Moment(number(3)),
                    acknowledged: None,
                };
                entries.insert(entry.id, entry);
            }
            _ => {
                let entry = entries.get_mut(&number(1)).expect("it was begun");
                entry.acknowledged = Some(Acknowledged {
                    at: Moment(number(2)),
                    after: words[3].parse().expect("a position"),
                    xid: number(4) as u64,
                });
            }
        }
    }
    entries
}

struct Writer {
    number: usize,
    connection: String,
    next: i64,
    file: Arc<Mutex<std::fs::File>>,
    count: Arc<AtomicU64>,
    last_error: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    async fn run(mut self, pause: Duration) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.write(pause).await {
                let mut last = self
                    .last_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *last = Some(error.to_string());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Connects and writes until the connection breaks.
    async fn write(&mut self, pause: Duration) -> Result<(), tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.connection, NoTls).await?;
        let connection = tokio::spawn(connection);
        let result = self.write_over(&client, pause).await;
        connection.abort();
        result
    }

    async fn write_over(
        &mut self,
        client: &Client,
        pause: Duration,
    ) -> Result<(), tokio_postgres::Error> {
        let insert = client
            .prepare(
                "INSERT INTO ledger (id, writer) VALUES ($1, $2)
                 RETURNING pg_current_wal_insert_lsn()::text, pg_current_xact_id()::text",
            )
            .await?;
        while !self.stop.load(Ordering::Relaxed) {
            let id = self.next;
            self.next += 1;
            self.note(&format!("begin {id} {} {}\n", self.number, Moment::now().0));
            let row = client
                .query_one(&insert, &[&id, &(self.number as i32)])
                .await?;
            let now = Moment::now().0;
            let (lsn, xid): (String, String) = (row.get(0), row.get(1));
            self.note(&format!("done {id} {now} {lsn} {xid}\n"));
            self.count.fetch_add(1, Ordering::Relaxed);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    fn note(&self, line: &str) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes())
            .expect("the ledger takes a line");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> BTreeMap<i64, Entry> {
        let path = std::env::temp_dir().join(format!("ledger-{}", rand::random::<u64>()));
        let text = "begin 1 0 100\ndone 1 110 0/100 7\nbegin 2 0 120\ndone 2 130 0/200 8\n\
                    begin 3 0 140\nbegin 4 0 15";
        std::fs::write(&path, text).unwrap();
        let entries = read(&path);
        std::fs::remove_file(&path).unwrap();
        entries
    }

    fn row(id: i64, committed: i64) -> Row {
        Row {
            id,
            committed: Some(Moment(committed)),
        }
    }

    #[test]
    fn a_commit_that_was_acknowledged_before_the_target_is_missed() {
        let verdict = compare(&ledger(), &[row(1, 105)], Target::Time(Moment(130)));
        assert_eq!(verdict.missing.len(), 1);
        assert_eq!(verdict.missing[0].id, 2);
        assert!(verdict.unexpected.is_empty());
    }

    #[test]
    fn a_row_from_after_the_target_is_noticed_acknowledged_or_not() {
        let rows = [row(1, 105), row(2, 125), row(3, 145)];
        let verdict = compare(&ledger(), &rows, Target::Time(Moment(115)));
        assert_eq!(verdict.unexpected, rows[1..]);
        assert!(verdict.missing.is_empty());
    }

    #[test]
    fn a_commit_under_way_at_the_target_may_be_on_either_side_but_not_stamped_after_it() {
        let at = Target::Time(Moment(125));
        for rows in [vec![row(1, 105)], vec![row(1, 105), row(2, 125)]] {
            compare(&ledger(), &rows, at).must_hold();
        }
        let late = compare(&ledger(), &[row(1, 105), row(2, 126)], at);
        assert_eq!(late.unexpected, [row(2, 126)]);
    }

    #[test]
    fn a_row_that_nobody_wrote_is_unexpected() {
        let rows = [row(1, 105), row(2, 125), row(99, 1)];
        let verdict = compare(&ledger(), &rows, Target::AllUntil(Moment(200)));
        assert_eq!(verdict.unexpected, [row(99, 1)]);
    }

    #[test]
    fn a_position_in_the_wal_divides_commits_too() {
        let rows = [row(1, 105)];
        let verdict = compare(&ledger(), &rows, Target::Lsn(Lsn(0x1ff)));
        assert_eq!((verdict.required, verdict.forbidden), (0, 1));
        let verdict = compare(&ledger(), &[], Target::Lsn(Lsn(0x200)));
        assert_eq!(verdict.missing[0].id, 1);
    }
}
