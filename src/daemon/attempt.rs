//! One attempt at a job: the look whether it may begin, and then its command, with the claim
//! held as long as that runs.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::accepted::Recipe;
use super::child::{self, Ended};
use super::look::{self, Look};
use super::operation::Job;

/// What became of an attempt.
pub(super) enum Outcome {
    /// It was not begun: the look said why. True: something is away.
    Waits(String, bool),
    /// Somebody else has done it.
    Elsewhere(String),
    /// The command ran.
    Ran(Timestamp, Ended),
    /// The command could not be started.
    Broken(String),
    /// The daemon ends before it began.
    GivenUp,
}

/// What an attempt needs.
pub(super) struct Attempt {
    pub(super) job: Job,
    /// The time on the schedule that it is for.
    pub(super) due: Timestamp,
    pub(super) recipe: Recipe,
    /// Says true when all is to be given up.
    pub(super) stop: watch::Receiver<bool>,
    /// Is told when the command begins.
    pub(super) begun: mpsc::UnboundedSender<Job>,
}

impl Attempt {
    pub(super) async fn run(self) -> Outcome {
        let Self {
            job,
            due,
            recipe,
            stop,
            begun,
        } = self;
        let mut told = stop.clone();
        let look = tokio::select! {
            look = look::look(&recipe.accepted.config, &job, due) => look,
            () = child::told(&mut told) => return Outcome::GivenUp,
        };
        let claim = match look {
            Look::Go(claim) => claim,
            Look::Done(what) => return Outcome::Elsewhere(what),
            Look::NotNow(why) => return Outcome::Waits(why, false),
            Look::Away(why) => return Outcome::Waits(why, true),
        };
        // It looks at the configuration's file, whose disk may hang.
        let order = tokio::select! {
            order = recipe.order() => Some(order),
            () = child::told(&mut told) => None,
        };
        let outcome = match order {
            None => Outcome::GivenUp,
            Some(order) => {
                let started = Timestamp::now();
                tracing::info!("{job}: begins, due {due}");
                let _ = begun.send(job.clone());
                match child::run(&order, stop).await {
                    Ok(ended) => Outcome::Ran(started, ended),
                    Err(error) => Outcome::Broken(format!(
                        "{} cannot be started: {error}",
                        order.program.display()
                    )),
                }
            }
        };
        if let Some(claim) = claim {
            // A store that is away must not hold up the end.
            let _ = tokio::time::timeout(Duration::from_secs(5), claim.release()).await;
        }
        outcome
    }
}

/// Whether two errors say the same, but for names, positions and figures.
pub(super) fn is_the_same(one: &str, other: &str) -> bool {
    fn words(text: &str) -> impl Iterator<Item = &str> {
        let words = text.split_whitespace();
        words.filter(|word| !word.bytes().any(|byte| byte.is_ascii_digit()))
    }
    words(one).eq(words(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_differ_in_names_and_figures_alone_say_the_same() {
        let first = "000000010000000000000002 did not arrive within 1 s";
        let second = "000000010000000000000003 did not arrive within 1 s";
        assert!(is_the_same(first, second));
        assert!(!is_the_same(first, "there is no repository here"));
    }
}
