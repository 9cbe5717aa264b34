use super::*;
use crate::postgres::manifest::ManifestWriter;
use crate::postgres::manifest::tests::write;
use proptest::prelude::*;

fn file(path: &str, size: u64) -> ManifestFile {
    ManifestFile {
        path: path.into(),
        size,
        modified: Some("2026-11-20T11:09:25Z".parse().unwrap()),
        checksum: Some(FileChecksum::crc32c(0xE3CE_F9AC)),
    }
}

fn range() -> WalRange {
    WalRange {
        timeline: TimelineId::FIRST,
        start: Lsn(0x200_0028),
        end: Lsn(0x200_0100),
    }
}

fn read(manifest: &[u8]) -> Result<ManifestSummary> {
    read_manifest(manifest, |_| Ok(()))
}

/// `text` with the checksum that its lines before the last have.
fn sealed(text: &str) -> String {
    let digest = hex::encode(Sha256::digest(text));
    format!("{text}\"Manifest-Checksum\": \"{digest}\"}}\n")
}

#[test]
fn both_versions_are_written_to_the_byte() {
    let text = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 77,\n\
         \"Files\": [\n{ \"Path\": \"a \\\"b\\\"\", \"Size\": 3, \"Last-Modified\": \
         \"2026-11-20 11:09:25 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \
         \"Checksum\": \"acf9cee3\" }\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \
         \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
    let written = write(
        ManifestVersion::V2,
        SystemId(77),
        &[file("a \"b\"", 3)],
        &[range()],
    );
    assert_eq!(String::from_utf8(written).unwrap(), sealed(text));
    let written = write(ManifestVersion::V1, SystemId(77), &[], &[]);
    assert_eq!(
        String::from_utf8(written).unwrap(),
        sealed(
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n],\n\"WAL-Ranges\": [\n\n],\n"
        )
    );
}

#[test]
fn a_changed_byte_anywhere_is_found() {
    let manifest = write(
        ManifestVersion::V2,
        SystemId(77),
        &[file("a", 3), file("b", 4)],
        &[range()],
    );
    let summary = read(&manifest).unwrap();
    assert_eq!((summary.files, summary.system_id), (2, Some(SystemId(77))));
    assert_eq!(summary.wal_ranges, [range()]);
    for at in 0..manifest.len() {
        let mut changed = manifest.clone();
        changed[at] ^= 1;
        assert!(read(&changed).is_err(), "byte {at}");
        assert!(read(&manifest[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn what_is_not_of_the_format_is_refused_even_with_a_right_checksum() {
    let with = |file: &str| {
        sealed(&format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{file}\n],\n"
        ))
    };
    let good = [
        r#"{"Path":"a","Size":1}"#,
        r#"{"Encoded-Path":"ff","Size":1,"Last-Modified":"whenever"}"#,
        r#"{"Path":"a","Size":1,"Checksum-Algorithm":"none"}"#,
        r#"{"Path":"a","Size":1,"Checksum-Algorithm":"crc32c","Checksum":"ACF9CEE3"}"#,
    ];
    for file in good {
        assert!(read(with(file).as_bytes()).is_ok(), "{file}");
    }
    for file in [
        r#"{"Path":"a"}"#,
        r#"{"Size":1}"#,
        r#"{"Path":"a","Encoded-Path":"61","Size":1}"#,
        r#"{"Path":"a","Path":"a","Size":1}"#,
        r#"{"Path":"a","Size":-1}"#,
        r#"{"Path":"a","Size":1,"Mode":1}"#,
        r#"{"Path":"/a","Size":1}"#,
        r#"{"Path":"a/../../b","Size":1}"#,
        r#"{"Path":"","Size":1}"#,
        r#"{"Encoded-Path":"2f61","Size":1}"#,
        r#"{"Encoded-Path":"xx","Size":1}"#,
        r#"{"Path":"a","Size":1,"Checksum":"acf9cee3"}"#,
        r#"{"Path":"a","Size":1,"Checksum-Algorithm":"CRC32C"}"#,
        r#"{"Path":"a","Size":1,"Checksum-Algorithm":"CRC32C","Checksum":"acf9"}"#,
        r#"{"Path":"a","Size":1,"Checksum-Algorithm":"MD5","Checksum":"acf9"}"#,
    ] {
        assert!(read(with(file).as_bytes()).is_err(), "{file}");
    }
    for text in [
        "{ \"PostgreSQL-Backup-Manifest-Version\": 3,\n\"Files\": [],\n",
        "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"Files\": [],\n",
        "{ \"Files\": [],\n\"PostgreSQL-Backup-Manifest-Version\": 1,\n",
        "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n\"Files\": [],\n",
        "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n\"More\": 1,\n",
        "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n",
    ] {
        assert!(read(sealed(text).as_bytes()).is_err(), "{text}");
    }
    let one_line = sealed("{ \"PostgreSQL-Backup-Manifest-Version\": 1, \"Files\": [], ");
    assert!(read(one_line.as_bytes()).is_err());
}

#[test]
fn an_error_of_the_callback_ends_the_reading() {
    let manifest = write(
        ManifestVersion::V1,
        SystemId(77),
        &[file("a", 1), file("b", 1)],
        &[],
    );
    let mut seen = 0;
    let error = read_manifest(manifest.as_slice(), |_| {
        seen += 1;
        Err(Error::failed("enough"))
    });
    assert_eq!((error.unwrap_err().what(), seen), ("enough", 1));
}

#[test]
fn a_million_files_pass_through_a_small_pipe() {
    let (from, to) = std::io::pipe().unwrap();
    let writer = std::thread::spawn(move || {
        let to = std::io::BufWriter::new(to);
        let mut writer = ManifestWriter::new(to, ManifestVersion::V2, SystemId(7)).unwrap();
        for i in 0..1_000_000u32 {
            let path = format!("base/16384/{i}");
            writer
                .file(path.as_bytes(), u64::from(i), Timestamp::UNIX_EPOCH, i)
                .unwrap();
        }
        let to = writer.finish(&[range()]).unwrap();
        to.into_inner().unwrap();
    });
    let mut sum = 0;
    let summary = read_manifest(from, |file| {
        sum += file.size;
        assert_eq!(file.checksum.unwrap().as_crc32c(), Some(file.size as u32));
        Ok(())
    });
    writer.join().unwrap();
    assert_eq!(summary.unwrap().files, 1_000_000);
    assert_eq!(sum, 999_999 * 500_000);
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        text in "[{}\\[\\]\",:a-zA-Z0-9\n -]{0,60}"
    ) {
        prop_assert!(read(&bytes).is_err());
        prop_assert!(read(sealed(&text).as_bytes()).is_err());
    }

    #[test]
    fn every_path_reads_back(
        path in proptest::collection::vec(1u8.., 1..40), size: u64, crc: u32
    ) {
        let mut writer =
            ManifestWriter::new(Vec::new(), ManifestVersion::V1, SystemId(1)).unwrap();
        writer.file(&path, size, Timestamp::UNIX_EPOCH, crc).unwrap();
        let manifest = writer.finish(&[]).unwrap();
        let mut files = Vec::new();
        let result = read_manifest(manifest.as_slice(), |file| {
            files.push(file);
            Ok(())
        });
        match result {
            Ok(_) => {
                prop_assert_eq!(
                    std::os::unix::ffi::OsStrExt::as_bytes(files[0].path.as_os_str()),
                    path.as_slice()
                );
                prop_assert_eq!(files[0].size, size);
                prop_assert_eq!(files[0].checksum.clone(), Some(FileChecksum::crc32c(crc)));
            }
            Err(error) => prop_assert!(error.what().contains("leads out"), "{}", error),
        }
    }
}
