//! A real kubectl and real containers: a cluster whose node runs images by an OCI runtime, from an image that the test makes.

use std::{convert::Infallible, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ServiceAccount;
use kcore::SystemClock;
use knet::AddressRange;
use kplane::Cluster;
use kruntime::{
    images::{ContentStore, Registry},
    runtime::oci::{OciOptions, OciRuntime},
    testing::images::{BUSYBOX, write_busybox},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Kubectl, PATIENCE, tool};

const IMAGE: &str = "example.test/busybox:1";

/// A registry that has nothing.
async fn empty_registry() -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(async |_| {
                let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
                let response = Response::builder().status(StatusCode::NOT_FOUND);
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body.to_string()))).unwrap())
            });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            let _ = served.await;
        }
    });
    (address, AbortOnDropHandle::new(serving))
}

async fn runtime(dir: &Path, program: &str) -> Arc<OciRuntime> {
    let clock = Arc::new(SystemClock);
    let images = ContentStore::open(dir.join("images"), clock.clone()).unwrap();
    write_busybox(&dir.join("layout"), IMAGE, &json!({"Cmd": ["sh"]})).unwrap();
    images.load(&dir.join("layout"), None).await.unwrap();
    let addresses: AddressRange = "127.78.0.0/16".parse().unwrap();
    let mut options = OciOptions::new(dir.join("state"), images, Arc::new(addresses), clock);
    options.program = program.into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    options.registry = Some(Registry::new(tls));
    Arc::new(OciRuntime::open(options).await.unwrap())
}

fn pod(name: &str, containers: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 1, "restartPolicy": "Never", "containers": containers}})
}

async fn create(kubectl: &Kubectl, pod: &Value) {
    let name = pod["metadata"]["name"].as_str().unwrap();
    kubectl.run(&format!("create -f {}", kubectl.file(&format!("{name}.json"), &pod.to_string()))).await;
}

/// Waits until a field of the pod's first container's state is this.
async fn wait_for(kubectl: &Kubectl, name: &str, field: &str, value: &str) {
    let condition = format!("--for=jsonpath={{.status.containerStatuses[0].state.{field}}}={value}");
    kubectl.run_args(&["wait", &condition, &format!("pod/{name}"), "--timeout=60s"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_run_as_their_pods_say() {
    // SAFETY: a plain system call.
    let is_root = unsafe { libc::geteuid() } == 0;
    let busybox = tool(Path::new(BUSYBOX).file_name().unwrap().to_str().unwrap(), "KPLANE_BUSYBOX");
    if !is_root {
        assert!(
            std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "this run requires root"
        );
        println!("skipped: needs root");
        return;
    }
    let (Some(_), Some(program)) = (busybox, tool("runc", "KPLANE_RUNC")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime(dir.path(), program.to_str().unwrap()).await;
    let volumes = dir.path().join("volumes");
    let builder = Cluster::builder().nodes(1).runtime(runtime);
    let builder = builder.configure_node(move |node| node.state_dir = Some(volumes.clone()));
    let Some(kubectl) = Kubectl::new(builder.start().await.unwrap()).await else { return };
    let account = |found: Option<&ServiceAccount>| found.is_some();
    kubectl.cluster.wait_until("default", "default", PATIENCE, account).await.unwrap();
    runs_as_it_should(&kubectl).await;
    memory_is_limited(&kubectl).await;
    missing_images_are_told(&kubectl).await;
    kubectl.run("delete pod --all --wait=true --timeout=60s").await;
    let left: Vec<_> = std::fs::read_dir(dir.path().join("state/pods")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The securityContext, the volumes and the probes of a pod, as the processes in it find them.
async fn runs_as_it_should(kubectl: &Kubectl) {
    let script = "id -u; id -G; touch /x 2>/dev/null || echo read-only; grep CapEff /proc/self/status; \
        cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo; echo kept > /data/file; exec sleep 1000";
    let server = "while :; do echo served | nc -l -p 8080 > /dev/null; done";
    let mut pod = pod(
        "box",
        &json!([
            {"name": "box", "image": IMAGE, "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "work", "mountPath": "/data"}],
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                "securityContext": {"runAsUser": 1000, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"}}},
            {"name": "server", "image": IMAGE, "command": ["sh", "-c", server],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}},
        ]),
    );
    pod["spec"]["securityContext"] = json!({"supplementalGroups": [3000], "fsGroup": 4000});
    pod["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    create(kubectl, &pod).await;
    kubectl.run("wait --for=condition=Ready pod/box --timeout=60s").await;
    let log = kubectl.run("logs box -c box").await;
    let expected = "1000\n1000 2000 3000 4000\nread-only\nCapEff:\t0000000000000000\ndefault\n";
    assert_eq!(log, expected);
    assert_eq!(kubectl.run("exec box -c box -- id -u").await, "1000\n");
    assert_eq!(kubectl.run("exec box -c box -- cat /data/file").await, "kept\n");
    assert_eq!(kubectl.run("exec box -c box -- stat -c %g:%A /data").await, "4000:drwxrwsrwx\n");
    assert_eq!(kubectl.run("exec box -c server -- hostname").await, "box\n");
    let failed = kubectl.fail("exec box -c box -- sh -c false").await;
    assert!(failed.contains("command terminated with exit code 1"), "{failed}");
    let described = kubectl.run("describe pod box").await;
    for words in [
        format!("Container image \"{IMAGE}\" already present on machine"),
        "Container ID:  runc://".to_owned(),
        "Container started".to_owned(),
    ] {
        assert!(described.contains(&words), "{words}\n{described}");
    }
}

async fn memory_is_limited(kubectl: &Kubectl) {
    let command = json!(["tail", "/dev/zero"]);
    let limits = json!({"limits": {"memory": "16Mi"}});
    let pod = pod("hog", &json!([{"name": "hog", "image": IMAGE, "command": command, "resources": limits}]));
    create(kubectl, &pod).await;
    wait_for(kubectl, "hog", "terminated.reason", "OOMKilled").await;
    let code = kubectl
        .run_args(&[
            "get",
            "pod",
            "hog",
            "-o",
            "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode}",
        ])
        .await;
    assert_eq!(code, "Failed 137");
}

/// In the words of upstream's kubelet and containerd.
async fn missing_images_are_told(kubectl: &Kubectl) {
    let (registry, _serving) = empty_registry().await;
    let image = format!("{registry}/none:1");
    create(kubectl, &pod("missing", &json!([{"name": "c", "image": image}]))).await;
    create(kubectl, &pod("never", &json!([{"name": "c", "image": image, "imagePullPolicy": "Never"}]))).await;
    create(kubectl, &pod("name", &json!([{"name": "c", "image": "UPPER/case:1"}]))).await;
    wait_for(kubectl, "never", "waiting.reason", "ErrImageNeverPull").await;
    wait_for(kubectl, "name", "waiting.reason", "InvalidImageName").await;
    wait_for(kubectl, "missing", "waiting.reason", "ImagePullBackOff").await;
    let described = kubectl.run("describe pod missing").await;
    let why = format!(
        "failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": {image}: not found"
    );
    for words in [
        format!("Pulling image \"{image}\""),
        format!("Failed to pull image \"{image}\": {why}"),
        "Error: ErrImagePull".to_owned(),
        format!("Back-off pulling image \"{image}\": ErrImagePull: {why}"),
        "Error: ImagePullBackOff".to_owned(),
    ] {
        assert!(described.contains(&words), "{words}\n{described}");
    }
    let message = kubectl
        .run_args(&[
            "get",
            "pod",
            "missing",
            "-o",
            "jsonpath={.status.containerStatuses[0].state.waiting.message}",
        ])
        .await;
    assert_eq!(message, format!("Back-off pulling image \"{image}\": ErrImagePull: {why}"));
}
