//! Requests for the status of pools of devices (KEP-5677).

use kschema::{
    error::FieldError,
    fields::{drop_status, set_default},
    strategy::{NameRule, Strategy},
};
use serde_json::Value;

use super::fully_qualified;
use crate::{
    check::{Internal, Look, Path, Report, condition, form, same},
    declared::{at_most, immutable, range},
};

type Errors = Vec<FieldError>;

const ANSWER: &str = "~resource.v1alpha3.ResourcePoolStatusRequestStatus";
const LIMIT: i64 = 100;
const LIMIT_MAX: i64 = 1000;
const POOLS_MAX: usize = 1000;
const CONDITIONS_MAX: usize = 10;
const ERROR_BYTES_MAX: usize = 256;

/// The strategy of `resourcepoolstatusrequests`.
#[derive(Debug)]
pub(crate) struct ResourcePoolStatusRequests;

fn driver(object: &Value, path: &Path<'_>, errors: &mut Errors) {
    errors.name(&path.field("driver"), object.text("driver"), form::long_name_caseless);
}

fn pool(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.len() > form::SUBDOMAIN_BYTES_MAX {
        errors.too_long(path, form::SUBDOMAIN_BYTES_MAX);
    }
    for (index, part) in name.split('/').enumerate() {
        if part.is_empty() {
            errors.invalid(path, name, format_args!("segment {index}: must not be empty"));
        }
        for fault in form::long_name(part).into_iter().filter(|_| !part.is_empty()) {
            errors.invalid(path, part, format_args!("segment {index}: {fault}"));
        }
    }
}

fn pool_status(status: &Value, path: &Path<'_>, errors: &mut Errors) {
    driver(status, path, errors);
    if status.text("poolName").is_empty() {
        errors.required(&path.field("poolName"), "");
    } else {
        pool(status.text("poolName"), &path.field("poolName"), errors);
    }
    if status.int("generation") == 0 {
        errors.required(&path.field("generation"), "");
    } else {
        range(status, path, "generation", 0, i64::MAX, errors);
    }
    range(status, path, "resourceSliceCount", 1, i64::MAX, errors);
    for key in ["totalDevices", "allocatedDevices", "availableDevices", "unavailableDevices"] {
        range(status, path, key, 0, i64::MAX, errors);
    }
    if let Some(node) = status.some_text("nodeName") {
        errors.faults(&path.field("nodeName"), node, form::long_name(node));
    }
    if status.text("validationError").len() > ERROR_BYTES_MAX {
        errors.too_long(&path.field("validationError"), ERROR_BYTES_MAX);
    }
}

impl Strategy for ResourcePoolStatusRequests {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
            set_default(spec, "limit", LIMIT);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        drop_status(object);
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        driver(spec, &path, errors);
        if let Some(name) = spec.some_text("poolName") {
            pool(name, &path.field("poolName"), errors);
        }
        range(spec, &path, "limit", 1, LIMIT_MAX, errors);
        if let Some(name) = spec.some_text("defaultPartitionTypeAttribute") {
            fully_qualified(name, &path.field("defaultPartitionTypeAttribute"), errors);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        immutable(object, Some(old), &Path::root(""), "spec", errors);
    }

    /// What has been answered stays.
    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (path, none) = (Path::root("status"), Value::Null);
        let (new, was) = (object.get_some("status"), old.get_some("status"));
        if let Some(was) = was
            && !same(new.unwrap_or(&none), was)
        {
            errors.invalid(&path, Internal(ANSWER, new), "field is immutable");
        }
        let Some(status) = new.filter(|new| !was.is_some_and(|was| same(new, was))) else {
            return;
        };
        if was.is_none() {
            condition::validate(status.list("conditions"), &path.field("conditions"), errors);
        }
        if status.has("poolCount") {
            range(status, &path, "poolCount", 0, i64::MAX, errors);
        } else {
            errors.required(&path.field("poolCount"), "");
        }
        let (list, found) = (path.field("pools"), status.list("pools"));
        if at_most(found, POOLS_MAX, &list, errors) {
            for (index, one) in found.iter().enumerate() {
                pool_status(one, &list.index(index), errors);
            }
        }
        at_most(status.list("conditions"), CONDITIONS_MAX, &path.field("conditions"), errors);
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
