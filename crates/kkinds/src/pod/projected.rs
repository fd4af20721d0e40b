//! Projected volumes: several sources in one directory, and the downward API.

use std::collections::BTreeSet;

use kschema::error::FieldError;
use serde_json::Value;

use super::{env, options::Options};
use crate::{
    certificate_names as names,
    check::{Internal, Look, Path, Report, labels},
    volume_source::{self as source, local_path},
};

type Errors = Vec<FieldError>;

/// Which fields of a pod a file may hold.
const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// The longest lifetime of a pod's certificate, in seconds, and of one that Kubernetes' own signers sign.
const CERTIFICATE_SECONDS_MAX: i64 = 91 * 24 * 60 * 60;
const KUBERNETES_CERTIFICATE_SECONDS_MAX: i64 = 24 * 60 * 60;

/// A file of the downward API.
pub(crate) fn downward_file(file: &Value, path: &Path<'_>, errors: &mut Errors) {
    errors.needs(file, path, "path");
    local_path(file.text("path"), &path.field("path"), errors);
    let resource = file.get_some("resourceFieldRef");
    if let Some(field) = file.get_some("fieldRef") {
        env::validate_field(field, &FILE_FIELDS, &path.field("fieldRef"), errors);
        if resource.is_some() {
            let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.invalid(path, "resource", why);
        }
    } else if let Some(resource) = resource {
        env::validate_resource(resource, true, &path.field("resourceFieldRef"), errors);
    } else {
        errors.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    source::mode(file, path, "mode", errors);
}

/// The paths that are taken in the directory.
#[derive(Default)]
struct Taken<'a>(BTreeSet<&'a str>);

impl<'a> Taken<'a> {
    /// Takes a path; `shown` is what upstream names when it was taken already.
    fn take(&mut self, target: &'a str, shown: &str, path: &Path<'_>, errors: &mut Errors) {
        if !self.0.insert(target) {
            errors.invalid(path, shown, "conflicting duplicate paths");
        }
    }

    fn take_given(&mut self, target: &'a str, shown: &str, path: &Path<'_>, errors: &mut Errors) {
        if !target.is_empty() {
            self.take(target, shown, path, errors);
        }
    }
}

/// Checks a projected volume.
pub(crate) fn validate(volume: &Value, options: Options, path: &Path<'_>, errors: &mut Errors) {
    source::mode(volume, path, "defaultMode", errors);
    let mut taken = Taken::default();
    let list = path.field("sources");
    for (index, entry) in volume.list("sources").iter().enumerate() {
        let at = list.index(index);
        let mut kinds = 0;
        for kind in ["secret", "configMap"] {
            if let Some(files) = entry.get_some(kind) {
                kinds += 1;
                keyed_files(files, &mut taken, &at.field(kind), path, errors);
            }
        }
        if let Some(downward) = entry.get_some("downwardAPI") {
            kinds += 1;
            for file in downward.list("items") {
                downward_file(file, &at.field("downwardAPI"), errors);
                taken.take_given(file.text("path"), file.text("path"), path, errors);
            }
        }
        if let Some(token) = entry.get_some("serviceAccountToken") {
            kinds += 1;
            service_account_token(token, options, &at.field("serviceAccountToken"), path, errors);
        }
        if let Some(bundle) = entry.get_some("clusterTrustBundle") {
            kinds += 1;
            trust_bundle(bundle, &at.field("clusterTrustBundle"), errors);
            taken.take(bundle.text("path"), bundle.text("path"), path, errors);
        }
        if let Some(certificate) = entry.get_some("podCertificate") {
            kinds += 1;
            pod_certificate(certificate, &mut taken, &at.field("podCertificate"), path, errors);
        }
        if kinds > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

fn keyed_files<'a>(
    files: &'a Value,
    taken: &mut Taken<'a>,
    at: &Path<'_>,
    volume: &Path<'_>,
    errors: &mut Errors,
) {
    errors.needs(files, at, "name");
    let items = at.field("items");
    for (index, item) in files.list("items").iter().enumerate() {
        let path = items.index(index);
        source::needs(item, &path, &["key", "path"], errors);
        local_path(item.text("path"), &path.field("path"), errors);
        source::mode(item, &path, "mode", errors);
        taken.take_given(item.text("path"), files.text("name"), volume, errors);
    }
}

fn service_account_token(
    token: &Value,
    options: Options,
    at: &Path<'_>,
    volume: &Path<'_>,
    errors: &mut Errors,
) {
    let (seconds, field) = (token.int("expirationSeconds"), at.field("expirationSeconds"));
    if seconds < 600 {
        errors.invalid(&field, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errors.invalid(&field, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    // Upstream reports the path at the volume and not at the source.
    let target = token.text("path");
    if target.is_empty() {
        errors.required(&volume.field("path"), "");
    } else if !options.lax_token_path {
        local_path(target, &volume.field("path"), errors);
    }
}

fn trust_bundle(bundle: &Value, at: &Path<'_>, errors: &mut Errors) {
    match (bundle.some_text("name"), bundle.some_text("signerName")) {
        (Some(_), Some(_)) => errors.invalid(at, bundle, "only one of name and signerName may be used"),
        (Some(name), None) => {
            if name.is_empty() {
                errors.required(&at.field("name"), "must be a valid object name");
            }
            for fault in names::trust_bundle_faults(name, &names::signer_of_trust_bundle(name)) {
                let why = format!("not a valid clustertrustbundlename: {fault}");
                errors.invalid(&at.field("name"), name, why);
            }
            if let Some(selector) = bundle.get_some("labelSelector") {
                let why = "labelSelector must be unset if name is specified";
                errors.invalid(&at.field("labelSelector"), Internal("^LabelSelector", Some(selector)), why);
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.required(&at.field("signerName"), "must be a valid signer name");
            }
            names::validate_signer(signer, &at.field("signerName"), errors);
            labels::selector(bundle.get_some("labelSelector"), &at.field("labelSelector"), false, errors);
        }
        (None, None) => errors.required(at, "either name or signerName must be specified"),
    }
    errors.needs(bundle, at, "path");
    local_path(bundle.text("path"), &at.field("path"), errors);
}

fn pod_certificate<'a>(
    certificate: &'a Value,
    taken: &mut Taken<'a>,
    at: &Path<'_>,
    volume: &Path<'_>,
    errors: &mut Errors,
) {
    const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    let signer = certificate.text("signerName");
    names::validate_signer(signer, &at.field("signerName"), errors);
    let field = at.field("userAnnotations");
    for (key, _) in certificate.map("userAnnotations") {
        labels::domain_prefixed(&key.to_lowercase(), &field, errors);
    }
    let kind = certificate.text("keyType");
    if !KEY_TYPES.contains(&kind) {
        errors.unsupported(&at.field("keyType"), kind, &KEY_TYPES);
    }
    if let Some(seconds) = certificate.some_int("maxExpirationSeconds") {
        let field = at.field("maxExpirationSeconds");
        if seconds < 3600 {
            errors.invalid(&field, seconds, "if provided, maxExpirationSeconds must be >= 3600");
        }
        let limit = if names::is_kubernetes_signer(signer) {
            KUBERNETES_CERTIFICATE_SECONDS_MAX
        } else {
            CERTIFICATE_SECONDS_MAX
        };
        if seconds > limit {
            errors.invalid(
                &field,
                seconds,
                format_args!("if provided, maxExpirationSeconds must be <= {limit}"),
            );
        }
    }
    let mut paths = 0;
    for key in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let target = certificate.text(key);
        if !target.is_empty() {
            paths += 1;
            local_path(target, &at.field(key), errors);
            taken.take(target, target, volume, errors);
        }
    }
    if paths == 0 {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.required(at, why);
    }
}
