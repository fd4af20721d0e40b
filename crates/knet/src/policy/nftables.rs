//! Policies in the kernel, by nftables.
//!
//! There is one table. A forwarded packet finds the isolated pod that it comes from, and the one that it goes to, in verdict maps
//! by address; these lead to a chain of what that pod may do, which all pods with the same rules share, and peers are sets of
//! addresses that chains look into. So a pod that comes or goes beside ten thousand others adds or deletes a few elements, in one
//! transaction, by netlink, and no chain is written anew; where chains change, `nft` does it.
//!
//! Only forwarded packets are looked at, so that traffic between a pod and its own node is always allowed. Pods of
//! `BridgeNetwork` reach each other through their node, so they are filtered always; pods that share
//! another's bridge, as CNI's `bridge` makes it, only when the kernel hands bridged packets to the network layer
//! (`net.bridge.bridge-nf-call-iptables`). Packets are seen with the endpoint's address, after Services were resolved, and before sources are rewritten.
//!
//! What becomes of connections that exist when a policy begins to forbid them is left to implementations by the API;
//! [`Existing`] says it.

mod script;
mod state;

use std::{io, path::PathBuf};

use async_trait::async_trait;
use tokio::sync::Mutex;

use self::state::State;
use super::{EnforceError, PolicyChange, PolicyEnforcer, PolicyTable};
use crate::nft::{self, Transactions};

/// What becomes of connections that are no longer allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// They go on, as with most implementations: only new ones are judged.
    #[default]
    Kept,
    /// They are cut: each packet of who began the connection is judged, at the price of two look-ups.
    Cut,
}

/// What is done with what is not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Denied {
    /// It is dropped: who asks learns nothing.
    #[default]
    Dropped,
    /// It is refused: who asks need not wait.
    Rejected,
}

/// What can be set, with its defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NftablesPolicyConfig {
    /// The name of the table, of the family `inet`. Default: `kplane-policy`.
    pub table: String,
    /// Connections that exist. Default: they are kept.
    pub existing: Existing,
    /// What is not allowed. Default: it is dropped.
    pub denied: Denied,
    /// The program that changes the rules. Default: `nft`.
    pub nft: PathBuf,
}

impl Default for NftablesPolicyConfig {
    fn default() -> Self {
        Self {
            table: "kplane-policy".to_owned(),
            existing: Existing::default(),
            denied: Denied::default(),
            nft: "nft".into(),
        }
    }
}

/// Enforces policies by nftables. What is enforced stays when it is dropped, so that a restart opens nothing;
/// [`remove`](Self::remove) takes it away.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use knet::policy::{Compiler, PolicyEnforcer, nftables::NftablesPolicies};
/// let (mut compiler, enforcer) = (Compiler::new(None), NftablesPolicies::default());
/// enforcer.enforce(compiler.table(), compiler.change()).await?;
/// compiler.settle();
/// enforcer.remove().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct NftablesPolicies {
    config: NftablesPolicyConfig,
    /// What the kernel has; `None` when that is not known.
    state: Mutex<Option<State>>,
    transactions: Transactions,
}

impl NftablesPolicies {
    /// An enforcer with these settings.
    #[must_use]
    pub fn new(config: NftablesPolicyConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes all its rules away: nobody is isolated any more.
    ///
    /// # Errors
    /// When `nft` can't be run or refuses.
    pub async fn remove(&self) -> io::Result<()> {
        let mut state = self.state.lock().await;
        *state = None;
        self.run(&script::removal(&self.config)).await
    }

    /// Whether it can work here: changes nothing.
    ///
    /// # Errors
    /// When `nft` is not there, the kernel has no nftables, or the right to change the network is lacking.
    pub async fn check(&self) -> io::Result<()> {
        nft::check(&self.config.nft).await
    }

    async fn run(&self, script: &str) -> io::Result<()> {
        self.transactions.run(&self.config.nft, script).await
    }
}

#[async_trait]
impl PolicyEnforcer for NftablesPolicies {
    async fn enforce(&self, table: &PolicyTable, change: &PolicyChange) -> Result<(), EnforceError> {
        let mut state = self.state.lock().await;
        // Taken: when this call fails or is dropped, the next one begins anew.
        let (script, next) = match state.take() {
            Some(known) => known.change(&self.config, table, change),
            None => State::fresh(&self.config, table),
        };
        if !script.is_empty() {
            self.run(&script).await?;
        }
        *state = Some(next);
        Ok(())
    }
}
