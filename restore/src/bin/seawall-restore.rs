//! `seawall-restore`: writes a data directory that is ready to start.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use seawall::cli::restore::{ArchiveMode, RestoreArgs};
use seawall::cli::{self, siblings, start_logging};
use seawall::config::{ClusterConfig, Config};
use seawall::error::{Error, Exit, IoContext, Result};
use seawall::privileges::{self, Account};
use seawall::repository::Repository;
use seawall_restore::target::Tablespaces;
use seawall_restore::{Archive, RestoreCommand, Restored, Settings, restore, system_for};

/// How long the WAL that recovery needs is safe from expiring. It begins when somebody starts
/// the server, and fetches until it is through.
const RECOVERY: Duration = Duration::from_secs(48 * 3600);

fn main() -> ExitCode {
    cli::main(|| {
        let args = RestoreArgs::parse();
        start_logging(args.common.log_level);
        run(&args).unwrap_or_else(|error| cli::report(&error))
    })
}

fn run(args: &RestoreArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, cluster_config) = config.cluster(args.common.cluster.as_deref())?;
    let wanted: Vec<String> = args.repository.clone().into_iter().collect();
    let repository_name = config
        .repositories(&wanted)?
        .first()
        .map(|repository| repository.name.clone())
        .ok_or_else(|| Error::usage("no repository is configured"))?;
    let settings = settings(args, &config, (cluster, cluster_config), &repository_name)?;
    if privileges::is_root() {
        let places = [
            Some(args.to.as_path()),
            cluster_config.data_directory.as_deref(),
        ];
        let places = places.into_iter().flatten();
        let account = Account::of_postgresql(places.chain([Path::new("/var/lib/postgresql")]))?;
        hand_over_directories(args, &account)?;
        account.become_it()?;
        // The restored server's restore_command runs as that user and needs it.
        if let Err(error) = std::fs::File::open(&config.path) {
            return Err(Error::usage(format!(
                "the user {} cannot read the configuration, and recovery needs it",
                account.name()
            ))
            .at(config.path.display())
            .because(error)
            .hint("let PostgreSQL's user read it: chgrp and chmod 0640"));
        }
    }
    Ok(cli::run(async {
        let repositories = Repository::open_all(&config, &[repository_name])?;
        let repository = repositories
            .first()
            .ok_or_else(|| Error::usage("no repository is configured"))?;
        let system = system_for(repository, cluster, &settings.request).await?;
        let mut restored = restore(&system, &settings).await?;
        if let Some(lease) = restored.lease.take() {
            lease.leave(RECOVERY).await;
        }
        print(args, &settings, &restored)?;
        Ok(Exit::Done)
    }))
}

fn settings(
    args: &RestoreArgs,
    config: &Config,
    (cluster, cluster_config): (&str, &ClusterConfig),
    repository: &str,
) -> Result<Settings> {
    let (request, action) = args.request()?;
    Ok(Settings {
        to: args.to.clone(),
        request,
        action,
        standby: args.standby,
        primary: args.primary()?,
        archive: match args.archive {
            ArchiveMode::Hold => Archive::Hold,
            ArchiveMode::Off => Archive::Off,
            ArchiveMode::On => Archive::On,
        },
        keep_source_settings: true,
        tablespaces: match &args.tablespaces_under {
            Some(directory) => Tablespaces::AllUnder(directory.clone()),
            None => Tablespaces::Mapped(args.tablespace.clone()),
        },
        only_databases: args.only_database.clone(),
        waldir: args.waldir.clone(),
        force: args.force,
        delta: args.delta,
        jobs: config.restore.jobs,
        restore_command: RestoreCommand {
            program: siblings::path_of("seawall-fetch")?,
            config: config.path.clone(),
            cluster: cluster.to_owned(),
            repository: repository.to_owned(),
            jobs: None,
        },
        bin_directory: cluster_config.bin_directory.clone(),
    })
}

/// What only root can do: make directories in places that belong to root, and give them to
/// PostgreSQL's user. Only directories that are new or empty change their owner.
fn hand_over_directories(args: &RestoreArgs, account: &Account) -> Result<()> {
    let directories = [&args.to]
        .into_iter()
        .chain(&args.waldir)
        .chain(args.tablespace.iter().map(|(_, new)| new))
        .chain(&args.tablespaces_under);
    for directory in directories {
        let empty =
            std::fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none());
        if empty {
            make_with_parents(directory)?;
            account.own(directory)?;
        }
    }
    Ok(())
}

/// New parents belong to root, and PostgreSQL's user must get through them.
fn make_with_parents(directory: &Path) -> Result<()> {
    if directory.exists() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        make_with_parents(parent)?;
    }
    std::fs::create_dir(directory).on("make", directory)?;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory, mode).on("set the mode of", directory)
}

fn print(args: &RestoreArgs, settings: &Settings, restored: &Restored) -> Result<()> {
    use std::io::Write;
    for warning in &restored.warnings {
        eprintln!("warning: {warning}");
    }
    let backup = &restored.plan.backup;
    let seconds: f64 = restored
        .phases
        .iter()
        .map(|phase| phase.duration.as_secs_f64())
        .sum();
    let mut out = std::io::stdout();
    if args.json {
        let value = serde_json::json!({
            "format": 1,
            "data_directory": settings.to,
            "backup": backup.id,
            "timeline": restored.plan.history.timeline,
            "start_lsn": backup.start_lsn,
            "consistent_at": backup.stop_lsn,
            "wal_end": restored.plan.wal_end,
            "wal_end_stored": restored.plan.wal_end_stored,
            "files": restored.files,
            "bytes": restored.plain_bytes,
            "fetched_bytes": restored.fetched_bytes,
            "kept_files": restored.kept_files,
            "kept_bytes": restored.kept_bytes,
            "seconds": seconds,
            "phases": restored.phases,
            "left_out": restored.left_out,
            "release_archiving": restored.release,
            "lost_logical_slots": backup.logical_slots,
            "host": restored.host,
            "warnings": restored.warnings,
        });
        let _ = writeln!(out, "{value:#}");
        return Ok(());
    }
    let _ = writeln!(
        out,
        "restored backup {} into {}: {} files, {} bytes, in {seconds:.1} s",
        backup.id,
        settings.to.display(),
        restored.files,
        restored.plain_bytes
    );
    if restored.kept_files > 0 {
        let _ = writeln!(
            out,
            "{} files were right already, {} bytes",
            restored.kept_files, restored.kept_bytes
        );
    }
    let _ = writeln!(
        out,
        "start it (PostgreSQL {}): it recovers on timeline {}; archived WAL ends at {}",
        backup.major(),
        restored.plan.history.timeline,
        restored.plan.wal_end
    );
    match settings.archive {
        Archive::Hold => {
            let release = restored.release.as_deref().unwrap_or_default();
            let _ = writeln!(
                out,
                "archiving is on hold; once it is production: {release}"
            );
        }
        Archive::Off => {
            let _ = writeln!(
                out,
                "archiving is off; its new timeline never reaches the archive"
            );
        }
        Archive::On => {}
    }
    let _ = writeln!(
        out,
        "once it is production, take a full backup soon: a new timeline wants one"
    );
    Ok(())
}
