//! Making clusters: what `initdb` is told, and the layouts that real ones have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Cluster;
use crate::process::Run;
use crate::scratch::{Scratch, give_tree_to_owner, make_directory, set_mode};
use crate::version::PostgresVersion;

/// What a new cluster is to be like. Page checksums are on unless switched off.
#[derive(Debug, Clone)]
pub struct Builder {
    version: PostgresVersion,
    segment_size: u32,
    checksums: bool,
    group_access: bool,
    separate_wal: bool,
    config_outside: bool,
    tablespaces: Vec<String>,
    tcp: bool,
    fsync: bool,
    config: Vec<(String, String)>,
}

impl Builder {
    pub(super) fn new(version: PostgresVersion) -> Self {
        Self {
            version,
            segment_size: 16,
            checksums: true,
            group_access: false,
            separate_wal: false,
            config_outside: false,
            tablespaces: Vec::new(),
            tcp: false,
            fsync: false,
            config: Vec::new(),
        }
    }

    /// `wal_segment_size` in MiB.
    pub fn segment_size(mut self, mebibytes: u32) -> Self {
        self.segment_size = mebibytes;
        self
    }

    /// Without page checksums.
    pub fn without_checksums(mut self) -> Self {
        self.checksums = false;
        self
    }

    /// `initdb --allow-group-access`: files are readable by PostgreSQL's group.
    pub fn group_access(mut self) -> Self {
        self.group_access = true;
        self
    }

    /// pg_wal is a symbolic link to a directory outside the data directory.
    pub fn separate_wal(mut self) -> Self {
        self.separate_wal = true;
        self
    }

    /// postgresql.conf, pg_hba.conf and pg_ident.conf lie outside the data directory, as
    /// Debian has them.
    pub fn config_outside(mut self) -> Self {
        self.config_outside = true;
        self
    }

    /// Adds a tablespace, made at the first start.
    pub fn tablespace(mut self, name: &str) -> Self {
        self.tablespaces.push(name.into());
        self
    }

    /// Listens on a free TCP port of 127.0.0.1 too.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// `fsync = on`, as in life. Tests kill processes, not machines: without it they are
    /// faster and lose nothing.
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// A line of postgresql.conf.
    pub fn config(mut self, setting: &str, value: &str) -> Self {
        self.config.push((setting.into(), value.into()));
        self
    }

    /// Makes the cluster in `scratch`/`name`, which must not exist. It is not started.
    #[track_caller]
    pub fn create_in(self, scratch: &Scratch, name: &str) -> Cluster {
        let home = scratch.join(name);
        assert!(!home.exists(), "there is a cluster {name:?} already");
        make_directory(&home);
        make_directory(&home.join("s"));
        let wal = self.separate_wal.then(|| home.join("wal"));
        let mut cluster = Cluster {
            data: home.join("data"),
            config_directory: None,
            tablespaces: Vec::new(),
            tablespaces_made: self.tablespaces.is_empty(),
            port: if self.tcp { free_port() } else { 5432 },
            tcp: self.tcp,
            environment: Vec::new(),
            server: None,
            name: name.into(),
            version: self.version.clone(),
            wal,
            home,
        };
        self.initdb(&cluster);
        for tablespace in &self.tablespaces {
            let directory = cluster.home.join(format!("ts-{tablespace}"));
            make_directory(&directory);
            cluster.tablespaces.push((tablespace.clone(), directory));
        }
        if self.config_outside {
            move_config(&mut cluster);
        }
        let mut settings = vec![
            ("fsync", if self.fsync { "on" } else { "off" }),
            ("shared_buffers", "32MB"),
            ("max_connections", "40"),
            ("log_line_prefix", "%m [%p] "),
            ("log_timezone", "UTC"),
            ("timezone", "UTC"),
            // So that the ledger can ask on which side of a moment a commit lies.
            ("track_commit_timestamp", "on"),
            ("wal_level", "replica"),
        ];
        settings.extend(self.config.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        for (setting, value) in settings {
            cluster.configure(setting, value);
        }
        cluster
    }

    #[track_caller]
    fn initdb(&self, cluster: &Cluster) {
        let mut run = Run::new(self.version.bin.join("initdb"))
            .arg("-D")
            .arg(&cluster.data)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8"])
            .args(["--locale=C.UTF-8", "--no-sync"])
            .arg(format!("--wal-segsize={}", self.segment_size))
            .directory(&cluster.home);
        if self.checksums {
            run = run.arg("--data-checksums");
        } else if self.version.major >= 18 {
            run = run.arg("--no-data-checksums");
        }
        if self.group_access {
            run = run.arg("--allow-group-access");
        }
        if let Some(wal) = &cluster.wal {
            run = run.arg("-X").arg(wal);
        }
        run.run().success();
        if self.group_access {
            // The group must be able to get there, too.
            set_mode(&cluster.home, 0o750);
        }
    }
}

#[track_caller]
fn move_config(cluster: &mut Cluster) {
    let outside = cluster.home.join("etc");
    make_directory(&outside);
    for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        std::fs::rename(cluster.data.join(file), outside.join(file)).expect("it moves");
    }
    give_tree_to_owner(&outside);
    let of = |name: &str| outside.join(name).display().to_string();
    let (data, hba, ident) = (
        cluster.data.display().to_string(),
        of("pg_hba.conf"),
        of("pg_ident.conf"),
    );
    cluster.config_directory = Some(outside);
    cluster.configure("data_directory", &data);
    cluster.configure("hba_file", &hba);
    cluster.configure("ident_file", &ident);
}

/// A TCP port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("127.0.0.1 has a free port")
        .port()
}

impl Cluster {
    /// Makes a standby of this running server with `pg_basebackup`, as `scratch`/`name`. It
    /// streams from this one; it is not started.
    #[track_caller]
    pub fn standby(&self, scratch: &Scratch, name: &str) -> Cluster {
        let home = scratch.join(name);
        assert!(!home.exists(), "there is a cluster {name:?} already");
        let mut standby = Cluster::adopt(self.version.clone(), scratch, name, &home.join("data"));
        let mut run = Run::new(self.version.client("pg_basebackup"))
            .arg("-D")
            .arg(&standby.data)
            .args(["-R", "-X", "stream", "-c", "fast", "--no-sync"])
            .arg("-d")
            .arg(self.connection("postgres"))
            .timeout(Duration::from_secs(300));
        for (tablespace, old) in &self.tablespaces {
            let new: PathBuf = home.join(format!("ts-{tablespace}"));
            make_directory(&new);
            run = run.arg("-T").arg(mapping(old, &new));
            standby.tablespaces.push((tablespace.clone(), new));
        }
        run.run().success();
        if self.config_directory.is_some() {
            for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
                let to = standby.data.join(file);
                std::fs::copy(self.config_directory().join(file), &to).expect("it copies");
            }
            give_tree_to_owner(&standby.data);
            let data = standby.data.display().to_string();
            standby.configure("data_directory", &data);
            standby.configure("hba_file", &format!("{data}/pg_hba.conf"));
            standby.configure("ident_file", &format!("{data}/pg_ident.conf"));
        }
        standby
    }
}

fn mapping(old: &Path, new: &Path) -> String {
    format!("{}={}", old.display(), new.display())
}
