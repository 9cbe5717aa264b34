//! One command of our own as a child process: its log lines passed on, its last words kept,
//! ended in an orderly way, and never left behind.
//!
//! A child holds the reading end of a pipe as its standard input; nothing is ever written to
//! it. When the daemon dies, however that happens, the pipe ends, and the child gives up as it
//! does at SIGTERM (`cli::interrupted`). The kernel's own signal for orphans would come when
//! the *thread* that started them ends, and is forgotten by a child that changes its user.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

/// Tells a child the process that supervises it; what that child starts has another parent and
/// is not meant.
pub const SUPERVISOR: &str = "SEAWALL_SUPERVISOR";

/// Lines of a child's log that are kept as its last words.
const LAST_LINES: usize = 12;
/// A line longer than this is cut into several.
const LONGEST_LINE: usize = 4096;
/// A line of its standard output that is handed on is no longer.
const LONGEST_DATA_LINE: usize = 64 << 20;
/// As much of its standard output is kept.
const MOST_OUTPUT: usize = 64 << 10;
/// What a child started itself may hold the pipes longer than it lives.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A command to run.
#[derive(Debug, Clone)]
pub struct Order {
    /// Our own program.
    pub program: PathBuf,
    /// Its arguments.
    pub words: Vec<String>,
    /// What stands before each of its lines in our log.
    pub name: String,
    /// How long it may take to give up.
    pub stop_timeout: Duration,
    /// Where the lines of its standard output go; they are kept otherwise.
    pub lines: Option<UnboundedSender<String>>,
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub exit: Option<i32>,
    /// What it said at its end, in one line.
    pub said: String,
    /// Whether it was told to give up.
    pub given_up: bool,
}

/// Runs the command to its end, or until `stop` says true: then it gets SIGTERM, and after
/// its time SIGKILL, with all that it started.
///
/// # Errors
/// It cannot be started.
pub async fn run(order: &Order, mut stop: watch::Receiver<bool>) -> io::Result<Ended> {
    let mut child = Command::new(&order.program)
        .args(&order.words)
        .env(SUPERVISOR, std::process::id().to_string())
        // What it says is not for the service manager.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        // Its lines are read here.
        .env_remove("SEAWALL_LOG_FORMAT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own: the whole of it can be ended, and a terminal's Ctrl-C is for us alone.
        .process_group(0)
        .current_dir("/")
        .spawn()?;
    let supervision = child.stdin.take();
    let talk = tokio::spawn(pass_on(child.stderr.take(), order.name.clone()));
    let stdout = child.stdout.take();
    let data = match order.lines.clone() {
        Some(lines) => tokio::spawn(hand_on(stdout, lines)),
        None => tokio::spawn(keep(stdout)),
    };
    let (status, given_up) = tokio::select! {
        status = child.wait() => (status?, false),
        () = told(&mut stop) => (end(&mut child, order).await?, true),
    };
    drop(supervision);
    let talk = in_time(talk).await;
    let data = in_time(data).await;
    Ok(Ended {
        exit: status.code(),
        said: last_words(status, &talk, &data),
        given_up,
    })
}

async fn in_time<T: Default>(reader: tokio::task::JoinHandle<T>) -> T {
    match tokio::time::timeout(LAST_WORDS, reader).await {
        Ok(Ok(read)) => read,
        _ => T::default(),
    }
}

/// Waits until `stop` says true.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    // Where nobody is left who could say so, the runtime is ending.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn end(child: &mut Child, order: &Order) -> io::Result<ExitStatus> {
    let Some(pid) = child.id().map(|pid| Pid::from_raw(pid as i32)) else {
        return child.wait().await;
    };
    tracing::info!("{}: told to give up", order.name);
    let _ = kill(pid, Signal::SIGTERM);
    match tokio::time::timeout(order.stop_timeout, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            tracing::warn!(
                "{}: did not give up within {:?}, and is killed",
                order.name,
                order.stop_timeout
            );
            let _ = killpg(pid, Signal::SIGKILL);
            child.wait().await
        }
    }
}

/// Logs each line under `name` and keeps the last ones.
async fn pass_on(from: Option<impl AsyncRead + Unpin>, name: String) -> VecDeque<String> {
    let mut lines = VecDeque::new();
    let Some(mut from) = from else { return lines };
    let (mut pending, mut buffer) = (Vec::new(), [0; LONGEST_LINE]);
    let mut note = |line: &[u8]| {
        let line = String::from_utf8_lossy(line).trim_end().to_owned();
        if line.is_empty() {
            return;
        }
        log(&name, &line);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    };
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        pending.extend_from_slice(&buffer[..read]);
        let mut rest = &pending[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            note(&rest[..end]);
            rest = &rest[end + 1..];
        }
        if rest.len() > LONGEST_LINE {
            note(rest);
            rest = &[];
        }
        pending = rest.to_vec();
    }
    note(&pending);
    lines
}

/// A child's line at the level that it had there.
fn log(name: &str, line: &str) {
    let line = line.trim_start();
    let plain = |level: &str| line.strip_prefix(level).map(str::trim_start);
    // Its last error is our own to say: only the daemon knows whether it is news.
    if let Some(line) = plain("ERROR ") {
        tracing::error!("{name}: {line}");
    } else if let Some(line) = plain("WARN ").or_else(|| plain("warning: ")) {
        tracing::warn!("{name}: {line}");
    } else {
        tracing::info!("{name}: {}", plain("INFO ").unwrap_or(line));
    }
}

async fn keep(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else {
        return String::new();
    };
    let (mut kept, mut buffer) = (Vec::new(), [0; LONGEST_LINE]);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let room = MOST_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Hands each line on; one that is longer than any that we write is left out.
async fn hand_on(from: Option<impl AsyncRead + Unpin>, lines: UnboundedSender<String>) -> String {
    let Some(from) = from else {
        return String::new();
    };
    let mut from = BufReader::new(from);
    let (mut line, mut too_long) = (Vec::new(), false);
    loop {
        let mut piece = Vec::new();
        let mut some = (&mut from).take(LONGEST_LINE as u64);
        let read = some.read_until(b'\n', &mut piece);
        if !matches!(read.await, Ok(1..)) {
            return String::new();
        }
        let ends = piece.ends_with(b"\n");
        line.append(&mut piece);
        too_long |= line.len() > LONGEST_DATA_LINE;
        if too_long {
            line.clear();
        }
        if ends {
            if !too_long {
                let _ = lines.send(String::from_utf8_lossy(&line).into_owned());
            }
            line.clear();
            too_long = false;
        }
    }
}

/// What a person wants to read of it: its error, or the first line of its data.
fn last_words(status: ExitStatus, talk: &VecDeque<String>, data: &str) -> String {
    use std::os::unix::process::ExitStatusExt;
    let error = talk.iter().rposition(|line| line.starts_with("error: "));
    let plain = |line: &String| line.trim().trim_start_matches("error: ").to_owned();
    let error = error.map(|at| talk.iter().skip(at).map(plain));
    let headline = data.lines().find(|line| !line.trim().is_empty());
    match (status.code(), error, headline, talk.back()) {
        (None, ..) => format!("ended by signal {}", status.signal().unwrap_or_default()),
        (Some(1..), Some(error), ..) => error.collect::<Vec<_>>().join("; "),
        (_, _, Some(headline), _) => headline.trim().to_owned(),
        (Some(1..), _, _, Some(last)) => last.trim().to_owned(),
        (Some(code @ 1..), ..) => format!("exit code {code}"),
        _ => String::new(),
    }
}

/// Where our own program lies, also after it was replaced by a newer one: then the newer one
/// is run from now on.
///
/// # Errors
/// The system does not tell.
pub fn own_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(path) => Path::new(path).to_owned(),
        None => path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(script: &str) -> Order {
        Order {
            program: "/bin/sh".into(),
            words: vec!["-c".into(), script.into()],
            name: "main full".into(),
            stop_timeout: Duration::from_millis(300),
            lines: None,
        }
    }

    async fn run_script(script: &str) -> Ended {
        let (_keep, stop) = watch::channel(false);
        run(&order(script), stop).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_child_says_at_its_end_is_kept() {
        let done = run_script("echo 'backup x is complete'; echo more").await;
        assert_eq!(
            (done.exit, done.said.as_str()),
            (Some(0), "backup x is complete")
        );
        let failed = run_script(
            "echo ' INFO begins' >&2; echo 'error: no room' >&2; echo '  hint: free some' >&2; exit 1",
        )
        .await;
        assert_eq!(failed.exit, Some(1));
        assert_eq!(failed.said, "no room; hint: free some");
        let silent = run_script("exit 7").await;
        assert_eq!(silent.said, "exit code 7");
        let killed = run_script("kill -9 $$").await;
        assert_eq!(
            (killed.exit, killed.said.as_str()),
            (None, "ended by signal 9")
        );
    }

    #[tokio::test]
    async fn a_child_that_talks_without_end_takes_no_memory_and_one_that_reads_waits() {
        let talker = run_script("yes | head -c 30000000; yes word | head -c 3000000 >&2").await;
        assert_eq!((talker.exit, talker.said.as_str()), (Some(0), "y"));
        let long = run_script("head -c 200000 /dev/zero | tr '\\0' x >&2; exit 1").await;
        assert!(long.said.len() <= 2 * LONGEST_LINE);
    }

    #[tokio::test]
    async fn a_child_is_told_to_give_up_and_killed_with_its_own_if_it_does_not() {
        for (script, exit) in [
            ("trap 'exit 1' TERM; sleep 60 & wait", Some(1)),
            ("trap '' TERM; sleep 60; sleep 60", None),
        ] {
            let (tell, stop) = watch::channel(false);
            let started = std::time::Instant::now();
            let script = order(script);
            let running = run(&script, stop);
            let telling = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                tell.send(true).unwrap();
                std::future::pending::<()>().await
            };
            let ended = tokio::select! {
                ended = running => ended.unwrap(),
                () = telling => unreachable!(),
            };
            assert_eq!((ended.exit, ended.given_up), (exit, true));
            assert!(started.elapsed() < Duration::from_secs(30));
        }
    }
}
