//! Which volume suits a claim (upstream's `FindMatchingVolume` and `checkVolumeSatisfyClaim`).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kcore::quantity;

use crate::controllers::pod_state::label_selector;

/// Set on a claim once it is bound for good.
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Set on a volume or claim that was bound by a controller, not by its author.
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Set by the scheduler on a claim that waits for its first consumer.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Set on a claim: who is to make its volume.
pub(crate) const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The older name of [`STORAGE_PROVISIONER`]; both are set.
pub(crate) const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Set on a volume: who made it.
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The older way to name a class; it wins over the field.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(crate) fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class that a claim asks for; empty without one.
pub(crate) fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let field = || claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, BETA_CLASS).or_else(field).unwrap_or_default()
}

/// Whether a claim says anything about its class, if only that it wants none.
pub(crate) fn has_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BETA_CLASS).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

/// The class of a volume; empty without one.
pub(crate) fn volume_class(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, BETA_CLASS).or_else(field).unwrap_or_default()
}

/// The amount of storage in a list of resources; nothing that can be read counts as none.
pub(crate) fn storage(resources: Option<&BTreeMap<String, Quantity>>) -> quantity::Quantity {
    let text = resources.and_then(|resources| resources.get("storage"));
    text.and_then(|text| quantity::Quantity::parse(&text.0).ok()).unwrap_or_default()
}

/// How much a claim asks for.
pub(crate) fn requested(claim: &PersistentVolumeClaim) -> quantity::Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

/// How much a volume has.
pub(crate) fn capacity(volume: &PersistentVolume) -> quantity::Quantity {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

fn spec(volume: &PersistentVolume) -> Option<&PersistentVolumeSpec> {
    volume.spec.as_ref()
}

/// Whether one wants a file system and the other is a block device.
pub(super) fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    let given = spec(volume).and_then(|spec| spec.volume_mode.as_deref());
    wanted.unwrap_or("Filesystem") != given.unwrap_or("Filesystem")
}

fn attributes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let given = spec(volume).and_then(|spec| spec.volume_attributes_class_name.as_deref());
    wanted.unwrap_or_default() != given.unwrap_or_default()
}

fn access_modes(volume: &PersistentVolume) -> &[String] {
    spec(volume).and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

fn has_access_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| access_modes(volume).contains(mode))
}

/// Whether a volume is bound to a claim, or its author has set it aside for it.
pub(crate) fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = spec(volume).and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || claim.metadata.uid.as_deref() == Some(uid))
}

/// Why a volume that a claim names can't be bound to it.
pub(super) fn objection(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion {name:?}"));
    }
    let why = if capacity(volume).value() < requested(claim).value() {
        "requested PV is too small"
    } else if volume_class(volume) != claim_class(claim) {
        "storageClassName does not match"
    } else if attributes_differ(claim, volume) {
        "volumeAttributesClassName does not match"
    } else if modes_differ(claim, volume) {
        "incompatible volumeMode"
    } else if !has_access_modes(claim, volume) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// How many different access modes a volume has; among those that suit, the fewest are looked at first.
fn mode_group(volume: &PersistentVolume) -> (usize, Vec<&str>) {
    let mut modes: Vec<&str> = access_modes(volume).iter().map(String::as_str).collect();
    modes.sort_unstable();
    modes.dedup();
    (modes.len(), modes)
}

/// The best volume for a claim: one that is set aside for it, else the smallest that suits; of those the ones with the
/// fewest access modes come first, even before one that is set aside and has more. `delayed`: the scheduler chooses, so
/// only what is set aside counts. Of equal ones, the first by name.
pub(super) fn best_match<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    delayed: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let (wanted, class) = (requested(claim), claim_class(claim));
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(label_selector);
    let selects = |volume: &PersistentVolume| {
        let labels = volume.metadata.labels.as_ref();
        let value = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        selector.as_ref().is_none_or(|known| known.as_ref().is_some_and(|known| known.matches_with(value)))
    };
    let suits = |volume: &PersistentVolume| {
        let free = spec(volume).is_none_or(|spec| spec.claim_ref.is_none());
        let mine = is_bound_to(volume, claim);
        let possible = (free || mine)
            && has_access_modes(claim, volume)
            && capacity(volume) >= wanted
            && !modes_differ(claim, volume)
            && !attributes_differ(claim, volume)
            && volume.metadata.deletion_timestamp.is_none();
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let chosen =
            || !delayed && phase == Some("Available") && volume_class(volume) == class && selects(volume);
        possible && (mine || chosen())
    };
    let rank = |volume: &'a PersistentVolume| {
        let unasked = !is_bound_to(volume, claim);
        (mode_group(volume), unasked, capacity(volume), volume.metadata.name.as_deref())
    };
    let suitable = volumes.iter().filter(|volume| suits(volume)).map(|volume| (rank(volume), volume));
    suitable.min_by(|one, two| one.0.cmp(&two.0)).map(|(_, volume)| volume)
}
