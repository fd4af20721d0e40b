//! A node takes only so many volumes of a driver.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::{CSINode, StorageClass, VolumeAttachment},
};

use crate::{
    attachable::{Attachable, driver_of_provisioner},
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, PreFilter, PreFilterVerdict, QueueingHint, Verdict},
    pod::PodInfo,
    snapshot::{
        NodeView, Snapshot,
        catalog::{Catalog, Interest},
    },
    volumes::{self, ClaimUse},
};

const NAME: &str = "NodeVolumeLimits";
const REASON: &str = "node(s) exceed max volume count";

/// Rejects nodes that would have more volumes of a CSI driver attached than their `CSINode` allows, by the volumes of the
/// node's pods and its `VolumeAttachment`s, each volume counted once.
///
/// Drivers without a limit are not counted; nodes without any cost one look-up. The attachments of all nodes are sorted
/// once per pod that has volumes to attach.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeVolumeLimits;

/// The volumes that are attached, by the node's name.
struct Attached(BTreeMap<String, BTreeSet<Attachable>>);

impl Attached {
    fn read(catalog: &Catalog) -> Self {
        let mut nodes: BTreeMap<String, BTreeSet<Attachable>> = BTreeMap::new();
        for attachment in catalog.list::<VolumeAttachment>() {
            let spec = &attachment.spec;
            let Some(name) = spec.source.persistent_volume_name.as_deref() else { continue };
            let volume = catalog.get::<PersistentVolume>("", name).and_then(|volume| volume.spec.as_ref());
            let Some(csi) = volume.and_then(|spec| spec.csi.as_ref()) else { continue };
            if !spec.attacher.is_empty() {
                let volume = Attachable { driver: spec.attacher.clone(), handle: csi.volume_handle.clone() };
                nodes.entry(spec.node_name.clone()).or_default().insert(volume);
            }
        }
        Self(nodes)
    }
}

/// What a claim's volume is to its driver; for one that is not there yet, what it will be.
fn attachable(
    catalog: &Catalog,
    claim: &PersistentVolumeClaim,
    node_has_drivers: bool,
) -> Option<Attachable> {
    if let Some(volume) = catalog.get::<PersistentVolume>("", volumes::volume_name(claim)) {
        return Attachable::of_volume(volume, node_has_drivers);
    }
    let class = catalog.get::<StorageClass>("", volumes::class_name(claim))?;
    let driver = driver_of_provisioner(&class.provisioner, node_has_drivers)?.to_owned();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    // No driver's handle begins like this, so it is another volume than those that there are.
    let handle = format!("\0{}/{}", text(&claim.metadata.namespace), text(&claim.metadata.name));
    Some(Attachable { driver, handle })
}

/// Adds the pod's volumes to `all`. Claims that are not there or not the pod's are an error only when `new`: nothing is
/// known of what a pod on the node had.
fn collect(
    catalog: &Catalog,
    pod: &PodInfo,
    node_has_drivers: bool,
    new: bool,
    all: &mut BTreeSet<Attachable>,
) -> Result<(), String> {
    for volume in volumes::volumes(pod) {
        let Some(wanted) = ClaimUse::of(pod, volume) else {
            all.extend(Attachable::of_inline(volume).filter(|_| node_has_drivers));
            continue;
        };
        let claim = match volumes::claim(catalog, pod, &wanted.name) {
            Ok(claim) => claim,
            Err(text) if new => {
                return Err(format!("looking up PVC {}/{}: {text}", pod.namespace, wanted.name));
            }
            Err(_) => continue,
        };
        if wanted.ephemeral
            && let Some(text) = volumes::foreign(pod, claim)
        {
            if new {
                return Err(text);
            }
            continue;
        }
        all.extend(attachable(catalog, claim, node_has_drivers));
    }
    Ok(())
}

fn limits(node: &CSINode) -> BTreeMap<&str, i32> {
    let drivers = node.spec.drivers.iter();
    drivers.filter_map(|driver| Some((&*driver.name, driver.allocatable.as_ref()?.count?))).collect()
}

fn has_volumes(pod: &PodInfo) -> bool {
    let mut all = volumes::volumes(pod).iter();
    all.any(|volume| ClaimUse::of(pod, volume).is_some() || Attachable::of_inline(volume).is_some())
}

impl PreFilter for NodeVolumeLimits {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        if !has_volumes(pod) {
            return PreFilterVerdict::Skip;
        }
        cycle.put(Attached::read(snapshot.catalog()));
        PreFilterVerdict::Pass
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for NodeVolumeLimits {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let catalog = node.snapshot().catalog();
        let drivers: Option<&Arc<CSINode>> = catalog.get("", node.name());
        let mut wanted = BTreeSet::new();
        if let Err(text) = collect(catalog, pod, drivers.is_some(), true, &mut wanted) {
            return Verdict::unresolvable(text);
        }
        let limits = drivers.map(|node| limits(node)).unwrap_or_default();
        if wanted.iter().all(|volume| !limits.contains_key(&*volume.driver)) {
            return Verdict::Pass;
        }
        let mut there = BTreeSet::new();
        for other in node.pods() {
            // Without `new` nothing is an error.
            let _ = collect(catalog, other, drivers.is_some(), false, &mut there);
        }
        wanted.retain(|volume| !there.contains(volume));
        if let Some(attached) = cycle.get::<Attached>().and_then(|Attached(nodes)| nodes.get(node.name())) {
            // A volume that is attached but used by no pod counts, even when it is one that the pod wants: as upstream.
            there.extend(attached.iter().cloned());
        }
        let count = |all: &BTreeSet<Attachable>, driver: &str| {
            i64::try_from(all.iter().filter(|volume| volume.driver == driver).count()).unwrap_or(i64::MAX)
        };
        let exceeds = |volume: &Attachable| {
            let limit = limits.get(&*volume.driver);
            limit.is_some_and(|&limit| {
                count(&there, &volume.driver) + count(&wanted, &volume.driver) > i64::from(limit)
            })
        };
        if wanted.iter().any(exceeds) { Verdict::unschedulable(REASON) } else { Verdict::Pass }
    }
}

impl QueueingHint for NodeVolumeLimits {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::PodGone(gone) => has_volumes(gone),
            ClusterEvent::Object(event) => {
                if let Some((old, Some(new))) = event.of::<CSINode>() {
                    old.is_none_or(|old| {
                        let old = limits(old);
                        limits(new)
                            .iter()
                            .any(|(driver, count)| *count > old.get(driver).copied().unwrap_or(0))
                    })
                } else if let Some((None, Some(claim))) = event.of::<PersistentVolumeClaim>() {
                    volumes::uses(pod, claim)
                } else if let Some((Some(gone), None)) = event.of::<VolumeAttachment>() {
                    let inline = volumes::volumes(pod).iter().filter_map(Attachable::of_inline);
                    volumes::claims(pod).next().is_some()
                        || inline.into_iter().any(|volume| volume.driver == gone.spec.attacher)
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
            Interest::of::<CSINode>(),
            Interest::of::<VolumeAttachment>(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        build::{node, pod},
        event::ObjectEvent,
    };

    fn read<K: DeserializeOwned>(value: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// Names of claims; `ebs:ID` is a disk that stands in the pod.
    fn user(name: &str, claims: &[&str]) -> PodInfo {
        let sources = claims.iter().enumerate().map(|(number, claim)| match claim.strip_prefix("ebs:") {
            Some(id) => json!({"name": format!("v{number}"), "awsElasticBlockStore": {"volumeID": id}}),
            None => json!({"name": format!("v{number}"), "persistentVolumeClaim": {"claimName": claim}}),
        });
        let volumes = serde_json::from_value(sources.collect()).unwrap();
        pod(name).edit(|pod| pod.spec.get_or_insert_default().volumes = Some(volumes)).info()
    }

    fn csi_node(limit: Option<i32>) -> Arc<CSINode> {
        let driver = |name: &str| json!({"name": name, "nodeID": "n", "allocatable": {"count": limit}});
        let drivers = [driver("disk"), driver("ebs.csi.aws.com")];
        read(json!({"metadata": {"name": "a"}, "spec": {"drivers": drivers}}))
    }

    /// Claims `one` to `four` are bound to volumes of the driver `disk`, the first two to the same one; `other` is of
    /// another driver; `later` is not bound.
    fn snapshot(limit: Option<i32>, there: &[&str], attached: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::new();
        snapshot.set_node(node("a").info());
        snapshot.place(&Arc::new(user("there", there)), "a");
        let catalog = snapshot.catalog_mut();
        for (claim, driver, handle) in [
            ("one", "disk", "1"),
            ("again", "disk", "1"),
            ("two", "disk", "2"),
            ("three", "disk", "3"),
            ("other", "unlimited", "1"),
        ] {
            catalog.set::<PersistentVolume>(read(json!({
                "metadata": {"name": claim}, "spec": {"csi": {"driver": driver, "volumeHandle": handle}},
            })));
            catalog.set::<PersistentVolumeClaim>(read(json!({
                "metadata": {"namespace": "default", "name": claim}, "spec": {"volumeName": claim},
            })));
        }
        catalog.set::<PersistentVolumeClaim>(read(json!({
            "metadata": {"namespace": "default", "name": "later"}, "spec": {"storageClassName": "fast"},
        })));
        catalog.set::<StorageClass>(read(json!({"metadata": {"name": "fast"}, "provisioner": "disk"})));
        for volume in attached {
            catalog.set::<VolumeAttachment>(read(json!({
                "metadata": {"name": volume},
                "spec": {"attacher": "disk", "nodeName": "a", "source": {"persistentVolumeName": volume}},
            })));
        }
        if limit.is_some() {
            catalog.set(csi_node(limit));
        }
        snapshot
    }

    /// After upstream's `TestCSILimits` (`nodevolumelimits/csi_test.go`).
    #[test]
    fn volumes_are_counted_once_for_each_driver() {
        type Names = &'static [&'static str];
        let full = Verdict::unschedulable(REASON);
        let table: [(Names, Names, Names, Option<i32>, Verdict); 13] = [
            (&["one"], &["two"], &[], Some(2), Verdict::Pass),
            (&["one"], &["two"], &[], Some(1), full.clone()),
            (&["one", "three"], &["two"], &[], Some(2), full.clone()),
            // The same volume by the same claim, and by another.
            (&["one"], &["one"], &[], Some(1), Verdict::Pass),
            (&["again"], &["one"], &[], Some(1), Verdict::Pass),
            // No limit for the driver, or none at all.
            (&["other"], &["one"], &[], Some(1), Verdict::Pass),
            (&["one"], &["two"], &[], None, Verdict::Pass),
            // What is attached counts, but not twice.
            (&["one"], &["two"], &["three"], Some(2), full.clone()),
            (&["one"], &["two"], &["two"], Some(2), Verdict::Pass),
            // Claims that are not bound count by the driver of their class.
            (&["later"], &["two"], &[], Some(1), full.clone()),
            (&["later"], &["later"], &[], Some(1), Verdict::Pass),
            // A disk in the pod counts for the driver that took over; two ways to write it are one disk.
            (&["ebs:vol-1"], &["ebs:vol-2"], &[], Some(1), full),
            (&["ebs:vol-1"], &["ebs:aws://zone/vol-1"], &[], Some(1), Verdict::Pass),
        ];
        for (wanted, there, attached, limit, expected) in table {
            let snapshot = snapshot(limit, there, attached);
            let pod = user("p", wanted);
            let mut cycle = CycleState::default();
            assert_eq!(NodeVolumeLimits.pre_filter(&mut cycle, &pod, &snapshot), PreFilterVerdict::Pass);
            let verdict = NodeVolumeLimits.filter(&cycle, &pod, snapshot.node(0));
            assert_eq!(verdict, expected, "{wanted:?} beside {there:?} and {attached:?}, {limit:?}");
        }
    }

    #[test]
    fn a_claim_that_is_not_there_is_named() {
        let (snapshot, pod) = (snapshot(Some(1), &[], &[]), user("p", &["gone"]));
        let verdict = NodeVolumeLimits.filter(&CycleState::default(), &pod, snapshot.node(0));
        let text = "looking up PVC default/gone: persistentvolumeclaim \"gone\" not found";
        assert_eq!(verdict, Verdict::unresolvable(text));
        let none = user("q", &[]);
        let verdict = NodeVolumeLimits.pre_filter(&mut CycleState::default(), &none, &snapshot);
        assert_eq!(verdict, PreFilterVerdict::Skip);
    }

    /// The rules of `isSchedulableAfterCSINodeUpdated` and `isSchedulableAfterPodDeleted` in upstream's `csi.go`.
    #[test]
    fn room_wakes_pods() {
        let pod = user("p", &["one"]);
        for (old, new, expected) in [
            (None, Some(1), Hint::Queue),
            (Some(1), Some(2), Hint::Queue),
            (Some(2), Some(1), Hint::Skip),
            (Some(2), Some(2), Hint::Skip),
        ] {
            let event = ObjectEvent::new(old.map(|old| csi_node(Some(old))), Some(csi_node(new)));
            assert_eq!(
                NodeVolumeLimits.hint(&pod, &ClusterEvent::Object(event)),
                expected,
                "{old:?} {new:?}"
            );
        }
        for (claims, expected) in [(&["two"][..], Hint::Queue), (&[], Hint::Skip)] {
            let event = ClusterEvent::PodGone(Arc::new(user("gone", claims)));
            assert_eq!(NodeVolumeLimits.hint(&pod, &event), expected);
        }
    }
}
