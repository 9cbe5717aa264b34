//! **For tests.** The plan of a fault store: its text, and when which rule applies.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::path::Path;
use rand::{RngExt, SeedableRng};

/// When which calls fail, and how; see the module. Clones share their counters.
#[derive(Clone)]
pub struct FaultPlan(Arc<Plan>);

struct Plan {
    text: String,
    store: Option<String>,
    rules: Vec<Rule>,
    chance: Mutex<rand::rngs::StdRng>,
    calls: AtomicU64,
    injected: AtomicU64,
}

struct Rule {
    operation: Operation,
    key: Option<String>,
    when: When,
    fault: Fault,
    seen: AtomicU64,
}

enum When {
    Always,
    Between(u64, u64),
    Percent(f64),
}

/// A text that is no plan.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no rule of a fault plan: {1}")]
pub struct FaultPlanError(String, &'static str);

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name { $($variant),* }
        impl $name {
            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words! {
    /// What can fail.
    Operation {
        Any = "any", Get = "get", Head = "head", Put = "put", Delete = "delete", List = "list",
        Begin = "begin", Part = "part", Complete = "complete", Abort = "abort",
        Copy = "copy",
    }
}

words! {
    /// How it fails.
    Fault {
        Refused = "refused", Forbidden = "403", Unclear = "404", Absent = "absent",
        NoBucket = "nobucket", Broken = "500", Busy = "503", Full = "full", Hang = "hang",
        Lost = "lost", Late = "late", Truncate = "truncate", Break = "break",
        Garble = "garble", Longer = "longer", Empty = "empty", Far = "far",
    }
}

impl FaultPlan {
    /// How many calls reached the store, failed ones included.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// How many of them failed as told.
    pub fn injected(&self) -> u64 {
        self.0.injected.load(Ordering::Relaxed)
    }

    /// Whether the plan is about the store at this URL.
    pub(super) fn concerns(&self, url: &str) -> bool {
        self.0
            .store
            .as_ref()
            .is_none_or(|part| url.contains(part.as_str()))
    }

    /// Counts a call, and says how it is to fail.
    pub(super) fn choose(&self, operation: Operation, key: &Path) -> Option<Fault> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        let mut chosen = None;
        // Every rule counts, also behind one that applies.
        for rule in &self.0.rules {
            let concerned = (rule.operation == Operation::Any || rule.operation == operation)
                && rule
                    .key
                    .as_ref()
                    .is_none_or(|part| key.as_ref().contains(part.as_str()));
            if !concerned {
                continue;
            }
            let number = rule.seen.fetch_add(1, Ordering::Relaxed) + 1;
            let applies = match rule.when {
                When::Always => true,
                When::Between(first, last) => (first..=last).contains(&number),
                When::Percent(percent) => {
                    let mut chance = self.0.chance.lock().unwrap_or_else(PoisonError::into_inner);
                    chance.random_range(0.0..100.0) < percent
                }
            };
            if applies && chosen.is_none() {
                chosen = Some(rule.fault);
            }
        }
        if let Some(fault) = chosen {
            self.0.injected.fetch_add(1, Ordering::Relaxed);
            tracing::info!("fault injected: {operation:?} of {key}: {fault:?}");
        }
        chosen
    }
}

impl FromStr for FaultPlan {
    type Err = FaultPlanError;

    fn from_str(text: &str) -> Result<Self, FaultPlanError> {
        let (mut seed, mut store, mut rules) = (0, None, Vec::new());
        for rule in text
            .split([';', '\n'])
            .map(str::trim)
            .filter(|rule| !rule.is_empty())
        {
            let wrong = |why| FaultPlanError(rule.to_owned(), why);
            let (left, right) = rule.rsplit_once('=').ok_or_else(|| wrong("it has no ="))?;
            match left {
                "seed" => seed = right.parse().map_err(|_| wrong("the seed is no number"))?,
                "store" => store = Some(right.to_owned()),
                _ => rules.push(parse_rule(left, right).map_err(wrong)?),
            }
        }
        Ok(Self(Arc::new(Plan {
            text: text.to_owned(),
            store,
            rules,
            chance: Mutex::new(rand::rngs::StdRng::seed_from_u64(seed)),
            calls: AtomicU64::new(0),
            injected: AtomicU64::new(0),
        })))
    }
}

fn parse_rule(left: &str, fault: &str) -> Result<Rule, &'static str> {
    const WHEN: &str = "when: @N, @N-M, @N+ or %P";
    let (left, when) = if let Some((left, percent)) = left.split_once('%') {
        (left, When::Percent(percent.parse().map_err(|_| WHEN)?))
    } else if let Some((left, numbers)) = left.split_once('@') {
        let number = |text: &str| text.parse().map_err(|_| WHEN);
        let (first, last) = match numbers.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => match numbers.strip_suffix('+') {
                Some(first) => (number(first)?, u64::MAX),
                None => (number(numbers)?, number(numbers)?),
            },
        };
        (left, When::Between(first, last))
    } else {
        (left, When::Always)
    };
    let (operation, key) = match left.split_once('[') {
        None => (left, None),
        Some((operation, key)) => {
            let key = key.strip_suffix(']').ok_or("[ without ]")?;
            (operation, Some(key.to_owned()))
        }
    };
    Ok(Rule {
        operation: Operation::from_word(operation.trim()).ok_or("unknown operation")?,
        key,
        when,
        fault: Fault::from_word(fault.trim()).ok_or("unknown fault")?,
        seen: AtomicU64::new(0),
    })
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultPlan").field(&self.0.text).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(plan: &FaultPlan, operation: Operation, key: &str, calls: u32) -> Vec<Option<Fault>> {
        (0..calls)
            .map(|_| plan.choose(operation, &Path::from(key)))
            .collect()
    }

    #[test]
    fn a_rule_applies_to_its_operation_key_and_number() {
        let plan: FaultPlan = "put[json]@2-3=500; get@1+=hang".parse().unwrap();
        assert_eq!(faults(&plan, Operation::Put, "a.zst", 2), [None, None]);
        let broken = Some(Fault::Broken);
        assert_eq!(
            faults(&plan, Operation::Put, "a.json", 4),
            [None, broken, broken, None]
        );
        assert_eq!(
            faults(&plan, Operation::Get, "a", 2),
            [Some(Fault::Hang); 2]
        );
        assert_eq!((plan.calls(), plan.injected()), (8, 4));
    }

    #[test]
    fn the_same_seed_fails_the_same_calls() {
        let run = |seed: u32| {
            let plan: FaultPlan = format!("seed={seed}; any%30=503").parse().unwrap();
            faults(&plan, Operation::List, "", 200)
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let failed = run(7).iter().flatten().count();
        assert!((30..90).contains(&failed), "{failed}");
    }

    #[test]
    fn a_text_that_is_no_plan_is_refused() {
        for text in [
            "put",
            "puts=500",
            "put=5000",
            "put@x=500",
            "put[a=500",
            "seed=x",
            "put%x=hang",
        ] {
            assert!(text.parse::<FaultPlan>().is_err(), "{text}");
        }
    }
}
