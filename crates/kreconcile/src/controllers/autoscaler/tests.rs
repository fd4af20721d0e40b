use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscalerBehavior, core::v1::Pod};
use serde_json::{Value, json};

use super::{
    metrics::PodMetric,
    rate::{Bounds, History, normalize},
    replicas::{PodMetrics, Target, Tolerances, from_pods, from_value, from_value_per_pod},
};

const TOLERANCES: Tolerances = Tolerances { down: 0.1, up: 0.1 };

fn now() -> Timestamp {
    "2030-01-01T01:00:00Z".parse().unwrap()
}

fn pod(name: usize, changes: &Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name.to_string()},
        "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
        "status": {"phase": "Running", "startTime": "2030-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}]},
    });
    for (path, value) in changes.as_object().unwrap() {
        *pod.pointer_mut(path).unwrap() = value.clone();
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// The cases of upstream's `replica_calculator_test.go`.
#[test]
fn pods_ask_for_replicas() {
    let fine = json!({});
    let pending = json!({"/status/phase": "Pending"});
    let failed = json!({"/status/phase": "Failed"});
    let not_ready = json!({"/status/conditions/0/status": "False"});
    let young = json!({"/status/startTime": "2030-01-01T00:59:00Z", "/status/conditions/0/status": "False"});
    let percent = Target::Utilization { percent: 30, container: None };
    let fifty = Target::Utilization { percent: 50, container: None };
    let ok = |replicas| Ok(replicas);
    type Case<'a> = (&'a [(&'a Value, Option<i64>)], i32, Target<'a>, &'a str, Result<i32, &'static str>);
    let cases: &[Case<'_>] = &[
        (&[(&fine, Some(300)), (&fine, Some(500)), (&fine, Some(700))], 3, percent, "cpu", ok(5)),
        (&[(&fine, Some(300)), (&fine, Some(310)), (&fine, Some(290))], 3, percent, "cpu", ok(3)),
        (
            &[
                (&fine, Some(100)),
                (&fine, Some(300)),
                (&fine, Some(500)),
                (&fine, Some(250)),
                (&fine, Some(250)),
            ],
            5,
            fifty,
            "cpu",
            ok(3),
        ),
        // Not ready from the start, or pending: as using nothing.
        (&[(&young, Some(300)), (&fine, Some(500)), (&fine, Some(700))], 3, percent, "cpu", ok(4)),
        (&[(&pending, None), (&fine, Some(500)), (&fine, Some(700))], 3, percent, "cpu", ok(4)),
        // It was ready once.
        (&[(&not_ready, Some(300)), (&fine, Some(500)), (&fine, Some(700))], 3, percent, "cpu", ok(4)),
        (&[(&failed, None), (&fine, Some(500)), (&fine, Some(700))], 2, percent, "cpu", ok(4)),
        // Without a figure: nothing for more, all for fewer.
        (&[(&fine, Some(1000)), (&fine, None)], 2, fifty, "cpu", ok(2)),
        (&[(&fine, Some(100)), (&fine, None), (&fine, None)], 3, fifty, "cpu", ok(3)),
        (
            &[(&fine, Some(100)), (&fine, Some(100)), (&fine, None)],
            3,
            Target::Utilization { percent: 100, container: None },
            "cpu",
            ok(2),
        ),
        (&[(&fine, Some(1000)), (&fine, Some(1000))], 2, Target::Average(500), "", ok(4)),
        (
            &[(&fine, None)],
            1,
            percent,
            "cpu",
            Err("did not receive metrics for targeted pods (pods might be unready)"),
        ),
        (&[], 1, percent, "cpu", Err("no pods returned by selector while calculating replica count")),
        (&[(&fine, Some(1))], 1, percent, "gpu", Err("missing request for gpu in container a of Pod 0")),
    ];
    for (number, (pods, current, target, resource, expected)) in cases.iter().enumerate() {
        let all: Vec<Arc<Pod>> =
            pods.iter().enumerate().map(|(name, (changes, _))| pod(name, changes)).collect();
        let figures = pods.iter().enumerate().filter_map(|(name, (_, milli))| {
            Some((name.to_string(), PodMetric::new((*milli)?, now(), Duration::from_secs(60))))
        });
        let metrics: PodMetrics = figures.collect();
        let found = from_pods(*current, *target, resource, TOLERANCES, &all, metrics, now());
        assert_eq!(found.map(|found| found.replicas), (*expected).map_err(str::to_owned), "case {number}");
    }
}

/// The cases of upstream's `replica_calculator_test.go` for object and external metrics.
#[test]
fn other_figures_ask_for_replicas() {
    let pods = [pod(0, &json!({})), pod(1, &json!({})), pod(2, &json!({"/status/phase": "Pending"}))];
    for (current, usage, target, expected) in [
        (3, 20_000, 15_000, 3),
        (3, 30_000, 15_000, 4),
        (3, 16_000, 15_000, 3),
        (0, 40_000, 15_000, 3),
        (3, 5_000, 15_000, 1),
    ] {
        let found = from_value(current, usage, target, TOLERANCES, &pods).unwrap();
        assert_eq!(found.replicas, expected, "{current} {usage} {target}");
    }
    for (current, usage, target, expected, each) in [
        (3, 20_000, 5_000, 4, 6_667),
        (3, 15_000, 5_000, 3, 5_000),
        (4, 8_600, 2_000, 4, 2_150),
        (5, 3_000, 2_000, 2, 600),
    ] {
        let found = from_value_per_pod(current, usage, target, TOLERANCES);
        assert_eq!((found.replicas, found.usage), (expected, each), "{current} {usage} {target}");
    }
}

/// The rules of upstream's `TestNormalizeDesiredReplicas`, `TestScalingWithRules` and `TestStoreScaleEvents`.
#[test]
fn replicas_change_as_fast_as_they_may() {
    let behavior = |up: Value, down: Value| -> Option<HorizontalPodAutoscalerBehavior> {
        Some(serde_json::from_value(json!({"scaleUp": up, "scaleDown": down})).unwrap())
    };
    let rules = |select: &str, window: i32, policies: Value| json!({"selectPolicy": select, "stabilizationWindowSeconds": window, "policies": policies});
    let pods = |value: i32| json!({"type": "Pods", "value": value, "periodSeconds": 60});
    let percent = |value: i32| json!({"type": "Percent", "value": value, "periodSeconds": 60});
    let any = || rules("Max", 0, json!([percent(1000)]));
    let both = |select: &str| rules(select, 0, json!([pods(4), percent(100)]));
    let at = |seconds: i64| now() - jiff::SignedDuration::from_secs(seconds);
    let minute_ago = |value: i32| {
        let mut history = History::default();
        history.begin(at(59), value);
        history
    };
    let scaled = |seconds: i64, from: i32, to: i32| {
        let mut history = History::default();
        history.scaled(at(seconds), from, to);
        history
    };
    let none = History::default;
    type Case = (
        History,
        Option<HorizontalPodAutoscalerBehavior>,
        (i32, i32, i32),
        i32,
        i32,
        &'static str,
        &'static str,
    );
    let cases: Vec<Case> = vec![
        (none(), None, (1, 10, 2), 3, 3, "ReadyForNewScale", "DesiredWithinRange"),
        (none(), None, (1, 10, 2), 9, 4, "ReadyForNewScale", "ScaleUpLimit"),
        (none(), None, (1, 10, 6), 30, 10, "ReadyForNewScale", "TooManyReplicas"),
        (none(), None, (3, 10, 6), 1, 3, "ReadyForNewScale", "TooFewReplicas"),
        (minute_ago(6), None, (1, 10, 6), 2, 6, "ScaleDownStabilized", "DesiredWithinRange"),
        (none(), behavior(both("Max"), any()), (1, 100, 10), 50, 20, "ReadyForNewScale", "ScaleUpLimit"),
        (none(), behavior(both("Min"), any()), (1, 100, 10), 50, 14, "ReadyForNewScale", "ScaleUpLimit"),
        (none(), behavior(both("Disabled"), any()), (1, 100, 10), 50, 10, "ReadyForNewScale", "ScaleUpLimit"),
        (
            none(),
            behavior(any(), rules("Max", 0, json!([pods(4), percent(10)]))),
            (1, 100, 10),
            2,
            6,
            "ReadyForNewScale",
            "ScaleDownLimit",
        ),
        (
            none(),
            behavior(any(), rules("Min", 0, json!([pods(4), percent(10)]))),
            (1, 100, 10),
            2,
            9,
            "ReadyForNewScale",
            "ScaleDownLimit",
        ),
        // What was added within the period counts, what was added before does not.
        (
            scaled(30, 10, 12),
            behavior(rules("Max", 0, json!([pods(4)])), any()),
            (1, 100, 12),
            50,
            14,
            "ReadyForNewScale",
            "ScaleUpLimit",
        ),
        (
            scaled(90, 10, 12),
            behavior(rules("Max", 0, json!([pods(4)])), any()),
            (1, 100, 12),
            50,
            16,
            "ReadyForNewScale",
            "ScaleUpLimit",
        ),
        (
            minute_ago(5),
            behavior(rules("Max", 120, json!([percent(1000)])), any()),
            (1, 100, 5),
            50,
            5,
            "ScaleUpStabilized",
            "DesiredWithinRange",
        ),
        (
            minute_ago(5),
            behavior(rules("Max", 30, json!([percent(1000)])), any()),
            (1, 100, 5),
            50,
            50,
            "ReadyForNewScale",
            "DesiredWithinRange",
        ),
        (
            minute_ago(8),
            behavior(any(), rules("Max", 120, json!([percent(100)]))),
            (1, 100, 10),
            2,
            8,
            "ScaleDownStabilized",
            "DesiredWithinRange",
        ),
        (none(), behavior(any(), any()), (1, 20, 10), 50, 20, "ReadyForNewScale", "TooManyReplicas"),
        (none(), behavior(any(), any()), (5, 20, 10), 1, 5, "ReadyForNewScale", "TooFewReplicas"),
    ];
    for (number, (mut history, behavior, (min, max, current), wanted, expected, able, limited)) in
        cases.into_iter().enumerate()
    {
        let seen = normalize(&mut history, behavior.as_ref(), Bounds { min, max, current }, wanted, now());
        assert_eq!(
            (seen.replicas, seen.able.0, seen.limited.1.0),
            (expected, able, limited),
            "case {number}"
        );
        assert_eq!(seen.limited.0, limited != "DesiredWithinRange", "case {number}");
    }
}
