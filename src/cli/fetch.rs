//! `seawall-fetch`, the restore_command. It returns 0 (delivered), 1 (certainly absent) or
//! 200 (anything else) and nothing else, whatever happens: PostgreSQL takes every code from 1
//! to 125 for "absent", and opens the database.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::Common;
use crate::config::Config;
use crate::digest::PlainDigest;
use crate::error::{Error, IoContext, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::DataDirectory;
use crate::postgres::{TimelineId, WalFileName};
use crate::repository::{Repository, System};
use crate::wal::fetch::{self, Ahead, Fetched, Left, NewTablespaces, Request, Spool, Turn};

/// The file is at its destination, whole.
pub const DELIVERED: u8 = 0;
/// The file certainly does not exist.
pub const ABSENT: u8 = 1;
/// Anything else: recovery must stop.
pub const DOUBT: u8 = 200;

/// Fetch one WAL file: PostgreSQL's restore_command
///
/// Set restore_command = '/usr/bin/seawall-fetch %f %p'; `seawall restore` does it. Exit code
/// 0: delivered. Exit code 1: it certainly does not exist. Exit code 200: anything else, so
/// that recovery stops instead of opening the database too early. On a standby doubt becomes
/// 1, since that only makes PostgreSQL try streaming, unless --strict is given.
#[derive(Debug, Parser)]
#[command(name = "seawall-fetch", version, max_term_width = 100)]
pub struct FetchArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository to ask, in this order; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Return 200 on a standby, too, where a doubt remains
    #[arg(long)]
    pub strict: bool,
    /// Let recovery end where a segment is missing though later ones are there
    #[arg(long)]
    pub end_at_gap: bool,
    /// Deliver nothing of this timeline from there on: recovery leaves it for another; may be
    /// repeated
    #[arg(long, value_name = "TIMELINE@LSN")]
    pub left: Vec<Left>,
    /// The timeline that recovery ends on; without it the newest is assumed, and a segment that
    /// is missing before a later timeline begins is a gap
    #[arg(long, value_name = "TIMELINE")]
    pub timeline: Option<TimelineId>,
    /// Fetch at most so many segments at once [default: fetch.jobs]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// What to do with WAL that creates a tablespace outside the data directory
    #[arg(long, value_name = "RULE", default_value = "allow")]
    pub new_tablespaces: NewTablespaces,
    /// Be the worker that fetches ahead: for this program alone
    #[arg(long, hide = true)]
    pub prefetch: bool,
    /// The file's name, as PostgreSQL's %f gives it
    #[arg(value_name = "%f")]
    pub name: String,
    /// Where to put it, as PostgreSQL's %p gives it
    #[arg(value_name = "%p")]
    pub path: PathBuf,
}

/// As root: becomes the owner of the data directory, so that the server may read and remove
/// what this delivers. Call it before the runtime starts.
pub fn become_owner(args: &FetchArgs) -> Result<()> {
    let destination = std::path::absolute(&args.path).unwrap_or_else(|_| args.path.clone());
    super::become_owner_of(&data_directory(&destination))
}

/// Fetches the file, and turns every outcome into one of the three codes.
pub fn run(args: &FetchArgs) -> u8 {
    let destination = std::path::absolute(&args.path).unwrap_or_else(|_| args.path.clone());
    let data_directory = data_directory(&destination);
    if args.prefetch {
        return work_ahead(args, &destination, &data_directory);
    }
    match guarded(|| fetch(args, &destination, &data_directory)) {
        Ok(Fetched::Delivered) => DELIVERED,
        Ok(Fetched::Absent) => ABSENT,
        Err(error) => {
            super::say(&format!("seawall-fetch: {}", error.one_line()));
            let standby = data_directory.join("standby.signal").exists();
            if standby && !args.strict {
                super::say(&format!("seawall-fetch: {}", on_standby(&args.name)));
                return ABSENT;
            }
            DOUBT
        }
    }
}

/// A panic is a failure like another one: it must not end a standby.
fn guarded(work: impl FnOnce() -> Result<Fetched>) -> Result<Fetched> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::failed("fetching panicked")
            .hint("this is a defect of Seawall: report it with the lines before this one"))
    })
}

/// What it means to a standby that a doubt about the file called `name` becomes 1.
fn on_standby(name: &str) -> String {
    match name.parse() {
        Ok(WalFileName::History(_)) => format!(
            "this is a standby; PostgreSQL will go on as if there were no {name}. If it is being \
             promoted, it may have skipped archived WAL, and may take the number of a timeline \
             that exists: make the store answer before you promote"
        ),
        _ => "this is a standby; PostgreSQL will try streaming".to_owned(),
    }
}

fn fetch(args: &FetchArgs, destination: &Path, data_directory: &Path) -> Result<Fetched> {
    let call = Call::of(args, destination, data_directory)?;
    let turn = Turn::at(destination)?;
    let spool = call.spool();
    // Neither a connection nor a thread: what was fetched ahead only needs its name.
    if let Some((spool, _)) = &spool {
        match spool.take(&call.request, call.control.system_id, &turn) {
            Ok(true) => return Ok(Fetched::Delivered),
            Ok(false) => {}
            Err(error) => tracing::warn!("not taken from the spool: {}", error.one_line()),
        }
    }
    if let Err(error) = Spool::discard_orphaned(destination) {
        tracing::warn!("{}", error.one_line());
    }
    let fetched = super::run_on_one_thread(call.ask(&turn));
    if let (Ok(Fetched::Delivered), Some((spool, ahead))) = (&fetched, &spool)
        && let Err(error) = go_ahead(
            spool,
            *ahead,
            call.request.name,
            &DataDirectory::at(data_directory),
        )
    {
        tracing::warn!("nothing is fetched ahead: {}", error.one_line());
    }
    fetched
}

/// What a call of PostgreSQL comes to.
struct Call<'a> {
    args: &'a FetchArgs,
    config: Config,
    cluster: String,
    control: ControlFile,
    request: Request<'a>,
}

impl<'a> Call<'a> {
    fn of(args: &'a FetchArgs, destination: &'a Path, data_directory: &Path) -> Result<Self> {
        let name: WalFileName = args.name.parse()?;
        let mut config = args.common.load()?;
        if let Some(jobs) = args.jobs {
            config.fetch.jobs = config.fetch.jobs.min(jobs.into());
        }
        let (cluster, _) = config.cluster(args.common.cluster.as_deref())?;
        let cluster = cluster.to_owned();
        let control = ControlFile::read(data_directory).map_err(|error| {
            Error::failed("cannot tell which cluster asks for WAL")
                .because(error)
                .hint("%p must lie in the pg_wal of a data directory")
        })?;
        config.repositories(&args.repository)?;
        let request = Request {
            name,
            segment_size: control.segment_size,
            destination,
            end_at_gap: args.end_at_gap,
            left: &args.left,
            new_tablespaces: args.new_tablespaces,
            follows: args.timeline,
        };
        Ok(Self {
            args,
            config,
            cluster,
            control,
            request,
        })
    }

    /// Asks the repositories.
    async fn ask(&self, turn: &Turn) -> Result<Fetched> {
        let (systems, unusable) = self.systems()?;
        if systems.is_empty() && unusable.is_empty() {
            return Err(Error::usage("no repository is configured"));
        }
        match (
            fetch::fetch(&systems, self.request, turn).await?,
            unusable.into_iter().next(),
        ) {
            // Whoever was not asked may have it.
            (Fetched::Absent, Some(error)) => Err(error),
            (fetched, _) => Ok(fetched),
        }
    }

    fn systems(&self) -> Result<(Vec<System>, Vec<Error>)> {
        let mut names = self.args.repository.clone();
        if names.is_empty() {
            let targets = self.config.push_targets();
            names.extend(targets.map(|repository| repository.name.clone()));
        }
        let (repositories, unusable) = Repository::open_each(&self.config, &names)?;
        let system =
            |repository: &Repository| repository.system(&self.cluster, self.control.system_id);
        Ok((repositories.iter().map(system).collect(), unusable))
    }

    /// The spool for this request, and how far ahead it goes, unless nothing is fetched ahead.
    fn spool(&self) -> Option<(Spool, Ahead)> {
        let ahead = Ahead::of(&self.config.fetch, self.control.segment_size)?;
        // All that decides what a segment's bytes are. An edited configuration is another one:
        // what was fetched with the old one is not looked at any more.
        let source = format!(
            "{} {:?} {} {} {:?} {:?} {}",
            env!("CARGO_PKG_VERSION"),
            self.cluster,
            self.control.system_id,
            self.control.segment_size,
            self.args.new_tablespaces,
            self.args.repository,
            self.config.digest,
        );
        let spool = Spool::of(&self.request, PlainDigest::of(source.as_bytes()))?;
        Some((spool, ahead))
    }
}

/// Lets the segments behind the one that was delivered be fetched: by the worker that there is,
/// or by a new one.
fn go_ahead(
    spool: &Spool,
    ahead: Ahead,
    delivered: WalFileName,
    data_directory: &DataDirectory,
) -> Result<()> {
    if spool.has_worker() {
        return spool.tell(delivered);
    }
    // It would be restarted with us if somebody killed the worker.
    if data_directory.adopts_orphans() {
        return Ok(());
    }
    if !spool.has_room(ahead.reserve()) {
        return Ok(());
    }
    let Some(lock) = spool.begin()? else {
        return Ok(());
    };
    super::worker("seawall-fetch")
        .args(std::env::args_os().skip(1))
        .arg("--prefetch")
        // The lock is the worker's from its first moment to its last.
        .stdin(lock)
        .spawn()
        .on("start", "/proc/self/exe")?;
    Ok(())
}

/// What the worker does. Its exit code is 0 even if it fails: where the server is the first
/// process of a container it inherits the worker, and takes another code for a crash of its own.
fn work_ahead(args: &FetchArgs, destination: &Path, data_directory: &Path) -> u8 {
    super::detach();
    let lock = std::io::stdin().as_fd().try_clone_to_owned();
    let lock = lock.map(std::fs::File::from).ok();
    let Some(lock) = lock.filter(|lock| Spool::makes_worker(destination, lock)) else {
        // Somebody gave the hidden option to PostgreSQL: nothing was delivered.
        return DOUBT;
    };
    let work = || -> Result<()> {
        let call = Call::of(args, destination, data_directory)?;
        let Some((spool, ahead)) = call.spool() else {
            return Ok(());
        };
        let (systems, _) = call.systems()?;
        let done = super::run_on_one_thread(async {
            tokio::select! {
                done = fetch::prefetch(systems, &spool, &lock, &call.request, ahead) => done,
                () = super::interrupted() => Ok(()),
            }
        });
        spool.end(&lock).and(done)
    };
    // Nobody would read why; the next call asks for itself.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    0
}

/// `%p` is `pg_wal/RECOVERYXLOG` below PostgreSQL's working directory; pg_rewind gives
/// `TARGET/pg_wal/SEGMENT`. Either way the data directory is two levels up.
fn data_directory(destination: &Path) -> PathBuf {
    destination
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("/"))
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_doubt_and_an_answer_stays_what_it_is() {
        let error = guarded(|| panic!("nobody expects it")).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        for answer in [Fetched::Delivered, Fetched::Absent] {
            assert_eq!(guarded(|| Ok(answer)).unwrap(), answer);
        }
    }

    #[test]
    fn a_doubt_about_a_history_is_told_as_what_it_is_to_a_standby_that_is_promoted() {
        assert!(on_standby("00000003.history").contains("no 00000003.history"));
        assert!(on_standby("00000003.history").contains("before you promote"));
        assert!(on_standby("000000010000000000000003").contains("streaming"));
        assert!(on_standby("no name").contains("streaming"));
    }
}
