//! One drill from the plan to the verdict.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall::config::{ClusterConfig, Config};
use seawall::error::{Error, Result};
use seawall::postgres::SegmentName;
use seawall::postgres::recovery::{RecoveryAction, RecoveryTarget};
use seawall::repository::catalogue::{Catalogue, Plan, Request};
use seawall::repository::leases::Work;
use seawall::repository::{Repository, System};
use seawall_restore::target::Tablespaces;
use seawall_restore::{Archive, RestoreCommand, Restored, Settings, restore, system_for};
use sha2::Digest;

use crate::checks::{self, Check, Outcome};
use crate::evidence::{Evidence, quoted, round, tail};
use crate::instance::Instance;
use crate::programs::Programs;
use crate::replay::{self, Replay};
use crate::report::{Environment, Identity, Phase, Report, Rpo, Rto, Source, Target};
use crate::scratch::Scratch;
use crate::{judge, report};

/// Room for WAL and for what replay writes, besides the files of the backup.
const SPARE_BYTES: u64 = 512 << 20;

/// How much of the server's log a report keeps.
const LOG_LINES: usize = 50;

const END_OF_WAL: &str = "recovery reached the end of the archived WAL";

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

/// What a drill has found so far, wherever it ends.
struct Course {
    plan: Plan,
    programs: Programs,
    postgres: PathBuf,
    data: PathBuf,
    evidence: Evidence,
    restored: Option<Restored>,
    instance: Option<Instance>,
    replay: Replay,
    version: Option<String>,
    phases: Vec<Phase>,
    checks: Vec<Check>,
}

impl Drill<'_> {
    /// Restores, recovers, measures and checks.
    ///
    /// # Errors
    /// Only what keeps it from having a plan: nothing reaches the target, no space, no
    /// PostgreSQL. Everything later is a report that did not pass.
    pub async fn run(&self, scratch: &Scratch, keep: bool) -> Result<Done> {
        let started = Timestamp::now();
        let system = system_for(
            self.repository,
            self.cluster_name,
            self.request.backup.as_ref(),
        )
        .await?;
        // Looked at before the clock starts: whether this host can do it at all.
        let plan = Catalogue::load(&system).await?.plan(&self.request).await?;
        let programs = Programs::find(plan.backup.major(), self.cluster.bin_directory.as_deref())?;
        let postgres = programs
            .get("postgres")
            .ok_or_else(|| Error::failed("the program postgres is not installed"))?;
        scratch.require_space(plan.backup.plain_bytes + SPARE_BYTES)?;

        let mut course = Course {
            plan,
            programs,
            postgres,
            data: scratch.path().join("data"),
            evidence: Evidence::default(),
            restored: None,
            instance: None,
            replay: Replay::default(),
            version: None,
            phases: Vec::new(),
            checks: Vec::new(),
        };
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
        Ok(self.conclude(course, started, scratch, broken))
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
        let restored = restore(system, &self.restore_settings(scratch.path())).await;
        let exit = restored.as_ref().err().map_or(0, |e| e.exit() as i32);
        let words = self.restore_words(&course.data);
        course.evidence.add(words, step, exit);
        let mut restored = restored?;
        // The drill has one of its own, to its end.
        if let Some(lease) = restored.lease.take() {
            lease.release().await;
        }
        course.plan = restored.plan.clone();
        course.phases = restored.phases.iter().map(phase).collect();
        course.checks.push(digests(&restored));
        course.restored = Some(restored);
        let verified =
            checks::verify_backup(&course.programs, &course.data, &course.evidence).await?;
        course.checks.push(verified);

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
        add_recovery_phases(&mut course.phases, step.0, &course.replay);
        let Some(client) = opened? else {
            let why = "the server did not open";
            course.checks.push(Check::not_tested(END_OF_WAL, why));
            course.checks.push(Check::not_tested("pg_amcheck", why));
            return Ok(());
        };
        let first_query = Instant::now();
        course.version = client.query_text("SELECT version()").await?;
        let answered = first_query.elapsed().as_secs_f64();
        course.phases.push(named("first query", answered));
        drop(client);
        course.checks.push(self.end_of_wal(course));
        self.examine(course, keep).await
    }

    /// What PostgreSQL says of the restored database, and what the owner asks of it.
    async fn examine(&self, course: &mut Course, keep: bool) -> Result<()> {
        let Some(instance) = &mut course.instance else {
            return Ok(());
        };
        let (programs, evidence) = (&course.programs, &course.evidence);
        for check in &self.config.drill.check {
            let answer = checks::sql(instance, check, self.failed_at).await;
            course.checks.push(answer);
        }
        let jobs = self.config.restore.jobs;
        let amcheck = checks::amcheck(programs, instance, jobs, evidence).await?;
        course.checks.push(amcheck);
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
    fn conclude(
        &self,
        course: Course,
        started: Timestamp,
        scratch: &Scratch,
        broken: Option<String>,
    ) -> Done {
        let open = course.replay.ready.is_some();
        let rpo = self.rpo(&course);
        let failure = course.replay.failure.as_ref();
        let failure = failure.map(|failure| format!("recovery failed: {failure}"));
        let target = self.target(&course, broken.as_deref());
        let source = self.source(&course);
        let identity = self.identity(&course.plan, course.version);
        let rto = self.rto(course.phases, open);
        let reasons = judge::reasons(broken.or(failure).as_deref(), &rpo, &rto, &course.checks);
        let server_log = course.instance.as_ref().map(Instance::log);
        let server_log = tail(&server_log.unwrap_or_default(), LOG_LINES);
        let report = Report {
            format: 1,
            id: format!(
                "{}-{:08x}",
                started.strftime("%Y%m%dT%H%M%SZ"),
                rand::random::<u32>()
            ),
            started,
            ended: Timestamp::now(),
            passed: reasons.is_empty(),
            reasons,
            backup: course.plan.backup.id.clone(),
            identity,
            source,
            target,
            rpo,
            rto,
            environment: environment(scratch.path()),
            checks: course.checks,
            not_tested: report::never_tested(),
            warnings: match course.restored {
                Some(restored) => restored.warnings,
                None => course.plan.warnings,
            },
            evidence: course.evidence.steps(),
            server_log: server_log.lines().map(str::to_owned).collect(),
            teardown: String::new(),
        };
        Done {
            report,
            instance: course.instance.filter(|_| open),
        }
    }

    /// Whether recovery took the last segment that is archived, where it was to take all.
    fn end_of_wal(&self, course: &Course) -> Check {
        if self.request.target != RecoveryTarget::Latest {
            return Check::not_tested(END_OF_WAL, "a target was chosen");
        }
        if self.request.end_at_gap {
            return Check::not_tested(END_OF_WAL, "recovery was to end at a gap");
        }
        let size = course.plan.backup.segment_size;
        let Some((timeline, _, last)) = course.plan.segments.last() else {
            return Check::not_tested(END_OF_WAL, "the plan names no segment");
        };
        let last = SegmentName::new(*timeline, *last, size).to_string();
        if course.replay.restored.contains(&last) {
            Check::new(END_OF_WAL, Outcome::Passed, format!("{last} was replayed"))
        } else {
            let detail = format!("{last} is archived, and recovery ended without asking for it");
            Check::new(END_OF_WAL, Outcome::Failed, detail)
        }
    }

    fn restore_settings(&self, scratch: &Path) -> Settings {
        Settings {
            to: scratch.join("data"),
            request: self.request.clone(),
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

    fn restore_words(&self, data: &Path) -> String {
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
        let (kind, value) = target_words(&self.request.target);
        // Without a target PostgreSQL opens by itself, and `restore` takes no action.
        if self.request.target != RecoveryTarget::Latest {
            option(kind, value);
            option("action", Some("promote".to_owned()));
        }
        if !self.request.inclusive {
            option("exclusive", None);
        }
        if let Some(timeline) = self.request.timeline {
            option("timeline", Some(timeline.to_string()));
        }
        if let Some(backup) = &self.request.backup {
            option("backup", Some(backup.to_string()));
        }
        if self.request.end_at_gap {
            option("end-at-gap", None);
        }
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }

    fn rpo(&self, course: &Course) -> Rpo {
        let wanted = self.request.target == RecoveryTarget::Latest;
        let mut rpo = Rpo {
            objective_seconds: self.config.objectives.rpo.map(|rpo| rpo.0.as_secs_f64()),
            measured_seconds: None,
            wanted,
            upper_bound: true,
            method: String::new(),
            failed_at: self.failed_at,
        };
        if !wanted {
            "not tested: a target was chosen, so the newest recoverable moment was not sought"
                .clone_into(&mut rpo.method);
            return rpo;
        }
        if course.replay.ready.is_none() {
            "not tested: recovery did not come to its end".clone_into(&mut rpo.method);
            return rpo;
        }
        // Whoever is consistent has everything up to the end of the backup.
        let stop = course.plan.backup.stop_time;
        let (until, what) = match course.replay.last_transaction {
            Some(last) if last > stop => (last, "the last recovered commit"),
            _ => (
                stop,
                "the end of the backup, after which no commit was recovered",
            ),
        };
        let lost = self.failed_at.duration_since(until).as_secs_f64();
        rpo.measured_seconds = Some(round(lost.max(0.0)));
        rpo.method = format!(
            "the moment of failure minus {what}, by the server's clock against this host's; an upper bound, since a server that was idle lost nothing after its last commit"
        );
        rpo
    }

    fn rto(&self, phases: Vec<Phase>, open: bool) -> Rto {
        let longest = phases.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        Rto {
            objective_seconds: self.config.objectives.rto.map(|rto| rto.0.as_secs_f64()),
            measured_seconds: open.then(|| round(phases.iter().map(|p| p.seconds).sum())),
            dominated_by: longest.map(|phase| phase.name.clone()),
            phases,
        }
    }

    fn identity(&self, plan: &Plan, version: Option<String>) -> Identity {
        let configuration = std::fs::read(&self.config.path).unwrap_or_default();
        Identity {
            cluster: self.cluster_name.to_owned(),
            system_id: plan.backup.system_id,
            seawall_version: env!("CARGO_PKG_VERSION").to_owned(),
            source_version_num: plan.backup.server_version_num,
            postgresql: version,
            configuration_sha256: hex::encode(sha2::Sha256::digest(configuration)),
            user: nix::unistd::User::from_uid(nix::unistd::geteuid())
                .ok()
                .flatten()
                .map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name),
            host: nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            command: std::env::args().collect(),
        }
    }

    fn source(&self, course: &Course) -> Source {
        let backup = &course.plan.backup;
        let restored = course.restored.as_ref();
        Source {
            repository: self.repository.name().to_owned(),
            url: self.repository.store().url().to_owned(),
            backup_age_seconds: self.failed_at.duration_since(backup.stop_time).as_secs(),
            backup_timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            files: restored.map_or(0, |restored| restored.files),
            bytes: restored.map_or(0, |restored| restored.plain_bytes),
            fetched_bytes: restored.map_or(0, |restored| restored.fetched_bytes),
            wal_segments: course.replay.segments,
            primary_touched: false,
        }
    }

    fn target(&self, course: &Course, broken: Option<&str>) -> Target {
        let (kind, value) = target_words(&self.request.target);
        let replay = &course.replay;
        let why = match (&replay.failure, &replay.stopped, replay.ready) {
            (Some(failure), ..) => format!("it failed: {failure}"),
            (None, _, None) => format!(
                "it did not come to its end: {}",
                broken.unwrap_or("the server did not open")
            ),
            (None, Some(stopped), _) => stopped.clone(),
            (None, None, _) => "the archived WAL ended".to_owned(),
        };
        Target {
            kind,
            value,
            inclusive: self.request.inclusive,
            timeline: course.plan.history.timeline,
            reached_lsn: replay.redo_done.map(|(_, lsn)| lsn),
            reached_time: replay.last_transaction,
            why,
        }
    }
}

/// The restore itself verified every byte; without that it would not have come this far.
fn digests(restored: &Restored) -> Check {
    let detail = format!(
        "BLAKE3 of {} files, {} bytes; SHA-256 of every index; BLAKE3 of every WAL segment that recovery took",
        restored.files, restored.plain_bytes
    );
    Check::new(
        "digests of everything that was used",
        Outcome::Passed,
        detail,
    )
}

fn phase(phase: &seawall_restore::Phase) -> Phase {
    Phase {
        name: phase.name.to_owned(),
        seconds: round(phase.duration.as_secs_f64()),
        bytes: phase.bytes,
    }
}

fn named(name: &str, seconds: f64) -> Phase {
    Phase {
        name: name.to_owned(),
        seconds: round(seconds.max(0.0)),
        bytes: None,
    }
}

/// From the server's own log: it knows best when it was consistent.
fn add_recovery_phases(phases: &mut Vec<report::Phase>, started: Timestamp, replay: &Replay) {
    let marks = [
        ("start", replay.redo_starts),
        ("replay to consistency", replay.consistent),
        ("replay to target", replay.redo_done.map(|(time, _)| time)),
        ("promote", replay.ready),
    ];
    let mut last = started;
    for (name, time) in marks {
        let Some(time) = time else { continue };
        phases.push(named(name, time.duration_since(last).as_secs_f64()));
        last = last.max(time);
    }
}

fn target_words(target: &RecoveryTarget) -> (&'static str, Option<String>) {
    match target {
        RecoveryTarget::Latest => ("latest", None),
        RecoveryTarget::Time(time) => ("time", Some(time.to_string())),
        RecoveryTarget::Lsn(lsn) => ("lsn", Some(lsn.to_string())),
        RecoveryTarget::Xid(xid) => ("xid", Some(xid.to_string())),
        RecoveryTarget::Name(name) => ("name", Some(name.clone())),
        RecoveryTarget::Immediate => ("immediate", None),
    }
}

fn environment(scratch: &Path) -> Environment {
    Environment {
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        scratch: scratch.to_owned(),
        isolation: vec![
            "archive_mode = off",
            "max_logical_replication_workers = 0: no subscription connects anywhere",
            "no TCP port; a Unix socket in the scratch directory only",
            "data directory and tablespaces in the scratch directory",
            "settings of its own, none of production's",
        ],
    }
}
