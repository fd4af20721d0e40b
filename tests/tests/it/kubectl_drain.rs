//! A node is drained no faster than a PodDisruptionBudget allows. What kubectl prints is what it prints against upstream
//! (`kubectl/pkg/drain`).

use k8s_openapi::api::core::v1::ServiceAccount;
use kplane::Cluster;

use crate::support::{Kubectl, PATIENCE, kubectls, words};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "app:1"}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: calm}
spec:
  maxUnavailable: 0
  selector: {matchLabels: {app: web}}
"#;

async fn allowed(kubectl: &Kubectl, count: u32) {
    let line = format!("wait pdb/calm --for=jsonpath={{.status.disruptionsAllowed}}={count} --timeout=60s");
    kubectl.run(&line).await;
}

async fn nodes_of_pods(kubectl: &Kubectl) -> Vec<String> {
    let said = kubectl.run("get pods -l app=web --no-headers -o custom-columns=:.spec.nodeName").await;
    words(&said).into_iter().map(str::to_owned).collect()
}

async fn scenario(kubectl: &Kubectl) {
    let web = kubectl.file("web", WEB);
    kubectl.run(&format!("apply -f {web}")).await;
    kubectl.run("rollout status deployment/web --timeout=60s").await;
    kubectl.run("wait pdb/calm --for=jsonpath={.status.currentHealthy}=3 --timeout=60s").await;
    let status = kubectl.run("get pdb calm --no-headers").await;
    assert_eq!(words(&status)[..4], ["calm", "N/A", "0", "0"], "{status}");
    let node = nodes_of_pods(kubectl).await.remove(0);

    let why = kubectl.fail(&format!("drain {node} --timeout=2s")).await;
    let refusal = "Cannot evict pod as it would violate the pod's disruption budget.";
    assert!(why.contains(refusal) && why.contains("global timeout reached: 2s"), "{why}");
    assert!(nodes_of_pods(kubectl).await.contains(&node), "nothing was evicted");

    kubectl.run_args(&["patch", "pdb", "calm", "-p", r#"{"spec": {"maxUnavailable": "34%"}}"#]).await;
    allowed(kubectl, 2).await;
    let said = kubectl.run(&format!("drain {node} --timeout=60s")).await;
    assert!(said.contains(&format!("node/{node} drained")), "{said}");
    assert!(!nodes_of_pods(kubectl).await.contains(&node), "all have left");
    kubectl.run("rollout status deployment/web --timeout=60s").await;
    allowed(kubectl, 2).await;
    kubectl.run("wait pdb/calm --for=jsonpath={.status.currentHealthy}=3 --timeout=60s").await;
    let condition = "get pdb calm -o jsonpath={.status.conditions[0].reason},{.status.disruptedPods}";
    assert_eq!(kubectl.run(condition).await, "SufficientPods,");
}

#[tokio::test]
async fn a_node_is_drained_as_the_budget_allows() {
    for program in kubectls() {
        let cluster = Cluster::builder().nodes(2).start().await.unwrap();
        let account =
            cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some());
        account.await.unwrap();
        scenario(&Kubectl::of(cluster, program).await).await;
    }
}
