//! API services: which server serves which group.

use kschema::{
    error::FieldError,
    fields::keep,
    quote::Quoted,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::check::{Look, Path, Report, condition, form};

type Errors = Vec<FieldError>;

/// The strategy of `apiservices`.
#[derive(Debug)]
pub(crate) struct ApiServices;

/// How many bytes a text in base64 stands for.
fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|byte| *byte == b'=').count()
}

impl Strategy for ApiServices {
    /// What this server serves itself is available at once.
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
        if !object["spec"].has("service") {
            let now = object["metadata"]["creationTimestamp"].clone();
            object["status"]["conditions"] = json!([{
                "type": "Available",
                "status": "True",
                "lastTransitionTime": now,
                "reason": "Local",
                "message": "Local APIServices are always available",
            }]);
        }
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
            keep(&mut object["metadata"], &old["metadata"], key);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        let (group, version) = (spec.text("group"), spec.text("version"));
        let (name, needed) = (object["metadata"].text("name"), format!("{version}.{group}"));
        if name != needed {
            let why = format!("must be `spec.version+\".\"+spec.group`: {needed}", needed = Quoted(&needed));
            errors.invalid(&Path::root("metadata.name"), name, why);
        }
        if group.is_empty() && version != "v1" {
            let why = "only v1 may have an empty group and it better be legacy kube";
            errors.required(&path.field("group"), why);
        }
        errors.optional_name(&path.field("group"), group, form::dns_subdomain);
        errors.faults(&path.field("version"), version, form::dns_1035_label(version));
        for (key, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            if !(1..=most).contains(&spec.int(key)) {
                let why = format!("must be positive and less than {most}");
                errors.invalid(&path.field(key), spec.int(key), why);
            }
        }
        let (bundle, insecure) = (spec.text("caBundle"), spec.flag("insecureSkipTLSVerify"));
        let field = path.field("insecureSkipTLSVerify");
        let Some(service) = spec.get_some("service") else {
            if !bundle.is_empty() {
                let shown = format!("{} bytes", decoded_len(bundle));
                errors.invalid(&path.field("caBundle"), shown, "local APIServices may not have a caBundle");
            }
            if insecure {
                errors.invalid(&field, insecure, "local APIServices may not have insecureSkipTLSVerify");
            }
            return;
        };
        let at = path.field("service");
        errors.needs(service, &at, "namespace");
        errors.needs(service, &at, "name");
        let port = service.int("port");
        if !(1..=65_535).contains(&port) {
            let why = "port is not valid: must be between 1 and 65535, inclusive";
            errors.invalid(&at.field("port"), port, why);
        }
        if insecure && !bundle.is_empty() {
            errors.invalid(&field, insecure, "may not be true if caBundle is present");
        }
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let list = Path::root("status.conditions");
        for (index, condition) in object["status"].list("conditions").iter().enumerate() {
            if !condition::STATES.contains(&condition.text("status")) {
                let path = list.index(index);
                let states = ["True", "False", "Unknown"];
                errors.unsupported(&path.field("status"), condition.text("status"), &states);
            }
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["spec", "metadata"],
            _ => &[],
        }
    }
}
