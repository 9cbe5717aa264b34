//! Chains put together without Seawall: packs are unpacked by `zstd -d | tar x`, and PostgreSQL's
//! own `pg_combinebackup` merges them where there is one (18); for older versions the same rules
//! are written down here once more, as plainly as can be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postgres::Cluster;
use crate::process::Run;
use crate::scratch::{give_to_owner, give_tree_to_owner, make_directory};
use crate::site::{PATIENCE, Site};
use crate::{PostgresVersion, Programs};

/// What an incremental file begins with.
const MAGIC: u32 = 0xd3ae_1f0d;
const PREFIX: &str = "INCREMENTAL.";

/// The backups of a site as directories, by hand.
pub struct Combined<'a> {
    site: &'a Site,
    directories: Vec<PathBuf>,
}

impl<'a> Combined<'a> {
    /// Unpacks the backups whose markers these are, the full one first.
    #[track_caller]
    pub fn unpack(site: &'a Site, name: &str, chain: &[&serde_json::Value]) -> Self {
        let directories = chain.iter().enumerate().map(|(at, marker)| {
            let directory = site.scratch.directory(format!("{name}-{at}"));
            let id = marker["id"].as_str().unwrap();
            let prefix = format!("/{id}/");
            for key in site.near.keys_with(".tar.zst") {
                if key.contains(&prefix) && !key.ends_with("config.tar.zst") {
                    unpack(&site.near.path(&key), &directory);
                }
            }
            // A restore makes the links itself.
            let _ = std::fs::remove_file(directory.join("tablespace_map"));
            let manifest = site.near.keys_with("backup_manifest.zst");
            let key = manifest.iter().find(|key| key.contains(&prefix)).unwrap();
            let path = directory.join("backup_manifest");
            std::fs::write(&path, site.near.plain(key)).unwrap();
            give_to_owner(&path);
            directory
        });
        Self {
            directories: directories.collect(),
            site,
        }
    }

    /// The directories, the full one first.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// By `pg_combinebackup` of this very version; `None` if there is none.
    #[track_caller]
    pub fn by_postgresql(&self, to: &Path) -> Option<()> {
        let program = self.site.cluster.version().own("pg_combinebackup")?;
        Run::new(program)
            .args(&self.directories)
            .arg("-o")
            .arg(to)
            .timeout(Duration::from_secs(300))
            .run()
            .success();
        Some(())
    }

    /// By the rules of `pg_combinebackup`, written down once more.
    #[track_caller]
    pub fn by_the_rules(&self, to: &Path) {
        make_directory(to);
        let (newest, older) = self.directories.split_last().unwrap();
        let older: Vec<&Path> = older.iter().rev().map(PathBuf::as_path).collect();
        combine_directory(newest, &older, Path::new(""), to);
        give_tree_to_owner(to);
    }

    /// A cluster on what was combined into `to`, recovered along the archive and promoted.
    #[track_caller]
    pub fn start(&self, name: &str, to: &Path) -> Cluster {
        let site = self.site;
        // Where the directories of the lost host were, links lead elsewhere.
        for entry in std::fs::read_dir(to.join("pg_tblspc")).unwrap().flatten() {
            let elsewhere = site.scratch.join(format!(
                "{name}-space-{}",
                entry.file_name().to_string_lossy()
            ));
            std::fs::rename(entry.path(), &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, entry.path()).unwrap();
        }
        let command = Programs::get().restore_command(&site.config);
        let settings = format!(
            "restore_command = '{}'\narchive_mode = 'off'\nrecovery_target_timeline = 'latest'\n",
            command.replace('\'', "''")
        );
        let path = to.join("postgresql.auto.conf");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, before + &settings).unwrap();
        std::fs::write(to.join("recovery.signal"), "").unwrap();
        give_tree_to_owner(to);
        let mut cluster = site.adopt(name, to);
        cluster.start();
        cluster.wait_until_recovered(PATIENCE);
        cluster
    }

    /// Combines in each way that there is for this version, and hands over each cluster, running.
    #[track_caller]
    pub fn each(&self, name: &str, mut judge: impl FnMut(Cluster)) {
        let rules = format!("{name}-rules");
        let to = self.site.scratch.join(&rules);
        self.by_the_rules(&to);
        judge(self.start(&rules, &to));
        let own = format!("{name}-own");
        let to = self.site.scratch.join(&own);
        match self.by_postgresql(&to) {
            Some(()) => judge(self.start(&own, &to)),
            None => assert!(
                self.site.cluster.version() != &PostgresVersion::find(18),
                "PostgreSQL 18 has pg_combinebackup"
            ),
        }
    }
}

#[track_caller]
fn unpack(pack: &Path, to: &Path) {
    Run::new("bash")
        .args(["-o", "pipefail", "-c"])
        .arg("zstd -dcq \"$0\" | tar -x --no-same-owner -p -C \"$1\" -f -")
        .arg(pack)
        .arg(to)
        .run()
        .success();
}

/// Makes the directory `relative` of `to` out of that of the newest backup.
fn combine_directory(newest: &Path, older: &[&Path], relative: &Path, to: &Path) {
    for entry in std::fs::read_dir(newest.join(relative)).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let path = relative.join(&name);
        if entry.file_type().unwrap().is_dir() {
            make_directory(&to.join(&path));
            combine_directory(newest, older, &path, to);
        } else if let Some(whole) = name.strip_prefix(PREFIX) {
            let mut backups = vec![newest];
            backups.extend(older);
            let content = combine_file(&backups, relative, whole);
            std::fs::write(to.join(relative).join(whole), content).unwrap();
        } else if name == "backup_label" {
            let label = std::fs::read_to_string(entry.path()).unwrap();
            let lines = label.lines().filter(|l| !l.starts_with("INCREMENTAL FROM"));
            let label: String = lines.map(|line| format!("{line}\n")).collect();
            std::fs::write(to.join(&path), label).unwrap();
        } else if name != "backup_manifest" {
            std::fs::copy(entry.path(), to.join(&path)).unwrap();
        }
    }
}

/// The file `name` as the first of `backups`, newest first, had it: each block from the newest
/// that has it.
fn combine_file(backups: &[&Path], directory: &Path, name: &str) -> Vec<u8> {
    const BLOCK: usize = 8192;
    let mut blocks: Vec<Option<Vec<u8>>> = Vec::new();
    let mut known = usize::MAX;
    for (number, backup) in backups.iter().enumerate() {
        let incremental = backup.join(directory).join(format!("{PREFIX}{name}"));
        let mut take = |block: usize, content: &[u8]| {
            if number == 0 && block >= blocks.len() {
                blocks.resize(block + 1, None);
            }
            let missing = block < known && block < blocks.len() && blocks[block].is_none();
            if missing || number == 0 {
                blocks[block] = Some(content.to_vec());
            }
        };
        let Ok(file) = std::fs::read(&incremental) else {
            let whole = std::fs::read(backup.join(directory).join(name)).unwrap();
            for (block, content) in whole.chunks(BLOCK).enumerate() {
                take(block, content);
            }
            break;
        };
        let word = |at: usize| {
            let bytes = file[4 * at..4 * at + 4].try_into().unwrap();
            u32::from_le_bytes(bytes) as usize
        };
        assert_eq!(word(0), MAGIC as usize, "{}", incremental.display());
        let (count, length) = (word(1), word(2));
        let header = match count {
            0 => 12,
            _ => (12 + 4 * count).next_multiple_of(BLOCK),
        };
        assert_eq!(file.len(), header + count * BLOCK, "{name}");
        for at in 0..count {
            let start = header + at * BLOCK;
            take(word(3 + at), &file[start..start + BLOCK]);
        }
        if number == 0 && blocks.len() < length {
            blocks.resize(length, None);
        }
        known = known.min(length);
    }
    let zeros = vec![0; BLOCK];
    blocks
        .into_iter()
        .flat_map(|block| block.unwrap_or_else(|| zeros.clone()))
        .collect()
}
