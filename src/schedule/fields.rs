//! The five fields of a crontab(5) line, read by its rules into sets of numbers, and written
//! out as the `cron` crate wants them.

use std::collections::BTreeSet;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const MACROS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// What one field may hold.
struct Kind {
    name: &'static str,
    first: u8,
    last: u8,
    names: &'static [&'static str],
}

/// Minute, hour, day of the month, month, day of the week; there 7 is Sunday as well.
const KINDS: [Kind; 5] = [
    kind("minute", 0, 59, &[]),
    kind("hour", 0, 23, &[]),
    kind("day of the month", 1, 31, &[]),
    kind("month", 1, 12, &MONTHS),
    kind("day of the week", 0, 7, &DAYS),
];

const fn kind(name: &'static str, first: u8, last: u8, names: &'static [&'static str]) -> Kind {
    Kind {
        name,
        first,
        last,
        names,
    }
}

/// One field: the numbers that it allows.
struct Field {
    allowed: BTreeSet<u8>,
    // crontab(5): a field that begins with a star does not restrict the days.
    star: bool,
}

/// The five fields.
pub(super) struct Fields([Field; 5]);

impl Fields {
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let wrong = |why: String| Err(format!("{line:?} is not a crontab line: {why}"));
        let text = line.trim();
        let text = match text.strip_prefix('@') {
            None => text,
            Some(_) => match MACROS.iter().find(|m| m.0.eq_ignore_ascii_case(text)) {
                Some((_, fields)) => fields,
                None => {
                    let known: Vec<_> = MACROS.iter().map(|m| m.0).collect();
                    return wrong(format!("of the short forms it may be {}", known.join(", ")));
                }
            },
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let Ok(words) = <[&str; 5]>::try_from(words.as_slice()) else {
            return wrong(format!(
                "it has {} fields; wanted are minute, hour, day of the month, month, day of the week",
                words.len()
            ));
        };
        let mut fields = Vec::with_capacity(5);
        for (word, kind) in words.iter().zip(&KINDS) {
            match kind.read(word) {
                Ok(field) => fields.push(field),
                Err(why) => return wrong(format!("{} {word:?}: {why}", kind.name)),
            }
        }
        match fields.try_into() {
            Ok(fields) => Ok(Self(fields)),
            Err(_) => wrong("it has not five fields".into()),
        }
    }

    /// The line in the crate's words: one schedule, or two of which the earlier counts.
    pub(super) fn quartz(&self) -> Vec<String> {
        let [minute, hour, day, month, weekday] = &self.0;
        let line = |day: &str, weekday: &str| {
            let (minute, hour, month) = (numbers(minute), numbers(hour), numbers(month));
            format!("0 {minute} {hour} {day} {month} {weekday}")
        };
        let (days, weekdays) = (numbers(day), names_of_days(weekday));
        match day.star || weekday.star {
            true => vec![line(&days, &weekdays)],
            false => vec![line(&days, "*"), line("*", &weekdays)],
        }
    }
}

impl Kind {
    fn read(&self, word: &str) -> Result<Field, String> {
        let mut allowed = BTreeSet::new();
        for part in word.split(',') {
            let (range, step) = match part.split_once('/') {
                None => (part, None),
                Some((range, step)) => {
                    let step: u8 = step
                        .parse()
                        .ok()
                        .filter(|step| *step > 0)
                        .ok_or_else(|| format!("{step:?} is not a step from 1 on"))?;
                    (range, Some(step))
                }
            };
            let (from, to) = match range.split_once('-') {
                _ if range == "*" => (self.first, self.last),
                Some((from, to)) => (self.number(from)?, self.end(to)?),
                None if step.is_some() => {
                    let last = self.last;
                    return Err(format!(
                        "a step needs a range before it: write {range}-{last}/…"
                    ));
                }
                None => (self.number(range)?, self.number(range)?),
            };
            if from > to {
                return Err(format!("the range {range} runs backwards: write two"));
            }
            // `*` of the week ends on Saturday: Sunday is in it already.
            let to = match (range, self.names.len()) {
                ("*", 7) => 6,
                _ => to,
            };
            allowed.extend((from..=to).step_by(step.unwrap_or(1).into()));
        }
        if self.names.len() == 7 && allowed.remove(&7) {
            allowed.insert(0);
        }
        Ok(Field {
            allowed,
            star: word.starts_with('*'),
        })
    }

    fn number(&self, word: &str) -> Result<u8, String> {
        let named = |name: &&&str| name.eq_ignore_ascii_case(word);
        if let Some(at) = self.names.iter().position(|name| named(&name)) {
            // Months are counted from 1, days from 0, each from its first.
            return Ok(at as u8 + self.first);
        }
        let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        let number = word.parse::<u8>().ok().filter(|_| digits);
        number
            .filter(|number| (self.first..=self.last).contains(number))
            .ok_or_else(|| {
                format!(
                    "{word:?} is not a number from {} to {}",
                    self.first, self.last
                )
            })
    }

    /// The end of a range: a week may end on Sunday.
    fn end(&self, word: &str) -> Result<u8, String> {
        match self.names.len() == 7 && word.eq_ignore_ascii_case("sun") {
            true => Ok(7),
            false => self.number(word),
        }
    }
}

fn numbers(field: &Field) -> String {
    let all: Vec<_> = field.allowed.iter().map(u8::to_string).collect();
    all.join(",")
}

/// Names, since the crate counts Sunday as 1.
fn names_of_days(field: &Field) -> String {
    let names = field.allowed.iter().map(|day| DAYS[usize::from(*day) % 7]);
    names.collect::<Vec<_>>().join(",")
}
