//! Cleans up after a test process that could not do so itself: one that was killed, by a
//! time limit, by Ctrl-C, by the kernel for want of memory.
//!
//! A watchdog process holds the reading end of a pipe of which only this process has the
//! writing end. It is told of every server and directory that comes and goes. When the pipe
//! closes, this process is gone, and the watchdog ends and removes what is still on its list:
//! by process id, nothing by name. (Not `PR_SET_PDEATHSIG`: it acts when the *thread* that
//! started a server ends, not the process.)

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

const WATCHDOG: &str = r#"
declare -A pids directories
while read -r verb value; do
    case $verb in
        started) pids[$value]=1 ;;
        ended) unset "pids[$value]" ;;
        made) directories[$value]=1 ;;
        removed) unset "directories[$value]" ;;
    esac
done
tree() { # the process and all that it started
    local child
    echo "$1"
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$child"; done
}
for pid in "${!pids[@]}"; do
    all=$(tree "$pid")
    shared=$(for process in $all; do grep -o '/dev/shm/[^ ]*' /proc/"$process"/maps; done)
    kill -9 $all 2>/dev/null
    # What a killed server leaves behind: files in memory, and segments, of which a machine has
    # 4,096.
    rm -f $shared
    while read -r id _ creator _; do
        case " $(echo $all) " in *" $creator "*) ipcrm -m "$id" 2>/dev/null ;; esac
    done < <(ipcs -m -p)
done
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    left=no
    for directory in "${!directories[@]}"; do
        rm -rf "$directory" 2>/dev/null
        [ -e "$directory" ] && left=yes
    done
    [ $left = no ] && exit
    sleep 0.2
done
"#;

/// A server was started.
pub fn started(pid: u32) {
    tell("started", &pid.to_string());
}

/// It has ended and was waited for: its id may be somebody else's from now on.
pub fn ended(pid: u32) {
    tell("ended", &pid.to_string());
}

/// A directory was made that must not outlive this process.
pub fn made(directory: &Path) {
    tell("made", &directory.to_string_lossy());
}

/// It is gone, or is to be kept.
pub fn removed(directory: &Path) {
    tell("removed", &directory.to_string_lossy());
}

fn tell(verb: &str, value: &str) {
    static PIPE: OnceLock<Mutex<Option<ChildStdin>>> = OnceLock::new();
    let pipe = PIPE.get_or_init(|| {
        let child = Command::new("bash")
            .args(["-c", WATCHDOG])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // A time limit kills the whole process group of a test.
            .process_group(0)
            .spawn();
        Mutex::new(child.ok().and_then(|child| child.stdin))
    });
    let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pipe) = pipe.as_mut() {
        // Without a watchdog tests still clean up after themselves in all ordinary cases.
        let _ = writeln!(pipe, "{verb} {value}");
    }
}
