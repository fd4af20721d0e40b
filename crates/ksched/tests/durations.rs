//! How long what takes is measured at every extension point, under upstream's names
//! (`pkg/scheduler/metrics/metrics.go`).

use std::sync::Arc;

use ksched::{
    Booking, Metrics, Plan, Planner, Profile,
    build::{node, pod},
    groups::Groups,
    metrics::PLUGIN_SAMPLE_PERCENT,
    plugin::{Permit, PermitVerdict, Reserve, Verdict},
    snapshot::catalog::Catalog,
};

/// How many pods are tried, so that the sample is not empty and not everything.
const PODS: usize = 300;

/// The value of one series.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series) && line[series.len()..].starts_with(' '))?;
    line[series.len()..].trim().parse().ok()
}

/// Runs decisions from scratch: nothing is kept for pods that a plug-in books for.
#[derive(Debug)]
struct Books;

impl Reserve for Books {
    fn name(&self) -> &str {
        "Books"
    }

    fn reserve(&self, _: &mut Booking<'_>) -> Verdict {
        Verdict::Pass
    }
}

impl Permit for Books {
    fn name(&self) -> &str {
        "Books"
    }

    fn concerns(&self, _: &ksched::PodInfo, _: &Catalog) -> bool {
        false
    }

    fn permit(&self, _: &mut Booking<'_>, _: &ksched::WaitingPods, _: &Groups) -> PermitVerdict {
        PermitVerdict::Allow
    }
}

fn run(planner: &mut Planner, metrics: &Metrics, cpu: &str) {
    for number in 0..PODS {
        let pod = Arc::new(pod(&format!("p{number}")).request("cpu", cpu).info());
        let plan = planner.plan_with_metrics(0, &pod, &[], metrics, 1);
        assert!(matches!(plan, Plan::Decision(_)));
    }
}

#[test]
fn extension_points_are_measured_for_all_pods_and_plugins_for_a_sample() {
    let profile = Profile::builder().reserve(Arc::new(Books)).permit(Arc::new(Books)).build().unwrap();
    let mut planner = Planner::new([profile].into());
    for name in ["a", "b", "c"] {
        planner.set_node(node(name).resource("cpu", "2").taint("k", "v", "PreferNoSchedule").info());
    }
    let metrics = Metrics::default();
    run(&mut planner, &metrics, "1");
    let text = metrics.text();
    let profile = "profile=\"default-scheduler\"";
    let point = |name: &str, status: &str| {
        let labels = format!("{{extension_point=\"{name}\",status=\"{status}\",{profile}}}");
        value(&text, &format!("scheduler_framework_extension_point_duration_seconds_count{labels}"))
    };
    for name in ["PreFilter", "Filter", "PreScore", "Score"] {
        assert_eq!(point(name, "Success"), Some(PODS as f64), "{name}");
    }
    assert_eq!(point("PostFilter", "Unschedulable"), None, "every pod found a node");
    // The sample is decided by names: it is the same for all plug-ins, and of the size that upstream's has.
    let plugin = |name: &str, point: &str, status: &str| {
        let labels = format!("{{plugin=\"{name}\",extension_point=\"{point}\",status=\"{status}\"}}");
        value(&text, &format!("scheduler_plugin_execution_duration_seconds_count{labels}"))
    };
    let sample = plugin("NodeResourcesFit", "Filter", "Success").unwrap();
    let expected = PODS as f64 * PLUGIN_SAMPLE_PERCENT as f64 / 100.0;
    assert!((expected / 2.0..expected * 2.0).contains(&sample), "{sample} of {PODS}");
    for (name, point, status) in [
        ("InterPodAffinity", "PreFilter", "Skip"),
        ("TaintToleration", "Filter", "Success"),
        ("TaintToleration", "Score", "Success"),
        ("TaintToleration", "ScoreExtensionNormalize", "Success"),
        ("NodeAffinity", "PreScore", "Skip"),
    ] {
        assert_eq!(plugin(name, point, status), Some(sample), "{name} {point}");
    }
    assert_eq!(plugin("InterPodAffinity", "Filter", "Success"), None, "it has nothing to say");
    let evaluations = |name: &str, point: &str| {
        let labels = format!("{{plugin=\"{name}\",extension_point=\"{point}\",{profile}}}");
        value(&text, &format!("scheduler_plugin_evaluation_total{labels}"))
    };
    assert_eq!(evaluations("NodeResourcesFit", "Filter"), Some(3.0 * PODS as f64));
    assert_eq!(evaluations("NodeResourcesFit", "Score"), Some(3.0 * PODS as f64));
    assert_eq!(evaluations("InterPodAffinity", "PreFilter"), None);
}

#[test]
fn what_fails_is_told_apart_from_what_does_not() {
    let mut planner = Planner::new([Profile::default()].into());
    planner.set_node(node("a").resource("cpu", "1").info());
    let metrics = Metrics::default();
    run(&mut planner, &metrics, "4");
    let text = metrics.text();
    let profile = "profile=\"default-scheduler\"";
    for (series, expected) in [
        (
            format!(
                "scheduler_framework_extension_point_duration_seconds_count{{extension_point=\"PostFilter\",status=\"Unschedulable\",{profile}}}"
            ),
            Some(PODS as f64),
        ),
        (format!("scheduler_batch_attempts_total{{{profile},result=\"no_hint\"}}"), Some(PODS as f64)),
        (
            format!(
                "scheduler_framework_extension_point_duration_seconds_count{{extension_point=\"Score\",status=\"Success\",{profile}}}"
            ),
            None,
        ),
    ] {
        assert_eq!(value(&text, &series), expected, "{series} in\n{text}");
    }
    let plugin = "scheduler_plugin_execution_duration_seconds_count{plugin=\"NodeResourcesFit\",extension_point=\"Filter\",status=\"UnschedulableAndUnresolvable\"}";
    assert!(value(&text, plugin).is_some_and(|number| number > 0.0), "{text}");
}
