//! What a service may say (`validateService`).

use std::collections::BTreeSet;

use kschema::{error::FieldError, quote::json_text};
use serde_json::Value;

use super::{is_external, kind, needs_health_check};
use crate::{
    check::{Look, Path, Report, address, form, labels, texts},
    pod,
};

type Errors = Vec<FieldError>;

const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// The longest time that a client sticks to a pod, in seconds.
const AFFINITY_SECONDS_MAX: i64 = 86_400;

fn is_headless(spec: &Value) -> bool {
    spec.count("clusterIPs") == 1 && spec.list("clusterIPs")[0] == "None"
}

/// Checks a service. `old`: what it is changed from.
pub(crate) fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let was = old.map(|old| &old["spec"]);
    let annotations = &object["metadata"]["annotations"];
    if let (Some(hints), Some(mode)) = (annotations.some_text(HINTS), annotations.some_text(MODE))
        && hints != mode
    {
        let why = format!("must match annotations[{HINTS}] when both are specified");
        errors.invalid(&Path::root("metadata.annotations").key(MODE), mode, why);
    }
    let (kind, headless) = (kind(object), is_headless(spec));
    if spec.count("ports") == 0 && !headless && kind != "ExternalName" {
        errors.required(&path.field("ports"), "");
    }
    by_kind(spec, kind, headless, &path, errors);
    ports(spec, &path.field("ports"), errors);
    labels::labels(spec, &path, "selector", errors);
    errors.one_of(&path.field("sessionAffinity"), spec.text("sessionAffinity"), &["ClientIP", "None"]);
    affinity(spec, &path.field("sessionAffinityConfig"), errors);
    if kind != "ExternalName" {
        cluster_addresses(spec, was, errors);
    }
    let list = path.field("externalIPs");
    for (index, text) in texts(spec.list("externalIPs")).enumerate() {
        let before = errors.len();
        let known = was.map(|was| was.list("externalIPs")).unwrap_or_default();
        address::address(&list.index(index), text, texts(known), errors);
        if errors.len() == before {
            address::endpoint(&list.index(index), text, false, errors);
        }
    }
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    errors.one_of(&path.field("type"), spec.text("type"), &kinds);
    port_numbers(spec, kind, &path.field("ports"), errors);
    source_ranges(object, old, errors);
    let allocate = "allocateLoadBalancerNodePorts";
    if spec.has(allocate) && kind != "LoadBalancer" {
        errors.forbidden(&path.field(allocate), "may only be used when `type` is 'LoadBalancer'");
    } else if !spec.has(allocate) && kind == "LoadBalancer" {
        errors.required(&Path::root(allocate), "");
    }
    balancer_class(spec, kind, &path, errors);
    traffic(object, errors);
}

fn by_kind(spec: &Value, kind: &str, headless: bool, path: &Path<'_>, errors: &mut Errors) {
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.invalid(&path.field("clusterIPs").index(0), "None", why);
        }
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies"] {
                if spec.count(key) > 0 {
                    errors.forbidden(&path.field(key), "may not be set for ExternalName services");
                }
            }
            if spec.has("ipFamilyPolicy") {
                errors.forbidden(&path.field("ipFamilyPolicy"), "may not be set for ExternalName services");
            }
            let name = spec.text("externalName");
            errors.name(
                &path.field("externalName"),
                name.strip_suffix('.').unwrap_or(name),
                form::dns_subdomain,
            );
        }
        _ => {}
    }
}

fn ports(spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    let (ports, mut names) = (spec.list("ports"), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let (path, name) = (list.index(index), port.text("name"));
        let field = path.field("name");
        if name.is_empty() && ports.len() > 1 {
            errors.required(&field, "");
        } else if !name.is_empty() {
            errors.faults(&field, name, form::dns_label(name));
            if !names.insert(name) {
                errors.duplicate(&field, name);
            }
        }
        errors.port(&path.field("port"), port.int("port"));
        errors.one_of(&path.field("protocol"), port.text("protocol"), &["SCTP", "TCP", "UDP"]);
        pod::port(port.get("targetPort").unwrap_or(&Value::Null), &path.field("targetPort"), errors);
        if let Some(protocol) = port.some_text("appProtocol") {
            labels::name(protocol, &path.field("appProtocol"), errors);
        }
    }
}

fn port_numbers(spec: &Value, kind: &str, list: &Path<'_>, errors: &mut Errors) {
    let ports = || spec.list("ports").iter().enumerate();
    for (index, _) in ports().filter(|(_, port)| kind == "ClusterIP" && port.int("nodePort") != 0) {
        let why = "may not be used when `type` is 'ClusterIP'";
        errors.forbidden(&list.index(index).field("nodePort"), why);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports().filter(|(_, port)| port.int("nodePort") != 0) {
        if !seen.insert((port.text("protocol"), port.int("nodePort"))) {
            errors.duplicate(&list.index(index).field("nodePort"), port.int("nodePort"));
        }
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports() {
        let (protocol, number) = (port.text("protocol"), port.int("port"));
        if !seen.insert((protocol, number)) {
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":{protocol},\"AppProtocol\":null,\"Port\":{number},\"TargetPort\":0,\"NodePort\":0}}",
                protocol = json_text(protocol)
            );
            errors.fault(FieldError::duplicate_value(list.index(index).to_string(), shown));
        }
    }
}

fn affinity(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const WHY: &str = "when session affinity type is ClientIP";
    let config = spec.get_some("sessionAffinityConfig");
    match spec.text("sessionAffinity") {
        "None" if config.is_some() => {
            errors.forbidden(path, "must not be set when session affinity is None");
        }
        "ClientIP" => {
            let client = config.and_then(|config| config.get_some("clientIP"));
            let field = path.field("clientIP");
            match (config, client, client.and_then(|client| client.some_int("timeoutSeconds"))) {
                (None, ..) => errors.required(path, WHY),
                (_, None, _) => errors.required(&field, WHY),
                (_, _, None) => errors.required(&field.field("timeoutSeconds"), WHY),
                (_, _, Some(seconds)) if !(1..=AFFINITY_SECONDS_MAX).contains(&seconds) => {
                    let why = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                    errors.invalid(&field.field("timeoutSeconds"), seconds, why);
                }
                _ => {}
            }
        }
        _ => {}
    }
}

/// Checks addresses and families of a service that has them (`ValidateServiceClusterIPsRelatedFields`).
pub(crate) fn cluster_addresses(spec: &Value, was: Option<&Value>, errors: &mut Errors) {
    const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    let path = Path::root("spec");
    let (field, families_at) = (path.field("clusterIPs"), path.field("ipFamilies"));
    let (one, list, shown) = (spec.text("clusterIP"), spec.list("clusterIPs"), spec.get("clusterIPs"));
    if !one.is_empty() {
        if list.is_empty() {
            errors.required(&field, "");
        } else if list[0] != one {
            errors.invalid(&field, shown, "first value must match `clusterIP`");
        }
    } else if !list.is_empty() {
        errors.invalid(&field, shown, "must be empty when `clusterIP` is not specified");
    }
    let mut seen = BTreeSet::new();
    for (index, family) in texts(spec.list("ipFamilies")).enumerate() {
        if !["IPv4", "IPv6"].contains(&family) {
            errors.unsupported(&families_at.index(index), family, &["IPv4", "IPv6"]);
        }
        if !seen.insert(family) {
            errors.duplicate(&families_at.index(index), family);
        }
    }
    errors.optional_one_of(spec, &path, "ipFamilyPolicy", &POLICIES);
    let mut broken = false;
    for (index, text) in texts(list).enumerate() {
        if index == 0 && text == "None" {
            if list.len() > 1 {
                broken = true;
                errors.invalid(&field, shown, "'None' must be the first and only value");
            }
            continue;
        }
        let known = was.map(|was| was.list("clusterIPs")).unwrap_or_default();
        let before = errors.len();
        address::address(&field.index(index), text, texts(known), errors);
        broken |= errors.len() > before;
    }
    if list.len() > 2 {
        errors.invalid(&field, shown, "may only hold up to 2 values");
    }
    if broken {
        return;
    }
    if list.len() > 1 && address::is_dual_stack(texts(list)) != Ok(true) {
        errors.invalid(&field, shown, "may specify no more than one IP for each IP family");
    }
    if is_headless(spec) {
        return;
    }
    for (index, (text, family)) in texts(list).zip(texts(spec.list("ipFamilies"))).enumerate() {
        let six = address::parse_lenient(text).is_some_and(|address| address::canonical(address).is_ipv6());
        if (family == "IPv4" && six) || (family == "IPv6" && !six) {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(&field.index(index), text, why);
        }
    }
}

fn source_ranges(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    const WHY: &str = "may only be used when `type` is 'LoadBalancer'";
    let (spec, balanced) = (&object["spec"], kind(object) == "LoadBalancer");
    let ranges = spec.list("loadBalancerSourceRanges");
    let annotation =
        |object: &'_ Value| object["metadata"]["annotations"].some_text(RANGES).map(str::to_owned);
    if !ranges.is_empty() {
        let path = Path::root("spec.LoadBalancerSourceRanges");
        if !balanced {
            errors.forbidden(&path, WHY);
        }
        let known = old.map(|old| old["spec"].list("loadBalancerSourceRanges")).unwrap_or_default();
        for (index, range) in texts(ranges).enumerate() {
            address::network(&path.index(index), range.trim(), texts(known).map(str::trim), errors);
        }
    } else if let Some(text) = annotation(object) {
        let path = Path::root("metadata.annotations");
        let path = path.key(RANGES);
        if !balanced {
            errors.forbidden(&path, WHY);
        }
        let unchanged = old.and_then(annotation).as_deref() == Some(text.as_str());
        for range in text.trim().split(',').filter(|_| !unchanged && !text.trim().is_empty()) {
            address::network(&path, range.trim(), std::iter::empty(), errors);
        }
    }
}

fn balancer_class(spec: &Value, kind: &str, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("loadBalancerClass");
    match spec.some_text("loadBalancerClass") {
        Some(class) if kind == "LoadBalancer" => labels::name(class, &field, errors),
        Some(_) => errors.forbidden(&field, "may only be used when `type` is 'LoadBalancer'"),
        None => {}
    }
}

fn traffic(object: &Value, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let (policy, field) = (spec.text("externalTrafficPolicy"), path.field("externalTrafficPolicy"));
    if is_external(object) {
        errors.one_of(&field, policy, &["Cluster", "Local"]);
    } else if !policy.is_empty() {
        errors.invalid(&field, policy, "may only be set for externally-accessible services");
    }
    let (port, field) = (spec.int("healthCheckNodePort"), path.field("healthCheckNodePort"));
    match (needs_health_check(object), port) {
        (true, 0) => errors.required(&field, ""),
        (true, port) => errors.port(&field, port),
        (false, 0) => {}
        (false, port) => {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid(&field, port, why);
        }
    }
    let inside = "internalTrafficPolicy";
    if !spec.has(inside) && ["ClusterIP", "NodePort", "LoadBalancer"].contains(&kind(object)) {
        errors.required(&path.field(inside), "");
    }
    errors.optional_one_of(spec, &path, inside, &["Cluster", "Local"]);
    errors.optional_one_of(
        spec,
        &path,
        "trafficDistribution",
        &["PreferClose", "PreferSameZone", "PreferSameNode"],
    );
}

/// Checks what a change does to what was handed out.
pub(crate) fn validate_update(object: &Value, old: &Value, errors: &mut Errors) {
    let (spec, was) = (&object["spec"], &old["spec"]);
    if kind(object) != "ExternalName" && kind(old) != "ExternalName" {
        let (headless, was_headless) = (is_headless(spec), is_headless(was));
        if !headless || !was_headless {
            kept(spec, was, "clusterIPs", "clusterIP", errors);
        }
        if !headless && !was_headless {
            kept(spec, was, "ipFamilies", "ipFamily", errors);
        }
    }
    let path = Path::root("spec");
    if kind(object) == "LoadBalancer" && kind(old) == "LoadBalancer" {
        let key = "loadBalancerClass";
        if spec.some_text(key) != was.some_text(key) {
            errors.invalid(&path.field(key), spec.get(key), "may not change once set");
        }
    }
    balancer_class(spec, kind(object), &path, errors);
    if needs_health_check(object) && needs_health_check(old) {
        let key = "healthCheckNodePort";
        if spec.int(key) != was.int(key) {
            errors.forbidden(&path.field(key), "field is immutable");
        }
    }
}

/// The first entry of a list stays; a second one may come and go.
fn kept(spec: &Value, was: &Value, key: &str, word: &str, errors: &mut Errors) {
    let path = Path::root("spec");
    let field = path.field(key);
    let (new, old) = (spec.list(key), was.list(key));
    let addresses = key == "clusterIPs";
    let shown = spec.get(key);
    // Upstream shows the addresses even where the families are wrong.
    let shown_first = spec.get("clusterIPs");
    let first_changed = !old.is_empty() && !new.is_empty() && new[0] != old[0];
    if new.len() == old.len() {
        for (index, _) in new.iter().zip(old).enumerate().filter(|(_, (new, old))| new != old) {
            errors.invalid(&field.index(if addresses { index } else { 0 }), shown, "may not change once set");
        }
        return;
    }
    if old.len() > new.len() {
        if spec.count("clusterIPs") == 0 {
            errors.invalid(&field.index(0), shown, format_args!("primary {word} can not be unset"));
        }
        if first_changed {
            errors.invalid(&field.index(0), shown_first, "may not change once set");
        }
        if new.len() == 1 && spec.text("ipFamilyPolicy") != "SingleStack" {
            let why = format!("must be set to 'SingleStack' when releasing the secondary {word}");
            errors.invalid(&path.field("ipFamilyPolicy"), spec.get("ipFamilyPolicy"), why);
        }
    } else if first_changed {
        errors.invalid(&field.index(0), shown_first, "may not change once set");
    }
}

/// Checks where a load balancer can be reached.
pub(crate) fn validate_balancer(
    status: &Value,
    was: &Value,
    balanced: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let list = path.field("ingress");
    if !balanced && status.count("ingress") > 0 {
        errors.forbidden(&list, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    for (index, ingress) in status.list("ingress").iter().enumerate() {
        let (item, ip, name) = (list.index(index), ingress.text("ip"), ingress.text("hostname"));
        let mode_at = item.field("ipMode");
        if !ip.is_empty() {
            let known = was.list("ingress").iter().map(|old| old.text("ip")).filter(|ip| !ip.is_empty());
            address::address(&item.field("ip"), ip, known, errors);
        }
        match ingress.some_text("ipMode") {
            None if !ip.is_empty() => errors.required(&mode_at, "must be specified when `ip` is set"),
            None => {}
            Some(_) if ip.is_empty() => {
                errors.forbidden(&mode_at, "may not be specified when `ip` is not set")
            }
            Some(_) => errors.optional_one_of(ingress, &item, "ipMode", &["Proxy", "VIP"]),
        }
        if !name.is_empty() {
            errors.faults(&item.field("hostname"), name, form::dns_subdomain(name));
            if address::parse_lenient(name).is_some() {
                errors.invalid(&item.field("hostname"), name, "must be a DNS name, not an IP address");
            }
        }
    }
}
