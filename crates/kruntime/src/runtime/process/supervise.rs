//! The other side of the network filter: `bind` and `connect` of a pod's processes, moved to the pod's own address.
//!
//! The kernel stops a process in `bind` or `connect` and tells us. We copy the address out of its memory, take its
//! socket over (`pidfd_getfd`), make the call ourselves with the changed copy, and give the process the result. What the
//! process writes into its memory meanwhile makes no difference. Calls that need no change go on as they are.

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use knet::{Redirects, Transport};
use tokio::io::{Interest, unix::AsyncFd};

const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
const NOTIF_ID_VALID: libc::c_ulong = 0x4008_2102;
const FLAG_CONTINUE: u32 = 1;
const IP_BIND_ADDRESS_NO_PORT: libc::c_int = 24;

#[repr(C)]
#[derive(Clone, Copy)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

/// Where a pod's traffic goes.
#[derive(Clone, Debug)]
pub(super) struct Rewrite {
    pub(super) pod: Ipv4Addr,
    pub(super) redirects: Redirects,
}

/// What is to become of a call.
enum Verdict {
    /// Let the process make it.
    Continue,
    /// It was made; this is its result.
    Made(io::Result<()>),
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(listener: RawFd) -> io::Result<Notification> {
    // SAFETY: the buffer is of the kernel's size and zeroed, as the kernel wants it.
    unsafe {
        let mut notification: Notification = zeroed();
        check(libc::ioctl(listener, NOTIF_RECV as _, &raw mut notification))?;
        Ok(notification)
    }
}

fn respond(listener: RawFd, id: u64, verdict: &Verdict) {
    let (error, flags) = match verdict {
        Verdict::Continue => (0, FLAG_CONTINUE),
        Verdict::Made(Ok(())) => (0, 0),
        Verdict::Made(Err(error)) => (-error.raw_os_error().unwrap_or(libc::EIO), 0),
    };
    let response = Response { id, val: 0, error, flags };
    // SAFETY: the buffer is of the kernel's size. A process that died meanwhile needs no answer.
    unsafe { libc::ioctl(listener, NOTIF_SEND as _, &raw const response) };
}

/// Answers the processes behind `listener` until the last of them has ended.
pub(super) async fn run(listener: OwnedFd, rewrite: Rewrite) {
    // SAFETY: an `OwnedFd` stays open, and the same, as long as it lives.
    let Ok(listener) = (unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }) else {
        return;
    };
    loop {
        let Ok(mut ready) = listener.readable().await else { return };
        if ready.ready().is_read_closed() {
            return;
        }
        let fd = listener.get_ref().as_raw_fd();
        if !has_news(fd) {
            ready.clear_ready();
            continue;
        }
        let notification = match receive(fd) {
            Ok(notification) => notification,
            Err(error) if [Some(libc::ENOENT), Some(libc::EINTR)].contains(&error.raw_os_error()) => continue,
            Err(_) => return,
        };
        match judge(fd, &notification, &rewrite) {
            Ok(Judged::Now(verdict)) => respond(fd, notification.id, &verdict),
            Ok(Judged::Connect(socket, address, shape)) => {
                // A connection to another pod may wait, for a full backlog say: not on the event loop.
                let Ok(listener) = listener.get_ref().try_clone() else { return };
                tokio::task::spawn_blocking(move || {
                    let made = make(&socket, Call::Connect, address, shape);
                    respond(listener.as_raw_fd(), notification.id, &Verdict::Made(made));
                });
            }
            // The process is gone, or out of reach: it makes the call itself if it still can.
            Err(_) => respond(fd, notification.id, &Verdict::Continue),
        }
    }
}

/// Whether a notification waits. The event loop's readiness is a memory of the past; receiving without news would block.
fn has_news(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives until the call returns.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLIN != 0 }
}

enum Judged {
    Now(Verdict),
    Connect(OwnedFd, SocketAddr, Shape),
}

/// The family that a socket wants its addresses in.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    V4,
    V6,
}

#[derive(Clone, Copy)]
enum Call {
    Bind,
    Connect,
}

fn judge(listener: RawFd, notification: &Notification, rewrite: &Rewrite) -> io::Result<Judged> {
    let length = (notification.args[2] as usize).min(size_of::<libc::sockaddr_storage>());
    let bytes = read_memory(notification.pid, notification.args[1], length)?;
    let Some((address, shape)) = parse(&bytes) else { return Ok(Judged::Now(Verdict::Continue)) };
    let bind = i64::from(notification.nr) == libc::SYS_bind;
    let local = is_local(address.ip()) || address.ip() == IpAddr::V4(rewrite.pod);
    let target = if local { SocketAddr::new(rewrite.pod.into(), address.port()) } else { address };
    if bind && !local {
        return Ok(Judged::Now(Verdict::Continue));
    }
    if !bind && !local && !is_loopback(address.ip()) {
        return Ok(Judged::Now(Verdict::Continue));
    }
    let socket = take_socket(notification.pid, notification.args[0] as RawFd)?;
    // The process may have died and its number been given to another one.
    // SAFETY: the id lives until the call returns.
    check(unsafe { libc::ioctl(listener, NOTIF_ID_VALID as _, &raw const notification.id) })?;
    let transport = match option(&socket, libc::SOL_SOCKET, libc::SO_TYPE)? {
        libc::SOCK_STREAM => Transport::Tcp,
        libc::SOCK_DGRAM => Transport::Udp,
        _ => return Ok(Judged::Now(Verdict::Continue)),
    };
    if bind {
        return Ok(Judged::Now(Verdict::Made(bind_in_pod(&socket, target, shape, transport, rewrite))));
    }
    let target = rewrite.redirects.resolve(transport, target);
    if transport == Transport::Tcp && shape == Shape::V4 {
        bind_source(&socket, rewrite.pod);
    }
    Ok(Judged::Connect(socket, target, shape))
}

/// Addresses that mean "this host": in a pod, the pod.
fn is_local(address: IpAddr) -> bool {
    address.is_unspecified()
        || address == IpAddr::V4(Ipv4Addr::LOCALHOST)
        || address == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

fn is_loopback(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_loopback())
}

fn bind_in_pod(
    socket: &OwnedFd,
    target: SocketAddr,
    shape: Shape,
    transport: Transport,
    rewrite: &Rewrite,
) -> io::Result<()> {
    if shape == Shape::V6 && option(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0 {
        // The pod has no IPv6 address. A server that listens on both families separately must not fail for it.
        return make(socket, Call::Bind, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0), shape);
    }
    match make(socket, Call::Bind, target, shape) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) && target.port() < 1024 => {
            // A port that needs privileges: listen on another one, and let those who connect know.
            make(socket, Call::Bind, SocketAddr::new(target.ip(), 0), shape)?;
            rewrite.redirects.set(transport, target, SocketAddr::new(target.ip(), bound_port(socket)?));
            Ok(())
        }
        result => result,
    }
}

/// Lets a connection come from the pod's address, as long as the process did not choose one. Failing that it comes from
/// 127.0.0.1 and works all the same.
fn bind_source(socket: &OwnedFd, pod: Ipv4Addr) {
    if bound_port(socket).is_ok_and(|port| port == 0) {
        let on: libc::c_int = 1;
        // SAFETY: an int with its size.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
        let _ = make(socket, Call::Bind, SocketAddr::new(pod.into(), 0), Shape::V4);
    }
}

fn read_memory(pid: u32, address: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let remote = libc::iovec { iov_base: address as usize as *mut libc::c_void, iov_len: length };
    // SAFETY: the local buffer has the length that is said; the remote one is checked by the kernel.
    let read =
        unsafe { libc::process_vm_readv(pid as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(read).ok() == Some(length) { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

fn take_socket(thread: u32, fd: RawFd) -> io::Result<OwnedFd> {
    // The notification names a thread, a pidfd wants a process.
    let process = process_of(thread).unwrap_or(thread);
    // SAFETY: plain system calls; descriptors that come back are ours alone.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process, 0) as RawFd;
        check(pidfd)?;
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        let socket = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) as RawFd;
        check(socket)?;
        Ok(OwnedFd::from_raw_fd(socket))
    }
}

fn process_of(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

fn parse(bytes: &[u8]) -> Option<(SocketAddr, Shape)> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let address = <[u8; 4]>::try_from(bytes.get(4..8)?).ok()?;
            Some((SocketAddr::new(address.into(), port), Shape::V4))
        }
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?);
            let address = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
            Some((SocketAddr::new(address, port), Shape::V6))
        }
        _ => None,
    }
}

fn make(socket: &OwnedFd, call: Call, address: SocketAddr, shape: Shape) -> io::Result<()> {
    // SAFETY: the addresses are plain data, filled below and passed with their size.
    unsafe {
        let mut v4: libc::sockaddr_in = zeroed();
        let mut v6: libc::sockaddr_in6 = zeroed();
        let (pointer, length): (*const libc::sockaddr, usize) = match (shape, address.ip()) {
            (Shape::V4, IpAddr::V4(ip)) => {
                v4.sin_family = libc::AF_INET as libc::sa_family_t;
                v4.sin_port = address.port().to_be();
                v4.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
                ((&raw const v4).cast(), size_of::<libc::sockaddr_in>())
            }
            (Shape::V6, ip) => {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                v6.sin6_port = address.port().to_be();
                v6.sin6_addr.s6_addr = ip.octets();
                ((&raw const v6).cast(), size_of::<libc::sockaddr_in6>())
            }
            (Shape::V4, IpAddr::V6(_)) => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        };
        let length = length as libc::socklen_t;
        check(match call {
            Call::Bind => libc::bind(socket.as_raw_fd(), pointer, length),
            Call::Connect => libc::connect(socket.as_raw_fd(), pointer, length),
        })
    }
}

fn option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: an int with its size.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    })?;
    Ok(value)
}

fn bound_port(socket: &OwnedFd) -> io::Result<u16> {
    // SAFETY: room for any address, with its size.
    unsafe {
        let mut storage: libc::sockaddr_storage = zeroed();
        let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        check(libc::getsockname(socket.as_raw_fd(), (&raw mut storage).cast(), &raw mut length))?;
        let bytes = std::slice::from_raw_parts((&raw const storage).cast::<u8>(), length as usize);
        Ok(parse(bytes).map_or(0, |(address, _)| address.port()))
    }
}
