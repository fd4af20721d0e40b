//! Requests of pods for certificates (KEP-4317).

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kcore::Clock;
use kschema::{
    error::FieldError,
    fields::set_default,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::{
    certificate_content::{Leaf, StubFault, is_certificate, stub_fault, stub_key},
    certificate_names::{is_kubernetes_signer, validate_signer},
    check::{Look, Path, Report, condition, form, labels, same},
    pem::blocks,
};

type Errors = Vec<FieldError>;

/// The strategy of `podcertificaterequests`.
#[derive(Debug)]
pub(crate) struct PodCertificateRequests {
    /// Certificates begin about now.
    pub(crate) clock: Arc<dyn Clock>,
}

const DAY_SECONDS: i64 = 24 * 60 * 60;
const EXPIRATION_SECONDS_MIN: i64 = 60 * 60;
const EXPIRATION_SECONDS_MAX: i64 = 91 * DAY_SECONDS;
const STUB_BYTES_MAX: usize = 10 * 1024;
const CHAIN_BYTES_MAX: usize = 100 * 1024;
const UID_BYTES_MAX: usize = 128;
/// How far a certificate's beginning may be from now.
const SKEW_SECONDS: i64 = 5 * 60;
/// How long after its beginning, and before its end, a certificate is not renewed.
const REFRESH_SECONDS: i64 = 10 * 60;
/// What a request can come to.
const FINAL: [&str; 3] = ["Issued", "Denied", "Failed"];

fn who(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (name, uid) in
        [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")]
    {
        let (text, field) = (spec.text(name), path.field(name));
        errors.faults(&field, text, form::dns_subdomain(text));
        let (text, field) = (spec.text(uid), path.field(uid));
        if text.is_empty() {
            errors.invalid(&field, text, "must not be empty");
        }
        if text.len() > UID_BYTES_MAX {
            errors.too_long(&field, UID_BYTES_MAX);
        }
    }
}

fn stub(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
    let bytes = STANDARD.decode(spec.text("stubPKCS10Request")).unwrap_or_default();
    let field = path.field("stubPKCS10Request");
    if bytes.is_empty() {
        errors.invalid_whole(path, ONE);
    } else if bytes.len() > STUB_BYTES_MAX {
        errors.too_long(&field, STUB_BYTES_MAX);
    } else {
        match stub_fault(&bytes) {
            None => {}
            Some(StubFault::Whole(why)) => errors.invalid_whole(&field, why),
            Some(StubFault::Curve(name)) => {
                let shown = format!("curve {name}");
                errors.invalid(&field, shown, "elliptic public keys must use curve P256, P384, or P521");
            }
            Some(StubFault::Modulus(bits)) => {
                let shown = format!("{bits}-bit modulus");
                errors.invalid(&field, shown, "RSA keys must have modulus size 3072 or 4096");
            }
        }
    }
}

fn validate(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let signer = spec.text("signerName");
    validate_signer(signer, &path.field("signerName"), errors);
    let notes = path.field("unverifiedUserAnnotations");
    for (key, _) in spec.map("unverifiedUserAnnotations") {
        labels::domain_prefixed(&key.to_lowercase(), &notes, errors);
    }
    let bytes: usize = spec
        .map("unverifiedUserAnnotations")
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > labels::ANNOTATIONS_BYTES_MAX {
        errors.too_long(&notes, labels::ANNOTATIONS_BYTES_MAX);
    }
    who(spec, path, errors);
    let field = path.field("maxExpirationSeconds");
    let Some(seconds) = spec.some_int("maxExpirationSeconds") else {
        errors.required(&field, "must be set");
        return;
    };
    let most = if is_kubernetes_signer(signer) { DAY_SECONDS } else { EXPIRATION_SECONDS_MAX };
    if !(EXPIRATION_SECONDS_MIN..=most).contains(&seconds) {
        let why = format!("must be in the range [{EXPIRATION_SECONDS_MIN}, {most}]");
        errors.invalid(&field, seconds, why);
    }
    stub(spec, path, errors);
}

fn outcome(status: &Value) -> Option<&'static str> {
    FINAL.into_iter().find(|kind| condition::is_true(status.list("conditions"), kind))
}

fn conditions(found: &[Value], errors: &mut Errors) {
    let mut known = 0;
    for (index, one) in found.iter().enumerate() {
        let kind = one.text("type");
        // Upstream makes the index a step of its own.
        let at = format!("status.conditions.[{index}]");
        let item = Path::root(&at);
        if FINAL.contains(&kind) {
            known += 1;
            if known > 1 {
                let why =
                    "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
                errors.invalid(&item.field("type"), kind, why);
            }
            if one.text("status") != "True" {
                errors.unsupported(&item.field("status"), one.text("status"), &["True"]);
            }
        } else {
            errors.unsupported(&item.field("type"), kind, &FINAL);
        }
    }
    condition::validate(found, &Path::root("status.conditions"), errors);
}

fn names(leaf: &Leaf, path: &Path<'_>, errors: &mut Errors) {
    for name in &leaf.dns {
        if name.is_empty() {
            errors.invalid(path, name.as_str(), "leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            errors.invalid(path, name.as_str(), "leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            errors.invalid(
                path,
                name.as_str(),
                "leaf certificate's DNSName should not start or end with '.'",
            );
        }
    }
    let is_address = |text: &str| {
        text.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty()
                && !host.is_empty()
                && !text.contains([' ', '<', '>', ','])
                && !host.contains('@')
        })
    };
    for address in leaf.emails.iter().filter(|address| !is_address(address)) {
        errors.invalid(path, address.as_str(), "leaf certificate should not contain invalid EmailAddress");
    }
}

/// Checks the times of a certificate that has been issued, until the first that is wrong.
fn times(object: &Value, leaf: &Leaf, now: Timestamp, chain: &Path<'_>, errors: &mut Errors) {
    let (status, path) = (&object["status"], Path::root("status"));
    let needed = [
        ("notBefore", "must be present and consistent with the issued certificate"),
        ("notAfter", "must be present and consistent with the issued certificate"),
        ("beginRefreshAt", "must be present and in the range [notbefore+10min, notafter-10min]"),
    ];
    for (key, why) in needed.iter().filter(|(key, _)| !status.has(key)) {
        errors.required(&path.field(key), why);
    }
    let time = |key: &str| status.text(key).parse::<Timestamp>().ok().map(Timestamp::as_second);
    let (Some(begin), Some(end), Some(refresh)) =
        (time("notBefore"), time("notAfter"), time("beginRefreshAt"))
    else {
        return;
    };
    let lifetime = leaf.not_after.saturating_sub(leaf.not_before);
    let nanoseconds = lifetime.saturating_mul(1_000_000_000);
    let most = object["spec"].int("maxExpirationSeconds");
    let shown = |key: &str| status.text(key).to_owned();
    if begin != leaf.not_before {
        let why = "must be set to the NotBefore time encoded in the leaf certificate";
        errors.invalid(&path.field("notBefore"), shown("notBefore"), why);
    } else if (begin - now.as_second()).abs() >= SKEW_SECONDS {
        let why = "must be set to within 5 minutes of kube-apiserver's current time";
        errors.invalid(&path.field("notBefore"), shown("notBefore"), why);
    } else if end != leaf.not_after {
        let why = "must be set to the NotAfter time encoded in the leaf certificate";
        errors.invalid(&path.field("notAfter"), shown("notAfter"), why);
    } else if lifetime < EXPIRATION_SECONDS_MIN {
        errors.invalid(chain, nanoseconds, "leaf certificate lifetime must be >= 1 hour");
    } else if lifetime > most {
        let why = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        errors.invalid(chain, nanoseconds, why);
    } else if refresh < begin + REFRESH_SECONDS {
        let why = "must be at least 10 minutes after status.notBefore";
        errors.invalid(&path.field("beginRefreshAt"), shown("beginRefreshAt"), why);
    } else if refresh > end - REFRESH_SECONDS {
        let why = "must be at least 10 minutes before status.notAfter";
        errors.invalid(&path.field("beginRefreshAt"), shown("beginRefreshAt"), why);
    }
}

fn issued(object: &Value, now: Timestamp, errors: &mut Errors) {
    let chain = object["status"].text("certificateChain");
    let path = Path::root("status.certificateChain");
    if chain.len() > CHAIN_BYTES_MAX {
        errors.too_long(&path, CHAIN_BYTES_MAX);
        return;
    }
    let mut found = blocks(chain);
    let Some(first) = found.next() else {
        errors.invalid(&path, chain, "issued certificate chain must contain at least one certificate");
        return;
    };
    if first.kind != "CERTIFICATE" {
        let why = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks";
        errors.invalid(&path, chain, why);
        return;
    }
    let Some(leaf) = Leaf::read(&first.bytes) else {
        errors.invalid(&path, chain, "leaf certificate does not parse as valid X.509");
        return;
    };
    names(&leaf, &path, errors);
    let asked = STANDARD.decode(object["spec"].text("stubPKCS10Request")).unwrap_or_default();
    match stub_key(&asked) {
        None => {
            errors.invalid_whole(&Path::root("spec.stubPKCS10Request"), "must be a valid PKCS#10 CSR");
            return;
        }
        Some(key) if key != leaf.key => {
            errors.invalid(&path, chain, "leaf certificate was not issued to the requested public key");
            return;
        }
        Some(_) => {}
    }
    times(object, &leaf, now, &path, errors);
    if !errors.is_empty() {
        return;
    }
    for block in found {
        if block.kind != "CERTIFICATE" {
            let why = "issued certificate chain must consist entirely of CERTFICATE PEM blocks";
            errors.invalid(&path, chain, why);
            return;
        }
        if !is_certificate(&block.bytes) {
            errors.invalid(&path, chain, "intermediate certificate does not parse as valid X.509");
            return;
        }
    }
}

impl Strategy for PodCertificateRequests {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
            set_default(spec, "maxExpirationSeconds", DAY_SECONDS);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        validate(&object["spec"], &Path::root("spec"), errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable_of(
            object,
            old,
            &Path::root(""),
            "spec",
            "~certificates.v1.PodCertificateRequestSpec",
        );
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (status, was, path) = (&object["status"], &old["status"], Path::root("status"));
        let before = errors.len();
        conditions(status.list("conditions"), errors);
        if errors.len() > before {
            return;
        }
        let changed = !same(status, was);
        if outcome(was).is_some() {
            if changed {
                errors.invalid_whole(
                    &path,
                    "immutable after PodCertificateRequest is issued, denied, or failed",
                );
            }
            return;
        }
        match outcome(status) {
            Some("Issued") => issued(object, self.clock.now(), errors),
            Some(_) => {
                let keys = ["certificateChain", "notBefore", "notAfter", "beginRefreshAt"];
                if keys.iter().any(|key| status.has(key)) {
                    let why = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
                    errors.invalid_whole(&path, why);
                }
            }
            None if changed => {
                let why = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
                errors.invalid_whole(&path, why);
            }
            None => {}
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "status" => &["spec"],
            _ => &[],
        }
    }
}
