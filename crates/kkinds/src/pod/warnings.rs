//! What is unusual about a pod or template that is valid (`pkg/api/pod/warnings.go`).

use kschema::quote::Quoted;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    annotations::{self, SECCOMP_CONTAINER, SECCOMP_POD},
    containers::all_containers,
    overlap,
};
use crate::{
    check::{Look, Path, address, form, quantity, texts},
    claim_spec::{self, fraction},
    node_labels,
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
const OLD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Adds the warnings about a pod (`root` is empty) or the template at `root`.
pub(crate) fn of_template(template: &Value, root: &Path<'_>, is_template: bool, out: &mut Vec<String>) {
    let (meta, spec) = (&template["metadata"], &template["spec"]);
    let path = root.field("spec");
    placement(spec, &path, out);
    let notes = root.field("metadata.annotations");
    let annotated = meta.get_some("annotations").unwrap_or(&Value::Null);
    for (key, words) in OLD_ANNOTATIONS.iter().filter(|(key, _)| annotated.has(key)) {
        out.push(format!("{}: {words}", notes.key(key)));
    }
    volumes(spec, &path, out);
    repeated(spec, &path, out);
    let overhead = path.field("overhead");
    fractions(spec.get("overhead"), &overhead, out);
    let own =
        |holder: &Value, key: &str| holder.get("securityContext").is_some_and(|context| context.has(key));
    if !own(spec, "seccompProfile") && annotated.has(SECCOMP_POD) {
        out.push(format!(
            "{}: non-functional in v1.27+; use the \"seccompProfile\" field instead",
            notes.key(SECCOMP_POD)
        ));
    }
    for (list, index, container) in all_containers(spec) {
        let list = path.field(list);
        let item = list.index(index);
        let key = format!("{SECCOMP_CONTAINER}{}", container.text("name"));
        if !own(container, "seccompProfile") && annotated.has(&key) {
            out.push(format!(
                "{}: non-functional in v1.27+; use the \"seccompProfile\" field instead",
                notes.key(&key)
            ));
        }
        app_armor(container, spec, annotated, is_template, &notes, out);
        let resources = item.field("resources");
        for name in ["memory", "ephemeral-storage"] {
            for kind in ["limits", "requests"] {
                let value = container
                    .get("resources")
                    .and_then(|all| all.get(kind))
                    .and_then(|all| all.get_some(name));
                if let Some(size) = value.map(quantity::amount).filter(quantity::is_fraction) {
                    out.push(fraction(&resources.field(kind).key(name), &size));
                }
            }
        }
        hidden_variables(container, &item.field("env"), out);
    }
    ports(spec, &path, out);
    if spec.int("terminationGracePeriodSeconds") < 0 {
        let field = path.field("terminationGracePeriodSeconds");
        out.push(format!("{field}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    pod_affinity(spec, &path, out);
    let servers = path.field("dnsConfig.nameservers");
    for (index, server) in texts(spec["dnsConfig"].list("nameservers")).enumerate() {
        address::warnings(&servers.index(index), server, out);
    }
    let aliases = path.field("hostAliases");
    for (index, alias) in spec.list("hostAliases").iter().enumerate() {
        address::warnings(&aliases.index(index).field("ip"), alias.text("ip"), out);
    }
}

fn placement(spec: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let field = path.field("nodeSelector");
    for (key, _) in spec.map("nodeSelector") {
        if let Some(words) = node_labels::deprecated(key) {
            out.push(format!("{}: {words}", field.key(key)));
        }
    }
    if let Some(node) = spec.get("affinity").and_then(|all| all.get_some("nodeAffinity")) {
        let base = path.field("affinity.nodeAffinity");
        let (required, preferred) = (base.field(REQUIRED), base.field(PREFERRED));
        let list = required.field("nodeSelectorTerms");
        for (index, term) in node[REQUIRED].list("nodeSelectorTerms").iter().enumerate() {
            node_term(term, false, &list.index(index), out);
        }
        for (index, term) in node.list(PREFERRED).iter().enumerate() {
            let item = preferred.index(index);
            node_term(&term["preference"], true, &item.field("preference"), out);
        }
    }
    let list = path.field("topologySpreadConstraints");
    for (index, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let (item, key) = (list.index(index), constraint.text("topologyKey"));
        if let Some(words) = node_labels::deprecated(key) {
            out.push(format!("{}: {key} is {words}", item.field("topologyKey")));
        }
        if !constraint.has("labelSelector") {
            out.push(format!("{}: {NO_SELECTOR}", item.field("labelSelector")));
        }
    }
}

/// The warnings about a term of a node selector.
pub(crate) fn node_term(term: &Value, values: bool, path: &Path<'_>, out: &mut Vec<String>) {
    let list = path.field("matchExpressions");
    for (index, expression) in term.list("matchExpressions").iter().enumerate() {
        let (item, key) = (list.index(index), expression.text("key"));
        if let Some(words) = node_labels::deprecated(key) {
            out.push(format!("{}: {key} is {words}", item.field("key")));
        }
        let field = item.field("values");
        for (index, value) in texts(expression.list("values")).enumerate().filter(|_| values) {
            for fault in form::label_value(value) {
                out.push(format!("{}: {value} is invalid, {fault}", field.index(index)));
            }
        }
    }
}

fn volumes(spec: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let list = path.field("volumes");
    for (index, volume) in spec.list("volumes").iter().enumerate() {
        let strange = |key: &str| key == "ephemeral" || OLD_VOLUMES.iter().any(|(old, ..)| *old == key);
        if !volume.as_object().is_some_and(|volume| volume.keys().any(|key| strange(key))) {
            continue;
        }
        let item = list.index(index);
        for (at, (key, shown, words)) in OLD_VOLUMES.iter().enumerate() {
            if volume.has(key) {
                out.push(format!("{}: {words}", item.field(shown)));
            }
            // Upstream's order: claims of ephemeral volumes stand between these.
            if at == 6
                && let Some(template) = volume["ephemeral"].get_some("volumeClaimTemplate")
            {
                claim_spec::warnings(
                    &template["spec"],
                    &item.field("ephemeral.volumeClaimTemplate.spec"),
                    out,
                );
            }
        }
    }
    overlap::warnings(spec.list("volumes"), out);
}

fn repeated(spec: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    for (list, key) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let (field, mut seen) = (path.field(list), BTreeSet::new());
        for (index, entry) in spec.list(list).iter().enumerate() {
            let value = entry.text(key);
            if !seen.insert(value) {
                out.push(format!(
                    "{}: duplicate {key} {value}",
                    field.index(index).field(key),
                    value = Quoted(value)
                ));
            }
        }
    }
    let field = path.field("imagePullSecrets");
    for (index, _) in
        spec.list("imagePullSecrets").iter().enumerate().filter(|(_, one)| one.text("name").is_empty())
    {
        out.push(format!("{}: invalid empty name \"\"", field.index(index).field("name")));
    }
}

fn fractions(amounts: Option<&Value>, path: &Path<'_>, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        let value = amounts.and_then(|amounts| amounts.get_some(name));
        if let Some(size) = value.map(quantity::amount).filter(quantity::is_fraction) {
            out.push(fraction(&path.key(name), &size));
        }
    }
}

/// In a template the annotation stays; in a pod it is copied into the field, and warned about if that says something new.
fn app_armor(
    container: &Value,
    spec: &Value,
    annotated: &Value,
    is_template: bool,
    notes: &Path<'_>,
    out: &mut Vec<String>,
) {
    let key = format!("{}{}", annotations::APP_ARMOR, container.text("name"));
    let Some(annotation) = annotated.some_text(&key) else {
        return;
    };
    let own = container.get("securityContext").and_then(|context| context.get_some("appArmorProfile"));
    let of_pod = spec.get("securityContext").and_then(|context| context.get_some("appArmorProfile"));
    let meant = annotations::app_armor_field(annotation);
    let windows = spec["os"].text("name") == "windows";
    let says_more = of_pod.is_none() || meant.as_ref() != of_pod;
    // The field of a pod has been written from the annotation already.
    let unsaid =
        if is_template { own.is_none() } else { !windows && (own.is_none() || own == meant.as_ref()) };
    if unsaid && says_more {
        out.push(format!(
            "{}: deprecated since v1.30; use the \"appArmorProfile\" field instead",
            notes.key(&key)
        ));
    }
}

fn hidden_variables(container: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, variable) in container.list("env").iter().enumerate() {
        let (name, value) = (variable.text("name"), variable.text("value"));
        if seen.insert(name) {
            continue;
        }
        // A variable may extend the one before it.
        let reference = format!("$({name})");
        if variable.has("valueFrom") || value == reference || !value.contains(&reference) {
            let field = path.index(index);
            out.push(format!(
                "{field}: hides previous definition of {name}, which may be dropped when using apply",
                name = Quoted(name)
            ));
        }
    }
}

fn ports(spec: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    // A single port can't be like another, and most pods have no more.
    let all = || all_containers(spec).flat_map(|(_, _, container)| container.list("ports"));
    if all().nth(1).is_none() && all().all(|port| port.text("hostIP").is_empty()) {
        return;
    }
    let mut by_number: BTreeMap<(i64, &str), Vec<(String, &Value)>> = BTreeMap::new();
    let mut by_name: BTreeMap<&str, String> = BTreeMap::new();
    let mut names = Vec::new();
    for (list, index, container) in all_containers(spec) {
        let list = path.field(list);
        let item = list.index(index);
        let ports = item.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let field = ports.index(index).to_string();
            let (ip, host) = (port.text("hostIP"), port.int("hostPort"));
            if !ip.is_empty() && host == 0 {
                let (name, number, protocol) =
                    (port.text("name"), port.int("containerPort"), port.text("protocol"));
                out.push(format!("{field}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{ip}}}"));
            }
            let others = by_number.entry((port.int("containerPort"), port.text("protocol"))).or_default();
            for (other, before) in others.iter() {
                let (other_ip, other_host) = (before.text("hostIP"), before.int("hostPort"));
                if ip == other_ip && host == other_host {
                    out.push(format!("{field}: duplicate port definition with {other}"));
                } else if host == 0 || other_host == 0 {
                    out.push(format!("{field}: overlapping port definition with {other}"));
                } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                    out.push(format!("{field}: dangerously ambiguous port definition with {other}"));
                }
            }
            let name = port.text("name");
            if let Some(other) = by_name.get(name) {
                names.push(format!("{field}: duplicate port name {name} with {other}, services and probes that select ports by name will use {other}", name = Quoted(name)));
            } else if !name.is_empty() {
                by_name.insert(name, field.clone());
            }
            others.push((field, port));
        }
    }
    out.append(&mut names);
}

fn pod_affinity(spec: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = spec.get("affinity").and_then(|all| all.get_some(kind)) else {
            continue;
        };
        let base = path.field("affinity");
        let base = base.field(kind);
        let list = base.field(REQUIRED);
        for (index, _) in
            pods.list(REQUIRED).iter().enumerate().filter(|(_, term)| !term.has("labelSelector"))
        {
            out.push(format!("{}: {NO_SELECTOR}", list.index(index).field("labelSelector")));
        }
        let list = base.field(PREFERRED);
        for (index, term) in pods.list(PREFERRED).iter().enumerate() {
            if !term["podAffinityTerm"].has("labelSelector") {
                out.push(format!(
                    "{}: {NO_SELECTOR}",
                    list.index(index).field("podAffinityTerm.labelSelector")
                ));
            }
        }
    }
}
