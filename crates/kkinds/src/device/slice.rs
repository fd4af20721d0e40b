//! Slices of the devices that drivers offer.

use std::sync::Arc;

use kcore::Clock;
use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use super::{binding, fits, label, policy, pool, qualified};
use crate::{
    check::{Internal, Look, Path, Report, form, same_at},
    pod::affinity,
    volume_source::csi_driver,
};

type Errors = Vec<FieldError>;

/// The strategy of `resourceslices`.
#[derive(Debug)]
pub(crate) struct ResourceSlices {
    /// Tells when taints were added.
    pub(crate) clock: Arc<dyn Clock>,
}

const DEVICES_MAX: usize = 128;
/// How many there may be if they have taints or consume counters.
const ELABORATE_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const CONSUMPTIONS_MAX: usize = 2;
const PROPERTIES_MAX: i64 = 32;
const ATTRIBUTES_MAX: i64 = 48;
const TAINTS_MAX: usize = 16;
const VALUE_BYTES_MAX: usize = 64;

/// Checks which nodes something is for: exactly one of the fields must be set. Returns how many are.
fn nodes(holder: &Value, keys: &[&str], empty: &str, path: &Path<'_>, errors: &mut Errors) -> Vec<String> {
    let mut set = Vec::new();
    for key in keys {
        let field = path.field(key);
        let Some(value) = holder.get_some(key) else {
            continue;
        };
        match value {
            Value::String(name) if name.is_empty() => errors.invalid(&field, "", empty),
            Value::Bool(false) => errors.invalid(&field, false, "must be either unset or set to true"),
            _ => set.push(format!("`{key}`")),
        }
        match value {
            Value::String(name) if !name.is_empty() => errors.faults(&field, name, form::dns_subdomain(name)),
            Value::Object(_) => affinity::node_selector(value, false, &field, errors),
            _ => {}
        }
    }
    set
}

fn validate(spec: &Value, old: Option<&Value>, errors: &mut Errors) {
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let path = Path::root("spec");
    csi_driver(spec.text("driver"), &path.field("driver"), errors);
    let (found, field) = (&spec["pool"], path.field("pool"));
    pool(found.text("name"), &field.field("name"), errors);
    if found.int("resourceSliceCount") <= 0 {
        let shown = found.int("resourceSliceCount");
        errors.invalid(&field.field("resourceSliceCount"), shown, "must be greater than zero");
    }
    if found.int("generation") < 0 {
        let why = "must be greater than or equal to zero";
        errors.invalid(&field.field("generation"), found.int("generation"), why);
    }
    if let Some(old) = old {
        errors.immutable(found, &old["pool"], &field, "name");
        errors.immutable(spec, old, &path, "driver");
        errors.immutable(spec, old, &path, "nodeName");
    }
    let keys = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let empty = "must be either unset or set to a non-empty string";
    let set = nodes(spec, &keys, empty, &path, errors);
    if let Some(selector) = spec.get_some("nodeSelector")
        && selector.count("nodeSelectorTerms") != 1
    {
        let field = path.field("nodeSelector.nodeSelectorTerms");
        let shown = selector.get_some("nodeSelectorTerms");
        errors.invalid(&field, shown, "must have exactly one node selector term");
    }
    match set.len() {
        0 => errors.required(&path, ONE),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", set.join(", "));
            errors.invalid(&path, shown, format_args!("{ONE}, but multiple fields are set"));
        }
    }
    if spec.count("sharedCounters") > 0 && spec.count("devices") > 0 {
        errors.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    devices(spec, old, &path, errors);
    let (list, sets) = (path.field("sharedCounters"), spec.list("sharedCounters"));
    if fits(sets.len(), COUNTER_SETS_MAX, &list, errors) {
        for (index, set) in sets.iter().enumerate() {
            counters(set, "name", &list.index(index), errors);
        }
        duplicates(sets, "name", &list, errors);
    }
}

fn duplicates(entries: &[Value], key: &str, list: &Path<'_>, errors: &mut Errors) {
    for (index, entry) in entries.iter().enumerate() {
        let name = entry.text(key);
        if entries[..index].iter().any(|other| other.text(key) == name) {
            errors.duplicate(&list.index(index), name);
        }
    }
}

fn counters(set: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    errors.name(&path.field(key), set.text(key), form::dns_label);
    let field = path.field("counters");
    match set.count("counters") {
        0 => errors.required(&field, ""),
        count => {
            if fits(count, COUNTERS_MAX, &field, errors) {
                set.map("counters").for_each(|(name, _)| label(name, &field, errors));
            }
        }
    }
}

fn devices(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let (list, found) = (path.field("devices"), spec.list("devices"));
    let elaborate = |device: &Value| device.count("taints") > 0 || device.count("consumesCounters") > 0;
    let limit = if found.iter().any(elaborate) { ELABORATE_DEVICES_MAX } else { DEVICES_MAX };
    if !fits(found.len(), limit, &list, errors) {
        return;
    }
    let was = old.map_or(&[][..], |old| old.list("devices"));
    for (index, one) in found.iter().enumerate() {
        let old = was.iter().find(|old| old.text("name") == one.text("name"));
        device(one, old, spec.flag("perDeviceNodeSelection"), &list.index(index), errors);
    }
    duplicates(found, "name", &list, errors);
}

fn device(device: &Value, old: Option<&Value>, has_nodes: bool, path: &Path<'_>, errors: &mut Errors) {
    label(device.text("name"), &path.field("name"), errors);
    let total = i64::try_from(device.count("attributes") + device.count("capacity")).unwrap_or(i64::MAX);
    if total > PROPERTIES_MAX {
        let why = format!("the total number of attributes and capacities must not exceed {PROPERTIES_MAX}");
        errors.invalid(path, total, why);
    }
    let total = i64::try_from(device.count("attributes")).unwrap_or(i64::MAX);
    if total > ATTRIBUTES_MAX {
        let why = format!("the total number of attribute values must not exceed {ATTRIBUTES_MAX}");
        errors.invalid(path, total, why);
    }
    let field = path.field("attributes");
    for (key, value) in device.map("attributes") {
        qualified(key, &field, errors);
        attribute(value, &field.key(key), errors);
    }
    let field = path.field("capacity");
    for (key, value) in device.map("capacity") {
        qualified(key, &field, errors);
        if let Some(found) = value.get_some("requestPolicy") {
            let at = field.key(key);
            let at = at.field("requestPolicy");
            if device.flag("allowMultipleAllocations") {
                policy::validate(found, &value["value"], &at, errors);
            } else {
                errors.forbidden(&at, "allowMultipleAllocations must be true");
            }
        }
    }
    if !old.is_some_and(|old| same_at(device, old, "taints")) {
        taints(device, &path.field("taints"), errors);
    }
    let (list, consumed) = (path.field("consumesCounters"), device.list("consumesCounters"));
    if fits(consumed.len(), CONSUMPTIONS_MAX, &list, errors) {
        for (index, one) in consumed.iter().enumerate() {
            counters(one, "counterSet", &list.index(index), errors);
        }
        duplicates(consumed, "counterSet", &list, errors);
    }
    device_nodes(device, has_nodes, path, errors);
    binding(device, path, errors);
}

fn device_nodes(device: &Value, has_nodes: bool, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let keys = ["nodeName", "nodeSelector", "allNodes"];
    if !has_nodes {
        if keys.iter().any(|key| device.has(key)) {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.invalid(path, None, why);
        }
        return;
    }
    let set = nodes(device, &keys, "must not be empty", path, errors);
    match set.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => errors.invalid(path, format!("{{{}}}", set.join(", ")), ONE),
    }
}

fn taints(device: &Value, list: &Path<'_>, errors: &mut Errors) {
    let found = device.list("taints");
    if !fits(found.len(), TAINTS_MAX, list, errors) {
        return;
    }
    for (index, taint) in found.iter().enumerate() {
        super::taint_rule::taint(taint, None, &list.index(index), errors);
    }
}

fn attribute(attribute: &Value, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "exactly one value must be specified";
    for key in ["string", "version"] {
        let Some(value) = attribute.some_text(key) else {
            continue;
        };
        if key == "version" && !is_version(value) {
            let why = "must be a string compatible with semver.org spec 2.0.0";
            errors.invalid(&path.field(key), value, why);
        }
        if value.len() > VALUE_BYTES_MAX {
            errors.too_long(&path.field(key), VALUE_BYTES_MAX);
        }
    }
    match ["bool", "int", "string", "version"].iter().filter(|key| attribute.has(key)).count() {
        0 => errors.invalid(path, "", ONE),
        1 => {}
        _ => errors.invalid(path, Internal("~resource.v1.DeviceAttribute", Some(attribute)), ONE),
    }
}

/// Whether a text is a version as <https://semver.org> has it.
fn is_version(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part.len() == 1 || !part.starts_with('0'))
    };
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let pre = |part: &str| word(part) && (number(part) || part.bytes().any(|byte| !byte.is_ascii_digit()));
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, before) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && before.is_none_or(|before| before.split('.').all(pre))
        && build.is_none_or(|build| build.split('.').all(word))
}

impl Strategy for ResourceSlices {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            super::taint_rule::default_taints(spec, &*self.clock);
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(&object["spec"], None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(&object["spec"], Some(&old["spec"]), errors);
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semantic() {
        for good in ["1.2.3", "1.2.3-rc.1", "1.2.3-0a+b.01", "0.0.0"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["1.2", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "v1.2.3"] {
            assert!(!is_version(bad), "{bad}");
        }
    }
}
