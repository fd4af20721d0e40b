//! Rules that taint devices (KEP-5055), and the taints of devices.

use std::sync::Arc;

use kcore::{Clock, clock::format_time};
use kschema::{
    error::FieldError,
    fields::items_mut,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use super::{EFFECTS, label, pool};
use crate::{
    check::{Look, Path, Report, condition, form, labels, same_at},
    volume_source::csi_driver,
};

type Errors = Vec<FieldError>;

const CONDITIONS_MAX: usize = 8;

/// The strategy of `devicetaintrules`.
#[derive(Debug)]
pub(crate) struct DeviceTaintRules {
    /// Tells when a taint was added.
    pub(crate) clock: Arc<dyn Clock>,
}

/// A taint that does not say when it was added is added now.
pub(super) fn default_taint(taint: &mut Value, clock: &dyn Clock) {
    if taint.is_object() && !taint.has("timeAdded") {
        taint["timeAdded"] = format_time(clock.now()).into();
    }
}

/// [`default_taint`] for all taints of devices.
pub(super) fn default_taints(devices: &mut Value, clock: &dyn Clock) {
    for device in items_mut(devices, "devices") {
        items_mut(device, "taints").for_each(|taint| default_taint(taint, clock));
    }
}

/// Checks a taint. An effect that it has had before may stay.
pub(super) fn taint(taint: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    labels::name(taint.text("key"), &path.field("key"), errors);
    let value = taint.text("value");
    errors.optional_name(&path.field("value"), value, form::label_value);
    if old.is_none_or(|old| old.text("effect") != taint.text("effect")) {
        errors.one_of(&path.field("effect"), taint.text("effect"), &EFFECTS);
    }
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    if let Some(selector) = spec.get_some("deviceSelector") {
        let at = path.field("deviceSelector");
        if let Some(name) = selector.some_text("driver") {
            csi_driver(name, &at.field("driver"), errors);
        }
        if let Some(name) = selector.some_text("pool") {
            pool(name, &at.field("pool"), errors);
        }
        if let Some(name) = selector.some_text("device") {
            label(name, &at.field("device"), errors);
        }
    }
    taint(&spec["taint"], old.map(|old| &old["spec"]["taint"]), &path.field("taint"), errors);
}

impl Strategy for DeviceTaintRules {
    fn default(&self, object: &mut Value) {
        if let Some(taint) = object.pointer_mut("/spec/taint") {
            default_taint(taint, &*self.clock);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    /// With a new effect a taint is added anew, unless its time is given anew, too.
    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let (new, was) = (&object["spec"]["taint"], &old["spec"]["taint"]);
        if !same_at(new, was, "effect") && same_at(new, was, "timeAdded") {
            object["spec"]["taint"]["timeAdded"] = format_time(self.clock.now()).into();
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let (list, found) = (Path::root("status.conditions"), object["status"].list("conditions"));
        condition::validate(found, &list, errors);
        if found.len() > CONDITIONS_MAX {
            errors.too_many(&list, found.len(), CONDITIONS_MAX);
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
