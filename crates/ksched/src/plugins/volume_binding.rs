//! A pod's claims must be bound, to volumes that its node can reach.

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};

use crate::{
    affinity::Term,
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, PreFilter, PreFilterVerdict, QueueingHint, Rejection, Verdict},
    pod::PodInfo,
    snapshot::{
        NodeView, Snapshot,
        catalog::{Catalog, Interest},
    },
    volumes,
};

const NAME: &str = "VolumeBinding";
const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
const CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
/// Claim and volume know each other.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// Rejects pods whose claims are missing, lost, being deleted or not bound, and nodes that the volumes of bound claims
/// can't be used from.
///
/// Claims of classes that bind on first use (`WaitForFirstConsumer`) are not bound by this scheduler: a pod with one that
/// is unbound is rejected with a text that says so.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeBinding;

/// What each bound claim's volume asks of nodes, in the order of claims.
struct Bound(Vec<Reach>);

enum Reach {
    /// The volume is not there.
    Nowhere,
    /// Nodes that match any of the terms.
    Any(Vec<Term>),
}

fn check(pod: &PodInfo, catalog: &Catalog) -> Result<Vec<Reach>, String> {
    let mut claims = Vec::new();
    for wanted in volumes::claims(pod) {
        let name = &*wanted.name;
        let claim = volumes::claim(catalog, pod, name).map_err(|text| {
            let waiting = || {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            };
            if wanted.ephemeral { waiting() } else { text }
        })?;
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = volumes::volume_name(claim);
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if wanted.ephemeral
            && let Some(text) = volumes::foreign(pod, claim)
        {
            return Err(text);
        }
        claims.push(claim);
    }
    let (mut bound, mut delayed, mut immediate) = (Vec::new(), None, false);
    for claim in claims {
        let completed =
            claim.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BIND_COMPLETED));
        let volume = volumes::volume_name(claim);
        if completed && !volume.is_empty() {
            bound.extend(reach(catalog, volume));
        } else if binds_on_use(catalog, claim)? && volume.is_empty() {
            delayed = delayed.or(claim.metadata.name.as_deref());
        } else {
            immediate = true;
        }
    }
    match delayed {
        _ if immediate => Err(UNBOUND.to_owned()),
        Some(name) => {
            Err(format!("this scheduler does not bind claims on first use: persistentvolumeclaim {name:?}"))
        }
        None => Ok(bound),
    }
}

fn binds_on_use(catalog: &Catalog, claim: &PersistentVolumeClaim) -> Result<bool, String> {
    let class = Some(volumes::class_name(claim)).filter(|name| !name.is_empty());
    let class = class.and_then(|name| catalog.get::<StorageClass>("", name));
    class.map_or(Ok(false), |class| volumes::waits_for_consumer(class))
}

/// `None` when every node will do.
fn reach(catalog: &Catalog, volume: &str) -> Option<Reach> {
    let Some(volume) = catalog.get::<PersistentVolume>("", volume) else { return Some(Reach::Nowhere) };
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    Some(Reach::Any(required.node_selector_terms.iter().map(Term::read).collect()))
}

impl PreFilter for VolumeBinding {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        match check(pod, snapshot.catalog()) {
            Ok(bound) if bound.is_empty() => PreFilterVerdict::Skip,
            Ok(bound) => {
                cycle.put(Bound(bound));
                PreFilterVerdict::Pass
            }
            Err(text) => PreFilterVerdict::Reject(Rejection::unresolvable(text)),
        }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for VolumeBinding {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, cycle: &CycleState, _pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let Some(Bound(bound)) = cycle.get::<Bound>() else { return Verdict::Pass };
        let labels = &node.info().labels;
        for reach in bound {
            match reach {
                Reach::Nowhere => return Verdict::unresolvable(NO_VOLUME),
                // Upstream compares labels only: a volume that asks for a node's name finds none.
                Reach::Any(terms) if !terms.iter().any(|term| term.matches("", labels)) => {
                    return Verdict::unresolvable(CONFLICT);
                }
                Reach::Any(_) => {}
            }
        }
        Verdict::Pass
    }
}

impl QueueingHint for VolumeBinding {
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
                } else if let Some((_, Some(_))) = event.of::<PersistentVolume>() {
                    true
                } else if let Some((old, Some(new))) = event.of::<StorageClass>() {
                    old.is_none_or(|old| old.allowed_topologies != new.allowed_topologies)
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

    fn user(source: &Value) -> PodInfo {
        let mut volume = source.clone();
        volume["name"] = json!("v");
        let volume = serde_json::from_value(volume).unwrap();
        pod("p").edit(|pod| pod.spec.get_or_insert_default().volumes = Some(vec![volume])).info()
    }

    fn snapshot(claim: &Value, mode: &str, volume: &Value) -> Snapshot {
        let mut snapshot = Snapshot::new();
        snapshot.set_node(node("a").label("disk", "ssd").info());
        snapshot.set_node(node("b").info());
        let catalog = snapshot.catalog_mut();
        if !claim.is_null() {
            let mut claim = claim.clone();
            claim["metadata"]["namespace"] = json!("default");
            catalog.set(Arc::new(serde_json::from_value::<PersistentVolumeClaim>(claim).unwrap()));
        }
        if !mode.is_empty() {
            let class = json!({"metadata": {"name": "fast"}, "provisioner": "x", "volumeBindingMode": mode});
            catalog.set(Arc::new(serde_json::from_value::<StorageClass>(class).unwrap()));
        }
        if !volume.is_null() {
            let volume = json!({"metadata": {"name": "pv"}, "spec": volume});
            catalog.set(Arc::new(serde_json::from_value::<PersistentVolume>(volume).unwrap()));
        }
        snapshot
    }

    /// The cases of upstream's `TestVolumeBinding` (`volume_binding_test.go`) that end before a node is looked at.
    #[test]
    fn claims_that_are_not_ready_reject_the_pod() {
        let named = json!({"persistentVolumeClaim": {"claimName": "c"}});
        let own = json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        let claim = |spec: Value| json!({"metadata": {"name": "c"}, "spec": spec});
        let fast = || claim(json!({"storageClassName": "fast"}));
        for (source, claim, mode, expected) in [
            (&named, Value::Null, "", "persistentvolumeclaim \"c\" not found"),
            (
                &own,
                Value::Null,
                "",
                "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"",
            ),
            (
                &own,
                json!({"metadata": {"name": "p-v"}, "spec": {}}),
                "",
                "PVC default/p-v was not created for pod default/p (pod is not owner)",
            ),
            (&named, claim(json!({})), "", UNBOUND),
            (&named, fast(), "", UNBOUND),
            (&named, fast(), "Immediate", UNBOUND),
            // Bound by hand, but not yet by the controller.
            (
                &named,
                claim(json!({"storageClassName": "fast", "volumeName": "pv"})),
                "WaitForFirstConsumer",
                UNBOUND,
            ),
            (
                &named,
                fast(),
                "WaitForFirstConsumer",
                "this scheduler does not bind claims on first use: persistentvolumeclaim \"c\"",
            ),
            (
                &named,
                json!({"metadata": {"name": "c"}, "spec": {"volumeName": "pv"}, "status": {"phase": "Lost"}}),
                "",
                "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"pv\"",
            ),
            (
                &named,
                json!({"metadata": {"name": "c", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}),
                "",
                "persistentvolumeclaim \"c\" is being deleted",
            ),
        ] {
            let snapshot = snapshot(&claim, mode, &Value::Null);
            let verdict = VolumeBinding.pre_filter(&mut CycleState::default(), &user(source), &snapshot);
            assert_eq!(verdict, PreFilterVerdict::Reject(Rejection::unresolvable(expected)), "{claim}");
        }
        let without = pod("p").info();
        let verdict = VolumeBinding.pre_filter(&mut CycleState::default(), &without, &Snapshot::new());
        assert_eq!(verdict, PreFilterVerdict::Skip);
    }

    /// The cases of upstream's `TestFindPodVolumesWithoutProvisioning` (`binder_test.go`) with bound claims.
    #[test]
    fn volumes_must_be_reachable_from_the_node() {
        let affinity = |values: &[&str]| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "disk", "operator": "In", "values": values}]}]}}})
        };
        let reject = Verdict::unresolvable;
        for (volume, before, expected) in [
            (json!({}), PreFilterVerdict::Skip, [Verdict::Pass, Verdict::Pass]),
            (affinity(&["ssd"]), PreFilterVerdict::Pass, [Verdict::Pass, reject(CONFLICT)]),
            (affinity(&["hdd"]), PreFilterVerdict::Pass, [reject(CONFLICT), reject(CONFLICT)]),
            (Value::Null, PreFilterVerdict::Pass, [reject(NO_VOLUME), reject(NO_VOLUME)]),
        ] {
            let claim = json!({
                "metadata": {"name": "c", "annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "pv"},
            });
            let snapshot = snapshot(&claim, "", &volume);
            let pod = user(&json!({"persistentVolumeClaim": {"claimName": "c"}}));
            let mut cycle = CycleState::default();
            assert_eq!(VolumeBinding.pre_filter(&mut cycle, &pod, &snapshot), before, "{volume}");
            let verdicts: Vec<_> =
                snapshot.nodes().map(|node| VolumeBinding.filter(&cycle, &pod, node)).collect();
            assert_eq!(verdicts, expected, "{volume}");
        }
    }
}
