//! Who may look at what the daemon shows, and that nobody who looks holds up a backup.

use std::time::Duration;

use seawall_tests::process::Run;
use seawall_tests::served::Served;
use seawall_tests::site::PATIENCE;
use seawall_tests::wait_until;

#[test]
fn nobody_looks_without_the_token_and_over_tls_everybody_with_it() {
    let served = Served::new("");
    let tls = served.site.scratch.directory("tls");
    let made = Run::new("bash")
        .args([
            "-c",
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -keyout key -out crt -subj /CN=server -days 2 -addext subjectAltName=DNS:localhost",
        ])
        .directory(&tls)
        .run();
    made.success();
    std::fs::write(tls.join("token"), "not-for-everybody\n").unwrap();
    let file = |name: &str| tls.join(name).display().to_string();
    seawall_tests::scratch::give_tree_to_owner(&tls);
    served.configure(&format!(
        "tls_certificate = \"{}\"\ntls_key = \"{}\"\ntoken = {{ file = \"{}\" }}\n",
        file("crt"),
        file("key"),
        file("token")
    ));
    let mut daemon = served.start();
    daemon.wait_for("metrics and status page: https://");
    let trusted = file("crt");
    let ask = |path: &str, more: &[&str]| {
        let more = [&["--cacert", &trusted], more].concat();
        served.get("https", path, &more).success().stdout
    };
    for path in ["/", "/metrics", "/status.json", "/nothing"] {
        for wrong in [
            &[][..],
            &["--user", "me:wrong"],
            &["--oauth2-bearer", "wrong"],
        ] {
            let answer = ask(path, wrong);
            assert!(
                answer.starts_with("HTTP/1.1 401"),
                "{path} {wrong:?}: {answer}"
            );
            assert!(!answer.contains("main"), "{answer}");
        }
    }
    for right in [
        ["--user", "me:not-for-everybody"],
        ["--oauth2-bearer", "not-for-everybody"],
    ] {
        for path in ["/", "/metrics", "/status.json"] {
            let answer = ask(path, &right);
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
        // Nothing is changed here.
        for method in ["POST", "PUT", "DELETE"] {
            let answer = ask("/", &[&right[..], &["--request", method]].concat());
            assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
        }
    }
    // Whether it lives may be asked by anybody, who learns nothing else. (No server runs here.)
    assert!(ask("/healthz", &[]).starts_with("HTTP/1.1 200"));
    assert!(!ask("/readyz", &[]).contains("main"));
    // An empty token is none.
    std::fs::write(tls.join("token"), "\n").unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.wait_for("http.token is empty");
    std::fs::write(tls.join("token"), "another\n").unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the new token counts", PATIENCE, || {
        let more = ["--cacert", &trusted, "--user", "me:another"];
        let answer = served.get("https", "/metrics", &more);
        answer.stdout.starts_with("HTTP/1.1 200")
    });
    assert!(
        !daemon.log().contains("not-for-everybody"),
        "{}",
        daemon.log()
    );
    daemon.stop();
}

#[test]
fn a_port_that_is_taken_stops_no_backup_and_is_served_once_it_is_free() {
    let served = Served::running();
    let other = std::net::TcpListener::bind(("127.0.0.1", served.port)).unwrap();
    let daemon = served.start();
    daemon.wait_for("metrics and status page are not served");
    seawall_tests::daemon::wait_for_backups(&daemon, &served.site.near, 1);
    drop(other);
    // Connections that say nothing hold up nobody for long, and take no file from a backup.
    wait_until("it is served", Duration::from_secs(60), || {
        served.get("http", "/healthz", &[]).code == 0
    });
    let idle: Vec<_> = (0..200)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", served.port)).unwrap())
        .collect();
    let files = || {
        std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .count()
    };
    std::thread::sleep(Duration::from_secs(1));
    assert!(files() < 120, "{} files are open", files());
    drop(idle);
    wait_until("it is served again", Duration::from_secs(240), || {
        served.get("http", "/healthz", &["--max-time", "5"]).code == 0
    });
    daemon.stop();
}
