//! Nodes.

use std::collections::BTreeSet;

use kschema::{
    error::FieldError,
    fields::set_default,
    quote::{Quoted, json_text},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, address, form, labels, quantity, texts},
    pod::{
        defaults::{first_of, round_up_list},
        tolerations,
    },
};

type Errors = Vec<FieldError>;

/// The strategy of `nodes`.
#[derive(Debug)]
pub(crate) struct Nodes;

fn drop(object: &mut Value, part: &str, key: &str) {
    if let Some(map) = object.get_mut(part).and_then(Value::as_object_mut) {
        map.remove(key);
    }
}

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        if let Some(status) = object.get_mut("status").filter(|status| status.is_object()) {
            // What can't be allocated is the difference; without one, all of the capacity can.
            if let Some(capacity) = status.get_some("capacity").cloned() {
                set_default(status, "allocatable", capacity);
            }
            round_up_list(status, "capacity");
            round_up_list(status, "allocatable");
        }
        if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
            first_of(
                spec,
                "podCIDR",
                "podCIDRs",
                |text| json!(text),
                |value| value.as_str().unwrap_or_default(),
            );
        }
    }

    /// Nodes may be created with their status: that is how they register.
    fn prepare_create(&self, object: &mut Value) {
        drop(object, "spec", "configSource");
        drop(object, "status", "config");
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if !old["spec"].has("configSource") {
            drop(object, "spec", "configSource");
        }
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        if !old["status"].has("config") {
            drop(object, "status", "config");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (meta, spec) = (Path::root("metadata"), &object["spec"]);
        annotations(object, &meta.field("annotations"), errors);
        // Upstream reports taints at the metadata.
        taints(spec.list("taints"), &meta.field("taints"), errors);
        resources(object, errors);
        if let Some(capacity) =
            object["status"]["nodeInfo"]["swap"].some_int("capacity").filter(|bytes| *bytes <= 0)
        {
            errors.invalid(&meta.field("nodeSwapStatus.capacity"), capacity, "must be greater than zero");
        }
        declared_features(object, errors);
        let (path, ranges) = (Path::root("spec.podCIDRs"), spec.list("podCIDRs"));
        for (index, range) in texts(ranges).enumerate() {
            address::network(&path.index(index), range, std::iter::empty(), errors);
        }
        if ranges.len() > 1 {
            let dual = address::is_dual_stack(
                texts(ranges).map(|range| range.split('/').next().unwrap_or_default()),
            );
            if dual != Ok(true) || ranges.len() > 2 {
                let why = "may specify no more than one CIDR for each IP family";
                errors.invalid(&path, spec.get("podCIDRs"), why);
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (meta, path) = (Path::root("metadata"), Path::root("spec"));
        let (spec, was) = (&object["spec"], &old["spec"]);
        annotations(object, &meta.field("annotations"), errors);
        resources(object, errors);
        declared_features(object, errors);
        let (list, mut seen) = (Path::root("status.addresses"), BTreeSet::new());
        for (index, entry) in object["status"].list("addresses").iter().enumerate() {
            if !seen.insert((entry.text("type"), entry.text("address"))) {
                let shown =
                    format!("{{\"Type\":{:?},\"Address\":{:?}}}", entry.text("type"), entry.text("address"));
                errors.fault(FieldError::duplicate_value(list.index(index).to_string(), shown));
            }
        }
        let (new, old_ranges) = (spec.list("podCIDRs"), was.list("podCIDRs"));
        let why = "node updates may not change podCIDR except from \"\" to valid";
        if !old_ranges.is_empty() && new.len() != old_ranges.len() {
            errors.forbidden(&path.field("podCIDRs"), why);
        } else {
            for _ in old_ranges.iter().zip(new).filter(|(old, new)| old != new) {
                errors.forbidden(&path.field("podCIDRs"), why);
            }
        }
        let id = was.text("providerID");
        if !id.is_empty() && id != spec.text("providerID") {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden(&path.field("providerID"), why);
        }
        if let Some(source) = spec.get_some("configSource") {
            config_source(source, false, &path.field("configSource"), errors);
        }
        if let Some(config) = object["status"].get_some("config") {
            let path = Path::root("status.config");
            for key in ["assigned", "active", "lastKnownGood"] {
                if let Some(source) = config.get_some(key) {
                    config_source(source, true, &path.field(key), errors);
                }
            }
        }
        taints(spec.list("taints"), &meta.field("taints"), errors);
        if spec.text("externalID") != was.text("externalID") {
            errors.forbidden(&path.field("externalID"), "may not be updated");
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.validate_update(object, old, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let (mut out, spec) = (Vec::new(), &object["spec"]);
        if spec.has("configSource") {
            out.push("spec.configSource: the feature is removed".to_owned());
        }
        if !spec.text("externalID").is_empty() {
            out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        let path = Path::root("spec.podCIDRs");
        for (index, range) in texts(spec.list("podCIDRs")).enumerate() {
            address::network_warnings(&path.index(index), range, &mut out);
        }
        out
    }
}

/// The annotations that taints and avoidance of pods were before they were fields.
fn annotations(object: &Value, path: &Path<'_>, errors: &mut Errors) {
    const TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let annotations = &object["metadata"]["annotations"];
    let text = annotations.text(TAINTS);
    if !text.is_empty() {
        match serde_json::from_str::<Vec<Value>>(text) {
            Ok(list) => taints(&list, &path.field(TAINTS), errors),
            Err(error) => errors.invalid(path, TAINTS, error),
        }
    }
    let text = annotations.text(AVOID);
    if text.is_empty() {
        return;
    }
    match serde_json::from_str::<Value>(text) {
        Err(error) => errors.invalid(&path.field("AvoidPods"), AVOID, error),
        Ok(avoid) => {
            let list = path.field(AVOID);
            for (index, entry) in avoid.list("preferAvoidPods").iter().enumerate() {
                let item = list.index(index);
                match entry["podSignature"].get_some("podController") {
                    None => errors.required(&item.field("PodSignature"), ""),
                    Some(owner) if !owner.flag("controller") => {
                        let field = item.field("PodSignature.PodController.Controller");
                        errors.invalid(&field, false, "must point to a controller");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn taints(list: &[Value], path: &Path<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, taint) in list.iter().enumerate() {
        let item = path.index(index);
        let (key, value, effect) = (taint.text("key"), taint.text("value"), taint.text("effect"));
        labels::name(key, &item.field("key"), errors);
        let faults = form::label_value(value);
        if !faults.is_empty() {
            errors.invalid(&item.field("value"), value, faults.join(";"));
        }
        tolerations::validate_effect(effect, &item.field("effect"), errors);
        if !seen.insert((effect, key)) {
            let added = taint.get("timeAdded").unwrap_or(&Value::Null);
            let shown = format!(
                "{{\"Key\":{key},\"Value\":{value},\"Effect\":{effect},\"TimeAdded\":{added}}}",
                key = json_text(key),
                value = json_text(value),
                effect = json_text(effect)
            );
            let why = "taints must be unique by key and effect pair";
            errors.fault(FieldError::duplicate_because(item.to_string(), shown, why));
        }
    }
}

fn resources(object: &Value, errors: &mut Errors) {
    for (key, path) in
        [("capacity", Path::root("status.capacity")), ("allocatable", Path::root("status.allocatable"))]
    {
        for (name, value) in object["status"].map(key) {
            quantity::value(name, value, &path.field(name), errors);
        }
    }
}

/// What a node says that it can do (KEP-5328): sorted names such as `GuaranteedQoSPodCPUResize` or `A/b`.
fn declared_features(object: &Value, errors: &mut Errors) {
    let path = Path::root("status.declaredFeatures");
    let mut before = "";
    for (index, name) in texts(object["status"].list("declaredFeatures")).enumerate() {
        let item = path.index(index);
        if index > 0 && before == name {
            errors.duplicate(&item, name);
        } else if index > 0 && before > name {
            errors.invalid(&item, name, "list must be sorted alphabetically");
        }
        before = name;
        let part = |(at, part): (usize, &str)| {
            let first = |c: char| if at == 0 { c.is_ascii_uppercase() } else { c.is_ascii_alphabetic() };
            part.starts_with(first) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if name.len() > form::SUBDOMAIN_BYTES_MAX {
            let why = format!(
                "invalid feature name {name}: must be no more than {} characters",
                form::SUBDOMAIN_BYTES_MAX,
                name = Quoted(name)
            );
            errors.invalid(&item, name, why);
        } else if !name.split('/').enumerate().all(part) {
            let why = format!(
                "invalid feature name {name}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes",
                name = Quoted(name)
            );
            errors.invalid(&item, name, why);
        }
    }
}

/// The removed dynamic configuration of the kubelet, which old nodes may still name.
fn config_source(source: &Value, status: bool, path: &Path<'_>, errors: &mut Errors) {
    let Some(map) = source.get_some("configMap") else {
        errors.invalid(path, source, "exactly one reference subfield must be non-nil");
        return;
    };
    let path = path.field("configMap");
    for key in ["uid", "resourceVersion"] {
        let given = !map.text(key).is_empty();
        if status && !given {
            errors.required(&path.field(key), "");
        } else if !status && given {
            errors.forbidden(&path.field(key), format_args!("{key} must not be set in spec"));
        }
    }
    errors.name(&path.field("namespace"), map.text("namespace"), form::dns_label);
    errors.name(&path.field("name"), map.text("name"), form::dns_subdomain);
    errors.name(&path.field("kubeletConfigKey"), map.text("kubeletConfigKey"), form::config_key);
}
