//! `seawall-drill`: restore into a scratch instance, measure, verify, report.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use jiff::Timestamp;
use seawall::cli::drill::{self, DrillArgs, DrillCommand, HistoryArgs};
use seawall::cli::{self, siblings, start_logging};
use seawall::config::{ClusterConfig, DrillConfig, RepositoryConfig};
use seawall::durable;
use seawall::error::{Error, Exit, IoContext, Result};
use seawall::postgres::recovery::RecoveryTarget;
use seawall::privileges::{self, Account};
use seawall::repository::Repository;
use seawall_drill::drill::loss::Primary;
use seawall_drill::drill::{Drill, Scenario};
use seawall_drill::history::{self, History};
use seawall_drill::limits::Limits;
use seawall_drill::place;
use seawall_drill::random_time;
use seawall_drill::rehearsal::Script;
use seawall_drill::render;
use seawall_drill::report::Report;
use seawall_drill::scratch::{self, Scratch};
use seawall_drill::walls::{self, Walls};
use seawall_restore::system_for;

fn main() -> ExitCode {
    cli::main(|| {
        let args = DrillArgs::parse();
        if let Some(DrillCommand::History(args)) = &args.command {
            start_logging(args.common.log_level);
            return show_history(args).unwrap_or_else(|error| cli::report(&error));
        }
        start_logging(args.common.log_level);
        run(&args).unwrap_or_else(|error| cli::report(&error))
    })
}

fn run(args: &DrillArgs) -> Result<Exit> {
    let mut failed_at = args.failed_at.unwrap_or_else(Timestamp::now);
    let config = args.common.load()?;
    let (cluster_name, cluster) = config.cluster(args.common.cluster.as_deref())?;
    let wanted: Vec<String> = args.repository.clone().into_iter().collect();
    let repository = config
        .repositories(&wanted)?
        .first()
        .copied()
        .ok_or_else(|| Error::usage("no repository is configured"))?;
    let mut request = args.target.request(args.exclusive)?;
    let scenario = match args.scenario {
        drill::Scenario::Restore => Scenario::Restore,
        drill::Scenario::TotalLoss => Scenario::TotalLoss,
        drill::Scenario::Rehearsal => Scenario::Rehearsal,
    };
    let total_loss = scenario == Scenario::TotalLoss;
    if total_loss && args.measure_loss {
        return Err(Error::usage("a total loss leaves no primary to ask")
            .hint("leave out --measure-loss, or name another scenario"));
    }
    let script = match (&args.rehearsal.sql, scenario) {
        (Some(path), Scenario::Rehearsal) => Some(Script::read(path)?),
        (Some(_), _) => {
            return Err(Error::usage("--sql is for --scenario rehearsal"));
        }
        (None, _) => None,
    };
    let fetch = siblings::path_of("seawall-fetch")?;
    let account = if privileges::is_root() {
        Some(Account::of_postgresql(cluster.data_directory.as_deref())?)
    } else {
        None
    };
    let parent = args
        .scratch
        .clone()
        .or_else(|| config.drill.scratch.clone())
        .unwrap_or_else(std::env::temp_dir);
    let data_directory = cluster.data_directory.as_deref();
    place::refuse_inside_a_cluster(&parent, data_directory, &repository.url)?;
    let limits = limits(args, &config.drill);
    // Before the first thread.
    limits.take_hold()?;
    let reports = args
        .report
        .as_deref()
        .map(|path| prepare_reports(path, account.as_ref()))
        .transpose()?;
    // What only root could write there, the drill could neither fill nor remove.
    if let Some(account) = &account {
        account.become_it()?;
    }
    if let Some(reports) = &reports {
        scratch::require_writable(reports, "choose another directory with --report")?;
    }
    scratch::require_writable(
        &parent,
        "choose another place with --scratch or drill.scratch",
    )?;
    // Dropped last, after the runtime with all its threads has ended.
    let mut scratch = Scratch::new(&parent)?;
    scratch::sweep_dead(&parent);
    let primary = match args.measure_loss {
        true => Some(ask_the_primary(cluster)?),
        false => None,
    };
    if let Some(primary) = &primary {
        failed_at = primary.asked;
    }
    // Before the first thread: what is given up here, all that comes is without.
    let mut reached: Vec<&RepositoryConfig> = vec![repository];
    if !total_loss {
        // They are asked whether they hold the backup, too.
        reached.extend(&config.repository);
    }
    let walls = Walls::build(cluster, &config, &reached, scenario != Scenario::Restore)?;
    let exit = cli::run(async {
        if total_loss {
            walls::require(&walls.prove().await)?;
        }
        let rules = &repository.retention;
        let repository = Repository::open(repository)?;
        let mut drawn = None;
        if args.random_time {
            let system = system_for(&repository, cluster_name, &request).await?;
            let (moment, from) = random_time::draw(&system, rules, args.seed, failed_at).await?;
            cli::say(&format!(
                "drew {moment} from {} to {}, with --seed {}",
                from.from, from.until, from.seed
            ));
            request.target = RecoveryTarget::Time(moment);
            drawn = Some(from);
        }
        let drill = Drill {
            config: &config,
            cluster_name,
            cluster,
            repository: &repository,
            request,
            failed_at,
            drawn,
            scenario,
            migration: script
                .as_ref()
                .map(|script| (script, args.rehearsal.database.as_deref())),
            walls: &walls,
            primary,
            trigger: args.trigger.clone(),
            fetch,
            limits,
        };
        let mut done = drill.run(&scratch, args.keep).await?;
        let mut report = done.report;
        if let (true, Some(instance)) = (args.keep, &mut done.instance) {
            let pid = instance.keep();
            let at = instance.client_arguments().join(" ");
            scratch.keep();
            report.teardown = format!(
                "the instance runs on: psql {at} postgres; end it with kill -INT {pid}, then remove {}",
                scratch.path().display()
            );
        } else {
            drop(done.instance);
            report.teardown = if scratch.remove() {
                "the scratch instance is stopped and removed".to_owned()
            } else {
                let left = format!(
                    "the scratch directory {} could not be removed",
                    scratch.path().display()
                );
                report.passed = false;
                report.reasons.push(left.clone());
                left
            };
        }
        history::add_trend(&mut report, &repository).await;
        // First: a report that cannot be written must not keep the result from the repository.
        let stored = repository
            .put_drill(cluster_name, &report.id, &report)
            .await;
        if let Err(error) = stored {
            cli::say(&format!(
                "warning: the result is not in the repository: {}",
                error.one_line()
            ));
        }
        publish(args, &report, reports.as_deref())?;
        Ok(if report.passed {
            Exit::Done
        } else {
            Exit::Missed
        })
    });
    drop(scratch);
    Ok(exit)
}

/// On a runtime that is gone afterwards, with its threads.
fn ask_the_primary(cluster: &ClusterConfig) -> Result<Primary> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed("cannot start the runtime").because(error))?;
    runtime.block_on(Primary::ask(cluster))
}

/// What the drill may use: arguments come before settings.
fn limits(args: &DrillArgs, config: &DrillConfig) -> Limits {
    let args = &args.limits;
    Limits {
        processors: args.processors.map(usize::from).or(config.processors),
        memory: args.memory.or(config.memory).map(|size| size.as_u64()),
        disk: args.disk.or(config.disk).map(|size| size.as_u64()),
        nice: config.nice,
    }
}

/// Makes the directory for the reports, as a directory of `account`.
fn prepare_reports(path: &Path, account: Option<&Account>) -> Result<PathBuf> {
    let path = std::path::absolute(path).on("find", path)?;
    if !path.is_dir() {
        std::fs::create_dir_all(&path).on("make", &path)?;
        if let Some(account) = account {
            account.own(&path)?;
        }
    }
    Ok(path)
}

fn publish(args: &DrillArgs, report: &Report, directory: Option<&Path>) -> Result<()> {
    use std::io::Write;
    let json = serde_json::to_string_pretty(report)
        .map_err(|error| Error::failed("cannot write JSON").because(error))?;
    if let Some(directory) = directory {
        for (name, content) in [
            ("report.html", render::html(report)),
            ("report.json", json.clone() + "\n"),
            ("report.md", render::markdown(report)),
            ("report.xml", render::junit(report)?),
        ] {
            let path = directory.join(name);
            durable::write_file(&path, content.as_bytes(), 0o640).on("write", &path)?;
        }
    }
    let text = if args.json {
        json
    } else {
        render::terminal(report)
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

fn show_history(args: &HistoryArgs) -> Result<Exit> {
    use std::io::Write;
    let config = args.common.load()?;
    let (cluster, _) = config.cluster(args.common.cluster.as_deref())?;
    let wanted: Vec<String> = args.repository.clone().into_iter().collect();
    let settings = config.repositories(&wanted)?;
    let settings = settings
        .first()
        .ok_or_else(|| Error::usage("no repository is configured"))?;
    Ok(cli::run(async {
        let repository = Repository::open(settings)?;
        let history = History::read(&repository, cluster, &config.objectives, args.last).await?;
        let text = if args.json {
            serde_json::to_string_pretty(&history)
                .map_err(|error| Error::failed("cannot write JSON").because(error))?
        } else {
            render::history(&history).trim_end().to_owned()
        };
        // A reader that has gone away is no failure of ours.
        let _ = writeln!(std::io::stdout(), "{text}");
        Ok(Exit::Done)
    }))
}
