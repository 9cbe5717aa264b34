//! **For tests.** What every store must do, whichever it is: one suite for memory, local files,
//! Garage, Azurite, Google's interface and whatever comes next.
//!
//! It works below a random key of its own and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::fault::FaultPlan;
use super::{CreateOnly, Created, ErrorKind, ObjectStream, Store};

/// The smallest part that every store takes.
const PART: usize = 5 * 1024 * 1024;

/// Checks all of it; panics at the first thing that is not so.
pub async fn conformance(store: &Store) {
    let root = format!("conformance-{:016x}", rand::random::<u64>());
    absent_is_a_value(store, &root).await;
    what_is_put_is_read(store, &root).await;
    ranges_are_exact(store, &root).await;
    broken_reads_are_resumed(store, &root).await;
    odd_keys_are_kept_and_wrong_ones_refused(store, &root).await;
    copies_are_whole(store, &root).await;
    put_new_creates_once(store, &root).await;
    concurrent_put_new_leaves_one_content(store, &root).await;
    listings_are_sorted_and_whole(store, &root).await;
    large_objects_appear_whole_or_not_at_all(store, &root).await;
    long_listings_miss_nothing_and_many_are_deleted_at_once(store, &root).await;
    let left = store.list(&root, None).await.unwrap();
    assert_eq!(left, [], "the suite left something behind");
}

/// `length` bytes that differ by `seed` and do not repeat within a part.
pub fn bytes(seed: u64, length: usize) -> Bytes {
    let mut out = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out.into()
}

/// All of a stream; its announced size is checked.
pub async fn gather(stream: ObjectStream) -> Bytes {
    let size = stream.size;
    let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
    let all = pieces.concat();
    assert_eq!(all.len() as u64, size);
    all.into()
}

async fn absent_is_a_value(store: &Store, root: &str) {
    let key = format!("{root}/absent/object");
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert_eq!(store.get_limited(&key, 10).await.unwrap(), None);
    assert_eq!(store.get_range(&key, 0..10).await.unwrap(), None);
    assert_eq!(store.get_range(&key, 5..5).await.unwrap(), None);
    assert!(store.get_stream(&key).await.unwrap().is_none());
    assert_eq!(store.head(&key).await.unwrap(), None);
    assert_eq!(store.list(&key, None).await.unwrap(), []);
    assert_eq!(
        store.list_directory(&key).await.unwrap(),
        Default::default()
    );
    store.delete(&key).await.unwrap();
    // A key in the middle of another is no object.
    let child = format!("{key}/child");
    store.put(&child, Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert_eq!(store.head(&key).await.unwrap(), None);
    store.delete(&child).await.unwrap();
}

async fn what_is_put_is_read(store: &Store, root: &str) {
    for (number, length) in [0, 1, 100_000, 3 * 1024 * 1024 + 1].into_iter().enumerate() {
        let key = format!("{root}/whole/{number}");
        let body = bytes(number as u64, length);
        let before = jiff::Timestamp::now();
        store.put(&key, body.clone()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap(), body);
        let stream = store.get_stream(&key).await.unwrap().unwrap();
        assert_eq!(gather(stream).await, body);
        let info = store.head(&key).await.unwrap().unwrap();
        assert_eq!(
            (info.key.as_str(), info.size),
            (key.as_str(), length as u64)
        );
        let age = info.modified.duration_since(before).abs();
        assert!(
            age.as_secs() < 300,
            "written just now, not at {}",
            info.modified
        );
        store.confirm_durable(&key).await.unwrap();

        assert_eq!(
            store
                .get_limited(&key, length as u64)
                .await
                .unwrap()
                .unwrap(),
            body
        );
        if length > 0 {
            let error = store
                .get_limited(&key, length as u64 - 1)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        let other = bytes(99, 10);
        store.put(&key, other.clone()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap(), other);
        store.delete(&key).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), None);
    }
}

async fn ranges_are_exact(store: &Store, root: &str) {
    let key = format!("{root}/ranges");
    let body = bytes(1, 2_500_000);
    store.put(&key, body.clone()).await.unwrap();
    for range in [
        0..1,
        0..2_500_000,
        1_000_000..2_100_000,
        2_499_999..2_500_000,
    ] {
        let part = store.get_range(&key, range.clone()).await.unwrap().unwrap();
        assert_eq!(part, body[range.start as usize..range.end as usize]);
        let stream = store
            .get_range_stream(&key, range.clone())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(stream.size, range.end - range.start);
        assert_eq!(gather(stream).await, part);
    }
    assert_eq!(store.get_range(&key, 7..7).await.unwrap().unwrap(), "");
    for range in [
        2_499_999..2_500_001,
        2_500_000..2_500_001,
        9_000_000..9_000_001,
    ] {
        let error = store.get_range(&key, range.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{range:?}: {error}");
    }
    store.delete(&key).await.unwrap();
}

async fn broken_reads_are_resumed(store: &Store, root: &str) {
    let key = format!("{root}/resumed");
    let body = bytes(5, 2_000_003);
    store.put(&key, body.clone()).await.unwrap();
    for fault in ["break", "truncate"] {
        let plan: FaultPlan = format!("get@1={fault}").parse().unwrap();
        let faulty = store.clone().with_faults(plan);
        assert!(faulty.get(&key).await.unwrap().unwrap() == body);
        assert_eq!(faulty.retries(), 1);
    }
    // What was replaced meanwhile is not put together from two versions.
    let faulty = store.clone().with_faults("get@1=break".parse().unwrap());
    let stream = faulty.get_stream(&key).await.unwrap().unwrap();
    store.put(&key, bytes(6, 2_000_003)).await.unwrap();
    let read: Result<Vec<Bytes>, _> = stream.try_collect().await;
    match read {
        Ok(pieces) => assert!(pieces.concat() == body),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
    }
    store.delete(&key).await.unwrap();
}

async fn odd_keys_are_kept_and_wrong_ones_refused(store: &Store, root: &str) {
    let names = [
        "before upgrade (1)+2=3",
        "größe",
        "100%25",
        "a#b",
        "~tilde,'quote'&and",
        "00000002.history-6437b3ac38465133ffb63b75273a8db5.zst.age",
    ];
    for name in names {
        let key = format!("{root}/odd/{name}/{name}");
        store
            .put(&key, Bytes::copy_from_slice(name.as_bytes()))
            .await
            .unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap(), name);
        let listed = store
            .list(&format!("{root}/odd/{name}"), None)
            .await
            .unwrap();
        assert_eq!(listed.iter().map(|o| &o.key).collect::<Vec<_>>(), [&key]);
        let level = store.list_directory(&format!("{root}/odd")).await.unwrap();
        assert_eq!(level.directories, [format!("{root}/odd/{name}")]);
        store.delete(&key).await.unwrap();
    }
    for wrong in [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        "a/.",
        "a/staging#1",
    ] {
        assert!(
            store.get(wrong).await.is_err(),
            "{wrong:?} was taken for a key"
        );
        assert!(store.put(wrong, Bytes::new()).await.is_err(), "{wrong:?}");
    }
}

async fn copies_are_whole(store: &Store, root: &str) {
    let (from, to) = (format!("{root}/from"), format!("{root}/deep/to"));
    let body = bytes(7, 300_000);
    assert!(!store.copy(&from, &to, 300_000).await.unwrap());
    assert_eq!(store.head(&to).await.unwrap(), None);
    store.put(&from, body.clone()).await.unwrap();
    // Twice: an answer may have been lost.
    for _ in 0..2 {
        assert!(store.copy(&from, &to, 300_000).await.unwrap());
    }
    // The one does not go with the other, nor change with it.
    store
        .put(&from, Bytes::from_static(b"other"))
        .await
        .unwrap();
    assert_eq!(store.get(&to).await.unwrap(), Some(body.clone()));
    store.delete(&from).await.unwrap();
    assert_eq!(store.get(&to).await.unwrap(), Some(body));
    store.delete(&to).await.unwrap();
}

async fn put_new_creates_once(store: &Store, root: &str) {
    let key = format!("{root}/once");
    let (first, second) = (bytes(1, 500), bytes(2, 500));
    assert_eq!(
        store.put_new(&key, first.clone()).await.unwrap(),
        Created::Created
    );
    assert_eq!(store.put_new(&key, second).await.unwrap(), Created::Exists);
    assert_eq!(
        store.put_new(&key, first.clone()).await.unwrap(),
        Created::Exists
    );
    assert_eq!(store.get(&key).await.unwrap().unwrap(), first);
    store.delete(&key).await.unwrap();
    assert_eq!(store.put_new(&key, first).await.unwrap(), Created::Created);
    store.delete(&key).await.unwrap();
}

async fn concurrent_put_new_leaves_one_content(store: &Store, root: &str) {
    let enforced = store.probe_create_only(root).await.unwrap() == CreateOnly::Enforced;
    let key = format!("{root}/contested");
    let writers = (0..8).map(|writer| {
        let (store, key) = (store.clone(), key.clone());
        async move { store.put_new(&key, bytes(writer, 2000)).await.unwrap() }
    });
    let answers = futures::future::join_all(writers).await;
    let winners: Vec<usize> = (0..8)
        .filter(|&writer| answers[writer] == Created::Created)
        .collect();
    let stored = store.get(&key).await.unwrap().unwrap();
    let kept = (0..8)
        .find(|&writer| stored == bytes(writer as u64, 2000))
        .unwrap();
    if enforced {
        assert_eq!(winners, [kept], "one winner, and its content stays");
    } else {
        assert!(winners.contains(&kept), "whose content stays was told so");
    }
    store.delete(&key).await.unwrap();
}

async fn listings_are_sorted_and_whole(store: &Store, root: &str) {
    let root = format!("{root}/listing");
    let names = [
        "b/2",
        "a",
        "b/10",
        "b/1",
        "bc/1",
        "b.json",
        "b/11/deep/er",
        "c/only",
    ];
    for name in names {
        let body = Bytes::copy_from_slice(name.as_bytes());
        store.put(&format!("{root}/{name}"), body).await.unwrap();
    }
    let keys = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("{root}/{name}")).collect()
    };
    let list = async |prefix: &str, after: Option<&str>| -> Vec<String> {
        let after = after.map(|after| format!("{root}/{after}"));
        let prefix = format!("{root}/{prefix}");
        let listed = store.list(&prefix, after.as_deref()).await.unwrap();
        for object in &listed {
            assert_eq!(object.size as usize, object.key.len() - root.len() - 1);
        }
        let mut streamed: Vec<_> = store
            .list_stream(&prefix, after.as_deref())
            .try_collect()
            .await
            .unwrap();
        streamed.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(streamed, listed);
        listed.into_iter().map(|object| object.key).collect()
    };
    let mut sorted = names;
    sorted.sort_unstable();
    assert_eq!(list("", None).await, keys(&sorted));
    assert_eq!(
        list("b", None).await,
        keys(&["b/1", "b/10", "b/11/deep/er", "b/2"])
    );
    assert_eq!(
        list("b/", None).await,
        keys(&["b/1", "b/10", "b/11/deep/er", "b/2"])
    );
    assert_eq!(
        list("b", Some("b/1")).await,
        keys(&["b/10", "b/11/deep/er", "b/2"])
    );
    assert_eq!(list("b", Some("b/15")).await, keys(&["b/2"]));
    assert_eq!(list("b", Some("b/2")).await, keys(&[]));
    assert_eq!(
        list("b/", Some("a")).await,
        keys(&["b/1", "b/10", "b/11/deep/er", "b/2"])
    );

    let level = store.list_directory(&root).await.unwrap();
    assert_eq!(level.directories, keys(&["b", "bc", "c"]));
    let objects: Vec<String> = level
        .objects
        .iter()
        .map(|object| object.key.clone())
        .collect();
    assert_eq!(objects, keys(&["a", "b.json"]));
    let level = store.list_directory(&format!("{root}/b")).await.unwrap();
    assert_eq!(level.directories, keys(&["b/11"]));

    store.delete(&format!("{root}/c/only")).await.unwrap();
    let level = store.list_directory(&root).await.unwrap();
    assert_eq!(
        level.directories,
        keys(&["b", "bc"]),
        "an emptied directory is gone"
    );
    for name in names {
        store.delete(&format!("{root}/{name}")).await.unwrap();
    }
}

async fn large_objects_appear_whole_or_not_at_all(store: &Store, root: &str) {
    for (number, length) in [0, 1000, PART, PART + 1, 2 * PART, 3 * PART + 77]
        .into_iter()
        .enumerate()
    {
        let key = format!("{root}/large/{number}");
        let body = bytes(number as u64, length);
        let mut upload = store.upload(&key, PART, 3).await.unwrap();
        // Pieces of sizes that never fit the parts.
        let mut rest = body.clone();
        let mut step = 1;
        while !rest.is_empty() {
            upload
                .write(rest.split_to(step.min(rest.len())))
                .await
                .unwrap();
            step = (step * 3 + 1) % 1_234_567;
        }
        assert_eq!(
            store.head(&key).await.unwrap(),
            None,
            "not there before its completion"
        );
        assert_eq!(upload.finish().await.unwrap(), length as u64);
        let stream = store.get_stream(&key).await.unwrap().unwrap();
        assert!(
            gather(stream).await == body,
            "{length} bytes came back otherwise"
        );
        if length > PART {
            let edge = PART as u64 - 5..PART as u64 + 1;
            let part = store.get_range(&key, edge.clone()).await.unwrap().unwrap();
            assert_eq!(part, body[edge.start as usize..edge.end as usize]);
        }
        store.delete(&key).await.unwrap();
    }
    let key = format!("{root}/large/given-up");
    let mut upload = store.upload(&key, PART, 2).await.unwrap();
    upload.write(bytes(1, 2 * PART + 5)).await.unwrap();
    upload.abort().await;
    let mut upload = store.upload(&key, PART, 2).await.unwrap();
    upload.write(bytes(1, 2 * PART + 5)).await.unwrap();
    drop(upload);
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert_eq!(
        store.list(&format!("{root}/large"), None).await.unwrap(),
        []
    );
}

/// More than fits a page of any store's listing.
async fn long_listings_miss_nothing_and_many_are_deleted_at_once(store: &Store, root: &str) {
    let keys: Vec<String> = (0..1100)
        .map(|n| format!("{root}/long/{:02}/{n:04}", n % 7))
        .collect();
    stream::iter(&keys)
        .map(|key| store.put(key, Bytes::from_static(b".")))
        .buffer_unordered(16)
        .try_collect::<Vec<()>>()
        .await
        .unwrap();
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    let listed = store.list(&format!("{root}/long"), None).await.unwrap();
    assert!(listed.iter().map(|object| &object.key).eq(&sorted));
    let after = &sorted[40];
    let listed = store
        .list(&format!("{root}/long"), Some(after))
        .await
        .unwrap();
    assert!(listed.iter().map(|object| &object.key).eq(&sorted[41..]));
    // In requests of a thousand; what is gone already is fine.
    for _ in 0..2 {
        store.delete_all(&keys).await.unwrap();
        let left = store.list(&format!("{root}/long"), None).await.unwrap();
        assert_eq!(left, []);
    }
    store.delete_all(&[]).await.unwrap();
}
