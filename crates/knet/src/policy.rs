//! Who may talk to whom: NetworkPolicies, compiled and enforced.
//!
//! [`Compiler`] is the pure step: it is told of policies, pods and namespaces and says, for each pod of a node, which traffic may
//! come and go. A [`PolicyEnforcer`] makes that true, and [`PolicyAgent`] brings the two together with an API server.
//!
//! The rules are those of the API (`networking.k8s.io/v1`): a pod that no policy selects in a direction is not isolated in it; one
//! that is selected has what at least one of its policies allows. Policies are additive. Pods on the host's network are neither
//! isolated nor found by selectors; traffic between a pod and its own node, and of a pod with itself, is always allowed.

mod agent;
mod compile;
mod facts;
pub mod nftables;
mod recording;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::IpAddr,
    sync::Arc,
};

use async_trait::async_trait;

#[cfg(feature = "gateway")]
pub(crate) use self::facts::read_selector;
pub use self::{
    agent::PolicyAgent,
    compile::Compiler,
    facts::{NamedPort, PodFacts, PolicyFacts},
    recording::RecordingEnforcer,
};

/// A protocol that policies know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, which is what a port without a protocol means.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Which object: namespace and name.
pub type Name = (Arc<str>, Arc<str>);

/// Names a group of peers, by what selects them: the same for every policy that says the same.
pub type GroupId = Arc<str>;

/// One of a group's peers: an address, or a port at an address where a policy names the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The pod's address.
    pub address: IpAddr,
    /// What the named port is at this pod.
    pub port: Option<(Protocol, u16)>,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peers {
    /// Everybody.
    Any,
    /// The members of a group.
    Group(GroupId),
    /// Those at their ports of the members of a group: only for outgoing traffic.
    GroupPorts(GroupId),
    /// The addresses of a range without those of others.
    Block {
        /// The range.
        cidr: Cidr,
        /// The ranges that are not meant.
        except: Vec<Cidr>,
    },
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// The first address.
    pub network: IpAddr,
    /// How many bits they have in common.
    pub prefix: u8,
}

impl Cidr {
    /// Reads `10.0.0.0/8`; bits beyond the prefix are cleared, as Go's `net.ParseCIDR` does.
    ///
    /// ```
    /// use knet::policy::Cidr;
    /// let range = Cidr::parse("10.1.2.3/8").unwrap();
    /// assert!(range.contains("10.200.0.1".parse().unwrap()));
    /// assert_eq!(range.to_string(), "10.0.0.0/8");
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        Some(Self { network: first_of(address.parse().ok()?, prefix)?, prefix })
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.network.is_ipv4() == address.is_ipv4() && first_of(address, self.prefix) == Some(self.network)
    }
}

/// The first address of the range with this prefix that an address is in.
fn first_of(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(prefix.into())?).unwrap_or(0);
            Some(IpAddr::V4((v4.to_bits() & mask).into()))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(prefix.into())?).unwrap_or(0);
            Some(IpAddr::V6((v6.to_bits() & mask).into()))
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Ports of one protocol, the first and the last; all of them is 0 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// Traffic that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Allow {
    /// From whom, or to whom.
    pub peers: Peers,
    /// To which ports; `None` means all traffic, whatever its protocol.
    pub ports: Option<Vec<Ports>>,
}

/// What a pod may do. `None`: it is not isolated in this direction; an empty list: nothing is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRules {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// What may come, sorted.
    pub ingress: Option<Arc<[Allow]>>,
    /// What may go, sorted.
    pub egress: Option<Arc<[Allow]>>,
}

/// What an enforcer has to make true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyTable {
    /// The groups that rules speak of.
    pub groups: BTreeMap<GroupId, BTreeSet<Member>>,
    /// The pods of the node that are isolated in a direction or both.
    pub pods: BTreeMap<Name, PodRules>,
}

/// What is different from the table that was told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// Groups that are new or gone; the table says which.
    pub groups: BTreeSet<GroupId>,
    /// Members that came or went, of groups that were there before; the table says which.
    pub members: BTreeSet<(GroupId, Member)>,
    /// Pods whose rules or addresses changed, or that are gone.
    pub pods: BTreeSet<Name>,
}

impl PolicyChange {
    /// Whether nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.members.is_empty() && self.pods.is_empty()
    }
}

/// Why policies are not enforced.
#[derive(Debug, thiserror::Error)]
#[error("network policies are not enforced as they should be: {0}")]
pub struct EnforceError(#[from] pub std::io::Error);

/// Makes pods' isolation true on a node.
///
/// The agent calls [`enforce`](Self::enforce) after each change, one call after the other.
#[async_trait]
pub trait PolicyEnforcer: Debug + Send + Sync + 'static {
    /// Makes what is enforced equal to `table`. `change` is what is different from the table of the last call that succeeded, so that
    /// the work need not grow with the table; who has lost track goes by the table alone. When it returns, new connections go by
    /// the table.
    ///
    /// # Errors
    /// When it could not be done; what is enforced then is the table of before or this one. The agent tries again, with the
    /// newest table.
    async fn enforce(&self, table: &PolicyTable, change: &PolicyChange) -> Result<(), EnforceError>;
}

const _: Option<&dyn PolicyEnforcer> = None;
