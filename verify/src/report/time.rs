//! The recovery time, and what it is made of.

use serde::Serialize;

/// The recovery time.
#[derive(Debug, Clone, Serialize)]
pub struct Rto {
    /// The objective in seconds.
    pub objective_seconds: Option<f64>,
    /// From the decision to recover to the first answer, in seconds. Absent if it never came.
    pub measured_seconds: Option<f64>,
    /// Its parts, in the order of their beginnings; they may overlap.
    pub phases: Vec<Phase>,
    /// The longest part.
    pub dominated_by: Option<Dominant>,
    /// What it would take for databases of other sizes, from the rates of this drill.
    pub forecast: Vec<Forecast>,
}

/// A part of the recovery time.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// When it began, in seconds since the decision to recover.
    pub began: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What it moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Whether the database was still closed: the checks afterwards do not count.
    pub counts: bool,
}

impl Phase {
    /// Bytes a second, where it moved any.
    pub fn rate(&self) -> Option<f64> {
        let bytes = self.bytes.filter(|bytes| *bytes > 0)?;
        (self.seconds > 0.0).then(|| bytes as f64 / self.seconds)
    }
}

/// The longest part of the recovery time.
#[derive(Debug, Clone, Serialize)]
pub struct Dominant {
    /// Its name.
    pub phase: String,
    /// Its part of the whole, from 0 to 1.
    pub share: f64,
    /// What would shorten it.
    pub advice: String,
}

/// A recovery time that was not measured.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// The size of the database in bytes.
    pub bytes: u64,
    /// How long it would take, in seconds.
    pub seconds: f64,
    /// From what this is worked out.
    pub basis: String,
}
