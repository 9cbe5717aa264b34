use super::*;
use crate::postgres::testing::Server;
use crate::postgres::wal_page::LongPageHeader;
use proptest::prelude::*;

/// The segments of a stopped server from `first` on.
fn segments(server: &Server, first: &str) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = std::fs::read_dir(server.data().join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.len() == 24 && *name >= *first
        })
        .collect();
    names.sort();
    let read = names.into_iter().map(|path| std::fs::read(path).unwrap());
    // Behind the end of WAL lie files that were recycled, or never written.
    let mut next = None;
    read.take_while(|bytes| {
        let Ok(header) = LongPageHeader::parse(bytes) else {
            return false;
        };
        let follows = next.is_none_or(|next| next == header.page_address);
        next = Some(Lsn(header.page_address.0 + bytes.len() as u64));
        follows
    })
    .collect()
}

fn latest(segment: &[u8]) -> Option<TransactionEnd> {
    let mut latest = LatestEnd::default();
    WalReader::new()
        .read(segment, |record| latest.see(&record))
        .unwrap();
    latest.0
}

#[test]
fn the_last_commit_of_a_live_server_is_found_at_its_place_and_time() {
    let mut server = Server::create(&["--wal-segsize=1"], "track_commit_timestamp = on\n");
    server.launch();
    server.sql("create table t as select repeat('x', 100) as x from generate_series(1, 20000)");
    // Records of every length, over many pages, and a rollback at the end.
    server.sql("insert into t select repeat('y', n) from generate_series(1, 1500) n");
    let before = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
    let told =
        server.sql("begin; insert into t values ('z'); select pg_current_wal_insert_lsn(); commit");
    let stamp = server.sql(
        "select (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from t where x = 'z'",
    );
    let file = server.sql("select pg_walfile_name(pg_switch_wal())");
    assert_eq!(file, before, "it fits into one segment");
    let path = server.data().join("pg_wal").join(file.trim());
    let bytes = std::fs::read(path).unwrap();
    let found = latest(&bytes).unwrap();
    assert_eq!(found.time.as_microsecond().to_string(), stamp.trim());
    // The insertion's end is aligned: the commit begins there.
    let told: Lsn = told.lines().find_map(|line| line.parse().ok()).unwrap();
    assert!(
        found.lsn >= told && found.lsn.since(told) < 200,
        "{} {told}",
        found.lsn
    );
}

#[test]
fn records_that_cross_into_the_next_segment_are_read_once_and_whole() {
    let mut server = Server::with(
        &["--wal-segsize=1"],
        "wal_keep_size = '100MB'\nlog_min_messages = fatal",
    );
    let first = server.sql("select pg_walfile_name(pg_switch_wal())");
    // A commit over several pages, and then restore points alone, 10,082 in a segment: their
    // 104 bytes divide neither a page nor a segment.
    server.sql(
        "do $$ begin
            create table t (n int);
            for n in 1..6000 loop
                begin insert into t values (n); exception when division_by_zero then null; end;
            end loop; end $$",
    );
    server.sql("select count(pg_create_restore_point('p' || n)) from generate_series(1, 60000) n");
    let point = server.sql("select pg_create_restore_point('end')");
    server.stop();
    let segments = segments(&server, &first);
    assert!(segments.len() > 4, "{} segments", segments.len());

    let mut all = Vec::new();
    let mut reader = WalReader::new();
    for segment in &segments {
        reader
            .read(&segment[..], |record| all.push(record))
            .unwrap();
    }
    let points = all.iter().filter_map(|record| match &record.content {
        Content::RestorePoint { name, .. } => Some((name.as_str(), record.end)),
        _ => None,
    });
    let points: Vec<_> = points.collect();
    let mut wanted: Vec<String> = (1..=60_000).map(|n| format!("p{n}")).collect();
    wanted.push("end".into());
    assert!(
        points
            .iter()
            .map(|(name, _)| *name)
            .eq(wanted.iter().map(String::as_str))
    );
    assert_eq!(points[60_000].1.to_string(), point.trim());
    assert!(all.iter().filter_map(WalRecord::transaction_end).count() >= 1);
    assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));

    // The same, with a reader for each segment that borrows the beginning of the next.
    let (mut each, mut crossed) = (Vec::new(), 0);
    for (at, segment) in segments.iter().enumerate() {
        let mut reader = WalReader::new();
        reader
            .read(&segment[..], |record| each.push(record))
            .unwrap();
        if reader.is_unfinished()
            && let Some(next) = segments.get(at + 1)
        {
            let complete = each.len();
            reader
                .read_rest(&next[..], |record| each.push(record))
                .unwrap();
            assert!(!reader.is_unfinished() && each.len() <= complete + 1);
            crossed += each.len() - complete;
        }
    }
    assert_eq!(each, all);
    assert!(
        crossed >= 2,
        "{crossed} records were cut by a segment's end"
    );

    // Where a segment is left out, the half record is forgotten, and nothing is made up.
    let mut gap = Vec::new();
    let mut reader = WalReader::new();
    for segment in segments.iter().step_by(2) {
        reader
            .read(&segment[..], |record| gap.push(record))
            .unwrap();
    }
    assert!(gap.len() < all.len() && gap.iter().all(|record| all.contains(record)));
}

#[test]
fn a_record_with_a_flipped_bit_ends_the_reading_and_is_not_believed() {
    let server = Server::with(&["--wal-segsize=1"], "");
    let file = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
    let point = server.sql("select pg_create_restore_point('first')");
    server.sql("select pg_create_restore_point('second'); select pg_switch_wal()");
    let bytes = std::fs::read(server.data().join("pg_wal").join(file.trim())).unwrap();
    let names = |bytes: &[u8]| {
        let mut names = Vec::new();
        let read = WalReader::new().read(bytes, |record| {
            if let Content::RestorePoint { name, .. } = record.content {
                names.push(name);
            }
        });
        read.unwrap();
        names
    };
    assert_eq!(names(&bytes), ["first", "second"]);
    // The record of the first is 98 bytes long, and aligned to 104.
    let end = point.trim().parse::<Lsn>().unwrap().0 as usize % bytes.len();
    for bit in 0..98 * 8 {
        let mut damaged = bytes.clone();
        let at = end - 104 + bit / 8;
        damaged[at] ^= 1 << (bit % 8);
        let found = names(&damaged);
        // Two bytes of the header are padding that nobody reads, though the checksum does.
        assert!(!found.contains(&"first".into()), "byte {at}: {found:?}");
    }
}

/// The header of the first page of a segment of 1 MiB at 0/1000000.
fn header(magic: u16) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[..2].copy_from_slice(&magic.to_le_bytes());
    bytes[2] = 2;
    bytes[4] = 1;
    bytes[11] = 1;
    bytes[24] = 1;
    bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    bytes
}

/// A record as PostgreSQL would write it around `data`, its checksum included.
fn record(manager: u8, info: u8, previous: u64, data: &[u8]) -> Vec<u8> {
    let mut record = vec![0; 24];
    record.push(254);
    record.extend((data.len() as u32).to_le_bytes());
    record.extend(data);
    let length = record.len() as u32;
    record[..4].copy_from_slice(&length.to_le_bytes());
    record[4..8].copy_from_slice(&9u32.to_le_bytes());
    record[8..16].copy_from_slice(&previous.to_le_bytes());
    record[16..18].copy_from_slice(&[info, manager]);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
    record[20..24].copy_from_slice(&checksum.to_le_bytes());
    record.resize(record.len().next_multiple_of(8), 0);
    record
}

/// A segment of 1 MiB whose pages hold `content`, then zeros.
fn segment(magic: u16, mut content: &[u8]) -> Vec<u8> {
    let first = header(magic);
    let mut bytes = Vec::new();
    // Only the record at the segment's begin goes over pages here.
    for page in 0..128u64 {
        let mut head = first.clone();
        if page > 0 {
            head.truncate(24);
            head[2] = 1;
            head[8..16].copy_from_slice(&((1 << 24) + page * 8192).to_le_bytes());
            head[16..20].copy_from_slice(&(content.len() as u32).to_le_bytes());
        }
        let part = content.len().min(8192 - head.len());
        head.extend(&content[..part]);
        head.resize(8192, 0);
        content = &content[part..];
        bytes.extend(head);
    }
    bytes
}

#[test]
fn a_prepared_transactions_id_is_found_behind_lists_of_any_length() {
    for (magic, statistic) in [(0xD10D, 12), (0xD110, 12), (0xD116, 12), (0xD118, 16)] {
        for items in [0u32, 1, 7, 3000] {
            let mut data = 1_000_000u64.to_le_bytes().to_vec();
            data.extend(0x1FFu32.to_le_bytes());
            data.extend([1; 8]);
            for size in [4, 12, statistic, 16] {
                data.extend(items.to_le_bytes());
                data.extend(vec![0xEE; items as usize * size]);
            }
            data.extend(4711u32.to_le_bytes());
            data.extend(b"gid\0");
            data.extend([3; 16]);
            let record = record(1, 0x80 | 0x30, 0xFF_FF00, &data);
            let unaligned = 24 + 5 + data.len();
            let mut found = Vec::new();
            let bytes = segment(magic, &record[..unaligned]);
            WalReader::new()
                .read(&bytes[..], |record| found.push(record))
                .unwrap();
            let transaction = found[0].transaction_end().unwrap();
            assert_eq!(transaction.xid, Some(4711), "{magic:X}, {items} items");
            assert_eq!(transaction.action, Action::CommitPrepared);
            assert_eq!(transaction.time.to_string(), "2000-01-01T00:00:01Z");
        }
    }
}

proptest! {
    #[test]
    fn garbage_is_an_error_or_an_end_and_never_a_panic(
        rest in proptest::collection::vec(any::<u8>(), 0..70_000), major in 0usize..5
    ) {
        let mut bytes = header([0xD10D, 0xD110, 0xD113, 0xD116, 0xD118][major]);
        bytes.extend(rest);
        let mut reader = WalReader::new();
        let _ = reader.read(&bytes[..], |_| {});
        let _ = reader.read_rest(&bytes[..], |_| {});
        let _ = created_tablespaces(&bytes[..]);
    }

    #[test]
    fn a_record_with_any_content_is_understood_or_passed_over_and_never_a_panic(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        manager in 0u8..7, info: u8, major in 14u32..19
    ) {
        // The checksum is right: only what it says is wrong.
        let mut previous = 0xFF_FF00;
        let mut content = Vec::new();
        while content.len() < 7000 {
            let next = record(manager, info, previous, &data);
            previous = 0x100_0028 + content.len() as u64;
            content.extend(next);
        }
        let bytes = segment(0xD10D + 3 * (major as u16 - 14) - u16::from(major == 18), &content);
        let mut reader = WalReader::new();
        let _ = reader.read(&bytes[..], |_| {});
    }
}
