//! Retention: what a repository keeps and what goes, and the deleting.
//!
//! - [`inventory`]: what is there, by listings and small records;
//! - [`lines`]: the timelines that somebody may still want to recover along;
//! - [`rules`]: what the rules keep; [`wanted()`]: what they would keep of another repository;
//! - [`plan`]: what they keep, and pins, leases, copies, proofs;
//! - [`mod@expire`]: carrying the plan out, in two phases with a wait between them.
//!
//! Nothing here knows how backups, WAL or copies come to be. Where something cannot be
//! understood, nothing that could need it goes.

pub mod expire;
pub mod inventory;
pub mod lines;
pub mod plan;
pub mod rules;
pub mod wanted;

pub use expire::{Expired, Settings, expire};
pub use inventory::Inventory;
pub use plan::{Other, Plan, Relation};
pub use wanted::{Wanted, wanted};
