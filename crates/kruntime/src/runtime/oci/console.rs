//! Terminals of containers: the OCI runtime makes them inside and sends us our end over a socket.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{io::Interest, net::UnixListener};

/// Waits for our end of a terminal.
pub(super) struct Console(UnixListener);

impl Console {
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        UnixListener::bind(path).map(Self)
    }

    /// The end, which does not block.
    pub(super) async fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.0.accept().await?;
        loop {
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || take(&stream)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }
}

fn take(stream: &tokio::net::UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let found = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let terminal = found.ok_or_else(|| io::Error::other("the OCI runtime sent no terminal"))?;
    let flags = rustix::fs::fcntl_getfl(&terminal)?;
    rustix::fs::fcntl_setfl(&terminal, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(terminal)
}
