//! A web application of several tiers as real processes, without root: a Job loads the data, a backend serves it, a frontend
//! asks the backend through its Service. It is reached through its Service, scaled, rolled out, hurt and healed; each step says
//! what happened.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
};
use kplane::Cluster;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// The port of the Services: not below 1024, so that it is reached from outside of pods without any privilege.
const PORT: u16 = 8000;

/// Serves the greeting from its configuration and the stock that the Job has written, and says which pod it is.
const BACKEND: &str = "import http.server, json, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        stock = open(os.environ['DATA'] + '/stock').read() if os.path.exists(os.environ['DATA'] + '/stock') else '?'
        body = json.dumps({'greeting': open('/config/greeting').read(), 'stock': stock, 'backend': os.environ['POD']}).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()
";

/// Asks the backend at the address of its Service and adds its own name.
const FRONTEND: &str = "import http.server, json, os, urllib.request
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = json.load(urllib.request.urlopen(os.environ['BACKEND'], timeout=5))
        answer['frontend'] = os.environ['POD']; answer['version'] = os.environ['VERSION']
        body = json.dumps(answer).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()
";

fn tier(name: &str, replicas: i32, program: &str, env: &Value, volumes: &Value, mounts: &Value) -> Value {
    let mut env: Vec<Value> = env.as_array().cloned().unwrap_or_default();
    env.push(json!({"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}));
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}],
            "volumes": volumes,
            "containers": [{"name": "c", "image": "host", "command": ["python3", "-c", program], "env": env, "volumeMounts": mounts,
                "ports": [{"containerPort": 8080}], "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}}}})
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": PORT, "targetPort": 8080}]}})
}

async fn create<K>(api: Api<K>, object: Value) -> Result<K>
where
    K: serde::de::DeserializeOwned + serde::Serialize + Clone + std::fmt::Debug,
{
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// One GET; the answer as JSON.
async fn get(address: &str) -> Result<Value> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        Ok(serde_json::from_str(body)?)
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await?
}

/// Asks until `count` different frontends have answered, each with `version`.
async fn frontends(address: &str, count: usize, version: &str) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let ask = async {
        while seen.len() < count {
            match get(address).await {
                Ok(answer) if answer["version"] == version => {
                    seen.insert(answer["frontend"].as_str().unwrap_or_default().to_owned());
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.context("not all frontends answered")?;
    Ok(seen)
}

async fn rolled_out(cluster: &Cluster, name: &str, replicas: i32) -> Result<()> {
    let done = |deployment: Option<&Deployment>| {
        let generation = deployment.and_then(|deployment| deployment.metadata.generation);
        deployment.and_then(|deployment| deployment.status.as_ref()).is_some_and(|status| {
            status.observed_generation == generation
                && [status.replicas, status.updated_replicas, status.available_replicas]
                    == [Some(replicas); 3]
        })
    };
    cluster.wait_until::<Deployment>("default", name, PATIENCE, done).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    if Command::new("python3").arg("--version").output().await.is_err() {
        println!("skipped: needs python3");
        return Ok(());
    }
    let data = tempdir()?;
    let cluster = Cluster::builder()
        .nodes(3)
        .settings(|settings| {
            settings.node_monitor_grace = Duration::from_secs(12);
            settings.node_monitor_period = Duration::from_millis(500);
        })
        .processes()?
        .start()
        .await?;
    println!("a cluster of three nodes is up");
    cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |account| account.is_some()).await?;
    let client = cluster.client();
    apply(&cluster, &data).await?;

    let web = Api::<Service>::default_namespaced(client.clone())
        .get("web")
        .await?
        .spec
        .context("a specification")?;
    let address = format!("{}:{PORT}", web.cluster_ip.context("a cluster IP")?);
    // Pods are available a moment before the proxy has heard of them.
    frontends(&address, 1, "1").await?;
    let answer = get(&address).await?;
    println!("GET http://{address}/ -> {answer}");
    ensure!((answer["greeting"].as_str(), answer["stock"].as_str()) == (Some("hello"), Some("42")));
    let port = web.ports.and_then(|ports| ports[0].node_port).context("a node port")?;
    let seen = frontends(&format!("{}:{port}", cluster.node_addresses()[0]), 2, "1").await?;
    println!("the node port {port} reaches {seen:?}");

    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments
        .patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 4}})))
        .await?;
    rolled_out(&cluster, "web", 4).await?;
    println!("scaled: {:?} answer", frontends(&address, 4, "1").await?);

    let version = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "VERSION", "value": "2"}]}]}}}});
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(version)).await?;
    rolled_out(&cluster, "web", 4).await?;
    let seen = frontends(&address, 4, "2").await?;
    println!("rolled out: version 2 answers from {seen:?}");

    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let victim = seen.first().context("a pod")?;
    pods.delete(victim, &DeleteParams::default()).await?;
    cluster.wait_until::<Pod>("default", victim, PATIENCE, |pod| pod.is_none()).await?;
    rolled_out(&cluster, "web", 4).await?;
    println!("killed {victim}: {:?} answer", frontends(&address, 4, "2").await?);

    let agent = cluster.nodes().context("nodes")?;
    ensure!(agent.stop_node("node-1").await);
    println!("node-1 is dead; its pods move");
    moved(&pods).await?;
    println!("healed: {:?} answer", frontends(&address, 4, "2").await?);
    cluster.shutdown().await?;
    std::fs::remove_dir_all(data)?;
    println!("and gone");
    Ok(())
}

/// The Job, the backend and the frontend, with their Services and configuration.
async fn apply(cluster: &Cluster, data: &std::path::Path) -> Result<()> {
    let client = cluster.client();
    let config = json!({"metadata": {"name": "config"}, "data": {"greeting": "hello"}});
    create(Api::<ConfigMap>::default_namespaced(client.clone()), config).await?;
    let load = json!({"metadata": {"name": "load"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [
        {"name": "c", "image": "host", "command": ["sh", "-c", format!("printf 42 > {}/stock", data.display())]}]}}}});
    create(Api::<Job>::default_namespaced(client.clone()), load).await?;
    let complete = |job: Option<&Job>| {
        job.and_then(|job| job.status.as_ref())
            .is_some_and(|status| status.succeeded == Some(1) && status.completion_time.is_some())
    };
    cluster.wait_until::<Job>("default", "load", PATIENCE, complete).await?;
    println!("the Job has loaded the data");
    let volumes = json!([{"name": "config", "configMap": {"name": "config"}}]);
    let mounts = json!([{"name": "config", "mountPath": "/config"}]);
    let env = json!([{"name": "DATA", "value": data}]);
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    create(deployments.clone(), tier("api", 2, BACKEND, &env, &volumes, &mounts)).await?;
    create(Api::<Service>::default_namespaced(client.clone()), service("api")).await?;
    let backend = Api::<Service>::default_namespaced(client.clone()).get("api").await?;
    let backend = backend.spec.and_then(|spec| spec.cluster_ip).context("the backend's address")?;
    let env = json!([{"name": "BACKEND", "value": format!("http://{backend}:{PORT}/")}, {"name": "VERSION", "value": "1"}]);
    create(deployments, tier("web", 2, FRONTEND, &env, &json!([]), &json!([]))).await?;
    create(Api::<Service>::default_namespaced(client), service("web")).await?;
    rolled_out(cluster, "api", 2).await?;
    rolled_out(cluster, "web", 2).await?;
    println!("backend and frontend are rolled out");
    Ok(())
}

/// Waits until no pod is on node-1 and four frontends are ready elsewhere.
async fn moved(pods: &Api<Pod>) -> Result<()> {
    let elsewhere = async {
        loop {
            let list = pods.list(&ListParams::default().labels("app in (web, api)")).await?;
            let ready = list.items.iter().filter(|pod| {
                let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
                let ready = conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True");
                let away = pod
                    .spec
                    .as_ref()
                    .is_some_and(|spec| spec.node_name.as_deref().is_some_and(|node| node != "node-1"));
                ready && away && pod.metadata.deletion_timestamp.is_none()
            });
            if ready.count() == 6 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, elsewhere).await.context("the pods did not move")?
}

/// A directory that the pods of this application share.
fn tempdir() -> Result<std::path::PathBuf> {
    let path = std::env::temp_dir().join(format!("kplane-mini-{}", std::process::id()));
    std::fs::create_dir_all(&path)?;
    Ok(path)
}
