//! What connection strings mean; connecting is tested beside `sql`.

use super::words::{KNOWN, REFUSED};
use super::*;
use proptest::prelude::*;

fn around() -> Surroundings {
    Surroundings {
        user: Some("ann".into()),
        home: Some("/home/ann".into()),
        password: None,
        passfile: None,
    }
}

fn parse(text: &str) -> ConnectionString {
    ConnectionString::parse(text, &around()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str) -> String {
    match ConnectionString::parse(text, &around()) {
        Ok(parsed) => panic!("{text} became {parsed}"),
        Err(error) => {
            assert_eq!(error.exit(), crate::error::Exit::Usage);
            assert!(error.advice().is_some(), "{error}");
            error.to_string()
        }
    }
}

#[test]
fn an_empty_string_means_libpqs_defaults() {
    let empty = parse("");
    assert_eq!(
        empty.to_string(),
        "host=/var/run/postgresql port=5432 user=ann dbname=ann"
    );
    assert_eq!(empty.ssl_mode, SslMode::Prefer);
    let root = PathBuf::from("/home/ann/.postgresql/root.crt");
    assert_eq!(empty.ssl_root, RootCertificates::FileIfThere(root));
    assert_eq!(empty, parse("postgresql://"));
    assert_eq!(empty, parse(" host= ''  port = '' "));
}

#[test]
fn both_ways_of_writing_say_the_same() {
    for (words, uri) in [
        (
            r"host=db.example port=5433 user=bob password='it\'s a \\ %' dbname=prod sslmode=verify-full",
            "postgresql://bob:it's%20a%20%5C%20%25@db.example:5433/prod?sslmode=verify-full",
        ),
        (
            r"host=/run/my\ pg user=bob dbname=bob",
            "postgres://bob@%2Frun%2Fmy%20pg",
        ),
        ("host=/run/pg dbname=x", "postgresql:///x?host=/run/pg"),
        (
            "host=::1,b port=5433,5434 dbname=x target_session_attrs=primary",
            "postgresql://[::1]:5433,b:5434/x?target_session_attrs=primary",
        ),
        ("host=a sslmode=require", "postgresql://a?ssl=true"),
        (
            "host=a connect_timeout=7 options='-c x=1' application_name=b",
            "postgresql://a?connect_timeout=7&options=-c%20x%3D1&application_name=b",
        ),
    ] {
        let (words, uri) = (parse(words), parse(uri));
        assert!(words == uri, "{words} {uri}");
    }
}

#[test]
fn several_hosts_have_their_own_ports_or_one_for_all() {
    let ports = |text: &str| -> Vec<u16> { parse(text).hosts.iter().map(|h| h.port).collect() };
    assert_eq!(ports("host=a,b,c port=1,,3"), [1, 5432, 3]);
    assert_eq!(ports("host=a,b port=7"), [7, 7]);
    assert_eq!(ports("hostaddr=10.0.0.1,::1"), [5432, 5432]);
    let with_address = parse("host=db hostaddr=10.0.0.1");
    assert_eq!(
        with_address.hosts[0].endpoint,
        Endpoint::Tcp {
            name: "db".into(),
            address: Some("10.0.0.1".parse().unwrap())
        }
    );
    for wrong in [
        "host=a,b port=1,2,3",
        "port=1,2",
        "host=a,b hostaddr=::1",
        "hostaddr=db",
        "port=x",
        "port=0",
        "port=65536",
        "host=@abstract",
    ] {
        refused(wrong);
    }
}

#[test]
fn what_is_not_honoured_is_refused_by_name_with_a_hint() {
    for (word, _) in REFUSED {
        let text = refused(&format!("{word}=1"));
        assert!(text.contains(word), "{text}");
        assert!(!KNOWN.contains(&word));
    }
    assert!(refused("passwort=geheim").contains("did you mean password?"));
    assert!(!refused("passwort=geheim").contains("geheim"));
    assert!(refused("sslmode=full").contains("verify-full"));
    refused("dbname='it''s'");
    refused("sslrootcert=system sslmode=require");
    refused("target_session_attrs=prefer-standby");
    refused("connect_timeout=soon");
    refused("gssencmode=require");
    refused("client_encoding=latin1");
    assert_eq!(parse("sslrootcert=system").ssl_mode, SslMode::VerifyFull);
}

#[test]
fn no_message_shows_a_secret() {
    for wrong in [
        "password=my secret",
        "password='my secret",
        "password=my secret\\",
        "postgresql://bob:secret@host:port/",
        "postgresql://bob:secret@[::1/",
        "postgresql://bob:secret%zz@host/",
        "postgresql://bob:secret@host/?x",
    ] {
        let text = refused(wrong);
        assert!(!text.contains("secret"), "{text}");
    }
    let parsed = parse("password=secret");
    assert!(!format!("{parsed} {parsed:?}").contains("secret"));
    assert_eq!(
        parsed.password_for(&parsed.hosts[0]),
        Password::Known(b"secret".to_vec())
    );
}

#[test]
fn the_string_beats_the_environment() {
    let mut around = around();
    around.password = Some("env".into());
    let known = |text: &str| {
        let parsed = ConnectionString::parse(text, &around).unwrap();
        parsed.password_for(&parsed.hosts[0])
    };
    assert_eq!(known(""), Password::Known(b"env".to_vec()));
    assert_eq!(known("password=own"), Password::Known(b"own".to_vec()));
}

#[test]
fn waiting_is_bounded_unless_asked_for() {
    let waits = |text: &str| parse(text).connect_timeout.map(|t| t.as_secs());
    assert_eq!(waits(""), Some(30));
    assert_eq!(waits("connect_timeout=1"), Some(2));
    assert_eq!(waits("connect_timeout=0"), None);
    assert_eq!(waits("connect_timeout=-1"), None);
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        words in "[a-z=' \\\\,]{0,40}", uri in "[a-z:/@%?&=0-9,\\[\\]é]{0,40}", any in ".{0,40}"
    ) {
        let _ = ConnectionString::parse(&words, &around());
        let _ = ConnectionString::parse(&format!("postgresql://{uri}"), &around());
        let _ = ConnectionString::parse(&any, &around());
    }

    #[test]
    fn any_value_can_be_quoted(value in "[^\0]{1,30}") {
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        let parsed = parse(&format!("application_name='{quoted}' port=1"));
        prop_assert_eq!(parsed.application_name, value);
    }
}
