//! Where a container's volumes appear: mounts and block devices.

use std::collections::BTreeSet;

use kschema::error::FieldError;
use serde_json::Value;

use super::spec::Scope;
use crate::{
    check::{Look, Path, Report},
    volume_source::{descending_path, has_backsteps},
};

type Errors = Vec<FieldError>;

/// Checks `volumeMounts` and `volumeDevices` of a container.
pub(crate) fn validate(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    let (mounts, devices) = (container.list("volumeMounts"), container.list("volumeDevices"));
    let list = path.field("volumeMounts");
    let mut targets = BTreeSet::new();
    let elsewhere =
        |list: &[Value], key: &str, value: &str| list.iter().any(|entry| entry.text(key) == value);
    for (index, mount) in mounts.iter().enumerate() {
        let path = list.index(index);
        let (name, target) = (mount.text("name"), mount.text("mountPath"));
        errors.needs(mount, &path, "name");
        if !scope.volumes.contains_key(name) {
            errors.not_found(&path.field("name"), name);
        }
        errors.needs(mount, &path, "mountPath");
        if !targets.insert(target) {
            errors.invalid(&path.field("mountPath"), target, "must be unique");
        }
        if elsewhere(devices, "name", name) {
            errors.invalid(&path.field("name"), name, "must not already exist in volumeDevices");
        }
        if elsewhere(devices, "devicePath", target) {
            let why = "must not already exist as a path in volumeDevices";
            errors.invalid(&path.field("mountPath"), target, why);
        }
        // Upstream reports what follows at the list, but for one.
        let (sub, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
        if !sub.is_empty() {
            descending_path(sub, &list.field("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&path.field("subPathExpr"), expression, why);
            }
            descending_path(expression, &list.field("subPathExpr"), errors);
        }
        propagation(mount, container, &list, errors);
        recursive_read_only(mount, &list.field("recursiveReadOnly"), errors);
    }
    if !devices.is_empty() {
        validate_devices(devices, mounts, scope, &path.field("volumeDevices"), errors);
    }
}

fn propagation(mount: &Value, container: &Value, path: &Path<'_>, errors: &mut Errors) {
    const MODES: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
    errors.optional_one_of(mount, path, "mountPropagation", &MODES);
    let privileged = || container.get("securityContext").is_some_and(|context| context.flag("privileged"));
    if mount.text("mountPropagation") == "Bidirectional" && !privileged() {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.forbidden(&path.field("mountPropagation"), why);
    }
}

fn recursive_read_only(mount: &Value, path: &Path<'_>, errors: &mut Errors) {
    match mount.some_text("recursiveReadOnly") {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.flag("readOnly") {
                errors.forbidden(path, "may only be specified when readOnly is true");
            }
            if mount.some_text("mountPropagation").is_some_and(|mode| mode != "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                errors.forbidden(path, why);
            }
        }
        Some(other) => errors.unsupported(path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn validate_devices(
    devices: &[Value],
    mounts: &[Value],
    scope: &Scope<'_>,
    list: &Path<'_>,
    errors: &mut Errors,
) {
    let (mut names, mut targets) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in devices.iter().enumerate() {
        let path = list.index(index);
        let (name_at, path_at) = (path.field("name"), path.field("devicePath"));
        let (name, target) = (device.text("name"), device.text("devicePath"));
        let volume = scope.volumes.get(name);
        errors.needs(device, &path, "name");
        if names.contains(name) {
            errors.invalid(&name_at, name, "must be unique");
        }
        if volume.is_some_and(|volume| !volume.has("persistentVolumeClaim") && !volume.has("ephemeral")) {
            let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
            errors.invalid(&name_at, name, why);
        }
        if volume.is_none() {
            errors.not_found(&name_at, name);
        }
        errors.needs(device, &path, "devicePath");
        if targets.contains(target) {
            errors.invalid(&path_at, target, "must be unique");
        }
        if has_backsteps(target) {
            errors.invalid(&path_at, target, "can not contain backsteps ('..')");
        } else {
            targets.insert(target);
        }
        if mounts.iter().any(|mount| mount.text("name") == name) {
            errors.invalid(&name_at, name, "must not already exist in volumeMounts");
        }
        // Of several mounts of one volume only the last is looked at.
        let is_last = |index: usize, mount: &Value| {
            !mounts[index + 1..].iter().any(|later| later.text("name") == mount.text("name"))
        };
        let mut mounted = mounts.iter().enumerate();
        if mounted.any(|(index, mount)| mount.text("mountPath") == target && is_last(index, mount)) {
            errors.invalid(&path_at, target, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}
