//! Transactions of nftables: small ones straight to the kernel, all others by the program `nft`.
//!
//! What changes from one moment to the next are elements of maps and sets, a few at a time. Starting `nft` for these costs more than
//! a hundred times what the kernel does, so that such scripts are written as netlink messages here; whatever these can't say, or the
//! kernel refuses, goes to `nft`, which knows everything and gives reasons.

#[cfg(target_os = "linux")]
mod elements;
#[cfg(target_os = "linux")]
mod netlink;

#[cfg(target_os = "linux")]
use std::sync::{Mutex, PoisonError};
use std::{io, path::Path};

use crate::{commits::Commits, program};

/// What makes transactions, one after the other. It belongs to the network namespace of its first one.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    /// Kept, as the kernel closes such a socket only after what was deleted is really gone, which takes a hundred times as long as the
    /// transaction.
    #[cfg(target_os = "linux")]
    socket: Mutex<Option<netlink::Batches>>,
    commits: Commits,
}

impl Transactions {
    /// Runs a script as one transaction.
    ///
    /// # Errors
    /// When `nft` can't be run or refuses; nothing has changed then.
    pub(crate) async fn run(&self, nft: &Path, script: &str) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(batch) = elements::batch(script) {
            match self.transact(&batch) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(%error, "the kernel refuses elements: nft says why"),
            }
        }
        self.commits.run(nft, ["-f", "-"], script, 1).await
    }

    #[cfg(target_os = "linux")]
    fn transact(&self, batch: &[u8]) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken: one that has failed may still have answers.
        let open = match socket.take() {
            Some(open) => open,
            None => netlink::Batches::open()?,
        };
        open.transact(batch)?;
        *socket = Some(open);
        Ok(())
    }
}

/// Whether transactions can be made: changes nothing.
///
/// # Errors
/// When `nft` is not there, the kernel has no nftables, or the right to change the network is lacking.
pub(crate) async fn check(nft: &Path) -> io::Result<()> {
    program::run(nft, ["-c", "-f", "-"], "add table ip kplane-check\n").await.map(drop)
}
