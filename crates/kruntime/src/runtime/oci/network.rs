//! Pods' network namespaces: made and kept here, connected to others by a [`PodNetwork`](knet::PodNetwork).

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use tokio::{net::TcpStream, sync::oneshot};

/// Which namespaces of its own a pod gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) network: bool,
    pub(super) ipc: bool,
    pub(super) hostname: bool,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes namespaces and keeps each at a file in `dir`, where they outlive this process. Blocks.
pub(super) fn make_namespaces(
    dir: &Path,
    wanted: Wanted,
    hostname: &str,
    sysctls: &[(String, String)],
) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let (dir, hostname, sysctls) = (dir.to_owned(), hostname.to_owned(), sysctls.to_vec());
    // A thread of its own: it has the namespaces until it ends, and no other may.
    let made = std::thread::Builder::new().name("kruntime-namespaces".to_owned()).spawn(move || {
        let flags = [
            (wanted.network, libc::CLONE_NEWNET),
            (wanted.ipc, libc::CLONE_NEWIPC),
            (wanted.hostname, libc::CLONE_NEWUTS),
        ];
        let flags = flags.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag);
        // SAFETY: plain system calls; the name is given with its length.
        unsafe {
            check(libc::unshare(flags))?;
            if wanted.hostname {
                check(libc::sethostname(hostname.as_ptr().cast(), hostname.len()))?;
            }
        }
        if wanted.network {
            loopback_up()?;
        }
        for (name, value) in &sysctls {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            std::fs::write(&path, value)
                .map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}: {error}")))?;
        }
        for (wanted, name) in [(wanted.network, "net"), (wanted.ipc, "ipc"), (wanted.hostname, "uts")] {
            if wanted {
                let target = dir.join(name);
                File::create(&target)?;
                rustix::mount::mount_bind(format!("/proc/thread-self/ns/{name}"), &target)?;
            }
        }
        Ok(())
    })?;
    made.join().map_err(|_| io::Error::other("the thread for namespaces ended early"))?
}

/// Lets go of the namespaces that are kept in `dir`.
pub(super) fn drop_namespaces(dir: &Path) {
    for name in ["net", "ipc", "uts"] {
        let _ = rustix::mount::unmount(dir.join(name), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Whether the file is a namespace still: after the machine was started anew it is just a file.
pub(super) fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    rustix::fs::statfs(path)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == NSFS_MAGIC))
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: a descriptor that comes back is ours alone; the request is plain data that lives until the call returns.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        check(socket)?;
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))
    }
}

/// Connects from inside a network namespace.
pub(super) async fn connect_inside(namespace: PathBuf, address: SocketAddr) -> io::Result<TcpStream> {
    let (made, socket) = oneshot::channel();
    // A socket stays in the namespace where it was made; the thread that enters it is good for nothing else afterwards.
    std::thread::Builder::new().name("kruntime-connect".to_owned()).spawn(move || {
        let _ = made.send(socket_inside(&namespace, address.is_ipv6()));
    })?;
    let socket = socket.await.map_err(|_| io::Error::other("the thread for a connection ended early"))??;
    let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    socket.connect(address).await
}

fn socket_inside(namespace: &Path, is_v6: bool) -> io::Result<OwnedFd> {
    let namespace = File::open(namespace)?;
    let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: plain system calls; the descriptor that comes back is ours alone.
    unsafe {
        check(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET))?;
        let socket = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        check(socket)?;
        Ok(OwnedFd::from_raw_fd(socket))
    }
}
