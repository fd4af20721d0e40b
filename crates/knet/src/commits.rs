//! Programs that change the kernel's tables of rules, and the word of the kernel that they have done so.
//!
//! `nft` and `iptables-restore` (over nf_tables) are done long before they end: the kernel keeps whoever closes a netlink socket until what was
//! deleted is really gone, which takes several times as long as all the rest. It says of each transaction by which process it was made
//! (`NFT_MSG_NEWGEN`, since Linux 4.15), so that nobody has to wait for the end of a program whose transactions are all there.

#[cfg(target_os = "linux")]
mod news;

use std::{
    ffi::OsStr,
    io,
    path::Path,
    process::{Output, Stdio},
};

use tokio::{
    io::AsyncWriteExt,
    process::Command,
    sync::Mutex,
    task::{JoinError, JoinSet},
};

use crate::program;

/// How many programs that have done their work may still be about to end.
const LEAVING_MAX: usize = 8;
/// The longest input whose transactions are heard of, in bytes.
const HEARD_BYTES_MAX: usize = 64 * 1024;

/// Runs such programs, one after the other. It belongs to the network namespace of its first one.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    #[cfg(target_os = "linux")]
    news: Option<news::News>,
    leaving: JoinSet<io::Result<Output>>,
}

impl Commits {
    /// Runs a program that reads `input` and makes so many transactions of it, until all of them hold. A program of which the kernel tells
    /// nothing, as it uses other tables, is waited for.
    ///
    /// # Errors
    /// When it can't be run, or fails before all are made: what it said then is the message.
    pub(crate) async fn run<A: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        input: &str,
        transactions: usize,
    ) -> io::Result<()> {
        let mut inner = self.inner.lock().await;
        while let Some(ended) = inner.leaving.try_join_next() {
            note(ended);
        }
        if inner.leaving.len() >= LEAVING_MAX
            && let Some(ended) = inner.leaving.join_next().await
        {
            note(ended);
        }
        // Whoever hears of a transaction hears of all that is in it, which the kernel writes down for each: too much of many elements.
        let hears = transactions > 0 && input.len() <= HEARD_BYTES_MAX && inner.hear(true);
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| program::not_run(program, &error))?;
        let process = child.id();
        let (stdin, input) = (child.stdin.take(), input.to_owned());
        let mut rest = Box::pin(async move {
            let write = async move {
                if let Some(mut stdin) = stdin {
                    // A program that stops reading says why on its other end.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            tokio::join!(write, child.wait_with_output()).1
        });
        let output = tokio::select! {
            biased;
            output = &mut rest => Some(output),
            () = inner.made(process, transactions), if hears => None,
        };
        if hears {
            inner.hear(false);
        }
        match output {
            Some(output) => program::checked(output?).map(drop),
            None => {
                inner.leaving.spawn(rest);
                Ok(())
            }
        }
    }
}

/// A program has ended after its work was done.
fn note(ended: Result<io::Result<Output>, JoinError>) {
    if let Ok(Ok(output)) = ended
        && let Err(error) = program::checked(output)
    {
        tracing::warn!(%error, "a program has failed after its transactions were made");
    }
}

#[cfg(target_os = "linux")]
impl Inner {
    /// Hears of what happens from now on, or of nothing more. Whether that can be.
    fn hear(&mut self, hears: bool) -> bool {
        if self.news.is_none() {
            self.news = news::News::open()
                .inspect_err(|error| tracing::debug!(%error, "nobody tells of transactions"))
                .ok();
        }
        self.news.as_mut().is_some_and(|news| news.hear(hears).is_ok())
    }

    /// Waits until a process has made so many transactions. Forever when there are no such news.
    async fn made(&self, process: Option<u32>, transactions: usize) {
        match (&self.news, process) {
            (Some(news), Some(process)) => news.made(process, transactions).await,
            _ => std::future::pending().await,
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Inner {
    fn hear(&mut self, _: bool) -> bool {
        false
    }

    async fn made(&self, _: Option<u32>, _: usize) {
        std::future::pending().await
    }
}
