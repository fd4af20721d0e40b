//! PersistentVolumeClaims and PersistentVolumes are bound to each other.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};

use crate::{
    cache::Index,
    change::Change,
    controller::Controller,
    controllers::{Context, protection::claims_of, together::Together},
    events::EventRecorder,
    expectations::Expectations,
    informer::Informer,
    key::ObjectKey,
    manager::Runnable,
    request::Requests,
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

mod claims;
mod decide;
pub(crate) mod matching;
#[cfg(test)]
mod tests;
mod volumes;

pub(crate) use decide::is_delayed;
use matching::{BIND_COMPLETED, annotation, claim_class, volume_class};

const NAME: &str = "persistentvolume-binder-controller";
/// Pods by the claims that they use, as `namespace/name`.
const POD_CLAIMS: &str = "claim";
/// Volumes by the claim that they are bound to, as `namespace/name`.
const VOLUME_CLAIM: &str = "claim";
/// Volumes that are set aside for no claim, by their class.
const FREE_CLASS: &str = "free-class";
/// Claims that are not bound, by their class.
const UNBOUND_CLASS: &str = "unbound-class";

/// The controller `persistentvolume-binder-controller`: binds each claim to the best volume that suits it, waits for the
/// first consumer where the class says so, says who is to make a volume when there is none, gives claims that were made
/// before there was a default class that class, and releases volumes whose claims are gone.
///
/// It makes and deletes no volumes itself: a claim without one gets the annotation
/// `volume.kubernetes.io/storage-provisioner`, and whoever has that name does the rest: a CSI driver's sidecar, or a
/// [`provisioner`](super::provisioner()). Recycling is not supported.
///
/// Unlike upstream, which looks at everything every 15 s, a claim is looked at when a volume, class or pod changes that it
/// may have been waiting for.
pub fn volume_binder(context: &Context) -> impl Runnable + use<> {
    let shared = Arc::new(Shared::new(context));
    let (claims, volumes) = (shared.claims.clone(), shared.volumes.clone());
    let binding = Controller::new(NAME, claims::Claims(Arc::clone(&shared)))
        .workers(1)
        .on(Trigger::new(&claims, MapTo::Itself))
        .on(Trigger::new(&volumes, claims_for_volume(&claims)))
        .on(Trigger::new(&shared.classes, claims_of_class(&claims)))
        .on(Trigger::new(&shared.pods, MapTo::each(|pod, keys| claims_of(pod, keys)))
            .when(Predicate::Membership));
    let phases = Controller::new(NAME, volumes::VolumePhases(shared))
        .on(Trigger::new(&volumes, MapTo::Itself))
        .on(Trigger::new(&claims, volumes_of_claim(&volumes)));
    Together::new(NAME, [binding, phases])
}

/// What both halves use.
struct Shared {
    claim_resource: ResourceType,
    volume_resource: ResourceType,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    claims_written: Expectations,
    volumes_written: Expectations,
    requests: Requests,
    recorder: EventRecorder,
}

impl Shared {
    fn new(context: &Context) -> Self {
        let claims = context.informers().of::<PersistentVolumeClaim>(Selection::all());
        claims.add_index(unbound_by_class());
        let volumes = context.informers().of::<PersistentVolume>(Selection::all());
        volumes.add_index(volume_by_claim());
        volumes.add_index(Index::new(FREE_CLASS, |object, emit| {
            if let Ok(volume) = object.typed::<PersistentVolume>()
                && claim_key(&volume).is_none()
            {
                emit(volume_class(&volume));
            }
        }));
        let pods = context.informers().of::<Pod>(Selection::all());
        pods.add_index(Index::new(POD_CLAIMS, |object, emit| {
            let mut keys = Vec::new();
            claims_of(object, &mut keys);
            for key in keys {
                emit(&key.to_string());
            }
        }));
        Self {
            claim_resource: ResourceType::of::<PersistentVolumeClaim>(),
            volume_resource: ResourceType::of::<PersistentVolume>(),
            claims_written: Expectations::new(claims.lister().clone()),
            volumes_written: Expectations::new(volumes.lister().clone()),
            claims,
            volumes,
            classes: context.informers().of::<StorageClass>(Selection::all()),
            pods,
            requests: context.requests(NAME),
            recorder: context.recorder("persistentvolume-controller"),
        }
    }
}

/// Volumes by the claim that they name.
pub(crate) fn volume_by_claim() -> Index {
    Index::new(VOLUME_CLAIM, |object, emit| {
        if let Ok(volume) = object.typed::<PersistentVolume>()
            && let Some(key) = claim_key(&volume)
        {
            emit(&key.to_string());
        }
    })
}

fn unbound_by_class() -> Index {
    Index::new(UNBOUND_CLASS, |object, emit| {
        if let Ok(claim) = object.typed::<PersistentVolumeClaim>()
            && annotation(&claim.metadata, BIND_COMPLETED).is_none()
        {
            emit(claim_class(&claim));
        }
    })
}

/// The claim that a volume names.
pub(crate) fn claim_key(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(reference.namespace.as_deref()?, reference.name.as_deref()?))
}

fn push_unbound(claims: &Informer<PersistentVolumeClaim>, class: &str, keys: &mut Vec<ObjectKey>) {
    let waiting = claims.lister().by_index(UNBOUND_CLASS, class);
    keys.extend(
        waiting.iter().map(|claim| ObjectKey::new(&*claim.header().namespace, &*claim.header().name)),
    );
}

/// The claim that a volume names; every claim that waits for one when the volume has become free; and those that name it.
fn claims_for_volume(claims: &Informer<PersistentVolumeClaim>) -> MapTo {
    let claims = claims.clone();
    let available = |change: &Change, old: bool| {
        let volume =
            if old { change.old_as::<PersistentVolume>() } else { change.new_as::<PersistentVolume>() };
        volume.filter(|volume| {
            let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Available") && claim_key(volume).is_none()
        })
    };
    MapTo::Keys(Arc::new(move |change, keys| {
        for side in change.sides() {
            keys.extend(side.typed::<PersistentVolume>().ok().and_then(|volume| claim_key(&volume)));
        }
        let Some(volume) = available(change, false) else { return };
        let before = available(change, true);
        let same = before.is_some_and(|before| {
            before.spec == volume.spec && before.metadata.labels == volume.metadata.labels
        });
        if !same {
            push_unbound(&claims, volume_class(&volume), keys);
        }
    }))
}

/// The claims that wait for a class, or for any to become the default.
fn claims_of_class(claims: &Informer<PersistentVolumeClaim>) -> MapTo {
    let claims = claims.clone();
    MapTo::Keys(Arc::new(move |change, keys| {
        push_unbound(&claims, &change.header().name, keys);
        push_unbound(&claims, "", keys);
    }))
}

/// The volume that a claim names, and those that name the claim.
fn volumes_of_claim(volumes: &Informer<PersistentVolume>) -> MapTo {
    let volumes = volumes.clone();
    MapTo::Keys(Arc::new(move |change, keys| {
        for side in change.sides() {
            if let Ok(claim) = side.typed::<PersistentVolumeClaim>() {
                let name = decide::volume_name(&claim);
                keys.extend((!name.is_empty()).then(|| ObjectKey::new("", name)));
            }
        }
        let naming = volumes.lister().by_index(VOLUME_CLAIM, &change.key().to_string());
        keys.extend(naming.iter().map(|volume| ObjectKey::new("", &*volume.header().name)));
    }))
}
