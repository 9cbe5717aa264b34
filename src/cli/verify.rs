//! `seawall verify`.

use clap::Parser;
use serde::Serialize;

use super::output::{print, print_json, size};
use super::{Common, become_cluster_owner};
use crate::backup::verify::{Finding, Kind, Report, Scope, Verified, verify};
use crate::config::RepositoryConfig;
use crate::error::{Error, Exit, Result};
use crate::postgres::SystemId;
use crate::repository::Repository;
use crate::repository::catalogue::Unreadable;
use crate::repository::keys::BackupId;

/// Read and check stored base backups: every object, file and page, and the WAL that each needs
/// itself
///
/// Exit code 3: something is wrong; each finding names the key, and what to do. 1: a repository
/// could not be asked, or did not deliver something.
#[derive(Debug, Parser)]
pub struct VerifyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// How many objects are read at once [default: the processors, at most 8]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Look only whether everything is there with its size; nothing but indexes is read
    #[arg(long)]
    pub quick: bool,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    /// The backup, and those that it stands on [default: all backups]
    pub id: Option<BackupId>,
}

#[derive(Serialize)]
struct Document {
    format: u32,
    cluster: String,
    quick: bool,
    passed: bool,
    repositories: Vec<InRepository>,
}

/// One repository, or one system in it.
#[derive(Serialize)]
struct InRepository {
    repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_id: Option<SystemId>,
    /// Why it was not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    report: Report,
}

/// Verifies in each repository. One that fails does not hold up the others.
pub fn run(args: &VerifyArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, cluster_config) = config.cluster(args.common.cluster.as_deref())?;
    let repositories = config.repositories(&args.repository)?;
    become_cluster_owner(cluster_config)?;
    let scope = Scope {
        backup: args.id.clone(),
        jobs: args.jobs.map_or_else(processors, usize::from),
        quick: args.quick,
    };
    Ok(super::run(async {
        let mut document = Document {
            format: 1,
            cluster: cluster.to_owned(),
            quick: args.quick,
            passed: false,
            repositories: Vec::new(),
        };
        for repository in repositories {
            in_repository(repository, cluster, &scope, &mut document.repositories).await;
        }
        document.finish(args)
    }))
}

async fn in_repository(
    settings: &RepositoryConfig,
    cluster: &str,
    scope: &Scope,
    into: &mut Vec<InRepository>,
) {
    let failed = |system_id, error: &Error| {
        super::report(error);
        InRepository {
            repository: settings.name.clone(),
            system_id,
            error: Some(error.one_line()),
            report: Report::default(),
        }
    };
    let systems = async {
        let repository = Repository::open(settings)?;
        repository.record().await?;
        repository.systems(cluster).await
    };
    let systems = match systems.await {
        Ok(systems) => systems,
        Err(error) => return into.push(failed(None, &error)),
    };
    if systems.is_empty() {
        into.push(InRepository {
            repository: settings.name.clone(),
            system_id: None,
            error: None,
            report: Report::default(),
        });
    }
    for (system, _) in systems {
        let id = Some(system.id());
        into.push(match verify(&system, scope).await {
            Ok(report) => InRepository {
                repository: settings.name.clone(),
                system_id: id,
                error: None,
                report,
            },
            Err(error) => failed(id, &error),
        });
    }
}

impl Document {
    /// Prints it, and says what it means.
    fn finish(mut self, args: &VerifyArgs) -> Result<Exit> {
        let reports = || self.repositories.iter().map(|one| &one.report);
        let nothing =
            reports().all(|report| report.backups.is_empty() && report.unreadable.is_empty());
        let failed = self.repositories.iter().any(|one| one.error.is_some());
        if let Some(id) = &args.id
            && nothing
            && !failed
        {
            return Err(Error::failed(format!("there is no backup {id}"))
                .hint("`seawall list` shows the backups"));
        }
        // Whoever asks for a check of what is there, and nothing is, would like to know.
        let holds = |name: &str| {
            let mut systems = self
                .repositories
                .iter()
                .filter(|one| one.repository == name);
            systems.any(|one| !one.report.backups.is_empty() || one.error.is_some())
        };
        let mut names = self.repositories.iter().map(|one| &one.repository);
        let empty = args.id.is_none() && names.any(|name| !holds(name));
        let unread = reports().any(|report| report.findings().any(|f| f.kind == Kind::Unread));
        self.passed = !failed && !empty && reports().all(Report::passed);
        if args.json {
            print_json(&self)?;
        } else {
            self.show();
        }
        Ok(match self.passed {
            true => Exit::Done,
            // What is not known is no finding.
            false if failed || unread => Exit::Failed,
            false => Exit::Missed,
        })
    }

    fn show(&self) {
        for one in &self.repositories {
            let repository = &one.repository;
            for Unreadable { key, why, hint, .. } in &one.report.unreadable {
                print(&format!("damaged: {key}: {why}"));
                if let Some(hint) = hint {
                    print(&format!("  hint: {hint}"));
                }
            }
            for backup in &one.report.backups {
                show(backup, repository, self.quick);
            }
            if one.error.is_none() && one.report.backups.is_empty() {
                print(&format!("repository {repository}: no backups to verify"));
            }
        }
    }
}

fn show(backup: &Verified, repository: &str, quick: bool) {
    for Finding {
        kind,
        key,
        what,
        hint,
        ..
    } in &backup.findings
    {
        let kind = format!("{kind:?}").to_lowercase();
        print(&format!("{kind}: {key}: {what}"));
        print(&format!("  hint: {hint}"));
    }
    let looked = match quick {
        true => "their sizes looked at".to_owned(),
        false => format!("{} files, {} pages verified", backup.files, backup.pages),
    };
    let findings = match backup.findings.len() {
        0 => "nothing is wrong".to_owned(),
        count => format!("{count} findings"),
    };
    let known = match backup.known_damaged_pages {
        0 => String::new(),
        count => format!("; {count} pages were damaged on the source already"),
    };
    print(&format!(
        "backup {} in {repository}: {} objects ({}), {looked}: {findings}{known}",
        backup.id,
        backup.objects,
        size(backup.stored_bytes),
    ));
}

fn processors() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .min(8)
}
