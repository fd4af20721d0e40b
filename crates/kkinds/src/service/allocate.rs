//! Handing out addresses and ports (`pkg/registry/core/service/storage/alloc.go`).

use std::{collections::BTreeSet, net::IpAddr};

use kschema::{
    error::FieldError,
    fields::{child, items_mut},
    strategy::Held,
};
use serde_json::{Value, json};

use super::{Services, addresses::Network, kind, needs_health_check, needs_node_ports, rules};
use crate::check::{Look, Path, Report, address, same_at, texts};

/// How many addresses or ports are tried before a range is called full.
const ALLOCATION_TRIES_MAX: u32 = 65_536;

fn address_claim(address: &str) -> String {
    format!("clusterip/{address}")
}

fn port_claim(port: i64) -> String {
    format!("nodeport/{port}")
}

/// FNV-1a: spreads names over a range, the same on every run.
fn spread(text: &str) -> u32 {
    text.bytes().fold(2_166_136_261, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
}

fn family(text: &str) -> &'static str {
    match address::parse_lenient(text).map(address::canonical) {
        Some(IpAddr::V6(_)) => "IPv6",
        _ => "IPv4",
    }
}

fn is_headless(spec: &Value) -> bool {
    spec.text("clusterIP") == "None" || texts(spec.list("clusterIPs")).next() == Some("None")
}

fn allocates_node_ports(object: &Value) -> bool {
    match kind(object) {
        "NodePort" => true,
        "LoadBalancer" => object["spec"].some_flag("allocateLoadBalancerNodePorts") != Some(false),
        _ => false,
    }
}

/// What the range that a service asks for tells it.
type Handed<T> = Result<T, FieldError>;

impl Services {
    /// The claims that a service holds.
    pub(super) fn held(&self, object: &Value) -> Vec<String> {
        let spec = &object["spec"];
        let mut claims = Vec::new();
        if kind(object) != "ExternalName" && !is_headless(spec) {
            let mut addresses: Vec<&str> = texts(spec.list("clusterIPs")).collect();
            if addresses.is_empty() {
                addresses.push(spec.text("clusterIP"));
            }
            claims.extend(addresses.into_iter().filter(|text| !text.is_empty()).map(address_claim));
        }
        let numbers = spec.list("ports").iter().map(|port| port.int("nodePort"));
        let health = needs_health_check(object).then(|| spec.int("healthCheckNodePort"));
        let ports: BTreeSet<i64> = numbers.chain(health).filter(|port| *port > 0).collect();
        claims.extend(ports.into_iter().map(port_claim));
        claims
    }

    /// The networks that addresses come from, the configured ones first.
    fn networks(&self, held: &dyn Held) -> Vec<Network> {
        let configured = self.addresses.networks();
        let Some(ready) = held.networks() else { return configured };
        let mut ready: Vec<Network> = ready.iter().filter_map(|text| Network::parse(text)).collect();
        ready.sort_by_key(|network| !configured.contains(network));
        ready
    }

    /// A free address: one after another from a place that the service's name decides, so that a deleted and newly made
    /// service gets its address back when it is still free. A network that is full is followed by the next one.
    fn free_address(&self, networks: &[Network], seed: u32, held: &dyn Held) -> Option<String> {
        let each = networks.iter().flat_map(|network| {
            let usable = network.usable();
            (0..usable.min(ALLOCATION_TRIES_MAX))
                .map(move |step| network.nth(seed.wrapping_add(step) % usable))
        });
        let mut each = each.filter(|address| *address != IpAddr::V4(self.addresses.first()));
        each.find_map(|address| {
            let text = address.to_string();
            (!held.is_taken(&address_claim(&text))).then_some(text)
        })
    }

    fn free_port(&self, seed: u32, used: &BTreeSet<i64>, held: &dyn Held) -> Option<i64> {
        let (first, last) = (*self.addresses.node_ports.start(), *self.addresses.node_ports.end());
        let count = u32::from(last.saturating_sub(first)) + 1;
        (0..count)
            .map(|step| i64::from(first) + i64::from(seed.wrapping_add(step) % count))
            .find(|port| !used.contains(port) && !held.is_taken(&port_claim(*port)))
    }

    /// Ports that a caller names must be in the range.
    pub(super) fn ports_in_range(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let range = &self.addresses.node_ports;
        let (spec, list) = (&object["spec"], Path::root("spec.ports"));
        for (index, port) in spec.list("ports").iter().enumerate().filter(|_| needs_node_ports(object)) {
            let number = port.int("nodePort");
            if number != 0 && !u16::try_from(number).is_ok_and(|number| range.contains(&number)) {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                );
                errors.invalid(&list.index(index).field("nodePort"), number, why);
            }
        }
    }

    /// Fills in addresses and ports.
    pub(super) fn hand_out(&self, object: &mut Value, old: Option<&Value>, held: &dyn Held) -> Handed<()> {
        if kind(object) == "ExternalName" {
            return Ok(());
        }
        let meta = &object["metadata"];
        let seed = spread(&format!("{}/{}", meta.text("namespace"), meta.text("name")));
        self.families(object, old)?;
        let spec = &object["spec"];
        if !is_headless(spec) {
            self.hand_out_addresses(child(object, "spec"), seed, held)?;
        }
        self.hand_out_ports(object, seed, held)
    }

    /// Decides which families of addresses a service has (`initIPFamilyFields`).
    fn families(&self, object: &mut Value, old: Option<&Value>) -> Handed<()> {
        let was = old.filter(|old| kind(old) != "ExternalName").map(|old| &old["spec"]);
        let spec = child(object, "spec");
        if was.is_some_and(|was| stays_preferred(spec, was)) {
            return Ok(());
        }
        let without_selector = spec.text("clusterIP") == "None" && spec.count("selector") == 0;
        if !spec.has("ipFamilyPolicy") {
            let before = was.and_then(|was| was.get_some("ipFamilyPolicy")).cloned();
            let usual = if without_selector { "RequireDualStack" } else { "SingleStack" };
            spec["ipFamilyPolicy"] = before.unwrap_or_else(|| json!(usual));
        }
        let mut errors = Vec::new();
        rules::cluster_addresses(spec, was, &mut errors);
        if let Some(error) = errors.into_iter().next() {
            return Err(error);
        }
        let policy = spec.text("ipFamilyPolicy").to_owned();
        let fault = |why: &str| FieldError::invalid_text("spec.ipFamilyPolicy", &policy, why);
        if let Some(was) = was {
            release_second(spec, was, &policy).map_err(|why| fault(&why))?;
        }
        for (key, word) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if policy == "SingleStack" && spec.count(key) == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {word} are specified"
                );
                return Err(fault(&why));
            }
        }
        let known = self.addresses.families();
        let mut families: Vec<String> = texts(spec.list("ipFamilies")).map(str::to_owned).collect();
        for (index, text) in texts(spec.list("clusterIPs")).enumerate().skip(families.len()) {
            if text == "None" {
                break;
            }
            let family = family(text);
            if !known.contains(&family) {
                let why = format!("{family} is not configured on this cluster");
                return Err(FieldError::invalid(
                    format!("spec.clusterIPs[{index}]"),
                    &spec["clusterIPs"],
                    why,
                ));
            }
            families.push(family.to_owned());
        }
        if !without_selector {
            if policy == "RequireDualStack" && known.len() < 2 {
                return Err(fault("this cluster is not configured for dual-stack services"));
            }
            if let Some((index, family)) =
                families.iter().enumerate().find(|(_, family)| !known.contains(&family.as_str()))
            {
                let field = format!("spec.ipFamilies[{index}]");
                return Err(FieldError::invalid_text(field, family, "not configured on this cluster"));
            }
        }
        if families.is_empty() {
            families.push(known[0].to_owned());
        }
        if policy != "SingleStack" && families.len() == 1 && (without_selector || known.len() == 2) {
            families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
        }
        spec["ipFamilies"] = json!(families);
        Ok(())
    }

    fn hand_out_addresses(&self, spec: &mut Value, seed: u32, held: &dyn Held) -> Handed<()> {
        let mut addresses: Vec<String> = texts(spec.list("clusterIPs")).map(str::to_owned).collect();
        let families: Vec<String> = texts(spec.list("ipFamilies")).map(str::to_owned).collect();
        let networks = self.networks(held);
        for (index, family) in families.iter().enumerate() {
            if index >= addresses.len() {
                addresses.push(String::new());
            }
            let shown = json!(addresses);
            let named = &addresses[index];
            if named.is_empty() {
                let of_family: Vec<Network> =
                    networks.iter().filter(|network| network.family() == family).copied().collect();
                addresses[index] = self.free_address(&of_family, seed, held).ok_or_else(|| {
                    FieldError::invalid(
                        "spec.clusterIPs",
                        shown,
                        "failed to allocate a serviceIP: range is full",
                    )
                })?;
                continue;
            }
            let named_address = address::parse_lenient(named).map(address::canonical);
            if !named_address.is_some_and(|address| networks.iter().any(|network| network.has(address))) {
                let why = format!(
                    "failed to allocate IP {named}: the provided network does not match the current range"
                );
                return Err(FieldError::invalid("spec.clusterIPs", shown, why));
            }
        }
        if let Some(first) = addresses.first() {
            spec["clusterIP"] = json!(first);
        }
        spec["clusterIPs"] = json!(addresses);
        Ok(())
    }

    fn hand_out_ports(&self, object: &mut Value, seed: u32, held: &dyn Held) -> Handed<()> {
        const FULL: &str = "failed to allocate a nodePort: range is full";
        let (wanted, health) = (allocates_node_ports(object), needs_health_check(object));
        let spec = child(object, "spec");
        let mut used: BTreeSet<i64> = spec.list("ports").iter().map(|port| port.int("nodePort")).collect();
        used.insert(spec.int("healthCheckNodePort"));
        let next = |used: &BTreeSet<i64>, field: &str| {
            let seed = seed.wrapping_add(u32::try_from(used.len()).unwrap_or(0));
            self.free_port(seed, used, held).ok_or_else(|| FieldError::invalid(field, 0, FULL))
        };
        // One number of a service that has it for several protocols has one number on the nodes.
        let mut by_port: Vec<(i64, i64)> = Vec::new();
        for port in spec.list("ports").iter().filter(|port| port.int("nodePort") != 0) {
            by_port.push((port.int("port"), port.int("nodePort")));
        }
        for port in items_mut(spec, "ports").filter(|_| wanted) {
            if port.int("nodePort") != 0 {
                continue;
            }
            let number = port.int("port");
            let node = match by_port.iter().find(|(port, _)| *port == number) {
                Some((_, node)) => *node,
                None => next(&used, "spec.ports[0].nodePort")?,
            };
            by_port.push((number, node));
            used.insert(node);
            port["nodePort"] = json!(node);
        }
        if health && spec.int("healthCheckNodePort") == 0 {
            spec["healthCheckNodePort"] = json!(next(&used, "spec.healthCheckNodePort")?);
        }
        Ok(())
    }
}

/// Whether a service prefers two families as before, and has what it had.
fn stays_preferred(spec: &Value, was: &Value) -> bool {
    spec.text("type") == was.text("type")
        && spec.text("ipFamilyPolicy") == "PreferDualStack"
        && ["", "PreferDualStack"].contains(&was.text("ipFamilyPolicy"))
        && ["clusterIP", "clusterIPs", "ipFamilies"].iter().all(|key| same_at(spec, was, key))
}

/// A service that becomes single-stack loses its second address.
fn release_second(spec: &mut Value, was: &Value, policy: &str) -> Result<(), String> {
    for (key, word) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let same = same_at(spec, was, key) && (key != "clusterIPs" || same_at(spec, was, "clusterIP"));
        let (count, before) = (spec.count(key), was.count(key));
        if policy == "SingleStack" {
            if let Some(list) = spec.get_mut(key).and_then(Value::as_array_mut).filter(|_| same && count > 1)
            {
                list.truncate(1);
            }
        } else if count == 1 && before > 1 && spec.list(key)[0] == was.list(key)[0] {
            return Err(format!("must be 'SingleStack' to release the secondary {word}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kschema::strategy::Strategy as _;

    use super::*;
    use crate::service::ServiceAddresses;

    #[test]
    fn addresses_and_ports_are_handed_out_and_kept() {
        let services = Services::new(Arc::default());
        let mut object = json!({"metadata": {"namespace": "a", "name": "b"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        services.default(&mut object);
        services.prepare_create(&mut object);
        services.allocate(&mut object, None, &|_: &str| false).unwrap();
        let claims = services.claims(&object);
        assert_eq!(claims.len(), 2);
        let first = object.clone();
        services.prepare_update(&mut object, &first);
        services.allocate(&mut object, Some(&first), &|_: &str| true).unwrap();
        assert_eq!(object, first, "nothing new is needed");
        object["spec"]["type"] = json!("ClusterIP");
        services.prepare_update(&mut object, &first);
        services.allocate(&mut object, Some(&first), &|_: &str| true).unwrap();
        assert_eq!(services.claims(&object), claims[..1], "the node port is given back");
    }

    /// Holds everything in one network, and has another one.
    struct Full<'a>(&'a [&'a str]);

    impl Held for Full<'_> {
        fn is_taken(&self, claim: &str) -> bool {
            claim.starts_with("clusterip/10.96.")
        }

        fn networks(&self) -> Option<Vec<String>> {
            Some(self.0.iter().map(|text| (*text).to_owned()).collect())
        }
    }

    /// The rules of `MetaAllocator` (`cidrallocator.go`).
    #[test]
    fn a_full_network_is_followed_by_another_one() {
        let services =
            Services::new(Arc::new(ServiceAddresses { prefix: 24, ..ServiceAddresses::default() }));
        let object = |address: &str| json!({"metadata": {"name": "b"}, "spec": {"clusterIP": address, "clusterIPs": if address.is_empty() { json!([]) } else { json!([address]) }, "ports": []}});
        let other = "does not match the current range";
        let cases: &[(&[&str], &str, Result<&str, &str>)] = &[
            (&["10.96.0.0/24"], "", Err("range is full")),
            (&["10.96.0.0/24", "fd00::/112"], "", Err("range is full")),
            (&["172.30.0.0/30", "10.96.0.0/24"], "", Ok("172.30.0.")),
            (&["10.96.0.0/24", "172.30.0.0/24"], "172.30.0.9", Ok("172.30.0.9")),
            (&["10.96.0.0/24"], "172.30.0.9", Err(other)),
            // The first address of a network, and the last.
            (&["172.30.0.0/24"], "172.30.0.0", Err(other)),
            (&["172.30.0.0/24"], "172.30.0.255", Err(other)),
            (&[], "10.96.0.9", Err(other)),
            (&[], "", Err("range is full")),
        ];
        for (networks, address, expected) in cases {
            let mut object = object(address);
            let result = services.allocate(&mut object, None, &Full(networks));
            match expected {
                Ok(start) => {
                    result.unwrap();
                    let given = object["spec"]["clusterIP"].as_str().unwrap();
                    assert!(given.starts_with(start), "{networks:?}: {given}");
                }
                Err(why) => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(why), "{networks:?} {address}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_full_range_is_an_error_and_not_a_loop() {
        let services =
            Services::new(Arc::new(ServiceAddresses { prefix: 30, ..ServiceAddresses::default() }));
        let mut object = json!({"metadata": {}, "spec": {"ports": []}});
        assert!(services.allocate(&mut object, None, &|_: &str| true).is_err());
    }

    #[test]
    fn a_dual_stack_cluster_hands_out_both_families() {
        let second = Some(("fd00::".parse().unwrap(), 112));
        let services = Services::new(Arc::new(ServiceAddresses { second, ..ServiceAddresses::default() }));
        let spec = json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]});
        let mut object = json!({"metadata": {"name": "b"}, "spec": spec});
        services.allocate(&mut object, None, &|_: &str| false).unwrap();
        assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(services.claims(&object).len(), 2);
        let old = object.clone();
        object["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        services.allocate(&mut object, Some(&old), &|_: &str| true).unwrap();
        assert_eq!(object["spec"]["clusterIPs"], json!([old["spec"]["clusterIP"]]));
    }
}
