//! A real browser: Debian's Chromium without a window, driven over WebDriver. It gets an empty
//! profile in the test's directory, is told to ask nobody for anything, and is ended by its
//! process id with all that it started.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::postgres::free_port;
use crate::process::{Run, Running, wait_until};
use crate::scratch::Scratch;

/// Longer than a page takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. Ended when dropped.
#[derive(Debug)]
pub struct Browser {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    session: String,
    // Chromium is its child, and ends with it.
    _driver: Running,
}

impl Browser {
    /// Starts one, with its files in `scratch`.
    #[track_caller]
    pub fn start(scratch: &Scratch) -> Self {
        let home = scratch.directory("browser");
        let port = free_port();
        let driver = Run::new("/usr/bin/chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", &home)
            .env("TMPDIR", &home)
            .timeout(Duration::from_secs(600))
            .start();
        let address = format!("127.0.0.1:{port}");
        wait_until("chromedriver answers", PATIENCE, || {
            std::net::TcpStream::connect(&address).is_ok()
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .expect("an HTTP client");
        let mut browser = Self {
            runtime,
            client,
            session: format!("http://{address}/session"),
            _driver: driver,
        };
        let profile = format!(
            "--user-data-dir={}",
            scratch.directory("browser/profile").display()
        );
        let options = json!({
            "binary": "/usr/bin/chromium",
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--hide-scrollbars", profile,
            ],
        });
        let wanted = json!({
            "capabilities": {
                "alwaysMatch": { "browserName": "chrome", "goog:chromeOptions": options },
            },
        });
        let made = browser.ask("", &wanted);
        let id = made["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    /// Opens a file as a page.
    #[track_caller]
    pub fn open(&self, file: &Path) {
        self.open_address(&format!("file://{}", file.display()));
    }

    /// Opens an address as a page.
    #[track_caller]
    pub fn open_address(&self, url: &str) {
        self.ask("/url", &json!({ "url": url }));
    }

    /// Presses and releases a key: a letter, or one of WebDriver's numbers for other keys.
    #[track_caller]
    pub fn press(&self, key: char) {
        let key = key.to_string();
        let strokes = json!([
            { "type": "keyDown", "value": key },
            { "type": "keyUp", "value": key },
        ]);
        let keyboard = json!([{ "type": "key", "id": "keyboard", "actions": strokes }]);
        self.ask("/actions", &json!({ "actions": keyboard }));
    }

    /// Makes the page as wide and high as a screen of so many CSS pixels.
    #[track_caller]
    pub fn screen(&self, width: u32, height: u32) {
        let parameters = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", &parameters);
    }

    /// Shows the page as to somebody who prefers `light` or `dark`.
    #[track_caller]
    pub fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    /// What a function's body in JavaScript returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.ask("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// What is on the screen, as a PNG.
    #[track_caller]
    pub fn screenshot(&self) -> Vec<u8> {
        let shot = self.devtools("Page.captureScreenshot", &json!({ "format": "png" }));
        decoded(&shot["data"])
    }

    /// The page on A4, as a PDF.
    #[track_caller]
    pub fn print(&self) -> Vec<u8> {
        let page = json!({ "page": { "width": 21.0, "height": 29.7 }, "shrinkToFit": false });
        decoded(&self.ask("/print", &page))
    }

    #[track_caller]
    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask(
            "/goog/cdp/execute",
            &json!({ "cmd": command, "params": parameters }),
        )
    }

    /// One command of WebDriver. Panics with the browser's words where it is refused.
    #[track_caller]
    fn ask(&self, path: &str, parameters: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let request = self.client.post(&url).body(parameters.to_string());
        let answer = self
            .runtime
            .block_on(async { request.send().await?.bytes().await });
        let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        let answer: Value = serde_json::from_slice(&answer).expect("chromedriver answers in JSON");
        let error = &answer["value"]["error"];
        assert!(
            error.is_null(),
            "{path}: {error}: {}",
            answer["value"]["message"]
        );
        answer["value"].clone()
    }
}

#[track_caller]
fn decoded(base64: &Value) -> Vec<u8> {
    let text = base64.as_str().expect("base64");
    BASE64_STANDARD.decode(text).expect("base64")
}
