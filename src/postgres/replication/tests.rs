//! Replication sessions with a real server: how they come about, what they answer, and base
//! backups that end well and badly.

use std::collections::BTreeMap;
use std::io::Read;

use super::base_backup::{Piece, Request};
use super::*;
use crate::postgres::connection::Surroundings;
use crate::postgres::control::ControlFile;
use crate::postgres::manifest::read_manifest;
use crate::postgres::testing::Server;

async fn connect(text: &str) -> Result<Session> {
    let around = Surroundings {
        user: Some("postgres".into()),
        ..Surroundings::default()
    };
    Session::connect(&ConnectionString::parse(text, &around)?).await
}

fn socket(server: &Server) -> String {
    format!("host={} port={}", server.path().display(), server.port())
}

fn tcp(server: &Server) -> String {
    format!("host=localhost port={}", server.port())
}

fn request() -> Request {
    Request {
        label: "a 'label'".into(),
        fast: true,
        max_rate: None,
        checkpoint_limit: PATIENCE,
        silence_limit: PATIENCE,
    }
}

#[tokio::test]
async fn a_session_tells_the_system_settings_and_histories() {
    let mut server = Server::create(&[], "");
    server.launch();
    for place in [socket(&server), tcp(&server)] {
        let mut session = connect(&place).await.unwrap();
        assert_eq!(session.major(), server.major());
        assert!(!session.is_standby());
        let identity = session.identify_system().await.unwrap();
        let control = ControlFile::read(&server.data()).unwrap();
        assert_eq!(identity.system_id, control.system_id);
        assert_eq!(identity.timeline, TimelineId::FIRST);
        assert!(identity.flushed >= control.redo);
        assert_eq!(session.show("wal_segment_size").await.unwrap(), "16MB");
        let port = session.show("port").await.unwrap();
        assert_eq!(port, server.port().to_string());
    }
    let history = "1\t0/1000000\tno recovery target specified\n";
    server.write(&server.data().join("pg_wal/00000002.history"), history);
    let mut session = connect(&socket(&server)).await.unwrap();
    let two = TimelineId::new(2).unwrap();
    let (name, content) = session.timeline_history(two).await.unwrap();
    assert_eq!(
        (name.as_str(), &content[..]),
        ("00000002.history", history.as_bytes())
    );
    let error = session
        .timeline_history(TimelineId::new(3).unwrap())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("58P01") && text.contains("00000003.history"),
        "{text}"
    );
}

#[tokio::test]
async fn every_way_to_prove_who_we_are_works_and_no_error_shows_the_password() {
    let mut server = Server::create(&[], "");
    server.write(
        &server.data().join("pg_hba.conf"),
        "local all all trust\nlocal replication nobody reject\nlocal replication all trust\n\
         host replication ann 127.0.0.1/32 scram-sha-256\n\
         host replication max 127.0.0.1/32 md5\n\
         host replication eve 127.0.0.1/32 password\n",
    );
    server.launch();
    server.sql(
        "create role ann login replication password 'right'; create role plain login; \
         create role eve login replication password 'right'; create role nobody login replication",
    );
    server.sql_session(&[
        "set password_encryption = md5",
        "create role max login replication password 'right'",
    ]);
    for role in ["ann", "max", "eve"] {
        let place = format!("{} user={role}", tcp(&server));
        let mut session = connect(&format!("{place} password=right")).await.unwrap();
        session.identify_system().await.unwrap();
        let passfile = server.path().join("pass");
        for database in ["replication", "postgres", "*"] {
            let line = format!("localhost:*:{database}:{role}:right\n");
            crate::durable::write_file(&passfile, line.as_bytes(), 0o600).unwrap();
            let by_file = format!("{place} dbname=postgres passfile={}", passfile.display());
            connect(&by_file).await.unwrap();
        }
        let error = connect(&format!("{place} password=secret"))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&place) && text.contains("28P01"), "{text}");
        assert!(!text.contains("secret") && !error.is_retryable(), "{text}");
        let text = connect(&place).await.unwrap_err().to_string();
        assert!(
            text.contains("there is none") && text.contains("password file"),
            "{text}"
        );
    }
    let text = connect(&format!("{} user=plain", socket(&server)))
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("ALTER ROLE"), "{text}");
    let text = connect(&format!("{} user=nobody", socket(&server)))
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("the word replication"), "{text}");
    let nowhere = format!("host={} port=1", server.path().display());
    let error = connect(&nowhere).await.unwrap_err();
    assert!(
        error.is_retryable() && error.to_string().contains("running"),
        "{error}"
    );
}

#[tokio::test]
async fn tls_proves_what_sslmode_asks_for_here_too() {
    let server = Server::with_tls();
    let file = |name: &str| server.path().join(name).display().to_string();
    let (ca, other) = (file("ca.crt"), file("other.crt"));
    let by = |host: &str, rest: &str| format!("host={host} port={} {rest}", server.port());
    let uses_tls = async |text: &str| {
        let mut session = connect(text)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        session.identify_system().await.unwrap();
        let sql = "select ssl from pg_stat_ssl join pg_stat_replication using (pid)";
        let sql = format!(
            "select coalesce(({sql}), (select ssl from pg_stat_ssl join pg_stat_activity using (pid) where backend_type = 'walsender'))"
        );
        let answer = server.sql(&sql) == "t";
        drop(session);
        while server.sql("select count(*) from pg_stat_activity where backend_type = 'walsender'")
            != "0"
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        answer
    };
    for (host, rest, tls) in [
        ("localhost", "sslmode=disable".to_owned(), false),
        ("localhost", "sslmode=allow".into(), false),
        ("localhost", "sslmode=prefer".into(), true),
        ("127.0.0.1", "sslmode=require".into(), true),
        (
            "127.0.0.1",
            format!("sslmode=verify-ca sslrootcert={ca}"),
            true,
        ),
        (
            "localhost",
            format!("sslmode=verify-full sslrootcert={ca}"),
            true,
        ),
        (
            "localhost",
            format!("sslmode=prefer sslrootcert={other}"),
            false,
        ),
    ] {
        assert_eq!(uses_tls(&by(host, &rest)).await, tls, "{host} {rest}");
    }
    for (host, rest, why) in [
        (
            "127.0.0.1",
            format!("sslmode=verify-full sslrootcert={ca}"),
            "not valid for",
        ),
        (
            "localhost",
            format!("sslmode=verify-ca sslrootcert={other}"),
            "UnknownIssuer",
        ),
        (
            "localhost",
            "sslmode=verify-full".to_owned(),
            "sslrootcert=FILE",
        ),
    ] {
        let error = connect(&by(host, &rest)).await.expect_err(&rest);
        assert!(
            error.to_string().contains(why) && !error.is_retryable(),
            "{rest}: {error}"
        );
    }
    let plain = Server::start();
    let wanted = format!("host=localhost port={} sslmode=require", plain.port());
    let error = connect(&wanted).await.unwrap_err();
    assert!(error.what().contains("has no TLS"), "{error}");
}

/// Reads a whole backup: the archives' bytes, and the manifest.
async fn take(server: &Server) -> Result<(BTreeMap<Option<u32>, Vec<u8>>, Vec<u8>, Lsn)> {
    let session = connect(&socket(server)).await?;
    let mut backup = session.base_backup(&request()).await?;
    let (mut archives, mut manifest) = (BTreeMap::new(), Vec::new());
    let mut current = None;
    loop {
        match backup.next().await? {
            Piece::Archive(oid) => {
                archives.insert(oid, Vec::new());
                current = Some(oid);
            }
            Piece::Manifest => current = None,
            Piece::Data(bytes) => match current {
                Some(oid) => archives.get_mut(&oid).unwrap().extend(bytes),
                None => manifest.extend(bytes),
            },
            Piece::End(lsn, timeline) => {
                assert_eq!(timeline, backup.start().1);
                assert!(lsn > backup.start().0);
                let sent: Vec<_> = backup.tablespaces().iter().map(|sent| sent.oid).collect();
                assert_eq!(sent.len(), archives.len());
                assert!(sent.iter().all(|oid| archives.contains_key(oid)));
                return Ok((archives, manifest, lsn));
            }
        }
    }
}

#[tokio::test]
async fn a_base_backup_brings_the_files_that_its_manifest_names() {
    let server = Server::start();
    let space = server.path().join("space");
    std::fs::create_dir(&space).unwrap();
    server.give_away(&space);
    server.sql(&format!(
        "create tablespace space location '{}'",
        space.display()
    ));
    server.sql("create table t tablespace space as select generate_series(1, 100000)");
    let (archives, manifest, end) = take(&server).await.unwrap();
    assert_eq!(archives.len(), 2);
    let mut named = BTreeMap::new();
    let summary = read_manifest(&manifest[..], |file| {
        named.insert(file.path.display().to_string(), file);
        Ok(())
    })
    .unwrap();
    assert_eq!(summary.wal_ranges[0].end, end);
    let mut last = String::new();
    for (oid, bytes) in &archives {
        let prefix = oid.map_or(String::new(), |oid| format!("pg_tblspc/{oid}/"));
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = format!("{prefix}{}", entry.path().unwrap().display());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let file = named
                .remove(&path)
                .unwrap_or_else(|| panic!("{path} is not named"));
            let sum = file.checksum.unwrap().as_crc32c();
            assert_eq!(sum, Some(crc32c::crc32c(&content)), "{path}");
            if oid.is_none() {
                last = path;
            }
        }
    }
    assert!(named.is_empty(), "{named:?}");
    assert!(archives.keys().any(Option::is_none));
    assert_eq!(last, "global/pg_control");
}

#[tokio::test]
async fn a_damaged_page_fails_a_base_backup_at_its_very_end() {
    let mut server = Server::start();
    server.sql("create table t as select generate_series(1, 10000); checkpoint");
    let file = server
        .data()
        .join(server.sql("select pg_relation_filepath('t')"));
    server.stop();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3 * 8192 + 5000] ^= 1;
    crate::durable::write_file(&file, &bytes, 0o600).unwrap();
    server.give_away(&file);
    server.launch();
    let session = connect(&socket(&server)).await.unwrap();
    let mut backup = session.base_backup(&request()).await.unwrap();
    let mut manifest = false;
    let error = loop {
        match backup.next().await {
            Ok(Piece::Manifest) => manifest = true,
            Ok(Piece::End(..)) => panic!("the damage went unseen"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(manifest, "all data has come, and then the error");
    let text = error.to_string();
    assert!(
        text.contains("XX001") && text.contains("hardware"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_that_goes_away_or_hangs_ends_a_base_backup_with_an_error() {
    let mut server = Server::start();
    server.sql("create table t as select repeat('x', 500) from generate_series(1, 200000)");
    let begin = async |limit| {
        let session = connect(&socket(&server)).await.unwrap();
        let mut request = request();
        // Without it all would be in buffers before anything happens.
        request.max_rate = Some(4096);
        request.silence_limit = limit;
        let mut backup = session.base_backup(&request).await.unwrap();
        for _ in 0..3 {
            backup.next().await.unwrap();
        }
        backup
    };
    let end = async |mut backup: super::base_backup::BaseBackup| loop {
        match backup.next().await {
            Ok(Piece::End(..)) => panic!("it cannot have ended"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let walsender = "select pid from pg_stat_activity where backend_type = 'walsender'";

    let backup = begin(PATIENCE).await;
    server.sql(&format!("select pg_terminate_backend(({walsender}))"));
    let error = end(backup).await;
    assert!(
        ["57P01", "closed the connection"]
            .iter()
            .any(|why| error.to_string().contains(why))
            && error.is_retryable(),
        "{error}"
    );

    let backup = begin(Duration::from_secs(1)).await;
    let pid = nix::unistd::Pid::from_raw(server.sql(walsender).parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let error = end(backup).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(
        error.what().contains("silent for 1 s") && error.is_retryable(),
        "{error}"
    );

    let backup = begin(PATIENCE).await;
    server.crash();
    let error = end(backup).await;
    assert!(error.is_retryable(), "{error}");
}
