//! `xc_domain_save`.

use std::ffi::{c_int, c_uint, c_void};

use super::{MigrateError, Panics, Stream};
use crate::domid::DomId;
use crate::error::{Error, clear_errno, last_errno};
use crate::sys;
use crate::xenctrl::Xenctrl;

/// How far the copying of a running guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrecopyStats {
    /// Rounds over the guest's memory, from 0.
    pub iteration: u32,
    /// Pages written so far.
    pub total_written: u64,
    /// Pages the guest has changed since they were written; none while that is not known.
    pub dirty: Option<u64>,
}

/// What comes next in the copying of a running guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precopy {
    /// Another round.
    Continue,
    /// Suspend the guest and write the rest.
    Stop,
    /// End the save; the guest runs on.
    GiveUp,
}

/// Rounds after which a running guest is stopped, and dirty pages below which it is: libxenguest's own policy.
const MAX_ROUNDS: u32 = 5;
const FEW_DIRTY: u64 = 50;

/// What a save asks its caller. A panic ends the save and goes on after it.
pub trait SaveCallbacks {
    /// Sees to it that the guest is suspended: on return the domain has stopped with the reason "suspend". `false` ends
    /// the save.
    fn suspend(&mut self) -> bool;

    /// Asked before and after each batch of pages of a running guest.
    fn precopy(&mut self, stats: PrecopyStats) -> Precopy {
        let few = stats.dirty.is_some_and(|dirty| dirty < FEW_DIRTY);
        if few || stats.iteration >= MAX_ROUNDS { Precopy::Stop } else { Precopy::Continue }
    }

    /// Tells the device model to report (or no longer) the pages it writes. Asked for every PVH and HVM domain, live or
    /// not. `false` ends the save.
    fn log_dirty(&mut self, _enable: bool) -> bool {
        true
    }
}

/// What the C callbacks are given.
struct Context<'a> {
    callbacks: &'a mut dyn SaveCallbacks,
    panics: Panics,
    refused: bool,
    gave_up: bool,
}

/// Writes a domain's memory and processors to `stream`. With `live` pages are copied while the guest runs and
/// `suspend` is called near the end; without it is called first.
///
/// After a failure the domain is as `suspend` left it: running, or suspended and to be resumed by the caller.
///
/// # Errors
/// [`MigrateError`].
///
/// # Panics
/// When a callback did.
pub fn save(
    xc: &Xenctrl,
    domid: DomId,
    stream: &Stream,
    live: bool,
    callbacks: &mut dyn SaveCallbacks,
) -> Result<(), MigrateError> {
    xc.require_xen()?;
    let handle = xc.raw()?;
    let flags = if live { sys::XCFLAGS_LIVE } else { 0 };
    let mut context = Context { callbacks, panics: Panics::default(), refused: false, gave_up: false };
    let mut table = table(&mut context);
    xc.log().clear();
    clear_errno();
    // SAFETY: an open handle that reaches Xen; the descriptor is open as long as `stream` lives; the table and the context
    // it points to live until the call returns and are used by nobody else meanwhile; no back channel (-1) for a
    // plain stream.
    let result = unsafe {
        sys::xc_domain_save(
            handle,
            stream.raw(),
            domid.raw(),
            flags,
            &raw mut table,
            sys::XC_STREAM_PLAIN,
            -1,
        )
    };
    let errno = last_errno();
    let Context { panics, refused, gave_up, .. } = context;
    panics.release();
    if result == 0 {
        return Ok(());
    }
    Err(if stream.is_stopped() {
        MigrateError::Stopped { domid }
    } else if refused {
        MigrateError::NotSuspended { domid }
    } else if gave_up {
        MigrateError::GaveUp { domid }
    } else {
        let detail = xc.log().take_errors();
        MigrateError::Call(Error::Call { call: "xc_domain_save", domid: Some(domid.raw()), errno, detail })
    })
}

/// The functions C calls, with their argument.
fn table(context: &mut Context<'_>) -> sys::save_callbacks {
    sys::save_callbacks {
        suspend: Some(suspend),
        precopy_policy: Some(precopy_policy),
        postcopy: None,
        checkpoint: None,
        wait_checkpoint: None,
        switch_qemu_logdirty: Some(switch_qemu_logdirty),
        data: std::ptr::from_mut(context).cast(),
    }
}

/// The context behind a callback's argument.
///
/// # Safety
/// `data` is the `data` of a [`table`] whose context is still alive, and no other reference to it is.
unsafe fn context<'a>(data: *mut c_void) -> &'a mut Context<'a> {
    // SAFETY: the caller's promise.
    unsafe { &mut *data.cast::<Context<'a>>() }
}

/// Non-zero for success.
unsafe extern "C" fn suspend(data: *mut c_void) -> c_int {
    // SAFETY: libxenguest passes on the table's `data`, during the call only, one callback at a time.
    let Context { callbacks, panics, refused, .. } = unsafe { context(data) };
    let suspended = panics.contain(false, || callbacks.suspend());
    *refused |= !suspended;
    c_int::from(suspended)
}

unsafe extern "C" fn precopy_policy(stats: sys::precopy_stats, data: *mut c_void) -> c_int {
    // SAFETY: as in `suspend`.
    let Context { callbacks, panics, gave_up, .. } = unsafe { context(data) };
    let stats = PrecopyStats {
        iteration: stats.iteration,
        total_written: stats.total_written,
        dirty: u64::try_from(stats.dirty_count).ok(),
    };
    match panics.contain(Precopy::GiveUp, || callbacks.precopy(stats)) {
        Precopy::Continue => policy(i64::from(sys::XGS_POLICY_CONTINUE_PRECOPY)),
        Precopy::Stop => policy(i64::from(sys::XGS_POLICY_STOP_AND_COPY)),
        Precopy::GiveUp => {
            *gave_up = true;
            policy(i64::from(sys::XGS_POLICY_ABORT))
        }
    }
}

/// bindgen gives the three answers different types.
fn policy(number: i64) -> c_int {
    c_int::try_from(number).unwrap_or(-1)
}

/// 0 for success.
unsafe extern "C" fn switch_qemu_logdirty(_domid: u32, enable: c_uint, data: *mut c_void) -> c_int {
    // SAFETY: as in `suspend`.
    let Context { callbacks, panics, .. } = unsafe { context(data) };
    let switched = panics.contain(false, || callbacks.log_dirty(enable != 0));
    if switched { 0 } else { -1 }
}

/// Calls each function of the table as C would.
#[cfg(test)]
pub(super) fn call_all(callbacks: &mut dyn SaveCallbacks, stats: sys::precopy_stats) -> ([c_int; 3], bool) {
    let mut context = Context { callbacks, panics: Panics::default(), refused: false, gave_up: false };
    let table = table(&mut context);
    let (Some(suspend), Some(policy), Some(log_dirty)) =
        (table.suspend, table.precopy_policy, table.switch_qemu_logdirty)
    else {
        panic!("a callback is missing")
    };
    // SAFETY: as libxenguest calls them: with the table's data, while the context lives.
    let answers = unsafe { [suspend(table.data), policy(stats, table.data), log_dirty(1, 1, table.data)] };
    (answers, context.panics.0.is_some())
}
