//! Real servers.

use bytes::Bytes;

use super::super::conformance::{bytes, conformance};
use super::super::testing::{AzuriteServer, GarageServer, GoogleServer, MotoServer};
use super::failing::survives_any_single;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn garage_conforms_and_its_refusals_are_errors() {
    let garage = GarageServer::start();
    let near = StoreSettings {
        retry: quick(),
        ..garage.settings(&garage.near, "some/prefix")
    };
    let store = Store::open(&near).unwrap();
    conformance(&store).await;
    assert_eq!(store.retries(), 0);
    let probed = store.probe_create_only("").await.unwrap();
    assert_eq!(
        probed,
        CreateOnly::Ignored,
        "Garage learned create-only: say so in the docs"
    );

    // Two prefixes of one bucket, and two buckets, do not see each other.
    store.put("k", Bytes::from_static(b"near")).await.unwrap();
    for (bucket, prefix) in [
        (&garage.near, "some"),
        (&garage.near, "some/pre"),
        (&garage.far, "some/prefix"),
    ] {
        let other = Store::open(&garage.settings(bucket, prefix)).unwrap();
        assert_eq!(other.get("k").await.unwrap(), None, "{bucket}/{prefix}");
    }

    // Garage replaces what a create-only write finds: here the fallback is what protects.
    survives_any_single("lost", || store.clone(), 5 * 1024 * 1024).await;

    wrong_bucket(&garage).await;
    wrong_secret(&garage).await;
    let mut garage = garage;
    garage.kill();
    let error = store.get("k").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::Unavailable, true)
    );
    assert_eq!(store.retries(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite_conforms_and_its_refusals_are_errors() {
    let azurite = AzuriteServer::start();
    let open = |container: &str| {
        let settings = azurite.settings(container, "some/prefix");
        Store::open(&StoreSettings {
            retry: quick(),
            ..settings
        })
        .unwrap()
    };
    let store = open(&azurite.container);
    conformance(&store).await;
    assert_eq!(store.retries(), 0);
    assert_eq!(
        store.probe_create_only("").await.unwrap(),
        CreateOnly::Enforced
    );
    survives_any_single("lost", || store.clone(), 5 * 1024 * 1024).await;

    every_operation_fails(&open("no-such-container"), ErrorKind::Misconfigured).await;
    let mut settings = azurite.settings(&azurite.container, "p");
    settings
        .options
        .set("azure_storage_account_key", "d3Jvbmc=");
    every_operation_fails(&Store::open(&settings).unwrap(), ErrorKind::Denied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_with_create_only_writes_conforms() {
    let moto = MotoServer::start();
    let settings = moto.settings("some/prefix");
    let store = Store::open(&StoreSettings {
        retry: quick(),
        ..settings
    })
    .unwrap();
    conformance(&store).await;
    assert_eq!(store.retries(), 0);
    assert_eq!(
        store.probe_create_only("").await.unwrap(),
        CreateOnly::Enforced
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_interface_conforms() {
    let google = GoogleServer::start();
    let settings = google.settings("some/prefix");
    let store = Store::open(&StoreSettings {
        retry: quick(),
        ..settings
    })
    .unwrap();
    conformance(&store).await;
    assert_eq!(store.retries(), 0);
    assert_eq!(
        store.probe_create_only("").await.unwrap(),
        CreateOnly::Enforced
    );
}

async fn every_operation_fails(store: &Store, kind: ErrorKind) {
    let body = || Bytes::from_static(b"x");
    let upload = async {
        let mut upload = store.upload("big", 1, 1).await?;
        upload.write(bytes(1, 6 * 1024 * 1024)).await?;
        upload.finish().await
    };
    let failures = [
        store.get("k").await.map(drop).unwrap_err(),
        store.get_range("k", 0..1).await.map(drop).unwrap_err(),
        store.head("k").await.map(drop).unwrap_err(),
        store.put("k", body()).await.unwrap_err(),
        store.put_new("k", body()).await.map(drop).unwrap_err(),
        store.delete("k").await.unwrap_err(),
        store.list("", None).await.map(drop).unwrap_err(),
        store.list_directory("").await.map(drop).unwrap_err(),
        store.probe_create_only("").await.map(drop).unwrap_err(),
        upload.await.map(drop).unwrap_err(),
    ];
    for error in failures {
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(!error.is_retryable(), "{error:?}");
        assert!(error.advice().is_some(), "{error:?}");
    }
    assert_eq!(store.retries(), 0);
}

async fn wrong_bucket(garage: &GarageServer) {
    let store = Store::open(&garage.settings("no-such-bucket", "p")).unwrap();
    every_operation_fails(&store, ErrorKind::Misconfigured).await;
}

async fn wrong_secret(garage: &GarageServer) {
    let mut settings = garage.settings(&garage.near, "p");
    settings.options.set("aws_secret_access_key", "wrong");
    every_operation_fails(&Store::open(&settings).unwrap(), ErrorKind::Denied).await;
}
