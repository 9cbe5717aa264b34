//! The direction of the arrows: which part of the workspace may know which other.
//!
//! Reads the sources of the five programs and their libraries, without comments and texts,
//! and follows every path that begins with `crate`, `super` or a package's name. What is not
//! named in [`LAYERS`] is the ground floor: it may use other parts of the ground floor alone,
//! and everybody may use it. ARCHITECTURE.md gives the reasons.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use seawall_tests::rust_source::{Token, tokens};

/// A part, and the parts that it may use beside the ground floor and itself.
#[rustfmt::skip]
const LAYERS: &[(&str, &str)] = &[
    ("config",     ""),
    // These two do not know each other.
    ("postgres",   "config"),
    ("storage",    "config"),
    ("repository", "config postgres storage"),
    ("wal",        "config postgres storage repository"),
    // Nor do these, but for a copy, which asks what its retention would keep.
    ("backup",     "config postgres storage repository wal"),
    ("retention",  "config postgres storage repository wal"),
    ("copy",       "config postgres storage repository wal retention"),
    ("heartbeat",  "config postgres storage repository wal"),
    // The doctor looks at all of them and changes nothing.
    ("doctor",     "config postgres storage repository wal retention copy"),
    // Looks at all of them, too, for those on call.
    ("status",     "config postgres storage repository wal retention copy"),
    // Packages of their own: the restore, and the drill, which uses it.
    ("seawall_restore", "config postgres storage repository wal backup"),
    ("seawall_drill",   "config postgres storage repository wal backup heartbeat seawall_restore"),
    // Runs everything on its schedule.
    ("daemon",     "config postgres storage repository wal backup copy retention status"),
    // Arguments and exit codes. Only the programs themselves know it.
    ("cli",        "config postgres storage repository wal backup copy retention heartbeat doctor status daemon"),
    ("main of src",         "config postgres storage repository wal backup copy retention daemon cli"),
    ("main of archive-cmd", "config postgres storage repository wal cli"),
    ("main of restore",     "config postgres storage repository wal backup cli seawall_restore"),
    ("main of verify",      "config postgres storage repository wal backup cli seawall_restore seawall_drill"),
];

/// Each package's directory, and the name by which Rust calls its library.
const PACKAGES: &[(&str, &str)] = &[
    ("src", "seawall"),
    ("archive-cmd", "seawall_archive"),
    ("restore", "seawall_restore"),
    ("verify", "seawall_drill"),
];

#[test]
fn every_arrow_points_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for (directory, _) in PACKAGES {
        collect(&root.join(directory), &mut files);
    }
    assert!(files.len() > 5, "the sources were not found");
    let modules = modules(&files, &root);
    let mut wrong = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let name = file.strip_prefix(&root).unwrap();
        wrong.extend(violations(name, &text, &modules));
    }
    assert!(
        wrong.is_empty(),
        "arrows that point the wrong way:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn a_planted_wrong_arrow_is_caught_however_it_is_written() {
    for (file, source) in [
        ("src/wal/push.rs", "use crate::backup::plan;"),
        (
            "src/wal/push.rs",
            "use crate::{error::Error, backup::{self, plan}};",
        ),
        ("src/wal/push.rs", "use super::super::backup::plan;"),
        ("src/wal/mod.rs", "fn f() { super::backup::plan() }"),
        (
            "src/wal/push.rs",
            "fn f() { let x = crate :: backup :: plan(); }",
        ),
        (
            "src/wal/push.rs",
            "mod tests { use super::super::super::backup::plan; }",
        ),
        ("src/postgres/lsn.rs", "use crate::storage::Store;"),
        ("src/storage/mod.rs", "use crate::postgres::Lsn;"),
        ("src/error.rs", "use crate::config::Config;"),
        (
            "src/durable.rs",
            "impl From<crate::storage::Error> for E {}",
        ),
        ("src/repository/keys.rs", "pub(in crate::wal) fn f() {}"),
        ("src/backup/mod.rs", "use crate::cli::Exit;"),
        ("src/wal/mod.rs", "use crate as top;"),
        ("src/wal/mod.rs", "use crate::*;"),
        ("src/wal/mod.rs", "use crate::Segment;"),
        ("src/retention/mod.rs", "use crate::copy::Lag;"),
        ("restore/src/lib.rs", "use seawall::cli::Arguments;"),
        ("restore/src/plan.rs", "use seawall_drill::report;"),
        ("restore/src/plan.rs", "use seawall::*;"),
        ("archive-cmd/src/main.rs", "use seawall_restore::plan;"),
        ("src/main.rs", "use seawall_restore::plan;"),
        ("src/cli/restore.rs", "use seawall_restore::plan;"),
    ] {
        let found = violations(Path::new(file), source, &test_modules());
        assert!(!found.is_empty(), "{file}: {source}");
    }
}

#[test]
fn right_arrows_comments_and_texts_are_let_through() {
    for (file, source) in [
        (
            "src/wal/push.rs",
            "use crate::{error::Error, repository::{keys, codec}};",
        ),
        (
            "src/wal/push.rs",
            "use super::fetch::Fetch; use self::inner::X; use super::*;",
        ),
        (
            "src/wal/push.rs",
            "// crate::backup\n/* crate::backup /* */ crate::cli */",
        ),
        (
            "src/wal/push.rs",
            r##"let a = "crate::backup"; let b = r#"crate::"cli"#;"##,
        ),
        (
            "src/wal/push.rs",
            "fn f<'a>(c: char) -> bool { c == '\"' || c == '\\'' } // \" crate::cli",
        ),
        (
            "src/wal/push.rs",
            "mod tests { use super::*; use super::super::fetch; }",
        ),
        (
            "src/backup/mod.rs",
            "use crate::wal::push; use crate::postgres::Lsn;",
        ),
        (
            "src/error.rs",
            "use crate::durable; pub use super::digest::PlainDigest;",
        ),
        (
            "src/repository/keys.rs",
            "pub(crate) fn f() { crate::error::Error::failed(1); }",
        ),
        (
            "restore/src/bin/seawall-fetch.rs",
            "use seawall::cli::fetch; use seawall_restore::x;",
        ),
        (
            "restore/src/lib.rs",
            "mod plan; use crate::plan::Plan; use seawall::backup::Chain;",
        ),
        (
            "verify/src/main.rs",
            "use seawall_restore::plan; use seawall::cli::drill;",
        ),
        ("src/lib.rs", "pub mod wal; pub use crate::error::Error;"),
        ("src/main.rs", "fn main() { seawall::cli::main() }"),
    ] {
        let found = violations(Path::new(file), source, &test_modules());
        assert!(found.is_empty(), "{file}: {source}\n{found:?}");
    }
}

#[test]
fn no_part_can_reach_itself_through_others() {
    fn reaches(from: &str, to: &str) -> bool {
        let used = LAYERS.iter().find(|layer| layer.0 == from);
        used.is_some_and(|layer| {
            let mut parts = layer.1.split_whitespace();
            parts.any(|part| part == to || reaches(part, to))
        })
    }
    for (part, _) in LAYERS {
        assert!(!reaches(part, part), "{part} is above itself");
    }
}

fn test_modules() -> BTreeSet<String> {
    let ground = ["error", "durable", "digest"];
    let named = LAYERS.iter().map(|layer| layer.0);
    ground.into_iter().chain(named).map(String::from).collect()
}

/// The wrong arrows of one file, as lines for people.
fn violations(file: &Path, source: &str, modules: &BTreeSet<String>) -> Vec<String> {
    let place = Place::of(file);
    if place.part == "lib" {
        // The root of the library names all its modules; that is no arrow.
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for path in paths(&tokens(source), &place) {
        let used = match used_part(&path, modules) {
            Ok(Some(used)) => used,
            Ok(None) => continue,
            Err(why) => {
                wrong.push(format!("  {}: {why}", file.display()));
                continue;
            }
        };
        if !allowed(&place.part, &used) {
            let (file, path) = (file.display(), path.join("::"));
            wrong.push(format!(
                "  {file}: {} may not use {used} ({path})",
                place.part
            ));
        }
    }
    wrong.dedup();
    wrong
}

fn allowed(user: &str, used: &str) -> bool {
    let of = |part| LAYERS.iter().find(|layer| layer.0 == part);
    // The ground floor is open to all.
    user == used
        || of(used).is_none()
        || of(user).is_some_and(|layer| layer.1.split_whitespace().any(|part| part == used))
}

/// The part that a path leads to: a module of `seawall`, or another package.
fn used_part(path: &[String], modules: &BTreeSet<String>) -> Result<Option<String>, String> {
    let package = path.first().map_or("", String::as_str);
    if package != "seawall" {
        return Ok(Some(package.to_owned()));
    }
    match path.get(1).map(String::as_str) {
        None => Err("names the library's root as a whole, which hides arrows".into()),
        Some(module) if modules.contains(module) => Ok(Some(module.to_owned())),
        Some("self") => Ok(None),
        Some(item) => Err(format!(
            "uses seawall::{item} past the module that has it, which hides an arrow"
        )),
    }
}

/// Where a file stands: its part, and its module path from its package's root on.
#[derive(Debug)]
struct Place {
    package: &'static str,
    part: String,
    module: Vec<String>,
}

impl Place {
    fn of(file: &Path) -> Self {
        let words: Vec<_> = file
            .with_extension("")
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let (directory, package) = PACKAGES
            .iter()
            .find(|(directory, _)| words[0] == *directory)
            .expect("a file of a known package");
        let skip = if words[0] == "src" { 1 } else { 2 };
        let mut module: Vec<String> = words[skip..].to_vec();
        if module.len() > 1 && module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let main = module[0] == "main" || module[0] == "bin";
        let part = match (main, *package, module[0].as_str()) {
            (true, ..) => format!("main of {directory}"),
            (_, "seawall", module) => module.to_owned(),
            (_, package, _) => package.to_owned(),
        };
        if main || module[0] == "lib" {
            module.clear();
        }
        Self {
            package,
            part,
            module,
        }
    }
}

/// Every path of the file that leads out of its package's module, or to its root: the package
/// first, then modules.
fn paths(tokens: &[Token], place: &Place) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut inline = Vec::new(); // depth of braces at which each `mod name {` began
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let before = at.checked_sub(1).map(|before| &tokens[before]);
        match &tokens[at] {
            Token::Sign('{') => {
                depth += 1;
                if let [Token::Word(word), Token::Word(_)] = &tokens[at.saturating_sub(2)..at]
                    && word == "mod"
                {
                    inline.push(depth);
                }
            }
            Token::Sign('}') => {
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
                depth -= 1;
            }
            // `a::crate` and `a.seawall` are no roots.
            Token::Word(word) if !matches!(before, Some(Token::Path | Token::Sign('.'))) => {
                let mut prefix = match word.as_str() {
                    "crate" => Some(vec![place.package.to_owned()]),
                    "super" => {
                        let mut module = vec![place.package.to_owned()];
                        module.extend(place.module.iter().cloned());
                        module.extend(inline.iter().map(|_| "inline".to_owned()));
                        module.pop();
                        Some(module)
                    }
                    name => PACKAGES
                        .iter()
                        .find(|package| package.1 == name)
                        .map(|package| vec![package.1.to_owned()]),
                };
                let next = tokens.get(at + 1);
                // `pub(crate)` and `extern crate` name no module.
                let leads_on = matches!(next, Some(Token::Path))
                    || matches!(next, Some(Token::Word(word)) if word == "as");
                if let Some(prefix) = prefix.take()
                    && leads_on
                {
                    follow(tokens, &mut (at + 1), prefix, &mut found);
                }
            }
            _ => {}
        }
        at += 1;
    }
    // A path inside one's own package but not at its root stays in the part.
    found
        .into_iter()
        .filter(|path| path.len() > 1 || path[0] == "seawall")
        .filter(|path| path[0] != place.package || place.package == "seawall")
        .collect()
}

/// Follows `::a::{b, c::d}` from a prefix on.
fn follow(tokens: &[Token], at: &mut usize, prefix: Vec<String>, found: &mut Vec<Vec<String>>) {
    if tokens.get(*at) != Some(&Token::Path) {
        found.push(prefix);
        return;
    }
    *at += 1;
    match tokens.get(*at) {
        Some(Token::Word(word)) => {
            let mut path = prefix;
            match word.as_str() {
                "super" => drop(path.pop()),
                word => path.push(word.to_owned()),
            }
            *at += 1;
            follow(tokens, at, path, found);
        }
        Some(Token::Sign('{')) => {
            *at += 1;
            while !matches!(tokens.get(*at), None | Some(Token::Sign('}'))) {
                match &tokens[*at] {
                    Token::Word(word) => {
                        let mut path = prefix.clone();
                        path.push(word.clone());
                        *at += 1;
                        follow(tokens, at, path, found);
                    }
                    Token::Sign('*') => {
                        found.push(prefix.clone());
                        *at += 1;
                    }
                    _ => *at += 1,
                }
                if matches!(tokens.get(*at), Some(Token::Word(word)) if word == "as") {
                    *at += 2;
                }
            }
            *at += 1;
        }
        // `*`, or `<` of a type's arguments.
        _ => found.push(prefix),
    }
}

/// The modules at the root of the library: what lies directly in `src`.
fn modules(files: &[PathBuf], root: &Path) -> BTreeSet<String> {
    files
        .iter()
        .filter_map(|file| file.strip_prefix(root.join("src")).ok())
        .filter_map(|file| file.with_extension("").iter().next().map(|w| w.to_owned()))
        .map(|word| word.to_string_lossy().into_owned())
        .filter(|word| word != "lib" && word != "main")
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
