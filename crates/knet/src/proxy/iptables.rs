//! The proxy in the kernel by iptables, with the chains that upstream's kube-proxy makes in its mode of the same name.
//!
//! The chains have upstream's names, hashes included, so that whoever reads a node's rules finds what he knows, and a node that comes
//! from upstream's proxy is taken over: chains of Services that are gone are deleted by the first sync. Changes are written by
//! `iptables-restore`, without flushing: those chains only that changed. The chains that list all Services are among them only when a
//! Service's addresses, or whether it has endpoints, changed; upstream writes them each time.
//!
//! Each Service is a rule in a list, which each new connection goes through: with thousands of Services use
//! [`nftables`](super::nftables) instead. Endpoints are taken at random. Node ports are not served on the loopback addresses.

mod chains;
mod names;
mod state;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use tokio::sync::Mutex;

use self::state::State;
use super::{RuleError, ServiceProxy, SyncError, conntrack};
use crate::{commits::Commits, program, redirect::Transport, rules::Table};

/// What can be set, with its defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IptablesConfig {
    /// The bit of a packet's mark that says that its source is to be rewritten. Default: `0x4000`, as upstream's.
    pub masquerade_mark: u32,
    /// The ranges that pods have their addresses from, one of each family: traffic to cluster IPs that comes from elsewhere gets the
    /// node's address as source (`--cluster-cidr`). Default: none, and such traffic keeps its source.
    pub pod_ranges: Vec<String>,
    /// The ranges of the node's addresses that serve node ports (`--nodeport-addresses`). Default: none, which means all.
    pub node_port_addresses: Vec<String>,
    /// Whether endpoints may have loopback addresses, as pods that are processes have: what goes there keeps its source, since the kernel finds
    /// no other address for it, and answers come back here in any case. Default: no, as with upstream.
    pub loopback_endpoints: bool,
    /// The program for IPv4; `-restore` and `-save` are added to its name. Default: `iptables`.
    pub iptables: PathBuf,
    /// The program for IPv6. Default: `ip6tables`.
    pub ip6tables: PathBuf,
    /// The program that ends UDP flows. Default: `conntrack`.
    pub conntrack: PathBuf,
}

impl Default for IptablesConfig {
    fn default() -> Self {
        Self {
            masquerade_mark: 0x4000,
            pod_ranges: Vec::new(),
            node_port_addresses: Vec::new(),
            loopback_endpoints: false,
            iptables: "iptables".into(),
            ip6tables: "ip6tables".into(),
            conntrack: "conntrack".into(),
        }
    }
}

impl IptablesConfig {
    fn check_ranges(&self) -> io::Result<()> {
        super::check_ranges(self.pod_ranges.iter().chain(&self.node_port_addresses))
    }

    fn program(&self, v4: bool, what: &str) -> PathBuf {
        let base: &Path = if v4 { &self.iptables } else { &self.ip6tables };
        let mut name = base.as_os_str().to_owned();
        name.push(what);
        name.into()
    }
}

/// The iptables proxy. Its rules stay when it is dropped, so that a restart interrupts nobody; [`remove`](Self::remove) takes them
/// away.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use knet::{proxy::{ServiceProxy, iptables::IptablesProxy}, rules::Table};
/// let proxy = IptablesProxy::default();
/// proxy.sync(&Table::default()).await?;
/// proxy.remove().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct IptablesProxy {
    config: IptablesConfig,
    /// What the kernel has, for each family; `None` when that is not known.
    state: Mutex<Option<[State; 2]>>,
    commits: Commits,
}

/// Which family a state is of, by its place.
const FAMILIES: [bool; 2] = [true, false];

impl IptablesProxy {
    /// A proxy with these settings.
    #[must_use]
    pub fn new(config: IptablesConfig) -> Self {
        Self { config, state: Mutex::default(), commits: Commits::default() }
    }

    /// Takes all its rules and chains away, and those that upstream's proxy left.
    ///
    /// # Errors
    /// When iptables can't be run or refuses.
    pub async fn remove(&self) -> io::Result<()> {
        let mut state = self.state.lock().await;
        *state = None;
        for v4 in FAMILIES {
            let saved = self.saved(v4).await?;
            self.restore(v4, &state::removal(&saved), 0).await?;
        }
        Ok(())
    }

    /// Whether it can work here: changes nothing.
    ///
    /// # Errors
    /// When a range of the settings is none, a program is not there, the kernel has no such tables, or the right to change the network is
    /// lacking.
    pub async fn check(&self) -> io::Result<()> {
        self.config.check_ranges()?;
        for v4 in FAMILIES {
            self.saved(v4).await?;
        }
        Ok(())
    }

    /// What the kernel has.
    async fn saved(&self, v4: bool) -> io::Result<String> {
        let program = self.config.program(v4, "-save");
        let mut all = String::new();
        for table in ["filter", "nat"] {
            let saved = program::run(&program, ["-t", table], "").await?;
            all.push_str(&String::from_utf8_lossy(&saved));
        }
        Ok(all)
    }

    /// Has a script written that makes so many transactions, or an unknown number: then the program is waited for.
    async fn restore(&self, v4: bool, script: &str, transactions: usize) -> io::Result<()> {
        if script.is_empty() {
            return Ok(());
        }
        let program = self.config.program(v4, "-restore");
        let arguments = ["-w", "5", "--noflush", "--counters"];
        self.commits.run(&program, arguments, script, transactions).await
    }

    async fn apply(&self, known: Option<[State; 2]>, table: &Table) -> io::Result<[State; 2]> {
        self.config.check_ranges()?;
        let known = known.map(|[four, six]| [Some(four), Some(six)]).unwrap_or_default();
        let mut next = [State::default(), State::default()];
        for ((v4, known), slot) in FAMILIES.into_iter().zip(known).zip(&mut next) {
            let (change, transactions) = match known {
                Some(known) => {
                    let change = known.change(&self.config, v4, table);
                    let tables = change.script.lines().filter(|line| *line == "COMMIT").count();
                    (change, tables)
                }
                // Tables that are not there yet may be made by transactions of their own.
                None => (State::fresh(&self.config, v4, table, &self.saved(v4).await?), 0),
            };
            self.restore(v4, &change.script, transactions).await?;
            conntrack::end(&self.config.conntrack, &change.ended).await;
            *slot = change.state;
        }
        Ok(next)
    }
}

#[async_trait]
impl ServiceProxy for IptablesProxy {
    async fn sync(&self, table: &Table) -> Result<(), SyncError> {
        let mut state = self.state.lock().await;
        // Taken: when this call fails or is dropped, the next one begins anew.
        let known = state.take();
        match self.apply(known, table).await {
            Ok(next) => {
                *state = Some(next);
                Ok(())
            }
            Err(source) => {
                let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
                let service = "all".to_owned();
                Err(SyncError(vec![RuleError { service, address, transport: Transport::Tcp, source }]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ranges_that_are_none_are_refused_before_anything_is_done() {
        for (pods, nodes) in [("10.0.0.0/33", "192.0.2.0/24"), ("10.0.0.0/8", "192.0.2.1")] {
            let config = IptablesConfig {
                pod_ranges: vec![pods.to_owned()],
                node_port_addresses: vec![nodes.to_owned()],
                iptables: "/nowhere/iptables".into(),
                ..IptablesConfig::default()
            };
            let proxy = IptablesProxy::new(config);
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
