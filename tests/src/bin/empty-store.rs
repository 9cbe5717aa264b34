//! Deletes everything in a store, for tests in which a region is lost: `empty-store URL`, with
//! the store's options in the environment. It is a program so that it can live by a test's
//! clock.

use seawall::storage::{Store, StoreSettings};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = std::env::args().nth(1).expect("usage: empty-store URL");
    let mut settings = StoreSettings::new(url);
    for (name, value) in std::env::vars() {
        if name.starts_with("aws_") {
            settings.options.set(name, value);
        }
    }
    let store = Store::open(&settings).expect("the store opens");
    for object in store.list("", None).await.expect("it lists") {
        store.delete(&object.key).await.expect("it deletes");
    }
    let left = store.list("", None).await.expect("it lists");
    assert!(left.is_empty(), "{left:?}");
}
