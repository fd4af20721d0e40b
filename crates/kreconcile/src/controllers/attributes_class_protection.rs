//! VolumeAttributesClasses that are in use stay until they no longer are (KEP-3751).

use std::collections::BTreeSet;

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::VolumeAttributesClass,
};
use kcore::Stored;

use crate::{
    cache::Index,
    change::Change,
    controller::Controller,
    controllers::{Context, protection},
    finalizer::{Finalizer, FinalizerStep},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    resource::Selection,
    trigger::{MapTo, Trigger},
};

const FINALIZER: &str = "kubernetes.io/vac-protection";
/// Claims and volumes by the classes that they name.
const BY_CLASS: &str = "by-volume-attributes-class";

/// The controller `volumeattributesclass-protection-controller`: gives every VolumeAttributesClass the finalizer
/// `kubernetes.io/vac-protection`, and takes it off one that is being deleted when no volume and no claim has it, had it asked
/// for, or is on its way to it.
pub fn attributes_class_protection(context: &Context) -> Controller {
    const NAME: &str = "volumeattributesclass-protection-controller";
    let classes = context.informers().of::<VolumeAttributesClass>(Selection::all());
    let claims = context.informers().of::<PersistentVolumeClaim>(Selection::all());
    let volumes = context.informers().of::<PersistentVolume>(Selection::all());
    let index = |classes_of: fn(&Stored) -> BTreeSet<String>| {
        Index::new(BY_CLASS, move |object, emit| classes_of(object).iter().for_each(|class| emit(class)))
    };
    claims.add_index(index(classes_of_claim));
    volumes.add_index(index(classes_of_volume));
    let reconciler = ClassProtection {
        finalizer: context.requests(NAME).finalizer(classes.resource(), FINALIZER),
        classes: classes.clone(),
        claims: claims.clone(),
        volumes: volumes.clone(),
    };
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&classes, MapTo::Itself).when(protection::open(FINALIZER)))
        .on(Trigger::new(&claims, left(classes_of_claim)))
        .on(Trigger::new(&volumes, left(classes_of_volume)))
}

/// The classes that an object no longer names.
fn left(classes_of: fn(&Stored) -> BTreeSet<String>) -> MapTo {
    MapTo::Keys(std::sync::Arc::new(move |change: &Change, keys| {
        let side =
            |side: &Option<std::sync::Arc<Stored>>| side.as_deref().map(classes_of).unwrap_or_default();
        let (old, new) = (side(&change.old), side(&change.new));
        keys.extend(old.difference(&new).map(|class| ObjectKey::cluster(&**class)));
    }))
}

fn classes_of_claim(claim: &Stored) -> BTreeSet<String> {
    let Ok(typed) = claim.typed::<PersistentVolumeClaim>() else { return BTreeSet::new() };
    let wanted = typed.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = typed.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let target = status
        .and_then(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.clone());
    [wanted, current, target].into_iter().flatten().filter(|class| !class.is_empty()).collect()
}

fn classes_of_volume(volume: &Stored) -> BTreeSet<String> {
    let typed = volume.typed::<PersistentVolume>().ok();
    let class = typed.and_then(|volume| volume.spec.as_ref()?.volume_attributes_class_name.clone());
    class.into_iter().filter(|class| !class.is_empty()).collect()
}

struct ClassProtection {
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    finalizer: Finalizer,
}

#[async_trait]
impl Reconciler for ClassProtection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(class) = self.classes.lister().get("", &key.name) else { return Ok(Action::Done) };
        match self.finalizer.step(&class) {
            FinalizerStep::Nothing | FinalizerStep::Work => Ok(Action::Done),
            FinalizerStep::Add => self.finalizer.add(&class).await,
            FinalizerStep::CleanUp => {
                let is_used = !self.volumes.lister().by_index(BY_CLASS, &key.name).is_empty()
                    || !self.claims.lister().by_index(BY_CLASS, &key.name).is_empty();
                if is_used {
                    return Ok(Action::Done);
                }
                self.finalizer.release(&class).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What `getPVCReferencedVACNames` and `getPVReferencedVACNames` read.
    #[test]
    fn classes_are_named_in_four_places() {
        let stored = |mut object: Value| {
            object["metadata"] = json!({"name": "x", "namespace": "n", "resourceVersion": "1"});
            Stored::from_value(object).unwrap()
        };
        let claim = json!({
            "spec": {"volumeAttributesClassName": "gold"},
            "status": {"currentVolumeAttributesClassName": "silver",
                "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": "gold"}},
        });
        let names = |classes: BTreeSet<String>| classes.into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(names(classes_of_claim(&stored(claim))), "gold silver");
        assert_eq!(names(classes_of_claim(&stored(json!({"spec": {"volumeAttributesClassName": ""}})))), "");
        let volume = json!({"spec": {"volumeAttributesClassName": "silver"}});
        assert_eq!(names(classes_of_volume(&stored(volume))), "silver");
        assert_eq!(names(classes_of_volume(&stored(json!({})))), "");
    }
}
