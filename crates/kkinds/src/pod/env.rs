//! Environment variables, and the fields of a pod that they and files may hold.

use kschema::error::FieldError;
use serde_json::Value;

use crate::{
    check::{Look, Path, Report, form, labels, quantity},
    volume_source,
};

type Errors = Vec<FieldError>;

/// Which fields of a pod a variable may hold.
const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Which fields of a pod there are for the downward API at all.
const KNOWN_FIELDS: [&str; 15] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "spec.host",
];
/// Which amounts of a container may be asked for.
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// Units of memory and storage.
const BYTE_UNITS: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
const MORE_THAN_ONE: &str = "may not have more than one field specified at a time";

/// Checks `env` and `envFrom` of a container.
pub(crate) fn validate(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("env");
    for (index, variable) in container.list("env").iter().enumerate() {
        let path = list.index(index);
        let name = variable.text("name");
        errors.name(&path.field("name"), name, form::variable_name);
        if let Some(source) = variable.get_some("valueFrom") {
            value_from(source, !variable.text("value").is_empty(), &path.field("valueFrom"), errors);
        }
    }
    let list = path.field("envFrom");
    for (index, source) in container.list("envFrom").iter().enumerate() {
        let path = list.index(index);
        errors.optional_name(&path.field("prefix"), source.text("prefix"), form::variable_name);
        let mut sources = 0;
        for key in ["configMapRef", "secretRef"] {
            if let Some(reference) = source.get_some(key) {
                sources += 1;
                let at = path.field(key);
                errors.name(&at.field("name"), reference.text("name"), name_of_prefix);
            }
        }
        // Upstream reports these two at the list.
        if sources == 0 {
            errors.invalid(&list, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if sources > 1 {
            errors.invalid(&list, "", MORE_THAN_ONE);
        }
    }
}

/// Upstream checks these names as if more came after them: a trailing dash is fine.
fn name_of_prefix(name: &str) -> crate::check::Faults {
    match name.strip_suffix('-') {
        Some(stem) if !stem.is_empty() => {
            let cut = stem.char_indices().next_back().map_or(0, |(at, _)| at);
            form::dns_subdomain(&format!("{}a", &stem[..cut]))
        }
        _ => form::dns_subdomain(name),
    }
}

fn value_from(source: &Value, has_value: bool, path: &Path<'_>, errors: &mut Errors) {
    let mut sources = 0;
    if let Some(field) = source.get_some("fieldRef") {
        sources += 1;
        validate_field(field, &FIELDS, &path.field("fieldRef"), errors);
    }
    if let Some(resource) = source.get_some("resourceFieldRef") {
        sources += 1;
        validate_resource(resource, false, &path.field("resourceFieldRef"), errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(selector) = source.get_some(key) {
            sources += 1;
            let path = path.field(key);
            let name = selector.text("name");
            errors.faults(&path.field("name"), name, form::dns_subdomain(name));
            errors.name(&path.field("key"), selector.text("key"), form::config_key);
        }
    }
    if let Some(file) = source.get_some("fileKeyRef") {
        sources += 1;
        let path = path.field("fileKeyRef");
        errors.name(&path.field("key"), file.text("key"), form::variable_name);
        errors.name(&path.field("volumeName"), file.text("volumeName"), form::dns_label);
        errors.needs(file, &path, "path");
        volume_source::no_backsteps(file.text("path"), &path.field("path"), errors);
    }
    if sources == 0 {
        errors.invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
    } else if has_value {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(path, "", MORE_THAN_ONE);
    }
}

/// `metadata.labels['key']` taken apart.
fn subscript(field: &str) -> Option<(&str, &str)> {
    field.strip_suffix("']")?.split_once("['").filter(|(path, _)| !path.is_empty())
}

/// Checks a reference to a field of the pod.
pub(crate) fn validate_field(selector: &Value, supported: &[&str], path: &Path<'_>, errors: &mut Errors) {
    let (version, field) = (selector.text("apiVersion"), selector.text("fieldPath"));
    if version.is_empty() {
        errors.required(&path.field("apiVersion"), "");
        return;
    }
    if field.is_empty() {
        errors.required(&path.field("fieldPath"), "");
        return;
    }
    let parts = subscript(field);
    let fault = match parts {
        _ if version != "v1" => Some(format!("unsupported pod version: {version}")),
        Some(("metadata.annotations" | "metadata.labels", _)) => None,
        Some(_) => Some(format!("field label does not support subscript: {field}")),
        None if KNOWN_FIELDS.contains(&field) => None,
        None => Some(format!("field label not supported: {field}")),
    };
    if let Some(fault) = fault {
        errors.invalid(&path.field("fieldPath"), field, format_args!("error converting fieldPath: {fault}"));
        return;
    }
    match parts {
        Some(("metadata.annotations", key)) => labels::name(&key.to_lowercase(), path, errors),
        Some((_, key)) => labels::name(key, path, errors),
        None => {
            let field = if field == "spec.host" { "spec.nodeName" } else { field };
            if !supported.contains(&field) {
                errors.unsupported(&path.field("fieldPath"), field, supported);
            }
        }
    }
}

/// Checks a reference to an amount that a container asks for. `volume`: the container must be named.
pub(crate) fn validate_resource(selector: &Value, volume: bool, path: &Path<'_>, errors: &mut Errors) {
    let resource = selector.text("resource");
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if volume && selector.text("containerName").is_empty() {
        errors.required(&path.field("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.field("resource"), "");
    } else if !RESOURCES.contains(&resource) && !huge {
        errors.unsupported(&path.field("resource"), resource, &RESOURCES);
    }
    let Some(divisor) = selector.get_some("divisor").map(quantity::amount).filter(|amount| !amount.is_zero())
    else {
        return;
    };
    let divisor = divisor.to_string();
    let (units, words): (&[&str], _) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "1m and 1 are supported with the cpu resource"),
        "limits.memory" | "requests.memory" => (&BYTE_UNITS, "memory resource"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => {
            (&BYTE_UNITS, "local ephemeral storage resource")
        }
        _ if huge => (&BYTE_UNITS, "hugepages resource"),
        _ => return,
    };
    if !units.contains(&divisor.as_str()) {
        let words = if units.len() == 2 {
            format!("only divisor's values {words}")
        } else {
            format!("only divisor's values {} are supported with the {words}", units.join(", "))
        };
        errors.invalid(&path.field("divisor"), resource, words);
    }
}
