//! Services: addresses and ports that the cluster hands out.

mod addresses;
mod allocate;
mod rules;
mod warnings;

use std::sync::Arc;

use kschema::{
    error::FieldError,
    fields::{child, items_mut, keep, set_default},
    strategy::{Held, NameRule, Strategy},
};
use serde_json::{Value, json};

pub use self::addresses::ServiceAddresses;
use crate::check::{Look, Path, same_at};

/// The strategy of `services`.
#[derive(Debug)]
pub(crate) struct Services {
    addresses: Arc<ServiceAddresses>,
}

impl Services {
    pub(crate) fn new(addresses: Arc<ServiceAddresses>) -> Self {
        Self { addresses }
    }
}

/// The type of a service.
fn kind(object: &Value) -> &str {
    object["spec"].some_text("type").filter(|kind| !kind.is_empty()).unwrap_or("ClusterIP")
}

fn needs_address(object: &Value) -> bool {
    kind(object) != "ExternalName"
}

fn needs_node_ports(object: &Value) -> bool {
    matches!(kind(object), "NodePort" | "LoadBalancer")
}

/// Whether the nodes answer load balancers that ask whether they have a pod of the service.
fn needs_health_check(object: &Value) -> bool {
    kind(object) == "LoadBalancer" && object["spec"].text("externalTrafficPolicy") == "Local"
}

/// Whether traffic comes from outside the cluster.
fn is_external(object: &Value) -> bool {
    needs_node_ports(object) || kind(object) == "ClusterIP" && object["spec"].count("externalIPs") > 0
}

fn remove(spec: &mut Value, key: &str) {
    if let Some(map) = spec.as_object_mut() {
        map.remove(key);
    }
}

/// `clusterIP` is the first of `clusterIPs`; a client may give either (`normalizeClusterIPs`).
fn normalize_addresses(object: &mut Value, old: Option<&Value>) {
    let spec = child(object, "spec");
    let one = spec.text("clusterIP").to_owned();
    let Some(was) = old.map(|old| &old["spec"]) else {
        if !one.is_empty() && spec.count("clusterIPs") == 0 {
            spec["clusterIPs"] = json!([one]);
        }
        return;
    };
    let old_one = was.text("clusterIP");
    let same_list = |spec: &Value| spec.list("clusterIPs") == was.list("clusterIPs");
    if was.count("clusterIPs") > 0 && spec.count("clusterIPs") == 0 && old_one == one {
        keep(spec, was, "clusterIPs");
    }
    // Only the old field was changed: the list follows.
    if old_one != one && same_list(spec) {
        if one.is_empty() {
            remove(spec, "clusterIPs");
        } else {
            spec["clusterIPs"] = json!([one]);
        }
    }
}

/// What was handed out stays where a client does not name it (`patchAllocatedValues`).
fn keep_allocated(object: &mut Value, old: &Value) {
    let was = &old["spec"];
    let (addresses, ports, health) = (
        needs_address(old) && needs_address(object),
        needs_node_ports(old) && needs_node_ports(object),
        needs_health_check(old) && needs_health_check(object),
    );
    let spec = child(object, "spec");
    if addresses {
        if spec.text("clusterIP").is_empty() {
            keep(spec, was, "clusterIP");
        }
        if spec.count("clusterIPs") == 0 {
            keep(spec, was, "clusterIPs");
        }
    }
    if ports {
        let named: Vec<i64> = spec.list("ports").iter().map(|port| port.int("nodePort")).collect();
        for port in items_mut(spec, "ports") {
            let before = was.list("ports").iter().rfind(|old| old.text("name") == port.text("name"));
            let number = before.map_or(0, |old| old.int("nodePort"));
            if port.int("nodePort") == 0 && number != 0 && !named.contains(&number) {
                port["nodePort"] = json!(number);
            }
        }
    }
    if health && spec.int("healthCheckNodePort") == 0 {
        keep(spec, was, "healthCheckNodePort");
    }
}

/// What the new type has no use for goes, where the client left it as it was (`dropTypeDependentFields`).
fn drop_unused(object: &mut Value, old: &Value) {
    let was = &old["spec"];
    let lost = |need: fn(&Value) -> bool, object: &Value| need(old) && !need(object);
    let balanced: fn(&Value) -> bool = |object| kind(object) == "LoadBalancer";
    let (address, ports, health, balancer, external) = (
        lost(needs_address, object),
        lost(needs_node_ports, object),
        lost(needs_health_check, object),
        lost(balanced, object),
        lost(is_external, object),
    );
    let spec = child(object, "spec");
    if address {
        if same_at(spec, was, "clusterIP") && same_at(spec, was, "clusterIPs") {
            remove(spec, "clusterIP");
            remove(spec, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if same_at(spec, was, key) {
                remove(spec, key);
            }
        }
    }
    let old_ports: Vec<i64> = was.list("ports").iter().map(|port| port.int("nodePort")).collect();
    let known = |port: &Value| port.int("nodePort") == 0 || old_ports.contains(&port.int("nodePort"));
    if ports && spec.list("ports").iter().all(known) {
        items_mut(spec, "ports").for_each(|port| remove(port, "nodePort"));
    }
    if health && same_at(spec, was, "healthCheckNodePort") {
        remove(spec, "healthCheckNodePort");
    }
    if balancer {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.has(key) && spec.get(key) == was.get(key) {
                remove(spec, key);
            }
        }
    }
    if external && same_at(spec, was, "externalTrafficPolicy") {
        remove(spec, "externalTrafficPolicy");
    }
    if kind(object) != "LoadBalancer"
        && let Some(status) = object.get_mut("status").filter(|status| status.is_object())
    {
        status["loadBalancer"] = json!({});
    }
}

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        let (kind, external) = (kind(object).to_owned(), is_external(object));
        let spec = child(object, "spec");
        for port in items_mut(spec, "ports") {
            let number = port.int("port");
            // Zero and the empty text mean "not given" to Go.
            if port.is_object() && port.get("targetPort").is_none_or(|target| *target == 0 || *target == "") {
                port["targetPort"] = json!(number);
            }
        }
        match spec.text("sessionAffinity") {
            "ClientIP" => {
                let seconds = spec["sessionAffinityConfig"]["clientIP"].some_int("timeoutSeconds");
                if seconds.is_none() {
                    spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
                }
            }
            "None" => remove(spec, "sessionAffinityConfig"),
            _ => {}
        }
        if external {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        } else if kind == "ExternalName" && spec.text("internalTrafficPolicy") == "Cluster" {
            remove(spec, "internalTrafficPolicy");
        }
        if kind == "LoadBalancer" {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
            for ingress in object
                .pointer_mut("/status/loadBalancer")
                .into_iter()
                .flat_map(|all| items_mut(all, "ingress"))
            {
                if !ingress.text("ip").is_empty() {
                    set_default(ingress, "ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        normalize_addresses(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep_allocated(object, old);
        normalize_addresses(object, Some(old));
        drop_unused(object, old);
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        set_default(child(object, "status"), "loadBalancer", json!({}));
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        rules::validate(object, None, errors);
        self.ports_in_range(object, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        rules::validate_update(object, old, errors);
        rules::validate(object, Some(old), errors);
        self.ports_in_range(object, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        let path = Path::root("status.loadBalancer");
        let (status, was) = (&object["status"]["loadBalancer"], &old["status"]["loadBalancer"]);
        rules::validate_balancer(status, was, kind(object) == "LoadBalancer", &path, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings::of(object)
    }

    fn subresource_warnings(&self, subresource: &str, object: &Value, _old: &Value) -> Vec<String> {
        if subresource == "status" { warnings::of_status(object) } else { Vec::new() }
    }

    /// KEP-5311: a service's name is a label, as of any other object's.
    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn claims(&self, object: &Value) -> Vec<String> {
        self.held(object)
    }

    fn allocates(&self) -> bool {
        true
    }

    fn allocate(&self, object: &mut Value, old: Option<&Value>, held: &dyn Held) -> Result<(), FieldError> {
        self.hand_out(object, old, held)
    }
}
