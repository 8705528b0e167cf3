//! A handle in a forked child: refused by every call, and left alone by the destructor.
//!
//! The only test of its file, so that the process that forks has no other test's threads.

use ffi::{DomId, Error, Xenctrl};

/// What the child found, as its exit code.
const REFUSED: i32 = 7;

#[test]
fn a_forked_child_cannot_use_the_parents_handle() {
    let xc = Xenctrl::open_dummy().unwrap();
    // SAFETY: the child only calls into this crate, whose refusal allocates nothing but an error, and `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let refused = matches!(xc.pause(DomId::DOM0), Err(Error::Forked { handle: "libxenctrl", .. }));
        drop(xc);
        // SAFETY: ends the child without running the test harness's exit handlers.
        unsafe { libc::_exit(if refused { REFUSED } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is where its end goes.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == REFUSED, "status {status:#x}");
    let error = xc.pause(DomId::DOM0).unwrap_err();
    assert!(matches!(error, Error::NoXen { .. }), "the parent's handle works on: {error}");
}
