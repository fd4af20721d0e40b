//! Claims of devices, templates of claims, and classes of devices.

use kschema::{
    error::FieldError,
    fields::items_mut,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use super::{CONFIGS_MAX, configuration, fits, fully_qualified, label, selectors, status, toleration};
use crate::{
    check::{Look, Path, Report, form, quantity, same_at, texts},
    pod::template_metadata,
};

type Errors = Vec<FieldError>;

/// The strategy of `resourceclaims`.
#[derive(Debug)]
pub(crate) struct ResourceClaims;

/// The strategy of `resourceclaimtemplates`.
#[derive(Debug)]
pub(crate) struct ResourceClaimTemplates;

/// The strategy of `deviceclasses`.
#[derive(Debug)]
pub(crate) struct DeviceClasses;

pub(super) const REQUESTS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const CHOICES_MAX: usize = 8;

/// What is asked for by one name.
fn wanted(request: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (class, field) = (request.text("deviceClassName"), path.field("deviceClassName"));
    errors.name(&field, class, form::dns_subdomain);
    selectors(request, false, path, errors);
    let (count, field) = (request.int("count"), path.field("count"));
    match request.text("allocationMode") {
        "All" => {
            if count != 0 {
                errors.invalid(&field, count, "must not be specified when allocationMode is 'All'");
            }
        }
        "ExactCount" => {
            if count <= 0 {
                errors.invalid(&field, count, "must be greater than zero");
            }
        }
        other => errors.unsupported(&path.field("allocationMode"), other, &["All", "ExactCount"]),
    }
    let list = path.field("tolerations");
    for (index, one) in request.list("tolerations").iter().enumerate() {
        toleration(one, &list.index(index), errors);
    }
}

fn duplicates(entries: &[Value], list: &Path<'_>, errors: &mut Errors) {
    for (index, entry) in entries.iter().enumerate() {
        let name = entry.text("name");
        if entries[..index].iter().any(|other| other.text("name") == name) {
            errors.duplicate(&list.index(index), name);
        }
    }
}

fn request(request: &Value, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    label(request.text("name"), &path.field("name"), errors);
    let choices = request.list("firstAvailable");
    match (request.get_some("exactly"), choices.is_empty()) {
        (None, true) => errors.required(path, ONE),
        (Some(_), false) => {
            errors.invalid(path, None, format_args!("{ONE}, but multiple fields are set"));
        }
        (Some(exactly), true) => wanted(exactly, &path.field("exactly"), errors),
        (None, false) => {
            let list = path.field("firstAvailable");
            if !fits(choices.len(), CHOICES_MAX, &list, errors) {
                return;
            }
            for (index, choice) in choices.iter().enumerate() {
                let item = list.index(index);
                label(choice.text("name"), &item.field("name"), errors);
                wanted(choice, &item, errors);
            }
            duplicates(choices, &list, errors);
        }
    }
}

/// Whether a claim has a request, or a choice within one, of this name.
fn names(devices: &Value, name: &str) -> bool {
    let (first, second) = name.split_once('/').map_or((name, None), |(first, second)| (first, Some(second)));
    devices.list("requests").iter().filter(|request| request.text("name") == first).any(|request| {
        second.is_none_or(|second| {
            request.list("firstAvailable").iter().any(|choice| choice.text("name") == second)
        })
    })
}

/// Checks the name of a request that is elsewhere in the claim.
pub(super) fn request_name(name: &str, devices: &Value, path: &Path<'_>, errors: &mut Errors) {
    const WHY: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    if name.matches('/').count() > 1 {
        errors.invalid(path, name, WHY);
        return;
    }
    name.split('/').for_each(|part| label(part, path, errors));
    if !names(devices, name) {
        errors.invalid(path, name, WHY);
    }
}

/// Checks the list of the requests that something is about.
pub(super) fn request_names(holder: &Value, devices: &Value, path: &Path<'_>, errors: &mut Errors) {
    let list = path.field("requests");
    let found: Vec<&str> = texts(holder.list("requests")).collect();
    if !fits(found.len(), REQUESTS_MAX, &list, errors) {
        return;
    }
    for (index, name) in found.iter().enumerate() {
        request_name(name, devices, &list.index(index), errors);
    }
    for (index, name) in found.iter().enumerate().filter(|(index, name)| found[..*index].contains(name)) {
        errors.duplicate(&list.index(index), *name);
    }
}

/// Checks what a claim asks for.
fn validate(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let none = Value::Null;
    let devices = spec.get("devices").unwrap_or(&none);
    let path = path.field("devices");
    let (list, found) = (path.field("requests"), devices.list("requests"));
    if fits(found.len(), REQUESTS_MAX, &list, errors) {
        for (index, one) in found.iter().enumerate() {
            request(one, &list.index(index), errors);
        }
        duplicates(found, &list, errors);
    }
    let (list, found) = (path.field("constraints"), devices.list("constraints"));
    if fits(found.len(), CONSTRAINTS_MAX, &list, errors) {
        for (index, constraint) in found.iter().enumerate() {
            let item = list.index(index);
            request_names(constraint, devices, &item, errors);
            let keys = ["matchAttribute", "distinctAttribute"];
            match keys.into_iter().find_map(|key| constraint.some_text(key).map(|name| (key, name))) {
                Some((key, name)) => fully_qualified(name, &item.field(key), errors),
                None => errors.required(&item, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set"),
            }
        }
    }
    let (list, found) = (path.field("config"), devices.list("config"));
    if fits(found.len(), CONFIGS_MAX, &list, errors) {
        for (index, config) in found.iter().enumerate() {
            let item = list.index(index);
            request_names(config, devices, &item, errors);
            configuration(config, &item, errors);
        }
    }
}

/// Without a number, one device is meant.
fn default_spec(spec: &mut Value) {
    let count = |request: &mut Value| {
        if request.text("allocationMode").is_empty() {
            request["allocationMode"] = "ExactCount".into();
        }
        if request["allocationMode"] == "ExactCount" && request.int("count") == 0 {
            request["count"] = 1.into();
        }
    };
    let Some(devices) = spec.get_mut("devices") else {
        return;
    };
    for request in items_mut(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly").filter(|exactly| exactly.is_object()) {
            count(exactly);
        }
        items_mut(request, "firstAvailable").for_each(count);
    }
}

impl Strategy for ResourceClaims {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            default_spec(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        status::forget_freed(object, old);
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        validate(&object["spec"], &Path::root("spec"), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable_of(object, old, &Path::root(""), "spec", "~resource.v1.ResourceClaimSpec");
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        status::validate(object, old, errors);
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["metadata", "spec"],
            _ => &[],
        }
    }
}

impl Strategy for ResourceClaimTemplates {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.pointer_mut("/spec/spec") {
            default_spec(spec);
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        template_metadata(&spec["metadata"], &path.field("metadata"), errors);
        validate(&spec["spec"], &path.field("spec"), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable_of(object, old, &Path::root(""), "spec", "~resource.v1.ResourceClaimTemplateSpec");
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

/// Checks a class of devices.
fn class(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let stored = old.is_some_and(|old| same_at(spec, &old["spec"], "selectors"));
    selectors(spec, stored, &path, errors);
    let (list, found) = (path.field("config"), spec.list("config"));
    if fits(found.len(), CONFIGS_MAX, &list, errors) {
        for (index, config) in found.iter().enumerate() {
            configuration(config, &list.index(index), errors);
        }
    }
    if let Some(name) = spec.some_text("extendedResourceName").filter(|name| !quantity::is_extended(name)) {
        let why = "must be a valid extended resource name";
        errors.invalid(&path.field("extendedResourceName"), name, why);
    }
}

impl Strategy for DeviceClasses {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        class(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        class(object, Some(old), errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
