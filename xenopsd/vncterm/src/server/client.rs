//! A connection: a viewer or a reader of the raw text.

use super::Stream;
use crate::fb::canvas::Canvas;
use crate::rfb::{PixelViewer, Viewer, ViewerError};
use crate::term::Terminal;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

/// Bytes for a text client that does not read, beyond the log that it is sent first.
const MAX_TEXT: usize = 1 << 20;

/// Time between two updates of a viewer: 50 a second.
const FRAME: Duration = Duration::from_millis(20);

/// A client that takes nothing for so long is dropped, also a viewer that does not finish its handshake.
const STALLED: Duration = Duration::from_secs(20);

/// A viewer of some kind of screen.
pub(super) trait Watches {
    /// The screen.
    type Screen;

    /// The handshake is over.
    fn is_ready(&self) -> bool;
    /// An update is wanted and the last one was taken.
    fn wants_update(&self) -> bool;
    /// Appends an update, if one is wanted and something changed.
    fn update(&mut self, screen: &Self::Screen);
    /// Bytes to be sent.
    fn output(&self) -> &[u8];
    /// That many of them were.
    fn sent(&mut self, count: usize);
}

/// The viewers' own methods of these names.
macro_rules! watches {
    ($viewer:ty, $screen:ty) => {
        impl Watches for $viewer {
            type Screen = $screen;

            fn is_ready(&self) -> bool {
                self.is_ready()
            }

            fn wants_update(&self) -> bool {
                self.wants_update()
            }

            fn update(&mut self, screen: &$screen) {
                self.update(screen);
            }

            fn output(&self) -> &[u8] {
                self.output()
            }

            fn sent(&mut self, count: usize) {
                self.sent(count);
            }
        }
    };
}

watches!(Viewer, Terminal);
watches!(PixelViewer, Canvas);

pub(super) enum Kind<V> {
    Viewer(Box<V>),
    /// What is to be sent.
    Text(Vec<u8>),
}

pub(super) struct Client<V> {
    stream: Stream,
    pub(super) kind: Kind<V>,
    /// There may be something to read.
    pub(super) readable: bool,
    /// Since when it owes its handshake, or room for what is to be sent.
    waiting_since: Option<Instant>,
    last_update: Option<Instant>,
    /// Bytes of text that may wait for it.
    most: usize,
    /// To be closed once it has all that is to be sent.
    closing: bool,
    /// To be closed.
    pub(super) dropped: bool,
}

impl<V: Watches> Client<V> {
    pub(super) fn new(stream: Stream, kind: Kind<V>, now: Instant) -> Self {
        let most = if let Kind::Text(output) = &kind { output.len() + MAX_TEXT } else { 0 };
        Self {
            most,
            stream,
            kind,
            readable: true,
            waiting_since: Some(now),
            last_update: None,
            closing: false,
            dropped: false,
        }
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text(_))
    }

    /// It is no viewer in its handshake.
    pub(super) fn is_ready(&self) -> bool {
        match &self.kind {
            Kind::Viewer(viewer) => viewer.is_ready(),
            Kind::Text(_) => true,
        }
    }

    /// When it must be looked at, if nothing happens before.
    pub(super) fn wakes(&self, now: Instant) -> Option<Instant> {
        if self.readable {
            return Some(now);
        }
        let frame = match &self.kind {
            // An update that is due and was not sent had nothing in it: output of the guest will wake us.
            Kind::Viewer(viewer) if viewer.wants_update() => {
                self.last_update.map(|last| last + FRAME).filter(|next| *next > now)
            }
            _ => None,
        };
        frame.into_iter().chain(self.waiting_since.map(|since| since + STALLED)).min()
    }

    /// What becomes of a viewer for what it has sent.
    pub(super) fn after(&mut self, received: Result<(), ViewerError>) {
        match received {
            Ok(()) => {}
            Err(ViewerError::Denied(_)) => self.close(),
            Err(_) => self.dropped = true,
        }
    }

    /// Sends what is to be sent, and takes nothing more.
    fn close(&mut self) {
        (self.readable, self.closing) = (false, true);
    }

    /// Reads what came; `None` when there is nothing now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if self.closing {
            self.readable = false;
            return None;
        }
        match self.stream.read(buffer) {
            // Who only wants what was printed so far says so by closing its half.
            Ok(0) if self.is_text() => self.close(),
            Ok(0) => self.dropped = true,
            Ok(count) => return Some(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.dropped = true,
        }
        None
    }

    /// Sends what is to be sent.
    pub(super) fn serve(&mut self, screen: &V::Screen, now: Instant) {
        if let Kind::Viewer(viewer) = &mut self.kind
            && viewer.wants_update()
            && self.last_update.is_none_or(|last| last + FRAME <= now)
        {
            viewer.update(screen);
            if !viewer.wants_update() {
                self.last_update = Some(now);
            }
        }
        self.flush(now);
        self.dropped |= self.waiting_since.is_some_and(|since| since + STALLED <= now);
    }

    fn flush(&mut self, now: Instant) {
        while !self.dropped {
            let output = match &self.kind {
                Kind::Viewer(viewer) => viewer.output(),
                Kind::Text(output) => output,
            };
            if output.is_empty() {
                self.dropped |= self.closing;
                if self.is_ready() {
                    self.waiting_since = None;
                }
                return;
            }
            match self.stream.write(output) {
                Ok(count) => self.sent(count, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting_since.get_or_insert(now);
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.dropped = true,
            }
        }
    }

    fn sent(&mut self, count: usize, now: Instant) {
        match &mut self.kind {
            Kind::Viewer(viewer) => viewer.sent(count),
            Kind::Text(output) => drop(output.drain(..count)),
        }
        if self.is_ready() && self.waiting_since.is_some() {
            self.waiting_since = Some(now);
        }
    }
}

impl Client<Viewer> {
    /// The guest printed this.
    pub(super) fn printed(&mut self, bytes: &[u8], rings: bool) {
        match &mut self.kind {
            Kind::Viewer(viewer) if rings => viewer.bell(),
            Kind::Viewer(_) => {}
            Kind::Text(_) if self.closing => {}
            Kind::Text(output) => {
                self.dropped |= output.len() + bytes.len() > self.most;
                output.extend_from_slice(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::term::Size;
    use mio::net::UnixStream;

    /// Long enough for the socket's buffer to be full after it.
    const MUCH: usize = 8 << 20;

    fn stalls(kind: Kind<Viewer>) -> (Client<Viewer>, UnixStream, Instant) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let mut client = Client::new(Stream::Unix(ours), kind, start);
        client.serve(&Terminal::new(Size::DEFAULT, 4), start);
        (client, theirs, start)
    }

    #[test]
    fn who_does_not_read_is_dropped_in_time() {
        let terminal = Terminal::new(Size::DEFAULT, 4);
        let soon = STALLED.saturating_sub(Duration::from_millis(1));
        // A text client that takes nothing, and a viewer that never says its version.
        for kind in [Kind::Text(vec![b'x'; MUCH]), Kind::Viewer(Box::new(Viewer::new(None)))] {
            let (mut client, _theirs, start) = stalls(kind);
            client.serve(&terminal, start + soon);
            assert!(!client.dropped);
            client.serve(&terminal, start + STALLED);
            assert!(client.dropped);
        }
    }

    /// One that asks for the screen again and again, and takes none of it.
    #[test]
    fn a_viewer_that_stops_reading_is_dropped() {
        let mut terminal = Terminal::new(Size::DEFAULT, 4);
        let mut viewer = Viewer::new(None);
        viewer.received(b"RFB 003.008\n\x01\x01", &terminal, |_| ()).unwrap();
        let (mut client, _theirs, start) = stalls(Kind::Viewer(Box::new(viewer)));
        let mut now = start;
        // Until the socket's buffer is full: an update of the whole screen is a megabyte.
        while client.waiting_since.is_none() {
            let Kind::Viewer(viewer) = &mut client.kind else { unreachable!("it is one") };
            viewer.received(&[3, 0, 0, 0, 0, 0, 2, 128, 1, 128], &terminal, |_| ()).unwrap();
            now += FRAME;
            terminal.feed(b"x");
            client.serve(&terminal, now);
            assert!(!client.dropped && now < start + STALLED);
        }
        client.serve(&terminal, now + STALLED.saturating_sub(Duration::from_millis(1)));
        assert!(!client.dropped);
        let Kind::Viewer(viewer) = &client.kind else { unreachable!("it is one") };
        assert!(viewer.output().len() < 2 << 20, "{} bytes wait for it", viewer.output().len());
        client.serve(&terminal, now + STALLED);
        assert!(client.dropped);
    }

    #[test]
    fn who_reads_slowly_is_not() {
        let terminal = Terminal::new(Size::DEFAULT, 4);
        let (mut client, mut theirs, start) = stalls(Kind::Text(vec![b'x'; MUCH]));
        for turn in 1..5 {
            let taken = theirs.read(&mut vec![0; 1 << 20]).unwrap();
            assert!(taken > 0);
            client.serve(&terminal, start + STALLED / 2 * turn);
            assert!(!client.dropped, "in turn {turn}");
        }
    }

    #[test]
    fn a_text_client_is_owed_no_more_than_a_bound() {
        let (mut client, _theirs, _) = stalls(Kind::Text(Vec::new()));
        client.printed(&vec![b'x'; MAX_TEXT], false);
        assert!(!client.dropped);
        client.printed(b"x", false);
        assert!(client.dropped);
    }
}
