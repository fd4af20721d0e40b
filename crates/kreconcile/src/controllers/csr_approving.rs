//! The certificate requests of nodes are approved, if they may have what they ask for (KEP-266).

use async_trait::async_trait;
use k8s_openapi::api::{authorization::v1::SubjectAccessReview, certificates::v1::CertificateSigningRequest};
use serde_json::json;

use super::{
    Context,
    csr_signing::{NODE_CLIENT, ParsedRequest, check_node_client, parse},
};
use crate::{
    controller::Controller,
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests, Written},
    resource::Selection,
    trigger::{MapTo, Trigger},
};

/// The controller `certificatesigningrequest-approving-controller`: approves requests for a node's client certificate when a
/// SubjectAccessReview says that the asker may `create` `certificatesigningrequests/nodeclient`, or for a certificate of its
/// own name, `certificatesigningrequests/selfnodeclient`. Those that may not are asked about again with a back-off, since a
/// role may be given to them later; nothing is denied.
pub fn csr_approving(context: &Context) -> Controller {
    const NAME: &str = "certificatesigningrequest-approving-controller";
    let signing_requests = context.informers().of::<CertificateSigningRequest>(Selection::all());
    let reconciler =
        CsrApproving { signing_requests: signing_requests.clone(), requests: context.requests(NAME) };
    Controller::new(NAME, reconciler).on(Trigger::new(&signing_requests, MapTo::Itself))
}

/// What an asker must be allowed to create, and what the approval says.
type Permission = (&'static str, &'static str);

const SELF: Permission =
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
const OTHER: Permission =
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");

/// The permissions of which one is enough; none for what is not approved here.
fn permissions(found: &CertificateSigningRequest, parsed: &ParsedRequest) -> &'static [Permission] {
    let usages = found.spec.usages.as_deref().unwrap_or_default();
    if found.spec.signer_name != NODE_CLIENT || check_node_client(parsed, usages).is_err() {
        &[]
    } else if found.spec.username.as_deref() == Some(&*parsed.common_name) {
        &[SELF, OTHER]
    } else {
        &[OTHER]
    }
}

/// Whether nobody has decided yet.
fn is_open(found: &CertificateSigningRequest) -> bool {
    let Some(status) = &found.status else { return true };
    let issued = status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty());
    let conditions = status.conditions.iter().flatten();
    let decided = conditions.into_iter().any(|known| matches!(&*known.type_, "Approved" | "Denied"));
    !issued && !decided
}

struct CsrApproving {
    signing_requests: Informer<CertificateSigningRequest>,
    requests: Requests,
}

#[async_trait]
impl Reconciler for CsrApproving {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(found) = self.signing_requests.get("", &key.name).filter(|found| is_open(found)) else {
            return Ok(Action::Done);
        };
        if found.spec.signer_name != NODE_CLIENT {
            return Ok(Action::Done);
        }
        let parsed = parse(&found.spec.request.0)
            .map_err(|why| ReconcileError::terminal(format!("unable to parse csr {:?}: {why}", key.name)))?;
        let permissions = permissions(&found, &parsed);
        for (subresource, message) in permissions {
            if self.may(&found, subresource).await? {
                return self.approve(&found, message).await;
            }
        }
        Ok(if permissions.is_empty() { Action::Done } else { Action::Retry })
    }
}

impl CsrApproving {
    async fn may(&self, found: &CertificateSigningRequest, subresource: &str) -> Result<bool, kube::Error> {
        let spec = &found.spec;
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
                    "verb": "create", "subresource": subresource, "version": "*"},
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer: SubjectAccessReview = self.requests.create(path, review.to_string()).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn approve(
        &self,
        found: &CertificateSigningRequest,
        message: &str,
    ) -> Result<Action, ReconcileError> {
        let known = found.status.as_ref().and_then(|status| status.conditions.clone());
        let mut conditions = serde_json::to_value(known.unwrap_or_default())?;
        if let Some(conditions) = conditions.as_array_mut() {
            conditions.push(
                json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message}),
            );
        }
        let patch = json!({"metadata": {"resourceVersion": found.metadata.resource_version},
            "status": {"conditions": conditions}});
        let name = found.metadata.name.as_deref().unwrap_or_default();
        let path = format!("{}/approval", self.signing_requests.resource().path("", name));
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(Action::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of upstream's `TestHandle` and `TestRecognizers` (approver).
    #[test]
    fn nodes_need_a_permission() {
        let node = ParsedRequest {
            common_name: "system:node:a".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            ..ParsedRequest::default()
        };
        let usages = ["digital signature", "client auth"];
        let cases = [
            (NODE_CLIENT, "system:node:a", &usages[..], &[SELF, OTHER][..]),
            (NODE_CLIENT, "system:bootstrap:abc", &usages, &[OTHER]),
            (NODE_CLIENT, "system:node:a", &usages[..1], &[]),
            ("kubernetes.io/kube-apiserver-client", "system:node:a", &usages, &[]),
        ];
        for (signer, user, usages, expected) in cases {
            let found: CertificateSigningRequest = serde_json::from_value(json!({"metadata": {"name": "r"},
                "spec": {"signerName": signer, "username": user, "usages": usages, "request": ""}}))
            .unwrap();
            assert_eq!(permissions(&found, &node), expected, "{signer} {user} {usages:?}");
        }
    }
}
