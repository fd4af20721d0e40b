//! Requests for certificates, and bundles of certificates to trust.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kschema::{
    error::FieldError,
    fields::{child, keep},
    quote::Quoted,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::{
    certificate_content::{bundle_faults, chain_fault, request_fault},
    certificate_names::{trust_bundle_faults, validate_signer},
    check::{Look, Path, Report, condition, diff, same_at, texts},
};

type Errors = Vec<FieldError>;

/// The strategy of `certificatesigningrequests`.
#[derive(Debug)]
pub(crate) struct CertificateSigningRequests;

/// The strategy of `clustertrustbundles`.
#[derive(Debug)]
pub(crate) struct ClusterTrustBundles;

const EXPIRATION_SECONDS_MIN: i64 = 600;
const BUNDLE_BYTES_MAX: usize = 1024 * 1024;
/// The signer that requests had before signers had names.
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// The conditions that can only be true.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn has_duplicates(found: &[Value]) -> bool {
    found.iter().enumerate().any(|(index, one)| found[..index].contains(one))
}

fn kinds(object: &Value) -> Vec<Value> {
    object["status"].list("conditions").iter().map(|condition| condition["type"].clone()).collect()
}

/// What a change may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Main,
    Status,
    Approval,
}

fn validate_request(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let request = STANDARD.decode(spec.text("request")).unwrap_or_default();
    let request = String::from_utf8_lossy(&request);
    if let Some(why) = request_fault(&request) {
        errors.invalid(&path.field("request"), spec.text("request"), why);
    }
    let (list, usages) = (path.field("usages"), spec.list("usages"));
    if usages.is_empty() {
        errors.required(&list, "");
    }
    let was = old.map_or(&[][..], |old| old["spec"].list("usages"));
    let unknown = |usage: &str| !USAGES.contains(&usage);
    if !texts(was).any(unknown) {
        for (index, usage) in texts(usages).enumerate().filter(|(_, usage)| unknown(usage)) {
            errors.unsupported(&list.index(index), usage, &USAGES);
        }
    }
    if !has_duplicates(was) {
        for (index, usage) in
            usages.iter().enumerate().filter(|(index, usage)| usages[..*index].contains(usage))
        {
            errors.duplicate(&list.index(index), usage);
        }
    }
    let (signer, field) = (spec.text("signerName"), path.field("signerName"));
    if signer == LEGACY && old.is_none_or(|old| old["spec"].text("signerName") != LEGACY) {
        errors.invalid(&field, signer, "the legacy signerName is not allowed via this API version");
    } else {
        validate_signer(signer, &field, errors);
    }
    if let Some(seconds) =
        spec.some_int("expirationSeconds").filter(|seconds| *seconds < EXPIRATION_SECONDS_MIN)
    {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&path.field("expirationSeconds"), seconds, why);
    }
}

fn conditions(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let list = Path::root("status.conditions");
    let found = object["status"].list("conditions");
    let was = old.map(kinds).unwrap_or_default();
    let named = |kind: &str| was.iter().any(|known| known == kind);
    let (both, twice, empty) = (named("Approved") && named("Denied"), has_duplicates(&was), named(""));
    for (index, one) in found.iter().enumerate() {
        let item = list.index(index);
        let (kind, before) = (one.text("type"), &found[..index]);
        if !empty {
            errors.needs(one, &item, "type");
        }
        let states: &[&str] = if FINAL.contains(&kind) { &["True"] } else { &condition::STATES };
        errors.one_of(&item.field("status"), one.text("status"), states);
        let opposite = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !both && !opposite.is_empty() && before.iter().any(|other| other.text("type") == opposite) {
            errors.invalid(&list, kind, "Approved and Denied conditions are mutually exclusive");
        }
        if !twice && before.iter().any(|other| other.text("type") == kind) {
            errors.duplicate(&item.field("type"), kind);
        }
    }
}

/// Why a chain of certificates is none.
fn certificate_fault(encoded: &str) -> Option<String> {
    let bytes = STANDARD.decode(encoded).unwrap_or_default();
    chain_fault(&String::from_utf8_lossy(&bytes))
}

const CONDITION: &str = "~certificates.v1.CertificateSigningRequestCondition";

/// Conditions as what is different between two lists of them is shown: without entries, null.
fn list_of(conditions: &[Value]) -> Option<Value> {
    (!conditions.is_empty()).then(|| Value::Array(conditions.to_vec()))
}

fn change(object: &Value, old: &Value, scope: Scope, errors: &mut Errors) {
    validate_request(object, Some(old), errors);
    conditions(object, Some(old), errors);
    let (status, was) = (&object["status"], &old["status"]);
    let (new, before) = (status.text("certificate"), was.text("certificate"));
    let path = Path::root("status.certificate");
    if new != before
        && certificate_fault(before).is_none()
        && let Some(why) = certificate_fault(new)
    {
        errors.invalid(&path, "<certificate data>", why);
    }
    let list = Path::root("status.conditions");
    let of = |status: &Value, kind: &str| -> Vec<Value> {
        let found = status.list("conditions").iter();
        found.filter(|condition| condition.text("type") == kind).cloned().collect()
    };
    for kind in FINAL {
        if of(status, kind).len() < of(was, kind).len() {
            errors.forbidden(
                &list,
                format_args!("updates may not remove a condition of type {kind}", kind = Quoted(kind)),
            );
        }
    }
    if scope != Scope::Approval {
        for kind in ["Approved", "Denied"] {
            let (new, before) = (of(status, kind), of(was, kind));
            if new.len() > before.len() {
                errors.forbidden(
                    &list,
                    format_args!("updates may not add a condition of type {kind}", kind = Quoted(kind)),
                );
            } else if new.len() == before.len() && new != before {
                let difference = diff::between(CONDITION, list_of(&before).as_ref(), list_of(&new).as_ref());
                let why = format_args!(
                    "updates may not modify a condition of type {kind}\n{difference}",
                    kind = Quoted(kind)
                );
                errors.forbidden(&list, why);
            }
        }
    }
    if new != before {
        if scope != Scope::Status {
            errors.forbidden(&path, "updates may not set certificate content");
        } else if !before.is_empty() {
            errors.forbidden(&path, "updates may not modify existing certificate content");
        }
    }
}

/// Keeps the conditions of a kind if there are as many as before.
fn keep_conditions(object: &mut Value, old: &Value, kind: &str) {
    let of_kind = |condition: &&Value| condition.text("type") == kind;
    let was: Vec<Value> = old["status"].list("conditions").iter().filter(of_kind).cloned().collect();
    let Some(list) = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) else {
        return;
    };
    let mut found: Vec<&mut Value> =
        list.iter_mut().filter(|condition| condition.text("type") == kind).collect();
    if found.len() == was.len() {
        found.iter_mut().zip(was).for_each(|(new, was)| **new = was);
    }
}

/// A condition that stays has turned when it did before.
fn keep_times(object: &mut Value, old: &Value) {
    let Some(list) = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) else {
        return;
    };
    for new in list.iter_mut().filter(|condition| !condition.has("lastTransitionTime")) {
        let mut was = old["status"].list("conditions").iter();
        let same = |old: &&Value| {
            ["type", "status"].iter().all(|key| same_at(old, new, key)) && old.has("lastTransitionTime")
        };
        if let Some(was) = was.find(same) {
            keep(new, was, "lastTransitionTime");
        }
    }
}

impl Strategy for CertificateSigningRequests {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        keep_conditions(object, old, "Approved");
        keep_conditions(object, old, "Denied");
        keep_times(object, old);
    }

    fn prepare_subresource(&self, _subresource: &str, object: &mut Value, old: &Value) {
        keep_times(object, old);
        let conditions = object["status"].get("conditions").cloned();
        keep(object, old, "spec");
        keep(object, old, "status");
        if let Some(conditions) = conditions {
            child(object, "status")["conditions"] = conditions;
        } else if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
            status.remove("conditions");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_request(object, None, errors);
        conditions(object, None, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        change(object, old, Scope::Main, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        change(object, old, Scope::Status, errors);
    }

    fn validate_subresource(
        &self,
        subresource: &str,
        object: &Value,
        old: &Value,
        errors: &mut Errors,
    ) -> bool {
        let known = subresource == "approval";
        if known {
            change(object, old, Scope::Approval, errors);
        }
        known
    }

    /// Any name will do that fits into a path.
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["spec", "status"],
            "status" => &["spec", "status.conditions"],
            "approval" => &["spec", "status.certificate"],
            _ => &[],
        }
    }
}

fn bundle(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let text = spec.text("trustBundle");
    if text.len() > BUNDLE_BYTES_MAX {
        errors.too_long(path, BUNDLE_BYTES_MAX);
        return;
    }
    for why in bundle_faults(text) {
        errors.invalid(path, "<value omitted>", why);
    }
}

impl ClusterTrustBundles {
    fn named(object: &Value, errors: &mut Errors) {
        let (name, signer) = (object["metadata"].text("name"), object["spec"].text("signerName"));
        errors.faults(&Path::root("metadata.name"), name, trust_bundle_faults(name, signer));
        if !signer.is_empty() {
            validate_signer(signer, &Path::root("spec.signerName"), errors);
        }
    }
}

impl Strategy for ClusterTrustBundles {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        Self::named(object, errors);
        bundle(&object["spec"], &Path::root("spec.trustBundle"), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        Self::named(object, errors);
        if object["spec"].text("trustBundle") != old["spec"].text("trustBundle") {
            bundle(&object["spec"], &Path::root("spec.trustBundle"), errors);
        }
        errors.immutable(&object["spec"], &old["spec"], &Path::root("spec"), "signerName");
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
