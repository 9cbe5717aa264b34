//! A store that fails as told: what is retried, what is not, and what is certain afterwards.

use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::super::conformance::{bytes, gather};
use super::super::fault::FaultPlan;
use super::*;

pub(super) fn plan(text: &str) -> FaultPlan {
    text.parse().unwrap()
}

fn impatient() -> RetryPolicy {
    RetryPolicy {
        attempt_timeout: Duration::from_millis(300),
        ..quick()
    }
}

/// A bit of everything. Every answer is checked.
async fn workload(store: &Store, part: usize) {
    let root = format!("w-{:016x}", rand::random::<u64>());
    let key = |name: &str| format!("{root}/{name}");
    store.put(&key("small"), bytes(1, 1000)).await.unwrap();
    assert_eq!(
        store.get(&key("small")).await.unwrap().unwrap(),
        bytes(1, 1000)
    );
    assert_eq!(store.get(&key("none")).await.unwrap(), None);
    assert_eq!(store.head(&key("none")).await.unwrap(), None);
    assert_eq!(
        store.put_new(&key("once"), bytes(2, 500)).await.unwrap(),
        Created::Created
    );
    assert_eq!(
        store.put_new(&key("once"), bytes(3, 500)).await.unwrap(),
        Created::Exists
    );
    assert_eq!(
        store.get(&key("once")).await.unwrap().unwrap(),
        bytes(2, 500)
    );
    let large = bytes(4, part * 2 + part / 3);
    let mut upload = store.upload(&key("large"), part, 2).await.unwrap();
    upload.write(large.clone()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), large.len() as u64);
    let stream = store.get_stream(&key("large")).await.unwrap().unwrap();
    assert!(gather(stream).await == large);
    let range = 10..part as u64 + 10;
    let piece = store
        .get_range(&key("large"), range.clone())
        .await
        .unwrap()
        .unwrap();
    assert!(piece == large[range.start as usize..range.end as usize]);
    let listed: Vec<String> = store
        .list(&root, None)
        .await
        .unwrap()
        .into_iter()
        .map(|o| o.key)
        .collect();
    assert_eq!(listed, [key("large"), key("once"), key("small")]);
    assert_eq!(store.list_directory(&root).await.unwrap().objects.len(), 3);
    for name in ["large", "once", "small", "none"] {
        store.delete(&key(name)).await.unwrap();
    }
    assert_eq!(store.list(&root, None).await.unwrap(), []);
}

/// Runs the workload once for each of its calls, that call failing.
pub(super) async fn survives_any_single(fault: &str, open: impl Fn() -> Store, part: usize) {
    for number in 1.. {
        let plan = plan(&format!("any@{number}={fault}"));
        let store = open().with_faults(plan.clone());
        workload(&store, part).await;
        if plan.injected() == 0 {
            assert!(number > 15, "{number} calls are not all of the workload");
            return;
        }
        assert!(number < 200, "the workload does not end");
    }
}

#[tokio::test]
async fn any_single_transient_failure_goes_unnoticed_in_memory() {
    for fault in ["refused", "500", "503", "404", "lost", "break", "truncate"] {
        survives_any_single(fault, memory, 1000).await;
    }
}

#[tokio::test]
async fn any_single_transient_failure_goes_unnoticed_on_local_files() {
    for fault in ["refused", "lost", "break"] {
        let (_directory, store) = local();
        survives_any_single(fault, || store.clone(), 1000).await;
    }
}

#[tokio::test]
async fn any_single_call_without_an_answer_goes_unnoticed() {
    let open = || {
        let retry = impatient();
        Store::open(&StoreSettings {
            retry,
            ..settings("memory:///")
        })
        .unwrap()
    };
    tokio::join!(
        survives_any_single("hang", open, 1000),
        survives_any_single("late", open, 1000)
    );
}

#[tokio::test]
async fn calls_that_fail_at_random_go_unnoticed_and_are_counted() {
    for seed in 0..20 {
        let plan = plan(&format!(
            "seed={seed}; any%10=503; put%5=lost; get%5=break; list%5=refused"
        ));
        let retry = RetryPolicy {
            attempts: 12,
            ..quick()
        };
        let store = Store::open(&StoreSettings {
            retry,
            ..settings("memory:///")
        })
        .unwrap();
        let store = store.with_faults(plan.clone());
        workload(&store, 1000).await;
        println!(
            "SEED={seed}: {} of {} calls failed",
            plan.injected(),
            plan.calls()
        );
        assert!(store.retries() > 0 || plan.injected() == 0);
        assert!(store.requests() > store.retries());
    }
}

/// Every operation on a store where each fails, with a key that exists and one that does not.
async fn all_fail(store: &Store) -> Vec<StorageError> {
    let body = || Bytes::from_static(b"x");
    let mut upload = store.upload("big", 1, 1).await.unwrap();
    let mut failures = vec![
        store.put("k", body()).await.unwrap_err(),
        store.put_new("new", body()).await.map(drop).unwrap_err(),
        store.list("", None).await.map(drop).unwrap_err(),
        store
            .list_stream("", None)
            .try_collect::<Vec<_>>()
            .await
            .map(drop)
            .unwrap_err(),
        store.list_directory("").await.map(drop).unwrap_err(),
        store.probe_create_only("").await.map(drop).unwrap_err(),
        upload.write(body()).await.unwrap_err(),
    ];
    for key in ["k", "absent"] {
        failures.extend([
            store.get(key).await.map(drop).unwrap_err(),
            store.get_limited(key, 5).await.map(drop).unwrap_err(),
            store.get_range(key, 0..1).await.map(drop).unwrap_err(),
            store.get_stream(key).await.map(drop).unwrap_err(),
            store.head(key).await.map(drop).unwrap_err(),
            store.delete(key).await.unwrap_err(),
        ]);
    }
    failures
}

pub(super) async fn one_object() -> (tempfile::TempDir, Vec<Store>) {
    let (directory, local) = local();
    let stores = vec![local, memory()];
    for store in &stores {
        store
            .put("k", Bytes::from_static(b"content"))
            .await
            .unwrap();
    }
    (directory, stores)
}

#[tokio::test]
async fn a_refusal_or_a_missing_bucket_is_an_error_at_once_and_never_absence() {
    let (_directory, stores) = one_object().await;
    for (fault, kind) in [
        ("403", ErrorKind::Denied),
        ("nobucket", ErrorKind::Misconfigured),
    ] {
        for store in &stores {
            let store = store.clone().with_faults(plan(&format!("any={fault}")));
            for error in all_fail(&store).await {
                assert_eq!(
                    (error.kind(), error.is_retryable()),
                    (kind, false),
                    "{error:?}"
                );
                assert!(error.advice().is_some(), "{error:?}");
            }
            assert_eq!(store.retries(), 0);
        }
    }
}

#[tokio::test]
async fn a_404_that_does_not_say_of_what_is_an_error() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        for error in all_fail(&store.with_faults(plan("any=404"))).await {
            assert_eq!(error.kind(), ErrorKind::Other, "{error:?}");
        }
    }
}

#[tokio::test]
async fn only_the_stores_own_word_means_absent() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        let store = store.with_faults(plan("get=absent; head=absent"));
        assert_eq!(store.get("k").await.unwrap(), None);
        assert_eq!(store.head("k").await.unwrap(), None);
        assert_eq!(store.retries(), 0);
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_tried_as_often_as_the_policy_says() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        let store = store.with_faults(plan("any=refused"));
        let error = store.get("k").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::Unavailable, true)
        );
        assert_eq!((store.requests(), store.retries()), (4, 3));
        assert!(error.to_string().contains("4 attempts"), "{error}");
        for error in all_fail(&store).await {
            assert_eq!(
                (error.kind(), error.is_retryable()),
                (ErrorKind::Unavailable, true)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_ends_in_bounded_time() {
    let retry = RetryPolicy::default();
    let store = Store::open(&StoreSettings {
        retry,
        ..settings("memory:///")
    })
    .unwrap();
    store
        .put("k", Bytes::from_static(b"content"))
        .await
        .unwrap();
    let store = store.with_faults(plan("any=hang"));
    let start = tokio::time::Instant::now();
    let failures = all_fail(&store).await;
    for error in &failures {
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::Timeout, true),
            "{error:?}"
        );
    }
    let longest = 2 * retry.total_deadline * failures.len() as u32;
    assert!(start.elapsed() < longest, "{:?}", start.elapsed());
}

#[tokio::test]
async fn local_files_that_hang_end_in_bounded_time() {
    let (_directory, store) = local();
    let store = Store::open(&StoreSettings {
        retry: impatient(),
        ..settings(store.url())
    })
    .unwrap();
    store
        .put("k", Bytes::from_static(b"content"))
        .await
        .unwrap();
    let store = store.with_faults(plan("any=hang"));
    let start = Instant::now();
    assert_eq!(store.get("k").await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn waits_double_up_to_the_longest_and_differ_between_hosts() {
    let policy = RetryPolicy::default();
    for failed in 1..30 {
        let wait = policy.wait(failed);
        let full =
            Duration::from_millis(200 * (1 << (failed - 1).min(10))).min(policy.longest_wait);
        assert!(wait <= full && wait >= full / 2, "{failed}: {wait:?}");
    }
    assert_ne!(policy.wait(9), policy.wait(9));
    let endless = RetryPolicy {
        total_deadline: Duration::MAX,
        attempt_timeout: Duration::MAX,
        longest_wait: Duration::MAX,
        ..policy
    };
    let store = Store::open(&StoreSettings {
        retry: endless,
        ..settings("memory:///")
    })
    .unwrap();
    assert_eq!(store.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_where_it_broke() {
    let (_directory, mut stores) = one_object().await;
    let body = bytes(1, 3_000_000);
    for store in &mut stores {
        store.put("large", body.clone()).await.unwrap();
        for fault in ["break", "truncate"] {
            let plan = plan(&format!("get@1-3={fault}"));
            let store = store.clone().with_faults(plan.clone());
            let stream = store.get_stream("large").await.unwrap().unwrap();
            assert!(gather(stream).await == body);
            assert_eq!((store.retries(), plan.injected()), (3, 3));
            assert_eq!(
                store
                    .get_range("large", 5..2_000_000)
                    .await
                    .unwrap()
                    .unwrap(),
                body[5..2_000_000]
            );
        }
    }
}

#[tokio::test]
async fn a_body_that_always_breaks_off_is_an_error_and_never_a_short_read() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        for fault in ["break", "truncate"] {
            let store = store.clone().with_faults(plan(&format!("get={fault}")));
            let error = store.get("k").await.unwrap_err();
            assert!(error.is_retryable(), "{error:?}");
            assert!(error.to_string().contains("attempts at byte"), "{error}");
        }
    }
}

#[tokio::test]
async fn more_bytes_than_promised_are_an_error() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        let store = store.with_faults(plan("get=longer"));
        assert_eq!(store.get("k").await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(
            store.get_range("k", 0..3).await.unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }
}

#[tokio::test]
async fn a_read_never_mixes_two_versions_of_an_object() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        let old = bytes(1, 3_000_000);
        store.put("large", old.clone()).await.unwrap();
        let faulty = store.clone().with_faults(plan("get@1=break"));
        let mut stream = faulty.get_stream("large").await.unwrap().unwrap();
        let first = stream.next().await.unwrap().unwrap();
        assert!(old.starts_with(&first));
        store.put("large", bytes(2, 3_000_000)).await.unwrap();
        let rest: Result<Vec<Bytes>, _> = stream.try_collect().await;
        match rest {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
            // Local files: the broken stream may have held the old file open long enough.
            Ok(rest) => assert!(rest.concat() == old[first.len()..]),
        }
    }
}

#[tokio::test]
async fn our_own_write_counts_as_created_after_a_lost_answer() {
    for (fault, retry) in [("lost", quick()), ("late", impatient())] {
        let (_directory, stores) = one_object().await;
        for store in stores {
            let url = store.url().to_owned();
            let store = match url.starts_with("file:") {
                true => Store::open(&StoreSettings {
                    retry,
                    ..settings(&url)
                })
                .unwrap(),
                false => Store::open(&StoreSettings {
                    retry,
                    ..settings("memory:///")
                })
                .unwrap(),
            };
            store.put("taken", bytes(1, 100)).await.unwrap();
            let store = store.with_faults(plan(&format!("put[new]@1={fault}; put[taken]={fault}")));
            assert_eq!(
                store.put_new("new", bytes(2, 100)).await.unwrap(),
                Created::Created
            );
            assert_eq!(
                store.put_new("new", bytes(3, 100)).await.unwrap(),
                Created::Exists
            );
            assert_eq!(
                store.put_new("taken", bytes(2, 100)).await.unwrap(),
                Created::Exists
            );
            assert_eq!(store.get("taken").await.unwrap().unwrap(), bytes(1, 100));
        }
    }
}
