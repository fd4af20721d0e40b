//! What was chosen counts for other pods before it is written (upstream's `AssumePodVolumes`).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};

use crate::{
    plugins::volume_binding::{claims::Choice, matching::reserved_for},
    snapshot::catalog::{Catalog, StaleError},
};

/// Stands on a claim for which a volume is to be made, with the node's name.
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Stands on a volume that was not bound to its claim by the one who made it.
pub(super) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// What is to be written for one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Assumed {
    pub(super) volumes: Vec<AssumedVolume>,
    /// With the node's name on them.
    pub(super) claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// A volume with the claim that it is bound to.
#[derive(Clone, Debug)]
pub(super) struct AssumedVolume {
    pub(super) volume: Arc<PersistentVolume>,
    pub(super) claim: Arc<PersistentVolumeClaim>,
    /// Whether anything is to be written.
    pub(super) changed: bool,
}

fn annotate(annotations: &mut Option<BTreeMap<String, String>>, key: &str, value: &str) {
    annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

/// The volume with its claim, and whether that changes anything (upstream's `GetBindVolumeToClaim`).
fn bound(volume: &Arc<PersistentVolume>, claim: &PersistentVolumeClaim) -> (Arc<PersistentVolume>, bool) {
    let (mut new, mut changed) = (PersistentVolume::clone(volume), false);
    let known = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let meta = &claim.metadata;
    if known.is_none_or(|known| {
        known.name != meta.name || known.namespace != meta.namespace || known.uid != meta.uid
    }) {
        new.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        });
        changed = true;
    }
    let annotations = volume.metadata.annotations.as_ref();
    if !reserved_for(volume, claim) && annotations.is_none_or(|all| !all.contains_key(BOUND_BY_CONTROLLER)) {
        annotate(&mut new.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
        changed = true;
    }
    (Arc::new(new), changed)
}

/// Has everyone see the choice; all of it, or nothing when it was made from what is not the newest.
pub(super) fn assume(catalog: &mut Catalog, choice: &Choice, node: &str) -> Result<Assumed, StaleError> {
    let mut assumed = Assumed::default();
    for (claim, volume) in &choice.bindings {
        let (volume, changed) = bound(volume, claim);
        if changed && let Err(error) = catalog.assume(Arc::clone(&volume)) {
            assumed.restore(catalog);
            return Err(error);
        }
        assumed.volumes.push(AssumedVolume { volume, claim: Arc::clone(claim), changed });
    }
    for claim in &choice.provisions {
        let mut claim = PersistentVolumeClaim::clone(claim);
        annotate(&mut claim.metadata.annotations, SELECTED_NODE, node);
        let claim = Arc::new(claim);
        if let Err(error) = catalog.assume(Arc::clone(&claim)) {
            assumed.restore(catalog);
            return Err(error);
        }
        assumed.claims.push(claim);
    }
    Ok(assumed)
}

impl Assumed {
    /// Takes it back.
    pub(super) fn restore(&self, catalog: &mut Catalog) {
        for AssumedVolume { volume, .. } in &self.volumes {
            catalog.restore::<PersistentVolume>("", volume.metadata.name.as_deref().unwrap_or_default());
        }
        for claim in &self.claims {
            let meta = &claim.metadata;
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            catalog.restore::<PersistentVolumeClaim>(namespace, meta.name.as_deref().unwrap_or_default());
        }
    }
}
