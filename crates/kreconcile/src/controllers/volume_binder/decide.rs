//! What is to be done with a claim or a volume; nothing here asks or writes anything (upstream's `syncClaim` and
//! `syncVolume`).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kcore::quantity::Quantity;
use serde_json::{Value, json};

use super::matching::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, SELECTED_NODE, annotation, claim_class, has_class,
    is_bound_to, modes_differ, objection,
};

/// The provisioners of this prefix are built into Kubernetes; here none is.
const BUILT_IN_PREFIX: &str = "kubernetes.io/";
/// What a volume had before it grew; its claim's file system has not grown yet.
const PRE_RESIZE_CAPACITY: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// What to do with a claim whose volume is known, or known not to be there.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    Bind(Arc<PersistentVolume>),
    /// It waits; a warning says why, if there is anything to say.
    Pending(Option<(&'static str, String)>),
    /// As `Pending`, but the controller itself got it wrong and has to try again.
    Retry(&'static str, String),
    /// It was bound and no longer is.
    Lost(&'static str, &'static str),
}

/// A claim that is not bound and names a volume.
pub(super) fn named(claim: &PersistentVolumeClaim, volume: Option<&Arc<PersistentVolume>>) -> ClaimStep {
    let Some(volume) = volume else { return ClaimStep::Pending(None) };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_none()) {
        return match objection(volume, claim) {
            Some(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                ClaimStep::Pending(Some(("VolumeMismatch", message)))
            }
            None => ClaimStep::Bind(Arc::clone(volume)),
        };
    }
    if is_bound_to(volume, claim) {
        return ClaimStep::Bind(Arc::clone(volume));
    }
    let message = format!("volume {name:?} already bound to a different claim.");
    if annotation(&claim.metadata, BOUND_BY_CONTROLLER).is_some() {
        ClaimStep::Retry("FailedBinding", message)
    } else {
        ClaimStep::Pending(Some(("FailedBinding", message)))
    }
}

/// A claim that was bound.
pub(super) fn bound(claim: &PersistentVolumeClaim, volume: Option<&Arc<PersistentVolume>>) -> ClaimStep {
    if volume_name(claim).is_empty() {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lost("ClaimLost", message);
    }
    let Some(volume) = volume else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lost("ClaimLost", message);
    };
    match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
        Some(reference) if reference.uid != claim.metadata.uid => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            ClaimStep::Lost("ClaimMisbound", message)
        }
        _ => ClaimStep::Bind(Arc::clone(volume)),
    }
}

/// The volume that a claim names; empty without one.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// What to do with a claim that no volume suits.
#[derive(Debug, PartialEq)]
pub(super) enum Unmatched {
    /// Give it the default class.
    AssignClass(String),
    /// Wait, and say what for.
    Wait(&'static str, String),
    /// Have a volume made by whoever has this name.
    Provision(String),
    /// Nobody makes one; a warning says why.
    CanNotProvision(String),
}

/// `class` is the one that the claim names, if it is there; `waiting` are the pods that use the claim and are on no node.
pub(super) fn unmatched(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    default: Option<&str>,
    waiting: &[String],
) -> Unmatched {
    if let (false, Some(default)) = (has_class(claim), default) {
        return Unmatched::AssignClass(default.to_owned());
    }
    if class.is_some_and(is_delayed) && annotation(&claim.metadata, SELECTED_NODE).is_none() {
        return match waiting {
            [] => {
                let message = "waiting for first consumer to be created before binding";
                Unmatched::Wait("WaitForFirstConsumer", message.to_owned())
            }
            [pod] => Unmatched::Wait("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            pods => {
                let message = format!("waiting for pods {} to be scheduled", pods.join(","));
                Unmatched::Wait("WaitForPodScheduled", message)
            }
        };
    }
    let name = claim_class(claim);
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return Unmatched::Wait("FailedBinding", message.to_owned());
    }
    match class {
        None => Unmatched::CanNotProvision(format!("storageclass.storage.k8s.io {name:?} not found")),
        Some(class) if class.provisioner.starts_with(BUILT_IN_PREFIX) => {
            let why = format!("no volume plugin matched name: {}", class.provisioner);
            Unmatched::CanNotProvision(why)
        }
        Some(class) => Unmatched::Provision(class.provisioner.clone()),
    }
}

/// Whether the volumes of a class wait for the pod that uses them.
pub(crate) fn is_delayed(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The default class: of several, the newest; of several of these, the first by name.
pub(super) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&str> {
    let is_default = |class: &StorageClass| {
        DEFAULT_CLASS.iter().any(|key| annotation(&class.metadata, key) == Some("true"))
    };
    let newest_first =
        |metadata: &ObjectMeta| std::cmp::Reverse(metadata.creation_timestamp.as_ref().map(|time| time.0));
    let defaults = classes.iter().filter(|class| is_default(class));
    let first =
        defaults.min_by_key(|class| (newest_first(&class.metadata), class.metadata.name.as_deref()))?;
    first.metadata.name.as_deref()
}

/// What to do with a volume.
#[derive(Debug, PartialEq)]
pub(super) enum VolumeStep {
    /// It has this phase.
    Phase(&'static str),
    /// Its claim has to be bound to it first, which is the claim's business.
    Wait,
    /// Its claim wants a file system and it is a block device, or the other way round.
    Mismatch,
    /// Nobody has it any more.
    Release,
    /// Its claim has another volume; it is free again.
    Unbind,
}

/// `claim` is the one that the volume names, if it is there and has the uid that the volume names.
pub(super) fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(spec) = &volume.spec else { return VolumeStep::Wait };
    let uid = spec.claim_ref.as_ref().and_then(|reference| reference.uid.as_deref());
    if uid.unwrap_or_default().is_empty() {
        return VolumeStep::Phase("Available");
    }
    let Some(claim) = claim else { return VolumeStep::Release };
    let bound_to = volume_name(claim);
    if bound_to.is_empty() {
        return if modes_differ(claim, volume) { VolumeStep::Mismatch } else { VolumeStep::Wait };
    }
    if volume.metadata.name.as_deref() == Some(bound_to) {
        return VolumeStep::Phase("Bound");
    }
    let made_for_it = annotation(&volume.metadata, PROVISIONED_BY).is_some()
        && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    if made_for_it { VolumeStep::Release } else { VolumeStep::Unbind }
}

/// Why a volume that nobody has any more can't be reclaimed as its policy says: reason and message.
pub(super) fn can_not_reclaim(volume: &PersistentVolume) -> Option<(&'static str, String)> {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    match policy.unwrap_or_default() {
        "Retain" => None,
        "Delete" => can_not_delete(volume).map(|why| ("VolumeFailedDelete", why)),
        "Recycle" => Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned())),
        _ => {
            let why = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            Some(("VolumeUnknownReclaimPolicy", why.to_owned()))
        }
    }
}

fn can_not_delete(volume: &PersistentVolume) -> Option<String> {
    let provisioner = annotation(&volume.metadata, PROVISIONED_BY).unwrap_or_default();
    if provisioner.starts_with(BUILT_IN_PREFIX) {
        return Some(format!("no volume plugin matched name: {provisioner}"));
    }
    let others = !provisioner.is_empty()
        || annotation(&volume.metadata, "pv.kubernetes.io/migrated-to").is_some()
        || volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let why = "no deletable volume plugin matched";
    (!others).then(|| format!("error getting deleter volume plugin for volume {name:?}: {why}"))
}

/// The patch that binds a volume to a claim; `None` when it is bound.
pub(super) fn bind_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Value> {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let complete =
        is_bound_to(volume, claim) && reference.is_some_and(|reference| reference.uid == claim.metadata.uid);
    if complete {
        return None;
    }
    let mut patch = json!({"spec": {"claimRef": {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": claim.metadata.namespace,
        "name": claim.metadata.name,
        "uid": claim.metadata.uid,
        "resourceVersion": claim.metadata.resource_version,
    }}});
    if !is_bound_to(volume, claim) && annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_none() {
        patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
    }
    Some(patch)
}

/// The patch that binds a claim to a volume; `None` when it is bound.
pub(super) fn bind_claim(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Value> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let mut patch = json!({});
    if volume_name(claim) != name {
        patch["spec"]["volumeName"] = name.into();
        if annotation(&claim.metadata, BOUND_BY_CONTROLLER).is_none() {
            patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
        }
    }
    if annotation(&claim.metadata, BIND_COMPLETED).is_none() {
        patch["metadata"]["annotations"][BIND_COMPLETED] = "yes".into();
    }
    patch.as_object().is_some_and(|fields| !fields.is_empty()).then_some(patch)
}

/// The patch that sets a volume free: one that its author set aside for a claim stays so, for whichever claim of that name.
pub(super) fn unbind_volume(volume: &PersistentVolume) -> Value {
    if annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some() {
        json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}})
    } else {
        json!({"spec": {"claimRef": {"uid": null}}})
    }
}

/// The status of a claim in this phase, with what its volume has (upstream's `updateClaimStatus`).
pub(super) fn claim_status(
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> PersistentVolumeClaimStatus {
    let old = claim.status.clone().unwrap_or_default();
    let changes = old.phase.as_deref() != Some(phase);
    let was_pending = old.phase.as_deref() == Some("Pending");
    let mut status = PersistentVolumeClaimStatus { phase: Some(phase.to_owned()), ..old };
    let Some(volume) = volume else {
        status.access_modes = None;
        status.capacity = None;
        status.current_volume_attributes_class_name = None;
        return status;
    };
    let Some(spec) = &volume.spec else { return status };
    status.access_modes.clone_from(&spec.access_modes);
    if changes {
        // What it has once it is bound, the controllers for expansion say.
        let before = annotation(&volume.metadata, PRE_RESIZE_CAPACITY);
        match before.filter(|text| Quantity::parse(text).is_ok()) {
            Some(text) => {
                let text = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
                status.capacity.get_or_insert_with(BTreeMap::new).insert("storage".to_owned(), text);
            }
            None => status.capacity.clone_from(&spec.capacity),
        }
    }
    if was_pending && phase == "Bound" {
        status.current_volume_attributes_class_name.clone_from(&spec.volume_attributes_class_name);
    }
    status
}
