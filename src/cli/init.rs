//! `seawall init`.

use std::path::Path;

use clap::Parser;

use super::output::print;
use super::{Common, connect, siblings};
use crate::config::{ClusterConfig, Config};
use crate::doctor;
use crate::error::{Exit, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::recovery::{server_command, setting};
use crate::postgres::sql::Client;
use crate::privileges::{self, Account};
use crate::repository::Repository;
use crate::storage::{Created, Store};

/// Make the repositories, check the server's settings, print what postgresql.conf lacks
///
/// Works without a running server, too, and may be run again at any time.
#[derive(Debug, Parser)]
pub struct InitArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
}

/// Makes what is missing.
pub fn run(args: &InitArgs) -> Result<Exit> {
    let config = args.common.load()?;
    config.check_schedules()?;
    let (name, cluster) = config.cluster(args.common.cluster.as_deref())?;
    let data_directory = cluster.data_directory.as_deref();
    let owner = data_directory.and_then(Account::owner_of);
    for repository in &config.repository {
        if let Some(path) = repository.url.strip_prefix("file://") {
            let made = !Path::new(path).exists();
            Store::create_root(&repository.url)?;
            if let (true, true, Some(owner)) = (made, privileges::is_root(), &owner) {
                owner.own(Path::new(path))?;
            }
        }
    }
    super::become_cluster_owner(cluster)?;
    Ok(super::run(async {
        let (system_id, major, segment_size) = match data_directory {
            Some(data_directory) => {
                let control = ControlFile::read(data_directory)?;
                (control.system_id, control.major, control.segment_size)
            }
            None => {
                let geometry = connect(cluster).await?.geometry().await?;
                (geometry.system_id, geometry.major, geometry.segment_size)
            }
        };
        for repository in Repository::open_all(&config, &[])? {
            let made = match repository.init().await? {
                Created::Created => "made",
                Created::Exists => "is there already:",
            };
            print(&format!("{made} {}", repository.place()));
            let system = repository.system(name, system_id);
            system.register(major, segment_size).await?;
        }
        print(&format!(
            "registered cluster {name}: PostgreSQL {major}, system {system_id}, segments of {segment_size}"
        ));
        if data_directory.is_none() {
            print(
                "the server archives from its own host: run `seawall init` there, too, with its data_directory",
            );
            return Ok(Exit::Done);
        }
        settings(&config, name, cluster).await
    }))
}

/// Says which lines postgresql.conf lacks.
async fn settings(config: &Config, name: &str, cluster: &ClusterConfig) -> Result<Exit> {
    let command = archive_command(config, name)?;
    let wanted = [
        ("wal_level", "replica".to_owned()),
        ("archive_mode", "on".to_owned()),
        ("archive_command", command),
    ];
    let missing = match connect(cluster).await {
        Ok(client) => missing(&client, &wanted).await?,
        Err(error) => {
            print(&format!(
                "the server was not asked ({}); these are the lines it needs:",
                error.what()
            ));
            wanted
                .iter()
                .map(|(name, value)| (*name, value.clone(), true))
                .collect()
        }
    };
    if missing.is_empty() {
        print("the server's settings are right: take a backup with `seawall backup`");
        return Ok(Exit::Done);
    }
    print("postgresql.conf lacks these lines:\n");
    for (name, value, _) in &missing {
        print(setting(name, value)?.trim_end());
    }
    print(if missing.iter().any(|(.., restart)| *restart) {
        "\nthen restart PostgreSQL, and run `seawall check`"
    } else {
        "\nthen reload PostgreSQL, and run `seawall check`"
    });
    Ok(Exit::Done)
}

/// The archive_command of this configuration.
pub(super) fn archive_command(config: &Config, name: &str) -> Result<String> {
    let program = siblings::path_of("seawall-archive")?;
    let (program, path) = (program.to_string_lossy(), config.path.to_string_lossy());
    let mut words: Vec<&str> = vec![&program, "--config", &path];
    if config.cluster.len() > 1 {
        words.extend(["--cluster", name]);
    }
    Ok(server_command(&words, "%p"))
}

/// Settings that are not right: name, value, and whether the change needs a restart.
pub(super) async fn missing<'a>(
    client: &Client,
    wanted: &[(&'a str, String)],
) -> Result<Vec<(&'a str, String, bool)>> {
    let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    let settings = client.settings(&names).await?;
    let mut missing = Vec::new();
    for (name, value) in wanted {
        let now = settings
            .get(*name)
            .map_or("", |setting| setting.value.as_str());
        let right = match *name {
            "wal_level" => now != "minimal",
            "archive_mode" => now != "off",
            "archive_command" => doctor::is_ours(now),
            _ => now == value,
        };
        if !right {
            missing.push((*name, value.clone(), *name != "archive_command"));
        }
    }
    Ok(missing)
}
