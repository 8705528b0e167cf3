//! Xen's libraries log through a table of C function pointers (`xentoollog`). This one forwards to `tracing`
//! (target `xen`) and remembers the last error lines, so that an error can say what the library said.
//!
//! Text may come from a guest's kernel image or store node: lines are bounded and control characters escaped.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_ulong};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use crate::error::{last_errno, set_errno};
use crate::sys;

/// Longest line taken over from a library, in bytes. libxc's own buffer for one message is 1024 bytes.
const MAX_LINE: usize = 1024;
/// Error lines kept per handle: libxc reports a failure at most at three levels.
const KEPT_LINES: usize = 4;

/// A logger to hand to a library's open call. It has to outlive the handle: keep both in one struct, the logger
/// after the handle's close.
pub(crate) struct Logger(Box<Inner>);

/// What the library sees: it only knows the first member.
#[repr(C)]
struct Inner {
    table: sys::xentoollog_logger,
    errors: Mutex<VecDeque<String>>,
}

impl std::fmt::Debug for Logger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Logger").field(&*self.0.lines()).finish()
    }
}

impl Logger {
    pub(crate) fn new() -> Self {
        Self(Box::new(Inner {
            table: sys::xentoollog_logger {
                vmessage: Some(vmessage),
                progress: Some(progress),
                destroy: Some(destroy),
            },
            errors: Mutex::new(VecDeque::new()),
        }))
    }

    /// The pointer a library's open call takes; valid while `self` lives. The library never frees a logger that
    /// was given to it.
    pub(crate) fn as_ptr(&self) -> *mut sys::xentoollog_logger {
        std::ptr::from_ref::<Inner>(&self.0).cast_mut().cast()
    }

    /// Forgets the error lines of earlier calls.
    pub(crate) fn clear(&self) {
        self.0.lines().clear();
    }

    /// The error lines since the last `clear`, oldest first.
    pub(crate) fn take_errors(&self) -> Option<String> {
        let lines: Vec<String> = self.0.lines().drain(..).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

impl Inner {
    fn lines(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, level: sys::xentoollog_level, context: &str, line: &str) {
        if level >= sys::XTL_ERROR {
            let mut lines = self.lines();
            if lines.len() == KEPT_LINES {
                lines.pop_front();
            }
            lines.push_back(line.to_owned());
        }
        match level {
            sys::XTL_ERROR | sys::XTL_CRITICAL => tracing::error!(target: "xen", context, "{line}"),
            sys::XTL_WARN => tracing::warn!(target: "xen", context, "{line}"),
            sys::XTL_NOTICE | sys::XTL_INFO => tracing::info!(target: "xen", context, "{line}"),
            sys::XTL_PROGRESS | sys::XTL_DETAIL | sys::XTL_VERBOSE => {
                tracing::debug!(target: "xen", context, "{line}");
            }
            _ => tracing::trace!(target: "xen", context, "{line}"),
        }
    }
}

/// A printable line: control characters, quotes-breaking bytes and invalid UTF-8 become `\n`, `\x1b`, ...
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut line = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
        for byte in chunk.invalid() {
            line.extend(std::ascii::escape_default(*byte).map(char::from));
        }
    }
    line
}

/// Text of a C string that may be null.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that outlives the call.
unsafe fn context_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    printable(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A panic must not cross into C, and logging is not worth aborting the daemon for. Nor may it change the error
/// number: the libraries log before they return it.
fn contain(log: impl FnOnce()) {
    let errno = last_errno();
    let _ = catch_unwind(AssertUnwindSafe(log));
    set_errno(errno);
}

unsafe extern "C" fn vmessage(
    logger: *mut sys::xentoollog_logger,
    level: sys::xentoollog_level,
    errnoval: c_int,
    context: *const c_char,
    format: *const c_char,
    arguments: *mut sys::__va_list_tag,
) {
    let mut buffer = [0u8; MAX_LINE];
    // SAFETY: the buffer has MAX_LINE bytes; `format` and `arguments` are what xtl_logv was given, of matching types.
    // On x86-64 a va_list is an array, so it arrives as the pointer vsnprintf takes.
    let wanted =
        unsafe { sys::vsnprintf(buffer.as_mut_ptr().cast(), MAX_LINE as c_ulong, format, arguments) };
    let length = usize::try_from(wanted).unwrap_or(0).min(MAX_LINE - 1);
    // SAFETY: `logger` is the table at the start of the `Inner` this function was registered with, alive while a
    // library handle can log.
    let inner = unsafe { &*logger.cast::<Inner>() };
    // SAFETY: `context` is null or a C string, as xtl_logv documents.
    let context = unsafe { context_text(context) };
    contain(|| {
        let mut line = printable(buffer.get(..length).unwrap_or_default());
        if errnoval > 0 {
            line.push_str(": ");
            line.push_str(&std::io::Error::from_raw_os_error(errnoval).to_string());
        }
        inner.record(level, &context, &line);
    });
}

unsafe extern "C" fn progress(
    _logger: *mut sys::xentoollog_logger,
    context: *const c_char,
    doing_what: *const c_char,
    percent: c_int,
    _done: c_ulong,
    _total: c_ulong,
) {
    // SAFETY: both are null or C strings, as xtl_progress documents.
    let (context, doing) = unsafe { (context_text(context), context_text(doing_what)) };
    contain(|| tracing::debug!(target: "xen", context, percent, "{doing}"));
}

/// The logger's owner frees it.
unsafe extern "C" fn destroy(_logger: *mut sys::xentoollog_logger) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(logger: &Logger, level: sys::xentoollog_level, text: &CStr) {
        // SAFETY: the logger lives, the format is "%s" with one C string argument.
        unsafe {
            sys::xtl_log(logger.as_ptr(), level, -1, c"test".as_ptr(), c"%s".as_ptr(), text.as_ptr());
        }
    }

    #[test]
    fn error_lines_are_kept_and_others_not() {
        let logger = Logger::new();
        say(&logger, sys::XTL_INFO, c"fine");
        assert_eq!(logger.take_errors(), None);
        say(&logger, sys::XTL_ERROR, c"first");
        say(&logger, sys::XTL_CRITICAL, c"second");
        assert_eq!(logger.take_errors().as_deref(), Some("first; second"));
        assert_eq!(logger.take_errors(), None);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let logger = Logger::new();
        for text in [c"1", c"2", c"3", c"4", c"5", c"6"] {
            say(&logger, sys::XTL_ERROR, text);
        }
        assert_eq!(logger.take_errors().as_deref(), Some("3; 4; 5; 6"));
    }

    #[test]
    fn control_characters_are_escaped_and_lines_cut() {
        let logger = Logger::new();
        say(&logger, sys::XTL_ERROR, c"a\nb\x1b[31m\xff");
        assert_eq!(logger.take_errors().as_deref(), Some("a\\nb\\u{1b}[31m\\xff"));
        let long = std::ffi::CString::new(vec![b'x'; 10 * MAX_LINE]).unwrap();
        say(&logger, sys::XTL_ERROR, &long);
        assert_eq!(logger.take_errors().unwrap().len(), MAX_LINE - 1);
    }

    #[test]
    fn an_errno_is_spelled_out() {
        let logger = Logger::new();
        // SAFETY: the logger lives and the format takes no argument.
        unsafe {
            sys::xtl_log(logger.as_ptr(), sys::XTL_ERROR, libc::EBUSY, std::ptr::null(), c"mapping".as_ptr());
        }
        assert_eq!(logger.take_errors().as_deref(), Some("mapping: Device or resource busy (os error 16)"));
    }

    #[test]
    fn logging_keeps_the_error_number() {
        let logger = Logger::new();
        set_errno(libc::ENODEV);
        say(&logger, sys::XTL_ERROR, c"the caller's errno is about to be returned");
        assert_eq!(last_errno(), libc::ENODEV);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_become_one_printable_line(bytes: Vec<u8>) {
            proptest::prop_assert!(!printable(&bytes).chars().any(char::is_control));
        }
    }
}
