//! The backend's half of the xenbus handshake of a guest's frame buffer and keyboard, as a function of what both ends say:
//! which process should serve them, and which states the backends show.
//!
//! ```text
//!   backends InitWait ──► the guest publishes a page and a port for each ──► served, from those on
//!        ▲                  └── the frame buffer's only: served without a keyboard
//!        │                                                       │ both backends of what is served: Connected
//!        └─ its driver begins anew ─ Closed ◄── the guest, or a toolstack, closes; it cannot be served
//! ```

use vncterm::fb::described::Abi;
use vncterm::fb::wanted::{Ring, Wanted};
use xenstore::layout::{FrameBufferSaid, XenbusState};

use crate::edge::DomId;

/// Longest number of the guest's: 64 bits in decimal.
const MAX_DIGITS: usize = 20;

/// A node's value, if it is there: any bytes.
type Said<'a> = Option<&'a [u8]>;

fn number<N: std::str::FromStr>(said: Said<'_>) -> Option<N> {
    let digits = said.filter(|text| text.len() <= MAX_DIGITS && text.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn state(said: Said<'_>) -> Option<XenbusState> {
    said.map(XenbusState::from_value)
}

/// Whether a backend may serve: nobody wants it to close, and it has not closed.
fn may_serve(backend: Said<'_>) -> bool {
    matches!(state(backend), Some(XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected))
}

/// A device that its guest has published.
fn ring(backend: Said<'_>, frontend: Said<'_>, frame: Said<'_>, port: Said<'_>) -> Option<Ring> {
    let published = matches!(state(frontend), Some(XenbusState::Initialised | XenbusState::Connected));
    (published && may_serve(backend)).then(|| Some(Ring { frame: number(frame)?, port: number(port)? }))?
}

/// Whether the guest wants the pointer's place rather than its moves.
pub fn is_absolute(said: &FrameBufferSaid) -> bool {
    said.keyboard_absolute.as_deref() == Some(b"1")
}

/// What is to be served.
pub fn wanted(domid: DomId, said: &FrameBufferSaid) -> Option<Wanted> {
    let screen = ring(
        said.screen_backend.as_deref(),
        said.screen_frontend.as_deref(),
        said.screen_page.as_deref(),
        said.screen_port.as_deref(),
    )?;
    let keyboard = ring(
        said.keyboard_backend.as_deref(),
        said.keyboard_frontend.as_deref(),
        said.keyboard_page.as_deref(),
        said.keyboard_port.as_deref(),
    );
    let abi = if said.protocol.as_deref() == Some(b"x86_32-abi") { Abi::Bits32 } else { Abi::Bits64 };
    Some(Wanted { domid: domid.get(), screen, abi, input: keyboard.map(|ring| (ring, is_absolute(said))) })
}

/// The next states of the frame buffer's backend and of the keyboard's; none where it stays as it is. `served` is what a
/// process serves now.
pub fn states(said: &FrameBufferSaid, served: Option<&Wanted>) -> [Option<XenbusState>; 2] {
    let keyboard = served.is_some_and(|served| served.input.is_some());
    [
        next(said.screen_backend.as_deref(), said.screen_frontend.as_deref(), served.is_some()),
        next(said.keyboard_backend.as_deref(), said.keyboard_frontend.as_deref(), keyboard),
    ]
}

fn next(backend: Said<'_>, frontend: Said<'_>, served: bool) -> Option<XenbusState> {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
    // One that is not there must not be brought back to life by a write to it.
    let now = state(backend)?;
    let next = match (now, state(frontend)) {
        // Its driver begins anew.
        (Closed | Connected, Some(Initialising)) => InitWait,
        // A toolstack, or the guest, has asked for it; or the guest has gone with its nodes.
        (Closing | Closed, _) | (_, Some(Closing | Closed)) | (Connected, None) => Closed,
        (_, Some(Initialised | Connected)) if served => Connected,
        (now, _) => now,
    };
    (next != now).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(screen: [&str; 4], keyboard: [&str; 4]) -> FrameBufferSaid {
        let value = |text: &str| (text != "-").then(|| text.as_bytes().to_vec());
        let [screen, keyboard] = [screen, keyboard].map(|four| four.map(value));
        let [screen_backend, screen_frontend, screen_page, screen_port] = screen;
        let [keyboard_backend, keyboard_frontend, keyboard_page, keyboard_port] = keyboard;
        FrameBufferSaid {
            screen_backend,
            screen_frontend,
            screen_page,
            screen_port,
            keyboard_backend,
            keyboard_frontend,
            keyboard_page,
            keyboard_port,
            ..FrameBufferSaid::default()
        }
    }

    fn word(said: &FrameBufferSaid) -> String {
        wanted(DomId::new(7).unwrap(), said).map_or_else(String::new, |wanted| wanted.to_string())
    }

    const NEW: [&str; 4] = ["2", "1", "-", "-"];

    #[test]
    fn what_is_published_is_served_and_a_keyboard_may_be_missing() {
        let mut both = said(["2", "3", "100", "5"], ["2", "4", "200", "6"]);
        assert_eq!(word(&both), "7:100:5:64:200:6:rel");
        both.keyboard_absolute = Some(b"1".to_vec());
        both.protocol = Some(b"x86_32-abi".to_vec());
        assert_eq!(word(&both), "7:100:5:32:200:6:abs");
        assert_eq!(word(&said(["4", "4", "100", "5"], NEW)), "7:100:5:64");
        assert_eq!(word(&said(NEW, ["2", "3", "200", "6"])), "", "a keyboard alone is none's");
    }

    #[test]
    fn nonsense_of_the_guests_is_nothing_to_serve() {
        for (frame, port) in [
            ("-", "5"),
            ("", "5"),
            ("+1", "5"),
            ("1", "-5"),
            ("1", "4294967296"),
            ("18446744073709551616", "5"),
            ("000000000000000000001", "5"),
            ("1 ", "5"),
            ("1\0", "5"),
        ] {
            assert_eq!(word(&said(["2", "3", frame, port], NEW)), "", "{frame:?} {port:?}");
        }
        for (backend, frontend) in
            [("5", "4"), ("6", "4"), ("-", "4"), ("2", "1"), ("2", "5"), ("2", "6"), ("2", "-"), ("2", "x")]
        {
            assert_eq!(word(&said([backend, frontend, "1", "2"], NEW)), "", "{backend} {frontend}");
        }
    }

    #[test]
    fn backends_follow_their_frontends() {
        use XenbusState::{Closed, Connected, InitWait};
        let step = |backend: &str, frontend: &str, served: bool| {
            let said = said([backend, frontend, "1", "2"], NEW);
            let word = Wanted { domid: 1, screen: Ring { frame: 1, port: 2 }, abi: Abi::Bits64, input: None };
            states(&said, served.then_some(&word))[0]
        };
        for (backend, frontend, served, expected) in [
            ("2", "1", false, None),
            ("2", "3", false, None),
            ("2", "3", true, Some(Connected)),
            ("4", "4", true, None),
            ("4", "5", false, Some(Closed)),
            ("2", "6", false, Some(Closed)),
            ("5", "4", true, Some(Closed)),
            ("6", "6", false, None),
            ("6", "1", false, Some(InitWait)),
            ("4", "1", false, Some(InitWait)),
            ("4", "-", false, Some(Closed)),
            ("-", "4", true, None),
        ] {
            assert_eq!(step(backend, frontend, served), expected, "{backend} {frontend} {served}");
        }
    }
}
