//! docs/drill-report.md names every key of the report, and no other.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::render::sample;

const DOCUMENT: &str = include_str!("../../../docs/drill-report.md");

/// The keys that the first column of the document's tables names, from the JSON's chapter on.
fn documented() -> BTreeSet<String> {
    let (_, chapter) = DOCUMENT.split_once("## The JSON").unwrap();
    let rows = chapter.lines().filter(|line| line.starts_with("| `"));
    let keys = rows.flat_map(|row| {
        let cell = row.split('|').nth(1).unwrap_or_default();
        cell.split('`').skip(1).step_by(2)
    });
    keys.map(str::to_owned).collect()
}

/// The path of every value that is no object, with `[]` for the items of a list.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(_) if at == "rows" => {
            found.insert("rows.DATABASE.TABLE".to_owned());
        }
        Value::Object(object) => {
            for (key, value) in object {
                let dot = if at.is_empty() { "" } else { "." };
                paths(value, &format!("{at}{dot}{key}"), found);
            }
        }
        Value::Array(items) => {
            assert!(!items.is_empty(), "{at} is empty in the sample");
            for item in items {
                paths(item, &format!("{at}[]"), found);
            }
        }
        _ => {
            found.insert(at.to_owned());
        }
    }
}

#[test]
fn the_document_names_every_key_of_a_report_and_no_other() {
    let report = serde_json::to_value(sample::full()).unwrap();
    let mut keys = BTreeSet::new();
    paths(&report, "", &mut keys);
    let documented = documented();
    let unnamed: Vec<_> = keys.difference(&documented).collect();
    assert!(
        unnamed.is_empty(),
        "docs/drill-report.md lacks {unnamed:#?}"
    );
    let unknown: Vec<_> = documented.difference(&keys).collect();
    assert!(unknown.is_empty(), "no report has {unknown:#?}");
}
