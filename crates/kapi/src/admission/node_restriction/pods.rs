//! What a node may do with pods: report the state of those that it runs, delete and evict them, make mirrors of its own ones,
//! and ask for tokens and certificates on their behalf.

use kcore::Status;
use serde_json::Value;

use super::{Write, items};
use crate::{admission::Operation, error::ApiResult};

const MIRROR: &str = "kubernetes.io/config.mirror";

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Write<'_> {
    fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.request.objects.find("", "v1", plural, namespace, name)?.value().ok()
    }

    pub(super) fn pod(&self, name: &str) -> ApiResult<Value> {
        let found = self.find("pods", self.request.namespace, name);
        // Upstream's lister calls the kind so.
        Ok(found.ok_or_else(|| Status::not_found("", "pod", name))?)
    }
}

/// Writes of pods.
pub(super) fn check(write: &Write<'_>, object: &Value) -> ApiResult<()> {
    let node = write.node;
    match (write.request.subresource, write.request.operation) {
        ("", Operation::Create) => create(write, object),
        ("", Operation::Delete) => {
            if text(&write.pod(write.name)?, "/spec/nodeName") == node {
                return Ok(());
            }
            write.forbid(&format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        ("", Operation::Update) => write.forbid(&format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        )),
        ("status", Operation::Update) => status(write, object),
        // An eviction marks the pod and deletes it in the end.
        ("eviction", _) => {
            if text(&write.pod(write.name)?, "/spec/nodeName") == node {
                return Ok(());
            }
            write.forbid(&format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        ("status", _) => write.forbid("unexpected operation"),
        (other, _) => write.forbid(&format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
    }
}

fn create(write: &Write<'_>, pod: &Value) -> ApiResult<()> {
    let node = write.node;
    if pod["metadata"]["annotations"].get(MIRROR).is_none() {
        return write.forbid(&format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    let can = |what: &str| write.forbid(&format!("node {node:?} can only create pods with {what}"));
    if text(pod, "/spec/nodeName") != node {
        return can("spec.nodeName set to itself");
    }
    let owner = match items(pod, "/metadata/ownerReferences") {
        [owner] => owner,
        [] => return can("an owner reference set to itself"),
        _ => return can("a single owner reference set to itself"),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return can("an owner reference set to itself");
    }
    if owner["controller"] != true {
        return can("a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return write.forbid(&format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let found = write.find("nodes", "", node).ok_or_else(|| Status::not_found("", "node", node))?;
    let (wanted, given) = (text(&found, "/metadata/uid"), text(owner, "/uid"));
    if wanted != given {
        return write.forbid(&format!("node {node} UID mismatch: expected {given} got {wanted}"));
    }
    match referenced(pod) {
        Some(what) => write.forbid(&format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// What a pod refers to in the API, in the words of upstream's `HasAPIObjectReference`.
fn referenced(pod: &Value) -> Option<&'static str> {
    const VOLUMES: [(&str, &str); 8] = [
        ("configMap", "configmaps (via configmap volumes)"),
        ("secret", "secrets (via secret volumes)"),
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
        ("azureFile", "secrets (via azureFile volumes)"),
        ("projected", ""),
    ];
    const SOURCES: [(&str, &str); 5] = [
        ("configMap", "configmaps (via projected volumes)"),
        ("secret", "secrets (via projected volumes)"),
        ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("clusterTrustBundle", "clustertrustbundles"),
        ("podCertificate", "podcertificates"),
    ];
    let spec = &pod["spec"];
    if !text(spec, "/serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    let (secrets, config_maps) = crate::authz::node::secrets_and_config_maps(pod);
    if secrets {
        return Some("secrets");
    }
    if config_maps {
        return Some("configmaps");
    }
    if !items(spec, "/resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    let first = |value: &Value, words: &[(&str, &'static str)]| {
        words.iter().find(|(key, _)| value[*key].is_object()).map(|(_, what)| *what)
    };
    items(spec, "/volumes").iter().find_map(|volume| match first(volume, &VOLUMES) {
        Some("") => items(&volume["projected"], "/sources").iter().find_map(|source| first(source, &SOURCES)),
        found => found,
    })
}

fn status(write: &Write<'_>, pod: &Value) -> ApiResult<()> {
    let node = write.node;
    let Some(old) = write.request.old else { return Ok(()) };
    if text(old, "/spec/nodeName") != node {
        let why = "can only update pod status for pods with spec.nodeName set to itself";
        return write.forbid(&format!("node {node:?} {why}"));
    }
    let labels = |pod: &Value| pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    if labels(pod) != labels(old) {
        return write.forbid(&format!("node {node:?} cannot update labels through pod status"));
    }
    if items(pod, "/status/resourceClaimStatuses") != items(old, "/status/resourceClaimStatuses") {
        return write.forbid(&format!("node {node:?} cannot update resource claim statues"));
    }
    if pod["status"]["extendedResourceClaimStatus"] != old["status"]["extendedResourceClaimStatus"] {
        return write.forbid(&format!("node {node:?} cannot update extended resource claim status"));
    }
    Ok(())
}

/// Tokens are only for pods that run on the node.
pub(super) fn token(write: &Write<'_>, request: &Value) -> ApiResult<()> {
    if write.request.operation != Operation::Create || write.request.subresource != "token" {
        return Ok(());
    }
    let bound = &request["spec"]["boundObjectRef"];
    let (name, uid) = (text(bound, "/name"), text(bound, "/uid"));
    if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || name.is_empty() {
        return write.forbid("node requested token not bound to a pod");
    }
    if uid.is_empty() {
        return write.forbid("node requested token with a pod binding without a uid");
    }
    let pod = write.pod(name)?;
    if text(&pod, "/metadata/uid") != uid {
        return write.forbid(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        ));
    }
    if text(&pod, "/spec/nodeName") != write.node {
        return write.forbid("node requested token bound to a pod scheduled on a different node");
    }
    Ok(())
}

/// Certificates are only for pods that run on the node.
pub(super) fn certificate(write: &Write<'_>, request: &Value) -> ApiResult<()> {
    if write.request.operation != Operation::Create || !write.request.subresource.is_empty() {
        return write.forbid("unexpected operation");
    }
    let spec = &request["spec"];
    let namespace = write.request.namespace;
    let asked = text(spec, "/nodeName");
    if asked != write.node {
        return write.forbid(&format!(
            "PodCertificateRequest.Spec.NodeName={asked:?}, which is not the requesting node {:?}",
            write.node
        ));
    }
    let missing = |kind: &str, name: &str| -> ApiResult<()> {
        write.forbid(&format!(
            "while retrieving {kind} {name:?} named in the PodCertificateRequest: not found"
        ))
    };
    let full = |name: &str| format!("{namespace}/{name}");
    let (pod_name, account_name) = (text(spec, "/podName"), text(spec, "/serviceAccountName"));
    let Some(node) = write.find("nodes", "", asked) else { return missing("node", asked) };
    let Some(pod) = write.find("pods", namespace, pod_name) else { return missing("pod", &full(pod_name)) };
    let Some(account) = write.find("serviceaccounts", namespace, account_name) else {
        return missing("service account", &full(account_name));
    };
    for (what, object, uid) in [
        ("node", &node, text(spec, "/nodeUID")),
        ("pod", &pod, text(spec, "/podUID")),
        ("service account", &account, text(spec, "/serviceAccountUID")),
    ] {
        let found = text(object, "/metadata/uid");
        if found != uid {
            let pod = full(pod_name);
            return write.forbid(&format!(
                "PodCertificateRequest for pod {pod:?} names {what} UID {uid:?}, which differs from the running one ({found:?})"
            ));
        }
    }
    let pod_name = full(pod_name);
    if text(&pod, "/spec/nodeName") != asked {
        let why = format!("is not running on node {asked:?} named in the PodCertificateRequest");
        return write.forbid(&format!("pod {pod_name:?} {why}"));
    }
    if pod["metadata"]["annotations"].get(MIRROR).is_some() {
        return write.forbid(&format!("pod {pod_name:?} is a mirror pod"));
    }
    let running = text(&pod, "/spec/serviceAccountName");
    if account_name != running {
        return write.forbid(&format!(
            "PodCertificateRequest for pod {pod_name:?} contains serviceAccountName ({account_name:?}) that differs from \
             running pod ({running:?})"
        ));
    }
    Ok(())
}
