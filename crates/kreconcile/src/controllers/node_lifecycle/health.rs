//! Whether a node is alive, and what its state says to the scheduler and to its pods: no I/O.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};

use crate::controllers::pod_state::stored_time;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What was last heard of a node, and when.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// When something new was last heard.
    pub(super) heard: Timestamp,
    /// The heartbeat, the status of Ready and the renewal of the Lease that were heard then.
    signs: (Option<Timestamp>, String, Option<Timestamp>),
}

/// How a node's condition Ready is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Yes,
    No,
    Unknown,
}

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub(super) fn ready(node: &Node) -> Ready {
    match condition(node, "Ready").map(|condition| &*condition.status) {
        Some("True") => Ready::Yes,
        Some("False") => Ready::No,
        _ => Ready::Unknown,
    }
}

impl Record {
    /// Notes what is heard of the node now. `lease` is when it last renewed its Lease.
    pub(super) fn note(known: Option<&Self>, node: &Node, lease: Option<Timestamp>, now: Timestamp) -> Self {
        let known_ready = condition(node, "Ready");
        let heartbeat = known_ready.and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|time| time.0);
        let status = known_ready.map(|ready| ready.status.clone()).unwrap_or_default();
        let signs = (heartbeat, status, lease);
        let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let heard = match known {
            // A condition that this controller itself set to Unknown is no sign of life.
            Some(known) if known.signs == signs || (signs.1 == "Unknown" && known.signs.2 == signs.2) => {
                known.heard
            }
            None if known_ready.is_none() => created.unwrap_or(now),
            _ => now,
        };
        Self { heard, signs }
    }
}

/// How long a node may be silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grace {
    /// Once it has reported.
    pub(super) monitor: SignedDuration,
    /// Before it ever has.
    pub(super) startup: SignedDuration,
}

/// The conditions with those that can't be known any more set to Unknown; `None` when the node has been heard of, or they
/// say so already.
pub(super) fn silence(
    node: &Node,
    record: &Record,
    grace: Grace,
    now: Timestamp,
) -> Option<Vec<NodeCondition>> {
    let grace = if condition(node, "Ready").is_some() { grace.monitor } else { grace.startup };
    if now.duration_since(record.heard) <= grace {
        return None;
    }
    let status = node.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut changed = false;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let new = |reason: &str, message: &str, heartbeat| NodeCondition {
            type_: kind.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: heartbeat,
            last_transition_time: Some(stored_time(now)),
        };
        match conditions.iter_mut().find(|known| known.type_ == kind) {
            None => {
                let created = node.metadata.creation_timestamp.clone();
                conditions.push(new("NodeStatusNeverUpdated", "Kubelet never posted node status.", created));
            }
            Some(known) if known.status == "Unknown" => continue,
            Some(known) => {
                let message = "Kubelet stopped posting node status.";
                *known = new("NodeStatusUnknown", message, known.last_heartbeat_time.clone());
            }
        }
        changed = true;
    }
    changed.then_some(conditions)
}

/// Condition, the status that counts, and the taint that it leads to.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The taints that the node should have; `None` when it has them. Taints of others stay. New ones with the effect
/// NoExecute are left out unless `may_evict`; the second value says whether one is missing for that.
pub(super) fn taints(node: &Node, may_evict: bool, now: Timestamp) -> (Option<Vec<Taint>>, bool) {
    let spec = node.spec.as_ref();
    let known = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in TAINTS {
        if condition(node, kind).is_some_and(|condition| condition.status == status) {
            wanted.push((key, "NoSchedule"));
            if kind == "Ready" {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    if spec.is_some_and(|spec| spec.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_ours = |taint: &Taint| {
        let key = taint.key.as_str();
        match taint.effect.as_str() {
            "NoSchedule" => key == UNSCHEDULABLE || TAINTS.iter().any(|(_, _, known)| *known == key),
            "NoExecute" => matches!(key, NOT_READY | UNREACHABLE),
            _ => false,
        }
    };
    let mut taints: Vec<Taint> = known
        .iter()
        .filter(|taint| !is_ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    let mut held_back = false;
    for (key, effect) in wanted {
        if taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            continue;
        }
        if effect == "NoExecute" && !may_evict {
            held_back = true;
            continue;
        }
        let (key, effect) = (key.to_owned(), effect.to_owned());
        taints.push(Taint { key, effect, value: None, time_added: Some(stored_time(now)) });
    }
    ((taints != known).then_some(taints), held_back)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(ready: Option<&str>, taints: Value) -> Node {
        let ready = ready.map(|status| json!([{"type": "Ready", "status": status}]));
        serde_json::from_value(json!({
            "metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"taints": taints},
            "status": {"conditions": ready},
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_silent_node_is_unknown_after_its_grace() {
        let grace = Grace { monitor: SignedDuration::from_secs(50), startup: SignedDuration::from_secs(60) };
        let alive = node(Some("True"), json!([]));
        let record = Record::note(None, &alive, Some(at(1)), at(10));
        assert!(silence(&alive, &record, grace, at(60)).is_none());
        let renewed = Record::note(Some(&record), &alive, Some(at(55)), at(56));
        assert!(silence(&alive, &renewed, grace, at(100)).is_none(), "its Lease was renewed");
        let silent = Record::note(Some(&record), &alive, Some(at(1)), at(61));
        let conditions = silence(&alive, &silent, grace, at(61)).unwrap();
        assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        let new = node(None, json!([]));
        let record = Record::note(None, &new, None, at(5));
        assert!(silence(&new, &record, grace, at(60)).is_none());
        assert!(silence(&new, &record, grace, at(61)).is_some());
    }

    #[test]
    fn taints_follow_the_conditions_and_leave_others_alone() {
        let cases = [
            (Some("True"), json!([]), true, None, false),
            (
                Some("True"),
                json!([{"key": "mine", "effect": "NoExecute"}, {"key": NOT_READY, "effect": "NoExecute"}]),
                true,
                Some("mine:NoExecute"),
                false,
            ),
            (
                Some("False"),
                json!([]),
                true,
                Some("node.kubernetes.io/not-ready:NoSchedule node.kubernetes.io/not-ready:NoExecute"),
                false,
            ),
            (
                Some("Unknown"),
                json!([{"key": NOT_READY, "effect": "NoExecute"}]),
                false,
                Some("node.kubernetes.io/unreachable:NoSchedule"),
                true,
            ),
        ];
        for (ready, known, may_evict, expected, held_back) in cases {
            let (taints, held) = taints(&node(ready, known.clone()), may_evict, at(0));
            let text = taints.map(|taints| {
                let text: Vec<_> =
                    taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
                text.join(" ")
            });
            assert_eq!((text.as_deref(), held), (expected, held_back), "{ready:?} {known}");
        }
    }
}
