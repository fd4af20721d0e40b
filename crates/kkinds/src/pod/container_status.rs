//! What the status of a pod may say about its containers.

use std::collections::BTreeSet;

use kschema::error::FieldError;
use serde_json::Value;

use super::containers::all_containers;
use crate::check::{Look, Path, Report};

type Errors = Vec<FieldError>;

/// The longest message about a device's health, in bytes.
const HEALTH_MESSAGE_BYTES_MAX: usize = 1024;
/// The longest reference of a volume's image, in bytes.
const IMAGE_REFERENCE_BYTES_MAX: usize = 256;

/// A container that has ended may run again only if its policy says so.
pub(crate) fn validate_transitions(
    status: &Value,
    was: &Value,
    spec: &Value,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let restarts_all =
        all_containers(spec).filter(|(list, _, _)| *list != "ephemeralContainers").any(|(_, _, one)| {
            one.list("restartPolicyRules").iter().any(|r| r.text("action") == "RestartAllContainers")
        });
    for (list, containers) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", ""),
    ] {
        if restarts_all && !containers.is_empty() {
            continue;
        }
        let path = path.field(list);
        for (index, old) in was.list(list).iter().enumerate() {
            let Some(ended) = old.get("state").and_then(|state| state.get_some("terminated")) else {
                continue;
            };
            let name = old.text("name");
            let runs = |new: &&Value| new.text("name") == name && !new["state"].has("terminated");
            if status.list(list).iter().find(runs).is_none() {
                continue;
            }
            let container = spec.list(containers).iter().find(|one| one.text("name") == name);
            if !container.is_some_and(|one| may_restart(one, spec, ended.int("exitCode"))) {
                let why = "may not be transitioned to non-terminated state";
                errors.forbidden(&path.index(index).field("state"), why);
            }
        }
    }
}

/// Whether a container runs again after it ended with this code (KEP-5307).
fn may_restart(container: &Value, spec: &Value, code: i64) -> bool {
    let by = |policy: &str| match policy {
        "OnFailure" => code != 0,
        "Never" => false,
        _ => true,
    };
    let Some(policy) = container.some_text("restartPolicy") else {
        return by(spec.text("restartPolicy"));
    };
    let applies = |rule: &&Value| {
        let Some(codes) = rule.get_some("exitCodes") else {
            return false;
        };
        let listed = codes.list("values").iter().any(|value| value.as_i64() == Some(code));
        match codes.text("operator") {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    };
    let rule = container.list("restartPolicyRules").iter().find(applies);
    let restarts = rule.is_some_and(|rule| matches!(rule.text("action"), "Restart" | "RestartAllContainers"));
    restarts || by(policy)
}

/// Users, devices and volumes of the containers.
pub(crate) fn validate(status: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const LISTS: [(&str, &str); 3] = [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", ""),
    ];
    let os = spec.get_some("os").map_or("linux", |os| os.text("name"));
    for (list, _) in LISTS {
        let path = path.field(list);
        for (index, one) in status.list(list).iter().enumerate() {
            let item = path.index(index);
            if let Some(user) = one.get("user").and_then(|user| user.get_some("linux")) {
                linux_user(user, os, &item.field("user.linux"), errors);
            }
        }
    }
    for (list, containers) in LISTS {
        let path = path.field(list);
        for (index, one) in status.list(list).iter().enumerate() {
            let item = path.index(index);
            let field = item.field("allocatedResourcesStatus");
            if containers.is_empty() {
                if one.count("allocatedResourcesStatus") > 0 {
                    errors.forbidden(&field, "must not be specified in container status");
                }
                continue;
            }
            let container = spec.list(containers).iter().find(|other| other.text("name") == one.text("name"));
            for (index, resource) in one.list("allocatedResourcesStatus").iter().enumerate() {
                allocated(resource, container, &field.index(index), errors);
            }
        }
    }
    for (list, _) in LISTS {
        let path = path.field(list);
        for (index, one) in status.list(list).iter().enumerate() {
            image_volumes(one, &path.index(index), errors);
        }
    }
}

fn linux_user(user: &Value, os: &str, path: &Path<'_>, errors: &mut Errors) {
    match os {
        "windows" => errors.forbidden(path, "cannot be set for a windows pod"),
        "linux" => {
            for key in ["uid", "gid"] {
                errors.in_range(user, path, key, 0, i64::from(i32::MAX));
            }
            let list = path.field("supplementalGroups");
            for (index, group) in user.list("supplementalGroups").iter().enumerate() {
                let group = group.as_i64().unwrap_or_default();
                if !(0..=i64::from(i32::MAX)).contains(&group) {
                    errors.invalid(&list.index(index), group, "must be between 0 and 2147483647, inclusive");
                }
            }
        }
        _ => {}
    }
}

fn allocated(resource: &Value, container: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let name = resource.text("name");
    if let Some(container) = container {
        let asked = &container["resources"];
        let (found, why) = if name.starts_with("claim:") {
            let claims = asked.list("claims").iter().any(|claim| {
                let request = claim.text("request");
                let slash = if request.is_empty() { "" } else { "/" };
                name == format!("claim:{}{slash}{request}", claim.text("name"))
            });
            (
                claims,
                "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty",
            )
        } else {
            (asked["requests"].has(name), "must match one of the container's resource requests")
        };
        if !found {
            errors.invalid(&path.field("name"), name, why);
        }
    }
    let (list, mut seen) = (path.field("resources"), BTreeSet::new());
    for (index, device) in resource.list("resources").iter().enumerate() {
        let path = list.index(index);
        let (health, id) = (device.text("health"), device.text("resourceID"));
        if !["Healthy", "Unhealthy", "Unknown"].contains(&health) {
            errors.unsupported(&path.field("health"), health, &["Healthy", "Unhealthy", "Unknown"]);
        }
        match device.some_text("message") {
            Some("") => errors.required(&path.field("message"), "must be non-empty if specified"),
            Some(message) if message.len() > HEALTH_MESSAGE_BYTES_MAX => {
                errors.too_long(&path.field("message"), HEALTH_MESSAGE_BYTES_MAX);
            }
            _ => {}
        }
        if !seen.insert(id) {
            errors.duplicate(&path.field("resourceID"), id);
        }
    }
}

fn image_volumes(status: &Value, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("volumeMounts");
    for (index, mount) in status.list("volumeMounts").iter().enumerate() {
        let Some(image) = mount.get("volumeStatus").and_then(|status| status.get_some("image")) else {
            continue;
        };
        let item = list.index(index);
        let field = item.field("volumeStatus.imageVolumeStatus.imageRef");
        let reference = image.text("imageRef");
        if reference.is_empty() {
            errors.required(&field, "imageRef must not be empty");
        } else if reference.len() > IMAGE_REFERENCE_BYTES_MAX {
            errors.too_long(&field, IMAGE_REFERENCE_BYTES_MAX);
        }
    }
}
