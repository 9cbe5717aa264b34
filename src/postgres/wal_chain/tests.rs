use super::*;
use crate::postgres::SegmentName;
use crate::postgres::control::ControlFile;
use crate::postgres::history::TimelineHistory;
use crate::postgres::testing::Server;
use proptest::prelude::*;

/// The segments of a server's pg_wal that are written, by timeline and number.
fn segments(server: &Server) -> Vec<(SegmentName, u64, Vec<u8>)> {
    let size = ControlFile::read(&server.data()).unwrap().segment_size;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(server.data().join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        let Ok(name) = entry.file_name().to_str().unwrap().parse::<SegmentName>() else {
            continue;
        };
        let bytes = std::fs::read(entry.path()).unwrap();
        let written = LongPageHeader::parse(&bytes)
            .is_ok_and(|header| header.page_address == name.start(size).unwrap());
        if written {
            found.push((name, name.number(size).unwrap(), bytes));
        }
    }
    found.sort_by_key(|(name, ..)| *name);
    found
}

fn chain(bytes: &[u8]) -> Chain {
    read(bytes).unwrap().unwrap()
}

#[test]
fn the_segments_of_a_live_server_follow_each_other_and_no_others() {
    let mut server = Server::with(&["--wal-segsize=1"], "wal_keep_size = '500MB'");
    server
        .sql("create table t as select n, repeat('x', 300) as x from generate_series(1, 30000) n");
    server.sql("select pg_switch_wal()");
    // A record longer than a segment.
    server.sql("select pg_logical_emit_message(true, 'x', repeat('y', 2500000))");
    server.sql("update t set n = n + 1 where n < 9000");
    server.stop();
    let chains: Vec<Chain> = segments(&server).iter().map(|s| chain(&s.2)).collect();
    assert!(chains.len() > 12, "{}", chains.len());
    let (mut cut, mut switched, mut through) = (0, 0, 0);
    for pair in chains.windows(2) {
        assert_eq!(
            follows(&pair[0], &pair[1]),
            Fit::Follows,
            "{:?}",
            pair[0].end
        );
        match pair[0].end {
            End::Cut(_) => cut += 1,
            End::Switched => switched += 1,
            End::Through(_) => through += 1,
            _ => {}
        }
    }
    assert!(
        cut > 3 && switched == 1 && through >= 1,
        "{cut} {switched} {through}"
    );
    for pair in chains.windows(3) {
        assert!(matches!(follows(&pair[0], &pair[2]), Fit::Breaks(_)));
        assert!(matches!(follows(&pair[2], &pair[0]), Fit::Breaks(_)));
    }
    let last = chains.last().unwrap();
    assert!(matches!(last.end, End::Stopped { .. }), "{:?}", last.end);
}

#[test]
fn a_record_that_crosses_the_border_is_known_by_its_checksum_alone() {
    let mut server = Server::with(&["--wal-segsize=1"], "wal_keep_size = '500MB'");
    server.sql("create table t as select repeat('x', 300) from generate_series(1, 9000)");
    server.stop();
    let segments = segments(&server);
    let cut = segments.windows(2).find_map(|pair| {
        let (previous, next) = (chain(&pair[0].2), chain(&pair[1].2));
        (matches!(previous.end, End::Cut(_)) && next.rest_length > 8)
            .then_some((previous, &pair[1].2))
    });
    let (previous, next) = cut.unwrap();
    // What another server may have written: the same lengths and places, other content.
    let mut other = next.clone();
    other[LONG_HEADER_SIZE] ^= 1;
    assert_eq!(follows(&previous, &chain(next)), Fit::Follows);
    match follows(&previous, &chain(&other)) {
        Fit::Breaks(why) => assert!(why.contains("checksum"), "{why}"),
        fit => panic!("{fit:?}"),
    }
    // A byte that is wrong further on ends the segment's records there.
    let mut damaged = next.clone();
    damaged[700_000] ^= 1;
    assert!(matches!(chain(&damaged).end, End::Stopped { .. }));
}

#[test]
fn a_new_timeline_goes_on_from_its_parent_and_names_where_it_began() {
    let mut server = Server::with(&["--wal-segsize=1"], "wal_keep_size = '500MB'");
    server.sql("create table t as select repeat('x', 300) from generate_series(1, 9000)");
    for _ in 0..2 {
        server.stop();
        server.write(&server.data().join("standby.signal"), "");
        server.launch();
        server.sql("select pg_promote()");
        server.sql("insert into t select repeat('y', 300) from generate_series(1, 9000)");
    }
    server.stop();
    let found = segments(&server);
    for to in [2, 3] {
        let to = TimelineId::new(to).unwrap();
        let file = server.data().join(format!("pg_wal/{}.history", to.hex()));
        let history = TimelineHistory::parse(to, &std::fs::read(file).unwrap()).unwrap();
        let parent = history.parents.last().unwrap();
        let (_, number, bytes) = found.iter().find(|s| s.0.timeline == to).unwrap();
        let first = chain(bytes);
        let switch = first.switch.unwrap();
        assert!(switch.is_at(parent.switch), "{switch:?} {parent:?}");
        assert_eq!((switch.from, switch.to), (parent.timeline, to));
        let before = found
            .iter()
            .find(|s| s.0.timeline == parent.timeline && s.1 == number - 1);
        assert_eq!(follows(&chain(&before.unwrap().2), &first), Fit::Follows);
    }
}

#[test]
fn a_record_that_a_crash_cut_at_the_border_and_what_overwrites_it_follow_each_other() {
    // As PostgreSQL's own test does it (src/test/recovery/t/026_overwrite_contrecord.pl).
    let settings = "wal_keep_size = '500MB'\nautovacuum = off\n";
    let mut server = Server::with(&["--wal-segsize=1"], settings);
    server.sql("create table filler (a int, b text)");
    server.sql(
        "do $$ declare wal_segsize int := 1048576; remain int; iters int := 0; begin
           loop
             insert into filler select g, repeat(md5(g::text), (random() * 60 + 1)::int)
               from generate_series(1, 10) g;
             remain := wal_segsize - (pg_current_wal_insert_lsn() - '0/0') % wal_segsize;
             if remain < 2 * 8192 then
               exit;
             end if;
             iters := iters + 1;
           end loop;
         end $$",
    );
    let cut = server.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    server.sql("select pg_logical_emit_message(true, 'cut', repeat('xyzxz', 123456))");
    let lost = server.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    let (cut, lost) = (cut.trim(), lost.trim());
    assert_ne!(cut, lost);
    server.crash();
    std::fs::remove_file(server.data().join("pg_wal").join(lost)).unwrap();
    server.launch();
    server.sql("insert into filler select 1, 'after'");
    server.stop();
    let found = segments(&server);
    let of = |name: &str| {
        let segment = found.iter().find(|s| s.0.to_string() == name);
        chain(&segment.unwrap_or_else(|| panic!("{name}")).2)
    };
    let (before, overwriting) = (of(cut), of(lost));
    assert!(matches!(before.end, End::Cut(_)), "{:?}", before.end);
    assert_ne!(overwriting.header.info & OVERWRITES, 0);
    assert_eq!(follows(&before, &overwriting), Fit::Follows);
}

proptest! {
    #[test]
    fn garbage_is_an_end_or_an_error_and_never_a_panic(
        rest in proptest::collection::vec(any::<u8>(), 0..70_000), flags in 0u8..16
    ) {
        let mut bytes = vec![0; 40];
        bytes[..4].copy_from_slice(&[0x10, 0xD1, 2 | flags, 0]);
        bytes[4] = 1;
        bytes[24] = 1;
        bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
        bytes.extend(rest);
        if let Ok(Ok(chain)) = read(&bytes[..]) {
            let _ = follows(&chain, &chain);
        }
    }
}
