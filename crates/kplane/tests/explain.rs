//! `kplane explain pod`, against a cluster that is served over TLS.

use std::process::Command;

use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kplane::Cluster;
use kube::{Api, api::PostParams};
use serde_json::json;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_nodes_are_explained() {
    let cluster = Cluster::builder().nodes(2).start().await.unwrap();
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", PATIENCE, there).await.unwrap();
    for node in ["node-1", "node-2"] {
        let ready = |node: Option<&Node>| {
            node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
        };
        cluster.wait_until("", node, PATIENCE, ready).await.unwrap();
    }
    let pod = json!({"metadata": {"name": "web"}, "spec": {"nodeSelector": {"kubernetes.io/hostname": "node-2"},
        "containers": [{"name": "c", "image": "example/c"}]}});
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let placed = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.spec.as_ref()).is_some_and(|spec| spec.node_name.is_some())
    };
    cluster.wait_until::<Pod>("default", "web", PATIENCE, placed).await.unwrap();

    let serving = cluster.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (kubeconfig, config) = (folder.path().join("kubeconfig"), folder.path().join("scheduler.yaml"));
    std::fs::write(&kubeconfig, &serving.kubeconfig).unwrap();
    let explain = |name: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kplane"));
        command.args(["explain", "pod", name, "--kubeconfig"]).arg(&kubeconfig).args(more);
        async move {
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            (
                output.status.success(),
                String::from_utf8(output.stdout).unwrap(),
                String::from_utf8(output.stderr).unwrap(),
            )
        }
    };
    let (good, text, why) = explain("web", &[]).await;
    assert!(good, "{why}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("node-2") && lines[1].contains("NodeResourcesFit "), "{text}");
    assert!(
        lines[2].starts_with("node-1")
            && lines[2].contains("NodeAffinity: node(s) didn't match Pod's node affinity/selector"),
        "{text}"
    );
    assert!(text.ends_with("The pod goes to node-2.\nIt is on node-2 now.\n"), "{text}");

    let (good, _, why) = explain("none", &[]).await;
    assert!(!good && why.contains("pods \"none\" not found in the namespace default"), "{why}");

    std::fs::write(
        &config,
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- plugins:\n    score:\n      disabled:\n      - name: NodeResourcesFit\n",
    )
    .unwrap();
    let (good, text, why) = explain("web", &["--config", config.to_str().unwrap()]).await;
    assert!(good && !text.contains("NodeResourcesFit "), "{text}{why}");
    cluster.shutdown().await.unwrap();
}
