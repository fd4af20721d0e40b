//! Volumes that only one pod may use at a time.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, RBDVolumeSource, Volume};

use crate::{
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, PreFilter, PreFilterVerdict, QueueingHint, Verdict},
    pod::PodInfo,
    snapshot::{NodeView, Snapshot, catalog::Interest},
    volumes,
};

const NAME: &str = "VolumeRestrictions";
const DISK: &str = "node(s) had no available disk";
const ONCE: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by \
                    another pod";

/// Rejects nodes where a disk is in use that can't be shared (GCE PD and iSCSI and Ceph RBD unless all read only, EBS
/// always), and all nodes while another pod uses one of the pod's claims with `ReadWriteOncePod` (KEP-2485).
///
/// Only pods with such claims cost a look at all pods, once.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeRestrictions;

/// The pod's claims with `ReadWriteOncePod`, and how often other pods refer to them.
#[derive(Clone, Debug)]
struct Once {
    claims: BTreeSet<String>,
    references: i64,
}

impl Once {
    fn count(&mut self, pod: &PodInfo, other: &PodInfo, sign: i64) {
        if pod.namespace == other.namespace {
            let references = volumes::named_claims(other).filter(|name| self.claims.contains(*name)).count();
            self.references += sign * i64::try_from(references).unwrap_or(i64::MAX);
        }
    }
}

fn has_disk(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.rbd.is_some()
        || volume.iscsi.is_some()
}

fn same_image(one: &RBDVolumeSource, other: &RBDVolumeSource) -> bool {
    let pool = |disk: &RBDVolumeSource| disk.pool.clone().unwrap_or_else(|| "rbd".to_owned());
    one.monitors.iter().any(|monitor| other.monitors.contains(monitor))
        && pool(one) == pool(other)
        && one.image == other.image
}

fn conflict(one: &Volume, other: &Volume) -> bool {
    let shared = |one: Option<bool>, other: Option<bool>| one == Some(true) && other == Some(true);
    if let (Some(one), Some(other)) = (&one.gce_persistent_disk, &other.gce_persistent_disk)
        && one.pd_name == other.pd_name
        && !shared(one.read_only, other.read_only)
    {
        return true;
    }
    if let (Some(one), Some(other)) = (&one.aws_elastic_block_store, &other.aws_elastic_block_store)
        && one.volume_id == other.volume_id
    {
        return true;
    }
    if let (Some(one), Some(other)) = (&one.iscsi, &other.iscsi)
        && one.iqn == other.iqn
        && !shared(one.read_only, other.read_only)
    {
        return true;
    }
    match (&one.rbd, &other.rbd) {
        (Some(one), Some(other)) => same_image(one, other) && !shared(one.read_only, other.read_only),
        _ => false,
    }
}

fn disks_conflict(pod: &PodInfo, other: &PodInfo) -> bool {
    let disks = volumes::volumes(pod).iter().filter(|volume| has_disk(volume));
    disks.into_iter().any(|disk| volumes::volumes(other).iter().any(|theirs| conflict(disk, theirs)))
}

impl PreFilter for VolumeRestrictions {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        let mut once = Once { claims: BTreeSet::new(), references: 0 };
        for name in volumes::named_claims(pod) {
            let claim = match volumes::claim(snapshot.catalog(), pod, name) {
                Ok(claim) => claim,
                Err(text) => return PreFilterVerdict::Reject(crate::plugin::Rejection::unresolvable(text)),
            };
            let mut modes = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
            if modes.any(|mode| mode == "ReadWriteOncePod") {
                once.claims.insert(name.to_owned());
            }
        }
        if !once.claims.is_empty() {
            let others = snapshot.nodes().flat_map(|node| node.pods());
            others.filter(|other| other.uid != pod.uid).for_each(|other| once.count(pod, other, 1));
        }
        // Not skipped although nobody uses the claim yet: what is kept for equal pods would let the next one pass, too.
        if once.claims.is_empty() && !volumes::volumes(pod).iter().any(has_disk) {
            return PreFilterVerdict::Skip;
        }
        cycle.put(once);
        PreFilterVerdict::Pass
    }

    fn add_pod(&self, cycle: &mut CycleState, pod: &PodInfo, added: &PodInfo, _node: NodeView<'_>) {
        if let Some(once) = cycle.edit::<Once>() {
            once.count(pod, added, 1);
        }
    }

    fn remove_pod(&self, cycle: &mut CycleState, pod: &PodInfo, removed: &PodInfo, _node: NodeView<'_>) {
        if let Some(once) = cycle.edit::<Once>() {
            once.count(pod, removed, -1);
        }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for VolumeRestrictions {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        if node.pods().iter().any(|other| disks_conflict(pod, other)) {
            return Verdict::unschedulable(DISK);
        }
        match cycle.get::<Once>() {
            Some(once) if once.references > 0 => Verdict::unschedulable(ONCE),
            _ => Verdict::Pass,
        }
    }
}

impl QueueingHint for VolumeRestrictions {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone(gone) => {
                let same = |name| volumes::named_claims(pod).any(|own| own == name);
                // Disks are not of a namespace; upstream looks for them in the pod's own only.
                disks_conflict(pod, gone)
                    || gone.namespace == pod.namespace && volumes::named_claims(gone).any(same)
            }
            ClusterEvent::Object(event) => match event.of::<PersistentVolumeClaim>() {
                Some((None, Some(claim))) => volumes::uses(pod, claim),
                _ => false,
            },
            _ => false,
        })
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest::of::<PersistentVolumeClaim>()]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        Profile,
        build::{node, pod},
        cycle::decide,
    };

    fn user(name: &str, volume: &Value) -> PodInfo {
        let mut volume = volume.clone();
        volume["name"] = json!("v");
        let volume = serde_json::from_value(volume).unwrap();
        pod(name).edit(|pod| pod.spec.get_or_insert_default().volumes = Some(vec![volume])).info()
    }

    fn profile() -> Profile {
        Profile::builder().without("DefaultPreemption").without("DynamicResources").build().unwrap()
    }

    /// The table of `TestGCEDiskConflicts`, `TestAWSDiskConflicts`, `TestISCSIDiskConflicts` and `TestRBDDiskConflicts` in
    /// upstream's `volume_restrictions_test.go`, with the pairs that are read only.
    #[test]
    fn disks_that_can_not_be_shared() {
        let gce = |name: &str, read: bool| json!({"gcePersistentDisk": {"pdName": name, "readOnly": read}});
        let ebs =
            |name: &str, read: bool| json!({"awsElasticBlockStore": {"volumeID": name, "readOnly": read}});
        let iscsi = |iqn: &str, read: bool| json!({"iscsi": {"targetPortal": "127.0.0.1:3260", "iqn": iqn, "lun": 0, "readOnly": read}});
        let rbd = |monitors: [&str; 2], image: &str, read: bool| json!({"rbd": {"monitors": monitors, "pool": "foo", "image": image, "readOnly": read}});
        for (wanted, there, fits) in [
            (gce("foo", false), gce("foo", false), false),
            (gce("foo", true), gce("foo", false), false),
            (gce("foo", true), gce("foo", true), true),
            (gce("bar", false), gce("foo", false), true),
            (ebs("foo", false), ebs("foo", false), false),
            (ebs("foo", true), ebs("foo", true), false),
            (ebs("bar", false), ebs("foo", false), true),
            (iscsi("one", false), iscsi("one", false), false),
            (iscsi("one", true), iscsi("one", true), true),
            (iscsi("two", false), iscsi("one", false), true),
            (rbd(["a", "b"], "bar", false), rbd(["c", "b"], "bar", false), false),
            (rbd(["a", "b"], "bar", true), rbd(["c", "b"], "bar", true), true),
            (rbd(["a", "b"], "bar", false), rbd(["c", "d"], "bar", false), true),
            (rbd(["a", "b"], "one", false), rbd(["a", "b"], "two", false), true),
            (gce("foo", false), ebs("foo", false), true),
        ] {
            let mut snapshot = Snapshot::new();
            snapshot.set_node(node("a").info());
            let there = Arc::new(user("there", &there));
            snapshot.place(&there, "a");
            let pod = user("p", &wanted);
            let expected = (!fits).then(|| format!("0/1 nodes are available: 1 {DISK}."));
            assert_eq!(decide(&profile(), &snapshot, &pod).failure(), expected, "{wanted}");
            let hint = VolumeRestrictions.hint(&pod, &ClusterEvent::PodGone(there));
            assert_eq!(hint == Hint::Queue, !fits, "{wanted}");
        }
    }

    fn claim(name: &str, mode: &str) -> Arc<PersistentVolumeClaim> {
        let claim = json!({
            "metadata": {"namespace": "default", "name": name,
                "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"accessModes": [mode], "volumeName": "pv"},
        });
        Arc::new(serde_json::from_value(claim).unwrap())
    }

    /// Upstream's `TestAccessModeConflicts`; another pod in another namespace is no conflict (KEP-2485).
    #[test]
    fn claims_for_one_pod_only() {
        let using =
            |name: &str, claim: &str| user(name, &json!({"persistentVolumeClaim": {"claimName": claim}}));
        for (wanted, mode, there, namespace, expected) in [
            ("c", "ReadWriteOncePod", "c", "default", Some(ONCE)),
            ("c", "ReadWriteOnce", "c", "default", None),
            ("c", "ReadWriteOncePod", "other", "default", None),
            ("c", "ReadWriteOncePod", "c", "elsewhere", None),
        ] {
            let mut snapshot = Snapshot::new();
            snapshot.set_node(node("a").info());
            snapshot.set_node(node("b").info());
            snapshot.catalog_mut().set(claim("c", mode));
            let mut other = using("there", there);
            other.namespace = namespace.into();
            let other = Arc::new(other);
            snapshot.place(&other, "a");
            let pod = using("p", wanted);
            let mut cycle = CycleState::default();
            let before = VolumeRestrictions.pre_filter(&mut cycle, &pod, &snapshot);
            let is_for_one = mode == "ReadWriteOncePod";
            assert_eq!(before, if is_for_one { PreFilterVerdict::Pass } else { PreFilterVerdict::Skip });
            let Some(expected) = expected else {
                let passes =
                    |node| VolumeRestrictions.filter(&cycle, &pod, node) == Verdict::Pass || !is_for_one;
                assert!(snapshot.nodes().all(passes));
                continue;
            };
            for node in snapshot.nodes() {
                assert_eq!(VolumeRestrictions.filter(&cycle, &pod, node), Verdict::unschedulable(expected));
            }
            VolumeRestrictions.remove_pod(&mut cycle, &pod, &other, snapshot.node(0));
            assert_eq!(VolumeRestrictions.filter(&cycle, &pod, snapshot.node(1)), Verdict::Pass);
            VolumeRestrictions.add_pod(&mut cycle, &pod, &other, snapshot.node(0));
            assert_eq!(
                VolumeRestrictions.filter(&cycle, &pod, snapshot.node(1)),
                Verdict::unschedulable(ONCE)
            );
        }
    }

    #[test]
    fn a_claim_that_is_not_there_rejects_the_pod_until_it_comes() {
        let mut snapshot = Snapshot::new();
        snapshot.set_node(node("a").info());
        let pod = user("p", &json!({"persistentVolumeClaim": {"claimName": "c"}}));
        let text = "0/1 nodes are available: persistentvolumeclaim \"c\" not found.";
        assert_eq!(decide(&profile(), &snapshot, &pod).failure().as_deref(), Some(text));
        for (name, expected) in [("c", Hint::Queue), ("d", Hint::Skip)] {
            let event = crate::event::ObjectEvent::new(None, Some(claim(name, "ReadWriteOnce")));
            assert_eq!(VolumeRestrictions.hint(&pod, &ClusterEvent::Object(event)), expected);
        }
    }
}
