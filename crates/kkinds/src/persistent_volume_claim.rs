//! Persistent volume claims.

use kcore::Quantity;
use kschema::{
    error::FieldError,
    fields::{child, keep, set_default},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, diff, form, labels, quantity, same},
    claim_spec::{self, ClaimOptions},
    pod::defaults::round_up_list,
};

type Errors = Vec<FieldError>;

/// The strategy of `persistentvolumeclaims`.
#[derive(Debug)]
pub(crate) struct PersistentVolumeClaims;

/// The annotation that the storage class was before it was a field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Keeps the two names of a data source in step (KEP-1495).
fn prepare_sources(spec: &mut Value, old: Option<&Value>) {
    let used = old.is_some_and(|old| old.has("dataSource") || old.has("dataSourceRef"));
    let ref_used = old.is_some_and(|old| old.has("dataSourceRef"));
    let Some(map) = spec.as_object_mut() else {
        return;
    };
    // A source in another namespace needs a feature that is off (KEP-3294).
    let foreign = map.get("dataSourceRef").is_some_and(|source| !source.text("namespace").is_empty());
    if foreign && !ref_used {
        map.remove("dataSourceRef");
    }
    let known = |source: &Value| {
        matches!(
            (source.text("apiGroup"), source.text("kind")),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        )
    };
    // Once anything could be named here, and was ignored.
    if !used
        && !map.contains_key("dataSourceRef")
        && map.get("dataSource").is_some_and(|source| !known(source))
    {
        map.remove("dataSource");
    }
    match (map.get("dataSource").cloned(), map.get("dataSourceRef").cloned()) {
        (Some(source), None) => {
            map.insert("dataSourceRef".to_owned(), source);
        }
        (None, Some(source)) if source.text("namespace").is_empty() => {
            map.insert("dataSource".to_owned(), source);
        }
        _ => {}
    }
}

fn storage<'a>(holder: &'a Value, list: &str) -> Option<&'a Value> {
    holder.get(list).and_then(|list| list.get_some("storage"))
}

fn size(value: Option<&Value>) -> Quantity {
    value.map(quantity::amount).unwrap_or_default()
}

impl PersistentVolumeClaims {
    fn annotation(object: &Value) -> Option<&str> {
        object["metadata"].get("annotations").and_then(|map| map.some_text(CLASS))
    }

    /// Whether the class moves from the annotation into the field, which may happen once.
    fn class_moves(object: &Value, old: &Value) -> bool {
        let (new, was) =
            (object["spec"].some_text("storageClassName"), old["spec"].some_text("storageClassName"));
        let annotated = Self::annotation(old);
        annotated.is_some()
            && was.is_none()
            && new == annotated
            && [None, annotated].contains(&Self::annotation(object))
    }

    fn unchanged(object: &Value, old: &Value, errors: &mut Errors) {
        let (mut new, mut was) = (object["spec"].clone(), old["spec"].clone());
        if was.text("volumeName").is_empty() {
            keep(&mut was, &new, "volumeName");
        }
        let class = "storageClassName";
        if Self::class_moves(object, old) {
            keep(&mut new, &was, class);
        } else {
            let note = Self::annotation(object);
            if note.unwrap_or_default() != Self::annotation(old).unwrap_or_default() {
                let field = Path::root("metadata.annotations");
                errors.invalid(&field.field(CLASS), note.unwrap_or_default(), "field is immutable");
            }
            let annotated = Self::annotation(old);
            let (set, before) = (new.some_text(class), was.some_text(class));
            if set.is_some() && before.is_none() && (annotated.is_none() || set == annotated) {
                keep(&mut new, &was, class);
            }
        }
        if object["status"].text("phase") == "Bound" {
            if new["resources"].has("requests") {
                let none = Value::Null;
                let requests = was["resources"].get("requests").unwrap_or(&none).clone();
                keep(&mut new["resources"]["requests"], &requests, "storage");
            }
            keep(&mut new, &was, "volumeAttributesClassName");
        }
        if !same(&new, &was) {
            let difference = diff::between("~core.v1.PersistentVolumeClaimSpec", Some(&was), Some(&new));
            let why = format_args!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{difference}"
            );
            errors.forbidden(&Path::root("spec"), why);
        }
    }
}

fn options(old: &Value) -> ClaimOptions {
    let spec = &old["spec"];
    let grouped = |key: &str| spec.get(key).is_some_and(|source| source.has("apiGroup"));
    ClaimOptions {
        lax_selector: labels::is_faulty(spec.get_some("selector")),
        lax_group: grouped("dataSource") || grouped("dataSourceRef"),
    }
}

impl Strategy for PersistentVolumeClaims {
    fn default(&self, object: &mut Value) {
        if let Some(resources) = object.pointer_mut("/spec/resources") {
            round_up_list(resources, "limits");
            round_up_list(resources, "requests");
        }
        if let Some(status) = object.get_mut("status").filter(|status| status.is_object()) {
            set_default(status, "phase", "Pending");
            round_up_list(status, "capacity");
            round_up_list(status, "allocatedResources");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        prepare_sources(child(object, "spec"), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        prepare_sources(child(object, "spec"), Some(&old["spec"]));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        claim_spec::validate(&object["spec"], &Path::root("spec"), ClaimOptions::default(), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        claim_spec::validate(&object["spec"], &Path::root("spec"), options(old), errors);
        let mut was = old.clone();
        prepare_sources(child(&mut was, "spec"), Some(&old["spec"]));
        Self::unchanged(object, &was, errors);
        let (spec, was) = (&object["spec"], &old["spec"]);
        let (new, before) =
            (size(storage(&spec["resources"], "requests")), size(storage(&was["resources"], "requests")));
        // A request may shrink back, as long as it is larger than what there is (KEP-1790).
        if new < before && new <= size(storage(&old["status"], "capacity")) {
            let path = Path::root("spec.resources.requests.storage");
            errors.forbidden(&path, "field can not be less than status.capacity");
        }
        errors.immutable(spec, was, &Path::root(""), "volumeMode");
        let class = "volumeAttributesClassName";
        if spec.get_some(class) != was.get_some(class)
            && old["status"].has("currentVolumeAttributesClassName")
        {
            let word = match spec.some_text(class) {
                None => "nil",
                Some("") => "empty string",
                Some(_) => return,
            };
            let why = format!(
                "update to {word} is forbidden when status.currentVolumeAttributesClassName is not nil"
            );
            errors.forbidden(&Path::root("spec").field(class), why);
        }
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        const STATES: [&str; 5] = [
            "ControllerResizeInProgress",
            "ControllerResizeInfeasible",
            "NodeResizeInProgress",
            "NodeResizeInfeasible",
            "NodeResizePending",
        ];
        if object["spec"].count("accessModes") == 0 {
            errors.required(&Path::root("Spec.accessModes"), "");
        }
        let (status, path) = (&object["status"], Path::root("status"));
        amounts(status, "capacity", &path.field("capacity"), errors);
        let field = path.field("allocatedResourceStatuses");
        let mut states = STATES;
        states.sort_unstable();
        for (key, state) in status.map("allocatedResourceStatuses") {
            resource_key(key, &field, errors);
            if !STATES.contains(&state.as_str().unwrap_or_default()) {
                errors.unsupported(&field, key, &states);
            }
        }
        let field = path.field("allocatedResources");
        for (key, value) in status.map("allocatedResources") {
            let before = errors.len();
            resource_key(key, &field, errors);
            if errors.len() > before {
                continue;
            }
            let amount = quantity::amount(value);
            if amount.value() < 0 {
                errors.invalid(&field.key(key), amount.value(), "must be a valid resource quantity");
            } else {
                quantity::value("storage", value, &field.key(key), errors);
            }
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if Self::annotation(object).is_some() {
            out.push(format!("metadata.annotations[{CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"));
        }
        claim_spec::warnings(&object["spec"], &Path::root("spec"), &mut out);
        out
    }
}

fn amounts(status: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    for (name, value) in status.map(key) {
        let amount = quantity::amount(value);
        if amount.value() < 0 {
            errors.invalid(&path.key(name), amount.value(), "must be a valid resource quantity");
        }
    }
}

fn resource_key(key: &str, path: &Path<'_>, errors: &mut Errors) {
    let faults = form::qualified_name(key);
    if faults.is_empty() && quantity::is_native(key) && key != "storage" {
        errors.unsupported(path, key, &["storage"]);
    }
    errors.faults(path, key, faults);
}
