//! What an S3 server's answers are taken to mean, down to its words: object_store's own error
//! types are private, so that its texts are what there is to judge by.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Answers each connection with the next of its texts, the last one for ever.
struct Canned {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            let mut answer = String::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                answer = answers.next().unwrap_or(answer);
                let mut request = Vec::new();
                // Heads arrive at once; bodies of these tests are small.
                while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                seen.lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&request).into_owned());
                if answer == HANG {
                    std::mem::forget(stream);
                    continue;
                }
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { endpoint, requests }
    }

    fn settings(&self) -> StoreSettings {
        StoreSettings {
            options: [
                ("aws_endpoint", self.endpoint.as_str()),
                ("aws_region", "eu-central-1"),
                ("aws_access_key_id", "key-of-the-options"),
                ("aws_secret_access_key", "hidden"),
                ("aws_allow_http", "true"),
            ]
            .into_iter()
            .collect(),
            ..settings("s3://bucket/prefix")
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.settings()).unwrap()
    }
}

const HANG: &str = "hang";

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn refusal(status: &str, code: &str) -> String {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Because {code}.</Message></Error>"
    );
    answer(status, &body)
}

fn object(promised: usize, body: &str) -> String {
    let date = "Fri, 20 Nov 2026 11:09:25 GMT";
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {promised}\r\nLast-Modified: {date}\r\nETag: \"e\"\r\nConnection: close\r\n\r\n{body}"
    )
}

async fn reading(answers: Vec<String>) -> (Result<Option<Bytes>, StorageError>, u64) {
    let store = Canned::start(answers).await.store();
    (store.get("k").await, store.retries())
}

#[tokio::test]
async fn a_404_means_absent_only_with_the_code_for_a_missing_key() {
    let (result, retries) = reading(vec![refusal("404 Not Found", "NoSuchKey")]).await;
    assert_eq!((result.unwrap(), retries), (None, 0));
    for (body, kind) in [
        (
            refusal("404 Not Found", "NoSuchBucket"),
            ErrorKind::Misconfigured,
        ),
        (refusal("404 Not Found", "SomethingElse"), ErrorKind::Other),
        (
            answer("404 Not Found", "<html>nginx</html>"),
            ErrorKind::Other,
        ),
        (answer("404 Not Found", ""), ErrorKind::Other),
    ] {
        assert_eq!(reading(vec![body]).await.0.unwrap_err().kind(), kind);
    }
}

#[tokio::test]
async fn refusals_say_what_to_do_and_are_not_tried_again() {
    for (status, code, kind, hint) in [
        (
            "403 Forbidden",
            "AccessDenied",
            ErrorKind::Denied,
            "list under this prefix",
        ),
        (
            "403 Forbidden",
            "InvalidAccessKeyId",
            ErrorKind::Denied,
            "check this repository's key",
        ),
        (
            "403 Forbidden",
            "SignatureDoesNotMatch",
            ErrorKind::Denied,
            "check this repository's key",
        ),
        (
            "403 Forbidden",
            "RequestTimeTooSkewed",
            ErrorKind::Denied,
            "clock",
        ),
        (
            "400 Bad Request",
            "ExpiredToken",
            ErrorKind::Denied,
            "token",
        ),
        (
            "401 Unauthorized",
            "AccessDenied",
            ErrorKind::Denied,
            "list under this prefix",
        ),
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            ErrorKind::Misconfigured,
            "region",
        ),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            ErrorKind::Misconfigured,
            "region",
        ),
        (
            "507 Insufficient Storage",
            "StorageFull",
            ErrorKind::Full,
            "free space",
        ),
    ] {
        let (result, retries) = reading(vec![refusal(status, code)]).await;
        let error = result.unwrap_err();
        assert_eq!((error.kind(), retries), (kind, 0), "{error:?}");
        assert!(!error.is_retryable(), "{error:?}");
        let text = crate::error::Error::from(error).to_string();
        assert!(text.contains(hint), "{text}");
        assert!(
            text.contains("cannot read k\n  in s3://bucket/prefix\n"),
            "{text}"
        );
        assert!(text.contains(code) || code == "PermanentRedirect", "{text}");
        assert!(
            !text.contains("hidden") && !text.contains("127.0.0.1"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn passing_troubles_are_tried_again() {
    let good = object(5, "hello");
    for bad in [
        refusal("503 Service Unavailable", "SlowDown"),
        refusal("500 Internal Server Error", "InternalError"),
        refusal("400 Bad Request", "RequestTimeout"),
        refusal("429 Too Many Requests", "TooManyRequests"),
        answer("502 Bad Gateway", "<html>proxy</html>"),
        answer("408 Request Timeout", ""),
        String::new(),
        "HTTP/1.1 200 OK\r\nContent-Le".to_owned(),
    ] {
        let (result, retries) = reading(vec![bad.clone(), good.clone()]).await;
        assert_eq!(result.unwrap().unwrap(), "hello", "{bad}");
        assert_eq!(retries, 1, "{bad}");
    }
}

#[tokio::test]
async fn a_body_cut_off_by_the_connection_is_resumed_by_a_range_of_the_same_version() {
    let rest = "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 2-5/6\r\nLast-Modified: Fri, 20 Nov 2026 11:09:25 GMT\r\nETag: \"e\"\r\nConnection: close\r\n\r\ncdef";
    let server = Canned::start(vec![object(6, "ab"), rest.to_owned()]).await;
    let store = server.store();
    assert_eq!(store.get("k").await.unwrap().unwrap(), "abcdef");
    assert_eq!(store.retries(), 1);
    let resumed = server.requests.lock().unwrap()[1].to_ascii_lowercase();
    assert!(
        resumed.contains("range: bytes=2-5") && resumed.contains("if-match: \"e\""),
        "{resumed}"
    );

    let (result, _) = reading(vec![
        object(6, "ab"),
        refusal("412 Precondition Failed", "PreconditionFailed"),
    ])
    .await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let server = Canned::start(vec![HANG.to_owned()]).await;
    let retry = RetryPolicy {
        attempts: 2,
        attempt_timeout: Duration::from_millis(100),
        ..quick()
    };
    let store = Store::open(&StoreSettings {
        retry,
        ..server.settings()
    })
    .unwrap();
    let start = std::time::Instant::now();
    let error = store.get("k").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::Timeout, true)
    );
    assert_eq!(
        store.list("", None).await.unwrap_err().kind(),
        ErrorKind::Timeout
    );
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_head_without_a_body_is_asked_again_as_a_read() {
    let missing = answer("404 Not Found", "");
    let server = Canned::start(vec![missing.clone(), refusal("404 Not Found", "NoSuchKey")]).await;
    assert_eq!(server.store().head("k").await.unwrap(), None);
    assert!(server.requests.lock().unwrap()[1].starts_with("GET "));
    let server = Canned::start(vec![missing, refusal("404 Not Found", "NoSuchBucket")]).await;
    let error = server.store().head("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    let server = Canned::start(vec![answer("403 Forbidden", "")]).await;
    assert_eq!(
        server.store().head("k").await.unwrap_err().kind(),
        ErrorKind::Denied
    );
}

#[tokio::test]
async fn a_listing_of_a_missing_bucket_is_an_error_and_not_empty() {
    let server = Canned::start(vec![refusal("404 Not Found", "NoSuchBucket")]).await;
    let store = server.store();
    assert_eq!(
        store.list("", None).await.unwrap_err().kind(),
        ErrorKind::Misconfigured
    );
    assert_eq!(
        store.list_directory("").await.unwrap_err().kind(),
        ErrorKind::Misconfigured
    );
}

#[tokio::test]
async fn a_listing_that_is_cut_short_is_not_taken_for_whole() {
    let cut = answer(
        "200 OK",
        "<?xml version=\"1.0\"?><ListBucketResult><Contents><Key>prefix/a</Key>",
    );
    let store = Canned::start(vec![cut]).await.store();
    let error = store.list("", None).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(store.retries(), 3);
}

#[tokio::test]
async fn a_deletion_that_is_refused_inside_a_200_is_an_error() {
    let body = "<DeleteResult><Error><Key>prefix/k</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>";
    let store = Canned::start(vec![answer("200 OK", body)]).await.store();
    assert_eq!(
        store.delete("k").await.unwrap_err().kind(),
        ErrorKind::Denied
    );
}

#[tokio::test]
async fn a_create_that_collides_with_another_is_tried_again() {
    let absent = refusal("404 Not Found", "NoSuchKey");
    let conflict = refusal("409 Conflict", "ConditionalRequestConflict");
    let put = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: \"e\"\r\nConnection: close\r\n\r\n";
    // Look, put, look again; look, put, read back.
    let answers = vec![
        absent.clone(),
        conflict,
        absent.clone(),
        absent,
        put.into(),
        object(4, "body"),
    ];
    let store = Canned::start(answers).await.store();
    let created = store
        .put_new("k", Bytes::from_static(b"body"))
        .await
        .unwrap();
    assert_eq!((created, store.retries()), (Created::Created, 1));
}

#[tokio::test]
async fn credentials_of_the_options_beat_the_environment_altogether() {
    let server = Canned::start(vec![object(1, "x")]).await;
    let environment = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some("key-of-the-environment".to_owned()),
        "AWS_SECRET_ACCESS_KEY" | "AWS_SESSION_TOKEN" => Some("other".to_owned()),
        "AWS_ENDPOINT" => Some("http://127.0.0.1:1".to_owned()),
        _ => None,
    };
    let mut bare = server.settings();
    bare.options.0.retain(|key, _| !key.contains("access_key"));
    for (settings, key) in [
        (server.settings(), "key-of-the-options"),
        (bare, "key-of-the-environment"),
    ] {
        let opened = open::open(&settings, &environment).unwrap();
        let location = object_store::path::Path::from("k");
        let get = object_store::GetOptions::default();
        opened.backend.get_opts(&location, get).await.unwrap();
        let request = server.requests.lock().unwrap().pop().unwrap();
        assert!(request.contains(&format!("Credential={key}/")), "{request}");
        let token = request
            .to_ascii_lowercase()
            .contains("x-amz-security-token");
        assert_eq!(token, key == "key-of-the-environment", "{request}");
    }
}

#[tokio::test]
async fn nobody_listening_is_unavailable() {
    for endpoint in ["http://127.0.0.1:1", "https://127.0.0.1:1"] {
        let requests = Arc::default();
        let server = Canned {
            endpoint: endpoint.into(),
            requests,
        };
        let store = server.store();
        let error = store.get("k").await.unwrap_err();
        assert_eq!(
            (error.kind(), store.retries()),
            (ErrorKind::Unavailable, 3),
            "{error:?}"
        );
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
