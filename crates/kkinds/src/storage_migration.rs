//! Migrations of stored objects to another version (KEP-4192).

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::check::{Look, Path, Report, condition, form};

type Errors = Vec<FieldError>;

/// The strategy of `storageversionmigrations`.
#[derive(Debug)]
pub(crate) struct StorageVersionMigrations;

/// Why a text is no resource version.
fn version_fault(version: &str) -> Option<String> {
    let good = !version.starts_with('0') && version.bytes().all(|byte| byte.is_ascii_digit());
    (!good).then(|| format!("resource version is not well formed: {version}"))
}

impl Strategy for StorageVersionMigrations {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec.resource"));
        let target = spec.get("resource").unwrap_or(&Value::Null);
        let (resource, field) = (target.text("resource"), path.field("resource"));
        let faults = form::dns_1035_label(resource);
        if resource.is_empty() {
            errors.required(&field, "resource is required to be set");
        } else if !faults.is_empty() {
            errors.invalid(&field, resource, faults.join(","));
        }
        let group = target.text("group");
        let faults = form::dns_subdomain(group);
        if !group.is_empty() && !faults.is_empty() {
            errors.invalid(&path.field("group"), group, faults.join(","));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable_of(
            object,
            old,
            &Path::root(""),
            "spec",
            "~storagemigration.v1.StorageVersionMigrationSpec",
        );
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (status, was, path) = (&object["status"], &old["status"], Path::root("status"));
        let (version, field) = (status.text("resourceVersion"), path.field("resourceVersion"));
        if !version.is_empty()
            && let Some(why) = version_fault(version)
        {
            errors.invalid(&field, version, why);
        }
        let (conditions, list) = (status.list("conditions"), path.field("conditions"));
        condition::validate(conditions, &list, errors);
        let before = was.text("resourceVersion");
        if !before.is_empty() && before != version {
            errors.invalid(&field, version, "field is immutable");
        }
        let shown = status.get_some("conditions");
        let is = |kind: &str| condition::is_true(conditions, kind);
        if is("Succeeded") && is("Failed") {
            let why = "Both success and failed conditions cannot be true at the same time";
            errors.invalid(&list, shown, why);
        }
        for (kind, word) in [("Succeeded", "Success"), ("Failed", "Failed")] {
            if condition::is_true(was.list("conditions"), kind) && !is(kind) {
                let why = format!("{word} condition cannot be set to false once it is true");
                errors.invalid(&list, shown, why);
            }
        }
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["metadata", "spec"],
            _ => &[],
        }
    }
}
