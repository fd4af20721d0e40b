//! Network policies.

use std::net::IpAddr;

use kschema::{error::FieldError, fields::child, strategy::Strategy};
use serde_json::{Value, json};

use crate::check::{Look, Path, Report, address, form, labels, texts};

type Errors = Vec<FieldError>;

/// The strategy of `networkpolicies`.
#[derive(Debug)]
pub(crate) struct NetworkPolicies;

/// Where the rules of each direction stand, and where those name their peers.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

/// What a change may keep although it is not valid any more.
struct Lax<'a> {
    selectors: bool,
    networks: Vec<&'a str>,
}

fn port(port: &Value, path: &Path<'_>, errors: &mut Errors) {
    errors.optional_one_of(port, path, "protocol", &["TCP", "UDP", "SCTP"]);
    let (field, end_field) = (path.field("port"), path.field("endPort"));
    let end = port.some_int("endPort");
    match port.get_some("port") {
        Some(Value::String(name)) => {
            if let Some(end) = end {
                errors.invalid(&end_field, end, "may not be specified when `port` is non-numeric");
            }
            errors.faults(&field, name, form::port_name(name));
        }
        Some(number) => {
            let number = number.as_i64().unwrap_or_default();
            errors.port(&field, number);
            if let Some(end) = end {
                if end < number {
                    errors.invalid(&end_field, number, "must be greater than or equal to `port`");
                }
                errors.port(&end_field, end);
            }
        }
        None => {
            if let Some(end) = end {
                errors.invalid(&end_field, end, "may not be specified when `port` is not specified");
            }
        }
    }
}

fn block(block: &Value, lax: &Lax<'_>, path: &Path<'_>, errors: &mut Errors) {
    let cidr = block.text("cidr");
    if cidr.is_empty() {
        errors.required(&path.field("cidr"), "");
        return;
    }
    let known = || lax.networks.iter().copied();
    address::network(&path.field("cidr"), cidr, known(), errors);
    let Some((all, length)) = address::parse_network_lenient(cidr) else {
        return;
    };
    let all = address::masked(all, length);
    let list = path.field("except");
    for (index, except) in texts(block.list("except")).enumerate() {
        let field = list.index(index);
        address::network(&field, except, known(), errors);
        if let Some((part, part_length)) = address::parse_network_lenient(except) {
            let within =
                same_family(all, part) && length < part_length && address::masked(part, length) == all;
            if !within {
                errors.invalid(&field, except, "must be a strict subset of `cidr`");
            }
        }
    }
}

const fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

fn peer(peer: &Value, lax: &Lax<'_>, path: &Path<'_>, errors: &mut Errors) {
    let selectors = ["podSelector", "namespaceSelector"].map(|key| (key, peer.get_some(key)));
    for (key, selector) in selectors {
        labels::selector(selector, &path.field(key), lax.selectors, errors);
    }
    let selected = selectors.iter().any(|(_, selector)| selector.is_some());
    match peer.get_some("ipBlock") {
        Some(found) => {
            block(found, lax, &path.field("ipBlock"), errors);
            if selected {
                errors.forbidden(path, "may not specify both ipBlock and another peer");
            }
        }
        None if !selected => errors.required(path, "must specify a peer"),
        None => {}
    }
}

fn validate(object: &Value, lax: &Lax<'_>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    labels::selector(spec.get_some("podSelector"), &path.field("podSelector"), lax.selectors, errors);
    for (direction, peers) in DIRECTIONS {
        let list = path.field(direction);
        for (index, rule) in spec.list(direction).iter().enumerate() {
            let item = list.index(index);
            let ports = item.field("ports");
            for (index, one) in rule.list("ports").iter().enumerate() {
                port(one, &ports.index(index), errors);
            }
            let field = item.field(peers);
            for (index, one) in rule.list(peers).iter().enumerate() {
                peer(one, lax, &field.index(index), errors);
            }
        }
    }
    let kinds = ["Ingress", "Egress"];
    let field = path.field("policyTypes");
    if spec.count("policyTypes") > kinds.len() {
        errors.invalid(&field, spec.get_some("policyTypes"), "may not specify more than two policyTypes");
        return;
    }
    for (index, kind) in texts(spec.list("policyTypes")).enumerate() {
        if !kinds.contains(&kind) {
            errors.unsupported(&field.index(index), kind, &kinds);
        }
    }
}

/// The blocks of a policy, and where they stand.
fn each_block<'a>(object: &'a Value, visit: &mut dyn FnMut(&'a Value, &Path<'_>)) {
    let path = Path::root("spec");
    for (direction, peers) in DIRECTIONS {
        let list = path.field(direction);
        for (index, rule) in object["spec"].list(direction).iter().enumerate() {
            let item = list.index(index);
            let field = item.field(peers);
            for (index, peer) in rule.list(peers).iter().enumerate() {
                if let Some(block) = peer.get_some("ipBlock") {
                    visit(block, &field.index(index).field("ipBlock"));
                }
            }
        }
    }
}

impl Strategy for NetworkPolicies {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        if spec.count("policyTypes") == 0 {
            let two = spec.count("egress") > 0;
            spec["policyTypes"] = if two { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, &Lax { selectors: false, networks: Vec::new() }, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let mut networks = Vec::new();
        each_block(old, &mut |block, _| {
            networks.push(block.text("cidr"));
            networks.extend(texts(block.list("except")));
        });
        let selectors = labels::is_faulty(old["spec"].get_some("podSelector"));
        validate(object, &Lax { selectors, networks }, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        each_block(object, &mut |block, path| {
            address::network_warnings(&path.field("cidr"), block.text("cidr"), &mut out);
            let list = path.field("except");
            for (index, except) in texts(block.list("except")).enumerate() {
                address::network_warnings(&list.index(index), except, &mut out);
            }
        });
        out
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
