//! The harness of the end-to-end tests: real PostgreSQL servers, real object stores, faults,
//! and judges that do not take Seawall's word for anything.
//!
//! A test reads like this:
//!
//! ```ignore
//! let scratch = Scratch::new();
//! let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
//! let near = Repository::local("near", &scratch.directory("near"));
//! let config = ConfigFile::new().cluster(&cluster).repository(near).write(&scratch);
//! cluster.archive_with(&config);
//! cluster.start();
//! seawall(&config).args(["init"]).run().success();
//! ```
//!
//! Everything panics with what it saw, at the line of the test (`#[track_caller]`). Whatever
//! was started is ended by its process id and whatever was written is removed: on drop, on
//! panic, and by [`guard`] even if the test process itself is killed.

pub mod archiver;
pub mod azurite;
pub mod browser;
pub mod cli;
pub mod clock;
pub mod combined;
pub mod config;
pub mod daemon;
pub mod drilled;
pub mod faulty;
pub mod fetching;
pub mod garage;
pub mod guard;
pub mod guest;
pub mod job;
pub mod judge;
pub mod ledger;
pub mod moment;
pub mod pgbench;
pub mod postgres;
pub mod prefetch;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod readable;
pub mod retention;
pub mod rust_source;
pub mod scratch;
pub mod sealed;
pub mod seed;
pub mod segment;
pub mod served;
pub mod site;
pub mod stored;
pub mod strace;
pub mod tmpfs;
pub mod version;
pub mod workload;

pub use archiver::Archiver;
pub use browser::Browser;
pub use cli::{archive, drill, fetch, restore, seawall};
pub use clock::Clock;
pub use combined::Combined;
pub use config::{Config, ConfigFile, Repository};
pub use daemon::Daemon;
pub use drilled::DrillSite;
pub use garage::Garage;
pub use guest::Guest;
pub use job::Job;
pub use ledger::Ledger;
pub use moment::Moment;
pub use postgres::Cluster;
pub use prefetch::Prefetched;
pub use process::{Output, Run, Running, wait_until};
pub use programs::Programs;
pub use proxy::{Fault, FaultProxy};
pub use scratch::Scratch;
pub use sealed::sealed;
pub use seed::Seed;
pub use segment::Segment;
pub use site::Site;
pub use stored::Stored;
pub use tmpfs::Tmpfs;
pub use version::PostgresVersion;
