//! What of a pod may change: images, deadlines, tolerations (only more), gates (only fewer), and while it is gated, where
//! it may run (KEP-3838).

use kschema::{
    error::FieldError,
    fields::{child, keep},
};
use serde_json::Value;

use super::{annotations, containers::image_whitespace, options::Options, tolerations};
use crate::check::{Internal, Look, Path, Report, diff, same, same_at};

type Errors = Vec<FieldError>;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// Checks a change of a pod, after its new state has been checked (`ValidatePodUpdate`).
pub(crate) fn validate(object: &Value, old: &Value, options: Options, errors: &mut Errors) {
    let meta = Path::root("metadata");
    annotations::validate_update(object, old, options, &meta.field("annotations"), errors);
    let path = Path::root("spec");
    let (spec, before) = (&object["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        if !containers(spec, before, list, &path.field(list), errors) {
            return;
        }
    }
    if !deadline(spec, before, &path.field("activeDeadlineSeconds"), errors) {
        return;
    }
    let (new, was) = (spec.list("tolerations"), before.list("tolerations"));
    tolerations::validate_only_added(new, was, options, &path.field("tolerations"), errors);
    let list = path.field("schedulingGates");
    let kept = |name: &str| before.list("schedulingGates").iter().any(|gate| gate.text("name") == name);
    for (index, gate) in spec.list("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        if !kept(name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&list.index(index).field("name"), why);
        }
    }
    // Most changes leave the specification as it is, which is found out fastest by plain comparison.
    if spec != before && !same(spec, before) {
        rest(spec, before, &path, errors);
    }
}

fn containers(spec: &Value, before: &Value, list: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    if spec.count(list) != before.count(list) {
        errors.forbidden(path, "pod updates may not add or remove containers");
        return false;
    }
    for (index, container) in spec.list(list).iter().enumerate() {
        let path = path.index(index);
        errors.needs(container, &path, "image");
        image_whitespace(container, &path, errors);
    }
    true
}

fn deadline(spec: &Value, before: &Value, path: &Path<'_>, errors: &mut Errors) -> bool {
    let was = before.some_int("activeDeadlineSeconds");
    match spec.some_int("activeDeadlineSeconds") {
        Some(seconds) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            errors.invalid(path, seconds, "must be between 0 and 2147483647, inclusive");
            false
        }
        Some(seconds) if was.is_some_and(|was| was < seconds) => {
            errors.invalid(path, seconds, "must be less than or equal to previous value");
            false
        }
        None if was.is_some() => {
            errors.invalid(path, None, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

/// Everything that may change is made what it was; what then differs may not.
fn rest(spec: &Value, before: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut munged = spec.clone();
    for list in ["containers", "initContainers"] {
        let containers = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (new, was) in containers.zip(before.list(list)) {
            keep(new, was, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(&mut munged, before, key);
    }
    // A negative grace period meant one second; it may be written so.
    let grace = "terminationGracePeriodSeconds";
    if before.int(grace) < 0 && munged.some_int(grace) == Some(1) {
        keep(&mut munged, before, grace);
    }
    if before.count("schedulingGates") > 0 {
        node_selector(&mut munged, before, &path.field("nodeSelector"), errors);
        node_affinity(&mut munged, before, &path.field("affinity.nodeAffinity"), errors);
    }
    if !same(&munged, before) {
        let difference = diff::between("~core.v1.PodSpec", Some(before), Some(&munged));
        errors.forbidden(path, format_args!("pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{difference}"));
    }
}

fn node_selector(munged: &mut Value, before: &Value, path: &Path<'_>, errors: &mut Errors) {
    if same_at(munged, before, "nodeSelector") {
        return;
    }
    let new = munged.get("nodeSelector");
    let kept =
        before.map("nodeSelector").all(|(key, value)| new.is_some_and(|new| new.get(key) == Some(value)));
    if !kept {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(path, new, why);
    }
    keep(munged, before, "nodeSelector");
}

fn node_affinity(munged: &mut Value, before: &Value, path: &Path<'_>, errors: &mut Errors) {
    let none = Value::Null;
    let of = |spec: &Value| spec.get("affinity").and_then(|all| all.get_some("nodeAffinity")).cloned();
    let (new, was) = (of(munged), of(before));
    if same(new.as_ref().unwrap_or(&none), was.as_ref().unwrap_or(&none)) {
        return;
    }
    required_terms(new.as_ref(), was.as_ref(), path, errors);
    match was {
        Some(was) => child(munged, "affinity")["nodeAffinity"] = was,
        None => {
            let affinity = child(munged, "affinity");
            if let Some(map) = affinity.as_object_mut() {
                map.remove("nodeAffinity");
            }
            if !before.has("affinity") && affinity.as_object().is_some_and(serde_json::Map::is_empty) {
                keep(munged, before, "affinity");
            }
        }
    }
}

fn required_terms(new: Option<&Value>, was: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let terms = |affinity: Option<&Value>| -> Vec<Value> {
        affinity
            .and_then(|all| all.get_some(REQUIRED))
            .map(|all| all.list("nodeSelectorTerms").to_vec())
            .unwrap_or_default()
    };
    let (new, was) = (terms(new), terms(was));
    let path = path.field(REQUIRED);
    let list = path.field("nodeSelectorTerms");
    if !was.is_empty() && was.len() != new.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        let shown = Some(Value::Array(new)).filter(|new| new != &Value::Array(Vec::new()));
        errors.invalid(&list, Internal("~core.v1.NodeSelectorTerm", shown.as_ref()), why);
        return;
    }
    let only_added = |new: &Value, was: &Value| {
        let keys = ["matchExpressions", "matchFields"];
        // A term without requirements matches nothing, and must go on to.
        let empty = |term: &Value| keys.iter().all(|key| term.count(key) == 0);
        let starts = |key: &str| {
            let (new, was) = (new.list(key), was.list(key));
            new.len() >= was.len() && new.iter().zip(was).all(|(new, was)| same(new, was))
        };
        (!empty(was) || empty(new)) && keys.into_iter().all(starts)
    };
    for (index, (new, was)) in new.iter().zip(&was).enumerate() {
        if !only_added(new, was) {
            errors.invalid(
                &list.index(index),
                Internal("~core.v1.NodeSelectorTerm", Some(new)),
                "only additions are allowed (no mutations or deletions)",
            );
        }
    }
}
