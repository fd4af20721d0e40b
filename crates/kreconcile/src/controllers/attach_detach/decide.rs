//! What is to be attached where, and what no longer.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, Pod},
    storage::v1::VolumeAttachment,
};

use crate::controllers::pod_state;

/// How long a node that is not ready may keep a volume that nobody there needs, before it is detached although the node says that
/// it is mounted (upstream's `maxWaitForUnmountDuration`).
pub const UNMOUNT_WAIT_MAX: Duration = Duration::from_secs(360);

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// Whether a pod needs its volumes no longer: it has ended, or is being deleted and nothing of it runs.
pub(super) fn is_over(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let runs = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
        let state = status.state.as_ref();
        state.is_none_or(|state| state.terminated.is_none() && state.waiting.is_none())
    };
    let nothing_runs = !statuses.into_iter().any(runs);
    pod_state::is_terminal(pod) || (pod.metadata.deletion_timestamp.is_some() && nothing_runs)
}

/// Whether a node leaves attaching to this controller.
pub(super) fn is_managed(node: &Node) -> bool {
    node.metadata.annotations.as_ref().and_then(|all| all.get(MANAGED)).is_some_and(|value| value == "true")
}

/// Whether a volume may be attached to several nodes; one that does not say how it is used may.
pub(super) fn is_shared(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.is_empty() || modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// What is known of a node that a volume is, or is to be, attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeState {
    pub(super) ready: bool,
    pub(super) out_of_service: bool,
    /// Whether it says that it uses the volume.
    pub(super) in_use: bool,
}

impl NodeState {
    /// A node that is gone is not ready and uses nothing.
    pub(super) fn of(node: Option<&Node>, unique_name: &str) -> Self {
        let Some(node) = node else { return Self::default() };
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let used = status.and_then(|status| status.volumes_in_use.as_deref()).unwrap_or_default();
        Self {
            ready: conditions.iter().any(|known| known.type_ == "Ready" && known.status == "True"),
            out_of_service: taints.iter().any(|taint| taint.key == OUT_OF_SERVICE),
            in_use: used.iter().any(|name| name == unique_name),
        }
    }
}

/// What is to be done about a volume that a node no longer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detach {
    /// The node still has it mounted; it may be forced after this time, unless the node is ready by then.
    Wait(Duration),
    /// It goes, once the node itself, asked anew, does not say that it uses it.
    Verified,
    /// It goes whatever the node says.
    Forced,
}

/// Decides about a volume that has not been needed on a node since `since`. With `force`, upstream's
/// `disable-force-detach-on-timeout` is off.
pub(super) fn detach(node: NodeState, since: Timestamp, now: Timestamp, force: bool) -> Detach {
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let expired = force && waited > UNMOUNT_WAIT_MAX;
    let holds = node.ready || !expired;
    if node.in_use && holds && !node.out_of_service {
        return Detach::Wait((UNMOUNT_WAIT_MAX + Duration::from_millis(1)).saturating_sub(waited));
    }
    if expired || node.out_of_service { Detach::Forced } else { Detach::Verified }
}

/// What is to be done about a volume on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is to be attached.
    Attach,
    /// Its attachment exists, and is needed.
    Keep,
    /// It is elsewhere, and can't be at two places: on which nodes.
    Refuse(Vec<String>),
    /// Nobody needs it there.
    Release,
}

/// Decides about a volume on all nodes: `wanted` are those with pods that need it, `attached` those with an attachment.
pub(super) fn steps<'a>(
    wanted: impl Iterator<Item = &'a str>,
    attached: &BTreeMap<String, &VolumeAttachment>,
    shared: bool,
) -> BTreeMap<String, Step> {
    let mut steps: BTreeMap<String, Step> =
        attached.keys().map(|node| (node.clone(), Step::Release)).collect();
    let mut taken: Vec<String> = attached.keys().cloned().collect();
    for node in wanted {
        if attached.contains_key(node) {
            // One that is being deleted is made anew when it has gone.
            steps.insert(node.to_owned(), Step::Keep);
        } else if shared || taken.is_empty() {
            steps.insert(node.to_owned(), Step::Attach);
            taken.push(node.to_owned());
        } else {
            steps.insert(node.to_owned(), Step::Refuse(taken.clone()));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The rules of `reconciler.go`, as `reconciler_test.go` exercises them.
    #[test]
    fn volumes_are_detached_safely() {
        let now: Timestamp = "2030-01-01T01:00:00Z".parse().unwrap();
        let state = |ready, out_of_service, in_use| NodeState { ready, out_of_service, in_use };
        let wait = |seconds: u64| Detach::Wait(Duration::from_millis(seconds * 1000 + 1));
        let cases = [
            (state(true, false, false), 0, true, Detach::Verified),
            (state(true, false, true), 0, true, wait(360)),
            (state(false, false, true), 100, true, wait(260)),
            (state(false, false, true), 361, true, Detach::Forced),
            // A node that is ready keeps it for as long as it says that it uses it.
            (state(true, false, true), 361, true, Detach::Wait(Duration::ZERO)),
            (state(false, true, true), 0, true, Detach::Forced),
            (state(false, false, true), 361, false, Detach::Wait(Duration::ZERO)),
            (state(false, false, false), 361, true, Detach::Forced),
            (state(false, true, true), 0, false, Detach::Forced),
        ];
        for (node, seconds, force, expected) in cases {
            let since = now - jiff::SignedDuration::from_secs(seconds);
            assert_eq!(detach(node, since, now, force), expected, "{node:?} {seconds} {force}");
        }
    }

    #[test]
    fn volumes_are_attached_once_unless_they_are_shared() {
        let attachment = VolumeAttachment::default();
        type Case<'a> = (&'a [&'a str], &'a [&'a str], bool, &'a str);
        let cases: &[Case<'_>] = &[
            (&["a"], &[], false, "a: Attach"),
            (&["a"], &["a"], false, "a: Keep"),
            (&[], &["a"], false, "a: Release"),
            (&["b"], &["a"], false, "a: Release, b: Refuse([\"a\"])"),
            (&["b"], &["a"], true, "a: Release, b: Attach"),
            (&["a", "b"], &[], false, "a: Attach, b: Refuse([\"a\"])"),
            (&["a", "b"], &[], true, "a: Attach, b: Attach"),
            (&["a", "b"], &["b"], false, "a: Refuse([\"b\"]), b: Keep"),
        ];
        for (wanted, attached, shared, expected) in cases {
            let attached = attached.iter().map(|&node| (node.to_owned(), &attachment)).collect();
            let steps = steps(wanted.iter().copied(), &attached, *shared);
            let texts: Vec<_> = steps.iter().map(|(node, step)| format!("{node}: {step:?}")).collect();
            assert_eq!(texts.join(", "), *expected, "{wanted:?}");
        }
    }

    /// The rules of `IsPodTerminated`, `IsMultiAttachAllowed` and `DetermineVolumeAction`.
    #[test]
    fn pods_and_volumes_are_read() {
        let deleted = json!({"deletionTimestamp": "2030-01-01T00:00:00Z"});
        let container = |state: &str| json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {state: {"exitCode": 0}}}]});
        for (metadata, status, expected) in [
            (json!({}), json!({"phase": "Running"}), false),
            (json!({}), json!({"phase": "Failed"}), true),
            (deleted.clone(), container("running"), false),
            (deleted.clone(), container("terminated"), true),
            (deleted, json!({}), true),
            (json!({}), container("terminated"), false),
        ] {
            let pod: Pod = serde_json::from_value(
                json!({"metadata": metadata, "spec": {"containers": []}, "status": status}),
            )
            .unwrap();
            assert_eq!(is_over(&pod), expected, "{metadata} {status}");
        }
        for (modes, expected) in [
            (json!([]), true),
            (json!(["ReadWriteOnce"]), false),
            (json!(["ReadWriteOncePod"]), false),
            (json!(["ReadWriteOnce", "ReadOnlyMany"]), true),
            (json!(["ReadWriteMany"]), true),
        ] {
            let value: Value = json!({"spec": {"accessModes": modes}});
            let volume: PersistentVolume = serde_json::from_value(value).unwrap();
            assert_eq!(is_shared(&volume), expected, "{modes}");
        }
    }
}
