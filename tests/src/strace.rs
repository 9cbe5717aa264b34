//! What strace wrote, one whole call a line.

use std::collections::HashMap;

/// The calls of an `strace -f` log in the order in which they returned. strace cuts a call in
/// two (`<unfinished ...>`, `<... resumed>`) when another thread calls meanwhile; here the
/// halves are one line again, at the place of the second. A call that never returned, such
/// as `exit_group`, stands where it began.
#[must_use]
pub fn calls(log: &str) -> Vec<String> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(start) = call.trim_start().strip_suffix(" <unfinished ...>") {
            if start.starts_with("exit") {
                calls.push(line.to_owned());
            } else {
                begun.insert(thread, start);
            }
        } else if let Some((_, end)) = call.split_once(" resumed>") {
            // The half of a call that never returns was already taken whole.
            if let Some(start) = begun.remove(thread) {
                calls.push(format!("{thread} {start}{end}"));
            }
        } else {
            calls.push(line.to_owned());
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::calls;

    #[test]
    fn the_halves_of_a_call_are_one_line_where_it_returned() {
        let log = "7 fsync(9</a> <unfinished ...>\n\
                   8 write(4, \"x\", 1) = 1\n\
                   7 <... fsync resumed>) = 0\n\
                   7 exit_group(0 <unfinished ...>\n\
                   8 +++ exited with 0 +++\n\
                   7 <... exit_group resumed>) = ?\n";
        let expected = [
            "8 write(4, \"x\", 1) = 1",
            "7 fsync(9</a>) = 0",
            "7 exit_group(0 <unfinished ...>",
            "8 +++ exited with 0 +++",
        ];
        assert_eq!(calls(log), expected);
    }
}
