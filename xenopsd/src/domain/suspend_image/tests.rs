use std::io::Cursor;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::test_vm;

const ID: &str = "11111111-2222-3333-4444-555555555555";
const MEMORY: &[u8] = b"the memory stream";

fn image(records: &[(RecordKind, &[u8])]) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let suspended = Suspended { memory_bytes: 256 << 20, emulated_vcpus: Some(2), absolute_pointer: true };
    let xenops = xenops_record(&test_vm(ID, "a \"strange\" name\n"), &suspended, UNIX_EPOCH);
    let mut writer = ImageWriter::begin(&mut file, &xenops).unwrap();
    writer.0.write_all(MEMORY).unwrap();
    for (kind, body) in records {
        writer.record(*kind, body).unwrap();
    }
    seal(writer.end().unwrap()).unwrap();
    file.into_inner()
}

type Records = Vec<(RecordKind, Vec<u8>)>;

/// As a resume does.
fn read(bytes: &[u8]) -> Result<(XenopsRecord, Records), SuspendImageError> {
    let (mut reader, xenops) = ImageReader::open(bytes)?;
    let mut memory = [0; MEMORY.len()];
    reader.exact(&mut memory, "the memory")?;
    Ok((xenops, reader.rest()?))
}

#[test]
fn what_is_written_is_read() {
    let (xenops, rest) = read(&image(&[(RecordKind::QemuXen, b"device state")])).unwrap();
    let expected = XenopsRecord {
        time: Some("19700101T00:00:00Z".to_owned()),
        vm: Some(ID.to_owned()),
        memory_bytes: Some(256 << 20),
        emulated_vcpus: Some(2),
        absolute_pointer: true,
    };
    assert_eq!(xenops, expected);
    assert_eq!(rest, [(RecordKind::QemuXen, b"device state".to_vec())]);
    assert_eq!(read(&image(&[])).unwrap().1, []);
}

#[test]
fn the_layout_is_the_models() {
    let bytes = image(&[]);
    assert!(bytes.starts_with(b"XenSavedDomv2-\n\x0f\0\0\0\0\0\0\0"), "{bytes:?}");
    let text = String::from_utf8_lossy(&bytes);
    for part in ["((time 19700101T00:00:00Z) (word_size 64) (vm_str \"((", "(id 11111111-", "(xs_subtree ())"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let libxc = b"\xf0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0the memory stream\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert!(bytes.ends_with(libxc), "{bytes:?}");
}

/// The record of another version of the toolstack: fields missing and more than known.
#[test]
fn unknown_and_missing_fields_are_tolerated() {
    let of = |text: &str| XenopsRecord::parse(text.as_bytes()).unwrap();
    assert_eq!(of("((word_size 64)(vm_str \"((no id))\")(new (thing)))"), XenopsRecord::default());
    assert_eq!(of("()"), XenopsRecord::default());
    assert_eq!(of("((time t)(memory_bytes x)(vm_str \"(((\"))").time.as_deref(), Some("t"));
    assert!(XenopsRecord::parse(b"((time t)").is_err());
}

#[test]
fn until_it_is_finished_it_is_no_image() {
    let mut file = Cursor::new(SIGNATURE.to_vec());
    ImageWriter::begin(&mut file, "()").unwrap();
    assert!(matches!(read(file.get_ref()), Err(SuspendImageError::Incomplete)), "the old signature is gone");

    // Complete, and not yet sealed; sealed; and taken back.
    let mut file = Cursor::new(Vec::new());
    ImageWriter::begin(&mut file, "()").unwrap().end().unwrap();
    assert!(matches!(ImageReader::open(&file.get_ref()[..]), Err(SuspendImageError::Incomplete)));
    seal(&mut file).unwrap();
    assert!(ImageReader::open(&file.get_ref()[..]).is_ok());
    unseal(&mut file).unwrap();
    assert!(matches!(ImageReader::open(&file.get_ref()[..]), Err(SuspendImageError::Incomplete)));
}

#[test]
fn other_files_are_told_apart() {
    for (bytes, what) in [
        (&b""[..], "not a suspend image"),
        (b"short", "not a suspend image"),
        (b"\x7fELF and so on and on", "not a suspend image"),
        (b"XenSavedDomain\nsomething", "old format"),
        (b"XenSavedDomv2-\n", "cut short"),
        (b"XenSavedDomv2-\n\xf0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "Libxc where the record about the VM"),
        (b"XenSavedDomv2-\n\x42\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "unknown type 0x42"),
        (b"XenSavedDomv2-\n\x0f\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0", "more than"),
        (b"XenSavedDomv2-\n\x0f\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0((((", "about the VM is damaged"),
    ] {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(what), "{bytes:?}: {error}");
    }
}

#[test]
fn records_after_the_memory_are_bounded() {
    let many: Vec<_> = (0..=MAX_RECORDS).map(|_| (RecordKind::Swtpm, &b"x"[..])).collect();
    assert!(matches!(read(&image(&many)), Err(SuspendImageError::TooMany)));
    let twice = read(&image(&[(RecordKind::Libxc, b"")]));
    assert!(matches!(twice, Err(SuspendImageError::UnexpectedRecord { .. })), "{twice:?}");
}

/// Writes that stop after so many bytes, as on a full disk.
struct Full(Cursor<Vec<u8>>, usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.1.min(bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.1 -= room;
        self.0.write(&bytes[..room])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Full {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_full_disk_is_an_error_wherever_it_strikes() {
    let whole = image(&[]).len() - MEMORY.len();
    for room in 0..whole + SIGNATURE_BYTES {
        let mut disk = Full(Cursor::new(Vec::new()), room);
        let suspended = Suspended { memory_bytes: 1, emulated_vcpus: None, absolute_pointer: false };
        let written =
            ImageWriter::begin(&mut disk, &xenops_record(&test_vm(ID, "x"), &suspended, UNIX_EPOCH))
                .and_then(ImageWriter::end)
                .and_then(seal);
        if let Err(error) = written {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert!(read(disk.0.get_ref()).is_err(), "{room}");
        }
    }
}

#[test]
fn dates_are_the_calendars() {
    for (seconds, text) in [
        (0, "19700101T00:00:00Z"),
        (951_782_399, "20000228T23:59:59Z"),
        (951_782_400, "20000229T00:00:00Z"),
        (951_868_800, "20000301T00:00:00Z"),
        (1_706_696_430, "20240131T10:20:30Z"),
        (4_107_542_400, "21000301T00:00:00Z"),
    ] {
        assert_eq!(compact_time(UNIX_EPOCH + Duration::from_secs(seconds)), text);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_image_or_an_error(bytes: Vec<u8>, signed: bool) {
        let bytes = if signed { [&SIGNATURE[..], &bytes].concat() } else { bytes };
        let _ = read(&bytes);
    }

    #[test]
    fn a_cut_image_is_an_error(cut in 0usize..1000) {
        let whole = image(&[(RecordKind::QemuXen, b"state")]);
        if let Some(part) = whole.get(..cut.min(whole.len() - 1)) {
            prop_assert!(read(part).is_err());
        }
    }

    #[test]
    fn a_damaged_image_does_no_harm(at in 0usize..2000, byte: u8) {
        let mut bytes = image(&[(RecordKind::QemuXen, b"state")]);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
    }
}
