//! The claims of a pod.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::PodResourceClaim,
    resource::v1::{ResourceClaim, ResourceClaimStatus},
};

use crate::{pod::PodInfo, snapshot::catalog::Catalog};

fn entries(pod: &PodInfo) -> &[PodResourceClaim] {
    pod.object.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default()
}

/// Whether a pod has claims.
pub(super) fn has_any(pod: &PodInfo) -> bool {
    !entries(pod).is_empty()
}

/// The name of a claim, and whether it must be one that was made for this pod.
type Name<'a> = (&'a str, bool);

/// The names of the pod's claims, but for those that need not be; an error for one that is not made yet (upstream's
/// `resourceclaim.Name`).
pub(super) fn names(pod: &PodInfo) -> impl Iterator<Item = Result<Name<'_>, String>> {
    entries(pod).iter().filter_map(|entry| name(pod, entry).transpose())
}

fn name<'a>(pod: &'a PodInfo, entry: &'a PodResourceClaim) -> Result<Option<Name<'a>>, String> {
    let (namespace, pod_name) = (&pod.namespace, &pod.name);
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Some((name, false)));
    }
    if entry.resource_claim_template_name.is_none() {
        let name = &entry.name;
        return Err(format!(
            "pod \"{namespace}/{pod_name}\", spec.resourceClaim {name:?}: none of the supported fields are set"
        ));
    }
    let status = pod.object.status.as_ref();
    let mut made = status.and_then(|status| status.resource_claim_statuses.as_ref()).into_iter().flatten();
    match made.find(|made| made.name == entry.name) {
        Some(made) => Ok(made.resource_claim_name.as_deref().map(|name| (name, true))),
        None => Err(format!("pod \"{namespace}/{pod_name}\": ResourceClaim not created yet")),
    }
}

/// The pod's claims (upstream's `foreachPodResourceClaim`).
pub(super) fn find(pod: &PodInfo, catalog: &Catalog) -> Result<Vec<Arc<ResourceClaim>>, String> {
    let mut found = Vec::new();
    for name in names(pod) {
        let (name, must_be_ours) = name?;
        let namespace = &pod.namespace;
        let claim = catalog
            .get::<ResourceClaim>(namespace, name)
            .ok_or_else(|| format!("could not find v1.ResourceClaim \"{namespace}/{name}\""))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim {name:?} is being deleted"));
        }
        let mut owners = claim.metadata.owner_references.iter().flatten();
        if must_be_ours && !owners.any(|owner| owner.controller == Some(true) && owner.uid == *pod.uid) {
            let pod_name = &pod.name;
            return Err(format!(
                "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{pod_name} (Pod is not owner)"
            ));
        }
        found.push(Arc::clone(claim));
    }
    Ok(found)
}

/// Whether a pod uses this claim.
pub(super) fn uses(pod: &PodInfo, claim: &ResourceClaim) -> bool {
    claim.metadata.namespace.as_deref() == Some(&*pod.namespace)
        && names(pod).any(|name| name.is_ok_and(|(name, _)| claim.metadata.name.as_deref() == Some(name)))
}

/// Whether a claim is reserved for this pod.
pub(super) fn is_reserved(status: Option<&ResourceClaimStatus>, uid: &str) -> bool {
    status.is_some_and(|status| status.reserved_for.iter().flatten().any(|user| user.uid == uid))
}

/// Namespace and name.
pub(super) fn key(claim: &ResourceClaim) -> (&str, &str) {
    let meta = &claim.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}
