//! Drills: restore into a scratch instance, measure what was really reached, judge it, report.
//!
//! A drill uses the repository, its own configuration and nothing else: it never connects to
//! the primary, never archives, never opens a port, and writes nothing outside its scratch
//! directory but the report.

mod budget;
pub mod checks;
pub mod drill;
pub mod evidence;
pub mod history;
pub mod host;
pub mod instance;
pub mod isolation;
pub mod judge;
pub mod libraries;
pub mod limits;
pub mod locales;
pub mod place;
pub mod processes;
pub mod random_time;
pub mod rehearsal;
pub mod render;
pub mod replay;
pub mod report;
pub mod scratch;
pub mod walls;
pub mod watch;

pub use seawall::postgres::programs;
