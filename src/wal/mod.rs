//! Archived WAL: pushing files into repositories, also ahead of PostgreSQL's asking, fetching
//! them back, and waiting for those that a base backup needs. A library, so that a daemon can
//! use it as the archive_command does. It knows nothing of base backups.

pub mod ahead;
pub mod fetch;
pub mod missing;
pub mod push;
pub mod wait;
