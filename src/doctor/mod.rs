//! The doctor: examines the server, its archiving and every repository, and says for each
//! finding what to do. It changes nothing but a WAL switch and a probe object that it removes.

mod backlog;
mod copies;
mod repository;
mod server;

use std::time::Duration;

use serde::Serialize;

use crate::config::{BackupFrom, ClusterConfig, Config};
use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::replication::Session;
use crate::postgres::sql::Client;
use crate::repository::Repository;

pub use server::is_ours;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and may not for long.
    Warning,
    /// Data is, or will be, at risk.
    Problem,
}

/// One thing that was examined.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was examined: `settings`, `archiving`, `repository near`, ….
    pub subject: String,
    /// What was found.
    pub finding: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Collects findings about one subject after the other.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, subject: &str, finding: String, advice: Option<String>) {
        self.0.push(Finding {
            level,
            subject: subject.to_owned(),
            finding,
            advice,
        });
    }

    fn ok(&mut self, subject: &str, finding: impl Into<String>) {
        self.add(Level::Ok, subject, finding.into(), None);
    }

    fn warning(&mut self, subject: &str, finding: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Warning, subject, finding.into(), Some(advice.into()));
    }

    fn problem(&mut self, subject: &str, finding: impl Into<String>, advice: impl Into<String>) {
        self.add(Level::Problem, subject, finding.into(), Some(advice.into()));
    }

    /// An operation that failed is a finding, and no reason to look no further.
    fn failed(&mut self, subject: &str, error: &Error) {
        let advice = error.advice().map(str::to_owned);
        let text = error.one_line();
        let what = text.split("; hint: ").next().unwrap_or_default();
        self.add(Level::Problem, subject, what.to_owned(), advice);
    }
}

/// Opens and ends a replication session, as a base backup would; where it was.
async fn replication(cluster: &ClusterConfig) -> Result<String> {
    let mut session = Session::of_cluster(cluster).await?;
    session.identify_system().await?;
    Ok(session.place().to_owned())
}

/// Examines everything. Findings come in the order in which they were examined.
pub async fn examine(
    config: &Config,
    cluster_name: &str,
    cluster: &ClusterConfig,
    client: Result<Client>,
    archive_command: Option<&str>,
    patience: Duration,
) -> Vec<Finding> {
    let mut findings = Findings::default();
    let control = match &cluster.data_directory {
        Some(data_directory) => match ControlFile::read(data_directory) {
            Ok(control) => {
                findings.ok(
                    "data directory",
                    format!(
                        "{}: PostgreSQL {}, system {}",
                        data_directory.display(),
                        control.major,
                        control.system_id
                    ),
                );
                Some(control)
            }
            Err(error) => {
                findings.failed("data directory", &error);
                None
            }
        },
        None => {
            findings.ok(
                "data directory",
                "not on this host: `seawall check` on the server's host looks at archiving",
            );
            None
        }
    };
    if cluster.backup_from() == BackupFrom::Replication {
        match replication(cluster).await {
            Ok(place) => findings.ok("replication", format!("base backups come from {place}")),
            Err(error) => findings.failed("replication", &error),
        }
    }
    let mut repositories = Vec::new();
    let mut pushed_to = Vec::new();
    for repository in &config.repository {
        // One that is away must not hide what is wrong with the others.
        match Repository::open(repository) {
            Ok(opened) => {
                if repository.copy_from.is_none() {
                    pushed_to.push(opened.clone());
                }
                repositories.push(opened);
            }
            Err(error) => findings.failed(&format!("repository {}", repository.name), &error),
        }
    }
    let mut server = None;
    match client {
        Ok(client) => {
            server::examine(
                &client,
                config,
                control.as_ref(),
                archive_command,
                &mut findings,
            )
            .await;
            server = Some(client);
        }
        Err(error) => findings.failed("server", &error),
    }
    let mut tried = None;
    if let (Some(client), Some(control)) = (&server, &control) {
        tried = server::try_archiving(
            client,
            cluster_name,
            control,
            &pushed_to,
            patience,
            &mut findings,
        )
        .await;
    }
    if let Some(control) = &control {
        backlog::examine(config, cluster, control, server.as_ref(), &mut findings).await;
    }
    let is_copy = |name: &str| {
        let mut all = config.repository.iter();
        all.any(|repository| repository.name == name && repository.copy_from.is_some())
    };
    // After the segment was tried, so that all that is older should be everywhere.
    let mut surveys = Vec::new();
    for repository in &repositories {
        let is_copy = is_copy(repository.name());
        let control = control.as_ref();
        let survey =
            repository::examine(repository, cluster_name, control, is_copy, &mut findings).await;
        if let (Some(survey), Some(control)) = (survey, control) {
            surveys.push((repository.system(cluster_name, control.system_id), survey));
        }
    }
    repository::compare(&surveys, is_copy, tried, &mut findings);
    if let Err(error) = repository::compare_contents(&surveys, &mut findings).await {
        findings.failed("repositories", &error);
    }
    if let Some(control) = &control {
        copies::examine(config, cluster_name, control.system_id, &mut findings).await;
    }
    findings.0
}
