//! Volumes that are in some zones or regions only.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};

use crate::{
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, PreFilter, PreFilterVerdict, QueueingHint, Rejection, Verdict},
    pod::PodInfo,
    snapshot::{
        NodeView, Snapshot,
        catalog::{Catalog, Interest},
    },
    volumes::{self, Standing},
};

const NAME: &str = "VolumeZone";
const REASON: &str = "node(s) had no available volume zone";

/// The labels that say where something is, with the label that replaced each.
const LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// Rejects nodes that are not in a zone and region of the volumes to which the pod's claims are bound, by the labels of
/// volume and node. Nodes without any such label take every volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeZone;

/// Where a volume is, by one label.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    key: &'static str,
    replaced_by: &'static str,
    values: BTreeSet<String>,
}

struct Places(Vec<Place>);

fn places(volume: &PersistentVolume) -> impl Iterator<Item = Place> {
    LABELS.into_iter().filter_map(|(key, replaced_by)| {
        let value = volume.metadata.labels.as_ref()?.get(key)?;
        let values: BTreeSet<_> =
            value.split(volumes::MANY_ZONES).map(|part| part.trim().to_owned()).collect();
        // A label that can't be read is left out.
        (!values.contains("")).then_some(Place { key, replaced_by, values })
    })
}

fn places_of(pod: &PodInfo, catalog: &Catalog) -> Result<Vec<Place>, String> {
    let mut all = Vec::new();
    for name in volumes::named_claims(pod) {
        if name.is_empty() {
            return Err("PersistentVolumeClaim had no name".to_owned());
        }
        let claim = volumes::claim(catalog, pod, name)?;
        match Standing::of(catalog, claim)? {
            Standing::Volume(volume) => {
                let found = catalog.get::<PersistentVolume>("", volume);
                all.extend(places(found.ok_or_else(|| volumes::not_found("persistentvolume", volume))?));
            }
            Standing::OnUse(_) => {}
            Standing::AtOnce => return Err("PersistentVolume had no name".to_owned()),
            Standing::NoClass => {
                return Err("PersistentVolumeClaim had no pv name and storageClass name".to_owned());
            }
            Standing::ClassGone(name) => return Err(volumes::not_found("storageclass.storage.k8s.io", name)),
        }
    }
    Ok(all)
}

impl PreFilter for VolumeZone {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        match places_of(pod, snapshot.catalog()) {
            Ok(places) if places.is_empty() => PreFilterVerdict::Skip,
            Ok(places) => {
                cycle.put(Places(places));
                PreFilterVerdict::Pass
            }
            Err(text) => PreFilterVerdict::Reject(Rejection::unresolvable(text)),
        }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for VolumeZone {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, _pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let Some(Places(places)) = cycle.get::<Places>() else { return Verdict::Pass };
        let labels = &node.info().labels;
        if LABELS.iter().all(|(key, _)| labels.get(key).is_none()) {
            return Verdict::Pass;
        }
        let is_there = |place: &Place| {
            let value = labels.get(place.key).or_else(|| labels.get(place.replaced_by));
            value.is_some_and(|value| place.values.contains(value))
        };
        if places.iter().all(is_there) { Verdict::Pass } else { Verdict::unresolvable(REASON) }
    }
}

impl QueueingHint for VolumeZone {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => old.labels != new.labels,
            ClusterEvent::Object(event) => {
                if let Some((_, Some(claim))) = event.of::<PersistentVolumeClaim>() {
                    volumes::uses(pod, claim)
                } else if let Some((old, Some(new))) = event.of::<PersistentVolume>() {
                    old.is_none_or(|old| !places(old).eq(places(new)))
                } else if let Some((None, Some(class))) = event.of::<StorageClass>() {
                    volumes::waits_for_consumer(class) == Ok(true)
                } else {
                    false
                }
            }
            _ => false,
        })
    }

    fn interests(&self) -> Vec<Interest> {
        vec![
            Interest::of::<PersistentVolumeClaim>(),
            Interest::of::<PersistentVolume>(),
            Interest::of::<StorageClass>(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::build::{node, pod};

    const ZONE: &str = "topology.kubernetes.io/zone";
    const BETA: &str = "failure-domain.beta.kubernetes.io/zone";
    const REGION: &str = "topology.kubernetes.io/region";

    fn user() -> PodInfo {
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let volume = serde_json::from_value(volume).unwrap();
        pod("p").edit(|pod| pod.spec.get_or_insert_default().volumes = Some(vec![volume])).info()
    }

    fn volume(labels: &[(&str, &str)]) -> PersistentVolume {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut volume = PersistentVolume::default();
        volume.metadata.name = Some("pv".to_owned());
        volume.metadata.labels = Some(labels);
        volume
    }

    fn claim(spec: &Value) -> Arc<PersistentVolumeClaim> {
        let claim = json!({"metadata": {"namespace": "default", "name": "c"}, "spec": spec});
        Arc::new(serde_json::from_value(claim).unwrap())
    }

    /// Upstream's `TestSingleZone`, `TestMultiZone` (`volume_zone_test.go`), and the labels' replacements in `volume_zone.go`.
    #[test]
    fn volume_and_node_are_in_one_place() {
        type Labels = &'static [(&'static str, &'static str)];
        let table: [(Labels, Labels, bool); 11] = [
            (&[(ZONE, "a")], &[], true),
            (&[(ZONE, "a")], &[("other", "x")], true),
            (&[(ZONE, "a")], &[(ZONE, "a")], true),
            (&[(ZONE, "a")], &[(ZONE, "b")], false),
            (&[(ZONE, "a")], &[(REGION, "r")], false),
            (&[(ZONE, "a__b")], &[(ZONE, "b")], true),
            (&[(ZONE, "a__b")], &[(ZONE, "c")], false),
            (&[(ZONE, "a__")], &[(ZONE, "c")], true),
            (&[(BETA, "a")], &[(ZONE, "a")], true),
            (&[(BETA, "a")], &[(ZONE, "b")], false),
            (&[(ZONE, "a"), (REGION, "r")], &[(ZONE, "a"), (REGION, "s")], false),
        ];
        for (on_volume, on_node, fits) in table {
            let mut snapshot = Snapshot::new();
            let labelled = on_node.iter().fold(node("n"), |node, (key, value)| node.label(key, value));
            snapshot.set_node(labelled.info());
            snapshot.catalog_mut().set(claim(&json!({"volumeName": "pv"})));
            snapshot.catalog_mut().set(Arc::new(volume(on_volume)));
            let mut cycle = CycleState::default();
            let before = VolumeZone.pre_filter(&mut cycle, &user(), &snapshot);
            assert_ne!(
                matches!(before, PreFilterVerdict::Skip),
                on_volume != [(ZONE, "a__")],
                "{on_volume:?}"
            );
            let expected = if fits { Verdict::Pass } else { Verdict::unresolvable(REASON) };
            assert_eq!(
                VolumeZone.filter(&cycle, &user(), snapshot.node(0)),
                expected,
                "{on_volume:?} {on_node:?}"
            );
        }
    }

    /// Upstream's `TestWithBinding`.
    #[test]
    fn what_is_missing_is_named() {
        for (spec, mode, expected) in [
            (json!({}), None, Some("PersistentVolumeClaim had no pv name and storageClass name")),
            (
                json!({"storageClassName": "fast"}),
                None,
                Some("storageclass.storage.k8s.io \"fast\" not found"),
            ),
            (json!({"storageClassName": "fast"}), Some("Immediate"), Some("PersistentVolume had no name")),
            (json!({"storageClassName": "fast"}), Some("WaitForFirstConsumer"), None),
            (
                json!({"storageClassName": "fast"}),
                Some(""),
                Some("VolumeBindingMode not set for StorageClass \"fast\""),
            ),
            (json!({"volumeName": "gone"}), None, Some("persistentvolume \"gone\" not found")),
        ] {
            let mut snapshot = Snapshot::new();
            snapshot.catalog_mut().set(claim(&spec));
            if let Some(mode) = mode {
                let mut class = StorageClass::default();
                class.metadata.name = Some("fast".to_owned());
                class.volume_binding_mode = Some(mode.to_owned()).filter(|mode| !mode.is_empty());
                snapshot.catalog_mut().set(Arc::new(class));
            }
            let expected = match expected {
                Some(text) => PreFilterVerdict::Reject(Rejection::unresolvable(text)),
                None => PreFilterVerdict::Skip,
            };
            assert_eq!(
                VolumeZone.pre_filter(&mut CycleState::default(), &user(), &snapshot),
                expected,
                "{spec}"
            );
        }
    }

    /// Upstream's `TestIsSchedulableAfterPersistentVolumeChange`.
    #[test]
    fn volumes_that_move_wake_pods() {
        for (old, new, expected) in [
            (None, volume(&[]), Hint::Queue),
            (Some(volume(&[(ZONE, "a")])), volume(&[(ZONE, "b")]), Hint::Queue),
            (Some(volume(&[(ZONE, "a")])), volume(&[(ZONE, "a"), ("other", "x")]), Hint::Skip),
        ] {
            let event = crate::event::ObjectEvent::new(old.map(Arc::new), Some(Arc::new(new)));
            assert_eq!(VolumeZone.hint(&user(), &ClusterEvent::Object(event)), expected);
        }
    }
}
