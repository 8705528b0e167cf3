//! `xc_domain_restore`.

use std::ffi::{c_int, c_uint, c_ulong, c_void};

use super::{MigrateError, Panics, Stream};
use crate::builder::Built;
use crate::domid::DomId;
use crate::error::{Error, clear_errno, last_errno};
use crate::evtchn::Port;
use crate::sys;
use crate::xenctrl::{CpuidPolicy, Xenctrl};

/// The domain's ends of its two rings, and who serves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingEnds {
    /// Unbound port of the xenstore ring.
    pub store_evtchn: Port,
    /// The domain that serves xenstore.
    pub store_domid: DomId,
    /// Unbound port of the console ring.
    pub console_evtchn: Port,
    /// The domain that serves its console.
    pub console_domid: DomId,
}

struct Context<'a> {
    xc: &'a Xenctrl,
    domid: DomId,
    panics: Panics,
    /// Why the CPU policy of a stream without one could not be set.
    refused: Option<Error>,
}

/// Fills a new domain from `stream`, and leaves it ready to be unpaused. The domain was created as the kind that was
/// saved, with at least as many vCPUs, and has its limits, but no CPU policy: that is in the stream, or, for one from a
/// release older than 4.14, is set as that release would have.
///
/// On failure the domain exists still and has to be destroyed by the caller. The stream's position is after its end
/// record on success.
///
/// # Errors
/// [`MigrateError`].
pub fn restore(xc: &Xenctrl, domid: DomId, stream: &Stream, rings: &RingEnds) -> Result<Built, MigrateError> {
    xc.require_xen()?;
    let handle = xc.raw()?;
    let mut context = Context { xc, domid, panics: Panics::default(), refused: None };
    let mut table = table(&mut context);
    let (mut store_mfn, mut console_mfn): (c_ulong, c_ulong) = (0, 0);
    xc.log().clear();
    clear_errno();
    // SAFETY: an open handle that reaches Xen; the descriptor is open as long as `stream` lives; both frames are live
    // variables the call stores to; the table (never null: it is followed unasked) and its context live until the call
    // returns; no back channel (-1) for a plain stream.
    let result = unsafe {
        sys::xc_domain_restore(
            handle,
            stream.raw(),
            domid.raw(),
            rings.store_evtchn.get(),
            &raw mut store_mfn,
            rings.store_domid.raw(),
            rings.console_evtchn.get(),
            &raw mut console_mfn,
            rings.console_domid.raw(),
            sys::XC_STREAM_PLAIN,
            &raw mut table,
            -1,
        )
    };
    let errno = last_errno();
    let Context { panics, refused, .. } = context;
    panics.release();
    if result == 0 {
        return Ok(Built { store_mfn, console_mfn });
    }
    Err(if stream.is_stopped() {
        MigrateError::Stopped { domid }
    } else if let Some(refused) = refused {
        MigrateError::Call(refused)
    } else {
        let detail = xc.log().take_errors();
        MigrateError::Call(Error::Call { call: "xc_domain_restore", domid: Some(domid.raw()), errno, detail })
    })
}

fn table(context: &mut Context<'_>) -> sys::restore_callbacks {
    sys::restore_callbacks {
        static_data_done: Some(static_data_done),
        suspend: None,
        postcopy: None,
        checkpoint: None,
        wait_checkpoint: None,
        restore_results: None,
        data: std::ptr::from_mut(context).cast(),
    }
}

/// 0 for success.
unsafe extern "C" fn static_data_done(missing: c_uint, data: *mut c_void) -> c_int {
    // SAFETY: libxenguest passes on the table's `data`, during the call only, while the context lives and nobody else
    // refers to it.
    let Context { xc, domid, panics, refused } = unsafe { &mut *data.cast::<Context<'_>>() };
    if missing & sys::XGR_SDD_MISSING_CPUID == 0 {
        return 0;
    }
    let policy = CpuidPolicy { restore: true, ..CpuidPolicy::default() };
    let set = panics.contain(None, || Some(xc.apply_cpuid_policy(*domid, &policy)));
    match set {
        Some(Ok(())) => 0,
        Some(Err(error)) => {
            *refused = Some(error);
            -1
        }
        None => -1,
    }
}

/// Calls the table's function as C would.
#[cfg(test)]
pub(super) fn call_static_data_done(xc: &Xenctrl, domid: DomId, missing: c_uint) -> (c_int, Option<Error>) {
    let mut context = Context { xc, domid, panics: Panics::default(), refused: None };
    let table = table(&mut context);
    let Some(function) = table.static_data_done else { panic!("the callback is missing") };
    // SAFETY: as libxenguest calls it: with the table's data, while the context lives.
    let answer = unsafe { function(missing, table.data) };
    (answer, context.refused)
}
