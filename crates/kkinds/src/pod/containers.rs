//! The containers of a pod: those that run, those that run first, and those that are added to look inside.

use std::collections::BTreeSet;

use kschema::error::FieldError;
use serde_json::Value;

use super::{env, mounts, probes, resources, security, spec::Scope};
use crate::check::{Look, Path, Report, form};

type Errors = Vec<FieldError>;

/// How many rules for restarting a container may have, and how many exit codes a rule (KEP-5307).
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// All containers of a specification with their lists' names and indexes, in the order in which upstream visits them.
pub(crate) fn all_containers(spec: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    lists.into_iter().flat_map(|list| {
        spec.list(list).iter().enumerate().map(move |(index, container)| (list, index, container))
    })
}

/// Checks the three lists.
pub(crate) fn validate(scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    let (spec, list) = (scope.spec, path.field("containers"));
    let containers = spec.list("containers");
    if containers.is_empty() {
        errors.required(&list, "");
    }
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = list.index(index);
        common(container, scope, &path, errors);
        unique_name(container, &mut names, &path, errors);
        probes::validate(container, scope, &path, errors);
        restart_policy(container, false, &path, errors);
    }
    host_ports_differ(containers, &list, errors);
    validate_init(scope, names.clone(), &path.field("initContainers"), errors);
    let ephemeral = spec.list("ephemeralContainers");
    if !ephemeral.is_empty() {
        names.extend(spec.list("initContainers").iter().map(|container| container.text("name")));
        validate_ephemeral(ephemeral, scope, names, &path.field("ephemeralContainers"), errors);
    }
}

fn unique_name<'a>(
    container: &'a Value,
    names: &mut BTreeSet<&'a str>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let name = container.text("name");
    if !names.insert(name) {
        errors.duplicate(&path.field("name"), name);
    }
}

fn validate_init<'a>(scope: &Scope<'a>, mut names: BTreeSet<&'a str>, list: &Path<'_>, errors: &mut Errors) {
    const ALONE: &str = "may not be set for init containers without restartPolicy=Always";
    for (index, container) in scope.spec.list("initContainers").iter().enumerate() {
        let path = list.index(index);
        common(container, scope, &path, errors);
        restart_policy(container, true, &path, errors);
        let name = container.text("name");
        if names.contains(name) {
            errors.duplicate(&path.field("name"), name);
        } else if !name.is_empty() {
            names.insert(name);
        }
        // Each alone: they run one after the other. Upstream gives them the first one's index.
        host_ports_differ(std::slice::from_ref(container), list, errors);
        let sidecar = container.text("restartPolicy") == "Always";
        if sidecar {
            probes::validate(container, scope, &path, errors);
        } else {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container.has(key) {
                    errors.forbidden(&path.field(key), ALONE);
                }
            }
        }
        if !sidecar && !scope.options.lax_init_resize {
            let policies = path.field("resizePolicy");
            for (index, policy) in container.list("resizePolicy").iter().enumerate() {
                if policy.text("restartPolicy") == "RestartContainer" {
                    let field = policies.index(index);
                    let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                    errors.invalid(&field.field("restartPolicy"), "RestartContainer", why);
                }
            }
        }
    }
}

fn validate_ephemeral<'a>(
    containers: &'a [Value],
    scope: &Scope<'a>,
    mut names: BTreeSet<&'a str>,
    list: &Path<'_>,
    errors: &mut Errors,
) {
    const NOT_FOR_THESE: [&str; 8] = [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ];
    const WHY: &str = "cannot be set for an Ephemeral Container";
    let others = names.clone();
    for (index, container) in containers.iter().enumerate() {
        let path = list.index(index);
        common(container, scope, &path, errors);
        image_whitespace(container, &path, errors);
        unique_name(container, &mut names, &path, errors);
        let target = container.text("targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&path.field("targetContainerName"), target);
        }
        for key in NOT_FOR_THESE.into_iter().chain(["lifecycle"]) {
            let given = match key {
                "resources" => container.get("resources").is_some_and(|all| {
                    ["limits", "requests", "claims"].iter().any(|kind| all.count(kind) > 0)
                }),
                "ports" | "resizePolicy" | "restartPolicyRules" => container.count(key) > 0,
                _ => container.has(key),
            };
            if given {
                errors.forbidden(&path.field(key), WHY);
            }
        }
        let mounts = path.field("volumeMounts");
        for (index, mount) in container.list("volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !mount.text(key).is_empty() {
                    errors.forbidden(&mounts.index(index).field(key), WHY);
                }
            }
        }
    }
}

/// What holds for all three kinds (`validateContainerCommon`).
fn common(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    const POLICIES: [&str; 2] = ["File", "FallbackToLogsOnError"];
    errors.name(&path.field("name"), container.text("name"), form::dns_label);
    errors.needs(container, path, "image");
    let policy = container.text("terminationMessagePolicy");
    errors.one_of(&path.field("terminationMessagePolicy"), policy, &POLICIES);
    ports(container, &path.field("ports"), errors);
    env::validate(container, path, errors);
    mounts::validate(container, scope, path, errors);
    let policy = container.text("imagePullPolicy");
    errors.one_of(&path.field("imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    resources::validate_container(container, scope, path, errors);
    if let Some(context) = container.get_some("securityContext") {
        security::validate_container(context, scope, &path.field("securityContext"), errors);
    }
}

fn ports(container: &Value, list: &Path<'_>, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, port) in container.list("ports").iter().enumerate() {
        let path = list.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            let faults = form::port_name(name);
            if faults.is_empty() && !names.insert(name) {
                errors.duplicate(&path.field("name"), name);
            }
            errors.faults(&path.field("name"), name, faults);
        }
        match port.int("containerPort") {
            0 => errors.required(&path.field("containerPort"), ""),
            number => errors.port(&path.field("containerPort"), number),
        }
        if port.int("hostPort") != 0 {
            errors.port(&path.field("hostPort"), port.int("hostPort"));
        }
        errors.one_of(&path.field("protocol"), port.text("protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

/// A port of the host is given out once for each protocol and address.
fn host_ports_differ(containers: &[Value], list: &Path<'_>, errors: &mut Errors) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let item = list.index(index);
        let ports = item.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let number = port.int("hostPort");
            let key = (port.text("protocol"), port.text("hostIP"), number);
            if number != 0 && !taken.insert(key) {
                let shown = format!("{}/{}/{number}", key.0, key.1);
                errors.duplicate(&ports.index(index).field("hostPort"), shown);
            }
        }
    }
}

/// What only holds for pods, as templates were never checked for it.
pub(crate) fn image_whitespace(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    let image = container.text("image");
    if image.trim() != image {
        errors.invalid(&path.field("image"), image, "must not have leading or trailing whitespace");
    }
}

fn restart_policy(container: &Value, init: bool, path: &Path<'_>, errors: &mut Errors) {
    let rules = container.list("restartPolicyRules");
    match container.some_text("restartPolicy") {
        None if rules.is_empty() => return,
        None => {
            let why = "must specify restartPolicy when restart rules are used";
            errors.required(&path.field("restartPolicy"), why);
            if init {
                return;
            }
        }
        Some(policy) if !["Always", "Never", "OnFailure"].contains(&policy) => {
            errors.unsupported(&path.field("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
        }
        Some(_) => {}
    }
    let list = path.field("restartPolicyRules");
    if rules.len() > RESTART_RULES_MAX {
        errors.too_many(&list, rules.len(), RESTART_RULES_MAX);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = list.index(index);
        let action = rule.text("action");
        if !["Restart", "RestartAllContainers"].contains(&action) {
            errors.unsupported(&path.field("action"), action, &["Restart", "RestartAllContainers"]);
        }
        let field = path.field("exitCodes");
        let Some(codes) = rule.get_some("exitCodes") else {
            errors.required(&field, "must be specified");
            continue;
        };
        let operator = codes.text("operator");
        if !["In", "NotIn"].contains(&operator) {
            errors.unsupported(&field.field("operator"), operator, &["In", "NotIn"]);
        }
        if codes.count("values") > EXIT_CODES_MAX {
            errors.too_many(&field.field("values"), codes.count("values"), EXIT_CODES_MAX);
        }
    }
}
