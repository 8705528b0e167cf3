//! What can be checked without a hypervisor: layouts, the callbacks as C calls them, stopping.

use std::io::{Read, Seek, SeekFrom, Write};
use std::mem::{offset_of, size_of};
use std::os::fd::AsFd;

use super::*;
use crate::evtchn::Port;
use crate::sys;
use crate::xenctrl::Xenctrl;

fn domid() -> DomId {
    DomId::new(7).unwrap()
}

fn rings() -> RingEnds {
    RingEnds {
        store_evtchn: Port::new(1),
        store_domid: DomId::DOM0,
        console_evtchn: Port::new(2),
        console_domid: DomId::DOM0,
    }
}

/// `xenguest.h`: seven pointers each; the policy's argument goes by value in memory.
#[test]
fn the_tables_have_the_abi_layout() {
    assert_eq!((size_of::<sys::save_callbacks>(), size_of::<sys::restore_callbacks>()), (56, 56));
    assert_eq!(offset_of!(sys::save_callbacks, precopy_policy), 8);
    assert_eq!(offset_of!(sys::save_callbacks, switch_qemu_logdirty), 40);
    assert_eq!(offset_of!(sys::save_callbacks, data), 48);
    assert_eq!(offset_of!(sys::restore_callbacks, static_data_done), 0);
    assert_eq!(offset_of!(sys::restore_callbacks, data), 48);
    assert_eq!(size_of::<sys::precopy_stats>(), 24);
}

struct Answers {
    suspend: bool,
    precopy: Precopy,
    seen: Option<PrecopyStats>,
}

impl SaveCallbacks for Answers {
    fn suspend(&mut self) -> bool {
        self.suspend
    }

    fn precopy(&mut self, stats: PrecopyStats) -> Precopy {
        self.seen = Some(stats);
        self.precopy
    }
}

const STATS: sys::precopy_stats =
    sys::precopy_stats { iteration: 3, total_written: 1 << 40, dirty_count: -1 };

#[test]
fn callbacks_answer_in_the_librarys_numbers() {
    for (precopy, number) in [(Precopy::Continue, 0), (Precopy::Stop, 1), (Precopy::GiveUp, -1)] {
        let mut answers = Answers { suspend: true, precopy, seen: None };
        assert_eq!(save::call_all(&mut answers, STATS), ([1, number, 0], false));
        let seen = PrecopyStats { iteration: 3, total_written: 1 << 40, dirty: None };
        assert_eq!(answers.seen, Some(seen));
    }
    let mut refuses = Answers { suspend: false, precopy: Precopy::Continue, seen: None };
    assert_eq!(save::call_all(&mut refuses, STATS).0[0], 0);
}

struct Willing;

impl SaveCallbacks for Willing {
    fn suspend(&mut self) -> bool {
        true
    }
}

#[test]
fn the_default_policy_stops_when_little_is_left_or_enough_was_tried() {
    let stats = |iteration, dirty| PrecopyStats { iteration, total_written: 0, dirty };
    assert_eq!(Willing.precopy(stats(0, None)), Precopy::Continue);
    assert_eq!(Willing.precopy(stats(1, Some(50))), Precopy::Continue);
    assert_eq!(Willing.precopy(stats(1, Some(49))), Precopy::Stop);
    assert_eq!(Willing.precopy(stats(5, None)), Precopy::Stop);
}

struct Panicky;

impl SaveCallbacks for Panicky {
    fn suspend(&mut self) -> bool {
        panic!("not across C")
    }

    fn log_dirty(&mut self, _enable: bool) -> bool {
        panic!("nor here")
    }
}

#[test]
fn a_panic_does_not_unwind_into_c() {
    let (answers, panicked) = save::call_all(&mut Panicky, STATS);
    assert!(panicked);
    assert_eq!((answers[0], answers[2]), (0, -1), "each says that it failed");
    let mut panics = Panics::default();
    assert_eq!(panics.contain(1, || panic!("once")), 1);
    assert_eq!(panics.contain(1, || 2), 1, "what follows is not run");
    assert!(catch_unwind(AssertUnwindSafe(|| panics.release())).is_err(), "it goes on afterwards");
}

#[test]
fn a_stream_with_a_cpu_policy_needs_none_and_one_without_says_what_failed() {
    let xc = Xenctrl::open_dummy().unwrap();
    assert_eq!(restore::call_static_data_done(&xc, domid(), 0), (0, None));
    let (answer, refused) = restore::call_static_data_done(&xc, domid(), sys::XGR_SDD_MISSING_CPUID);
    assert_eq!(answer, -1);
    assert!(matches!(refused, Some(Error::NoXen { .. })), "{refused:?}");
}

#[test]
fn nothing_is_called_without_xen() {
    let xc = Xenctrl::open_dummy().unwrap();
    let file = tempfile();
    let stream = Stream::new(file.as_fd()).unwrap();
    let saved = save(&xc, domid(), &stream, false, &mut Willing);
    assert!(matches!(saved, Err(MigrateError::Call(Error::NoXen { .. }))), "{saved:?}");
    let restored = restore(&xc, domid(), &stream, &rings());
    assert!(matches!(restored, Err(MigrateError::Call(Error::NoXen { .. }))), "{restored:?}");
}

/// A file nobody else can open.
fn tempfile() -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(std::env::temp_dir())
        .unwrap()
}

#[test]
fn a_stopped_stream_neither_reads_nor_writes_and_the_original_does() {
    let mut file = tempfile();
    file.write_all(b"before").unwrap();
    let stream = Stream::new(file.as_fd()).unwrap();
    // Another handle on the very descriptor libxenguest is given.
    let write = |stream: &Stream| {
        // SAFETY: five readable bytes.
        unsafe { libc::write(stream.raw(), b"hello".as_ptr().cast(), 5) }
    };
    assert_eq!(write(&stream), 5);
    let stopper = stream.stopper();
    assert!(!stream.is_stopped());
    std::thread::spawn(move || stopper.stop().unwrap()).join().unwrap();
    assert!(stream.is_stopped());
    assert_eq!(write(&stream), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "beforehello", "position and content are shared with the original");
}
