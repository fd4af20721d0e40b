//! Events, in both groups. They are kept in the form of `core/v1` (`pkg/apis/core/validation/events.go`).

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::check::{Look, Path, Report, form, labels, same_at};

type Errors = Vec<FieldError>;

/// The longest texts of a new event, in bytes.
const INSTANCE_BYTES_MAX: usize = 128;
const ACTION_BYTES_MAX: usize = 128;
const REASON_BYTES_MAX: usize = 128;
const NOTE_BYTES_MAX: usize = 1024;

/// The strategy of `events`.
#[derive(Debug)]
pub(crate) struct Events {
    /// Whether they are those of `events.k8s.io/v1`, whose rules are stricter.
    pub(crate) strict: bool,
}

/// Whether a time is given.
fn has_time(object: &Value, key: &str) -> bool {
    !object.text(key).is_empty()
}

impl Events {
    fn legacy(&self, object: &Value, errors: &mut Errors) {
        let namespace = object["metadata"].text("namespace");
        let (about, field) =
            (object["involvedObject"].text("namespace"), Path::root("involvedObject.namespace"));
        const DIFFERS: &str = "does not match event.namespace";
        if has_time(object, "eventTime") {
            if about.is_empty() && !["default", "kube-system"].contains(&namespace) {
                errors.invalid(&field, about, DIFFERS);
            }
            self.reporter(object, errors);
        } else if about.is_empty() && !["", "default"].contains(&namespace)
            || !about.is_empty() && about != namespace
        {
            errors.invalid(&field, about, DIFFERS);
        }
        errors.faults(&Path::root("namespace"), namespace, form::dns_subdomain(namespace));
    }

    fn reporter(&self, object: &Value, errors: &mut Errors) {
        let controller = object.text("reportingComponent");
        let field = Path::root(if self.strict { "reportingController" } else { "reportingComponent" });
        if controller.is_empty() {
            errors.required(&field, "");
        }
        labels::name(controller, &field, errors);
        for (key, limit, needed) in [
            ("reportingInstance", INSTANCE_BYTES_MAX, true),
            ("action", ACTION_BYTES_MAX, true),
            ("reason", REASON_BYTES_MAX, true),
            ("message", NOTE_BYTES_MAX, false),
        ] {
            let text = object.text(key);
            if needed && text.is_empty() {
                errors.required(&Path::root(key), "");
            }
            if text.len() > limit {
                errors.invalid(&Path::root(key), "", format_args!("can have at most {limit} characters"));
            }
        }
    }
}

fn series(object: &Value, errors: &mut Errors) {
    if let Some(series) = object.get_some("series") {
        if series.int("count") < 2 {
            errors.invalid(&Path::root("series.count"), "", "should be at least 2");
        }
        if !has_time(series, "lastObservedTime") {
            errors.required(&Path::root("series.lastObservedTime"), "");
        }
    }
}

impl Strategy for Events {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        const UNSET: &str = "needs to be unset";
        self.legacy(object, errors);
        if !self.strict {
            return;
        }
        series(object, errors);
        if !has_time(object, "eventTime") {
            errors.required(&Path::root("eventTime"), "");
        }
        let kind = object.text("type");
        if !["Normal", "Warning"].contains(&kind) {
            errors.invalid(&Path::root("type"), "", format_args!("has invalid value: {kind}"));
        }
        for key in ["firstTimestamp", "lastTimestamp"].into_iter().filter(|key| has_time(object, key)) {
            errors.invalid(&Path::root(key), "", UNSET);
        }
        if object.int("count") != 0 {
            errors.invalid(&Path::root("count"), "", UNSET);
        }
        let source = &object["source"];
        if !source.text("component").is_empty() || !source.text("host").is_empty() {
            errors.invalid(&Path::root("source"), "", UNSET);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.legacy(object, errors);
        if !self.strict {
            return;
        }
        if !same_at(object, old, "series") {
            series(object, errors);
        }
        for (key, shown) in [
            ("involvedObject", "involvedObject"),
            ("reason", "reason"),
            ("message", "message"),
            ("source", "source"),
            ("firstTimestamp", "firstTimestamp"),
            ("lastTimestamp", "lastTimestamp"),
            ("count", "count"),
            ("reason", "reason"),
            ("type", "type"),
            ("eventTime", "eventTime"),
            ("action", "action"),
            ("related", "related"),
            ("reportingComponent", "reportingController"),
            ("reportingInstance", "reportingInstance"),
        ] {
            if !same_at(object, old, key) {
                errors.invalid(&Path::root(shown), object.get(key), "field is immutable");
            }
        }
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
