//! The specification of a pod, wherever it stands: in a pod or in a template (`ValidatePodSpec`).

use kschema::error::FieldError;
use serde_json::Value;

use super::{
    affinity, claims, containers, dns,
    options::Options,
    resources, security, spread, tolerations,
    volumes::{self, Volumes},
    windows,
};
use crate::check::{Look, Path, Report, form, labels};

/// What the parts of a specification need to know of the whole.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) spec: &'a Value,
    pub(crate) options: Options,
    /// The volumes that are valid, by name.
    pub(crate) volumes: Volumes<'a>,
    pub(crate) grace: Option<i64>,
    /// Whether the pod runs in the host's user namespace.
    pub(crate) host_users: bool,
}

impl<'a> Scope<'a> {
    /// The operating system that the pod is for, if it says so.
    pub(crate) fn os(&self) -> Option<&'a str> {
        self.spec.get_some("os").map(|os| os.text("name"))
    }
}

/// Checks the specification at `path`. `meta`: the pod's metadata; nothing for a template.
pub(crate) fn validate(
    spec: &Value,
    meta: Option<&Value>,
    path: &Path<'_>,
    options: Options,
    errors: &mut Vec<FieldError>,
) {
    let grace = spec.some_int("terminationGracePeriodSeconds");
    if grace.is_none() {
        errors.required(&path.field("terminationGracePeriodSeconds"), "");
    }
    let host_users = spec.some_flag("hostUsers").unwrap_or(true);
    let volumes = volumes::validate(spec, meta, &path.field("volumes"), options, errors);
    let scope = Scope { spec, options, volumes, grace, host_users };
    claims::validate(spec.list("resourceClaims"), meta, &path.field("resourceClaims"), errors);
    containers::validate(&scope, path, errors);
    resources::validate_pod(&scope, path, errors);
    host_ports(&scope, path, errors);
    errors.one_of(
        &path.field("restartPolicy"),
        spec.text("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    errors.one_of(&path.field("dnsPolicy"), spec.text("dnsPolicy"), &policies);
    labels::labels(spec, path, "nodeSelector", errors);
    security::validate_pod(&scope, path, errors);
    affinity::validate(spec, options, &path.field("affinity"), errors);
    dns::validate(spec, &path.field("dnsConfig"), errors);
    gates(spec, path, errors);
    spread::validate(spec, options, &path.field("topologySpreadConstraints"), errors);
    windows::validate_host_process(spec, path, errors);
    security::validate_host_users(&scope, path, errors);
    host_name(spec, path, errors);
    names(spec, options, path, errors);
    if let Some(overhead) = spec.get_some("overhead") {
        resources::validate_overhead(overhead, options, &path.field("overhead"), errors);
    }
    os(&scope, path, errors);
    scheduling_group(spec, path, errors);
    volumes::validate_file_keys(spec, path, errors);
}

/// Names, times and lists that stand for themselves.
fn names(spec: &Value, options: Options, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for key in ["serviceAccountName", "nodeName"] {
        errors.optional_name(&path.field(key), spec.text(key), form::dns_subdomain);
    }
    errors.in_range(spec, path, "activeDeadlineSeconds", 1, i64::from(i32::MAX));
    errors.optional_name(&path.field("hostname"), spec.text("hostname"), form::dns_label);
    errors.optional_name(&path.field("subdomain"), spec.text("subdomain"), form::dns_label);
    tolerations::validate(spec.list("tolerations"), options, &path.field("tolerations"), errors);
    dns::validate_host_aliases(spec.list("hostAliases"), &path.field("hostAliases"), errors);
    errors.optional_name(
        &path.field("priorityClassName"),
        spec.text("priorityClassName"),
        form::dns_subdomain,
    );
    if let Some(class) = spec.some_text("runtimeClassName") {
        errors.faults(&path.field("runtimeClassName"), class, form::dns_subdomain(class));
    }
    if let Some(policy) = spec.some_text("preemptionPolicy") {
        errors.one_of(&path.field("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
}

/// On the host's network a container's port is the host's.
fn host_ports(scope: &Scope<'_>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if !scope.spec.flag("hostNetwork") {
        return;
    }
    let list = path.field("containers");
    for (index, container) in scope.spec.list("containers").iter().enumerate() {
        let item = list.index(index);
        let ports = item.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let host = port.int("hostPort");
            if (scope.options.pod || host != 0) && host != port.int("containerPort") {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&ports.index(index).field("hostPort"), host, why);
            }
        }
    }
}

fn gates(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let list = path.field("readinessGates");
    for (index, gate) in spec.list("readinessGates").iter().enumerate() {
        labels::name(gate.text("conditionType"), &list.index(index).field("conditionType"), errors);
    }
    let list = path.field("schedulingGates");
    let mut seen = std::collections::BTreeSet::new();
    for (index, gate) in spec.list("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        labels::name(name, &list.index(index), errors);
        if !seen.insert(name) {
            errors.duplicate(&list.index(index), name);
        }
    }
}

fn host_name(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let Some(name) = spec.some_text("hostnameOverride") else {
        return;
    };
    let field = path.field("hostnameOverride");
    if spec.flag("setHostnameAsFQDN") {
        errors.forbidden(&field, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.flag("hostNetwork") {
        errors.forbidden(&field, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errors.too_long(&field, 64);
    }
    errors.faults(&field, name, form::dns_subdomain(name));
}

fn os(scope: &Scope<'_>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let field = path.field("os");
    match scope.os() {
        None => {}
        Some("") => errors.required(&field.field("name"), ""),
        Some("linux") => windows::validate_linux(scope.spec, path, errors),
        Some("windows") => windows::validate(scope.spec, path, errors),
        Some(name) => errors.unsupported(&field, name, &["linux", "windows"]),
    }
}

fn scheduling_group(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if let Some(group) = spec.get_some("schedulingGroup") {
        let path = path.field("schedulingGroup");
        let field = path.field("podGroupName");
        match group.some_text("podGroupName") {
            None => errors.invalid(&field, None, "must specify one of: `podGroupName`"),
            Some(name) => errors.faults(&field, name, form::dns_subdomain(name)),
        }
    }
}
