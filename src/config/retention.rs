//! What a repository keeps, and how long.

use std::time::Duration;

use serde::Deserialize;

use super::HumanDuration;

/// How long what is to be deleted waits, unless configured: longer than any lease, and than any
/// pause of a machine.
const DELETE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The shortest wait that is accepted: twice the time of a lease.
const SHORTEST_WAIT: Duration = Duration::from_secs(1200);

/// The rules by which a repository keeps base backups, and the WAL that they need. A backup is
/// kept if any rule keeps it; without any rule everything is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Every moment of so much time before now stays recoverable.
    pub recovery_window: Option<HumanDuration>,
    /// So many of the newest full backups stay, with what was taken on top of them, and all
    /// WAL from the oldest of them on.
    pub full: Option<u32>,
    /// The newest backup of each of so many hours that have one.
    pub hourly: Option<u32>,
    /// The newest backup of each of so many days that have one.
    pub daily: Option<u32>,
    /// The newest backup of each of so many weeks (from Monday) that have one.
    pub weekly: Option<u32>,
    /// The newest backup of each of so many months that have one.
    pub monthly: Option<u32>,
    /// The newest backup of each of so many years that have one.
    pub yearly: Option<u32>,
    /// A backup goes only when so many repositories hold it, this one included, or when no
    /// other one that lacks it would keep it by its own rules. Default: this one and every copy
    /// that is filled from it.
    pub minimum_copies: Option<u32>,
    /// A backup goes only when a newer one of those that stay was proven by a drill.
    pub prove_before_expire: bool,
    /// How long what no rule keeps waits between being named and being deleted: longer than
    /// any lease, and than any pause of a machine that takes a backup. Default: one day.
    pub delete_after: Option<HumanDuration>,
}

impl RetentionConfig {
    /// Whether any rule says what stays. Without one, everything does.
    pub fn has_rules(&self) -> bool {
        self.recovery_window.is_some()
            || self.full.is_some()
            || self.periods().iter().any(Option::is_some)
    }

    /// How many hours, days, weeks, months and years keep their newest backup.
    pub fn periods(&self) -> [Option<u32>; 5] {
        [
            self.hourly,
            self.daily,
            self.weekly,
            self.monthly,
            self.yearly,
        ]
    }

    /// How long what is to be deleted waits.
    pub fn wait(&self) -> Duration {
        self.delete_after.map_or(DELETE_AFTER, |wait| wait.0)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let counts = [self.full, self.minimum_copies];
        if counts.iter().chain(&self.periods()).any(|n| *n == Some(0)) {
            return Err(
                "a number in retention must be at least 1; leave a rule out that is not wanted"
                    .to_owned(),
            );
        }
        let days = Duration::from_secs(100 * 366 * 86_400);
        if self.recovery_window.is_some_and(|window| window.0 > days) || self.wait() > days {
            return Err("a duration in retention must be at most 100 years".to_owned());
        }
        if self.wait() < SHORTEST_WAIT {
            return Err(
                "retention.delete_after must be at least 20m: a lease holds half as long"
                    .to_owned(),
            );
        }
        let safe_without_rules = !self.prove_before_expire && self.minimum_copies.is_none();
        if !self.has_rules() && !safe_without_rules {
            return Err("retention.prove_before_expire and minimum_copies only hold back what rules let go: give recovery_window, full, hourly, daily, weekly, monthly or yearly as well".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RetentionConfig, String> {
        let config: RetentionConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate()?;
        Ok(config)
    }

    #[test]
    fn rules_read_and_what_cannot_be_meant_is_refused() {
        assert!(!parse("").unwrap().has_rules());
        let rules = parse("recovery_window = \"14d\"\nfull = 2\nmonthly = 12").unwrap();
        assert!(rules.has_rules());
        assert_eq!(rules.periods()[3], Some(12));
        assert_eq!(rules.wait(), DELETE_AFTER);
        for wrong in [
            "full = 0",
            "weekly = 0",
            "full = 1\nminimum_copies = 0",
            "full = 1\ndelete_after = \"19m\"",
            "recovery_window = \"200years\"",
            "prove_before_expire = true",
            "minimum_copies = 2",
            "fulls = 2",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
