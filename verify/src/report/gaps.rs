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
            "trigger and scope",
            "a drill does not know who ordered it; it restores one whole cluster",
        ),
        (
            "lock state and region of the repository",
            "the store is asked for objects only, not for its retention locks or its place",
        ),
        (
            "bytes and transactions lost",
            "the primary is not asked, so what it had written behind the last archived WAL is unknown",
        ),
        (
            "clock skew",
            "the primary is not asked; `seawall check` compares the clocks",
        ),
        (
            "phases detect, decrypt and warm",
            "the clock starts at the decision to recover; objects are not encrypted; caches are not warmed",
        ),
        (
            "memory, disk and network",
            "processors and bytes fetched are recorded, the load on the host is not",
        ),
        (
            "the transaction id reached",
            "the server's log names it only where recovery stops at a transaction",
        ),
        (
            "signatures",
            "objects carry digests, which tell damage; they are not signed",
        ),
        ("keys", "objects are not encrypted by Seawall"),
        (
            "comparison with the source",
            "the primary is not touched; add a [[drill.check]] with what must be there",
        ),
        (
            "3-2-1-1-0",
            "one repository is drilled; copies elsewhere need drills of their own",
        ),
    ];
    gaps.map(|(field, why)| NotTested { field, why }).into()
}
