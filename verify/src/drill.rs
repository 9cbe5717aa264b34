//! One drill from the plan to the verdict.

mod copies;
mod course;
pub mod loss;
mod recovery_time;
mod sections;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall::config::{ClusterConfig, Config};
use seawall::error::{Error, Exit, Result};
use seawall::postgres::recovery::{RecoveryAction, RecoveryTarget};
use seawall::repository::catalogue::{Catalogue, Plan, Request};
use seawall::repository::leases::Work;
use seawall::repository::{Repository, System};
use seawall_restore::target::Tablespaces;
use seawall_restore::{Archive, RestoreCommand, Settings, restore, system_for};

use crate::checks::{self, Check, Examination, Last};
use crate::evidence::{quoted, tail};
use crate::instance::Instance;
use crate::programs::Programs;
use crate::rehearsal::{self, Script};
use crate::replay;
use crate::report::{Drawn, Report};
use crate::scratch::Scratch;
use crate::total_loss::Walls;
use crate::{judge, report};
use course::Course;
use loss::Primary;
use sections::target_words;

/// Room for WAL and for what replay writes, besides the files of the backup.
const SPARE_BYTES: u64 = 512 << 20;

/// How much of the server's log a report keeps.
const LOG_LINES: usize = 50;

/// What is played through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// The database is restored, as it would be on any day.
    Restore,
    /// The primary, its disks and its network are gone.
    TotalLoss,
    /// A migration is tried on the restored copy.
    Rehearsal,
}

/// What a drill needs to know.
pub struct Drill<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The cluster's name.
    pub cluster_name: &'a str,
    /// The cluster.
    pub cluster: &'a ClusterConfig,
    /// What to restore from.
    pub repository: &'a Repository,
    /// Where to stop.
    pub request: Request,
    /// The moment that the RPO is measured from.
    pub failed_at: Timestamp,
    /// How the target was drawn, if it was.
    pub drawn: Option<Drawn>,
    /// What is played through.
    pub scenario: Scenario,
    /// The migration to rehearse, and its database if it was named.
    pub migration: Option<(&'a Script, Option<&'a str>)>,
    /// What keeps this process away from the primary, for a total loss.
    pub walls: Option<&'a Walls>,
    /// What the primary said at the moment of failure, where it was asked.
    pub primary: Option<Primary>,
    /// What or who ordered the drill.
    pub trigger: String,
    /// Where `seawall-fetch` lies.
    pub fetch: PathBuf,
}

/// What is left after a drill: the report, and the instance if it is to be kept.
pub struct Done {
    /// The report, not yet final about the teardown.
    pub report: Report,
    /// The instance, if recovery came to its end.
    pub instance: Option<Instance>,
}

impl Drill<'_> {
    /// Restores, recovers, measures and checks.
    ///
    /// # Errors
    /// Only what keeps it from having a plan: nothing reaches the target, no space, no
    /// PostgreSQL. Everything later is a report that did not pass.
    pub async fn run(&self, scratch: &Scratch, keep: bool) -> Result<Done> {
        let started = Timestamp::now();
        let system = system_for(self.repository, self.cluster_name, &self.request).await?;
        // Looked at before the clock starts: whether this host can do it at all.
        let catalogue = Catalogue::load(&system).await?;
        let (plan, request, short) = self.plan(&catalogue).await?;
        let programs = Programs::find(plan.backup.major(), self.cluster.bin_directory.as_deref())?;
        let postgres = programs
            .get("postgres")
            .ok_or_else(|| Error::failed("the program postgres is not installed"))?;
        scratch.require_space(plan.backup.plain_bytes + SPARE_BYTES)?;

        let mut course = Course::new(started, plan, request, programs, postgres, scratch.path());
        self.look_at_the_clock(&mut course).await;
        course.checks.extend(short);
        let unreadable = catalogue.unreadable.iter();
        course.warnings.extend(
            unreadable
                .map(|object| format!("{} is there and was not used: {}", object.key, object.why)),
        );
        // From here on whatever goes wrong is a result: a backup that cannot be restored must
        // be known as one.
        let backup = course.plan.backup.id.clone();
        let lease = self
            .repository
            .lease(self.cluster_name, Work::Drill, Some(system.id()), [backup])
            .await;
        let broken = self.recover(&mut course, &system, scratch, keep).await;
        lease.release().await;
        let broken = broken.err().map(|error| error.one_line());
        self.find_holders(&mut course).await;
        if let Some(walls) = self.walls {
            // Once more: what a server opens meanwhile, it would have to have opened to us.
            course.walls = walls.prove(self.cluster).await;
        }
        Ok(self.conclude(course, scratch, broken))
    }

    /// The plan, and what was asked for in it. Where archived WAL breaks off before its end, the
    /// drill goes as far as it can, and has failed: what would be left, and how long it takes to
    /// have it back, is what one wants to know then.
    async fn plan(&self, catalogue: &Catalogue) -> Result<(Plan, Request, Option<Check>)> {
        let error = match catalogue.plan(&self.request).await {
            Ok(plan) => return Ok((plan, self.request.clone(), None)),
            Err(error) => error,
        };
        let less = Request {
            end_at_gap: true,
            ..self.request.clone()
        };
        let all = self.request.target == RecoveryTarget::Latest && !self.request.end_at_gap;
        if !all || error.exit() != Exit::Unreachable {
            return Err(error);
        }
        match catalogue.plan(&less).await {
            Ok(plan) => Ok((plan, less, Some(checks::broken_off(&error)))),
            Err(_) => Err(error),
        }
    }

    /// From the plan to the last check. What it finds is in the course, also after an error.
    async fn recover(
        &self,
        course: &mut Course,
        system: &System,
        scratch: &Scratch,
        keep: bool,
    ) -> Result<()> {
        let step = (Timestamp::now(), Instant::now());
        course.clock.start();
        let restored = restore(
            system,
            &self.restore_settings(&course.request, scratch.path()),
        )
        .await;
        let exit = restored.as_ref().err().map_or(0, |e| e.exit() as i32);
        let words = self.restore_words(&course.request, &course.data);
        course.evidence.add(words, step, exit);
        let mut restored = restored?;
        // The drill has one of its own, to its end.
        if let Some(lease) = restored.lease.take() {
            lease.release().await;
        }
        course.plan = restored.plan.clone();
        course.clock.add_restore(&restored.phases);
        course.checks.push(checks::digests(&restored));
        course.restored = Some(restored);
        course.clock.pause();
        let verified =
            checks::verify_backup(&course.programs, &course.data, &course.evidence).await?;
        course.checks.push(verified);
        course.clock.resume();

        // One moment on both clocks: the server's log is read by the second.
        let began = course.clock.now();
        let step = (Timestamp::now(), Instant::now());
        let instance = course.instance.insert(Instance::start(
            &course.postgres,
            &course.data,
            scratch.path(),
            &course.plan.backup.superuser,
            &self.config.drill.settings,
        )?);
        let command = instance.command().to_owned();
        let opened = replay::wait_until_open(instance, &mut course.replay).await;
        let exit = i32::from(!matches!(opened, Ok(Some(_))));
        course.evidence.add(command, step, exit);
        let segment = course.plan.backup.segment_size;
        course
            .clock
            .add_replay(began, step.0, &course.replay, segment);
        let Some(client) = opened? else {
            course.checks.extend(checks::never_open());
            return Ok(());
        };
        let first_query = course.clock.now();
        course.version = client.query_text("SELECT version()").await?;
        course.clock.end_recovery("first query", first_query);
        self.look_at_the_end(course, system, &client).await?;
        drop(client);
        let (plan, replay) = (&course.plan, &course.replay);
        let end = checks::end_of_wal(system, &course.request, plan, replay).await;
        let contiguity = checks::contiguity(plan, replay);
        let clocks = checks::clocks(plan, replay, self.failed_at);
        course.checks.extend([end, contiguity, clocks]);
        let began = course.clock.now();
        self.rehearse(course).await?;
        let examined = self.examine(course, keep).await;
        course.clock.add_checks(began);
        examined
    }

    /// Tries the migration, if there is one.
    async fn rehearse(&self, course: &mut Course) -> Result<()> {
        let (Some((script, database)), Some(instance)) = (self.migration, &course.instance) else {
            return Ok(());
        };
        let started = (Timestamp::now(), Instant::now());
        let rehearsal = rehearsal::run(instance, script, database).await?;
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

    /// What PostgreSQL says of the restored database, and what the owner asks of it.
    async fn examine(&self, course: &mut Course, keep: bool) -> Result<()> {
        let Some(instance) = &mut course.instance else {
            return Ok(());
        };
        let (programs, evidence) = (&course.programs, &course.evidence);
        let last = match self.request.target {
            RecoveryTarget::Latest => Last::read(self.repository, self.cluster_name).await,
            _ => Last::none("a target was chosen, which may lie before the last drill's"),
        };
        let about = Examination {
            config: &self.config.drill,
            failed_at: self.failed_at,
            last: &last,
            jobs: self.config.restore.jobs,
            programs,
            evidence,
        };
        let findings = checks::examine(&about, instance).await;
        course.checks.extend(findings.checks);
        course.warnings.extend(findings.warnings);
        course.rows = findings.rows;
        if keep {
            course.checks.push(Check::not_tested(
                "page checksums",
                "the instance keeps running",
            ));
            return Ok(());
        }
        instance.stop(Duration::from_secs(120)).await?;
        let enabled = course.plan.backup.data_checksums;
        let sums = checks::page_checksums(programs, &course.data, enabled, evidence).await?;
        course.checks.push(sums);
        Ok(())
    }

    /// The report of a drill that ended there, with the error that ended it, if one did.
    fn conclude(&self, mut course: Course, scratch: &Scratch, broken: Option<String>) -> Done {
        let open = course.replay.ready.is_some();
        let rpo = self.rpo(&course);
        course.checks.push(self.clock_skew(&course));
        let failure = course.replay.failure.as_ref();
        let failure = failure.map(|failure| format!("recovery failed: {failure}"));
        let rto = course
            .clock
            .recovery_time(self.config.objectives.rto, open, &course);
        let copies = self.copies(&course, open && failure.is_none());
        let mut environment = self.environment(scratch);
        environment
            .isolation
            .extend(std::mem::take(&mut course.walls));
        let reasons = judge::reasons(
            broken.as_deref().or(failure.as_deref()),
            &rpo,
            &rto,
            &course.checks,
        );
        let server_log = course.instance.as_ref().map(Instance::log);
        let server_log = tail(&server_log.unwrap_or_default(), LOG_LINES);
        let report = Report {
            format: 1,
            id: format!(
                "{}-{:08x}",
                course.started.strftime("%Y%m%dT%H%M%SZ"),
                rand::random::<u32>()
            ),
            started: course.started,
            ended: Timestamp::now(),
            passed: reasons.is_empty(),
            reasons,
            backup: course.plan.backup.id.clone(),
            identity: self.identity(&course.plan, course.version.clone()),
            scope: self.scope(),
            source: self.source(&course),
            target: self.target(&course, broken.as_deref()),
            rpo,
            rto,
            environment,
            checks: course.checks,
            rows: course.rows,
            rehearsal: course.rehearsal,
            copies,
            trend: Vec::new(),
            not_tested: report::never_tested(),
            warnings: match course.restored {
                Some(restored) => restored.warnings,
                None => course.plan.warnings,
            }
            .into_iter()
            .chain(course.warnings)
            .collect(),
            evidence: course.evidence.steps(),
            server_log: server_log.lines().map(str::to_owned).collect(),
            teardown: String::new(),
        };
        Done {
            report,
            instance: course.instance.filter(|_| open),
        }
    }

    fn restore_settings(&self, request: &Request, scratch: &Path) -> Settings {
        Settings {
            to: scratch.join("data"),
            request: request.clone(),
            action: RecoveryAction::Promote,
            standby: false,
            archive: Archive::Off,
            keep_source_settings: false,
            tablespaces: Tablespaces::AllUnder(scratch.join("tablespaces")),
            waldir: None,
            force: false,
            jobs: self.config.restore.jobs,
            restore_command: RestoreCommand {
                program: self.fetch.clone(),
                config: self.config.path.clone(),
                cluster: self.cluster_name.to_owned(),
                repository: self.repository.name().to_owned(),
            },
        }
    }

    fn restore_words(&self, request: &Request, data: &Path) -> String {
        let mut words = vec![
            "seawall".to_owned(),
            "restore".to_owned(),
            "--config".to_owned(),
            self.config.path.display().to_string(),
            "--cluster".to_owned(),
            self.cluster_name.to_owned(),
            "--repository".to_owned(),
            self.repository.name().to_owned(),
            "--to".to_owned(),
            data.display().to_string(),
            "--archive".to_owned(),
            "off".to_owned(),
        ];
        let mut option = |name: &str, value: Option<String>| {
            words.push(format!("--{name}"));
            words.extend(value);
        };
        let (kind, value) = target_words(&request.target);
        // Without a target PostgreSQL opens by itself, and `restore` takes no action.
        if request.target != RecoveryTarget::Latest {
            option(kind, value);
            option("action", Some("promote".to_owned()));
        }
        if !request.inclusive {
            option("exclusive", None);
        }
        if let Some(timeline) = request.timeline {
            option("timeline", Some(timeline.to_string()));
        }
        if let Some(backup) = &request.backup {
            option("backup", Some(backup.to_string()));
        }
        if request.end_at_gap {
            option("end-at-gap", None);
        }
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }
}
