//! A cluster of real containers by an OCI runtime, in a network namespace of its own: its pods reach each other by the names and
//! addresses of Services, and the API.
#![cfg(all(feature = "containers", target_os = "linux"))]

use std::{path::Path, process::Command, time::Duration};

use k8s_openapi::api::{
    core::v1::{Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
};
use kplane::{
    Cluster, Containers,
    knet::{network::cni::CniOptions, policy::nftables::Existing},
};
use kruntime::testing::images::{BUSYBOX, write_busybox};
use kube::{Api, api::PostParams};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE: &str = "example.test/busybox:1";
/// Says to the test that it runs within a namespace of its own.
const INSIDE: &str = "KPLANE_IN_NAMESPACE";

/// What the test needs and the machine lacks.
fn missing() -> Option<&'static str> {
    let has = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(program).is_file())
    };
    if !Path::new(BUSYBOX).is_file() {
        return Some("busybox");
    }
    if let Some(program) = ["ip", "unshare", "nft", "runc"].into_iter().find(|program| !has(program)) {
        return Some(program);
    }
    let able = Command::new("unshare").args(["-n", "-m", "nft", "add", "table", "ip", "x"]).output();
    (!able.is_ok_and(|output| output.status.success())).then_some("root")
}

/// Runs the test again in namespaces of its own; whether the caller is inside.
fn is_inside(test: &str, tools: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let tool = tools.iter().find(|tool| !Path::new(tool).exists()).copied();
    if let Some(what) = missing().or(tool) {
        assert!(std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"), "needs {what}");
        println!("skipped: needs {what}");
        return false;
    }
    let script = "set -e; ip link set lo up; exec \"$0\" --exact \"$1\" --nocapture";
    let output = Command::new("unshare")
        .args(["-n", "-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

async fn run(cluster: &Cluster, name: &str, script: &str) {
    let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", script]}]}});
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

async fn wait_for_phase(cluster: &Cluster, name: &str, phase: &str) {
    let is = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref()).is_some_and(|now| now == phase)
    };
    cluster.wait_until::<Pod>("default", name, PATIENCE, is).await.unwrap();
}

/// Asks the Service `web` until there is an answer.
const ASK: &str =
    "until printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 $WEB_SERVICE_HOST 80 | grep served; do :; done";

/// From then on only those whom the policy names come through.
async fn policies_keep_pods_apart(cluster: &Cluster) {
    let policy = json!({"metadata": {"name": "web"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]}});
    let policies: Api<NetworkPolicy> = Api::default_namespaced(cluster.client());
    policies.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap();
    run(cluster, "stranger", "while nc -w 2 $WEB_SERVICE_HOST 80 < /dev/null; do :; done").await;
    wait_for_phase(cluster, "stranger", "Succeeded").await;
    run(cluster, "friend", ASK).await;
    wait_for_phase(cluster, "friend", "Succeeded").await;
}

/// The same by CNI plug-ins: each pod has a link of its own to the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_connected_by_plugins() {
    const PLUGINS: &str = "/usr/lib/cni";
    if !is_inside("pods_are_connected_by_plugins", &["/usr/lib/cni/ptp", "/usr/lib/cni/host-local"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    write_busybox(&layout, IMAGE, &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]})).unwrap();
    let mut options = CniOptions::default();
    options.config_dir = dir.path().join("net.d");
    options.plugin_dirs = vec![PLUGINS.into()];
    options.cache_dir = dir.path().join("cni");
    let containers = || Containers::oci(dir.path().join("node")).image(&layout).cni(options.clone());
    let refused = Cluster::builder().nodes(1).containers(containers()).start().await.unwrap_err();
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("net.d"), "{why}");
    std::fs::create_dir(&options.config_dir).unwrap();
    let ipam = json!({"type": "host-local", "subnet": "10.85.0.0/16", "dataDir": dir.path().join("leases"),
        "routes": [{"dst": "0.0.0.0/0"}]});
    let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false, "ipam": ipam}]});
    std::fs::write(options.config_dir.join("10-pods.conflist"), list.to_string()).unwrap();
    let cluster = Cluster::builder().nodes(1).containers(containers()).start().await.unwrap();
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", PATIENCE, there).await.unwrap();
    run(&cluster, "web", "mkdir /www; echo served > /www/index.html; exec httpd -f -p 8080 -h /www").await;
    let service = json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    let services: Api<Service> = Api::default_namespaced(cluster.client());
    services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    wait_for_phase(&cluster, "web", "Running").await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let address = pods.get("web").await.unwrap().status.unwrap().pod_ip.unwrap();
    assert!(address.starts_with("10.85."), "{address}");
    run(&cluster, "asks", ASK).await;
    wait_for_phase(&cluster, "asks", "Succeeded").await;
    cluster.shutdown().await.unwrap();
    let leases = std::fs::read_dir(dir.path().join("leases/pods")).unwrap();
    let left: Vec<_> = leases.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("10.85.")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_services_and_the_api() {
    if !is_inside("pods_reach_services_and_the_api", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    write_busybox(&layout, IMAGE, &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]})).unwrap();
    let containers = Containers::oci(dir.path().join("node")).image(layout);
    let builder = Cluster::builder().nodes(1).containers(containers).network_policies(Existing::Kept);
    let cluster = builder.start().await.unwrap();
    assert!(cluster.notes().is_empty(), "{:?}", cluster.notes());
    let serving = cluster.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let there = |account: Option<&ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", PATIENCE, there).await.unwrap();

    run(&cluster, "web", "mkdir /www; echo served > /www/index.html; exec httpd -f -p 8080 -h /www").await;
    let service = json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    let services: Api<Service> = Api::default_namespaced(cluster.client());
    services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    wait_for_phase(&cluster, "web", "Running").await;
    // By its name, so by the cluster's DNS, and by the Service's address, so by the rules of nftables. (A static busybox finds
    // nobody by name itself, as glibc has that part in libraries.)
    run(
        &cluster,
        "asks",
        "until busybox nslookup web.default.svc.cluster.local | grep -q $WEB_SERVICE_HOST; do :; done; \
         until printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 $WEB_SERVICE_HOST 80 | grep served; do :; done",
    )
    .await;
    wait_for_phase(&cluster, "asks", "Succeeded").await;
    policies_keep_pods_apart(&cluster).await;
    // The API is where the Service `kubernetes` says; busybox can't speak its TLS, but sees who listens.
    run(
        &cluster,
        "api",
        "until nc -w 2 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT < /dev/null; do :; done",
    )
    .await;
    wait_for_phase(&cluster, "api", "Succeeded").await;
    assert!(serving.address.ip().is_loopback());
    cluster.shutdown().await.unwrap();
    let devices = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let devices = String::from_utf8_lossy(&devices.stdout).into_owned();
    assert!(!devices.contains("kplane0"), "{devices}");
    let rules = Command::new("nft").args(["list", "tables"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&rules.stdout), "");
}
