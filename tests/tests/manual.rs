//! docs/man and docs/completions are what the programs' arguments say. They are written anew by
//! `SEAWALL_WRITE_DOCS=1 cargo nextest run --workspace --test manual`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use seawall::cli::siblings::SIBLINGS;

fn programs() -> Vec<Command> {
    vec![
        seawall::cli::Seawall::command(),
        seawall::cli::archive::ArchiveArgs::command().name("seawall-archive"),
        seawall::cli::fetch::FetchArgs::command().name("seawall-fetch"),
        seawall::cli::restore::RestoreArgs::command().name("seawall-restore"),
        seawall::cli::drill::DrillArgs::command().name("seawall-drill"),
    ]
}

/// The pages of a command and of all that stand below it, by their files' names.
fn pages(command: Command, name: &str, into: &mut BTreeMap<String, Vec<u8>>) {
    let siblings: Vec<&str> = SIBLINGS.iter().map(|(verb, _)| *verb).collect();
    for verb in command.get_subcommands() {
        let own = verb.get_name();
        // Those have pages of their own as programs.
        if own != "help" && !(name == "seawall" && siblings.contains(&own)) {
            pages(verb.clone(), &format!("{name}-{own}"), into);
        }
    }
    // clap wants names that live as long as the program.
    let leaked: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let named = command.name(leaked).bin_name(leaked);
    let mut page = Vec::new();
    let manual = clap_mangen::Man::new(named)
        .date("")
        .source("Seawall")
        .manual("Seawall");
    manual.render(&mut page).unwrap();
    into.insert(format!("man/{name}.1"), page);
}

fn expected() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for mut program in programs() {
        let name = program.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut program, &name, &mut text);
            let file = match shell {
                Shell::Zsh => format!("completions/_{name}"),
                shell => format!("completions/{name}.{shell}"),
            };
            files.insert(file, text);
        }
        program.build();
        pages(program, &name, &mut files);
    }
    files
}

fn stored(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for directory in ["man", "completions"] {
        let entries = std::fs::read_dir(root.join(directory))
            .into_iter()
            .flatten();
        for entry in entries.flatten() {
            let name = format!("{directory}/{}", entry.file_name().to_string_lossy());
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    files
}

#[test]
fn man_pages_and_completions_are_not_stale() {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let expected = expected();
    if std::env::var_os("SEAWALL_WRITE_DOCS").is_some() {
        for directory in ["man", "completions"] {
            let _ = std::fs::remove_dir_all(root.join(directory));
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        for (name, text) in &expected {
            std::fs::write(root.join(name), text).unwrap();
        }
        return;
    }
    let stored = stored(&root);
    let stale = expected
        .iter()
        .filter(|(name, text)| stored.get(*name) != Some(text));
    let gone = stored.keys().filter(|name| !expected.contains_key(*name));
    let wrong: Vec<&String> = stale.map(|(name, _)| name).chain(gone).collect();
    assert!(
        wrong.is_empty(),
        "stale, see the head of this file: {wrong:?}"
    );
    assert!(expected.len() > 30);
}
