//! The seccomp filter that hands `bind` and `connect` to the supervisor.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const SET_MODE_FILTER: libc::c_ulong = 1;
const FILTER_FLAG_NEW_LISTENER: libc::c_ulong = 1 << 3;
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: u32 = 0;
/// Where `struct seccomp_data` has the call's number and the architecture.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;

const fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
}

const fn jump_if_equal(value: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: 0x15, jt: yes, jf: no, k: value }
}

const fn give(value: u32) -> libc::sock_filter {
    libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: value }
}

/// Calls of another architecture, 32-bit programs say, go through as they are.
const FILTER: [libc::sock_filter; 7] = [
    load(DATA_ARCH),
    jump_if_equal(ARCHITECTURE, 0, 3),
    load(DATA_NR),
    jump_if_equal(libc::SYS_bind as u32, 2, 0),
    jump_if_equal(libc::SYS_connect as u32, 1, 0),
    give(RET_ALLOW),
    give(RET_USER_NOTIF),
];

/// Installs the filter in the calling process and sends its listener through `socket`. Runs between fork and exec: only
/// calls that are safe there.
pub(super) fn install(socket: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls with arguments that live on this stack or are static.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut filter = FILTER;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let listener =
            libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, FILTER_FLAG_NEW_LISTENER, &raw const program);
        if listener < 0 {
            return Err(io::Error::last_os_error());
        }
        send_fd(socket, listener as RawFd)
    }
}

/// Room for one control message with one descriptor, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 32]);

fn send_fd(socket: RawFd, fd: RawFd) -> io::Result<()> {
    let mut byte = [STAGE_LISTENER];
    let mut control = Control([0; 32]);
    // SAFETY: the message points to buffers that live until the call returns, and CMSG_* stay inside `control`, which
    // has room for more than CMSG_SPACE of one descriptor (24 bytes).
    unsafe {
        let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        std::ptr::write_unaligned(libc::CMSG_DATA(header).cast::<RawFd>(), fd);
        if libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The first byte of the message that carries the listener; smaller ones name the step that failed.
pub(super) const STAGE_LISTENER: u8 = 0xff;

/// What the child said before it became its program.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) listener: Option<OwnedFd>,
    pub(super) failed_stage: Option<u8>,
}

/// Reads what the child said. Nothing blocks: the child has either become its program or ended.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Said {
    let mut said = Said::default();
    loop {
        let mut byte = [0_u8];
        let mut control = Control([0; 32]);
        // SAFETY: as in `send_fd`; a descriptor that arrives is ours alone.
        let received = unsafe {
            let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut iov;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = control.0.len() as _;
            let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
            let received = libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags);
            if received > 0 {
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
                    let fd = std::ptr::read_unaligned(libc::CMSG_DATA(header).cast::<RawFd>());
                    said.listener = Some(OwnedFd::from_raw_fd(fd));
                }
            }
            received
        };
        if received <= 0 {
            return said;
        }
        if byte[0] != STAGE_LISTENER {
            said.failed_stage = Some(byte[0]);
        }
    }
}
