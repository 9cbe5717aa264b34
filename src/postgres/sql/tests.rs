//! Sessions with a real server: over a Unix socket, TCP and TLS, with all privileges and with
//! the least.

use super::*;
use crate::postgres::connection::Surroundings;
use crate::postgres::control::ControlFile;
use crate::postgres::label::{BackupLabel, parse_tablespace_map};
use crate::postgres::testing::{Server, openssl};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

async fn connect(text: &str) -> Result<Client> {
    let around = Surroundings {
        user: Some("postgres".into()),
        ..Surroundings::default()
    };
    Client::connect(&ConnectionString::parse(text, &around)?).await
}

fn socket(server: &Server) -> String {
    format!("host={} port={}", server.path().display(), server.port())
}

fn tcp(server: &Server) -> String {
    format!("host=localhost port={}", server.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_answers_over_a_socket_and_over_tcp() {
    let server = Server::start();
    let control = ControlFile::read(&server.data()).unwrap();
    for place in [
        socket(&server),
        tcp(&server),
        format!("{} hostaddr=127.0.0.1", tcp(&server)),
    ] {
        let client = connect(&place).await.unwrap();
        assert_eq!(client.major(), server.major());
        assert_eq!(client.system_identifier().await.unwrap(), control.system_id);
        assert_eq!(client.current_timeline().await.unwrap(), TimelineId::FIRST);
        assert!(!client.is_in_recovery().await.unwrap());
        assert_eq!(client.last_replay_lsn().await.unwrap(), None);
        let settings = client
            .settings(&["wal_segment_size", "port", "no_such"])
            .await
            .unwrap();
        assert_eq!(settings.len(), 2);
        assert_eq!(settings["port"].value, server.port().to_string());
        assert_eq!(settings["wal_segment_size"].unit.as_deref(), Some("B"));
        let name = client.query_text("SHOW application_name").await.unwrap();
        assert_eq!(name.as_deref(), Some("seawall"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_server_and_never_the_password() {
    let mut server = Server::create(&[], "");
    server.write(
        &server.data().join("pg_hba.conf"),
        "local all all trust\nhost all nobody 127.0.0.1/32 reject\n\
         host all all 127.0.0.1/32 scram-sha-256\n",
    );
    server.launch();
    server.sql("create role ann login password 'right'");
    let place = format!("{} user=ann dbname=postgres", tcp(&server));
    assert!(connect(&format!("{place} password=right")).await.is_ok());
    let passfile = server.path().join("pass");
    crate::durable::write_file(&passfile, b"localhost:*:*:ann:right\n", 0o600).unwrap();
    let with_file = format!("{place} passfile={}", passfile.display());
    assert!(connect(&with_file).await.is_ok());

    let error = connect(&format!("{place} password=secret"))
        .await
        .unwrap_err();
    let text = error.to_string();
    let named = format!(
        "host=localhost port={} user=ann dbname=postgres",
        server.port()
    );
    assert!(
        text.contains(&named) && text.contains("pg_hba.conf"),
        "{text}"
    );
    assert!(!text.contains("secret") && !error.is_retryable(), "{text}");

    crate::durable::write_file(&passfile, b"*:*:*:*:right\n", 0o644).unwrap();
    let text = connect(&with_file).await.unwrap_err().to_string();
    assert!(text.contains("chmod 0600"), "{text}");

    let text = connect(&format!("{} user=nobody", tcp(&server)))
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("pg_hba.conf rejects"), "{text}");

    let nowhere = format!("host={} port=1", server.path().display());
    let error = connect(&nowhere).await.unwrap_err();
    assert!(
        error.is_retryable() && error.to_string().contains("running"),
        "{error}"
    );
    server.stop();
    assert!(connect(&place).await.unwrap_err().is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_server_that_will_do_is_taken() {
    let server = Server::start();
    let (directory, port) = (server.path().display().to_string(), server.port());
    let list = format!("host={directory},{directory} port=1,{port}");
    let client = connect(&format!("{list} target_session_attrs=primary"))
        .await
        .unwrap();
    assert_eq!(
        client.place(),
        format!("{} user=postgres dbname=postgres", socket(&server))
    );
    for unfit in ["standby", "read-only"] {
        let wanted = format!("{list} target_session_attrs={unfit}");
        let text = connect(&wanted).await.unwrap_err().to_string();
        assert!(
            text.contains("none of the servers") && text.contains("target_session_attrs"),
            "{text}"
        );
    }
    assert!(
        connect(&format!("{list} target_session_attrs=read-write"))
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_given_up() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = connect(&format!("host=127.0.0.1 port={port} connect_timeout=1")).await;
    let error = error.unwrap_err();
    assert!(
        error.is_retryable() && error.what().contains("within 2 s"),
        "{error}"
    );
}

async fn uses_tls(text: &str) -> bool {
    let client = connect(text)
        .await
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    client.query_text(sql).await.unwrap().as_deref() == Some("t")
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_proves_what_sslmode_asks_for() {
    let server = Server::with_tls();
    let file = |name: &str| server.path().join(name).display().to_string();
    let (ca, other) = (file("ca.crt"), file("other.crt"));
    let by = |host: &str, rest: &str| format!("host={host} port={} {rest}", server.port());
    for (host, rest, tls) in [
        ("localhost", "sslmode=disable", false),
        ("localhost", "sslmode=allow", false),
        ("localhost", "sslmode=prefer", true),
        ("localhost", "sslmode=require", true),
        ("127.0.0.1", "sslmode=require", true),
        (
            "127.0.0.1",
            &format!("sslmode=require sslrootcert={ca}"),
            true,
        ),
        (
            "127.0.0.1",
            &format!("sslmode=verify-ca sslrootcert={ca}"),
            true,
        ),
        (
            "localhost",
            &format!("sslmode=verify-full sslrootcert={ca}"),
            true,
        ),
        // libpq too goes on without TLS where TLS is merely preferred.
        (
            "localhost",
            &format!("sslmode=prefer sslrootcert={other}"),
            false,
        ),
    ] {
        assert_eq!(uses_tls(&by(host, rest)).await, tls, "{host} {rest}");
    }
    let socket = format!("{} sslmode=verify-full", socket(&server));
    assert!(!uses_tls(&socket).await);
    for (host, rest, why) in [
        (
            "127.0.0.1",
            format!("sslmode=verify-full sslrootcert={ca}"),
            "not valid for",
        ),
        (
            "localhost",
            format!("sslmode=verify-full sslrootcert={other}"),
            "UnknownIssuer",
        ),
        (
            "localhost",
            format!("sslmode=verify-ca sslrootcert={other}"),
            "UnknownIssuer",
        ),
        (
            "localhost",
            format!("sslmode=require sslrootcert={other}"),
            "UnknownIssuer",
        ),
        (
            "localhost",
            "sslmode=verify-full".into(),
            "sslrootcert=FILE",
        ),
        (
            "localhost",
            format!("sslmode=verify-ca sslrootcert={}", file("none")),
            "cannot read",
        ),
        (
            "localhost",
            format!("sslmode=verify-ca sslrootcert={}", file("names")),
            "no certificate",
        ),
        (
            "localhost",
            "sslmode=verify-full sslrootcert=system".into(),
            "UnknownIssuer",
        ),
    ] {
        let error = connect(&by(host, &rest)).await.expect_err(&rest);
        let text = error.to_string();
        let known =
            text.contains(why) || (rest.contains("system") && text.contains("root certificates"));
        assert!(known && !error.is_retryable(), "{rest}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_certificate_is_trusted_by_naming_it() {
    let mut server = Server::with_tls();
    server.stop();
    // As PostgreSQL's documentation makes one: it is its own authority.
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let directory = server.path();
    openssl(
        &directory,
        &format!(
            "req -x509 {key} -keyout server.key -out server.crt -subj /CN=x -days 2 -addext subjectAltName=DNS:localhost"
        ),
    );
    server.give_away(&directory.join("server.key"));
    server.launch();
    let own = format!(
        "port={} sslrootcert={}/server.crt",
        server.port(),
        directory.display()
    );
    assert!(uses_tls(&format!("host=localhost {own} sslmode=verify-full")).await);
    assert!(uses_tls(&format!("host=127.0.0.1 {own} sslmode=verify-ca")).await);
    let wrong = format!("host=127.0.0.1 {own} sslmode=verify-full");
    assert!(connect(&wrong).await.is_err());
}

/// The role of the documentation, without superuser.
fn least_role(server: &Server) {
    let functions = match server.major() {
        14 => "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)",
        _ => "pg_backup_start(text, boolean), pg_backup_stop(boolean)",
    };
    server.sql(&format!(
        "create role seawall login; grant pg_monitor, pg_read_all_settings to seawall; \
         grant execute on function {functions}, pg_switch_wal(), pg_create_restore_point(text) to seawall"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_works_with_the_least_privilege() {
    let server = Server::with(&[], "statement_timeout = '1s'\nidle_session_timeout = '1s'");
    least_role(&server);
    // A path in no encoding at all.
    let odd = server.path().join(OsStr::from_bytes(b"\xff\xe9\n"));
    std::fs::create_dir(&odd).unwrap();
    server.give_away(&odd);
    let link = server.data().join("pg_tblspc/99999");
    std::os::unix::fs::symlink(&odd, &link).unwrap();
    server.give_away(&odd);

    let client = connect(&format!("{} user=seawall dbname=postgres", socket(&server)))
        .await
        .unwrap();
    let start = client.backup_start("it's a label", true).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await; // Longer than the time-outs.
    let before = client
        .query_text("SELECT pg_current_xact_id()")
        .await
        .unwrap();
    let before: u64 = before.unwrap().parse().unwrap();
    let stop = client.backup_stop().await.unwrap();
    let label = BackupLabel::parse(&stop.label).unwrap();
    assert_eq!((label.start, label.label.as_str()), (start, "it's a label"));
    assert!(stop.lsn > start && stop.next_xid > before);
    let age = Timestamp::now().as_second() - stop.stop_time.as_second();
    assert!((0..60).contains(&age), "{age} s");
    assert_eq!(
        parse_tablespace_map(&stop.tablespace_map).unwrap(),
        [(99999, odd)]
    );

    let point = client.create_restore_point("here").await.unwrap();
    let switched = client.switch_wal().await.unwrap();
    assert!(point > stop.lsn && switched >= point);
    assert!(client.current_wal_lsn().await.unwrap() >= switched);
    client.system_identifier().await.unwrap();
    client.current_timeline().await.unwrap();
    let settings = [
        "archive_command",
        "data_directory",
        "config_file",
        "hba_file",
        "archive_mode",
    ];
    assert_eq!(
        client.settings(&settings).await.unwrap().len(),
        settings.len()
    );
    client
        .execute("SELECT pg_logical_emit_message(true, 'seawall', 'x')")
        .await
        .unwrap();
    assert_eq!(
        client.query_text("SELECT 'é'").await.unwrap().as_deref(),
        Some("é")
    );
    let twice = client.backup_stop().await.unwrap_err();
    assert!(
        twice.to_string().contains("backup is not in progress"),
        "{twice}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_privilege_is_named_with_what_to_do() {
    let server = Server::start();
    server.sql("create role seawall login");
    let client = connect(&format!("{} user=seawall dbname=postgres", socket(&server)))
        .await
        .unwrap();
    let error = client.backup_start("x", true).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("permission denied") && text.contains("grant the role"),
        "{text}"
    );
    assert!(!error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_and_what_it_becomes_know_their_timeline() {
    let mut server = Server::start();
    server.stop();
    server.write(&server.data().join("standby.signal"), "");
    server.launch();
    let client = connect(&format!("{} target_session_attrs=standby", socket(&server)))
        .await
        .unwrap();
    assert!(client.is_in_recovery().await.unwrap());
    assert_eq!(client.current_timeline().await.unwrap(), TimelineId::FIRST);
    let replayed = client.last_replay_lsn().await.unwrap().unwrap();
    assert_eq!(client.current_wal_lsn().await.unwrap(), replayed);
    let start = client.backup_start("x", true).await.unwrap();
    let stop = client.backup_stop().await.unwrap();
    assert!(BackupLabel::parse(&stop.label).unwrap().from_standby && stop.lsn >= start);
    client.execute("SELECT pg_promote()").await.unwrap();
    assert_eq!(
        client.current_timeline().await.unwrap(),
        TimelineId::new(2).unwrap()
    );
    client.switch_wal().await.unwrap();
    assert_eq!(
        client.current_timeline().await.unwrap(),
        TimelineId::new(2).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_server_stops_knows_it() {
    let mut server = Server::start();
    let client = connect(&socket(&server)).await.unwrap();
    client.backup_start("x", true).await.unwrap();
    server.crash();
    let error = client.backup_stop().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(client.is_closed());
}
