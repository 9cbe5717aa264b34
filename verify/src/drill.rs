//! One drill from the plan to the verdict.

mod copies;
mod course;
mod examine;
mod guest;
pub mod loss;
mod recovery_time;
mod sections;

use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use seawall::config::{ClusterConfig, Config};
use seawall::error::{Error, Exit, Result};
use seawall::postgres::primary;
use seawall::postgres::recovery::{RecoveryAction, RecoveryTarget};
use seawall::repository::catalogue::{Catalogue, Plan, Request};
use seawall::repository::leases::Work;
use seawall::repository::{Repository, System};
use seawall_restore::target::Tablespaces;
use seawall_restore::{Archive, RestoreCommand, Settings, restore, system_for};

use crate::checks::{self, Check};
use crate::evidence::{quoted, tail};
use crate::instance::{Instance, Start};
use crate::isolation;
use crate::limits::Limits;
use crate::locales;
use crate::programs::Programs;
use crate::rehearsal::Script;
use crate::replay;
use crate::report::{Drawn, Report};
use crate::scratch::Scratch;
use crate::walls::{self, Walls};
use crate::{judge, report};
use course::Course;
use guest::Guest;
use loss::Primary;
use sections::target_words;

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
    /// What keeps this process away from production.
    pub walls: &'a Walls,
    /// What the primary said at the moment of failure, where it was asked.
    pub primary: Option<Primary>,
    /// What or who ordered the drill.
    pub trigger: String,
    /// Where `seawall-fetch` lies.
    pub fetch: PathBuf,
    /// What it may use of this host.
    pub limits: Limits,
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
            .ok_or_else(|| Error::failed(programs.missing("postgres")))?;
        if let Some(primary) = &self.primary {
            primary.must_be_of(&plan)?;
        }
        let guest = Guest::admit(self, &plan, scratch)?;

        let mut course = Course::new(
            started,
            plan,
            request,
            programs,
            postgres,
            scratch.path(),
            guest,
        );
        self.look_at_the_clock(&mut course).await;
        course.checks.extend(short);
        course.checks.push(checks::records(&catalogue.unreadable));
        // From here on whatever goes wrong is a result: a backup that cannot be restored must
        // be known as one.
        let backup = course.plan.backup.id.clone();
        let lease = self
            .repository
            .lease(self.cluster_name, Work::Drill, Some(system.id()), [backup])
            .await;
        let exceeded = course.guest.watch.exceeded();
        let broken = tokio::select! {
            done = self.recover(&mut course, &system, scratch, keep) => done,
            why = exceeded => Err(Error::failed(why)),
        };
        // Told at the very end, it counts as well.
        let why = course.guest.watch.why();
        let broken = broken.and(why.clone().map_or(Ok(()), |why| Err(Error::failed(why))));
        if why.is_some() {
            // Also with --keep: it must not go on growing where nobody watches.
            course.guest.exceeded = true;
            course.instance.iter_mut().for_each(Instance::end);
        }
        lease.release().await;
        let broken = broken.err().map(|error| error.one_line());
        self.find_holders(&mut course).await;
        course.walls = match self.scenario {
            // Once more: what a server opens meanwhile, it would have opened to us.
            Scenario::TotalLoss => self.walls.prove().await,
            _ => vec![self.walls.outgoing()],
        };
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
        let restored = restore(system, &self.restore_settings(course, scratch.path())).await;
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
        let source = guest::source_settings(course);
        let instance = course.instance.insert(Instance::start(&Start {
            postgres: &course.postgres,
            data: &course.data,
            scratch,
            backup: &course.plan.backup,
            share: &course.guest.share,
            owner: &self.config.drill.settings,
            source: &source,
        })?);
        let command = instance.command().to_owned();
        let opened = replay::wait_until_open(instance, &mut course.replay).await;
        let exit = i32::from(!matches!(opened, Ok(Some(_))));
        course.evidence.add(command, step, exit);
        let segment = course.plan.backup.segment_size;
        course
            .clock
            .add_replay(began, step.0, &course.replay, segment);
        let Some(client) = opened.map_err(locales::explain)? else {
            course.checks.extend(checks::never_open());
            return Ok(());
        };
        let first_query = course.clock.now();
        course.version = client.query_text("SELECT version()").await?;
        course.clock.end_recovery("first query", first_query);
        self.look_at_the_end(course, system, &client).await?;
        self.look_around(course, scratch, &client).await?;
        drop(client);
        let (plan, replay) = (&course.plan, &course.replay);
        let end = checks::end_of_wal(system, &course.request, plan, replay).await;
        let contiguity = checks::contiguity(plan, replay);
        let clocks = checks::clocks(plan, replay, self.failed_at);
        course.checks.extend([end, contiguity, clocks]);
        let began = course.clock.now();
        let examined = self.examine(course, scratch, keep).await;
        course.clock.add_checks(began);
        examined
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
        let mut environment = self.environment(&course, scratch);
        let walls = std::mem::take(&mut course.walls);
        let not_shown = match self.scenario {
            Scenario::TotalLoss => walls::require(&walls).err(),
            _ => None,
        };
        environment.isolation.extend(walls);
        let mut warnings = std::mem::take(&mut course.warnings);
        warnings.extend(course.instance.iter().flat_map(|i| i.warnings().to_vec()));
        let mut reasons = judge::reasons(
            broken.as_deref().or(failure.as_deref()),
            &rpo,
            &rto,
            &course.checks,
        );
        reasons.extend(isolation::failures(&environment.isolation));
        reasons.extend(not_shown.map(|error| error.what().to_owned()));
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
            warnings: {
                let of_restore = course.restored.map(|restored| restored.warnings);
                warnings.extend(of_restore.unwrap_or(course.plan.warnings));
                warnings
            },
            evidence: course.evidence.steps(),
            server_log: server_log.lines().map(str::to_owned).collect(),
            teardown: String::new(),
        };
        Done {
            report,
            instance: course.instance.filter(|_| open && !course.guest.exceeded),
        }
    }

    fn restore_settings(&self, course: &Course, scratch: &Path) -> Settings {
        let share = &course.guest.share;
        Settings {
            to: scratch.join("data"),
            request: course.request.clone(),
            action: RecoveryAction::Promote,
            standby: false,
            primary: primary::Primary::default(),
            archive: Archive::Off,
            keep_source_settings: false,
            tablespaces: Tablespaces::AllUnder(scratch.join("tablespaces")),
            only_databases: Vec::new(),
            waldir: None,
            force: false,
            delta: false,
            jobs: share.restore_jobs,
            restore_command: RestoreCommand {
                program: self.fetch.clone(),
                config: self.config.path.clone(),
                cluster: self.cluster_name.to_owned(),
                repository: self.repository.name().to_owned(),
                jobs: (share.fetch_jobs < self.config.fetch.jobs).then_some(share.fetch_jobs),
            },
            bin_directory: None,
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
