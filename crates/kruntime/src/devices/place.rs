//! Where devices are, and where a container's could be (upstream's `devicemanager/topology_hints.go`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{Devices, Ids, Known, Reusable, locked, wanted};
use crate::managers::{
    Machine,
    hint::{Hint, Hints, Mask, hints},
    together,
};

impl Devices {
    /// The devices of a resource that are on these nodes, and those that are on others.
    pub(super) fn by_place(&self, resource: &str, mask: Option<Mask>) -> (Ids, Ids) {
        let plugins = locked(&self.plugins);
        let Some((plugin, mask)) = plugins.get(resource).zip(mask) else { return (Ids::new(), Ids::new()) };
        let placed = plugin.devices.iter().filter(|(_, device)| !device.nodes.is_empty());
        let ids = placed.map(|(id, device)| (id.clone(), device));
        let (near, far): (Vec<_>, Vec<_>) = ids.partition(|(_, device)| is_on(device, mask));
        let names = |list: Vec<(String, &Known)>| list.into_iter().map(|(id, _)| id).collect();
        (names(near), names(far))
    }

    /// Where a container's devices could be, by resource.
    pub(crate) fn hints(
        &self,
        uid: &str,
        container: &Container,
        reusable: &Reusable,
        machine: &Machine,
    ) -> Vec<Hints> {
        let none = Ids::new();
        let one = |(resource, count): (&str, usize)| {
            let has = locked(&self.given)
                .of(uid, &container.name)
                .and_then(|all| all.get(resource))
                .map(|one| one.ids.clone());
            let free = reusable.0.get(resource).unwrap_or(&none);
            self.hints_of(resource, count, has.as_ref(), free, machine)
        };
        wanted(container).filter(|(resource, _)| self.knows(resource)).map(one).collect()
    }

    /// Where those of a whole pod could be.
    pub(crate) fn pod_hints(&self, pod: &Pod, machine: &Machine) -> Vec<Hints> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let all = together(pod, |container| {
            let known = wanted(container).filter(|(resource, _)| self.knows(resource));
            known
                .map(|(resource, count)| (resource.to_owned(), u64::try_from(count).unwrap_or(u64::MAX)))
                .collect()
        });
        let one = |(resource, count): (String, u64)| {
            let given = locked(&self.given);
            let has = given.0.get(uid).into_iter().flat_map(BTreeMap::values);
            let has: Ids = has.filter_map(|all| all.get(&resource)).flat_map(|one| one.ids.clone()).collect();
            drop(given);
            let has = Some(&has).filter(|has| !has.is_empty());
            self.hints_of(&resource, usize::try_from(count).unwrap_or(usize::MAX), has, &Ids::new(), machine)
        };
        all.into_iter().map(one).collect()
    }

    fn hints_of(
        &self,
        resource: &str,
        count: usize,
        has: Option<&Ids>,
        reusable: &Ids,
        machine: &Machine,
    ) -> Hints {
        let plugins = locked(&self.plugins);
        let devices = &plugins.get(resource)?.devices;
        let in_use = locked(&self.given).in_use(resource);
        places(devices, count, has, reusable, &in_use, machine)
    }
}

fn is_on(device: &Known, mask: Mask) -> bool {
    device.nodes.iter().any(|node| mask.has(*node))
}

/// `None`: no device says where it is, so that it does not matter.
fn places(
    devices: &BTreeMap<String, Known>,
    count: usize,
    has: Option<&Ids>,
    reusable: &Ids,
    in_use: &Ids,
    machine: &Machine,
) -> Hints {
    if devices.values().all(|device| device.nodes.is_empty()) {
        return None;
    }
    let none = Ids::new();
    let (available, reusable): (Ids, &Ids) = match has {
        Some(has) if has.len() != count => return Some(Vec::new()),
        Some(has) => (has.clone(), &none),
        None => {
            let healthy = devices.iter().filter(|(_, device)| device.is_healthy).map(|(id, _)| id);
            (healthy.filter(|id| !in_use.contains(*id)).cloned().collect(), reusable)
        }
    };
    if available.union(reusable).count() < count {
        return Some(Vec::new());
    }
    Some(masks(devices, count, &available, reusable, machine))
}

fn masks(
    devices: &BTreeMap<String, Known>,
    count: usize,
    available: &Ids,
    reusable: &Ids,
    machine: &Machine,
) -> Vec<Hint> {
    // Nodes without devices add nothing but time.
    let nodes: BTreeSet<u32> = devices.values().flat_map(|device| device.nodes.iter().copied()).collect();
    let nodes: Vec<u32> = nodes.into_iter().filter(|node| machine.nodes.contains_key(node)).collect();
    let nodes = if nodes.is_empty() { machine.nodes.keys().copied().collect() } else { nodes };
    let mut fewest = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let is_there = |id: &&String, mask| devices.get(*id).is_some_and(|device| is_on(device, mask));
    let mut can = Vec::new();
    for mask in Mask::all(&nodes) {
        if devices.values().filter(|device| is_on(device, mask)).count() >= count {
            fewest = fewest.min(mask.count());
        }
        // What can be used again must be, where it says where it is.
        let mut placed =
            reusable.iter().filter(|id| devices.get(*id).is_some_and(|known| !known.nodes.is_empty()));
        let reused = placed.clone().count();
        if placed.all(|id| is_there(&id, mask))
            && available.iter().filter(|id| is_there(id, mask)).count() + reused >= count
        {
            can.push(mask);
        }
    }
    hints(can, fewest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Ids {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn hints_say_where_there_are_enough_devices() {
        // Upstream's `TestGetTopologyHints`: devices by id and nodes; what is wanted, had, reusable, in use.
        let machine = Machine {
            nodes: (0..2).map(|node| (node, crate::managers::NumaNode::default())).collect(),
            ..Machine::default()
        };
        let both = "a:0 b:1";
        let four = "a:0 b:1 c:0 d:1";
        type Case<'a> = (&'a str, usize, Option<&'a str>, &'a str, &'a str, Option<&'a [(&'a [u32], bool)]>);
        let cases: [Case<'_>; 11] = [
            ("a: b:", 1, None, "", "", None),
            (both, 1, None, "", "", Some(&[(&[0], true), (&[1], true), (&[0, 1], false)])),
            (both, 2, None, "", "", Some(&[(&[0, 1], true)])),
            (both, 2, None, "", "a", Some(&[])),
            (four, 2, None, "", "a", Some(&[(&[1], true), (&[0, 1], false)])),
            (four, 2, None, "", "a b", Some(&[(&[0, 1], false)])),
            (four, 2, Some("a b"), "", "a b", Some(&[(&[0, 1], false)])),
            (four, 2, Some("a"), "", "a", Some(&[])),
            (four, 2, None, "a", "a", Some(&[(&[0], true), (&[0, 1], false)])),
            ("a:0,1 b:", 1, None, "", "", Some(&[(&[0], true), (&[1], true), (&[0, 1], false)])),
            // Only the nodes with devices count.
            ("a:1 b:1", 1, None, "", "", Some(&[(&[1], true)])),
        ];
        for (devices, count, has, reusable, in_use, expected) in cases {
            let device = |text: &str| {
                let (id, nodes) = text.split_once(':').unwrap();
                let nodes = nodes.split(',').filter_map(|node| node.parse().ok()).collect();
                (id.to_owned(), Known { is_healthy: true, nodes })
            };
            let devices = devices.split(' ').map(device).collect();
            let has = has.map(ids);
            let found = places(&devices, count, has.as_ref(), &ids(reusable), &ids(in_use), &machine);
            let hint = |(nodes, is_preferred): &(&[u32], bool)| Hint {
                mask: Some(Mask::of(nodes.iter().copied())),
                is_preferred: *is_preferred,
            };
            let expected = expected.map(|list| list.iter().map(hint).collect::<Vec<_>>());
            assert_eq!(found, expected, "{devices:?} {count} {has:?} {reusable} {in_use}");
        }
    }
}
