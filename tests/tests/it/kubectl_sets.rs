//! StatefulSets and DaemonSets as kubectl rolls them out, back and over. What it prints is what it prints against
//! upstream (`kubectl/pkg/polymorphichelpers`).

use k8s_openapi::api::core::v1::ServiceAccount;
use kplane::Cluster;

use crate::support::{Kubectl, PATIENCE, kubectls, words};

const SETS: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "app:1"}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "agent:1"}]
"#;

async fn has(kubectl: &Kubectl, line: &str, part: &str) {
    let said = kubectl.run(line).await;
    assert!(said.contains(part), "kubectl {line}\nwanted {part}\nin     {said}");
}

async fn rolled_out(kubectl: &Kubectl) {
    let complete = "partitioned roll out complete: 3 new pods have been updated";
    has(kubectl, "rollout status statefulset/db --timeout=60s", complete).await;
    let complete = "daemon set \"agent\" successfully rolled out";
    has(kubectl, "rollout status daemonset/agent --timeout=60s", complete).await;
}

async fn images(kubectl: &Kubectl, version: &str) {
    let said = kubectl.run("get pods --no-headers -o custom-columns=:.spec.containers[0].image").await;
    assert!(words(&said).iter().all(|image| image.ends_with(version)), "wanted {version} in {said}");
}

async fn scenario(kubectl: &Kubectl) {
    let sets = kubectl.file("sets", SETS);
    kubectl.run(&format!("apply -f {sets}")).await;
    rolled_out(kubectl).await;
    let table = kubectl.run("get statefulsets,daemonsets").await;
    let row =
        |name: &str| words(table.lines().find(|line| line.contains(name)).unwrap_or_default()).join(" ");
    assert!(row("statefulset.apps/db").starts_with("statefulset.apps/db 3/3 "), "{table}");
    assert!(row("daemonset.apps/agent").starts_with("daemonset.apps/agent 2 2 2 2 2 <none> "), "{table}");
    has(kubectl, "get pods -l app=db -o name", "pod/db-0\npod/db-1\npod/db-2\n").await;
    images(kubectl, ":1").await;

    kubectl.run("set image statefulset/db c=app:2").await;
    kubectl.run("set image daemonset/agent c=agent:2").await;
    rolled_out(kubectl).await;
    images(kubectl, ":2").await;
    let history = kubectl.run("rollout history statefulset/db").await;
    assert!(history.lines().any(|line| words(line).first() == Some(&"2")), "{history}");

    has(kubectl, "rollout undo statefulset/db", "statefulset.apps/db rolled back").await;
    has(kubectl, "rollout undo daemonset/agent", "daemonset.apps/agent rolled back").await;
    rolled_out(kubectl).await;
    images(kubectl, ":1").await;
    let history = kubectl.run("rollout history daemonset/agent").await;
    assert!(history.lines().any(|line| words(line).first() == Some(&"3")), "{history}");

    has(kubectl, "rollout restart statefulset/db", "statefulset.apps/db restarted").await;
    rolled_out(kubectl).await;
    kubectl.run("scale statefulset/db --replicas=1").await;
    kubectl.run("wait pod/db-1 --for=delete --timeout=60s").await;
    kubectl.run("wait statefulset/db --for=jsonpath={.status.replicas}=1 --timeout=60s").await;
    assert_eq!(kubectl.run("get pods -l app=db -o name").await, "pod/db-0\n");

    // What was orphaned is adopted by its heir.
    kubectl.run("delete statefulset/db --cascade=orphan").await;
    assert_eq!(kubectl.run("get pods -l app=db -o name").await, "pod/db-0\n");
    kubectl.run(&format!("apply -f {sets}")).await;
    rolled_out(kubectl).await;
    kubectl.run("delete statefulset/db daemonset/agent").await;
    kubectl.run("wait pods --all --for=delete --timeout=60s").await;
}

#[tokio::test]
async fn sets_roll_out_back_and_over() {
    for program in kubectls() {
        let cluster = Cluster::builder().nodes(2).start().await.unwrap();
        let account =
            cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some());
        account.await.unwrap();
        scenario(&Kubectl::of(cluster, program).await).await;
    }
}
