//! Claims of devices that a pod makes (KEP-4381).

use std::collections::BTreeSet;

use kschema::error::FieldError;
use serde_json::Value;

use super::annotations::MIRROR;
use crate::check::{Internal, Look, Path, Report, form};

/// Checks the claims of a pod. `meta`: its metadata; nothing for a template.
pub(crate) fn validate(
    claims: &[Value],
    meta: Option<&Value>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let mirror = meta.is_some_and(|meta| meta["annotations"].has(MIRROR));
    let mut names = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        if mirror {
            errors.forbidden(&Path::root(""), "static pods do not support resource claims");
        } else {
            claim_of_pod(claim, &mut names, &path.index(index), errors);
        }
    }
}

fn claim_of_pod<'a>(
    claim: &'a Value,
    names: &mut BTreeSet<&'a str>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let name = claim.text("name");
    if !name.is_empty() && !names.insert(name) {
        errors.duplicate(&path.field("name"), name);
    } else {
        errors.name(&path.field("name"), name, form::dns_label);
    }
    let (direct, template) = (claim.has("resourceClaimName"), claim.has("resourceClaimTemplateName"));
    if direct && template {
        let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
        errors.invalid(path, Internal("~core.v1.PodResourceClaim", Some(claim)), why);
    }
    if !direct && !template {
        let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
        errors.invalid(path, Internal("~core.v1.PodResourceClaim", Some(claim)), why);
    }
    for key in ["resourceClaimName", "resourceClaimTemplateName"] {
        if let Some(name) = claim.some_text(key) {
            errors.faults(&path.field(key), name, form::dns_subdomain(name));
        }
    }
}

/// Checks which of the pod's claims a container uses.
pub(crate) fn validate_use(claims: &[Value], spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut used: BTreeSet<String> = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let path = path.index(index);
        let (name, request) = (claim.text("name"), claim.text("request"));
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if used.contains(name) {
            errors.duplicate(&path, name);
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                errors.faults(&path.field("request"), request, form::dns_label(request));
                key = format!("{name}/{request}");
            }
            if used.contains(&key) {
                errors.duplicate(&path, key.as_str());
            } else if request.is_empty() {
                let parts =
                    used.iter().filter(|key| key.split_once('/').is_some_and(|(head, _)| head == name));
                for _ in parts {
                    errors.duplicate(&path, name);
                }
            }
            used.insert(key);
        }
        let known: BTreeSet<&str> = spec
            .list("resourceClaims")
            .iter()
            .map(|claim| claim.text("name"))
            .filter(|name| !name.is_empty())
            .collect();
        if !known.contains(name) {
            let mut why = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if known.is_empty() {
                why.push_str(" which is empty");
            } else {
                why = format!("{why}: {}", known.into_iter().collect::<Vec<_>>().join(", "));
            }
            errors.fault(FieldError::not_found_because(path.to_string(), name, why));
        }
    }
}
