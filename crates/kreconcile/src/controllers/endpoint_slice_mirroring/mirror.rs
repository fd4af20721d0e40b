//! The slices that Endpoints ask for: no I/O.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::{
    core::v1 as core,
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};

/// What tells one slice from another: the address type and the ports, by name, number, protocol and application protocol.
pub(super) type Family = (&'static str, Vec<Port>);
/// Name, number, protocol, application protocol.
pub(super) type Port = (String, i32, String, Option<String>);

/// One slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) address_type: &'static str,
    pub(super) ports: Vec<EndpointPort>,
    /// In the order of [`sorted`].
    pub(super) endpoints: Vec<Endpoint>,
}

/// What Endpoints come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mirrored {
    pub(super) slices: BTreeMap<Family, Wanted>,
    /// Addresses that are none.
    pub(super) invalid: usize,
    /// Addresses that are left out, the invalid ones among them.
    pub(super) skipped: usize,
}

/// Endpoints in an order that does not depend on how they were written.
pub(super) fn sorted(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    let uid = |endpoint: &Endpoint| endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    endpoints.sort_by(|one, two| one.addresses.cmp(&two.addresses).then_with(|| uid(one).cmp(&uid(two))));
    endpoints
}

/// The family of a slice that is there.
pub(super) fn family_of(slice: &EndpointSlice) -> Family {
    let port = |port: &EndpointPort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        (
            port.name.clone().unwrap_or_default(),
            port.port.unwrap_or_default(),
            protocol,
            port.app_protocol.clone(),
        )
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort_unstable();
    (if slice.address_type == "IPv6" { "IPv6" } else { "IPv4" }, ports)
}

/// The address and the uid of what is behind it: the same address may stand for two.
type AddressKey = (String, Option<String>);

/// Addresses that have the same ports, and whether each is ready.
type Subset<'a> = (Vec<Port>, BTreeMap<AddressKey, (&'a core::EndpointAddress, bool)>);

/// The subsets in their canonical form: each set of addresses once, with all its ports (upstream's `RepackSubsets`). Not
/// being ready outweighs being ready.
fn repacked(endpoints: &core::Endpoints) -> Vec<Subset<'_>> {
    let mut by_port: BTreeMap<Option<Port>, BTreeMap<AddressKey, (&core::EndpointAddress, bool)>> =
        BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let port = |port: &core::EndpointPort| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((port.name.clone().unwrap_or_default(), port.port, protocol, port.app_protocol.clone()))
        };
        let mut ports: Vec<Option<Port>> = subset.ports.iter().flatten().map(port).collect();
        if ports.is_empty() {
            ports.push(None);
        }
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let all = ready.chain(subset.not_ready_addresses.iter().flatten().map(|address| (address, false)));
        for (address, ready) in all {
            let uid = address.target_ref.as_ref().and_then(|target| target.uid.clone());
            for port in &ports {
                let known = by_port.entry(port.clone()).or_default();
                let entry = known.entry((address.ip.clone(), uid.clone())).or_insert((address, ready));
                entry.1 &= ready;
            }
        }
    }
    let mut subsets: Vec<Subset<'_>> = Vec::new();
    for (port, addresses) in by_port {
        let state = |addresses: &BTreeMap<AddressKey, (&core::EndpointAddress, bool)>| {
            addresses.iter().map(|(key, (_, ready))| (key.clone(), *ready)).collect::<Vec<_>>()
        };
        let this = state(&addresses);
        match subsets.iter_mut().find(|(_, known)| state(known) == this) {
            Some((ports, _)) => ports.extend(port),
            None => subsets.push((port.into_iter().collect(), addresses)),
        }
    }
    subsets
}

/// The slices of Endpoints, with at most so many addresses of each subset; those that are ready come first.
pub(super) fn mirror(endpoints: &core::Endpoints, most: usize) -> Mirrored {
    let mut mirrored = Mirrored::default();
    for (ports, addresses) in repacked(endpoints) {
        let (mut added, total) = (0, addresses.len());
        let mut ordered: Vec<(&core::EndpointAddress, bool)> = addresses.into_values().collect();
        ordered.sort_by_key(|(_, ready)| !ready);
        for (address, ready) in ordered {
            if added >= most {
                break;
            }
            let Some((endpoint, address_type)) = endpoint(address, ready) else {
                mirrored.invalid += 1;
                continue;
            };
            added += 1;
            let slice = mirrored.slices.entry((address_type, ports.clone())).or_insert_with(|| Wanted {
                address_type,
                ports: ports.iter().map(slice_port).collect(),
                endpoints: Vec::new(),
            });
            slice.endpoints.push(endpoint);
        }
        mirrored.skipped += total - added;
    }
    for slice in mirrored.slices.values_mut() {
        slice.endpoints = sorted(std::mem::take(&mut slice.endpoints));
    }
    mirrored
}

fn slice_port((name, port, protocol, app_protocol): &Port) -> EndpointPort {
    EndpointPort {
        name: Some(name.clone()),
        port: Some(*port),
        protocol: Some(protocol.clone()),
        app_protocol: app_protocol.clone(),
    }
}

fn endpoint(address: &core::EndpointAddress, ready: bool) -> Option<(Endpoint, &'static str)> {
    let ip = parse(&address.ip)?;
    let conditions = EndpointConditions { ready: Some(ready), ..EndpointConditions::default() };
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(conditions),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((endpoint, if ip.is_ipv6() { "IPv6" } else { "IPv4" }))
}

/// An address as Go used to read it, with zeros in front of numbers.
fn parse(text: &str) -> Option<IpAddr> {
    let number = |part: &str| {
        let digits = part.trim_start_matches('0');
        if digits.is_empty() && !part.is_empty() { "0".to_owned() } else { digits.to_owned() }
    };
    let plain = || text.split('.').map(number).collect::<Vec<_>>().join(".");
    text.parse::<IpAddr>().or_else(|_| plain().parse()).ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Each slice as `type ports: addresses`, with `-` before those that are not ready.
    fn show(subsets: Value, most: usize) -> (Vec<String>, usize, usize) {
        let endpoints: core::Endpoints = serde_json::from_value(json!({"subsets": subsets})).unwrap();
        let mirrored = mirror(&endpoints, most);
        let slice = |((kind, ports), wanted): (&Family, &Wanted)| {
            let ports: Vec<String> = ports.iter().map(|port| format!("{}/{}", port.1, port.2)).collect();
            let addresses: Vec<String> = wanted
                .endpoints
                .iter()
                .map(|endpoint| {
                    let ready = endpoint.conditions.as_ref().unwrap().ready == Some(true);
                    format!("{}{}", if ready { "" } else { "-" }, endpoint.addresses[0])
                })
                .collect();
            format!("{kind} {}: {}", ports.join("+"), addresses.join(" "))
        };
        (mirrored.slices.iter().map(slice).collect(), mirrored.invalid, mirrored.skipped)
    }

    /// The cases of upstream's `TestReconcile` (`endpointslicemirroring/reconciler_test.go`).
    #[test]
    fn subsets_become_slices() {
        let ips = |ips: &[&str]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
        let port = |port: i32, protocol: &str| json!({"port": port, "protocol": protocol});
        let cases = [
            (json!([]), 9, vec![], 0, 0),
            (json!([{"ports": [port(80, "TCP")], "addresses": []}]), 9, vec![], 0, 0),
            (
                json!([{"ports": [port(80, "TCP")], "addresses": ips(&["10.0.0.2", "10.0.0.1"])}]),
                9,
                vec!["IPv4 80/TCP: 10.0.0.1 10.0.0.2"],
                0,
                0,
            ),
            (json!([{"addresses": ips(&["10.0.0.1"])}]), 9, vec!["IPv4 : 10.0.0.1"], 0, 0),
            (
                json!([{"ports": [port(80, "TCP"), port(81, "UDP")], "addresses": ips(&["10.0.0.1"]),
                "notReadyAddresses": ips(&["10.0.0.2"])}]),
                9,
                vec!["IPv4 80/TCP+81/UDP: 10.0.0.1 -10.0.0.2"],
                0,
                0,
            ),
            (
                json!([{"ports": [port(80, "TCP")], "addresses": ips(&["10.0.0.1", "2001:db8::1", "::ffff:10.0.0.9"])}]),
                9,
                vec!["IPv4 80/TCP: 10.0.0.1 10.0.0.9", "IPv6 80/TCP: 2001:db8::1"],
                0,
                0,
            ),
            (
                json!([{"ports": [port(80, "TCP")], "addresses": ips(&["not-an-ip", "010.00.0.01"])}]),
                9,
                vec!["IPv4 80/TCP: 10.0.0.1"],
                1,
                1,
            ),
            // More than are mirrored: those that are ready first.
            (
                json!([{"ports": [port(80, "TCP")], "addresses": ips(&["10.0.0.3", "10.0.0.4"]),
                "notReadyAddresses": ips(&["10.0.0.1"])}]),
                2,
                vec!["IPv4 80/TCP: 10.0.0.3 10.0.0.4"],
                0,
                1,
            ),
            // The same addresses in two subsets are one; not being ready outweighs.
            (
                json!([{"ports": [port(80, "TCP")], "addresses": ips(&["10.0.0.1"])},
                {"ports": [port(81, "TCP")], "addresses": ips(&["10.0.0.1"])}]),
                9,
                vec!["IPv4 80/TCP+81/TCP: 10.0.0.1"],
                0,
                0,
            ),
            (
                json!([{"ports": [port(80, "TCP")], "addresses": ips(&["10.0.0.1"])},
                {"ports": [port(80, "TCP")], "notReadyAddresses": ips(&["10.0.0.1"])}]),
                9,
                vec!["IPv4 80/TCP: -10.0.0.1"],
                0,
                0,
            ),
        ];
        for (subsets, most, slices, invalid, skipped) in cases {
            let slices: Vec<String> = slices.iter().map(ToString::to_string).collect();
            assert_eq!(show(subsets.clone(), most), (slices, invalid, skipped), "{subsets}");
        }
    }
}
