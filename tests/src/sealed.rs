//! JSON objects of a repository that a test made up, with the seal that a writer would put on
//! them (docs/repository-format.md).

use seawall::digest::StoredDigest;
use serde_json::Value;

/// The object with a seal, in place of one that it may have.
pub fn sealed(mut object: Value) -> Vec<u8> {
    object.as_object_mut().unwrap().shift_remove("sha256");
    let text = serde_json::to_string_pretty(&object).unwrap();
    let text = format!("{},\n", text.strip_suffix("\n}").unwrap());
    let seal = StoredDigest::of(text.as_bytes());
    format!("{text}  \"sha256\": \"{seal}\"\n}}\n").into_bytes()
}
