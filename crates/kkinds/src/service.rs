//! Services: addresses and ports that the cluster hands out.

use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive};

use serde_json::{Value, json};

use kschema::{
    error::FieldError,
    fields::{child, immutable, items_mut, keep, set_default},
    strategy::{NameRule, Strategy},
};

use std::sync::Arc;

/// How many addresses or ports are tried before a range is called full.
const ALLOCATION_TRIES_MAX: u32 = 65_536;

/// The ranges from which services get their cluster IPs and node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddresses {
    /// The first address of the range of cluster IPs (the network's address, which is not handed out).
    pub network: Ipv4Addr,
    /// The length of the range's prefix.
    pub prefix: u8,
    /// The node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceAddresses {
    /// `10.96.0.0/12` and ports 30000 to 32767, as kubeadm has them.
    fn default() -> Self {
        Self { network: Ipv4Addr::new(10, 96, 0, 0), prefix: 12, node_ports: 30_000..=32_767 }
    }
}

impl ServiceAddresses {
    /// How many addresses the range has.
    fn size(&self) -> u32 {
        1_u32.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(u32::MAX)
    }

    /// Whether an address can be handed out: in the range, and neither its first nor its last.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(u32::from(self.network));
        offset > 0 && offset < self.size() - 1
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
}

/// The strategy of `services`.
#[derive(Debug)]
pub(crate) struct Services {
    addresses: Arc<ServiceAddresses>,
}

impl Services {
    pub(crate) fn new(addresses: Arc<ServiceAddresses>) -> Self {
        Self { addresses }
    }

    /// A free address: one after another from a place that the service's name decides, so that a deleted and newly made
    /// service gets its address back when it is still free.
    fn free_address(&self, seed: u32, taken: &dyn Fn(&str) -> bool) -> Option<Ipv4Addr> {
        let usable = self.addresses.size().saturating_sub(2);
        let tries = usable.min(ALLOCATION_TRIES_MAX);
        (0..tries)
            .map(|step| u32::from(self.addresses.network) + 1 + (seed.wrapping_add(step)) % usable)
            .map(Ipv4Addr::from)
            .find(|address| *address != self.addresses.first() && !taken(&ip_claim(&address.to_string())))
    }

    fn free_port(&self, seed: u32, used: &BTreeSet<i64>, taken: &dyn Fn(&str) -> bool) -> Option<u16> {
        let (first, last) = (*self.addresses.node_ports.start(), *self.addresses.node_ports.end());
        let count = u32::from(last.saturating_sub(first)) + 1;
        let port = |step: u32| first + u16::try_from(seed.wrapping_add(step) % count).unwrap_or(0);
        (0..count)
            .map(port)
            .find(|port| !used.contains(&i64::from(*port)) && !taken(&port_claim(i64::from(*port))))
    }
}

fn ip_claim(address: &str) -> String {
    format!("clusterip/{address}")
}

fn port_claim(port: i64) -> String {
    format!("nodeport/{port}")
}

/// FNV-1a: spreads names over a range, the same on every run.
fn spread(text: &str) -> u32 {
    text.bytes().fold(2_166_136_261, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
}

fn service_type(object: &Value) -> &str {
    object["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn has_node_ports(object: &Value) -> bool {
    match service_type(object) {
        "NodePort" => true,
        "LoadBalancer" => object["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        let kind = service_type(object).to_owned();
        let spec = child(object, "spec");
        for port in items_mut(spec, "ports") {
            let number = port["port"].clone();
            // Zero and the empty text mean "not given" to Go.
            if port.get("targetPort").is_none_or(|target| *target == 0 || *target == "") {
                port["targetPort"] = number;
            }
        }
        if spec["sessionAffinity"] == "ClientIP" {
            let config = child(child(spec, "sessionAffinityConfig"), "clientIP");
            set_default(config, "timeoutSeconds", 10_800);
        } else if let Some(map) = spec.as_object_mut() {
            map.remove("sessionAffinityConfig");
        }
        if kind != "ExternalName" {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        // What was handed out stays, unless the caller names something else or the type no longer has it.
        let (kind, old_kind) = (service_type(object).to_owned(), service_type(old).to_owned());
        let spec = child(object, "spec");
        if kind == "ExternalName" {
            if old_kind != "ExternalName"
                && let Some(map) = spec.as_object_mut()
            {
                for key in
                    ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
                {
                    map.remove(key);
                }
            }
            return;
        }
        if old_kind != "ExternalName" && spec.get("clusterIP").is_none_or(|address| *address == "") {
            for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if spec.get(key).is_none_or(|value| *value == "") {
                    keep(spec, &old["spec"], key);
                }
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let spec = &object["spec"];
        let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        kschema::fields::one_of(object, "spec.type", &kinds, errors);
        kschema::fields::one_of(object, "spec.sessionAffinity", &["ClientIP", "None"], errors);
        let headless = spec["clusterIP"] == "None";
        let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        if ports.is_empty() && !headless && service_type(object) != "ExternalName" {
            errors.push(FieldError::required("spec.ports", ""));
        }
        if service_type(object) == "ExternalName" && spec["externalName"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required("spec.externalName", ""));
        }
        validate_ports(ports, errors);
        if let Some(address) = spec["clusterIP"].as_str().filter(|text| !text.is_empty() && *text != "None") {
            match address.parse::<Ipv4Addr>() {
                Err(_) => errors.push(FieldError::invalid_text(
                    "spec.clusterIPs[0]",
                    address,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                )),
                Ok(parsed) if !self.addresses.contains(parsed) => {
                    let why = format!(
                        "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                        self.addresses.cidr()
                    );
                    errors.push(FieldError::invalid("spec.clusterIPs", json!([address]), why));
                }
                Ok(_) => {}
            }
        }
        for (index, port) in ports.iter().enumerate().filter(|_| has_node_ports(object)) {
            let number = port["nodePort"].as_i64().unwrap_or_default();
            let range = &self.addresses.node_ports;
            if number != 0 && !u16::try_from(number).is_ok_and(|number| range.contains(&number)) {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                );
                errors.push(FieldError::invalid(format!("spec.ports[{index}].nodePort"), number, why));
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        if service_type(object) != "ExternalName" && service_type(old) != "ExternalName" {
            let before = errors.len();
            immutable(object, old, "spec.clusterIP", errors);
            if errors.len() > before {
                errors.truncate(before);
                let value = json!([object["spec"]["clusterIP"]]);
                errors.push(FieldError::invalid("spec.clusterIPs[0]", value, "may not change once set"));
            }
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label1035
    }

    fn claims(&self, object: &Value) -> Vec<String> {
        let spec = &object["spec"];
        let mut claims = Vec::new();
        if let Some(address) = spec["clusterIP"].as_str().filter(|text| !text.is_empty() && *text != "None") {
            claims.push(ip_claim(address));
        }
        let ports: BTreeSet<i64> = spec["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["nodePort"].as_i64())
            .filter(|port| *port > 0)
            .collect();
        claims.extend(ports.into_iter().map(port_claim));
        claims
    }

    fn allocates(&self) -> bool {
        true
    }

    fn allocate(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        taken: &dyn Fn(&str) -> bool,
    ) -> Result<(), FieldError> {
        let kind = service_type(object).to_owned();
        if kind == "ExternalName" {
            return Ok(());
        }
        let meta = &object["metadata"];
        let seed = spread(&format!(
            "{}/{}",
            meta["namespace"].as_str().unwrap_or_default(),
            meta["name"].as_str().unwrap_or_default()
        ));
        let node_ports = has_node_ports(object);
        let spec = child(object, "spec");
        if spec.get("clusterIP").is_none_or(|address| *address == "") {
            // `clusterIPs` may name it alone.
            let named = spec.pointer("/clusterIPs/0").and_then(Value::as_str).map(str::to_owned);
            let address = match named {
                Some(address) => address,
                None => {
                    self.free_address(seed, taken).map(|address| address.to_string()).ok_or_else(|| {
                        FieldError::invalid(
                            "spec.clusterIPs",
                            json!([]),
                            "failed to allocate a serviceIP: range is full",
                        )
                    })?
                }
            };
            spec["clusterIP"] = json!(address);
        }
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
        set_default(spec, "ipFamilies", json!(["IPv4"]));
        set_default(spec, "ipFamilyPolicy", "SingleStack");
        let was_allocated = |port: &Value| {
            let old_ports = old.and_then(|old| old["spec"]["ports"].as_array()).into_iter().flatten();
            let same = |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
            old_ports.into_iter().find(same).and_then(|old| old["nodePort"].as_i64())
        };
        let mut used: BTreeSet<i64> = spec["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["nodePort"].as_i64())
            .collect();
        for port in items_mut(spec, "ports") {
            let given = port.get("nodePort").and_then(Value::as_i64).unwrap_or_default();
            if !node_ports {
                // A type without node ports gives them back.
                if old.is_some()
                    && given != 0
                    && was_allocated(port) == Some(given)
                    && let Some(map) = port.as_object_mut()
                {
                    map.remove("nodePort");
                }
            } else if given == 0 {
                let number = was_allocated(port).filter(|number| *number > 0);
                let number = match number {
                    Some(number) => number,
                    None => {
                        let seed = seed.wrapping_add(u32::try_from(used.len()).unwrap_or(0));
                        self.free_port(seed, &used, taken).map(i64::from).ok_or_else(|| {
                            FieldError::invalid(
                                "spec.ports[0].nodePort",
                                0,
                                "failed to allocate a nodePort: range is full",
                            )
                        })?
                    }
                };
                used.insert(number);
                port["nodePort"] = json!(number);
            }
        }
        Ok(())
    }
}

fn validate_ports(ports: &[Value], errors: &mut Vec<FieldError>) {
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(field("name"), ""));
        } else if !name.is_empty() {
            if let Some(fault) = NameRule::Label.fault(name, false) {
                errors.push(FieldError::invalid_text(field("name"), name, fault));
            } else if !names.insert(name) {
                errors.push(FieldError::duplicate(field("name"), name));
            }
        }
        let number = port["port"].as_i64().unwrap_or_default();
        if !(1..=65_535).contains(&number) {
            errors.push(FieldError::invalid(field("port"), number, "must be between 1 and 65535, inclusive"));
        }
        if let Some(target) = port["targetPort"].as_i64().filter(|target| !(1..=65_535).contains(target)) {
            errors.push(FieldError::invalid(
                field("targetPort"),
                target,
                "must be between 1 and 65535, inclusive",
            ));
        }
        kschema::fields::one_of_at(
            port,
            "protocol",
            &format!("spec.ports[{index}]"),
            &["SCTP", "TCP", "UDP"],
            errors,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_handed_out_and_kept() {
        let services = Services::new(Arc::default());
        let mut object = json!({"metadata": {"namespace": "a", "name": "b"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        services.default(&mut object);
        services.allocate(&mut object, None, &|_| false).unwrap();
        let claims = services.claims(&object);
        assert_eq!(claims.len(), 2);
        let first = object.clone();
        services.allocate(&mut object, Some(&first), &|_| true).unwrap();
        assert_eq!(object, first, "nothing new is needed");
        object["spec"]["type"] = json!("ClusterIP");
        services.allocate(&mut object, Some(&first), &|_| true).unwrap();
        assert_eq!(services.claims(&object), claims[..1], "the node port is given back");
    }

    #[test]
    fn a_full_range_is_an_error_and_not_a_loop() {
        let services =
            Services::new(Arc::new(ServiceAddresses { prefix: 30, ..ServiceAddresses::default() }));
        let mut object = json!({"metadata": {}, "spec": {"ports": []}});
        assert!(services.allocate(&mut object, None, &|_| true).is_err());
    }
}
