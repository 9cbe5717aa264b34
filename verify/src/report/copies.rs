//! 3-2-1-1-0: three copies, two kinds of storage, one elsewhere, one that nobody can change,
//! and no error.

use serde::Serialize;

/// The five digits, in order.
#[derive(Debug, Clone, Serialize)]
pub struct Digits(pub Vec<Digit>);

/// One of them.
#[derive(Debug, Clone, Serialize)]
pub struct Digit {
    /// What is asked for, such as `three copies`.
    pub rule: &'static str,
    /// Whether it is met; absent: not tested.
    pub met: Option<bool>,
    /// Why.
    pub why: String,
}
