//! Asking a running server: SQL through psql, and the few questions that most tests have.

use std::time::Duration;

use super::Cluster;
use crate::process::{Output, Run, wait_until};

impl Cluster {
    /// Runs SQL in the database `postgres` and returns what psql prints, without headers:
    /// one line a row, columns separated by `|`. Each statement is a transaction of its own.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// The same in another database.
    #[track_caller]
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql).success();
        output.stdout.trim_end().to_owned()
    }

    /// The same; an error holds what the server said.
    #[track_caller]
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        let output = self.psql("postgres", sql);
        match output.code {
            0 => Ok(output.stdout.trim_end().to_owned()),
            _ => Err(output.stderr),
        }
    }

    /// Runs psql, which reads `sql` from its standard input.
    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> Output {
        self.client("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-d", database, "-f", "-"])
            .input(sql)
            .timeout(Duration::from_secs(600))
            .run()
    }

    /// A client program with this server's host, port and superuser as its defaults.
    #[track_caller]
    pub fn client(&self, program: &str) -> Run {
        Run::new(self.version.client(program))
            .env("PGHOST", self.socket_directory())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
    }

    /// Reads the configuration files again.
    #[track_caller]
    pub fn reload(&self) {
        self.sql("SELECT pg_reload_conf()");
    }

    /// Ends recovery and waits until the server takes writes.
    #[track_caller]
    pub fn promote(&self) {
        assert_eq!(
            self.sql("SELECT pg_promote(true, 120)"),
            "t",
            "promotion ended in time"
        );
    }

    /// Whether it is in recovery.
    #[track_caller]
    pub fn in_recovery(&self) -> bool {
        self.sql("SELECT pg_is_in_recovery()") == "t"
    }

    /// Waits until recovery has reached its target: paused there, or promoted.
    #[track_caller]
    pub fn wait_until_recovered(&self, limit: Duration) {
        // One statement, so that a promotion between two questions does no harm.
        let question = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE 'promoted' END";
        wait_until("recovery has reached its target", limit, || {
            matches!(self.try_sql(question).as_deref(), Ok("paused" | "promoted"))
        });
    }

    /// Waits until this standby has replayed all that `primary` has written by now.
    #[track_caller]
    pub fn wait_until_caught_up(&self, primary: &Cluster, limit: Duration) {
        let position = primary.sql("SELECT pg_current_wal_lsn()");
        let question = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
        wait_until("the standby has caught up", limit, || {
            self.try_sql(&question).as_deref() == Ok("t")
        });
    }

    /// Writes a record and switches to the next segment. Returns the name of the segment that
    /// is complete now.
    #[track_caller]
    pub fn switch_wal(&self) -> String {
        // Without a record in between a second switch would be a no-operation.
        self.sql(
            "SELECT pg_logical_emit_message(false, 'test', 'switch');
             SELECT pg_walfile_name(pg_switch_wal());",
        )
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
    }

    /// Switches the segment and waits until the archive command has acknowledged it. Returns
    /// the segment's name.
    #[track_caller]
    pub fn archive_all(&self, limit: Duration) -> String {
        let segment = self.switch_wal();
        self.wait_until_archived(&segment, limit);
        segment
    }

    /// Waits until the archive command has acknowledged `file`.
    #[track_caller]
    pub fn wait_until_archived(&self, file: &str, limit: Duration) {
        let wal = self.data.join("pg_wal");
        let status = wal.join("archive_status");
        wait_until(&format!("{file} is archived"), limit, || {
            // Once archived it may be recycled, and its mark with it.
            let waiting = status.join(format!("{file}.ready")).exists();
            let done = status.join(format!("{file}.done")).exists();
            done || (!waiting && !wal.join(file).exists())
        });
    }

    /// How many files the archive command has been failing on, and those it has acknowledged.
    #[track_caller]
    pub fn archiver(&self) -> (u64, u64) {
        let counts = self.sql("SELECT failed_count, archived_count FROM pg_stat_archiver");
        let (failed, archived) = counts.split_once('|').expect("two columns");
        (failed.parse().unwrap(), archived.parse().unwrap())
    }

    /// Whether one base backup of it has begun: one that reads files, or one that the server
    /// sends, which sends its files already.
    #[track_caller]
    pub fn is_backed_up(&self) -> bool {
        let begun = "SELECT (SELECT count(*) FROM pg_stat_progress_basebackup
                             WHERE phase LIKE 'streaming%')
                          + (SELECT count(*) FROM pg_stat_activity
                             WHERE state = 'idle' AND query ~ 'pg_(backup_start|start_backup)')";
        self.sql(begun) == "1"
    }

    /// The system identifier, as PostgreSQL prints it.
    #[track_caller]
    pub fn system_id(&self) -> String {
        self.sql("SELECT system_identifier FROM pg_control_system()")
    }

    /// Makes the role `seawall` with the least privilege that suffices: no superuser, and no
    /// REPLICATION unless asked for.
    #[track_caller]
    pub fn create_seawall_role(&self, replication: bool) {
        let functions = if self.version.major >= 15 {
            "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
        } else {
            "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
        };
        let replication = if replication { "REPLICATION" } else { "" };
        self.sql(&format!(
            "CREATE ROLE seawall LOGIN {replication};
             GRANT EXECUTE ON FUNCTION {functions}, pg_switch_wal(),
                 pg_create_restore_point(text) TO seawall;
             GRANT pg_read_all_settings, pg_monitor TO seawall;"
        ));
    }
}
