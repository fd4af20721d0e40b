//! The ranges from which services get their cluster IPs and node ports.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use crate::check::address;

/// The ranges from which services get their cluster IPs and node ports.
///
/// ```
/// use kkinds::ServiceAddresses;
/// let addresses = ServiceAddresses::default();
/// assert!(addresses.contains([10, 96, 0, 10].into()));
/// assert_eq!(addresses.cidr(), "10.96.0.0/12");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddresses {
    /// The first address of the range of cluster IPs (the network's address, which is not handed out).
    pub network: Ipv4Addr,
    /// The length of the range's prefix.
    pub prefix: u8,
    /// A second range, of IPv6: with it the cluster is dual-stack. The first address, and the length of the prefix.
    pub second: Option<(Ipv6Addr, u8)>,
    /// The node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Whether endpoints may have loopback addresses, because the whole cluster is on this machine. Upstream refuses them.
    pub loopback: bool,
}

impl Default for ServiceAddresses {
    /// `10.96.0.0/12` and ports 30000 to 32767, as kubeadm has them; no second range, no loopback addresses.
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 96, 0, 0),
            prefix: 12,
            second: None,
            node_ports: 30_000..=32_767,
            loopback: false,
        }
    }
}

impl ServiceAddresses {
    /// Whether an address can be handed out: in the range, and neither its first nor its last.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        Network { address: self.network.into(), prefix: self.prefix }.has(address.into())
    }

    /// The range in CIDR notation.
    #[must_use]
    pub fn cidr(&self) -> String {
        format!("{}/{}", self.network, self.prefix)
    }

    /// The address of the service `default/kubernetes`: the first of the range.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// The families of addresses that services can have, the usual one first.
    pub(crate) fn families(&self) -> &'static [&'static str] {
        if self.second.is_some() { &["IPv4", "IPv6"] } else { &["IPv4"] }
    }

    /// The networks of cluster IPs.
    pub(super) fn networks(&self) -> Vec<Network> {
        let first = Network { address: self.network.into(), prefix: self.prefix };
        let second = self.second.map(|(address, prefix)| Network { address: address.into(), prefix });
        [first].into_iter().chain(second).collect()
    }
}

/// A network that services get addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads the CIDR notation.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = address::parse_network_lenient(text)?;
        Some(Self { address, prefix: u8::try_from(prefix).ok()? })
    }

    pub(super) fn family(&self) -> &'static str {
        if self.address.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    /// How many addresses are handed out: not the first, and with IPv4 not the last. Of very large networks only a part is used.
    pub(super) fn usable(&self) -> u32 {
        let size = |bits: u32| 1_u32.checked_shl(bits.min(31)).unwrap_or(u32::MAX);
        let prefix = u32::from(self.prefix);
        match self.address {
            IpAddr::V4(_) => size(32 - prefix.min(32)).saturating_sub(2),
            IpAddr::V6(_) => size(128 - prefix.min(128)).saturating_sub(1),
        }
    }

    /// The address with this number, from 0 to [`usable`](Self::usable).
    pub(super) fn nth(&self, number: u32) -> IpAddr {
        match self.address {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(1 + number)).into(),
            IpAddr::V6(first) => {
                Ipv6Addr::from(u128::from(first).wrapping_add(1 + u128::from(number))).into()
            }
        }
    }

    /// Whether an address can be handed out.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let bits = 32 - u32::from(self.prefix.min(32));
                let last = 1_u64.checked_shl(bits).unwrap_or(u64::MAX) - 1;
                let offset = u64::from(u32::from(address).wrapping_sub(u32::from(network)));
                offset > 0 && offset < last
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let offset = u128::from(address).wrapping_sub(u128::from(network));
                let size = 1_u128.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(u128::MAX);
                offset > 0 && offset < size
            }
            _ => false,
        }
    }
}
