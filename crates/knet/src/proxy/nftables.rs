//! The proxy in the kernel: service addresses are rewritten by nftables, as upstream's kube-proxy does in its mode of the same
//! name (KEP-3866).
//!
//! Connections find their Service in a map by address, protocol and port, and their endpoint in another one, by the same: there
//! is one for each turn, and all Services with as many endpoints share the chain that says whose turn it is. So there are few
//! chains however many Services there are (upstream has several for each), and a change of one Service writes that Service's
//! elements only, in one transaction: it costs the same beside ten thousand others as beside ten. Only a Service with
//! session affinity or source ranges has a chain of its own, and with affinity each endpoint has one, too, with a set of the
//! clients that stay with it. What has no endpoints is refused, or dropped where only local endpoints would do.
//!
//! Where only elements change, the transaction goes to the kernel by netlink; all others are done by `nft`.
//!
//! It needs the program `nft`, the right to change the network of the namespace it runs in, and the program `conntrack` for UDP
//! flows to endpoints that are gone; without that, such flows end only when they are idle.

mod chains;
mod names;
mod state;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use async_trait::async_trait;
use tokio::sync::Mutex;

use self::state::State;
use super::{RuleError, ServiceProxy, SyncError, conntrack};
use crate::{
    nft::{self, Transactions},
    redirect::Transport,
    rules::Table,
};

/// What can be set, with its defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NftablesConfig {
    /// The name of the table, in both families. Default: `kplane-proxy`.
    pub table: String,
    /// The bit of a packet's mark that says that its source is to be rewritten. Default: `0x4000`, as upstream's.
    pub masquerade_mark: u32,
    /// The range that pods have their addresses from, such as `10.244.0.0/16`: traffic to cluster IPs that comes from elsewhere
    /// gets the node's address as source (`--cluster-cidr`). Default: none, and such traffic keeps its source.
    pub pod_ranges: Vec<String>,
    /// The ranges of the node's addresses that serve node ports (`--nodeport-addresses`). Default: none, which means all.
    pub node_port_addresses: Vec<String>,
    /// Whether endpoints may have loopback addresses, as pods that are processes have: what goes there keeps its source, since the kernel finds
    /// no other address for it, and answers come back here in any case. Default: no, as with upstream.
    pub loopback_endpoints: bool,
    /// The program that changes the rules. Default: `nft`.
    pub nft: PathBuf,
    /// The program that ends UDP flows. Default: `conntrack`.
    pub conntrack: PathBuf,
}

impl Default for NftablesConfig {
    fn default() -> Self {
        Self {
            table: "kplane-proxy".to_owned(),
            masquerade_mark: 0x4000,
            pod_ranges: Vec::new(),
            node_port_addresses: Vec::new(),
            loopback_endpoints: false,
            nft: "nft".into(),
            conntrack: "conntrack".into(),
        }
    }
}

impl NftablesConfig {
    fn check_ranges(&self) -> io::Result<()> {
        super::check_ranges(self.pod_ranges.iter().chain(&self.node_port_addresses))
    }
}

/// The nftables proxy. Its rules stay when it is dropped, so that a restart interrupts nobody; [`remove`](Self::remove) takes
/// them away.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use knet::{proxy::{ServiceProxy, nftables::NftablesProxy}, rules::Table};
/// let proxy = NftablesProxy::default();
/// proxy.sync(&Table::default()).await?;
/// proxy.remove().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct NftablesProxy {
    config: NftablesConfig,
    /// What the kernel has; `None` when that is not known.
    state: Mutex<Option<State>>,
    transactions: Transactions,
}

impl NftablesProxy {
    /// A proxy with these settings.
    #[must_use]
    pub fn new(config: NftablesConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes all its rules away.
    ///
    /// # Errors
    /// When `nft` can't be run or refuses.
    pub async fn remove(&self) -> io::Result<()> {
        let mut state = self.state.lock().await;
        *state = None;
        self.run_nft(&state::removal(&self.config)).await
    }

    /// Whether it can work here: changes nothing.
    ///
    /// # Errors
    /// When a range of the settings is none, `nft` is not there, the kernel has no nftables, or the right to change the network is lacking.
    pub async fn check(&self) -> io::Result<()> {
        self.config.check_ranges()?;
        nft::check(&self.config.nft).await
    }

    async fn run_nft(&self, script: &str) -> io::Result<()> {
        self.transactions.run(&self.config.nft, script).await
    }
}

fn error_of_all(source: io::Error) -> SyncError {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    SyncError(vec![RuleError { service: "all".to_owned(), address, transport: Transport::Tcp, source }])
}

#[async_trait]
impl ServiceProxy for NftablesProxy {
    async fn sync(&self, table: &Table) -> Result<(), SyncError> {
        self.config.check_ranges().map_err(error_of_all)?;
        let mut state = self.state.lock().await;
        let change = match state.take() {
            Some(known) => known.change(&self.config, table),
            None => State::fresh(&self.config, table),
        };
        if !change.script.is_empty()
            && let Err(source) = self.run_nft(&change.script).await
        {
            // What the kernel has now is not known: the next call makes all of it anew.
            return Err(error_of_all(source));
        }
        *state = Some(change.state);
        conntrack::end(&self.config.conntrack, &change.ended).await;
        if change.refused.is_empty() { Ok(()) } else { Err(SyncError(change.refused)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ranges_that_are_none_are_refused_before_anything_is_done() {
        for (pods, nodes) in [("10.0.0.0/33", "192.0.2.0/24"), ("10.0.0.0/8", "192.0.2.1")] {
            let config = NftablesConfig {
                pod_ranges: vec![pods.to_owned()],
                node_port_addresses: vec![nodes.to_owned()],
                nft: "/nowhere/nft".into(),
                ..NftablesConfig::default()
            };
            let proxy = NftablesProxy::new(config);
            for refused in [
                proxy.check().await.err().map(|error| error.to_string()),
                proxy.sync(&Table::default()).await.err().map(|errors| errors.0[0].source.to_string()),
            ] {
                let why = refused.unwrap();
                assert!(why.ends_with(" is no range of addresses, such as 10.0.0.0/8"), "{why}");
            }
        }
    }
}
