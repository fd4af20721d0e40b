//! The kernel's news of transactions.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::io::{Interest, unix::AsyncFd};

use crate::netlink::{Socket, attributes};

/// The group of news about nftables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
/// A transaction was made (`NFT_MSG_NEWGEN` of the subsystem of nftables).
const NEW_GENERATION: u16 = (10 << 8) | 15;
/// The bytes of the header behind netlink's own.
const HEADER_BYTES: usize = 4;
/// The attribute that has the process (`NFTA_GEN_PROC_PID`), in the network's byte order.
const PROCESS: u16 = 2;

/// The namespace of this process's number, and the one whose numbers the kernel tells (`PROC_PID_INIT_INO`).
const OWN_NAMESPACE: &str = "/proc/self/ns/pid";
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// A socket that hears of them. It is kept: to close it takes as long as what it helps to pass over.
#[derive(Debug)]
pub(super) struct News(AsyncFd<Socket>);

impl News {
    /// Those of this thread's network namespace.
    ///
    /// # Errors
    /// When there is no such socket, or processes have other numbers here than those that the kernel tells.
    pub(super) fn open() -> io::Result<Self> {
        if !std::fs::read_link(OWN_NAMESPACE)?.as_os_str().eq_ignore_ascii_case(FIRST_NAMESPACE) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this is not the first namespace of processes",
            ));
        }
        let socket = Socket::open(NETLINK_NETFILTER, 0)?;
        #[expect(
            deprecated,
            reason = "its successor asks by `unsafe` that the descriptor stays the socket's: it does"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self(socket))
    }

    /// Hears what happens from now on, or nothing more.
    ///
    /// # Errors
    /// When the right to hear is lacking.
    pub(super) fn hear(&mut self, hears: bool) -> io::Result<()> {
        self.0.get_mut().hear(GROUP, hears)?;
        self.forget();
        Ok(())
    }

    /// Passes over what was heard so far.
    fn forget(&self) {
        // What was lost is passed over, too.
        while self.0.get_ref().news().is_err_and(|error| is_lost(&error)) {}
    }

    /// Waits until a process has made so many transactions; forever when news are lost.
    pub(super) async fn made(&self, process: u32, transactions: usize) {
        let mut left = transactions;
        loop {
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            ready.clear_ready();
            let Ok(news) = self.0.get_ref().news() else { return std::future::pending().await };
            for (kind, body) in news {
                left = left.saturating_sub(usize::from(maker(kind, &body) == Some(process)));
            }
            if left == 0 {
                return;
            }
        }
    }
}

/// Whether there were more news than the socket can hold (`ENOBUFS`).
fn is_lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(105)
}

/// The process that has made the transaction that a message tells of.
fn maker(kind: u16, body: &[u8]) -> Option<u32> {
    let (_, process) = attributes(body.get(HEADER_BYTES..).filter(|_| kind == NEW_GENERATION)?)
        .find(|(attribute, _)| *attribute == PROCESS)?;
    process.first_chunk::<4>().map(|process| u32::from_be_bytes(*process))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{bytes, string};

    #[test]
    fn a_transaction_tells_who_has_made_it() {
        let body = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut body = vec![0; HEADER_BYTES];
            write(&mut body);
            body
        };
        let whole = body(&|out| {
            bytes(out, 1, &7_u32.to_be_bytes());
            bytes(out, PROCESS, &4711_u32.to_be_bytes());
            string(out, 3, "nft");
        });
        assert_eq!(maker(NEW_GENERATION, &whole), Some(4711));
        assert_eq!(maker(NEW_GENERATION - 1, &whole), None, "other news are about something else");
        for bad in
            [body(&|_| {}), body(&|out| bytes(out, PROCESS, &[1])), body(&|out| bytes(out, 1, &[0; 4]))]
        {
            assert_eq!(maker(NEW_GENERATION, &bad), None);
        }
        for cut in 0..20 {
            assert_eq!(maker(NEW_GENERATION, &whole[..cut]), None, "{cut}");
        }
    }
}
