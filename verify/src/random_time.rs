//! A moment drawn from those that retention promises: a drill that always restores the newest
//! one never finds out that an older one is gone.

use jiff::{SignedDuration, Timestamp};
use seawall::config::RetentionConfig;
use seawall::digest::PlainHasher;
use seawall::error::{Error, Result};
use seawall::repository::System;
use seawall::repository::catalogue::Catalogue;

use crate::report::Drawn;

/// Draws a moment from what `rules` promise of `system`, by `seed`, or by a new one.
///
/// The window begins where the rules say, but not before the oldest backup; it ends with the
/// last archived commit. Whether every moment in it can be recovered is what the drill is to
/// find out.
///
/// # Errors
/// Exit code 5 where nothing can be recovered to, besides what keeps the repository from being
/// read.
pub async fn draw(
    system: &System,
    rules: &RetentionConfig,
    seed: Option<u64>,
    now: Timestamp,
) -> Result<(Timestamp, Drawn)> {
    let catalogue = Catalogue::load(system).await?;
    let archived = catalogue.everything_archived().await?;
    let windows = catalogue.windows(&archived).await;
    // Of the line that recovery follows: what was written on one that was left cannot be reached
    // on it.
    let line = catalogue.history(catalogue.newest_timeline())?;
    let on_line: Vec<_> = catalogue
        .backups
        .iter()
        .zip(&windows)
        .filter(|(backup, _)| backup.damaged_page_count == 0)
        .filter(|(backup, _)| line.contains(backup.timeline, backup.stop_lsn))
        .collect();
    let mut ends: Vec<Timestamp> = on_line.iter().map(|(backup, _)| backup.stop_time).collect();
    ends.sort();
    let until = on_line
        .iter()
        .filter_map(|(_, window)| window.as_ref()?.to)
        .max();
    let nothing = || {
        Error::unreachable("no moment can be drawn: no commit is archived behind a backup")
            .at(system.place())
            .hint("take a backup with `seawall backup`, and wait until WAL behind it is archived")
    };
    let until = until.ok_or_else(nothing)?;
    let from = promised_from(&ends, rules, now).ok_or_else(nothing)?;
    if from >= until {
        return Err(nothing());
    }
    let seed = seed.unwrap_or_else(rand::random);
    let drawn = Drawn { seed, from, until };
    Ok((moment(&drawn), drawn))
}

/// From when on the rules promise every moment. `ends`: when the good backups ended, oldest
/// first.
fn promised_from(ends: &[Timestamp], rules: &RetentionConfig, now: Timestamp) -> Option<Timestamp> {
    let oldest = *ends.first()?;
    let window = rules.recovery_window.and_then(|window| {
        let window = SignedDuration::try_from(window.0).ok()?;
        now.checked_sub(window).ok()
    });
    let full = rules.full.map(|count| {
        let behind = ends.len().saturating_sub(count.max(1) as usize);
        ends[behind]
    });
    let promised = match (
        [window, full].into_iter().flatten().min(),
        rules.has_rules(),
    ) {
        (Some(promised), _) => promised,
        // Of hourly to yearly backups only the end of each is promised, and all since the last.
        (None, true) => *ends.last()?,
        (None, false) => oldest,
    };
    Some(promised.max(oldest))
}

/// The moment that a seed draws from a window, to the microsecond; never its end, which
/// `--time` does not reach.
fn moment(drawn: &Drawn) -> Timestamp {
    let mut hasher = PlainHasher::default();
    hasher.update(&drawn.seed.to_be_bytes());
    let digits = hasher.finish().to_string();
    // 52 of its bits, as many as a float holds.
    let bits = digits
        .get(..13)
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let part = bits.unwrap_or(0) as f64 / (1_u64 << 52) as f64;
    let from = drawn.from.as_microsecond();
    let length = drawn.until.as_microsecond().saturating_sub(from);
    let moment = from + (part * length as f64) as i64;
    Timestamp::from_microsecond(moment).unwrap_or(drawn.from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seawall::config::HumanDuration;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hour * 3600).unwrap()
    }

    #[test]
    fn what_is_promised_begins_with_the_widest_rule_and_not_before_the_oldest_backup() {
        let ends = [at(0), at(24), at(48)];
        let window = |hours: u64| Some(HumanDuration::from_secs(hours * 3600));
        for (recovery_window, full, begin) in [
            (None, None, at(0)),
            (window(10), None, at(50)),
            (window(999), None, at(0)),
            (None, Some(1), at(48)),
            (None, Some(2), at(24)),
            (None, Some(9), at(0)),
            (window(10), Some(2), at(24)),
        ] {
            let rules = RetentionConfig {
                recovery_window,
                full,
                ..RetentionConfig::default()
            };
            assert_eq!(
                promised_from(&ends, &rules, at(60)),
                Some(begin),
                "{rules:?}"
            );
        }
        let rules = RetentionConfig {
            daily: Some(7),
            ..RetentionConfig::default()
        };
        assert_eq!(promised_from(&ends, &rules, at(60)), Some(at(48)));
        assert_eq!(
            promised_from(&[], &RetentionConfig::default(), at(60)),
            None
        );
    }

    #[test]
    fn a_seed_draws_the_same_moment_again_and_seeds_draw_all_over_the_window() {
        let draw = |seed| {
            moment(&Drawn {
                seed,
                from: at(0),
                until: at(100),
            })
        };
        assert_eq!(draw(7), draw(7));
        let mut tenths = [0; 10];
        for seed in 0..1000 {
            let hours = draw(seed).duration_since(at(0)).as_secs_f64() / 3600.0;
            assert!((0.0..100.0).contains(&hours), "{hours}");
            tenths[(hours / 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| *count > 60), "{tenths:?}");
    }
}
