//! The recovery point: how much would have been lost.

use jiff::Timestamp;
use serde::Serialize;

/// The recovery point.
#[derive(Debug, Clone, Serialize)]
pub struct Rpo {
    /// The objective in seconds.
    pub objective_seconds: Option<f64>,
    /// The measured value in seconds. Absent where a target was chosen or recovery failed.
    pub measured_seconds: Option<f64>,
    /// Whether it was to be measured: nobody chose a target.
    #[serde(skip)]
    pub wanted: bool,
    /// True: the loss is at most this. False: so much was really lost.
    pub upper_bound: bool,
    /// WAL that was written before the failure and not recovered.
    pub wal_bytes: Option<Lost>,
    /// Transactions that were begun before the failure and not recovered.
    pub transactions: Option<Lost>,
    /// The last commit that was recovered.
    pub last_commit: Option<Timestamp>,
    /// The moment that it was measured from.
    pub failed_at: Timestamp,
    /// The clock of the repository's store ahead of this host's, in seconds; negative: behind.
    pub store_clock_skew_seconds: Option<f64>,
    /// The primary's clock ahead of this host's, in seconds, if the primary was asked.
    pub primary_clock_skew_seconds: Option<f64>,
    /// How it was measured.
    pub method: String,
}

/// A figure, and how it is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Lost {
    /// How many.
    pub count: u64,
    /// Exact: the primary was asked. Otherwise counted by transaction ids, or estimated from
    /// the rate before.
    pub exact: bool,
}
