//! What lies in deploy/ is taken by the tools that judge it.

use std::path::{Path, PathBuf};

use seawall_tests::Scratch;
use seawall_tests::process::Run;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The highest exposure that `systemd-analyze security` may find, in tenths: docs/reference.md
/// names what it is.
const EXPOSURE: &str = "--threshold=22";

#[test]
fn the_systemd_unit_is_right_and_hardened() {
    let scratch = Scratch::new();
    let unit = root().join("deploy/systemd/seawall.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/seawall daemon\n"));
    let of_this_machine = unit.replace("/usr/bin/seawall", "/bin/true");
    let file = scratch.file("seawall.service", of_this_machine);
    let verified = Run::new("systemd-analyze")
        .arg("verify")
        .arg(&file)
        .run()
        .success();
    // What it does not know it only warns of.
    assert_eq!(verified.stderr, "");
    let judged = Run::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", EXPOSURE])
        .arg(&file)
        .run();
    judged.success();
}
