//! The specification of a pod, wherever it stands: in a pod or in a template.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use kschema::{
    error::FieldError,
    fields::{items_mut, set_default},
    strategy::NameRule,
};

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// Defaults that depend on other fields.
pub(crate) fn default(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    let host_network = spec["hostNetwork"] == true;
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, list) {
            let image = container["image"].as_str().unwrap_or_default();
            let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
            set_default(container, "imagePullPolicy", policy);
            if host_network {
                for port in items_mut(container, "ports") {
                    let number = port["containerPort"].clone();
                    set_default(port, "hostPort", number);
                }
            }
        }
    }
    for volume in items_mut(spec, "volumes") {
        // A volume that names no source is an empty directory.
        if volume.as_object().is_some_and(|map| map.len() == 1 && map.contains_key("name")) {
            volume["emptyDir"] = json!({});
        }
    }
    // `serviceAccount` is the old name of `serviceAccountName`; both are always written.
    let account = ["serviceAccountName", "serviceAccount"].iter().find_map(|key| spec.get(key).cloned());
    if let Some(account) = account {
        spec["serviceAccountName"] = account.clone();
        spec["serviceAccount"] = account;
    }
}

/// Whether an image names the tag `latest`, or neither tag nor digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// Checks the specification at `path`.
pub(crate) fn validate(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let restart = ["Always", "OnFailure", "Never"];
    kschema::fields::one_of_at(spec, "restartPolicy", path, &restart, errors);
    kschema::fields::one_of_at(
        spec,
        "dnsPolicy",
        path,
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        let field = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(
            field,
            &spec["terminationGracePeriodSeconds"],
            "must be greater than or equal to 0",
        ));
    }
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64().filter(|seconds| *seconds < 1) {
        let field = format!("{path}.activeDeadlineSeconds");
        errors.push(FieldError::invalid(field, seconds, "must be between 1 and 2147483647, inclusive"));
    }
    let volumes = validate_volumes(spec, path, errors);
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = BTreeSet::new();
    for list in CONTAINER_LISTS {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            if let Some(name) = container["name"].as_str().filter(|name| !name.is_empty())
                && !names.insert(name)
            {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            validate_container(container, &path, &volumes, errors);
        }
    }
}

fn validate_volumes<'a>(spec: &'a Value, path: &str, errors: &mut Vec<FieldError>) -> BTreeSet<&'a str> {
    let mut volumes = BTreeSet::new();
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{path}.volumes[{index}].name");
        let name = volume["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            errors.push(FieldError::required(field, ""));
        } else if let Some(fault) = NameRule::Label.fault(name, false) {
            errors.push(FieldError::invalid_text(field, name, fault));
        } else if !volumes.insert(name) {
            errors.push(FieldError::duplicate(field, name));
        }
        if volume.as_object().is_some_and(|map| map.len() > 2) {
            let second = volume
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key)
                .filter(|key| *key != "name")
                .nth(1);
            let field = format!("{path}.volumes[{index}].{}", second.map_or("", String::as_str));
            errors.push(FieldError::forbidden(field, "may not specify more than 1 volume type"));
        }
    }
    volumes
}

fn validate_container(container: &Value, path: &str, volumes: &BTreeSet<&str>, errors: &mut Vec<FieldError>) {
    let name = container["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else if let Some(fault) = NameRule::Label.fault(name, false) {
        errors.push(FieldError::invalid_text(format!("{path}.name"), name, fault));
    }
    let image = container["image"].as_str().unwrap_or_default();
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid_text(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    kschema::fields::one_of_at(
        container,
        "imagePullPolicy",
        path,
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    kschema::fields::one_of_at(
        container,
        "terminationMessagePolicy",
        path,
        &["File", "FallbackToLogsOnError"],
        errors,
    );
    for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        validate_port(port, &format!("{path}.ports[{index}]"), errors);
    }
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        if variable["name"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required(format!("{path}.env[{index}].name"), ""));
        }
        let both = variable["value"].as_str().is_some_and(|value| !value.is_empty())
            && variable["valueFrom"].is_object();
        if both {
            let field = format!("{path}.env[{index}].valueFrom");
            errors.push(FieldError::invalid_text(
                field,
                "",
                "may not be specified when `value` is not empty",
            ));
        }
    }
    let mut mounts = BTreeSet::new();
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let field = |name: &str| format!("{path}.volumeMounts[{index}].{name}");
        let volume = mount["name"].as_str().unwrap_or_default();
        if volume.is_empty() {
            errors.push(FieldError::required(field("name"), ""));
        } else if !volumes.contains(volume) {
            errors.push(FieldError::not_found(field("name"), volume));
        }
        match mount["mountPath"].as_str().unwrap_or_default() {
            "" => errors.push(FieldError::required(field("mountPath"), "")),
            target if !mounts.insert(target) => {
                errors.push(FieldError::invalid_text(field("mountPath"), target, "must be unique"));
            }
            _ => {}
        }
    }
    validate_resources(container, path, errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        validate_probe(&container[probe], &format!("{path}.{probe}"), errors);
    }
}

fn validate_port(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let range = "must be between 1 and 65535, inclusive";
    match port["containerPort"].as_i64() {
        None | Some(0) => errors.push(FieldError::required(format!("{path}.containerPort"), "")),
        Some(number) if !(1..=65_535).contains(&number) => {
            errors.push(FieldError::invalid(format!("{path}.containerPort"), number, range));
        }
        _ => {}
    }
    if let Some(number) = port["hostPort"].as_i64().filter(|number| !(0..=65_535).contains(number)) {
        errors.push(FieldError::invalid(format!("{path}.hostPort"), number, range));
    }
    kschema::fields::one_of_at(port, "protocol", path, &["SCTP", "TCP", "UDP"], errors);
}

fn validate_resources(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let resources = &container["resources"];
    let quantity = |value: &Value| value.as_str().and_then(|text| kcore::Quantity::parse(text).ok());
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            if quantity(value).is_some_and(|quantity| quantity.is_negative()) {
                let field = format!("{path}.resources.{list}[{name}]");
                errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let Some((request, limit)) = quantity(request).zip(quantity(&resources["limits"][name])) else {
            continue;
        };
        if request > limit {
            let field = format!("{path}.resources.requests");
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid_text(field, &request.to_string(), why));
        }
    }
}

fn validate_probe(probe: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(map) = probe.as_object() else {
        return;
    };
    let handlers =
        ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|kind| map.contains_key(**kind)).count();
    match handlers {
        0 => errors.push(FieldError::required(path, "must specify a handler type")),
        1 => {}
        _ => errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type")),
    }
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        kschema::fields::not_negative_at(probe, key, path, errors);
    }
    if !path.ends_with("readinessProbe") && probe["successThreshold"].as_i64().is_some_and(|count| count > 1)
    {
        errors.push(FieldError::invalid(
            format!("{path}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.2", false),
            ("a:5000/nginx", true),
            ("a:5000/n:1", false),
            ("n@sha256:0", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn faults_are_named_by_path() {
        let spec = json!({"containers": [{"name": "A_", "image": "", "ports": [{"containerPort": 70000}],
            "volumeMounts": [{"name": "x", "mountPath": ""}], "livenessProbe": {}}], "restartPolicy": "Sometimes"});
        let mut errors = Vec::new();
        validate(&spec, "spec", &mut errors);
        let fields: Vec<_> = errors.iter().map(FieldError::field).collect();
        assert_eq!(
            fields,
            [
                "spec.restartPolicy",
                "spec.containers[0].name",
                "spec.containers[0].image",
                "spec.containers[0].ports[0].containerPort",
                "spec.containers[0].volumeMounts[0].name",
                "spec.containers[0].volumeMounts[0].mountPath",
                "spec.containers[0].livenessProbe",
            ]
        );
    }
}
