use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use kcore::{Clock, TokioClock};
use kreconcile::controllers::{MetricQuery, MetricValues, MetricsError, MetricsSource, PodMetric};
use serde_json::{Value, json};

use crate::{
    controllers::{at_rest, start_with},
    fake::FakeApi,
};

/// A load that the pods share evenly, in thousandths of a core; negative: nothing is known.
struct Load {
    clock: TokioClock,
    milli: AtomicI64,
    pods: AtomicI64,
}

#[async_trait]
impl MetricsSource for Load {
    async fn read(&self, query: &MetricQuery<'_>) -> Result<MetricValues, MetricsError> {
        let MetricQuery::Resource { resource: "cpu", container: None, pods: "app=web", namespace: "shop" } =
            query
        else {
            return Err(MetricsError::new("nothing of the kind"));
        };
        let (load, pods) = (self.milli.load(Ordering::Relaxed), self.pods.load(Ordering::Relaxed));
        if load < 0 {
            return Err(MetricsError::new("no metrics returned from resource metrics API"));
        }
        let metric = PodMetric::new(load / pods, self.clock.now(), Duration::from_secs(15));
        let each = (0..pods).map(|number| (format!("p{number}"), metric));
        Ok(MetricValues::Pods(each.collect::<BTreeMap<_, _>>()))
    }
}

fn web(api: &FakeApi) -> Value {
    api.get("widgets", "shop", "web").unwrap()["spec"]["replicas"].clone()
}

/// As the widget's own controller does: as many pods as it asks for.
fn follow(api: &FakeApi, load: &Load) {
    let wanted = web(api).as_i64().unwrap();
    let known = load.pods.load(Ordering::Relaxed);
    for number in wanted..known {
        api.remove("pods", "shop", &format!("p{number}"));
    }
    for number in known..wanted {
        let status = json!({"phase": "Running", "startTime": "2029-01-01T00:00:00Z", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2029-01-01T00:00:00Z"}]});
        let requests = json!({"requests": {"cpu": "1"}});
        api.add(
            "pods",
            json!({"metadata": {"name": format!("p{number}"), "namespace": "shop", "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "resources": requests}]}, "status": status}),
        );
    }
    load.pods.store(wanted, Ordering::Relaxed);
    api.edit("widgets", "shop", "web", |web| {
        web["status"] = json!({"replicas": wanted, "selector": "app=web"});
    });
}

fn condition(api: &FakeApi, kind: &str) -> (String, String) {
    let hpa = api.get("horizontalpodautoscalers", "shop", "web").unwrap_or_default();
    let all = hpa["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|one| one["type"] == kind).unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[tokio::test(start_paused = true)]
async fn replicas_follow_the_load_up_at_once_and_down_after_a_while() {
    let clock = TokioClock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let load = Arc::new(Load { clock, milli: AtomicI64::new(1000), pods: AtomicI64::new(0) });
    let (api, running) = start_with(
        clock,
        |name| name == "horizontal-pod-autoscaler-controller",
        |settings| settings.metrics = Some(load.clone()),
    );
    api.add("widgets", json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 2}}));
    follow(&api, &load);
    let target = json!({"type": "Utilization", "averageUtilization": 50});
    api.add(
        "horizontalpodautoscalers",
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
            "scaleTargetRef": {"apiVersion": "example.com/v1", "kind": "Widget", "name": "web"},
            "minReplicas": 2, "maxReplicas": 10,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]}}),
    );
    api.until("a first look", |api| condition(api, "ScalingActive") == is("True", "ValidMetricFound")).await;
    let hpa = api.get("horizontalpodautoscalers", "shop", "web").unwrap();
    assert_eq!(
        hpa["status"]["currentMetrics"][0]["resource"]["current"],
        json!({"averageUtilization": 50, "averageValue": "500m"})
    );
    at_rest(&api).await;
    assert_eq!(web(&api), 2);

    // Ten times the load: twice as many, or four, at a time; never more than ten.
    load.milli.store(10_000, Ordering::Relaxed);
    for expected in [4, 8, 10] {
        api.until("more replicas", |api| web(api) == expected).await;
        follow(&api, &load);
    }
    api.until("the limit", |api| condition(api, "ScalingLimited") == is("True", "TooManyReplicas")).await;

    // Less: five minutes after the last time that so many were needed.
    load.milli.store(1500, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(270)).await;
    assert_eq!(web(&api), 10);
    assert_eq!(condition(&api, "AbleToScale"), is("True", "ScaleDownStabilized"));
    api.until("fewer replicas", |api| web(api) == 3).await;
    follow(&api, &load);

    // Nothing is known: nothing is done.
    load.milli.store(-1, Ordering::Relaxed);
    api.until("it to be told", |api| {
        condition(api, "ScalingActive") == is("False", "FailedGetResourceMetric")
    })
    .await;
    let reasons: Vec<Value> = api.list("events").iter().map(|event| event["reason"].clone()).collect();
    for reason in ["SuccessfulRescale", "FailedGetResourceMetric", "FailedComputeMetricsReplicas"] {
        assert!(reasons.contains(&json!(reason)), "{reason} is not among {reasons:?}");
    }
    assert_eq!(web(&api), 3);

    // Switched off by hand.
    api.edit("widgets", "shop", "web", |web| web["spec"]["replicas"] = 0.into());
    api.until("it to be off", |api| condition(api, "ScalingActive") == is("False", "ScalingDisabled")).await;
    running.stop().await;
}

/// The cases of upstream's `TestConditionAmbiguousSelectorWhenFullSelectorOverlapBetweenHPAs`, `...WhenPartialSelectorOverlap...` and
/// `TestConditionNoAmbiguousSelectorWhenNoSelectorOverlapBetweenHPAs`.
#[tokio::test(start_paused = true)]
async fn pods_have_one_autoscaler() {
    let clock = TokioClock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let load = Arc::new(Load { clock, milli: AtomicI64::new(1000), pods: AtomicI64::new(0) });
    let (api, running) = start_with(
        clock,
        |name| name == "horizontal-pod-autoscaler-controller",
        |settings| settings.metrics = Some(load.clone()),
    );
    let target = json!({"type": "Utilization", "averageUtilization": 50});
    for name in ["web", "other"] {
        api.add(
            "widgets",
            json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"replicas": 2},
            "status": {"replicas": 2, "selector": "app=other"}}),
        );
        api.add(
            "horizontalpodautoscalers",
            json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {
                "scaleTargetRef": {"apiVersion": "example.com/v1", "kind": "Widget", "name": name},
                "minReplicas": 2, "maxReplicas": 10,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]}}),
        );
    }
    follow(&api, &load);
    api.until("it to be active", |api| condition(api, "ScalingActive") == is("True", "ValidMetricFound"))
        .await;
    for (selector, clashes) in [("app in (web,db)", true), ("app=db", false), ("app=web", true)] {
        api.edit("widgets", "shop", "other", |other| other["status"]["selector"] = selector.into());
        let expected =
            if clashes { is("False", "AmbiguousSelector") } else { is("True", "ValidMetricFound") };
        api.until(selector, |api| condition(api, "ScalingActive") == expected).await;
    }
    let told = "pods by selector app=web are controlled by multiple HPAs: [{other shop} {web shop}]";
    assert!(api.list("events").iter().any(|event| event["message"] == told));
    assert_eq!(web(&api), 2);
    running.stop().await;
}
