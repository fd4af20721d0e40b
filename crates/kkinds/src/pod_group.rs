//! Groups of pods that are scheduled together (KEP-4671, KEP-5832): workloads, pod groups, composite pod groups.
//!
//! These kinds are off by default upstream, and so are parts of them; whoever serves them here has all of it.

use kschema::{
    error::FieldError,
    fields::set_default,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, condition, form, labels, same_at},
    declared::{at_most, immutable, optional_name, range, required_name, union, unique},
};

type Errors = Vec<FieldError>;

/// The strategy of `workloads`.
#[derive(Debug)]
pub(crate) struct Workloads;

/// The strategy of `podgroups` and `compositepodgroups`.
#[derive(Debug)]
pub(crate) struct PodGroups {
    /// Whether the members are groups themselves.
    pub(crate) composite: bool,
}

const TEMPLATES_MAX: usize = 8;
const CLAIMS_MAX: usize = 4;
const CONSTRAINTS_MAX: usize = 1;
const PRIORITY_MAX: i64 = 1_000_000_000;
/// How deep templates may stand in each other; what is read is not deeper.
const DEPTH_MAX: usize = 64;

const CLAIM: [&str; 3] = ["name", "resourceClaimName", "resourceClaimTemplateName"];
const CLAIM_STATUS: [&str; 2] = ["name", "resourceClaimName"];
const TEMPLATE: [&str; 10] = [
    "name",
    "schedulingPolicy",
    "schedulingConstraints",
    "resourceClaims",
    "disruptionMode",
    "priorityClassName",
    "priority",
    "preemptionPolicy",
    "podGroupTemplates",
    "compositePodGroupTemplates",
];

/// `schedulingPolicy`: which one it is stays, how many are needed may change.
fn policy(new: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    union(new, old, path, &["basic", "gang"], errors);
    let had = |key: &str| old.is_none_or(|old| old.has(key) == new.has(key));
    if !had("basic") {
        errors.invalid(&path.field("basic"), None, "field is immutable");
    }
    let field = path.field("gang");
    if !had("gang") {
        let why = if new.has("gang") {
            "field cannot be set once created"
        } else {
            "field cannot be cleared once set"
        };
        errors.invalid(&field, None, why);
        return;
    }
    let Some(gang) = new.get_some("gang") else {
        return;
    };
    let was = old.and_then(|old| old.get_some("gang"));
    for key in ["minCount", "minGroupCount"] {
        let needed = key == "minCount" && !gang.has("minGroupCount") || gang.has(key);
        if !needed || was.is_some_and(|was| same_at(gang, was, key)) {
            continue;
        }
        if gang.int(key) == 0 {
            errors.required(&field.field(key), "");
        } else {
            range(gang, &field, key, 1, i64::MAX, errors);
        }
    }
}

fn constraints(found: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (list, found) = (path.field("topology"), found.list("topology"));
    if at_most(found, CONSTRAINTS_MAX, &list, errors) {
        for (index, one) in found.iter().enumerate() {
            let field = list.index(index);
            if one.text("key").is_empty() {
                errors.required(&field.field("key"), "");
            } else {
                labels::name(one.text("key"), &field.field("key"), errors);
            }
        }
    }
}

fn claims(found: &[Value], list: &Path<'_>, errors: &mut Errors) {
    if !at_most(found, CLAIMS_MAX, list, errors) {
        return;
    }
    unique(found, &CLAIM, list, errors);
    for (index, claim) in found.iter().enumerate() {
        let item = list.index(index);
        union(claim, None, &item, &CLAIM[1..], errors);
        required_name(claim, &item, "name", form::dns_label, errors);
        for key in &CLAIM[1..] {
            optional_name(claim, &item, key, form::long_name, errors);
        }
    }
}

/// Checks one field of a group, or of a template of one, that has not been there before.
fn field(spec: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    let at = path.field(key);
    match (key, spec.get_some(key)) {
        ("name", _) => required_name(spec, path, key, form::dns_label, errors),
        ("schedulingPolicy", found) => policy(found.unwrap_or(&Value::Null), None, &at, errors),
        ("schedulingConstraints", Some(found)) => constraints(found, &at, errors),
        ("resourceClaims", _) => claims(spec.list(key), &at, errors),
        ("disruptionMode", Some(mode)) => union(mode, None, &at, &["single", "all"], errors),
        ("priorityClassName", _) if spec.text(key).is_empty() => {}
        ("priorityClassName" | "parentCompositePodGroupName", _) => {
            optional_name(spec, path, key, form::long_name, errors);
        }
        ("priority", _) => range(spec, path, key, i64::from(i32::MIN), PRIORITY_MAX, errors),
        ("preemptionPolicy", _) => {
            errors.optional_one_of(spec, path, key, &["Never", "PreemptLowerPriority"]);
        }
        ("workloadRef", Some(found)) => {
            required_name(found, &at, "workloadName", form::long_name, errors);
            required_name(found, &at, "templateName", form::dns_label, errors);
        }
        _ => {}
    }
}

fn template(new: &Value, old: Option<&Value>, path: &Path<'_>, depth: usize, errors: &mut Errors) {
    for key in &TEMPLATE[..8] {
        match (*key, old) {
            ("schedulingPolicy", Some(old)) => {
                policy(&new[*key], Some(&old[*key]), &path.field(key), errors);
            }
            (key, Some(_)) => {
                immutable(new, old, path, key, errors);
            }
            (key, None) => field(new, key, path, errors),
        }
    }
    if depth < DEPTH_MAX {
        for key in &TEMPLATE[8..] {
            let was = old.map(|old| old.list(key));
            templates(new.list(key), was, &path.field(key), depth + 1, errors);
        }
    }
}

/// Which templates there are stays.
fn templates(new: &[Value], old: Option<&[Value]>, list: &Path<'_>, depth: usize, errors: &mut Errors) {
    let find = |entries: &[Value], name: &str| entries.iter().any(|entry| entry.text("name") == name);
    if let Some(old) = old
        && !(old.len() == new.len() && old.iter().all(|entry| find(new, entry.text("name"))))
    {
        errors.invalid(list, None, "field is immutable");
        return;
    }
    if !at_most(new, TEMPLATES_MAX, list, errors) {
        return;
    }
    unique(new, &TEMPLATE, list, errors);
    for (index, one) in new.iter().enumerate() {
        let was = old.and_then(|old| old.iter().find(|old| old.text("name") == one.text("name")));
        template(one, was, &list.index(index), depth, errors);
    }
}

fn workload(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let was = old.map(|old| &old["spec"]);
    let kinds = ["podGroupTemplates", "compositePodGroupTemplates"];
    union(spec, was, &path, &kinds, errors);
    let owner = path.field("controllerRef");
    if !immutable(spec, was, &path, "controllerRef", errors)
        && was.is_none()
        && let Some(found) = spec.get_some("controllerRef")
    {
        if !found.text("apiGroup").is_empty() {
            optional_name(found, &owner, "apiGroup", form::long_name, errors);
        }
        required_name(found, &owner, "kind", form::path_segment, errors);
        required_name(found, &owner, "name", form::path_segment, errors);
    }
    templates(spec.list(kinds[0]), was.map(|was| was.list(kinds[0])), &path.field(kinds[0]), 0, errors);
    if !immutable(spec, was, &path, kinds[1], errors) && was.is_none() {
        templates(spec.list(kinds[1]), None, &path.field(kinds[1]), 0, errors);
    }
}

impl Strategy for Workloads {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        workload(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        workload(object, Some(old), errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

/// The fields of a group in their order.
const GROUP: [&str; 9] = [
    "parentCompositePodGroupName",
    "workloadRef",
    "schedulingPolicy",
    "schedulingConstraints",
    "resourceClaims",
    "disruptionMode",
    "priorityClassName",
    "priority",
    "preemptionPolicy",
];

impl PodGroups {
    fn group(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        for key in GROUP {
            match old.map(|old| &old["spec"]) {
                Some(was) if key == "schedulingPolicy" && !self.composite => {
                    policy(&spec[key], Some(&was[key]), &path.field(key), errors);
                }
                Some(was) => {
                    immutable(spec, Some(was), &path, key, errors);
                }
                None if key == "workloadRef" && self.composite && !spec.has(key) => {
                    required_name(&Value::Null, &path.field(key), "workloadName", form::long_name, errors);
                    required_name(&Value::Null, &path.field(key), "templateName", form::dns_label, errors);
                }
                None => field(spec, key, &path, errors),
            }
        }
    }
}

impl Strategy for PodGroups {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
            set_default(spec, "disruptionMode", json!({"single": {}}));
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        self.group(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.group(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (status, path) = (&object["status"], Path::root("status"));
        condition::validate(status.list("conditions"), &path.field("conditions"), errors);
        let key = "resourceClaimStatuses";
        let (list, found) = (path.field(key), status.list(key));
        let asked = object["spec"].list("resourceClaims");
        for (index, one) in found.iter().enumerate() {
            let name = one.text("name");
            if !asked.iter().any(|claim| claim.text("name") == name) {
                let why = "must match the name of an entry in `spec.resourceClaims`";
                errors.invalid(&list.index(index).field("name"), name, why);
            }
        }
        if same_at(status, &old["status"], key) || !at_most(found, CLAIMS_MAX, &list, errors) {
            return;
        }
        unique(found, &CLAIM_STATUS, &list, errors);
        for (index, one) in found.iter().enumerate() {
            optional_name(one, &list.index(index), "resourceClaimName", form::long_name, errors);
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["metadata", "spec"],
            _ => &[],
        }
    }
}
