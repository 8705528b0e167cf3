//! The frame buffer of a PV or PVH guest (`vfb`): xl.cfg(5), "Paravirtualised Framebuffer Device".

use super::error::Fault;
use super::reader::{Kind, Reader};

const KEY: &str = "vfb";

/// The only address that screens are served on.
const ADDRESS: &str = "127.0.0.1";

impl Reader {
    /// Whether the guest has one.
    pub(super) fn frame_buffer(&mut self, kind: Kind) -> bool {
        let specs = self.devices(KEY);
        for (line, _) in specs.iter().skip(1) {
            let fault = Fault::bad(format!("{} of them", specs.len()), "at most one: a guest has one screen");
            self.fault(*line, KEY, fault);
        }
        let Some((line, spec)) = specs.into_iter().next() else { return false };
        if kind == Kind::Hvm {
            self.ignored(line, KEY, spec, "hvm guests have an emulated graphics card");
            return false;
        }
        for parameter in spec.split(',').map(str::trim).filter(|parameter| !parameter.is_empty()) {
            self.frame_buffer_parameter(line, parameter);
        }
        true
    }

    fn frame_buffer_parameter(&mut self, line: usize, parameter: &str) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        let why = match (name, value) {
            ("vnc", "1") | ("sdl" | "opengl", "0") | ("vncunused", _) => return,
            ("vnclisten", listen) => {
                // A display may follow, as in vncdisplay.
                let address = listen.split_once(':').map_or(listen, |(address, _)| address);
                if address != ADDRESS {
                    let only = "127.0.0.1: screens are reached through this host only";
                    self.fault(line, KEY, Fault::bad(parameter, only));
                }
                return;
            }
            ("vnc", "0") => {
                "it is served as VNC on 127.0.0.1 in any case; leave vfb out for a guest without one"
            }
            ("vncdisplay", _) => "the next free port from 5901 on is taken; `xenops vnc` says which",
            ("vncpasswd", _) => "the daemon's vncterm-password-file has the password of guests' screens",
            ("sdl" | "opengl" | "display" | "xauthority", _) => "no window is opened in dom0",
            ("keymap", _) => "viewers' keys are those of a US keyboard to the guest",
            _ => {
                let known = "vnc, vnclisten, vncdisplay, vncunused, vncpasswd, sdl, opengl, display, xauthority, keymap";
                self.fault(line, KEY, Fault::bad(parameter, format!("name=value; the names are {known}")));
                return;
            }
        };
        self.ignored(line, KEY, parameter.to_owned(), why);
    }
}
