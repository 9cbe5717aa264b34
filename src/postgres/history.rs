//! Timeline history files (`00000003.history`): from which timeline each one branched, and
//! where; so which WAL belongs to the line that a recovery follows.
//!
//! Facts: `readTimeLineHistory`, `tliOfPointInHistory` and `writeTimeLineHistory` in
//! `src/backend/access/transam/timeline.c`. It knows nothing of where the files are kept.

use super::{FormatError, Lsn, SegmentName, SegmentSize, TimelineId};

/// A timeline and all those it descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline itself, whose end is open.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first, each with the position where it was left.
    pub parents: Vec<HistoryEntry>,
}

/// One line of a history file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where its successor branched off: the first position that is no longer its own.
    pub switch: Lsn,
    /// Why, in PostgreSQL's words: `no recovery target specified`.
    pub reason: String,
}

/// The part of the WAL that one timeline contributes to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first position on it; 0 for the oldest.
    pub start: Lsn,
    /// The first position that its successor holds; none for the timeline itself.
    pub end: Option<Lsn>,
}

impl TimelineHistory {
    /// The history of timeline 1, which has no file.
    pub fn first() -> Self {
        Self::without_parents(TimelineId::FIRST)
    }

    /// A timeline without ancestors: what PostgreSQL takes one for that has no history file.
    pub fn without_parents(timeline: TimelineId) -> Self {
        Self {
            timeline,
            parents: Vec::new(),
        }
    }

    /// Reads the history file of `timeline`.
    ///
    /// Like PostgreSQL it ignores comments, empty lines and whatever follows a switch point,
    /// and refuses numbers that do not ascend. The reason may be in any encoding.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, FormatError> {
        let content = String::from_utf8_lossy(content);
        let mut parents: Vec<HistoryEntry> = Vec::new();
        for line in content.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| {
                let line: String = line.chars().take(120).collect();
                FormatError::new("timeline history file", format!("{why}: {line:?}"))
            };
            let (parent, rest) = line
                .split_once(char::is_whitespace)
                .ok_or_else(|| wrong("no switch point"))?;
            let parent: TimelineId = parent.parse().map_err(|_| wrong("no timeline"))?;
            let rest = rest.trim_start();
            let (switch, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let switch = switch.parse().map_err(|_| wrong("no switch point"))?;
            if parents.last().is_some_and(|last| last.timeline >= parent) || parent >= timeline {
                return Err(wrong("the timelines do not ascend"));
            }
            parents.push(HistoryEntry {
                timeline: parent,
                switch,
                reason: reason.trim_start().to_owned(),
            });
        }
        Ok(Self { timeline, parents })
    }

    /// What each timeline contributes, oldest first, without gaps; the last one is open.
    ///
    /// A timeline may contribute nothing. PostgreSQL names the timeline that a recovery
    /// *followed* as the parent also where it stopped before reaching it: with the target
    /// timeline 2 (begun at 0/5000000) and a stop at 0/4000000 on timeline 1, the file of 3
    /// reads `1 0/5000000`, `2 0/4000000`. The newest branch decides, as in PostgreSQL.
    pub fn spans(&self) -> impl Iterator<Item = Span> {
        // The start of each is the switch point of the entry before it.
        let starts = std::iter::once(Lsn(0)).chain(self.parents.iter().map(|p| p.switch));
        let timelines = self.parents.iter().map(|parent| parent.timeline);
        let timelines = timelines.chain([self.timeline]);
        let ends = (0..self.parents.len()).map(|i| {
            let later = self.parents[i..].iter();
            later.map(|parent| parent.switch).min()
        });
        let spans = timelines.zip(starts).zip(ends.chain([None]));
        spans
            .map(|((timeline, start), end)| Span {
                timeline,
                start,
                end,
            })
            .filter(|span| span.end.is_none_or(|end| span.start < end))
    }

    /// The timeline that holds the WAL at `lsn` on this line.
    pub fn ancestry_at(&self, lsn: Lsn) -> TimelineId {
        self.spans()
            .filter(|span| span.start <= lsn)
            .last()
            .map_or(self.timeline, |span| span.timeline)
    }

    /// Whether the position `lsn` on `timeline` lies on this line: recovery along it passes
    /// there. A switch point itself counts for the parent too: a backup that ended exactly
    /// there needs nothing that the child does not have.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.spans().any(|span| {
            span.timeline == timeline && span.start <= lsn && span.end.is_none_or(|end| lsn <= end)
        })
    }

    /// Whether `timeline` is this one or an ancestor that contributes to it.
    pub fn has(&self, timeline: TimelineId) -> bool {
        self.spans().any(|span| span.timeline == timeline)
    }

    /// Where `timeline` began on this line; 0 for the oldest. None if it is not of the line.
    pub fn begin_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let mut spans = self.spans();
        spans
            .find(|span| span.timeline == timeline)
            .map(|span| span.start)
    }

    /// Where `timeline` was left on this line. None if it is the open end or not of the line.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let mut spans = self.spans();
        spans.find(|span| span.timeline == timeline)?.end
    }

    /// The name under which recovery along this line first asks for segment `number`: of the
    /// newest timeline that had begun by that segment. The segment with a switch point exists
    /// under both names, and the child's begins with a copy of its parent's content.
    pub fn segment_name(&self, number: u64, size: SegmentSize) -> SegmentName {
        let timeline = self
            .spans()
            .filter(|span| span.start.segment(size) <= number)
            .last()
            .map_or(self.timeline, |span| span.timeline);
        SegmentName::new(timeline, number, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::control::ControlFile;
    use crate::postgres::testing::Server;
    use proptest::prelude::*;

    fn id(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn history(timeline: u32, content: &str) -> TimelineHistory {
        TimelineHistory::parse(id(timeline), content.as_bytes()).unwrap()
    }

    fn spans(history: &TimelineHistory) -> Vec<(u32, u64, Option<u64>)> {
        let spans = history.spans();
        spans
            .map(|s| (s.timeline.get(), s.start.0, s.end.map(|e| e.0)))
            .collect()
    }

    #[test]
    fn a_line_is_read_as_postgresql_reads_it() {
        let history = history(
            4,
            "# made by hand\n\n1\t0/5000000\tbefore 2026-11-20 11:09:25+00\n\n  3 1/00000028 at restore point \"x\"\n",
        );
        assert_eq!(
            spans(&history),
            [
                (1, 0, Some(0x500_0000)),
                (3, 0x500_0000, Some(0x1_0000_0028)),
                (4, 0x1_0000_0028, None)
            ]
        );
        assert_eq!(history.parents[0].reason, "before 2026-11-20 11:09:25+00");
        let at = |lsn| history.ancestry_at(Lsn(lsn)).get();
        assert_eq!((at(0), at(0x4FF_FFFF), at(0x500_0000)), (1, 1, 3));
        assert_eq!(
            (at(0x1_0000_0027), at(0x1_0000_0028), at(u64::MAX)),
            (3, 4, 4)
        );
        assert_eq!(history.begin_of(id(3)), Some(Lsn(0x500_0000)));
        assert_eq!(history.end_of(id(3)), Some(Lsn(0x1_0000_0028)));
        assert_eq!(
            (history.begin_of(id(2)), history.end_of(id(4))),
            (None, None)
        );
    }

    #[test]
    fn a_position_past_a_switch_point_is_not_on_the_childs_line() {
        let history = history(3, "1\t0/5000000\tx\n");
        for (timeline, lsn, on_it) in [
            (1, 0x4FF_FFFF, true),
            (1, 0x500_0000, true),
            (1, 0x500_0001, false),
            (2, 0x400_0000, false),
            (3, 0x4FF_FFFF, false),
            (3, 0x500_0000, true),
            (3, u64::MAX, true),
        ] {
            assert_eq!(
                history.contains(id(timeline), Lsn(lsn)),
                on_it,
                "{timeline} {lsn:X}"
            );
        }
        assert!(TimelineHistory::first().contains(TimelineId::FIRST, Lsn(7)));
    }

    #[test]
    fn a_parent_that_was_followed_but_never_reached_contributes_nothing() {
        let history = history(3, "1\t0/5000000\tx\n2\t0/4000000\ty\n");
        assert_eq!(
            spans(&history),
            [(1, 0, Some(0x400_0000)), (3, 0x400_0000, None)]
        );
        assert_eq!(history.ancestry_at(Lsn(0x480_0000)), id(3));
        assert!(!history.contains(id(1), Lsn(0x480_0000)));
        assert!(!history.has(id(2)));
    }

    #[test]
    fn the_segment_with_a_switch_point_is_asked_for_by_the_childs_name() {
        let history = history(2, "1\t0/5800000\tx\n");
        let name = |number| {
            history
                .segment_name(number, SegmentSize::DEFAULT)
                .to_string()
        };
        assert_eq!(name(4), "000000010000000000000004");
        assert_eq!(name(5), "000000020000000000000005");
    }

    #[test]
    fn wrong_files_are_refused() {
        for wrong in [
            "x\t0/1\ty",
            "1",
            "1\t",
            "1\tzero\tx",
            "0\t0/1\tx",
            "2\t0/1\tx\n1\t0/2\tx",
            "1\t0/1\tx\n1\t0/2\tx",
            "5\t0/1\tx",
            "6\t0/1\tx",
            "-1\t0/1\tx",
        ] {
            let read = TimelineHistory::parse(id(5), wrong.as_bytes());
            assert!(read.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn two_promotions_of_a_live_server_give_the_line_that_it_lived() {
        let mut server = Server::start();
        for _ in 0..2 {
            server.stop();
            server.write(&server.data().join("standby.signal"), "");
            server.launch();
            server.sql("select pg_promote()");
            server.sql("create temp table t(); checkpoint");
        }
        let file = std::fs::read(server.data().join("pg_wal/00000003.history")).unwrap();
        let history = TimelineHistory::parse(id(3), &file).unwrap();
        let lived: Vec<u32> = history.spans().map(|s| s.timeline.get()).collect();
        assert_eq!(lived, [1, 2, 3]);
        assert_eq!(history.parents[0].reason, "no recovery target specified");
        let control = ControlFile::read(&server.data()).unwrap();
        assert_eq!(control.timeline, id(3));
        assert!(history.contains(id(3), control.redo));
        assert!(!history.contains(id(2), control.checkpoint));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(text in "[0-9A-F/\t\n #x]{0,60}", lsn: u64) {
            if let Ok(history) = TimelineHistory::parse(id(9), text.as_bytes()) {
                let _ = history.ancestry_at(Lsn(lsn));
            }
        }

        #[test]
        fn every_position_lies_on_exactly_the_timeline_that_contributes_it(
            switches in proptest::collection::vec(0u64..100, 0..6), lsn in 0u64..110
        ) {
            let parents = switches.iter().zip(1..).map(|(switch, number)| HistoryEntry {
                timeline: id(number),
                switch: Lsn(*switch),
                reason: String::new(),
            });
            let history = TimelineHistory { timeline: id(7), parents: parents.collect() };
            let mut end = Lsn(0);
            for span in history.spans() {
                prop_assert_eq!(span.start, end);
                end = span.end.unwrap_or(Lsn(u64::MAX));
            }
            prop_assert_eq!(end, Lsn(u64::MAX));
            // PostgreSQL's own rule: the newest timeline whose span holds the position.
            let begins = [&[0][..], &switches].concat();
            let newest = (0..=switches.len()).rev().find(|i| {
                (*i == 0 || begins[*i] <= lsn) && switches.get(*i).is_none_or(|end| lsn < *end)
            });
            let newest = newest.map(|i| match i == switches.len() {
                true => 7,
                false => i as u32 + 1,
            });
            prop_assert_eq!(Some(history.ancestry_at(Lsn(lsn)).get()), newest);
        }
    }
}
