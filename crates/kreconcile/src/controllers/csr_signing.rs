//! Certificate requests that were approved are signed (KEP-1513).

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    },
};
use kcore::Clock;

use super::{Context, pod_state::stored_time};
use crate::{
    controller::Controller,
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::Requests,
    resource::Selection,
    trigger::{MapTo, Trigger},
};

mod request;

pub(crate) use request::{NODE_CLIENT, ParsedRequest, check_node_client, parse};

/// How long a certificate is valid that asks for no time of its own, and the longest that one can ask for
/// (`--cluster-signing-duration`).
pub const CERTIFICATE_AGE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest time that a certificate is valid for; who asks for less gets this.
pub const CERTIFICATE_AGE_MIN: Duration = Duration::from_secs(600);
/// How far the begin of validity lies in the past, for machines whose clocks differ.
const BACKDATE: Duration = Duration::from_secs(300);
/// Certificates that are valid for less don't end sooner for having begun in the past.
const SHORT: Duration = Duration::from_secs(8 * 3600);

/// A certificate to make: the subject, public key and alternative names are those of the request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SigningRequest<'a> {
    /// The request (PKCS #10) in DER. Its signature has not been checked.
    pub der: &'a [u8],
    /// What the certificate may be used for, in the words of `certificates.k8s.io/v1`.
    pub usages: &'a [String],
    /// The begin of validity.
    pub not_before: Timestamp,
    /// The end of validity, or sooner if the authority's own ends sooner.
    pub not_after: Timestamp,
}

/// Why a certificate was not made; it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SignError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl SignError {
    /// Wraps any error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// A certificate authority. `testing::check_certificate_signer` checks one.
///
/// [`csr_signing`] calls it once for each request that was approved and that its signer's rules allow. Calls may overlap, and
/// the same request may come again if the answer could not be written down.
#[async_trait]
pub trait CertificateSigner: Send + Sync + 'static {
    /// Makes a certificate, in PEM. The signature of the request must be checked: it shows that the asker has the key. No
    /// extension is taken from the request but the alternative names, and it is never that of an authority.
    ///
    /// # Errors
    /// [`SignError`]: a usage that is unknown, a request that is malformed or not signed by its key, or an authority that has
    /// expired.
    async fn sign(&self, request: &SigningRequest<'_>) -> Result<String, SignError>;
}

const _: Option<&dyn CertificateSigner> = None;

impl fmt::Debug for dyn CertificateSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateSigner")
    }
}

/// The controller `certificatesigningrequest-signing-controller`: issues the certificates that were approved for the signers
/// `kubernetes.io/kube-apiserver-client`, `kubernetes.io/kube-apiserver-client-kubelet`, `kubernetes.io/kubelet-serving` and
/// `kubernetes.io/legacy-unknown`, each with its rules; a request that breaks them fails. Other signers' are left alone.
pub fn csr_signing(context: &Context, signer: Arc<dyn CertificateSigner>) -> Controller {
    const NAME: &str = "certificatesigningrequest-signing-controller";
    let signing_requests = context.informers().of::<CertificateSigningRequest>(Selection::all());
    let reconciler = CsrSigning {
        signing_requests: signing_requests.clone(),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
        signer,
    };
    Controller::new(NAME, reconciler).on(Trigger::new(&signing_requests, MapTo::Itself))
}

/// Whether somebody approved a request, and nobody denied it or found it wrong.
fn is_to_be_signed(status: &CertificateSigningRequestStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let has = |kind: &str| conditions.iter().any(|condition| condition.type_ == kind);
    let failed = conditions
        .iter()
        .any(|condition| condition.type_ == "Failed" && matches!(&*condition.status, "" | "True"));
    let issued = status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty());
    !issued && has("Approved") && !has("Denied") && !failed
}

/// When a certificate is valid that asks for so many seconds, if for any.
fn validity(asked: Option<i32>, now: Timestamp) -> (Timestamp, Timestamp) {
    let asked = asked.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let age =
        asked.map_or(CERTIFICATE_AGE_MAX, |asked| asked.clamp(CERTIFICATE_AGE_MIN, CERTIFICATE_AGE_MAX));
    let left = if age < SHORT { age } else { age.saturating_sub(BACKDATE) };
    (now.checked_sub(BACKDATE).unwrap_or(Timestamp::MIN), now.checked_add(left).unwrap_or(Timestamp::MAX))
}

struct CsrSigning {
    signing_requests: Informer<CertificateSigningRequest>,
    requests: Requests,
    clock: Arc<dyn Clock>,
    signer: Arc<dyn CertificateSigner>,
}

#[async_trait]
impl Reconciler for CsrSigning {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.signing_requests.lister().get("", &key.name) else { return Ok(Action::Done) };
        let found = stored.typed::<CertificateSigningRequest>()?;
        let old = found.status.clone().unwrap_or_default();
        if !is_to_be_signed(&old) {
            return Ok(Action::Done);
        }
        let spec = &found.spec;
        let usages = spec.usages.as_deref().unwrap_or_default();
        let parsed = parse(&spec.request.0)
            .map_err(|why| ReconcileError::terminal(format!("unable to parse csr {:?}: {why}", key.name)))?;
        let mut status = old;
        match request::check(&spec.signer_name, &parsed, usages) {
            None => return Ok(Action::Done),
            Some(Err(why)) => {
                let now = stored_time(self.clock.now());
                status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                    type_: "Failed".to_owned(),
                    status: "True".to_owned(),
                    reason: Some("SignerValidationFailure".to_owned()),
                    message: Some(why),
                    last_update_time: Some(now),
                    last_transition_time: None,
                });
            }
            Some(Ok(())) => {
                let (not_before, not_after) = validity(spec.expiration_seconds, self.clock.now());
                let request = SigningRequest { der: &parsed.der, usages, not_before, not_after };
                let made = self.signer.sign(&request).await.map_err(ReconcileError::other)?;
                status.certificate = Some(ByteString(made.into_bytes()));
            }
        }
        let path = self.signing_requests.resource().path("", &key.name);
        let old = found.status.as_ref();
        self.requests.write_status(&path, stored.revision(), old, &status).await?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of upstream's `TestDuration` (signer) and `TestPermissiveSigningPolicy` (authority).
    #[test]
    fn certificates_are_valid_for_as_long_as_they_may() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let (minute, hour, day) = (60, 3600, 24 * 3600);
        let cases = [
            (None, 365 * i64::from(day) - 300),
            (Some(day), i64::from(day) - 300),
            (Some(8 * hour), i64::from(8 * hour) - 300),
            (Some(8 * hour - 1), i64::from(8 * hour) - 1),
            (Some(minute), 600),
            (Some(-1), 600),
            (Some(i32::MAX), 365 * i64::from(day) - 300),
        ];
        for (asked, seconds) in cases {
            let (from, to) = validity(asked, now);
            assert_eq!(now.as_second() - from.as_second(), 300, "{asked:?}");
            assert_eq!(to.as_second() - now.as_second(), seconds, "{asked:?}");
        }
    }

    /// The rules of upstream's `IsCertificateRequestApproved` and `HasTrueCondition`.
    #[test]
    fn only_what_was_approved_is_signed() {
        let cases = [
            (&[][..], "", false),
            (&["Approved"], "", true),
            (&["Approved"], "cert", false),
            (&["Approved", "Denied"], "", false),
            (&["Approved", "Failed"], "", false),
            (&["Denied"], "", false),
        ];
        for (conditions, certificate, expected) in cases {
            let condition = |kind: &&str| CertificateSigningRequestCondition {
                type_: (*kind).to_owned(),
                status: "True".to_owned(),
                ..CertificateSigningRequestCondition::default()
            };
            let status = CertificateSigningRequestStatus {
                conditions: Some(conditions.iter().map(condition).collect()),
                certificate: Some(ByteString(certificate.into())),
            };
            assert_eq!(is_to_be_signed(&status), expected, "{conditions:?} {certificate}");
        }
    }
}
