//! All connections of a server.

use super::client::{Client, Kind, Watches};
use super::listener::Listener;
use mio::{Interest, Registry, Token};
use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

/// Viewers at once, as in the original; and text clients.
const MAX_CLIENTS: usize = 8;

/// The first token of a connection; those below are the server's own.
pub(super) const FIRST: usize = 8;

/// Everything is told when it becomes ready, once.
pub(super) const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// By their tokens.
pub(super) struct Clients<V> {
    all: BTreeMap<usize, Client<V>>,
    next: usize,
}

impl<V> Default for Clients<V> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), next: FIRST }
    }
}

impl<V: Watches> Clients<V> {
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&usize, &mut Client<V>)> {
        self.all.iter_mut()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Client<V>> {
        self.all.values_mut()
    }

    /// Its viewers.
    pub(super) fn viewers(&mut self) -> impl Iterator<Item = &mut V> {
        self.all.values_mut().filter_map(|client| match &mut client.kind {
            Kind::Viewer(viewer) => Some(&mut **viewer),
            Kind::Text(_) => None,
        })
    }

    /// Whether a viewer wants an update.
    pub(super) fn want_update(&self) -> bool {
        self.all.values().any(|client| matches!(&client.kind, Kind::Viewer(viewer) if viewer.wants_update()))
    }

    /// There may be something to read from one.
    pub(super) fn readable(&mut self, token: usize) {
        if let Some(client) = self.all.get_mut(&token) {
            client.readable = true;
        }
    }

    /// When one must be looked at, if nothing happens before.
    pub(super) fn wakes(&self, now: Instant) -> Option<Instant> {
        self.all.values().filter_map(|client| client.wakes(now)).min()
    }

    /// Sends what is to be sent.
    pub(super) fn serve(&mut self, screen: &V::Screen, now: Instant) {
        self.all.values_mut().for_each(|client| client.serve(screen, now));
    }

    /// Those that are to be closed, which is done by dropping them.
    pub(super) fn take_dropped(&mut self) -> impl Iterator<Item = (usize, Client<V>)> + use<V> {
        let (dropped, kept) =
            std::mem::take(&mut self.all).into_iter().partition::<BTreeMap<_, _>, _>(|(_, c)| c.dropped);
        self.all = kept;
        dropped.into_iter()
    }

    /// One came to be the only viewer.
    pub(super) fn drop_viewers_but(&mut self, only: usize) {
        for (token, client) in &mut self.all {
            client.dropped |= *token != only && !client.is_text();
        }
    }

    /// Lets in who waits, as far as there is room.
    pub(super) fn accept(
        &mut self,
        listener: &Listener,
        registry: &Registry,
        text: bool,
        kind: impl Fn() -> Kind<V>,
    ) {
        loop {
            let mut stream = match listener.accept() {
                Ok(stream) => stream,
                // The one that waited has gone already; the next may be there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => return,
            };
            self.make_room(text);
            let full = self.count(text) >= MAX_CLIENTS;
            if full || registry.register(&mut stream, Token(self.next), BOTH).is_err() {
                continue;
            }
            self.all.insert(self.next, Client::new(stream, kind(), Instant::now()));
            self.next += 1;
        }
    }

    fn count(&self, text: bool) -> usize {
        self.all.values().filter(|client| client.is_text() == text).count()
    }

    /// The oldest viewer that has not finished its handshake gives way to a new one.
    fn make_room(&mut self, text: bool) {
        let oldest = self.all.iter().find(|(_, client)| !client.is_ready()).map(|(token, _)| *token);
        if let (Some(oldest), false) = (oldest, text)
            && self.count(text) >= MAX_CLIENTS
        {
            self.all.remove(&oldest);
        }
    }
}
