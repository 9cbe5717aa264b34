//! Local files, and what is refused before any store is touched.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;

use super::super::conformance::{bytes, conformance};
use super::*;

fn wrong(url: &str, options: &[(&str, &str)]) -> (String, StorageError) {
    let settings = StoreSettings {
        options: options.iter().copied().collect(),
        ..settings(url)
    };
    let error = Store::open(&settings).unwrap_err();
    (
        format!(
            "{:?}",
            crate::error::Error::from(Store::open(&settings).unwrap_err())
        ),
        error,
    )
}

#[tokio::test]
async fn memory_conforms() {
    conformance(&memory()).await;
}

#[tokio::test]
async fn local_files_conform() {
    let (directory, store) = local();
    conformance(&store).await;
    eventually(|| entries(directory.path()) == 0, "everything is removed").await;
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, |entries| entries.count())
}

/// Dropped uploads are cleaned up behind our backs.
async fn eventually(mut done: impl FnMut() -> bool, what: &str) {
    for _ in 0..200 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}, but did not happen");
}

#[test]
fn an_unknown_option_is_refused_with_the_nearest_known_one() {
    let (text, error) = wrong("s3://bucket/pg", &[("aws_regoin", "eu-central-1")]);
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(
        text.contains("no option aws_regoin") && text.contains("mean aws_region?"),
        "{text}"
    );
    let (text, _) = wrong("gs://bucket", &[("google_service_acount", "x")]);
    assert!(text.contains("mean google_service_account?"), "{text}");
    let (text, _) = wrong("az://bucket", &[("azure_storage_acount_key", "x")]);
    assert!(text.contains("mean azure_storage_account_key?"), "{text}");
    let (text, _) = wrong("s3://bucket", &[("tiemout", "5s")]);
    assert!(text.contains("mean timeout?"), "{text}");
    assert!(
        wrong("memory:///", &[("aws_region", "x")])
            .0
            .contains("no option aws_region")
    );
}

#[test]
fn a_wrong_configuration_is_refused_with_exit_code_2_and_shows_no_secret() {
    let region = [("aws_region", "x")];
    for (url, options, says) in [
        ("s3://bucket", &[][..], "region is missing"),
        ("s3:///prefix", &region, "bucket is missing"),
        (
            "s3://key:hidden@bucket",
            &region,
            "credentials belong into the options",
        ),
        ("s3://bucket?key=hidden", &region, "has no ?"),
        (
            "s3://bucket",
            &[("aws_region", "x"), ("aws_bucket", "other")],
            "stands in the url",
        ),
        (
            "s3://bucket",
            &[("aws_region", "x"), ("aws_endpoint", "http://[::1]:1")],
            "plain HTTP",
        ),
        (
            "s3://bucket",
            &[("aws_region", "x"), ("timeout", "soon")],
            "as Duration",
        ),
        ("ftp://bucket", &[], "no kind of store"),
        ("/var/backups", &[], "relative URL"),
        ("file://host/dir", &[], "three slashes"),
        ("file:///dir-that-is-not-there", &[], "seawall init"),
    ] {
        if url == "s3://bucket" && options.is_empty() && std::env::var("AWS_REGION").is_ok() {
            continue;
        }
        let (text, error) = wrong(url, options);
        assert!(text.contains(says), "{url}: {text}");
        assert!(!text.contains("hidden"), "{text}");
        if error.kind() == ErrorKind::Misconfigured {
            assert_eq!(
                crate::error::Error::from(error).exit(),
                crate::error::Exit::Usage
            );
        }
    }
}

#[tokio::test]
async fn a_missing_root_is_an_error_and_never_an_empty_repository() {
    let (directory, store) = local();
    store.put("wal/a", Bytes::from_static(b"x")).await.unwrap();
    let elsewhere = directory.path().with_extension("unmounted");
    #[allow(clippy::disallowed_methods)]
    std::fs::rename(directory.path(), &elsewhere).unwrap();
    let body = Bytes::from_static(b"y");
    let failures = [
        store.get("wal/a").await.map(drop).unwrap_err(),
        store.head("wal/b").await.map(drop).unwrap_err(),
        store.put("wal/b", body.clone()).await.unwrap_err(),
        store.put_new("wal/b", body).await.map(drop).unwrap_err(),
        store.list("wal", None).await.map(drop).unwrap_err(),
        store.list_directory("wal").await.map(drop).unwrap_err(),
        store.delete("wal/a").await.unwrap_err(),
        store.confirm_durable("wal/a").await.unwrap_err(),
        store
            .sweep_leftovers("", Duration::ZERO)
            .await
            .map(drop)
            .unwrap_err(),
    ];
    for error in failures {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.advice().unwrap().contains("mount"), "{error:?}");
    }
    assert!(!directory.path().exists(), "nothing was made in its place");
    std::fs::remove_dir_all(elsewhere).unwrap();
}

#[tokio::test]
async fn another_directory_in_the_place_of_the_root_takes_nothing_and_holds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("disk");
    std::fs::create_dir(&root).unwrap();
    let store = Store::open(&settings(&format!("file://{}", root.display()))).unwrap();
    store.put("a/one", Bytes::from_static(b"1")).await.unwrap();
    // The disk is unmounted while the store is open: its mount point is there, and empty.
    let elsewhere = directory.path().join("elsewhere");
    crate::durable::publish(&root, &elsewhere).unwrap();
    std::fs::create_dir(&root).unwrap();
    let body = Bytes::from_static(b"2");
    assert!(store.put("a/two", body.clone()).await.is_err());
    assert!(store.put_new("a/three", body.clone()).await.is_err());
    assert!(store.list("a", None).await.is_err());
    assert!(store.list_directory("a").await.is_err());
    assert!(store.head("a/one").await.is_err());
    let mut upload = store.upload("a/four", 8 << 20, 1).await.unwrap();
    let written = upload.write(body).await;
    assert!(written.is_err() || upload.finish().await.is_err());
    std::fs::remove_dir_all(&root).unwrap();
    crate::durable::publish(&elsewhere, &root).unwrap();
    store.put("a/two", Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(store.list("a", None).await.unwrap().len(), 2);
}

#[test]
fn create_root_makes_all_directories_and_leaves_existing_ones_alone() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a/b");
    let url = format!("file://{}/", root.display());
    assert!(Store::open(&settings(&url)).is_err());
    Store::create_root(&url).unwrap();
    Store::create_root(&url).unwrap();
    let mode = root.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & !0o750, 0, "{mode:o}");
    assert_eq!(
        Store::open(&settings(&url)).unwrap().url(),
        url.trim_end_matches('/')
    );
    Store::create_root("s3://bucket/prefix").unwrap();
}

#[tokio::test]
async fn staging_files_are_never_listed_and_swept_once_they_are_old() {
    let (directory, store) = local();
    let mut upload = store.upload("a/big", 10, 1).await.unwrap();
    upload.write(bytes(1, 25)).await.unwrap();
    let staged = || {
        let entries = std::fs::read_dir(directory.path().join("a"));
        entries.map_or(0, |entries| entries.count())
    };
    assert_eq!(staged(), 1);
    assert_eq!(store.list("", None).await.unwrap(), []);
    assert_eq!(store.list_directory("").await.unwrap(), Listing::default());
    assert_eq!(store.list_directory("a").await.unwrap(), Listing::default());
    assert_eq!(
        store
            .sweep_leftovers("", Duration::from_secs(3600))
            .await
            .unwrap(),
        0
    );
    // Its writer is dead: nobody aborts it.
    std::mem::forget(upload);
    store.put("a/#1x", Bytes::new()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(
        store
            .sweep_leftovers("", Duration::from_millis(1))
            .await
            .unwrap(),
        1
    );
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_aborted_or_dropped_upload_leaves_no_file() {
    let (directory, store) = local();
    for abort in [true, false] {
        let mut upload = store.upload("a/big", 10, 2).await.unwrap();
        upload.write(bytes(1, 25)).await.unwrap();
        match abort {
            true => upload.abort().await,
            false => drop(upload),
        }
        let root = directory.path();
        eventually(
            || entries(root) == 0,
            "the file and its directory are removed",
        )
        .await;
    }
}

#[tokio::test]
async fn a_full_disk_says_so_and_is_not_tried_again() {
    let (_directory, store) = local();
    let store = store.with_faults("put=full".parse().unwrap());
    let error = store
        .put("a/y", Bytes::from_static(b"y"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::Full, false)
    );
    assert_eq!(store.retries(), 0);
    assert!(error.advice().unwrap().contains("free space"));
}

#[tokio::test]
async fn only_what_is_there_can_be_made_durable() {
    let (_directory, store) = local();
    store.put("a/b/c", Bytes::from_static(b"x")).await.unwrap();
    store.confirm_durable("a/b/c").await.unwrap();
    let error = store.confirm_durable("a/b/d").await.unwrap_err();
    assert!(error.to_string().contains("not there"), "{error}");
    assert_eq!(store.retries(), 0);
}

#[tokio::test]
async fn what_lies_on_the_disk_is_the_object_and_nothing_else() {
    let (directory, store) = local();
    store
        .put("c/1/x", Bytes::from_static(b"small"))
        .await
        .unwrap();
    let mut upload = store.upload("c/1/y", 4, 2).await.unwrap();
    upload
        .write(Bytes::from_static(b"large one"))
        .await
        .unwrap();
    upload.finish().await.unwrap();
    let read = |name: &str| std::fs::read(directory.path().join(Path::new(name))).unwrap();
    assert_eq!(read("c/1/x"), b"small");
    assert_eq!(read("c/1/y"), b"large one");
    assert_eq!(
        std::fs::read_dir(directory.path().join("c/1"))
            .unwrap()
            .count(),
        2
    );
}

#[tokio::test]
async fn stores_in_memory_share_what_they_hold_by_name_only() {
    let open = |url| Store::open(&settings(url)).unwrap();
    let name = "memory:///shared-by-this-test";
    open(name).put("k", Bytes::from_static(b"x")).await.unwrap();
    assert!(open(name).get("k").await.unwrap().is_some());
    assert!(open("memory:///").get("k").await.unwrap().is_none());
}
