//! Taps: network devices whose packets go to and come from whoever has the descriptor (`<linux/if_tun.h>`).

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use super::ioctl;

/// `_IOW('T', 202, int)`; the argument is a `struct ifreq` all the same.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// `IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL`: whole Ethernet frames, nothing before them, and a name that is not in use.
const FLAGS: libc::c_short = 0x0002 | 0x1000 | -0x8000;

/// Makes the tap of that name. `control` is `/dev/net/tun`, just opened; the device ends with the last copy of it.
///
/// # Errors
/// The kernel's; `EBUSY` when there is a device of that name, `EINVAL` for a name longer than 15 bytes.
pub fn make(control: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let name = CString::new(name).map_err(|_| invalid())?;
    let bytes = name.as_bytes_with_nul();
    // SAFETY: a structure of numbers, for which zero is valid.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    if bytes.len() < 2 || bytes.len() > request.ifr_name.len() {
        return Err(invalid());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = FLAGS;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, all of whose bit patterns are valid.
    unsafe { ioctl::with_struct(control, TUNSETIFF, &mut request) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_tap_lasts_as_long_as_its_descriptor() {
        let open = || File::options().read(true).write(true).open("/dev/net/tun");
        let Ok(control) = open() else {
            eprintln!("skipped: /dev/net/tun cannot be opened here");
            return;
        };
        let name = format!("tapt{}", std::process::id());
        if let Err(error) = make(control.as_fd(), &name) {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            eprintln!("skipped: taps need more rights than there are here");
            return;
        }
        let there = || std::path::Path::new("/sys/class/net").join(&name).exists();
        assert!(there());
        let second = make(open().unwrap().as_fd(), &name).unwrap_err();
        assert_eq!(second.raw_os_error(), Some(libc::EBUSY));
        drop(control);
        assert!(!there());
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let null = File::open("/dev/null").unwrap();
        for name in ["", "longer-than-fifteen", "a\0b"] {
            assert_eq!(make(null.as_fd(), name).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{name:?}");
        }
    }
}
