use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use serde_json::{Value, json};

use super::{decide, decide::Basis, stale::stale_in, unmanaged_message};

fn now() -> Timestamp {
    "2030-01-01T01:00:00Z".parse().unwrap()
}

fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
    serde_json::from_value(json!({"metadata": {"generation": 3}, "spec": spec, "status": status})).unwrap()
}

/// `name`, with `-` in front when it isn't ready, and with `!` when it is being deleted.
fn pod(text: &str) -> Arc<Pod> {
    let name = text.trim_start_matches(['-', '!']);
    let ready = if text.starts_with('-') { "False" } else { "True" };
    let deleted = text.starts_with('!').then_some("2030-01-01T00:59:00Z");
    let pod = json!({"metadata": {"name": name, "deletionTimestamp": deleted},
        "status": {"conditions": [{"type": "Ready", "status": ready}]}});
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// The cases of upstream's `disruption_test.go`: TestNoSelector, TestUnavailable, TestIntegerMaxUnavailable(WithScaling),
/// TestPercentageMaxUnavailableWithScaling, TestNakedPod, TestReplicaSet, TestMultipleControllers, TestTwoControllers,
/// TestUpdateDisruptedPods.
#[test]
fn budgets_allow_what_is_left_over() {
    let (min, max) =
        (|value: Value| json!({"minAvailable": value}), |value: Value| json!({"maxUnavailable": value}));
    let many = |count: usize| (0..count).map(|n| format!("p{n}")).collect::<Vec<_>>();
    let some = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    // The spec, what the controllers ask for, the pods; then allowed, current, desired, expected.
    let cases = [
        (min(json!(3)), 0, many(0), [0, 0, 3, 0]),
        (min(json!(3)), 0, many(1), [0, 1, 3, 1]),
        (min(json!(3)), 0, many(4), [1, 4, 3, 4]),
        (min(json!(3)), 0, some(&["-a", "b", "c", "d"]), [0, 3, 3, 4]),
        (min(json!(3)), 0, some(&["!a", "b", "c", "d"]), [0, 3, 3, 4]),
        (max(json!(1)), 0, many(0), [0, 0, 0, 0]),
        (max(json!(1)), 0, many(1), [0, 1, 0, 0]),
        (max(json!(2)), 7, many(1), [0, 1, 5, 7]),
        (max(json!(2)), 5, many(1), [0, 1, 3, 5]),
        (max(json!(9)), 5, many(2), [2, 2, 0, 5]),
        (max(json!("30%")), 7, many(1), [0, 1, 4, 7]),
        (max(json!("30%")), 3, many(1), [0, 1, 2, 3]),
        (min(json!("28%")), 0, many(1), [0, 1, 0, 0]),
        (min(json!("20%")), 10, many(1), [0, 1, 2, 10]),
        (min(json!("1%")), 1, many(2), [1, 2, 1, 1]),
        (min(json!("28%")), 11, many(5), [1, 5, 4, 11]),
        (min(json!("28%")), 22, many(9), [2, 9, 7, 22]),
        (json!({}), 4, many(1), [0, 1, 0, 0]),
    ];
    for (spec, scale, names, wanted) in cases {
        let budget = budget(spec.clone(), json!({}));
        let pods: Vec<_> = names.iter().map(|name| pod(name)).collect();
        let expected = match decide::basis(&budget) {
            Basis::Nothing => 0,
            Basis::Pods => i32::try_from(pods.len()).unwrap(),
            Basis::Scale => scale,
        };
        let going = decide::disrupted(&budget, &pods, now());
        let current = decide::healthy(&pods, &going.pods, now());
        let desired = decide::expected(&budget, expected);
        let status = decide::status_of(&budget, current, desired, expected, going.pods, now());
        let seen = [
            status.disruptions_allowed,
            status.current_healthy,
            status.desired_healthy,
            status.expected_pods,
        ];
        assert_eq!(seen, wanted.map(Some), "{spec} of {scale} with {names:?}");
        let condition = &status.conditions.unwrap()[0];
        let (value, reason) =
            if wanted[0] > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        assert_eq!((&*condition.status, &*condition.reason), (value, reason), "{spec}");
        assert_eq!(status.observed_generation, Some(3));
    }
}

#[test]
fn pods_whose_eviction_was_allowed_do_not_count_until_the_deadline() {
    let status = json!({"disruptedPods": {"p1": "2030-01-01T01:00:00Z", "p2": "2030-01-01T00:57:00Z",
        "p3": "2030-01-01T00:59:00Z", "p4": "2030-01-01T00:58:00Z", "gone": "2030-01-01T01:00:00Z"}});
    let budget = budget(json!({"minAvailable": 1}), status);
    let pods = ["!p1", "p2", "p3", "p4"].map(pod);
    let found = decide::disrupted(&budget, &pods, now());
    assert_eq!(found.pods.keys().collect::<Vec<_>>(), ["p3", "p4"]);
    assert_eq!(found.late, ["p2"]);
    assert_eq!(found.recheck, Some(Duration::from_millis(1)), "p4 is at its deadline");
    assert_eq!(decide::healthy(&pods, &found.pods, now()), 2, "p2, and p4, whose time is over");
}

#[test]
fn nothing_may_be_disrupted_when_the_count_fails() {
    let condition = json!({"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods", "message": "",
        "lastTransitionTime": "2030-01-01T00:00:00Z", "observedGeneration": 2});
    let known = json!({"disruptionsAllowed": 2, "currentHealthy": 5, "desiredHealthy": 3, "expectedPods": 5,
        "observedGeneration": 2, "conditions": [condition]});
    let failed = decide::failed(&budget(json!({"maxUnavailable": 1}), known), "why".to_owned(), now());
    let seen = serde_json::to_value(&failed).unwrap();
    let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "why",
        "lastTransitionTime": "2030-01-01T01:00:00Z", "observedGeneration": 2});
    let expected = json!({"disruptionsAllowed": 0, "currentHealthy": 5, "desiredHealthy": 3, "expectedPods": 5,
        "observedGeneration": 2, "conditions": [condition]});
    assert_eq!(seen, expected);
}

/// The cases of upstream's `TestStalePodDisruption`.
#[test]
fn conditions_of_pods_that_stay_are_stale_after_two_minutes() {
    let second = Duration::from_secs(1);
    let cases = [
        (json!({}), "True", "Running", 121, Some(Duration::ZERO)),
        (json!({}), "True", "Running", 119, Some(second)),
        (json!({"deletionTimestamp": "2030-01-01T00:00:00Z"}), "True", "Running", 121, None),
        (json!({}), "False", "Running", 121, None),
        (json!({}), "True", "Failed", 121, None),
        (json!({"reason": "TerminationByKubelet"}), "True", "Running", 121, None),
    ];
    for (extra, status, phase, age, expected) in cases {
        let since = now() - jiff::SignedDuration::from_secs(age);
        let condition = json!({"type": "DisruptionTarget", "status": status, "reason": extra["reason"],
            "lastTransitionTime": since.to_string()});
        let pod = json!({"metadata": {"deletionTimestamp": extra["deletionTimestamp"]},
            "status": {"phase": phase, "conditions": [condition]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(stale_in(&pod, now()), expected, "{pod:?}");
    }
}

#[test]
fn selectors_are_shown_as_go_shows_them() {
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]});
    let message = unmanaged_message(Some(&serde_json::from_value(selector).unwrap()));
    let shown = "(selector: &LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:k,Operator:In,Values:[x y],},},})";
    assert!(message.contains(shown), "{message}");
}
