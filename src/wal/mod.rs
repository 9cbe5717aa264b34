//! Archived WAL: pushing files into repositories, also ahead of PostgreSQL's asking, fetching
//! them back, waiting for those that a base backup needs, verifying what lies there,
//! settling conflicts, and bringing an object from one repository to another. A library, so that a daemon can use it as the archive_command does. It
//! knows nothing of base backups.

pub mod ahead;
pub mod backlog;
pub mod fetch;
pub mod identity;
pub mod missing;
pub mod object;
pub mod push;
pub mod recoverable;
pub mod resolve;
pub mod transfer;
pub mod verify;
pub mod wait;
