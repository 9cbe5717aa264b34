//! The server's WAL summaries, read from its data directory: what they cover, and waiting for
//! those that the server is about to write. Needs no rights in the database.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{IoContext, Result};
use crate::postgres::Lsn;
use crate::postgres::history::TimelineHistory;
use crate::postgres::wal_summary::{BlockChanges, SummaryName, covering};

/// Where they lie, relative to the data directory.
const DIRECTORY: &str = "pg_wal/summaries";

/// The server is given up when it has not summarized anything new for so long, as PostgreSQL's own
/// base backup does.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the WAL from `start` to `end` along `history` changed. The inner error says why the
/// summaries do not tell.
///
/// # Errors
/// The directory cannot be read.
pub async fn changes(
    data_directory: &Path,
    history: &TimelineHistory,
    start: Lsn,
    end: Lsn,
) -> Result<Result<BlockChanges, String>> {
    let directory = data_directory.join(DIRECTORY);
    let mut moved = Instant::now();
    let mut reached = None;
    let names = loop {
        let there = names_in(&directory)?;
        let missing = match covering(&there, history, start, end) {
            Ok(names) => break names,
            Err(missing) => missing,
        };
        // The server writes them one behind the other: a hole that newer ones follow stays one.
        if let Some(later) = there.iter().find(|name| name.start > missing) {
            return Ok(Err(format!(
                "there is no WAL summary from {missing} to {}",
                later.start
            )));
        }
        if reached != Some(missing) {
            reached = Some(missing);
            moved = Instant::now();
        }
        if moved.elapsed() > PATIENCE {
            return Ok(Err(format!(
                "the server has summarized its WAL up to {missing} only, and got no further in {} s",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let read = tokio::task::spawn_blocking(move || read(&directory, &names));
    read.await.map_err(|error| {
        crate::error::Error::failed("a thread of the backup died").because(error)
    })?
}

fn read(directory: &Path, names: &[SummaryName]) -> Result<Result<BlockChanges, String>> {
    let mut changes = BlockChanges::default();
    for name in names {
        let path = directory.join(name.to_string());
        let summary = match std::fs::read(&path) {
            // Older than wal_summary_keep_time.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Err(format!("the WAL summary {name} was just removed")));
            }
            summary => summary.on("read", &path)?,
        };
        if let Err(error) = changes.add(&summary) {
            return Ok(Err(format!("{name} is of no use: {error}")));
        }
    }
    Ok(Ok(changes))
}

/// Those that are there. Unfinished ones have another name.
fn names_in(directory: &Path) -> Result<Vec<SummaryName>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.on("read the directory", directory)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.on("read the directory", directory)?.file_name();
        names.extend(
            name.to_str()
                .and_then(|name| name.parse::<SummaryName>().ok()),
        );
    }
    Ok(names)
}
