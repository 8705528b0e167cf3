//! Messages between processes that carry a descriptor: how one that may open nothing gets what another opened for it.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for one descriptor's control message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// `CMSG_SPACE(sizeof(int))`: a header of 16 bytes and a number, both rounded up to 8.
const CONTROL: usize = 24;

/// The C library's own account of the size, checked once at compile time.
// SAFETY: arithmetic on a number.
const _: () = assert!(unsafe { libc::CMSG_SPACE(FD_BYTES) } as usize == CONTROL);

#[expect(clippy::cast_possible_truncation, reason = "four")]
const FD_BYTES: libc::c_uint = size_of::<RawFd>() as libc::c_uint;

/// A pair of sockets whose messages arrive whole and in order; the end of one is seen by the other.
///
/// # Errors
/// The kernel's, when there are no descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: an array of the two numbers the call fills.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: two descriptors the kernel just made for us.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into())
}

/// Sends one message of at least a byte, with a descriptor if one is given. It is sent whole or not at all.
///
/// # Errors
/// The kernel's; `EPIPE` when nobody can receive it any more, without a signal.
pub fn send(socket: impl AsFd, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: a structure of numbers and pointers, for which zero means "none".
    let mut header = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if let Some(descriptor) = descriptor {
        header.msg_control = (&raw mut control.0).cast();
        header.msg_controllen = CONTROL;
        // SAFETY: the header has room for one control message, which is what is written.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(FD_BYTES) as usize;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(descriptor.as_raw_fd());
        }
    }
    loop {
        // SAFETY: everything the header points to lives until the call returns, and is only read.
        let sent =
            unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) if sent == message.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Receives one message into `buffer`: its length, 0 when the other end is closed, and the descriptor that came with it.
///
/// # Errors
/// The kernel's; `InvalidData` for a message that is longer than `buffer` or carries more than one descriptor.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: as in `send`.
    let mut header = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control.0).cast();
    header.msg_controllen = CONTROL;
    let received = loop {
        // SAFETY: the kernel writes no more than the header says there is room for.
        let got =
            unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(got) = usize::try_from(got) {
            break got;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: a control message the kernel has written, whose length says that it holds one descriptor, which is ours
    // from now on; there is room for one only, so no others can have come.
    let descriptor = unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        let one = !first.is_null()
            && (*first).cmsg_level == libc::SOL_SOCKET
            && (*first).cmsg_type == libc::SCM_RIGHTS
            && (*first).cmsg_len == libc::CMSG_LEN(FD_BYTES) as usize;
        one.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned()))
    };
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((received, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_brings_a_descriptor_or_none() {
        let (ours, theirs) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&ours, b"first", Some(writer.as_fd())).unwrap();
        send(&ours, b"second", None).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (length, came) = receive(&theirs, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"first");
        std::fs::File::from(came.unwrap()).write_all(b"x").unwrap();
        let (length, none) = receive(&theirs, &mut buffer).unwrap();
        assert!(none.is_none() && &buffer[..length] == b"second");
        drop(ours);
        assert_eq!(receive(&theirs, &mut buffer).unwrap().0, 0);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "the copies are closed: it ends");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nobody_to_receive_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, &[0; 100], None).unwrap();
        assert_eq!(receive(&theirs, &mut [0; 99]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        assert_eq!(send(&ours, b"x", None).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }
}
