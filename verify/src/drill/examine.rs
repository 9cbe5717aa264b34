//! What is asked of the restored database while it runs, and once it has stopped.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall::error::Result;

use super::Drill;
use super::course::Course;
use crate::checks::{self, Check, Examination, Last, Outcome};
use crate::evidence::quoted;
use crate::rehearsal;
use crate::scratch::Scratch;

impl Drill<'_> {
    /// What PostgreSQL says of the restored database, and what the owner asks of it.
    pub(super) async fn examine(
        &self,
        course: &mut Course,
        scratch: &Scratch,
        keep: bool,
    ) -> Result<()> {
        let Some(instance) = &course.instance else {
            return Ok(());
        };
        let last = Last::read_for(&self.request, self.repository, self.cluster_name).await;
        let about = Examination {
            config: &self.config.drill,
            failed_at: self.failed_at,
            last: &last,
            jobs: course.guest.share.check_jobs,
            programs: &course.programs,
            evidence: &course.evidence,
        };
        let findings = checks::examine(&about, instance).await;
        course.checks.extend(findings.checks);
        course.warnings.extend(findings.warnings);
        course.rows = findings.rows;
        // After everything that is asked of the data as it was.
        self.rehearse(course).await?;
        self.look_around_again(course, scratch).await;
        let Some(instance) = &mut course.instance else {
            return Ok(());
        };
        if keep {
            course.checks.push(Check::not_tested(
                "page checksums",
                "the instance keeps running",
            ));
            return Ok(());
        }
        instance.stop(Duration::from_secs(120)).await?;
        let enabled = course.plan.backup.data_checksums;
        let (programs, evidence) = (&course.programs, &course.evidence);
        let sums = checks::page_checksums(programs, &course.data, enabled, evidence).await?;
        course.checks.push(sums);
        Ok(())
    }

    /// Tries the migration, if there is one.
    async fn rehearse(&self, course: &mut Course) -> Result<()> {
        let (Some((script, database)), Some(instance)) = (self.migration, &course.instance) else {
            return Ok(());
        };
        let started = (Timestamp::now(), Instant::now());
        let budget = self.config.drill.rehearsal_budget;
        let budget = budget.map_or(rehearsal::BUDGET, |budget| budget.0);
        let (rehearsal, warnings) = rehearsal::run(instance, script, database, budget).await?;
        course.warnings.extend(warnings);
        let last = rehearsal.statements.last();
        let failed = last.and_then(|last| Some((last, last.error.as_ref()?)));
        let words = format!(
            "psql -d {} -f {}",
            quoted(&rehearsal.database),
            quoted(&script.path)
        );
        course
            .evidence
            .add(words, started, i32::from(failed.is_some()));
        let mut check = match failed {
            Some((last, error)) => {
                let why = format!("line {} of {}: {error}", last.line, script.path);
                Check::new("the migration", Outcome::Failed, why)
            }
            None => {
                let well = format!(
                    "{} statements in {} s",
                    rehearsal.statements.len(),
                    rehearsal.seconds
                );
                Check::new("the migration", Outcome::Passed, well)
            }
        };
        check.seconds = rehearsal.seconds;
        course.checks.push(check);
        course.rehearsal = Some(rehearsal);
        Ok(())
    }
}
