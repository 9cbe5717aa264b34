//! A random workload that does to relations all that a page's LSN does not tell: tables that are
//! truncated, dropped and made again, rewritten and moved, databases copied as files, large
//! objects, unlogged tables, prepared transactions.

use crate::postgres::Cluster;
use crate::seed::Seed;

/// Tables that it plays with.
const TABLES: u64 = 8;

/// Databases beside `postgres`.
const DATABASES: u64 = 3;

/// A workload in one cluster, which has a tablespace called `other` and takes prepared
/// transactions.
#[derive(Debug)]
pub struct Workload {
    seed: Seed,
    /// What it did, for who looks at a failure.
    done: Vec<String>,
    prepared: Option<u64>,
    number: u64,
}

impl Workload {
    /// Makes the tables.
    #[track_caller]
    pub fn create(cluster: &Cluster) -> Self {
        let mut workload = Self {
            seed: Seed::new(),
            done: Vec::new(),
            prepared: None,
            number: 0,
        };
        cluster.sql("CREATE EXTENSION IF NOT EXISTS plpgsql");
        for table in 0..TABLES {
            let sql = workload.making(table);
            workload.run(cluster, "postgres", &sql);
        }
        workload.run(
            cluster,
            "postgres",
            "CREATE TABLE prepared (n bigint, d int, t text, long text);
             CREATE UNLOGGED TABLE unlogged (n int PRIMARY KEY, t text);
             INSERT INTO unlogged SELECT n, repeat('u', 500) FROM generate_series(1, 1000) n;",
        );
        workload
    }

    /// Does so many things, one after the other.
    #[track_caller]
    pub fn steps(&mut self, cluster: &Cluster, count: usize) {
        for _ in 0..count {
            self.step(cluster);
        }
    }

    /// Ends what would be in doubt forever.
    #[track_caller]
    pub fn settle(&mut self, cluster: &Cluster) {
        if let Some(number) = self.prepared.take() {
            self.run(cluster, "postgres", &format!("COMMIT PREPARED 'p{number}'"));
        }
    }

    fn step(&mut self, cluster: &Cluster) {
        let table = self.seed.below(TABLES);
        self.number += 1;
        let number = self.number;
        let rows = 1 + self.seed.below(3000);
        let part = 2 + self.seed.below(40);
        match self.seed.below(20) {
            0..=2 => self.run(cluster, "postgres", &inserting(&format!("t{table}"), rows, number)),
            3 | 4 => self.run(
                cluster,
                "postgres",
                &format!("UPDATE t{table} SET t = t || 'x', d = d + 1 WHERE n % {part} = 0"),
            ),
            5 => self.run(cluster, "postgres", &format!("DELETE FROM t{table} WHERE n % {part} = 1")),
            // Shrinks the file, where the end is empty.
            6 => self.run(
                cluster,
                "postgres",
                &format!("DELETE FROM t{table} WHERE ctid >= '(20,0)'; VACUUM t{table};"),
            ),
            7 => {
                let grown = inserting(&format!("t{table}"), rows, number);
                self.run(cluster, "postgres", &format!("TRUNCATE t{table}; {grown}"));
            }
            8 => {
                let made = self.making(table);
                self.run(cluster, "postgres", &format!("DROP TABLE t{table}; {made}"));
            }
            9 => self.run(cluster, "postgres", &format!("VACUUM FULL t{table}")),
            10 => self.run(cluster, "postgres", &format!("REINDEX TABLE t{table}")),
            11 => self.run(cluster, "postgres", &format!("VACUUM (FREEZE) t{table}")),
            12 => {
                let space = ["pg_default", "other"][self.seed.below(2) as usize];
                self.run(
                    cluster,
                    "postgres",
                    &format!("ALTER TABLE t{table} SET TABLESPACE {space}"),
                );
            }
            13 | 14 => self.database(cluster),
            15 => self.run(
                cluster,
                "postgres",
                &format!("SELECT lo_from_bytea(0, decode(repeat(md5('{number}'), {rows}), 'hex'))"),
            ),
            16 => self.run(
                cluster,
                "postgres",
                "SELECT lo_unlink(loid) FROM (SELECT DISTINCT loid FROM pg_largeobject ORDER BY 1 LIMIT 1) l",
            ),
            17 => self.run(
                cluster,
                "postgres",
                &format!("UPDATE unlogged SET t = md5('{number}') WHERE n % {part} = 0"),
            ),
            18 if self.prepared.is_none() => {
                // In a table of its own: it keeps its locks.
                let some = inserting("prepared", 50, number);
                let sql = format!("BEGIN; {some} PREPARE TRANSACTION 'p{number}';");
                self.run(cluster, "postgres", &sql);
                self.prepared = Some(number);
            }
            _ => self.settle(cluster),
        }
    }

    /// Drops a database and makes it again, by either strategy; or moves it.
    fn database(&mut self, cluster: &Cluster) {
        let name = format!("d{}", self.seed.below(DATABASES));
        let exists = cluster.sql(&format!(
            "SELECT count(*) FROM pg_database WHERE datname = '{name}'"
        )) == "1";
        if exists && self.seed.below(2) == 0 {
            let space = ["pg_default", "other"][self.seed.below(2) as usize];
            let old = cluster.sql(&format!(
                "SELECT spcname FROM pg_database d JOIN pg_tablespace s ON s.oid = dattablespace WHERE datname = '{name}'"
            ));
            if old != space {
                self.run(
                    cluster,
                    "postgres",
                    &format!("ALTER DATABASE {name} SET TABLESPACE {space}"),
                );
            }
            return;
        }
        // Under its old number: what was there before has the same names as what comes.
        let oid = cluster.sql(&format!(
            "SELECT oid FROM pg_database WHERE datname = '{name}'"
        ));
        let major = cluster.version().major;
        let mut options = String::new();
        if major >= 15 {
            options += ["STRATEGY = wal_log", "STRATEGY = file_copy"][self.seed.below(2) as usize];
            if let Ok(oid) = oid.parse::<u32>() {
                options += &format!(" OID = {oid}");
            }
        }
        if exists {
            self.run(cluster, "postgres", &format!("DROP DATABASE {name}"));
        }
        // Sometimes a copy of another one, whose pages are old.
        let others = cluster.sql(&format!(
            "SELECT datname FROM pg_database WHERE datname ~ '^d[0-9]' AND datname <> '{name}' ORDER BY 1 LIMIT 1"
        ));
        let template = if others.is_empty() || self.seed.below(2) == 0 {
            "template0"
        } else {
            &others
        };
        self.run(
            cluster,
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE {template} {options}"),
        );
        let (number, rows) = (self.number, 100 + self.seed.below(2000));
        self.run(
            cluster,
            &name,
            &format!(
                "CREATE TABLE IF NOT EXISTS t (n bigint PRIMARY KEY, t text);
                 INSERT INTO t SELECT n, md5((n * {number})::text) FROM generate_series(1, {rows}) n ON CONFLICT DO NOTHING;",
            ),
        );
    }

    fn making(&mut self, table: u64) -> String {
        let rows = 500 + self.seed.below(3000);
        format!(
            "CREATE TABLE t{table} (n bigint, d int, t text, long text);
             CREATE INDEX ON t{table} (n); CREATE INDEX ON t{table} USING hash (t);
             CREATE INDEX ON t{table} USING gin ((string_to_array(t, 'a')));
             {}",
            inserting(&format!("t{table}"), rows, table)
        )
    }

    #[track_caller]
    fn run(&mut self, cluster: &Cluster, database: &str, sql: &str) {
        self.done.push(format!("{database}: {sql}"));
        cluster.sql_in(database, sql);
    }
}

/// Some rows, a few of them large enough for TOAST.
fn inserting(table: &str, rows: u64, seed: u64) -> String {
    format!(
        "INSERT INTO {table} SELECT n, n % 100, md5((n * {seed})::text),
             CASE WHEN n % 200 = 0 THEN (SELECT string_agg(md5((n * i)::text), '') FROM generate_series(1, 200) i) END
         FROM generate_series(1, {rows}) n;"
    )
}

impl Drop for Workload {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- the last that the workload did --");
            let last = self.done.len().saturating_sub(40);
            self.done[last..].iter().for_each(|sql| eprintln!("{sql}"));
        }
    }
}
