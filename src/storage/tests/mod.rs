//! The promises of this module, each a test. What every store must do is in `conformance`.

mod answers;
mod failing;
mod files;
mod servers;
mod uploads;

use std::time::Duration;

use super::*;

/// Retries without waiting for them.
fn quick() -> RetryPolicy {
    RetryPolicy {
        attempts: 4,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(4),
        slowest_link: 256 << 10,
        attempt_timeout: Duration::from_secs(20),
        total_deadline: Duration::from_secs(60),
    }
}

fn settings(url: &str) -> StoreSettings {
    StoreSettings {
        retry: quick(),
        ..StoreSettings::new(url)
    }
}

/// A store of local files in a directory of its own.
fn local() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().display());
    (directory, Store::open(&settings(&url)).unwrap())
}

fn memory() -> Store {
    Store::open(&settings("memory:///")).unwrap()
}

#[test]
fn futures_of_a_store_can_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let (store, body) = (memory(), bytes::Bytes::new);
    is_send(store.get("k"));
    is_send(store.get_range("k", 0..1));
    is_send(store.get_stream("k"));
    is_send(store.put("k", body()));
    is_send(store.put_new("k", body()));
    is_send(store.head("k"));
    is_send(store.delete("k"));
    is_send(store.list("k", None));
    is_send(store.list_stream("k", None));
    is_send(store.list_directory("k"));
    is_send(store.confirm_durable("k"));
    is_send(store.sweep_leftovers("k", Duration::ZERO));
    is_send(store.probe_create_only("k"));
    is_send(async {
        let mut upload = store.upload("k", 1, 1).await.unwrap();
        upload.write(body()).await.unwrap();
        upload.finish().await.unwrap();
    });
}
