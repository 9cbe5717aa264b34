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
