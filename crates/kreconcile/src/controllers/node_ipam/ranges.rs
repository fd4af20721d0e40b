//! Which part of the cluster's ranges belongs to which node.

use std::collections::HashMap;

use ahash::RandomState;

use crate::address_range::AddressRange;

/// How many parts one range may have: upstream's limit for IPv6 is 65,536; a whole /8 of IPv4 in parts of one address is allowed.
pub const NODE_RANGES_MAX: u32 = 1 << 24;
/// How many bits longer than the cluster's prefix a node's may be with IPv6 (upstream's `clusterSubnetMaxDiff`).
const V6_PREFIX_DIFFERENCE_MAX: u8 = 16;

/// One of the cluster's ranges, and which of its parts are taken: a bit each.
#[derive(Debug)]
struct Parts {
    cluster: AddressRange,
    prefix: u8,
    count: u32,
    words: Vec<u64>,
    used: u32,
    next: u32,
}

impl Parts {
    fn new(cluster: AddressRange, prefix: u8) -> Option<Self> {
        let difference = prefix.checked_sub(cluster.prefix())?;
        if cluster.is_v6() && difference > V6_PREFIX_DIFFERENCE_MAX {
            return None;
        }
        let count = 1_u32.checked_shl(difference.into()).filter(|count| *count <= NODE_RANGES_MAX)?;
        cluster.part(prefix, 0)?;
        Some(Self { cluster, prefix, count, words: vec![0; count.div_ceil(64) as usize], used: 0, next: 0 })
    }

    fn has(&self, number: u32) -> bool {
        self.words[(number / 64) as usize] & (1 << (number % 64)) != 0
    }

    fn set(&mut self, number: u32, taken: bool) {
        if self.has(number) != taken {
            self.words[(number / 64) as usize] ^= 1 << (number % 64);
            self.used = if taken { self.used + 1 } else { self.used - 1 };
        }
    }

    /// The next free part after the one that was handed out last, going round.
    fn take(&mut self) -> Option<AddressRange> {
        if self.used == self.count {
            return None;
        }
        let number = (0..self.count).map(|step| (self.next + step) % self.count);
        let number = number.into_iter().find(|number| !self.has(*number))?;
        self.next = (number + 1) % self.count;
        self.set(number, true);
        self.cluster.part(self.prefix, number)
    }

    /// Marks all parts that share an address with `range`. `false` when it is outside.
    fn mark(&mut self, range: &AddressRange, taken: bool) -> bool {
        let Some((first, last)) = self.cluster.parts_of(range, self.prefix) else { return false };
        for number in first..=last.min(self.count - 1) {
            self.set(number, taken);
        }
        true
    }
}

/// What a node holds: a part of each range, the first range first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    uid: String,
    ranges: Vec<AddressRange>,
}

/// The cluster's ranges, and what each node holds of them.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    parts: Vec<Parts>,
    /// What services have, which no node gets.
    reserved: Vec<AddressRange>,
    held: HashMap<String, Held, RandomState>,
    /// Whether what the nodes had at the start is known.
    pub(super) knows_nodes: bool,
}

impl Ranges {
    /// The ranges of a cluster with the length of a node's prefix in each; what can't be divided so is left out with a warning.
    pub(super) fn new(cluster: &[(AddressRange, u8)], services: &[AddressRange]) -> Self {
        let mut parts = Vec::with_capacity(cluster.len());
        for (range, prefix) in cluster {
            match Parts::new(*range, *prefix) {
                Some(one) => parts.push(one),
                None => tracing::warn!(%range, prefix, "the range can't be divided among nodes"),
            }
        }
        for one in &mut parts {
            for service in services {
                one.mark(service, true);
            }
        }
        Self { parts, reserved: services.to_vec(), ..Self::default() }
    }

    /// Whether there is anything to hand out.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes the ranges that a node says it has. What it held before is free again.
    pub(super) fn occupy(&mut self, name: &str, uid: &str, texts: &[String]) -> Result<(), String> {
        let mut ranges = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let Some(range) = AddressRange::parse(text) else {
                return Err(format!("failed to parse node {name}, CIDR {text}"));
            };
            let Some(parts) = self.parts.get(index) else {
                return Err(format!(
                    "node:{name} has an allocated cidr: {text} at index:{index} that does not exist in cluster cidrs configuration"
                ));
            };
            if !parts.cluster.overlaps(&range) {
                return Err(format!(
                    "failed to mark cidr[{range}] at idx [{index}] as occupied for node: {name}: cidr {range} is out the range of cluster cidr {}",
                    parts.cluster
                ));
            }
            ranges.push(range);
        }
        let held = Held { uid: uid.to_owned(), ranges };
        if self.held.get(name) != Some(&held) {
            self.release(name);
            self.mark(&held.ranges, true);
            self.held.insert(name.to_owned(), held);
        }
        Ok(())
    }

    /// Gives a node that has no ranges one of each; the same ones when it is asked again before the node says that it has them.
    ///
    /// # Errors
    /// The index of the range that is used up; then nothing was taken.
    pub(super) fn assign(&mut self, name: &str, uid: &str) -> Result<Vec<AddressRange>, usize> {
        match self.held.get(name) {
            Some(held) if held.uid == uid => return Ok(held.ranges.clone()),
            Some(_) => self.release(name),
            None => {}
        }
        let mut ranges = Vec::with_capacity(self.parts.len());
        for index in 0..self.parts.len() {
            let Some(range) = self.parts[index].take() else {
                self.mark(&ranges, false);
                return Err(index);
            };
            ranges.push(range);
        }
        self.held.insert(name.to_owned(), Held { uid: uid.to_owned(), ranges: ranges.clone() });
        Ok(ranges)
    }

    /// Takes back what a node held, but for what another node says that it has, too, and what belongs to services.
    pub(super) fn release(&mut self, name: &str) {
        let Some(held) = self.held.remove(name) else { return };
        self.mark(&held.ranges, false);
        let mut shared = self.reserved.clone();
        for (index, range) in held.ranges.iter().enumerate() {
            let same = self.held.values().filter_map(|other| other.ranges.get(index));
            shared.extend(same.filter(|other| other.overlaps(range)));
        }
        for range in &shared {
            for parts in &mut self.parts {
                parts.mark(range, true);
            }
        }
    }

    /// Takes back what nodes held that are no longer there, which nobody has told.
    pub(super) fn release_all_but(&mut self, is_there: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.held.keys().filter(|name| !is_there(name)).cloned().collect();
        for name in gone {
            self.release(&name);
        }
    }

    fn mark(&mut self, ranges: &[AddressRange], taken: bool) {
        for (parts, range) in self.parts.iter_mut().zip(ranges) {
            parts.mark(range, taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(cluster: &[(&str, u8)], services: &[&str]) -> Ranges {
        let read = |text: &str| AddressRange::parse(text).unwrap();
        let cluster: Vec<_> = cluster.iter().map(|(text, prefix)| (read(text), *prefix)).collect();
        Ranges::new(&cluster, &services.iter().map(|text| read(text)).collect::<Vec<_>>())
    }

    fn texts(ranges: Result<Vec<AddressRange>, usize>) -> Result<Vec<String>, usize> {
        ranges.map(|ranges| ranges.iter().map(ToString::to_string).collect())
    }

    type Case<'a> =
        (&'a [(&'a str, u8)], &'a [&'a str], &'a [(&'a str, &'a [&'a str])], Result<&'a [&'a str], usize>);

    /// Cases of `TestAllocateOrOccupyCIDRSuccess` and `TestAllocateOrOccupyCIDRFailure` of `range_allocator_test.go`.
    #[test]
    fn nodes_get_what_is_free() {
        let cases: &[Case<'_>] = &[
            (&[("127.123.234.0/24", 30)], &[], &[], Ok(&["127.123.234.0/30"])),
            (&[("127.123.234.0/24", 30)], &["127.123.234.0/26"], &[], Ok(&["127.123.234.64/30"])),
            (
                &[("127.123.234.0/24", 30)],
                &["127.123.234.0/26"],
                &[
                    ("a", &["127.123.234.64/30"]),
                    ("b", &["127.123.234.68/30"]),
                    ("c", &["127.123.234.72/30"]),
                    ("d", &["127.123.234.80/30"]),
                ],
                Ok(&["127.123.234.76/30"]),
            ),
            (
                &[("127.123.234.0/8", 24), ("ace:cab:deca::/8", 24)],
                &[],
                &[],
                Ok(&["127.0.0.0/24", "a00::/24"]),
            ),
            (
                &[("127.123.234.0/8", 24), ("ace:cab:deca::/8", 24)],
                &["127.123.234.0/26"],
                &[],
                Ok(&["127.0.0.0/24", "a00::/24"]),
            ),
            (
                &[("10.10.0.0/24", 25), ("fd00::/112", 124)],
                &[],
                &[("a", &["10.10.0.0/25", "fd00::/124"]), ("b", &["10.10.0.128/25", "fd00::10/124"])],
                Err(0),
            ),
            (
                &[("127.123.234.0/28", 30)],
                &[],
                &[
                    ("a", &["127.123.234.0/30"]),
                    ("b", &["127.123.234.4/30"]),
                    ("c", &["127.123.234.8/30"]),
                    ("d", &["127.123.234.12/30"]),
                ],
                Err(0),
            ),
        ];
        for (cluster, services, nodes, expected) in cases {
            let mut all = ranges(cluster, services);
            for (name, has) in *nodes {
                let has: Vec<String> = has.iter().map(|&text| text.to_owned()).collect();
                all.occupy(name, name, &has).unwrap();
            }
            let expected = expected.map(|list| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
            assert_eq!(texts(all.assign("new", "1")), expected, "{cluster:?} {nodes:?}");
        }
    }

    /// Cases of `TestReleaseCIDRSuccess`, and what level-triggered work asks for besides.
    #[test]
    fn what_is_given_back_is_handed_out_again() {
        let mut all = ranges(&[("127.123.234.0/28", 30)], &["127.123.234.12/30"]);
        for (name, expected) in
            [("a", "127.123.234.0/30"), ("b", "127.123.234.4/30"), ("c", "127.123.234.8/30")]
        {
            assert_eq!(texts(all.assign(name, "1")), Ok(vec![expected.to_owned()]));
            assert_eq!(texts(all.assign(name, "1")), Ok(vec![expected.to_owned()]), "asked again");
        }
        assert_eq!(texts(all.assign("d", "1")), Err(0));
        all.release("b");
        assert_eq!(texts(all.assign("d", "1")), Ok(vec!["127.123.234.4/30".to_owned()]));
        // A node that was made anew under the same name gives back what the old one had.
        assert_eq!(texts(all.assign("d", "2")), Ok(vec!["127.123.234.4/30".to_owned()]));
        // Two nodes that say they have the same: it is free when both are gone.
        all.occupy("e", "1", &["127.123.234.4/30".to_owned()]).unwrap();
        all.release("d");
        assert_eq!(texts(all.assign("f", "1")), Err(0));
        all.release_all_but(|name| name != "e");
        assert_eq!(texts(all.assign("f", "1")), Ok(vec!["127.123.234.4/30".to_owned()]));
        // A range that spans several parts, and one that is outside.
        all.release_all_but(|_| false);
        all.occupy("wide", "1", &["127.123.234.0/29".to_owned()]).unwrap();
        assert_eq!(texts(all.assign("a", "1")), Ok(vec!["127.123.234.8/30".to_owned()]));
        assert_eq!(texts(all.assign("b", "1")), Err(0), "the rest is the services'");
        assert!(all.occupy("far", "1", &["10.0.0.0/30".to_owned()]).is_err());
        assert!(all.occupy("two", "1", &["127.123.234.0/30".to_owned(), "fd00::/64".to_owned()]).is_err());
    }

    #[test]
    fn ranges_that_can_not_be_divided_are_left_out() {
        for (cluster, prefix, fits) in [
            ("10.0.0.0/16", 24, true),
            ("10.0.0.0/24", 16, false),
            ("10.0.0.0/8", 32, true),
            ("0.0.0.0/0", 32, false),
            ("2001:db8::/48", 64, true),
            ("2001:db8::/48", 65, false),
            ("10.0.0.0/16", 33, false),
        ] {
            assert_eq!(!ranges(&[(cluster, prefix)], &[]).is_empty(), fits, "{cluster} {prefix}");
        }
    }
}
