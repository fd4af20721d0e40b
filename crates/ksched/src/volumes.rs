//! What the plug-ins about volumes have in common: a pod's claims and their classes.

use std::borrow::Cow;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Volume},
    storage::v1::StorageClass,
};

use crate::{pod::PodInfo, snapshot::catalog::Catalog};

/// The annotation that named the class before there was a field; it still wins.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Stands on a claim once claim and volume know each other.
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The label values of volumes in many zones join them by this.
pub(crate) const MANY_ZONES: &str = "__";

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimUse<'a> {
    pub(crate) name: Cow<'a, str>,
    /// Whether the claim is made from the pod's own template (generic ephemeral volumes).
    pub(crate) ephemeral: bool,
}

impl<'a> ClaimUse<'a> {
    pub(crate) fn of(pod: &PodInfo, volume: &'a Volume) -> Option<Self> {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(Self { name: claim.claim_name.as_str().into(), ephemeral: false });
        }
        let name = || format!("{}-{}", pod.name, volume.name).into();
        volume.ephemeral.as_ref().map(|_| Self { name: name(), ephemeral: true })
    }
}

/// The pod's volumes.
pub(crate) fn volumes(pod: &PodInfo) -> &[Volume] {
    pod.object.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// The claims that a pod uses, in the order of its volumes.
pub(crate) fn claims(pod: &PodInfo) -> impl Iterator<Item = ClaimUse<'_>> {
    volumes(pod).iter().filter_map(|volume| ClaimUse::of(pod, volume))
}

/// The names of the claims that a pod names itself.
pub(crate) fn named_claims(pod: &PodInfo) -> impl Iterator<Item = &str> {
    let sources = volumes(pod).iter().filter_map(|volume| volume.persistent_volume_claim.as_ref());
    sources.map(|source| source.claim_name.as_str())
}

/// Whether a pod uses this claim.
pub(crate) fn uses(pod: &PodInfo, claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.namespace.as_deref().unwrap_or_default() == &*pod.namespace
        && claims(pod).any(|known| Some(&*known.name) == claim.metadata.name.as_deref())
}

/// Says that a claim is not the one that was made for the pod's ephemeral volume (upstream's `VolumeIsForPod`).
pub(crate) fn foreign(pod: &PodInfo, claim: &PersistentVolumeClaim) -> Option<String> {
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.controller == Some(true));
    if owners.any(|owner| owner.uid == *pod.uid) {
        return None;
    }
    let (namespace, name) = (&pod.namespace, claim.metadata.name.as_deref().unwrap_or_default());
    Some(format!(
        "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
        pod.name
    ))
}

/// The text about an object that is not there, as the API words it; `kind` is in the singular, with its group.
pub(crate) fn not_found(kind: &str, name: &str) -> String {
    format!("{kind} {name:?} not found")
}

/// A pod's claim by name, or the text about its absence.
pub(crate) fn claim<'a>(
    catalog: &'a Catalog,
    pod: &PodInfo,
    name: &str,
) -> Result<&'a PersistentVolumeClaim, String> {
    let found = catalog.get::<PersistentVolumeClaim>(&pod.namespace, name);
    found.map(|claim| &**claim).ok_or_else(|| not_found("persistentvolumeclaim", name))
}

/// The name of the claim's volume; empty while it has none.
pub(crate) fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// The name of the claim's class; empty when it has none.
pub(crate) fn class_name(claim: &PersistentVolumeClaim) -> &str {
    let annotated = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(BETA_CLASS));
    let named = || claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    annotated.or_else(named).map_or("", String::as_str)
}

/// How far a claim is on its way to a volume, as far as scheduling asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing<'a> {
    /// It names this volume.
    Volume(&'a str),
    /// It gets one when a pod needs it.
    OnUse(&'a StorageClass),
    /// It gets one without any pod, and has not got it yet.
    AtOnce,
    /// It has neither a volume nor a class.
    NoClass,
    /// The class with this name is not there.
    ClassGone(&'a str),
}

impl<'a> Standing<'a> {
    /// An error when the claim's class does not say when it binds.
    pub(crate) fn of(catalog: &'a Catalog, claim: &'a PersistentVolumeClaim) -> Result<Self, String> {
        let (volume, class) = (volume_name(claim), class_name(claim));
        if !volume.is_empty() {
            return Ok(Self::Volume(volume));
        }
        if class.is_empty() {
            return Ok(Self::NoClass);
        }
        let Some(class) = catalog.get::<StorageClass>("", class) else { return Ok(Self::ClassGone(class)) };
        Ok(if waits_for_consumer(class)? { Self::OnUse(class) } else { Self::AtOnce })
    }
}

/// The name of the volume's class; empty when it has none.
pub(crate) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let annotated = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(BETA_CLASS));
    let named = || volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    annotated.or_else(named).map_or("", String::as_str)
}

/// Whether claim and volume know each other: the controller has finished (upstream's `isPVCFullyBound`).
pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    !volume_name(claim).is_empty() && annotations.is_some_and(|all| all.contains_key(BIND_COMPLETED))
}

/// Whether volumes of this class are bound only when a pod needs them; an error when the class does not say.
pub(crate) fn waits_for_consumer(class: &StorageClass) -> Result<bool, String> {
    match class.volume_binding_mode.as_deref() {
        Some(mode) => Ok(mode == "WaitForFirstConsumer"),
        None => {
            let name = class.metadata.name.as_deref().unwrap_or_default();
            Err(format!("VolumeBindingMode not set for StorageClass {name:?}"))
        }
    }
}
