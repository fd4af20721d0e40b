//! Who may approve and sign requests for certificates, ask for which, and attest whom to trust (upstream's
//! `plugin/pkg/admission/certificates`).

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::{
    authn::{MASTERS, UserInfo},
    authz::Chain,
    error::ApiResult,
    request::RequestInfo,
};

const GROUP: &str = "certificates.k8s.io";

fn is_request(request: &AdmissionRequest<'_>, subresource: &str) -> bool {
    let def = &request.resource.def;
    def.group == GROUP
        && def.plural == "certificatesigningrequests"
        && request.subresource == subresource
        && request.operation != Operation::Delete
}

/// Whether a user may do this for a signer, by its name or for all of its domain.
async fn may(authorizers: &Chain, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let asks = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..RequestInfo::default()
        };
        if authorizers.allows(user, &asks).await {
            return true;
        }
    }
    false
}

fn signer(object: &Value) -> &str {
    object["spec"]["signerName"].as_str().unwrap_or_default()
}

/// What the steps of this file look at.
fn is_checked(request: &AdmissionRequest<'_>, phase: Phase) -> bool {
    phase == Phase::Validate
        && matches!(request.operation, Operation::Create | Operation::Update)
        && request.resource.def.group == GROUP
}

/// Upstream's `CertificateApproval`.
#[derive(Debug)]
pub(crate) struct CertificateApproval(pub(crate) Chain);

#[async_trait]
impl Admission for CertificateApproval {
    fn name(&self) -> &str {
        "CertificateApproval"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        is_checked(request, phase)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let Some(old) = request.old.filter(|_| is_request(request, "approval")) else {
            return Ok(());
        };
        let signer = signer(old);
        if may(&self.0, request.user, "approve", signer).await {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(Asked::new(request, object).forbidden(&why).into())
    }
}

/// Upstream's `CertificateSigning`.
#[derive(Debug)]
pub(crate) struct CertificateSigning(pub(crate) Chain);

#[async_trait]
impl Admission for CertificateSigning {
    fn name(&self) -> &str {
        "CertificateSigning"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        is_checked(request, phase)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let Some(old) = request.old.filter(|_| is_request(request, "status")) else {
            return Ok(());
        };
        let same = |key: &str| object["status"][key] == old["status"][key];
        if same("certificate") && same("conditions") {
            return Ok(());
        }
        let signer = signer(old);
        if may(&self.0, request.user, "sign", signer).await {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(Asked::new(request, object).forbidden(&why).into())
    }
}

/// Upstream's `ClusterTrustBundleAttest`.
#[derive(Debug)]
pub(crate) struct TrustBundleAttest(pub(crate) Chain);

#[async_trait]
impl Admission for TrustBundleAttest {
    fn name(&self) -> &str {
        "ClusterTrustBundleAttest"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        is_checked(request, phase)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let signer = signer(object);
        if (def.group.as_str(), def.plural.as_str()) != (GROUP, "clustertrustbundles")
            || request.operation == Operation::Delete
            || signer.is_empty()
        {
            return Ok(());
        }
        let is_ownership = |old: &Value| crate::authz::escalation::only_ownership_differs(object, old);
        if request.old.is_some_and(is_ownership) || may(&self.0, request.user, "attest", signer).await {
            return Ok(());
        }
        let why = format!("user not permitted to attest for signerName {signer:?}");
        Err(Asked::new(request, object).forbidden(&why).into())
    }
}

/// Upstream's `CertificateSubjectRestriction`: the signer for clients of the API makes nobody a master of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct SubjectRestriction;

#[async_trait]
impl Admission for SubjectRestriction {
    fn name(&self) -> &str {
        "CertificateSubjectRestriction"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        is_checked(request, phase)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
        let is_new = request.operation == Operation::Create && is_request(request, "");
        if !is_new || signer(object) != SIGNER {
            return Ok(());
        }
        let refuse = |why: &str| Err(Asked::new(request, object).forbidden(why).into());
        match organizations(object["spec"]["request"].as_str().unwrap_or_default()) {
            None => refuse("failed to parse CSR: PEM block type must be CERTIFICATE REQUEST"),
            Some(groups) if groups.iter().any(|group| group == MASTERS) => {
                refuse(&format!("use of {SIGNER} signer with {MASTERS} group is not allowed"))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The organizations that a request (base64 of PEM) is for; `None` if it is no request.
fn organizations(request: &str) -> Option<Vec<String>> {
    let pem = STANDARD.decode(request).ok()?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents).ok()?;
    let subject = &parsed.certification_request_info.subject;
    let names = subject.iter_organization().map(|name| name.as_str().unwrap_or_default().to_owned());
    Some(names.collect())
}
