//! The settings of a scratch instance: none of production's, which would name its places, its
//! libraries and its memory. What recovery needs to be as large as on the source comes from the
//! control file, what it takes of the host from [`Share`], and the rest is PostgreSQL's default
//! or the owner's (`[drill.settings]`).

use std::collections::BTreeMap;
use std::path::Path;

use seawall::error::Result;
use seawall::postgres::control::ControlFile;
use seawall::postgres::recovery::setting;

use super::PORT;
use crate::limits::Share;

/// `max_connections` and `max_locks_per_transaction` where the source had less.
const CONNECTIONS: i32 = 50;
const LOCKS: i32 = 64;

/// What sessions say at their beginning: `ALTER ROLE` and `ALTER DATABASE` of the source may
/// say otherwise than [`walls`] about statements in the log, and are part of the data.
pub(super) const NO_STATEMENTS: &str = "-c log_min_error_statement=panic -c log_statement=none \
    -c log_duration=off -c log_min_duration_statement=-1 -c log_min_duration_sample=-1 \
    -c log_transaction_sample_rate=0";

/// What sessions say besides that run what somebody else wrote. What fails is told to them, and
/// messages quote parts of statements.
pub(super) const UNLOGGED: &str = "-c log_min_messages=panic";

/// What the settings follow from.
pub struct Basis<'a> {
    /// The restored data directory.
    pub data: &'a Path,
    /// Where the server's own files lie.
    pub server: &'a Path,
    /// Where its socket goes.
    pub sockets: &'a Path,
    /// The major version.
    pub major: u32,
    /// What it may take of the host.
    pub share: &'a Share,
    /// What the owner wants besides.
    pub owner: &'a BTreeMap<String, String>,
    /// What the source's configuration says, as far as it was restored.
    pub source: &'a BTreeMap<String, String>,
}

/// The text of postgresql.conf, and what had to be different from the source's.
///
/// # Errors
/// A control file that cannot be read, a value that no setting can have.
pub fn settings(basis: &Basis) -> Result<(String, Vec<String>)> {
    let control = ControlFile::read(basis.data)?;
    let (floor, mut adapted) = floor(&control);
    let walls = walls(basis);
    let share = share(basis);
    let mut settings: BTreeMap<String, String> = share.clone();
    for (name, value) in basis.owner {
        let known = name.to_ascii_lowercase();
        if walls.contains_key(known.as_str()) || floor.contains_key(known.as_str()) {
            adapted.push(format!(
                "{name} of [drill.settings] is not taken: it is one of those that keep the drill apart, or that recovery needs"
            ));
        } else {
            settings.insert(known, value.clone());
        }
    }
    let fixed = walls.into_iter().chain(floor);
    settings.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
    for name in share.keys() {
        let (Some(here), Some(there)) = (settings.get(name), basis.source.get(name)) else {
            continue;
        };
        if here != there {
            adapted.push(format!("{name} is {here}; the source's is {there}"));
        }
    }
    let mut text = String::new();
    for (name, value) in settings {
        text += &setting(&name, &value)?;
    }
    Ok((text, adapted))
}

/// What keeps the instance apart, and what this program reads it by: not the owner's to change.
fn walls(basis: &Basis) -> BTreeMap<&'static str, String> {
    let file = |name: &str| basis.server.join(name).display().to_string();
    // A list of directories: without the quotes, blanks at the ends and commas count.
    let sockets = basis.sockets.display().to_string().replace('"', "\"\"");
    [
        ("data_directory", basis.data.display().to_string()),
        ("hba_file", file("pg_hba.conf")),
        ("ident_file", file("pg_ident.conf")),
        ("listen_addresses", String::new()),
        ("port", PORT.to_owned()),
        ("unix_socket_directories", format!("\"{sockets}\"")),
        ("unix_socket_permissions", "0700".to_owned()),
        ("archive_mode", "off".to_owned()),
        // A subscription's workers would connect to its publisher, and take its changes.
        ("max_logical_replication_workers", "0".to_owned()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        // Nobody reads during recovery, so the source's limits need not be met exactly.
        ("hot_standby", "off".to_owned()),
        // In the data directory: what lies in /dev/shm outlives a server that is killed.
        ("dynamic_shared_memory_type", "mmap".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("log_line_prefix", "%m ".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("timezone", "UTC".to_owned()),
        // Processes are told apart by their titles.
        ("cluster_name", String::new()),
        // The report quotes the log, and statements may hold passwords.
        ("log_min_error_statement", "panic".to_owned()),
        ("log_statement", "none".to_owned()),
        ("log_duration", "off".to_owned()),
        ("log_min_duration_statement", "-1".to_owned()),
        ("log_min_duration_sample", "-1".to_owned()),
        ("log_transaction_sample_rate", "0".to_owned()),
        ("debug_print_parse", "off".to_owned()),
        ("debug_print_rewritten", "off".to_owned()),
        ("debug_print_plan", "off".to_owned()),
        // The log is read in English.
        ("lc_messages", "C".to_owned()),
    ]
    .into()
}

/// What recovery needs to be as large as on the source.
fn floor(control: &ControlFile) -> (BTreeMap<&'static str, String>, Vec<String>) {
    let needed = [
        ("max_connections", CONNECTIONS, control.max_connections),
        ("max_worker_processes", 8, control.max_worker_processes),
        ("max_wal_senders", 0, control.max_wal_senders),
        ("max_prepared_transactions", 0, control.max_prepared_xacts),
        (
            "max_locks_per_transaction",
            LOCKS,
            control.max_locks_per_xact,
        ),
    ];
    let adapted = needed
        .iter()
        .filter(|(_, own, there)| there > own)
        .map(|(name, _, there)| format!("{name} is {there}, as on the source: recovery needs it"));
    let adapted = adapted.collect();
    let floor = needed.map(|(name, own, there)| (name, own.max(there).to_string()));
    (floor.into(), adapted)
}

/// What the instance takes of this host. The owner's settings come before these.
fn share(basis: &Basis) -> BTreeMap<String, String> {
    let share = basis.share;
    let memory = |bytes: u64| match bytes % (1 << 20) {
        0 => format!("{}MB", bytes >> 20),
        _ => format!("{}kB", bytes >> 10),
    };
    let workers = |most: usize| share.parallel_workers.min(most).to_string();
    let mut settings = vec![
        ("shared_buffers", memory(share.shared_buffers)),
        ("maintenance_work_mem", memory(share.maintenance_work_mem)),
        ("work_mem", memory(share.work_mem)),
        ("max_wal_size", memory(share.max_wal_size)),
        // They would have to be set aside on the host, and are production's.
        ("huge_pages", "off".to_owned()),
        ("max_parallel_workers", workers(8)),
        ("max_parallel_workers_per_gather", workers(2)),
        ("max_parallel_maintenance_workers", workers(2)),
        // It would change what the checks look at, and take its part of the host for nothing.
        ("autovacuum", "off".to_owned()),
        ("shared_preload_libraries", String::new()),
        ("session_preload_libraries", String::new()),
        ("local_preload_libraries", String::new()),
        // The source's locales need not be on this host.
        ("lc_monetary", "C".to_owned()),
        ("lc_numeric", "C".to_owned()),
        ("lc_time", "C".to_owned()),
    ];
    if basis.major >= 18 {
        // io_uring is not allowed on every host, nor built into every PostgreSQL.
        let method = match share.parallel_workers {
            0 => "sync",
            _ => "worker",
        };
        settings.push(("io_method", method.to_owned()));
        settings.push(("io_workers", share.parallel_workers.clamp(1, 3).to_string()));
    }
    let settings = settings.into_iter();
    settings
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
