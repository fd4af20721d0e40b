//! Tables of upstream's rules for what happens to which pod, in the words of `stateful_set_control.go`.

use serde_json::json;

use super::*;

fn now() -> jiff::Timestamp {
    "2030-01-02T00:00:00Z".parse().unwrap()
}

/// A pod from its name and letters: `r`unning and ready, `p`ending, `f`ailed, `g`oing, `o`ld revision.
fn pod(name: &str, letters: &str) -> Arc<Pod> {
    let has = |letter| letters.contains(letter);
    let phase = if has('f') {
        "Failed"
    } else if has('r') {
        "Running"
    } else {
        "Pending"
    };
    let ready = has('r')
        .then(|| json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}]));
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name,
                "deletionTimestamp": has('g').then_some("2030-01-01T00:00:00Z"),
                "labels": {decide::REVISION_LABEL: if has('o') { "old" } else { "new" }, decide::POD_NAME_LABEL: name}},
            "spec": {"containers": []},
            "status": {"phase": phase, "conditions": ready},
        }))
        .unwrap(),
    )
}

fn words(plan: &Plan) -> String {
    let word = |step: &Step| match step {
        Step::Create { ordinal, newest } => format!("+{ordinal}{}", if *newest { "" } else { "old" }),
        Step::Claims(pod) => format!("claims:{}", pod_state::name(pod)),
        Step::Mend(pod) => format!("mend:{}", pod_state::name(pod)),
        Step::Retain(pod) => format!("retain:{}", pod_state::name(pod)),
        Step::Delete(pod) => format!("-{}", pod_state::name(pod)),
    };
    let steps: Vec<String> = plan.phases.iter().flatten().map(word).collect();
    steps.join(" ")
}

fn check(spec: Value, pods: &[(&str, &str)], expected: &str) {
    let mut set = json!({
        "metadata": {"name": "web", "uid": "S", "generation": 2},
        "spec": {"replicas": 3, "selector": {}, "template": {},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        set["spec"][key] = value.clone();
    }
    let set: StatefulSet = serde_json::from_value(set).unwrap();
    let pods: Vec<_> = pods.iter().map(|(name, letters)| pod(name, letters)).collect();
    let view = View { set: &set, pods: &pods, claim: &|_| None, current: "old", update: "new", now: now() };
    assert_eq!(words(&decide::plan(&view, 0)), expected, "{spec} {pods:?}");
}

#[test]
fn an_ordered_set_does_one_thing_at_a_time() {
    let three = || json!({});
    check(three(), &[], "+0");
    check(three(), &[("web-0", "p")], "");
    check(three(), &[("web-0", "r")], "+1");
    check(three(), &[("web-0", "r"), ("web-2", "r")], "+1");
    check(three(), &[("web-0", "r"), ("web-1", "rg")], "");
    check(three(), &[("web-0", "f")], "-web-0");
    check(three(), &[("web-0", "fg")], "");
    // Scaling down, from the highest ordinal, once all are well.
    let one = || json!({"replicas": 1});
    check(one(), &[("web-0", "r"), ("web-1", "r"), ("web-2", "r")], "-web-2");
    check(one(), &[("web-0", "p"), ("web-1", "r"), ("web-2", "r")], "");
    check(one(), &[("web-0", "r"), ("web-1", "r"), ("web-2", "p")], "-web-2");
    check(one(), &[("web-0", "r"), ("web-1", "p"), ("web-2", "p")], "");
    check(one(), &[("web-0", "r"), ("web-1", "r"), ("web-2", "rg")], "");
    check(json!({"replicas": 2, "ordinals": {"start": 5}}), &[("web-5", "r")], "+6");
    check(json!({"replicas": 1, "ordinals": {"start": 5}}), &[("web-5", "r"), ("web-0", "r")], "-web-0");
}

#[test]
fn a_parallel_set_waits_for_nothing() {
    let parallel = |replicas: i32| json!({"replicas": replicas, "podManagementPolicy": "Parallel"});
    check(parallel(3), &[("web-1", "p")], "+0 +2");
    check(parallel(3), &[("web-0", "f"), ("web-1", "pg")], "-web-0 +2");
    check(parallel(1), &[("web-0", "p"), ("web-1", "p"), ("web-2", "rg"), ("web-3", "r")], "-web-3 -web-1");
}

#[test]
fn updates_replace_from_the_highest_ordinal() {
    let all = |letters| [("web-0", letters), ("web-1", letters), ("web-2", letters)];
    let rolling =
        |fields: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": fields}});
    check(rolling(json!({"partition": 0})), &all("ro"), "-web-2");
    check(rolling(json!({"partition": 2})), &all("ro"), "-web-2");
    check(rolling(json!({"partition": 3})), &all("ro"), "");
    check(rolling(json!({"partition": 0})), &[("web-0", "ro"), ("web-1", "ro"), ("web-2", "r")], "-web-1");
    check(rolling(json!({"partition": 0, "maxUnavailable": 2})), &all("ro"), "-web-2 -web-1");
    check(rolling(json!({"partition": 0, "maxUnavailable": "10%"})), &all("ro"), "-web-2");
    check(rolling(json!({"partition": 1})), &[("web-1", "r"), ("web-2", "r")], "+0old");
    check(json!({"updateStrategy": {"type": "OnDelete"}}), &all("ro"), "");
    // A pod that is not well holds an ordered update up; it is not replaced (kubernetes#67250).
    check(rolling(json!({"partition": 0})), &[("web-0", "ro"), ("web-1", "ro"), ("web-2", "po")], "");
}

#[test]
fn pods_are_available_after_a_time() {
    let slow = || json!({"minReadySeconds": 172_800});
    check(slow(), &[("web-0", "r")], "");
    check(json!({"minReadySeconds": 60}), &[("web-0", "r")], "+1");
}

#[test]
fn a_rollout_is_complete_when_all_are_new_and_ready() {
    let set: StatefulSet =
        serde_json::from_value(json!({"spec": {"replicas": 2, "selector": {}, "template": {}}})).unwrap();
    let mut status: StatefulSetStatus = serde_json::from_value(json!({"replicas": 2, "readyReplicas": 2,
        "updatedReplicas": 2, "currentRevision": "old", "updateRevision": "new"}))
    .unwrap();
    decide::complete(&set, &mut status);
    assert_eq!((status.current_revision.as_deref(), status.current_replicas), (Some("new"), Some(2)));
}

#[test]
fn names_tell_the_set_and_the_ordinal() {
    let cases = [
        ("web-0", Some(("web", 0))),
        ("my-web-12", Some(("my-web", 12))),
        ("web", None),
        ("web-", None),
        ("web-x1", None),
        ("web-99999999999", None),
    ];
    for (name, expected) in cases {
        assert_eq!(decide::parent_and_ordinal(name), expected, "{name}");
    }
}
