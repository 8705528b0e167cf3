//! Sockets here that lead to sockets in dom0, such as the daemon's.

use crate::{
    error::Result,
    host::{CONTROL_LIMIT, Host},
    process,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A Unix socket here that leads to one in dom0, until it is dropped.
#[derive(Debug)]
pub struct Forward<'a> {
    host: &'a Host,
    local: PathBuf,
    remote: String,
}

impl Host {
    /// Makes `local` a Unix socket here whose connections reach the socket `remote` in dom0. Neither path may hold
    /// a colon.
    ///
    /// # Errors
    /// When the connection cannot be made or `local` cannot be bound. Whether anything listens at `remote` shows
    /// only when `local` is connected to.
    pub fn forward_unix(&self, local: &Path, remote: &str) -> Result<Forward<'_>> {
        self.open_forward(local, remote)?;
        Ok(Forward { host: self, local: local.to_owned(), remote: remote.to_owned() })
    }

    /// As [`Host::forward_unix`], for as long as the host runs.
    ///
    /// # Errors
    /// As [`Host::forward_unix`].
    pub fn open_forward(&self, local: &Path, remote: &str) -> Result<()> {
        {
            let mut open = process::locked(&self.forwarding);
            let up =
                || self.forwards.control("check", None, CONTROL_LIMIT).is_ok_and(|output| output.success());
            if !*open && !up() {
                self.connect(&self.forwards)?;
            }
            *open = true;
        }
        self.control_forward("forward", local, remote)
    }

    fn control_forward(&self, what: &str, local: &Path, remote: &str) -> Result<()> {
        let pair = format!("{}:{remote}", local.display());
        let output =
            self.forwards.control(what, Some(&pair), CONTROL_LIMIT).map_err(|e| self.with_console(e))?;
        if output.success() { Ok(()) } else { Err(self.unconnected(&format!("{what} {pair}"), &output)) }
    }
}

impl Forward<'_> {
    /// The socket here.
    pub fn local(&self) -> &Path {
        &self.local
    }
}

impl Drop for Forward<'_> {
    fn drop(&mut self) {
        // The host may be gone already, and its forwards with it.
        drop(self.host.control_forward("cancel", &self.local, &self.remote));
        drop(fs::remove_file(&self.local));
    }
}
