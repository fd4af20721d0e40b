//! What makes the rules true: the [`ServiceProxy`] trait.

use std::{fmt::Debug, io, net::SocketAddr};

use async_trait::async_trait;

use crate::{policy::Cidr, redirect::Transport, rules::Table};

mod changes;
mod conntrack;
pub mod iptables;
pub mod ipvs;
pub mod nftables;
pub mod recording;
pub mod userspace;

/// What a proxy could not do; the rest of the table holds.
#[derive(Debug, thiserror::Error)]
#[error("{} rules are not served; the first: {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
pub struct SyncError(pub Vec<RuleError>);

/// Why one rule is not served.
#[derive(Debug, thiserror::Error)]
#[error("{service}: {transport:?} {address}: {source}")]
pub struct RuleError {
    /// The rule's Service and port.
    pub service: String,
    /// Where it should be served.
    pub address: SocketAddr,
    /// What it is carried by.
    pub transport: Transport,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// Carries connections from Services to endpoints.
///
/// The agent calls [`sync`](Self::sync) after each change, one call after the other. Dropping the proxy ends all that it
/// does. `knet::testing::check_service_proxy` (feature `testing`) tests every promise made here.
#[async_trait]
pub trait ServiceProxy: Debug + Send + Sync + 'static {
    /// Makes what is done equal to `table`: level-triggered, so that a table that is left out or given twice makes no
    /// difference. When it returns, new connections go by the table; those that exist are left alone, but for UDP flows
    /// to endpoints that are gone.
    ///
    /// # Errors
    /// What could not be done. The agent tries again with the same table, unless all of it is [`Unsupported`](io::ErrorKind::Unsupported),
    /// which stays so.
    async fn sync(&self, table: &Table) -> Result<(), SyncError>;
}

/// Refuses what is no range. It would be passed over, and so what it stands for done as if nobody had asked for it.
fn check_ranges<'a>(ranges: impl IntoIterator<Item = &'a String>) -> io::Result<()> {
    match ranges.into_iter().find(|range| Cidr::parse(range).is_none()) {
        None => Ok(()),
        Some(range) => {
            let why = format!("{range:?} is no range of addresses, such as 10.0.0.0/8");
            Err(io::Error::new(io::ErrorKind::InvalidInput, why))
        }
    }
}

const _: Option<&dyn ServiceProxy> = None;
