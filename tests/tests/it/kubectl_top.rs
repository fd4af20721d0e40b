//! What is used, and what follows from it: `kubectl top`, and an autoscaler under a load that comes and goes. What kubectl prints is
//! what it prints against metrics-server (`kubectl/pkg/metricsutil`). Time is paused, so that minutes pass at once; it stands
//! still while kubectl runs.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ServiceAccount};
use kplane::Cluster;

use crate::support::{Kubectl, words};

/// Longer than anything takes; it passes in no time.
const AGES: Duration = Duration::from_secs(7200);

/// Each pod is busy for ten minutes after its start: 0.9 of a core where 0.5 are asked for; then nearly idle.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations:
        simulated.kplane.dev/cpu: "900m,10m=20m"
        simulated.kplane.dev/memory: 64Mi
    spec:
      containers:
      - {name: server, image: "app:1", resources: {requests: {cpu: 500m, memory: 128Mi}}}
"#;

async fn replicas(kubectl: &Kubectl, count: i32) {
    let is = |found: Option<&Deployment>| {
        found
            .and_then(|found| found.status.as_ref())
            .is_some_and(|status| status.available_replicas == Some(count))
    };
    kubectl.cluster.wait_until::<Deployment>("default", "web", AGES, is).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn load_that_comes_and_goes_is_shown_and_followed() {
    let cluster = Cluster::builder().nodes(2).start().await.unwrap();
    let Some(kubectl) = Kubectl::new(cluster).await else { return };
    let there = |found: Option<&ServiceAccount>| found.is_some();
    kubectl.cluster.wait_until::<ServiceAccount>("default", "default", AGES, there).await.unwrap();
    kubectl.run(&format!("apply -f {}", kubectl.file("web.yaml", WEB))).await;
    replicas(&kubectl, 1).await;
    let why = kubectl.fail("top pod").await;
    assert!(why.contains("Metrics not available for pod default/web-") || why.contains("error:"), "{why}");

    let said = kubectl.run("autoscale deployment/web --min=1 --max=5 --cpu-percent=60").await;
    assert_eq!(said.trim(), "horizontalpodautoscaler.autoscaling/web autoscaled");
    let began = kubectl.cluster.clock().now();
    // 180 % of what is asked for, where 60 % are wanted: three times as many, whose load is the same, so as many as may be.
    replicas(&kubectl, 5).await;
    let took = kubectl.cluster.clock().now().duration_since(began).as_secs();
    assert!((15..300).contains(&took), "{took}");
    tokio::time::sleep(Duration::from_secs(60)).await;

    let pods = kubectl.run("top pod --no-headers -l app=web").await;
    let rows: Vec<Vec<&str>> = pods.lines().map(words).collect();
    assert!(rows.len() == 5 && rows.iter().all(|row| row[1..] == ["900m", "64Mi"]), "{pods}");
    let containers = kubectl.run("top pod --containers -l app=web").await;
    assert_eq!(words(containers.lines().next().unwrap()), ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"]);
    let sum = kubectl.run("top pod -l app=web --sum --no-headers").await;
    assert_eq!(words(sum.lines().last().unwrap()), ["4500m", "320Mi"], "{sum}");
    let nodes = kubectl.run("top node").await;
    let rows: Vec<Vec<&str>> = nodes.lines().map(words).collect();
    assert!(rows[0].len() == 5 && rows[0][..2] == ["NAME", "CPU(cores)"], "{nodes}");
    let cores: u32 = rows[1..].iter().map(|row| row[1].trim_end_matches('m').parse::<u32>().unwrap()).sum();
    assert_eq!((rows.len(), cores), (3, 4500), "{nodes}");
    let hpa = kubectl.run("get hpa web --no-headers").await;
    assert_eq!(words(&hpa)[..7], ["web", "Deployment/web", "cpu:", "180%/60%", "1", "5", "5"], "{hpa}");

    // The load is gone; five minutes later (the stabilization window) the pods are too.
    replicas(&kubectl, 1).await;
    let took = kubectl.cluster.clock().now().duration_since(began).as_secs();
    assert!((900..1800).contains(&took), "{took}");
    let events = kubectl
        .run("get events --field-selector reason=SuccessfulRescale -o jsonpath={.items[*].message}")
        .await;
    for expected in [
        "New size: 3; reason: cpu resource utilization (percentage of request) above target",
        "New size: 5; reason: cpu resource utilization (percentage of request) above target",
        "New size: 1; reason: All metrics below target",
    ] {
        assert!(events.contains(expected), "{expected}: {events}");
    }
}
