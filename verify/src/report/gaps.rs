//! What no drill tests.

use serde::Serialize;

/// Something that a reader may look for in a report and that no drill tests.
#[derive(Debug, Clone, Serialize)]
pub struct NotTested {
    /// What.
    pub field: &'static str,
    /// Why not.
    pub why: &'static str,
}

/// What no drill tests. Said in every report: a silent gap looks like a check that passed.
pub fn never_tested() -> Vec<NotTested> {
    let gaps = [
        (
            "lock state of the repository",
            "the store is asked for objects only, not for its retention locks",
        ),
        (
            "phases detect, decrypt and warm",
            "the clock starts at the decision to recover; objects are not encrypted; caches are not warmed",
        ),
        (
            "network and other load",
            "what the drill itself took is measured, what else ran on the host is not",
        ),
        (
            "signatures",
            "objects carry digests, which tell damage; they are not signed",
        ),
        ("keys", "objects are not encrypted by Seawall"),
        (
            "comparison with the source",
            "rows are compared with the last drill, not with the primary; add a [[drill.check]] with what must be there",
        ),
    ];
    gaps.map(|(field, why)| NotTested { field, why }).into()
}
