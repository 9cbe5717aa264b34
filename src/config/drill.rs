//! Settings of drills, and what a restored database is asked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytesize::ByteSize;
use serde::Deserialize;

use super::HumanDuration;

/// Settings of drills.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrillConfig {
    /// Where scratch instances are made. Default: the system's temporary directory.
    pub scratch: Option<PathBuf>,
    /// The owner's own questions to the restored database.
    pub check: Vec<SqlCheck>,
    /// Settings that the scratch instance needs besides our own, such as
    /// `shared_preload_libraries`.
    pub settings: BTreeMap<String, String>,
    /// How much of the database pg_amcheck reads.
    pub amcheck: AmcheckScope,
    /// A table may have lost so many per cent of its rows since the last drill. Default: rows
    /// are counted and reported, and no loss fails a drill.
    pub rows_may_shrink: Option<f64>,
    /// How long each check that looks at many tables may take: rows, foreign keys, sequences, the
    /// sample of pg_amcheck. What is left over then was not tested. Default: 5 minutes.
    pub check_budget: Option<HumanDuration>,
    /// How long a rehearsed migration may take, all its statements together. The one that runs
    /// then is cancelled, and has failed. Default: 1 hour.
    pub rehearsal_budget: Option<HumanDuration>,
    /// So many processors are used, by the restore, the server and the checks together.
    /// Default: all.
    pub processors: Option<usize>,
    /// About so much memory is used by the restore, the server and the checks together.
    pub memory: Option<ByteSize>,
    /// The scratch directory may grow to this. Default: as long as there is space.
    pub disk: Option<ByteSize>,
    /// How much less urgent than everything else on this host a drill is: nice(1)'s 0 to 19.
    /// The RTO that it measures then is the one of a busy host.
    pub nice: i32,
}

/// How much of the database pg_amcheck reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AmcheckScope {
    /// Every heap and every btree, and each row's entries in the btrees.
    #[default]
    All,
    /// Some relations of each database: the largest, and others drawn at random.
    Sample,
    /// None: the report says that it was not tested.
    None,
}

/// A question to the restored database, and what its answer must be. Exactly one expectation
/// is given. The answer is the first column of the first row.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlCheck {
    /// What the report calls it.
    #[serde(default)]
    pub name: Option<String>,
    /// The database to ask.
    #[serde(default = "default_database")]
    pub database: String,
    /// One SELECT.
    pub sql: String,
    /// The answer as text must be this.
    #[serde(default)]
    pub equals: Option<String>,
    /// The answer as a number must be at least this.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// The answer as a number must be at most this.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// The answer as a number may differ by so many per cent from the answer in the last drill
    /// that passed.
    #[serde(default)]
    pub within_percent_of_last: Option<f64>,
    /// The answer as a time may be at most this long before the moment of failure.
    #[serde(default)]
    pub not_older_than: Option<HumanDuration>,
}

impl DrillConfig {
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn validate(&self) -> Result<(), String> {
        for check in &self.check {
            let given = [
                check.equals.is_some(),
                check.at_least.is_some(),
                check.at_most.is_some(),
                check.within_percent_of_last.is_some(),
                check.not_older_than.is_some(),
            ];
            if given.iter().filter(|given| **given).count() != 1 {
                return Err(format!(
                    "the drill check {:?} needs exactly one of equals, at_least, at_most, within_percent_of_last, not_older_than",
                    check.sql
                ));
            }
        }
        for (name, percent) in self
            .check
            .iter()
            .map(|check| ("within_percent_of_last", check.within_percent_of_last))
            .chain([("drill.rows_may_shrink", self.rows_may_shrink)])
        {
            if percent.is_some_and(|percent| !(percent >= 0.0 && percent.is_finite())) {
                return Err(format!("{name} must be a number of per cent from 0 on"));
            }
        }
        if self.processors == Some(0) {
            return Err("drill.processors must be at least 1".into());
        }
        if !(0..=19).contains(&self.nice) {
            return Err("drill.nice must be from 0 to 19".into());
        }
        Ok(())
    }
}

fn default_database() -> String {
    "postgres".to_owned()
}
