//! Every call of a push and of a fetch fails in every way, once and for good; and after each:
//! what was acknowledged is there, what was not can be done again, nothing that exists was
//! called absent, nothing partial or wrong was delivered.
//!
//! What cannot be noticed by anyone: a store that lists nothing where there is something, each
//! time that it is asked, at the very end of the archive. Then "the archive ends here" is what
//! a truthful store would say as well.

use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall::config::{ArchiveConfig, Compression, FetchConfig};
use seawall::digest::PlainDigest;
use seawall::postgres::WalFileName;
use seawall::postgres::control::ControlFile;
use seawall::repository::{Repository, System};
use seawall::storage::RetryPolicy;
use seawall::storage::fault::FaultPlan;
use seawall::wal::fetch::{Ahead, Fetched, Request, Spool, Turn, fetch, prefetch};
use seawall::wal::push::{Engine, Outcome, WalFile};
use seawall_tests::faulty::{Case, cases_at, impatient, new_memory, runtime, with_plan};
use seawall_tests::segment::name;
use seawall_tests::{Cluster, PostgresVersion, Scratch, Segment};

/// Files of a cluster that never started.
struct Files {
    control: ControlFile,
    wal: PathBuf,
    fetched: PathBuf,
    scratch: Scratch,
}

impl Files {
    fn new(segment_size: u32) -> Self {
        let scratch = Scratch::new();
        let cluster = Cluster::builder(PostgresVersion::find(15))
            .segment_size(segment_size)
            .create_in(&scratch, "main");
        let wal = cluster.data().join("pg_wal");
        // initdb leaves one segment or a few; which, depends on their size.
        let entries = std::fs::read_dir(&wal).unwrap().flatten();
        let any = entries
            .map(|entry| entry.path())
            .find(|path| path.is_file());
        let first = Segment::read(any.unwrap());
        for number in (1..=5).chain([19, 20]) {
            let segment = first.clone().numbered(number);
            std::fs::write(wal.join(name(number)), segment.0).unwrap();
        }
        std::fs::write(
            wal.join("00000002.history"),
            "1\t0/500000\tno recovery target\n",
        )
        .unwrap();
        Self {
            control: ControlFile::read(cluster.data()).unwrap(),
            wal,
            fetched: scratch.directory("fetched"),
            scratch,
        }
    }

    fn plain(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.wal.join(file)).unwrap()
    }

    async fn push(&self, to: &Repository, file: &str) -> seawall::error::Result<Vec<Outcome>> {
        self.push_path(to, &self.wal.join(file)).await
    }

    async fn push_path(
        &self,
        to: &Repository,
        path: &Path,
    ) -> seawall::error::Result<Vec<Outcome>> {
        let file = WalFile::open(path, &self.control)?;
        let to = std::slice::from_ref(to);
        let compression = Compression::default();
        let engine = Engine::over(
            to,
            "main",
            &self.control,
            compression,
            &ArchiveConfig::default(),
        );
        let pushed = engine.push(file).await?;
        Ok(pushed
            .held_by
            .into_iter()
            .map(|(_, outcome)| outcome)
            .collect())
    }

    fn system(&self, repository: &Repository) -> System {
        repository.system("main", self.control.system_id)
    }

    /// Fetches ahead what follows segment 1, taking what comes, and returns how many came.
    /// Panics if one of them is not what was archived, or if anything is left.
    async fn fetch_ahead(&self, from: &Repository) -> usize {
        let pg_wal = self.scratch.directory("data/pg_wal");
        let destination = pg_wal.join("RECOVERYXLOG");
        let request = |number: u64| Request {
            name: name(number).parse().unwrap(),
            segment_size: self.control.segment_size,
            destination: &destination,
            end_at_gap: false,
            left: &[],
            new_tablespaces: Default::default(),
            follows: None,
        };
        let spool = Spool::of(&request(1), PlainDigest::of(b"test")).unwrap();
        let lock = spool.begin().unwrap().expect("nobody else fetches ahead");
        let ahead = Ahead::of(&FetchConfig::default(), self.control.segment_size).unwrap();
        let first = request(1);
        let worker = prefetch(vec![self.system(from)], &spool, &lock, &first, ahead);
        let system = self.control.system_id;
        let mut taken = 0;
        let taking = async {
            for number in 2..=5 {
                // Who waits in vain gets it elsewhere, and goes on.
                for _ in 0..100 {
                    let turn = Turn::at(&destination).unwrap();
                    if spool.take(&request(number), system, &turn).unwrap() {
                        let content = std::fs::read(&destination).unwrap();
                        assert!(content == self.plain(&name(number)));
                        std::fs::remove_file(&destination).unwrap();
                        taken += 1;
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(4)).await;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = worker => done.unwrap(),
            () = taking => {}
        }
        spool.end(&lock).unwrap();
        let left: Vec<_> = std::fs::read_dir(&pg_wal).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        taken
    }

    /// Fetches, and panics unless the destination holds the whole file or nothing at all.
    async fn fetch(&self, from: &Repository, file: &str) -> Result<Fetched, String> {
        let destination = self.fetched.join("RECOVERYXLOG");
        let name: WalFileName = file.parse().unwrap();
        let request = Request {
            name,
            segment_size: self.control.segment_size,
            destination: &destination,
            end_at_gap: false,
            left: &[],
            new_tablespaces: Default::default(),
            follows: None,
        };
        let turn = Turn::at(&destination).unwrap();
        let fetched = fetch(&[self.system(from)], request, &turn).await;
        drop(turn);
        let left: Vec<_> = std::fs::read_dir(&self.fetched)
            .unwrap()
            .flatten()
            .collect();
        match &fetched {
            Ok(Fetched::Delivered) => {
                assert!(std::fs::read(&destination).unwrap() == self.plain(file));
                assert_eq!(left.len(), 1, "{left:?}");
                std::fs::remove_file(&destination).unwrap();
            }
            _ => assert!(left.is_empty(), "{left:?}"),
        }
        fetched.map_err(|error| error.to_string())
    }
}

/// Runs `test` for every case at every call, until a number is reached that no call has. How
/// many calls there are varies with how an earlier one failed: one that injects nothing ends
/// the cases of its kind alone.
async fn every_call(least: u64, mut test: impl AsyncFnMut(&Case, FaultPlan)) {
    for number in 1.. {
        let mut injected = 0;
        for case in cases_at(number) {
            let plan = case.plan();
            // A panic in the middle would not say which case it was.
            eprintln!("{case}");
            test(&case, plan.clone()).await;
            injected += plan.injected();
        }
        if injected == 0 {
            assert!(number > least, "only {} calls", number - 1);
            return;
        }
        assert!(number < 60, "it does not end");
    }
}

async fn new_repository(files: &Files, pushed: &[&str]) -> String {
    let url = new_memory();
    let (sound, _) = with_plan(&url, impatient(), &"seed=1".parse().unwrap());
    sound.init().await.unwrap();
    for file in pushed {
        files.push(&sound, file).await.unwrap();
    }
    url
}

#[test]
fn a_push_whose_nth_call_fails_is_acknowledged_only_when_the_file_is_there() {
    let files = Files::new(1);
    runtime().block_on(async {
        for file in [name(1), "00000002.history".into()] {
            every_call(4, async |_, plan| {
                let url = new_repository(&files, &[]).await;
                let (sound, faulty) = with_plan(&url, impatient(), &plan);
                let first = files.push(&faulty, &file).await;
                if first.is_ok() {
                    assert_eq!(files.fetch(&sound, &file).await, Ok(Fetched::Delivered));
                }
                // The archiver comes again in any case, with the same file.
                files.push(&sound, &file).await.unwrap();
                assert_eq!(files.fetch(&sound, &file).await, Ok(Fetched::Delivered));
                let held = files.system(&sound).objects_of(file.parse().unwrap()).await;
                assert_eq!(held.unwrap().len(), 1);
            })
            .await;
        }
    });
}

#[test]
fn a_push_of_what_is_there_is_acknowledged_or_fails_and_other_content_never_passes() {
    let files = Files::new(1);
    let other = files.fetched.with_file_name(name(1));
    let content = Segment::read(files.wal.join(name(1))).content(7);
    std::fs::write(&other, content.0).unwrap();
    runtime().block_on(async {
        every_call(2, async |case, plan| {
            let url = new_repository(&files, &[&name(1)]).await;
            let (sound, faulty) = with_plan(&url, impatient(), &plan);
            let again = files.push(&faulty, &name(1)).await;
            if let Ok(outcomes) = again {
                // A store that listed nothing at first is put to once more, the same bytes.
                let lied = case.fault == "empty";
                assert!(lied || outcomes == [Outcome::Present], "{outcomes:?}");
            }
            assert_eq!(files.fetch(&sound, &name(1)).await, Ok(Fetched::Delivered));
        })
        .await;
        every_call(2, async |case, plan| {
            let url = new_repository(&files, &[&name(1)]).await;
            let (sound, faulty) = with_plan(&url, impatient(), &plan);
            let refused = files.push_path(&faulty, &other).await;
            assert!(refused.is_err(), "{case}: other content passed");
            let system = files.system(&sound);
            let held = system.objects_of(name(1).parse().unwrap()).await;
            match held.unwrap().len() {
                1 => assert_eq!(files.fetch(&sound, &name(1)).await, Ok(Fetched::Delivered)),
                // It had seen nothing: both are kept, and a reader refuses both.
                _ => {
                    assert_eq!(case.fault, "empty");
                    let error = files.fetch(&sound, &name(1)).await.unwrap_err();
                    assert!(error.contains("different contents"), "{error}");
                }
            }
        })
        .await;
    });
}

#[test]
fn a_fetch_whose_nth_call_fails_never_calls_absent_what_exists() {
    let files = Files::new(1);
    let all = [name(1), name(2), name(3), "00000002.history".into()];
    runtime().block_on(async {
        let pushed: Vec<&str> = all.iter().map(String::as_str).collect();
        let url = new_repository(&files, &pushed).await;
        for file in &all {
            let last = *file == all[2] || *file == all[3];
            let mut absent = Vec::new();
            every_call(2, async |case, plan| {
                let (_, faulty) = with_plan(&url, impatient(), &plan);
                if files.fetch(&faulty, file).await == Ok(Fetched::Absent) {
                    absent.push(case.to_string());
                }
            })
            .await;
            // Only a store that from the first call on lists nothing at all may be believed.
            absent.retain(|case| case != "any@1+=empty");
            assert!(absent.is_empty(), "{file} (the last: {last}): {absent:?}");
        }
    });
}

#[test]
fn what_is_fetched_ahead_while_the_nth_call_fails_is_whole_and_right_or_not_there() {
    let files = Files::new(1);
    let all: Vec<String> = (1..=5).map(name).collect();
    runtime().block_on(async {
        let pushed: Vec<&str> = all.iter().map(String::as_str).collect();
        let url = new_repository(&files, &pushed).await;
        let mut most = 0;
        every_call(4, async |case, plan| {
            let (_, faulty) = with_plan(&url, impatient(), &plan);
            let came = files.fetch_ahead(&faulty).await;
            assert!(came == 4 || plan.injected() > 0, "{case}: {came} came");
            most = most.max(came);
        })
        .await;
        assert_eq!(most, 4);
    });
}

#[test]
fn one_listing_that_lies_is_caught_also_where_others_tell_the_truth() {
    let files = Files::new(1);
    runtime().block_on(async {
        let url = new_repository(&files, &[&name(1), &name(2), &name(3)]).await;
        // The log's directory is always empty, by its word: but an earlier one shows that the
        // timeline goes on. Listing by listing, once:
        for number in 1..=4 {
            let plan: FaultPlan = format!("list@{number}=empty").parse().unwrap();
            let (_, faulty) = with_plan(&url, RetryPolicy::default(), &plan);
            for file in [name(2), name(3)] {
                let fetched = files.fetch(&faulty, &file).await;
                assert_eq!(fetched, Ok(Fetched::Delivered), "{file}, listing {number}");
            }
        }
    });
}

#[test]
fn a_gap_stays_a_doubt_and_an_end_stays_an_end_whatever_call_fails() {
    let files = Files::new(1);
    runtime().block_on(async {
        // What lies no further behind may have been stored ahead of what was never
        // acknowledged.
        let near = new_repository(&files, &[&name(1), &name(3)]).await;
        let (sound, _) = with_plan(&near, impatient(), &"seed=1".parse().unwrap());
        assert_eq!(files.fetch(&sound, &name(2)).await, Ok(Fetched::Absent));
        let url = new_repository(&files, &[&name(1), &name(3), &name(19)]).await;
        let (sound, _) = with_plan(&url, impatient(), &"seed=1".parse().unwrap());
        assert!(files.fetch(&sound, &name(2)).await.is_err());
        assert_eq!(files.fetch(&sound, &name(20)).await, Ok(Fetched::Absent));
        assert_eq!(files.fetch(&sound, &name(4)).await, Ok(Fetched::Absent));
        every_call(4, async |case, plan| {
            let (_, faulty) = with_plan(&url, impatient(), &plan);
            let fetched = files.fetch(&faulty, &name(2)).await;
            if case.fault == "empty" {
                // It hides the very segment that betrays the gap.
                assert_ne!(fetched, Ok(Fetched::Delivered), "{case}");
            } else {
                assert!(fetched.is_err(), "{case}: {fetched:?}");
            }
        })
        .await;
        every_call(4, async |case, plan| {
            let (_, faulty) = with_plan(&url, impatient(), &plan);
            let fetched = files.fetch(&faulty, &name(20)).await;
            assert_ne!(fetched, Ok(Fetched::Delivered), "{case}");
        })
        .await;
    });
}

#[test]
fn what_is_missing_before_a_fork_stays_a_doubt_whatever_call_fails() {
    let files = Files::new(1);
    runtime().block_on(async {
        // Timeline 2 begins with segment 5. On timeline 1 nothing lies behind what is missing.
        let url = new_repository(&files, &[&name(1), &name(2), "00000002.history"]).await;
        let (sound, _) = with_plan(&url, impatient(), &"seed=1".parse().unwrap());
        assert!(files.fetch(&sound, &name(4)).await.is_err());
        assert_eq!(files.fetch(&sound, &name(5)).await, Ok(Fetched::Absent));
        for missing in [3, 4] {
            every_call(4, async |case, plan| {
                let (_, faulty) = with_plan(&url, impatient(), &plan);
                let fetched = files.fetch(&faulty, &name(missing)).await;
                // It hides the history each time that it is asked.
                let hidden = case.fault == "empty" && case.for_good;
                assert!(fetched.is_err() || hidden, "{case}: {fetched:?}");
            })
            .await;
        }
    });
}

#[test]
fn a_large_segment_whose_upload_fails_anywhere_is_acknowledged_only_when_it_is_whole() {
    let mut files = Files::new(128);
    // What compresses to more than one part.
    let path = files.wal.join(name(1));
    let mut bytes = files.plain(&name(1));
    let mut state = 1u64;
    for word in bytes[8192..].chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        word.copy_from_slice(&state.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    files.fetched = files.fetched.join(".");
    let patient = RetryPolicy {
        attempt_timeout: Duration::from_secs(2),
        total_deadline: Duration::from_secs(20),
        ..impatient()
    };
    runtime().block_on(async {
        for plan in [
            "begin@1=lost",
            "begin=500",
            "part@2=lost",
            "part@5+=refused",
            "complete@1=lost",
            "complete@1=500",
            "complete@1=404",
            "complete=lost; head=500; get=500",
            "complete=503; abort=500",
        ] {
            eprintln!("{plan}");
            let plan: FaultPlan = plan.parse().unwrap();
            let url = new_repository(&files, &[]).await;
            let (sound, faulty) = with_plan(&url, patient, &plan);
            let pushed = files.push(&faulty, &name(1)).await;
            assert!(plan.injected() > 0, "nothing failed");
            if pushed.is_ok() {
                assert_eq!(files.fetch(&sound, &name(1)).await, Ok(Fetched::Delivered));
            } else {
                files.push(&sound, &name(1)).await.unwrap();
            }
            let held = files
                .system(&sound)
                .objects_of(name(1).parse().unwrap())
                .await;
            assert_eq!(held.unwrap().len(), 1);
        }
    });
}
