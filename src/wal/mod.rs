//! Archived WAL: pushing files into repositories, fetching them back, and waiting for those
//! that a base backup needs. A library, so that a daemon can use it as the archive_command
//! does. It knows nothing of base backups.

pub mod fetch;
pub mod push;
pub mod wait;
