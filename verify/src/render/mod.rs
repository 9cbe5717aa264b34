//! The report in every form that people and machines read, but for JSON, which is the
//! [`Report`](crate::report::Report) itself. Whatever comes from outside (names, SQL, log
//! lines, error messages) is escaped as each form asks for.

mod facts;
mod history;
mod html;
mod junit;
mod markdown;
#[cfg(test)]
pub(crate) mod sample;
mod terminal;
mod words;

pub use history::history;
pub use html::html;
pub use junit::junit;
pub use markdown::markdown;
pub use terminal::terminal;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_that_ended_at_once_says_so_in_every_form() {
        let report = sample::broken();
        for (form, text) in [
            ("terminal", terminal(&report)),
            ("markdown", markdown(&report)),
            ("junit", junit(&report).unwrap()),
            ("html", html(&report)),
        ] {
            for words in ["never answered", "the repository does not answer"] {
                assert!(text.contains(words), "{form}: {words}\n{text}");
            }
            assert!(
                !text.contains("NaN") && !text.contains("inf"),
                "{form}\n{text}"
            );
        }
        // What was not looked at is said, and not left out.
        let page = html(&report);
        for words in [
            "Nothing was checked",
            "No command was run",
            "first drill on record",
        ] {
            assert!(page.contains(words), "{words}");
        }
        assert!(page.matches("Not tested").count() >= 2, "{page}");
    }
}
