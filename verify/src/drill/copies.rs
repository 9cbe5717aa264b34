//! 3-2-1-1-0 of what was drilled: from the configuration, and from the repositories that it
//! names.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use seawall::config::RepositoryConfig;
use seawall::repository::Repository;

use super::course::Course;
use super::sections::region_of;
use super::{Drill, Scenario};
use crate::checks::Outcome;
use crate::report::{Digit, Digits};

/// How long another repository may take to say whether it holds the backup: it may be the one
/// that is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who holds the backup that was drilled.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// Names of repositories, in the order of the configuration.
    names: Vec<String>,
    /// Why others may hold it, too.
    unknown: Vec<String>,
}

impl Drill<'_> {
    /// Asks every repository whether it holds the backup.
    pub(super) async fn find_holders(&self, course: &mut Course) {
        let mut holders = Holders::default();
        for configured in &self.config.repository {
            if configured.name == self.repository.name() {
                holders.names.push(configured.name.clone());
                continue;
            }
            if self.scenario == Scenario::TotalLoss {
                let why = format!("{} was not asked in a total loss", configured.name);
                holders.unknown.push(why);
                continue;
            }
            let marker = async {
                let system = Repository::open(configured)?
                    .system(self.cluster_name, course.plan.backup.system_id);
                system.marker(&course.plan.backup.id).await
            };
            let unknown = match tokio::time::timeout(PATIENCE, marker).await {
                Ok(Ok(Some(_))) => {
                    holders.names.push(configured.name.clone());
                    continue;
                }
                Ok(Ok(None)) => continue,
                Ok(Err(error)) => error.one_line(),
                Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
            };
            holders
                .unknown
                .push(format!("{}: {unknown}", configured.name));
        }
        course.holders = holders;
    }

    pub(super) fn copies(&self, course: &Course, recovered: bool) -> Digits {
        let holders = &course.holders;
        let named = |name: &String| self.config.repository.iter().find(|r| r.name == *name);
        let repositories: Vec<&RepositoryConfig> = holders.names.iter().filter_map(named).collect();
        let failed = course
            .checks
            .iter()
            .filter(|check| check.outcome == Outcome::Failed)
            .count();
        Digits(vec![
            three_copies(holders),
            self.two_kinds(&repositories),
            one_elsewhere(&repositories),
            Digit {
                rule: "one copy that nobody can change",
                met: None,
                why: "not tested: the store is not asked for its retention locks".to_owned(),
            },
            Digit {
                rule: "no errors",
                met: Some(recovered && failed == 0),
                why: match (recovered, failed) {
                    (false, _) => "recovery did not come to its end".to_owned(),
                    (true, 0) => "recovery came to its end, and no check failed".to_owned(),
                    (true, count) => format!("{count} checks failed"),
                },
            },
        ])
    }

    fn two_kinds(&self, repositories: &[&RepositoryConfig]) -> Digit {
        let store = repositories.iter().find(|r| !r.url.starts_with("file:"));
        let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
        let ours = match self.scenario {
            // It is not to be looked at.
            Scenario::TotalLoss => None,
            _ => self.cluster.data_directory.as_deref().and_then(device),
        };
        let same_disk = repositories.iter().any(|repository| {
            let path = repository.url.strip_prefix("file://");
            ours.is_some() && path.and_then(|path| device(Path::new(path))) == ours
        });
        let (met, why) = match store {
            Some(store) => (
                Some(true),
                format!(
                    "the primary's disk, and the store {} of {}",
                    store.url, store.name
                ),
            ),
            None if same_disk => (
                Some(false),
                "the repository lies on the file system of the data directory".to_owned(),
            ),
            None => (
                None,
                "not tested: what lies behind a directory is not known".to_owned(),
            ),
        };
        Digit {
            rule: "two kinds of storage",
            met,
            why,
        }
    }
}

fn three_copies(holders: &Holders) -> Digit {
    let count = 1 + holders.names.len();
    let unknown = match holders.unknown.as_slice() {
        [] => String::new(),
        unknown => format!("; {}", unknown.join("; ")),
    };
    Digit {
        rule: "three copies",
        met: match count >= 3 {
            true => Some(true),
            false => holders.unknown.is_empty().then_some(false),
        },
        why: format!(
            "{count}: the primary, and the backup in {}{unknown}",
            holders.names.join(", ")
        ),
    }
}

fn one_elsewhere(repositories: &[&RepositoryConfig]) -> Digit {
    let regions: BTreeSet<String> = repositories.iter().filter_map(|r| region_of(r)).collect();
    let remote = repositories
        .iter()
        .find(|r| !r.url.starts_with("file:") && !r.url.starts_with("memory:"));
    let (met, why) = match (regions.len(), remote) {
        (2.., _) => (
            Some(true),
            format!(
                "regions {}",
                regions.into_iter().collect::<Vec<_>>().join(", ")
            ),
        ),
        (_, Some(remote)) => (
            None,
            format!("not tested: where {} lies is not known", remote.url),
        ),
        (_, None) => (
            Some(false),
            "every copy lies in a directory, as far as its URL tells".to_owned(),
        ),
    };
    Digit {
        rule: "one copy elsewhere",
        met,
        why,
    }
}
