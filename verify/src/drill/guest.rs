//! A drill as a guest on its host: what it may take, what it took, and what was found to keep
//! it apart from production.

use std::collections::BTreeMap;

use seawall::error::Result;
use seawall::postgres::sql::Client;
use seawall::repository::catalogue::Plan;

use super::Drill;
use super::course::Course;
use crate::instance::Instance;
use crate::limits::{Limits, Need, Share};
use crate::report::{self, Environment, Isolation};
use crate::scratch::Scratch;
use crate::watch::Watch;
use crate::{host, isolation, locales};

pub(super) struct Guest {
    /// What each part takes of the host.
    pub(super) share: Share,
    /// What all of it takes.
    pub(super) watch: Watch,
    /// A limit was exceeded: nothing of the drill may go on.
    pub(super) exceeded: bool,
    free_before: u64,
    isolation: Vec<Isolation>,
}

impl Guest {
    /// Decides what each part takes, and watches from now on.
    ///
    /// # Errors
    /// Too little memory or disk, by the limits or in fact.
    pub(super) fn admit(drill: &Drill<'_>, plan: &Plan, scratch: &Scratch) -> Result<Self> {
        let segment = plan.backup.segment_size;
        let segments: u64 = plan
            .segments
            .iter()
            .map(|(_, first, last)| (last + 1).saturating_sub(*first))
            .sum();
        let need = Need {
            backup: plan.backup.plain_bytes,
            wal: segments.saturating_mul(segment.bytes()),
            spool: drill.config.fetch.spool.as_u64(),
            segment,
        };
        let jobs = (drill.config.restore.jobs, drill.config.fetch.jobs);
        let share = drill.limits.share(jobs.0, jobs.1, need)?;
        let bytes = Limits::needed_bytes(need, &share);
        let free_before = scratch.require_space(bytes, drill.limits.disk)?;
        Ok(Self {
            share,
            watch: Watch::start(scratch.path(), drill.limits),
            exceeded: false,
            free_before,
            isolation: isolation::not_looked_at(),
        })
    }
}

impl Drill<'_> {
    /// Looks at the instance, which has just opened: whether it is apart, whether every
    /// database can be opened, and what sorts differently here.
    pub(super) async fn look_around(
        &self,
        course: &mut Course,
        scratch: &Scratch,
        client: &Client,
    ) -> Result<()> {
        let Some(instance) = &course.instance else {
            return Ok(());
        };
        course.guest.isolation = self.walls_of(course, instance, scratch, client).await?;
        let (opened, warnings) = locales::every_database_opens(instance, client).await?;
        course.checks.push(opened);
        course.warnings.extend(warnings);
        Ok(())
    }

    /// Looks once more, after all that was done to the instance and before it stops: a wall that
    /// fell since has fallen.
    pub(super) async fn look_around_again(&self, course: &mut Course, scratch: &Scratch) {
        let Some(instance) = &course.instance else {
            return;
        };
        let second = async {
            let client = instance.connect("template1").await?;
            self.walls_of(course, instance, scratch, &client).await
        };
        match second.await {
            Ok(second) => {
                let first = std::mem::take(&mut course.guest.isolation);
                course.guest.isolation = isolation::both(first, second);
            }
            Err(error) => course.warnings.push(format!(
                "what keeps the instance apart from production was looked at once, and not again before its end: {}",
                error.one_line()
            )),
        }
    }

    async fn walls_of(
        &self,
        course: &Course,
        instance: &Instance,
        scratch: &Scratch,
        client: &Client,
    ) -> Result<Vec<Isolation>> {
        let libraries = isolation::Libraries {
            owner: &self.config.drill.settings,
            source: &source_settings(course),
            postgres: &course.postgres,
        };
        isolation::look(instance, client, scratch, &libraries).await
    }

    pub(super) fn environment(&self, course: &Course, scratch: &Scratch) -> Environment {
        let guest = &course.guest;
        Environment {
            processors: host::processors(),
            memory_bytes: host::memory(),
            memory_used_bytes: Some(guest.watch.memory_peak()),
            system: host::system(),
            scratch: scratch.path().to_owned(),
            scratch_free_bytes: guest.free_before,
            scratch_used_bytes: Some(guest.watch.disk_peak()),
            limits: report::Limits {
                processors: self.limits.processors,
                memory_bytes: self.limits.memory,
                disk_bytes: self.limits.disk,
                nice: self.limits.nice,
            },
            isolation: guest.isolation.clone(),
            adapted: course
                .instance
                .as_ref()
                .map_or_else(Vec::new, |instance| instance.adapted().to_vec()),
        }
    }
}

/// What the source's configuration says, as far as it was restored.
pub(super) fn source_settings(course: &Course) -> BTreeMap<String, String> {
    course
        .restored
        .as_ref()
        .map_or_else(BTreeMap::new, |restored| restored.source_settings.clone())
}
