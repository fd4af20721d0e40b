//! The ranges from which services get their cluster IPs and node ports.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

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
    /// Whether endpoints may not be in the loopback range, as upstream has it. Where all of a cluster is on one machine, its
    /// endpoints are in that range.
    pub refuse_loopback: bool,
}

impl Default for ServiceAddresses {
    /// `10.96.0.0/12` and ports 30000 to 32767, as kubeadm has them; no second range; endpoints on the loopback.
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 96, 0, 0),
            prefix: 12,
            second: None,
            node_ports: 30_000..=32_767,
            refuse_loopback: false,
        }
    }
}

impl ServiceAddresses {
    /// How many addresses the range has.
    pub(crate) fn size(&self) -> u32 {
        1_u32.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(u32::MAX)
    }

    /// Whether an address can be handed out: in the range, and neither its first nor its last.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(u32::from(self.network));
        offset > 0 && offset < self.size().saturating_sub(1)
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

    /// Whether an address of either family can be handed out.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        match (address, self.second) {
            (IpAddr::V4(address), _) => self.contains(address),
            (IpAddr::V6(address), Some((network, prefix))) => {
                let offset = u128::from(address).wrapping_sub(u128::from(network));
                let size = 1_u128.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(u128::MAX);
                offset > 0 && offset < size
            }
            (IpAddr::V6(_), None) => false,
        }
    }
}
