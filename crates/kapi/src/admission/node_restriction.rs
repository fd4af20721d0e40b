//! What a node may write (upstream's `plugin/pkg/admission/noderestriction`): itself, the pods that it runs, and what belongs
//! to both. What it may read, the authorizer says ([`authz::Node`](crate::authz::Node)).

mod audiences;
mod labels;
mod pods;

use async_trait::async_trait;
use kcore::Status;
use serde_json::Value;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

pub(crate) use self::audiences::TokenAudience;
use super::{Admission, AdmissionRequest, Operation, Phase};
use crate::{authz::node::node_of, error::ApiResult};

/// Keeps users that are nodes from writing what is not theirs; looks at nobody else.
#[derive(Clone, Copy, Debug)]
pub struct NodeRestriction;

/// Signers whose certificates make a node.
const SIGNERS: [&str; 2] = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];
const LEASES: &str = "kube-node-lease";

/// A request of a node.
pub(super) struct Write<'a> {
    pub(super) node: &'a str,
    pub(super) request: &'a AdmissionRequest<'a>,
    /// The object's name, also while it is created.
    pub(super) name: &'a str,
}

impl Write<'_> {
    /// 403 in the words of upstream's admission.
    pub(super) fn forbid(&self, why: &str) -> ApiResult<()> {
        let def = &self.request.resource.def;
        Err(Status::forbidden(&def.group, &def.plural, self.name, why).into())
    }
}

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &str {
        "NodeRestriction"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        let is_asked = match phase {
            Phase::Admit => request.operation != Operation::Connect,
            // Deletions, and evictions, which change no object of their own.
            Phase::Validate => request.operation == Operation::Delete || request.subresource == "eviction",
        };
        is_asked && node_of(request.user).is_some()
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        check(request, object)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        check(request, object)
    }
}

fn check(request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
    let Some(node) = node_of(request.user) else {
        return Ok(());
    };
    let own = object["metadata"]["name"].as_str().unwrap_or_default();
    let write = Write { node, request, name: if request.name.is_empty() { own } else { request.name } };
    if node.is_empty() {
        return write.forbid(&format!("could not determine node from user {:?}", request.user.name));
    }
    let def = &request.resource.def;
    match (def.group.as_str(), def.plural.as_str()) {
        ("", "pods") => pods::check(&write, object),
        ("", "nodes") => own_node(&write, object),
        ("", "persistentvolumeclaims") => claim(&write, object),
        ("", "serviceaccounts") => pods::token(&write, object),
        ("certificates.k8s.io", "podcertificaterequests") => pods::certificate(&write, object),
        ("certificates.k8s.io", "certificatesigningrequests") => signing_request(&write, object),
        ("coordination.k8s.io", "leases") => lease(&write),
        ("storage.k8s.io", "csinodes") => {
            named_as_node(&write, "can only access CSINode with the same name as the requesting node")
        }
        ("resource.k8s.io", "resourceslices") => slice(&write, object),
        _ => Ok(()),
    }
}

fn named_as_node(write: &Write<'_>, why: &str) -> ApiResult<()> {
    if write.name == write.node { Ok(()) } else { write.forbid(why) }
}

fn lease(write: &Write<'_>) -> ApiResult<()> {
    if write.request.namespace != LEASES {
        return write.forbid(&format!("can only access leases in the {LEASES:?} system namespace"));
    }
    named_as_node(write, "can only access node lease with the same name as the requesting node")
}

fn own_node(write: &Write<'_>, object: &Value) -> ApiResult<()> {
    let node = write.node;
    if write.name != node {
        return write.forbid(&format!("node {node:?} is not allowed to modify node {:?}", write.name));
    }
    let source = &object["spec"]["configSource"];
    match (write.request.operation, write.request.old) {
        (Operation::Create, _) => {
            if !source.is_null() {
                let why = format!("node {node:?} is not allowed to create pods with a non-nil configSource");
                return write.forbid(&why);
            }
            let forbidden = labels::forbidden(object, &Value::Null);
            if !forbidden.is_empty() {
                let why = format!("node {node:?} is not allowed to set the following labels: {forbidden}");
                return write.forbid(&why);
            }
        }
        (Operation::Update, Some(old)) => {
            if !source.is_null() && *source != old["spec"]["configSource"] {
                let why = "is not allowed to update configSource to a new non-nil configSource";
                return write.forbid(&format!("node {node:?} {why}"));
            }
            for (path, what) in [("/spec/taints", "taints"), ("/metadata/ownerReferences", "ownerReferences")]
            {
                if items(object, path) != items(old, path) {
                    return write.forbid(&format!("node {node:?} is not allowed to modify {what}"));
                }
            }
            let forbidden = labels::forbidden(object, old);
            if !forbidden.is_empty() {
                return write.forbid(&format!("is not allowed to modify labels: {forbidden}"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// A list; none is an empty one.
fn items<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    object.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Of a claim, what a node finds out when it has grown the volume.
fn claim(write: &Write<'_>, object: &Value) -> ApiResult<()> {
    const FREE: [&str; 4] = ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"];
    if write.request.subresource != "status" {
        return write.forbid("may only update PVC status");
    }
    let Some(old) = write.request.old else {
        return write.forbid("unexpected operation \"CREATE\"");
    };
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        if let Some(metadata) = claim["metadata"].as_object_mut() {
            metadata.retain(|key, _| key != "resourceVersion" && key != "managedFields");
        }
        if let Some(status) = claim["status"].as_object_mut() {
            status.retain(|key, _| !FREE.contains(&key.as_str()));
        }
        claim
    };
    let (new, before) = (rest(object), rest(old));
    if new == before {
        return Ok(());
    }
    let keys = new.as_object().into_iter().flatten().chain(before.as_object().into_iter().flatten());
    let mut changed: Vec<&str> =
        keys.map(|(key, _)| key.as_str()).filter(|key| new[*key] != before[*key]).collect();
    changed.sort_unstable();
    changed.dedup();
    write.forbid(&format!(
        "node {:?} is not allowed to update fields other than status.quantity and status.conditions: {} changed",
        write.node,
        changed.join(", ")
    ))
}

fn slice(write: &Write<'_>, object: &Value) -> ApiResult<()> {
    let verb = match write.request.operation {
        Operation::Create => "create",
        Operation::Delete => "delete",
        Operation::Update | Operation::Connect => return Ok(()),
    };
    // Of what is deleted only a part may have been read.
    let stored = match write.request.operation {
        Operation::Delete => write.request.objects.get(write.request.resource, "", write.name),
        _ => None,
    };
    let stored = stored.and_then(|stored| stored.value().ok());
    if stored.as_ref().unwrap_or(object)["spec"]["nodeName"] == write.node {
        return Ok(());
    }
    write.forbid(&format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
}

fn signing_request(write: &Write<'_>, object: &Value) -> ApiResult<()> {
    let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
    if write.request.operation != Operation::Create || !SIGNERS.contains(&signer) {
        return Ok(());
    }
    let expected = format!("system:node:{}", write.node);
    match common_name(object["spec"]["request"].as_str().unwrap_or_default()) {
        Some(name) if name == expected => Ok(()),
        Some(_) => write.forbid(&format!("can only create a node CSR with CN={expected}")),
        None => write.forbid("unable to parse csr: PEM block type must be CERTIFICATE REQUEST"),
    }
}

/// The common name that a request (base64 of PEM) is for; empty if it has none, `None` if it is no request.
fn common_name(request: &str) -> Option<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let pem = STANDARD.decode(request).ok()?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents).ok()?;
    let subject = &parsed.certification_request_info.subject;
    let name = subject.iter_common_name().next().map(|name| name.as_str().map(str::to_owned));
    Some(name.and_then(Result::ok).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn the_name_in_a_request_is_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n1");
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(common_name(&STANDARD.encode(pem)).as_deref(), Some("system:node:n1"));
        for broken in ["", "%", "YWJj"] {
            assert_eq!(common_name(broken), None, "{broken}");
        }
    }
}
