//! Who looks at the daemon: metrics, health and the status page, over HTTP. Nothing can be
//! changed here. A port that is taken stops no backup: it is tried again.

mod listener;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::board::Board;
use super::{metrics, page};
use crate::config::{HttpConfig, Listen};
use crate::error::{Error, Result};

/// How long after a failure the address is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// The server, which is begun anew with each configuration.
pub(super) struct Server {
    board: Board,
    running: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn new(board: Board) -> Self {
        Self {
            board,
            running: None,
        }
    }

    /// Serves by this configuration from now on.
    pub(super) fn serve(&mut self, config: &HttpConfig) {
        let before = self.running.take();
        if let Some(before) = &before {
            before.abort();
        }
        if config.listen == Listen::Off {
            return;
        }
        let (config, board) = (config.clone(), self.board.clone());
        self.running = Some(tokio::spawn(async move {
            if let Some(before) = before {
                // Its address is free then.
                let _ = before.await;
            }
            keep_serving(&config, &board).await;
        }));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

async fn keep_serving(config: &HttpConfig, board: &Board) {
    let mut said = None;
    loop {
        let why = match try_to_serve(config, board).await {
            Ok(()) => "it ended".to_owned(),
            Err(error) => error.one_line(),
        };
        if said.as_ref() != Some(&why) {
            tracing::error!("metrics and status page are not served, and tried again: {why}");
            said = Some(why);
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

async fn try_to_serve(config: &HttpConfig, board: &Board) -> Result<()> {
    let token = match &config.token {
        Some(token) => match token.resolve()?.trim() {
            "" => return Err(Error::usage("http.token is empty: anybody could look")),
            token => Some(Arc::from(token)),
        },
        None => None,
    };
    let router = router(board.clone(), token);
    let (listener, address) = listener::open(config).await?;
    tracing::info!("metrics and status page: {address}");
    let served = axum::serve(listener, router).await;
    served.map_err(|error| Error::failed(error.to_string()))
}

fn router(board: Board, token: Option<Arc<str>>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(all_metrics))
        .route("/status.json", get(status))
        // Whoever asks whether we live need not be told a secret, and is told none.
        .layer(middleware::from_fn_with_state(token, check_token))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .layer(middleware::from_fn(say_how_to_treat_it))
        .with_state(board)
}

async fn index(State(board): State<Board>) -> Html<String> {
    Html(page::of(&board.shown(), Timestamp::now()).into_string())
}

async fn all_metrics(State(board): State<Board>) -> impl IntoResponse {
    let text = metrics::text(&board.shown(), Timestamp::now());
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

async fn status(State(board): State<Board>) -> Response {
    let shown = board.shown();
    let clusters: Vec<_> = shown.statuses.values().map(AsRef::as_ref).collect();
    let listing = serde_json::json!({"format": crate::status::FORMAT, "clusters": clusters});
    ([(CONTENT_TYPE, "application/json")], listing.to_string()).into_response()
}

/// 200 as long as the daemon's loop goes round.
async fn healthz(State(board): State<Board>) -> Response {
    match board.shown().ill() {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

/// 200 once every cluster was looked at.
async fn readyz(State(board): State<Board>) -> Response {
    let shown = board.shown();
    let unseen = shown.unseen();
    let why = shown.ill().or_else(|| {
        let some = !unseen.is_empty();
        some.then(|| format!("clusters that were not looked at yet: {}", unseen.len()))
    });
    match why {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

async fn check_token(
    State(token): State<Option<Arc<str>>>,
    request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(AUTHORIZATION);
    let right = token.is_none_or(|token| given.is_some_and(|given| brings(given, &token)));
    if right {
        return next.run(request).await;
    }
    let ask = (
        HeaderName::from_static("www-authenticate"),
        HeaderValue::from_static("Basic realm=\"seawall\", charset=\"UTF-8\""),
    );
    let text =
        "bring the token of [http]: Authorization: Bearer TOKEN, or as the password of any user\n";
    (StatusCode::UNAUTHORIZED, [ask], text).into_response()
}

fn brings(given: &HeaderValue, token: &str) -> bool {
    let Ok(given) = given.to_str() else {
        return false;
    };
    if let Some(bearer) = given.strip_prefix("Bearer ") {
        return is_same(bearer.trim(), token);
    }
    let basic = given.strip_prefix("Basic ");
    let plain = basic.and_then(|basic| STANDARD.decode(basic.trim()).ok());
    let plain = plain.and_then(|plain| String::from_utf8(plain).ok());
    plain.is_some_and(|plain| {
        plain
            .split_once(':')
            .is_some_and(|(_, password)| is_same(password, token))
    })
}

/// Takes as long whether the beginning is right or not.
fn is_same(one: &str, other: &str) -> bool {
    blake3::hash(one.as_bytes()) == blake3::hash(other.as_bytes())
}

/// The page loads nothing and runs nothing.
async fn say_how_to_treat_it(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_taken_as_programs_and_as_browsers_send_it() {
        let brings = |text: &str| brings(&HeaderValue::from_str(text).unwrap(), "s3cret:x");
        assert!(brings("Bearer s3cret:x"));
        assert!(brings(&format!(
            "Basic {}",
            STANDARD.encode("anybody:s3cret:x")
        )));
        for wrong in [
            "Bearer",
            "Bearer s3cret",
            "s3cret:x",
            "Basic !",
            "Basic czNjcmV0",
        ] {
            assert!(!brings(wrong), "{wrong}");
        }
        assert!(!brings(&format!(
            "Basic {}",
            STANDARD.encode("s3cret:other")
        )));
    }
}
