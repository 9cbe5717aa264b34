//! A drill keeps to its limits, and stays apart from production.

use std::time::Duration;

use seawall_tests::cli::seawall;
use seawall_tests::guest::{LIMIT, SLOW, check, server_in, texts};
use seawall_tests::process::{process_tree, wait_until};
use seawall_tests::scratch::set_mode;
use seawall_tests::{Guest, Seed, Tmpfs};

fn status_of(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.expect("the kernel has it").trim().to_owned()
}

fn niceness(process: &str) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let behind = stat.rsplit_once(')').unwrap().1;
    behind.split_whitespace().nth(16).unwrap().parse().unwrap()
}

fn a_drill_keeps_to_its_processors_and_shares_out_its_memory(version: u32) {
    let site = Guest::new(version, &format!("processors = 2\nnice = 3\n{SLOW}"));
    let mut running = site.start(&["--processors", "1", "--memory", "300MiB"]);
    let server = server_in(&site.drills(), &mut running);
    let allowed = status_of(server, "Cpus_allowed_list:");
    assert!(allowed.parse::<u32>().is_ok(), "one processor: {allowed}");
    let drill = running.pid() as i32;
    assert_eq!(status_of(drill, "Cpus_allowed_list:"), allowed);
    for process in process_tree(server as u32) {
        assert_eq!(status_of(process as i32, "Cpus_allowed_list:"), allowed);
    }
    let first = std::fs::read_to_string(format!("/proc/{server}/oom_score_adj")).unwrap();
    assert_eq!(first.trim(), "800");
    let own = niceness("self");
    assert_eq!(niceness(&server.to_string()), (own + 3).min(19));
    let output = running.wait();
    let report = output.success().json();
    let environment = &report["environment"];
    let limits = &environment["limits"];
    assert_eq!(limits["processors"], 1);
    assert_eq!(limits["memory_bytes"], 300 << 20);
    assert_eq!(limits["nice"], 3);
    let used = environment["memory_used_bytes"].as_u64().unwrap();
    assert!(used > 20 << 20 && used < 300 << 20, "{used}");
    let disk = environment["scratch_used_bytes"].as_u64().unwrap();
    assert!(disk > 20 << 20 && disk < 2 << 30, "{disk}");
    let adapted = texts(&environment["adapted"]);
    // (300 - 64 - 48) / 4 MiB.
    assert!(
        adapted.contains("shared_buffers is 47MB; the source's is 32MB"),
        "{adapted}"
    );
    site.must_be_clean();
}

#[test]
fn a_drill_keeps_to_its_processors_and_shares_out_its_memory_on_15() {
    a_drill_keeps_to_its_processors_and_shares_out_its_memory(15);
}

#[test]
fn a_drill_keeps_to_its_processors_and_shares_out_its_memory_on_18() {
    a_drill_keeps_to_its_processors_and_shares_out_its_memory(18);
}

#[test]
fn too_little_memory_or_disk_is_refused_before_anything_is_restored() {
    let site = Guest::new(15, "memory = '100MiB'\n");
    let refused = site.drill(&[]).exits_with(2);
    let words = refused.stderr.split_whitespace();
    let least = words.filter_map(|word| word.parse::<u64>().ok()).next();
    let least = least.expect("the least is named");
    assert!(refused.stderr.contains("and 100 MiB are allowed"));
    // The least is enough, with every check that there is.
    site.add_program("pg_amcheck");
    let report = site
        .drill(&["--memory", &format!("{least}MiB")])
        .success()
        .json();
    assert_eq!(check(&report, "pg_amcheck")["outcome"], "passed");
    let used = report["environment"]["memory_used_bytes"].as_u64().unwrap();
    assert!(used <= least << 20, "{used}");
    site.drill(&["--memory", "1GiB", "--disk", "100MiB"])
        .exits_with(4)
        .says("100 MiB are allowed")
        .says("raise --disk or drill.disk");
    site.drill(&["--memory", "1GiB", "--disk", "2GiB"])
        .success();
    site.must_be_clean();
    if let Some(small) = Tmpfs::mount(&site.scratch, "small", 64) {
        let place = small.path().display().to_string();
        site.drill(&["--memory", "1GiB", "--scratch", &place])
            .exits_with(4)
            .says("MiB are free");
        site.must_be_clean_in(small.path());
    }
}

/// A question whose answer takes 2 GB of temporary files.
const GREEDY: &str = "[[drill.check]]\nname = 'greedy'\nsql = 'WITH big AS MATERIALIZED (SELECT repeat(md5(i::text), 32768) AS text FROM generate_series(1, 2000) i) SELECT sum(length(text)) FROM big'\nat_least = 1\n";

fn a_scratch_directory_that_outgrows_its_limit_ends_the_drill_with_a_report(version: u32) {
    let site = Guest::new(version, GREEDY);
    for keep in [&["--disk", "700MiB"][..], &["--disk", "700MiB", "--keep"]] {
        let report = site.drill(keep).exits_with(3).json();
        let reasons = texts(&report["reasons"]);
        assert!(
            reasons.contains("the scratch directory grew to") && reasons.contains("700 MiB"),
            "{reasons}"
        );
        let used = report["environment"]["scratch_used_bytes"]
            .as_u64()
            .unwrap();
        assert!(used > 700 << 20 && used < 1900 << 20, "{used}");
        site.must_be_clean();
    }
    // The result is kept, and the same drill passes where it may take what it needs.
    let list = seawall(&site.config).arg("list").run().success();
    assert!(list.stdout.contains("FAILED"), "{}", list.stdout);
    site.drill(&["--disk", "6GiB"]).success();
}

#[test]
fn a_scratch_directory_that_outgrows_its_limit_ends_the_drill_with_a_report_on_15() {
    a_scratch_directory_that_outgrows_its_limit_ends_the_drill_with_a_report(15);
}

#[test]
fn a_scratch_directory_that_outgrows_its_limit_ends_the_drill_with_a_report_on_18() {
    a_scratch_directory_that_outgrows_its_limit_ends_the_drill_with_a_report(18);
}

/// The drill's own appetite, or somebody else's.
#[test]
fn a_disk_that_fills_up_ends_the_drill_with_a_report_before_it_is_full() {
    let site = Guest::new(15, GREEDY);
    let Some(small) = Tmpfs::mount(&site.scratch, "small", 600) else {
        return;
    };
    let place = small.path().display().to_string();
    let report = site.drill(&["--scratch", &place]).exits_with(3).json();
    let reasons = texts(&report["reasons"]);
    assert!(
        reasons.contains("nearly full") || reasons.contains("No space left"),
        "{reasons}"
    );
    site.must_be_clean_in(small.path());

    let mut seed = Seed::new();
    for _ in 0..3 {
        let running = site.start(&["--scratch", &place]);
        wait_until("the drill is under way", LIMIT, || {
            let mut drills = std::fs::read_dir(&place).unwrap().flatten();
            drills.any(|drill| drill.path().join("data/base").exists())
        });
        std::thread::sleep(seed.part_of(Duration::from_millis(500)));
        let ballast = small.fill(8 << 20);
        let report = running.wait().exits_with(3).json();
        assert_ne!(texts(&report["reasons"]), "");
        std::fs::remove_file(ballast).unwrap();
        site.must_be_clean_in(small.path());
    }
}

#[test]
fn processes_that_outgrow_their_memory_end_the_drill_with_a_report() {
    let hungry = "[drill.settings]\nwork_mem = '2GB'\n[[drill.check]]\nname = 'hungry'\nsql = 'SELECT count(*) FROM (SELECT DISTINCT repeat(md5(i::text), 3000) FROM generate_series(1, 12000) i) d'\nat_least = 1\n";
    let site = Guest::new(15, hungry);
    let report = site.drill(&["--memory", "400MiB"]).exits_with(3).json();
    let reasons = texts(&report["reasons"]);
    assert!(
        reasons.contains("MiB of memory, and 400 MiB are allowed"),
        "{reasons}"
    );
    assert!(report["environment"]["memory_used_bytes"].as_u64().unwrap() > 400 << 20);
    site.must_be_clean();
}

fn the_walls_are_looked_at_and_nobody_can_take_them_down(version: u32) {
    let walls = "archive_mode = 'on'\narchive_command = 'false'\nlisten_addresses = '*'\nunix_socket_permissions = '0777'\nunix_socket_directories = '/tmp'\nmax_logical_replication_workers = '4'\nprimary_conninfo = 'host=127.0.0.1'\n";
    let site = Guest::build(
        version,
        &format!("[drill.settings]\n{walls}{SLOW}"),
        |builder| builder.tablespace("fast"),
        |cluster| {
            cluster.sql("CREATE TABLE f TABLESPACE fast AS SELECT 1");
        },
    );
    let mut running = site.start(&[]);
    let server = server_in(&site.drills(), &mut running);
    // The same with other eyes: no process of the server's may listen anywhere.
    let table = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap();
    let tables = table("tcp") + &table("tcp6");
    let listening: Vec<&str> = tables
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("0A"))
        .filter_map(|line| line.split_whitespace().nth(9))
        .collect();
    for process in process_tree(server as u32) {
        for fd in std::fs::read_dir(format!("/proc/{process}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let target = std::fs::read_link(fd.path()).unwrap_or_default();
            let inode = target
                .to_string_lossy()
                .replace("socket:[", "")
                .replace(']', "");
            assert!(!listening.contains(&inode.as_str()), "it listens: {inode}");
        }
    }
    let report = running.wait().success().json();
    let isolation = report["environment"]["isolation"].as_array().unwrap();
    // The last one is the kernel's, which may be too old for it.
    assert_eq!(isolation.len(), 7, "{isolation:#?}");
    for wall in &isolation[..6] {
        assert_eq!(wall["held"], true, "{wall}");
    }
    let proofs: String = isolation
        .iter()
        .map(|wall| wall["proof"].to_string())
        .collect();
    for words in [
        "sockets of",
        "archive_mode is off",
        "max_logical_replication_workers is 0",
        "1 tablespaces, links followed: all within",
        "with mode 0700",
        "the memory of the postmaster and of a session holds no other",
    ] {
        assert!(proofs.contains(words), "{words}: {proofs}");
    }
    let adapted = texts(&report["environment"]["adapted"]);
    assert!(
        adapted.contains("archive_mode of [drill.settings] is not taken"),
        "{adapted}"
    );
    let environment = &report["environment"];
    assert!(environment["system"].as_str().unwrap().starts_with("Linux"));
    assert!(environment["memory_bytes"].as_u64().unwrap() > 0);
    assert!(environment["scratch_free_bytes"].as_u64().unwrap() > 0);
    site.must_be_clean();
}

#[test]
fn the_walls_are_looked_at_and_nobody_can_take_them_down_on_15() {
    the_walls_are_looked_at_and_nobody_can_take_them_down(15);
}

#[test]
fn the_walls_are_looked_at_and_nobody_can_take_them_down_on_18() {
    the_walls_are_looked_at_and_nobody_can_take_them_down(18);
}

#[test]
fn a_wall_that_falls_while_the_instance_runs_fails_the_drill() {
    let site = Guest::new(15, SLOW);
    let mut running = site.start(&[]);
    server_in(&site.drills(), &mut running);
    let drill = std::fs::read_dir(site.drills()).unwrap().flatten().next();
    let drill = drill.expect("it runs").path();
    let is_socket = |path: &std::path::Path| path.join(".s.PGSQL.5432").exists();
    let below = std::fs::read_dir(&drill).unwrap().flatten();
    let sockets = below.map(|entry| entry.path()).chain(site.sockets());
    let sockets = sockets.chain([drill]).find(|path| is_socket(path));
    set_mode(&sockets.expect("it is there"), 0o755);
    let report = running.wait().exits_with(3).json();
    let reasons = texts(&report["reasons"]);
    assert!(
        reasons.contains("a socket for this user alone: it held at first, and not after"),
        "{reasons}"
    );
    site.must_be_clean();
}

fn a_wall_that_does_not_hold_fails_the_drill(version: u32) {
    let site = Guest::new(version, "");
    site.drill(&[]).success();
    // A server that does otherwise than its settings say: what the command line says wins.
    let server = site.cluster.version().bin.join("postgres");
    let program = site.scratch.join("programs/postgres");
    std::fs::remove_file(&program).unwrap();
    let lead_to = |settings: &str| {
        let text = format!("#!/bin/sh\nexec '{}' \"$@\" {settings}\n", server.display());
        std::fs::write(&program, text).unwrap();
        set_mode(&program, 0o755);
    };
    // A port: the kernel refuses it, or it is seen.
    lead_to(&format!("-c listen_addresses=127.7.7.{version}"));
    let report = site.drill(&[]).exits_with(3).json();
    let reasons = texts(&report["reasons"]);
    let listens = format!("it listens on tcp {version:02X}07077F:1538");
    assert!(
        reasons.contains("could not create any TCP/IP sockets") || reasons.contains(&listens),
        "{reasons}"
    );
    lead_to(
        "-c archive_mode=on -c archive_command=false -c session_preload_libraries=plpgsql -c max_logical_replication_workers=4",
    );
    let report = site.drill(&[]).exits_with(3).json();
    let reasons = texts(&report["reasons"]);
    for words in [
        "nothing is archived: archive_mode is on",
        "postgres: archiver",
        "no replication from anywhere: max_logical_replication_workers is 4",
        "postgres: logical replication launcher",
    ] {
        assert!(reasons.contains(words), "{words}: {reasons}");
    }
    let walls = report["environment"]["isolation"].as_array().unwrap();
    let fallen = walls.iter().filter(|wall| wall["held"] == false).count();
    // Sessions of the drill load nothing whatever the server's settings say.
    assert_eq!(fallen, 2, "{walls:#?}");
    site.must_be_clean();
}

#[test]
fn a_wall_that_does_not_hold_fails_the_drill_on_15() {
    a_wall_that_does_not_hold_fails_the_drill(15);
}

#[test]
fn a_wall_that_does_not_hold_fails_the_drill_on_18() {
    a_wall_that_does_not_hold_fails_the_drill(18);
}
