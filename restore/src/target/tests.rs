use super::refusals::is_empty;
use super::*;

#[test]
fn directories_within_each_other_are_seen_through_links() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    symlink(root.join("a"), root.join("link")).unwrap();
    assert!(is_same_or_within(&root.join("link/b"), &root.join("a")));
    assert!(is_same_or_within(&root.join("link"), &root.join("a")));
    assert!(is_same_or_within(
        &root.join("link/new/deep"),
        &root.join("a")
    ));
    assert!(!is_same_or_within(&root.join("ab"), &root.join("a")));
    assert!(is_same_or_within(&root.join("new/x"), &root.join("new")));
}

#[test]
fn a_running_server_is_refused_and_a_stale_pid_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let pid = scratch.path().join("postmaster.pid");
    durable::write_file(&pid, format!("{}\n", std::process::id()).as_bytes(), 0o600).unwrap();
    assert!(refuse_running(scratch.path()).is_err());
    durable::write_file(&pid, b"2147483646\n", 0o600).unwrap();
    assert!(refuse_running(scratch.path()).is_ok());
    durable::write_file(&pid, b"1\n", 0o600).unwrap();
    assert!(
        refuse_running(scratch.path()).is_err(),
        "the server of a container"
    );
    durable::write_file(&pid, format!("-{}\n", std::process::id()).as_bytes(), 0o600).unwrap();
    assert!(refuse_running(scratch.path()).is_err(), "a single user");
    durable::write_file(&pid, b"not a pid\n", 0o600).unwrap();
    assert!(
        refuse_running(scratch.path()).is_err(),
        "a doubt is a refusal"
    );
}

#[test]
fn a_mark_that_has_no_name_yet_is_nothing_and_anything_else_is_something() {
    let scratch = tempfile::tempdir().unwrap();
    File::create(scratch.path().join("seawall-restore.json.seawall-tmp")).unwrap();
    assert!(is_empty(scratch.path()).unwrap());
    File::create(scratch.path().join("other.seawall-tmp")).unwrap();
    assert!(!is_empty(scratch.path()).unwrap());
}

#[test]
fn force_replaces_a_cluster_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    assert!(previous_cluster(scratch.path()).unwrap().is_empty());
    File::create(scratch.path().join("holiday.jpg")).unwrap();
    assert!(previous_cluster(scratch.path()).is_err());
}

#[test]
fn a_wal_directory_may_hold_what_the_server_and_seawall_keep_there_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let entry = |name: &str| std::fs::create_dir(scratch.path().join(name)).unwrap();
    entry("archive_status");
    entry("seawall");
    entry("000000010000000000000001");
    refuse_other_than_wal(scratch.path()).unwrap();
    entry("seawall.old");
    let refused = refuse_other_than_wal(scratch.path()).unwrap_err();
    assert!(refused.to_string().contains("seawall.old"), "{refused}");
}
