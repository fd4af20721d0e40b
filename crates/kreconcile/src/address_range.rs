//! Ranges of addresses, as bits: those of pods, of nodes' pods and of services.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AddressRange {
    v6: bool,
    prefix: u8,
    first: u128,
    last: u128,
}

fn bits_of(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (false, u128::from(address.to_bits())),
        IpAddr::V6(address) => (true, address.to_bits()),
    }
}

impl AddressRange {
    /// Reads the CIDR notation. Bits of the address behind the prefix don't count.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        Self::around(address.parse().ok()?, prefix.parse().ok()?)
    }

    /// The range of `prefix` bits that an address is in; `None` when its family has fewer bits.
    pub(crate) fn around(address: IpAddr, prefix: u8) -> Option<Self> {
        let (v6, bits) = bits_of(address);
        let free = u32::checked_sub(if v6 { 128 } else { 32 }, prefix.into())?;
        let mask = u128::MAX.checked_shr(128 - free).unwrap_or(0);
        Some(Self { v6, prefix, first: bits & !mask, last: bits | mask })
    }

    /// Whether the addresses are of IPv6.
    pub(crate) fn is_v6(&self) -> bool {
        self.v6
    }

    /// How many bits all addresses have in common.
    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// How many bits an address of the family has.
    fn width(&self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    /// Whether a service may have an address of this range: not the first one, and with IPv4 not the last.
    pub(crate) fn hands_out(&self, address: IpAddr) -> bool {
        let (v6, bits) = bits_of(address);
        self.v6 == v6 && bits > self.first && bits <= self.last && (v6 || bits < self.last)
    }

    /// Whether all addresses of `other` are in this range.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.first && other.last <= self.last
    }

    /// Whether an address is in both ranges.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Whether the first or the last address of `other` is in this range.
    pub(crate) fn touches(&self, other: &Self) -> bool {
        let has = |bits: u128| (self.first..=self.last).contains(&bits);
        self.v6 == other.v6 && (has(other.first) || has(other.last))
    }

    /// The part with this number among those that have `prefix` bits in common.
    pub(crate) fn part(&self, prefix: u8, number: u32) -> Option<Self> {
        let free = u32::from(self.width().checked_sub(prefix)?);
        let offset = u128::from(number).checked_shl(free)?;
        let first = self.first.checked_add(offset).filter(|first| *first <= self.last)?;
        Self::around(self.address(first), prefix)
    }

    /// The numbers of the first and the last part of `prefix` bits that share an address with `other`; `None` when none does.
    pub(crate) fn parts_of(&self, other: &Self, prefix: u8) -> Option<(u32, u32)> {
        if !self.overlaps(other) {
            return None;
        }
        let free = u32::from(self.width().checked_sub(prefix)?);
        let number = |bits: u128| u32::try_from((bits - self.first).checked_shr(free).unwrap_or(0)).ok();
        Some((number(other.first.max(self.first))?, number(other.last.min(self.last))?))
    }

    /// The bits as an address; those of this family.
    fn address(&self, bits: u128) -> IpAddr {
        match u32::try_from(bits) {
            Ok(bits) if !self.v6 => IpAddr::V4(Ipv4Addr::from_bits(bits)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

/// The CIDR notation.
impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(self.first), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of `TestIndexToCIDRBlock` and `TestGetBitforCIDR` of `cidrset/cidr_set_test.go`.
    #[test]
    fn parts_have_numbers() {
        let cases = [
            ("127.123.3.0/16", 24, 0, "127.123.0.0/24"),
            ("127.123.0.0/16", 24, 15, "127.123.15.0/24"),
            ("192.168.5.219/28", 32, 5, "192.168.5.213/32"),
            ("2001:0db8:1234:3::/48", 64, 0, "2001:db8:1234::/64"),
            ("2001:0db8:1234::/48", 64, 15, "2001:db8:1234:f::/64"),
            ("2001:0db8:85a3::8a2e:0370:7334/50", 63, 6425, "2001:db8:85a3:3232::/63"),
            ("2001:0db8::/32", 48, 0x0ea0, "2001:db8:ea0::/48"),
            ("2001:db8:1234:ff00::/60", 76, 3, "2001:db8:1234:ff00:30::/76"),
        ];
        for (range, prefix, number, expected) in cases {
            let range = AddressRange::parse(range).unwrap();
            let part = range.part(prefix, number).unwrap();
            assert_eq!(part.to_string(), expected);
            assert_eq!(range.parts_of(&part, prefix), Some((number, number)), "{part}");
        }
    }

    #[test]
    fn ranges_are_compared() {
        let cases = [
            ("10.0.0.0/8", "10.1.0.0/16", true, true),
            ("10.1.0.0/16", "10.0.0.0/8", false, true),
            ("10.1.0.0/16", "10.2.0.0/16", false, false),
            ("::/0", "10.0.0.0/8", false, false),
            ("0.0.0.0/0", "255.255.255.255/32", true, true),
            ("::/0", "ffff::/16", true, true),
        ];
        for (one, other, covers, overlaps) in cases {
            let (range, part) = (AddressRange::parse(one).unwrap(), AddressRange::parse(other).unwrap());
            assert_eq!((range.covers(&part), range.overlaps(&part)), (covers, overlaps), "{one} {other}");
        }
        let range = AddressRange::parse("10.1.0.0/16").unwrap();
        for (address, expected) in [
            ("10.1.0.0", false),
            ("10.1.0.1", true),
            ("10.1.255.255", false),
            ("10.2.0.0", false),
            ("::1", false),
        ] {
            assert_eq!(range.hands_out(address.parse().unwrap()), expected, "{address}");
        }
        assert_eq!(AddressRange::parse("10.1.0.0/33"), None);
        assert_eq!(range.part(24, 256), None);
    }

    #[test]
    fn ranges_are_read() {
        let range =
            |text: &str| AddressRange::parse(text).map(|range| (range.last - range.first).wrapping_add(1));
        for (text, size) in [
            ("10.0.0.0/24", Some(256)),
            ("10.0.0.7/32", Some(1)),
            ("0.0.0.0/0", Some(1 << 32)),
            ("a::/64", Some(1 << 64)),
            ("::/0", Some(0)),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
        ] {
            assert_eq!(range(text), size, "{text}");
        }
    }
}
