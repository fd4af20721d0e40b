//! The controllers and what they are made of over a server that is not in the same process: kplane's own over TLS, and any other that is
//! named. `KPLANE_PEER_APISERVER` and `KPLANE_PEER_ETCD` name a `kube-apiserver` and the etcd that it keeps its objects in.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
};
use kcore::SystemClock;
use kplane::Cluster;
use kreconcile::{LeaderElector, Manager, Start, controllers};
use kstore::{EtcdServer, MemoryStore};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::PATIENCE;

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Waits until `is_so` says so; a server that is somewhere else is asked again and again.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waits = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waits).await.is_ok(), "waited for {what}");
}

/// What the controllers do with a server: they lead, make what every namespace has, roll a Deployment out and over, make a Job's pods,
/// collect what belongs to nobody, and empty a namespace.
async fn body(client: Client) {
    let context = controllers::Context::new(client.clone(), Arc::new(SystemClock));
    let elector =
        LeaderElector::new(client.clone(), Arc::new(SystemClock), "kube-system", "controllers", "one");
    let mut manager = Manager::new().informers(context.informers()).leader_election(elector);
    for controller in controllers::defaults(&context) {
        manager = manager.add(Start::Leading, controller);
    }
    let running = manager.start();
    let (how, team) = (PostParams::default(), json!({"metadata": {"name": "team"}}));
    Api::<Namespace>::all(client.clone()).create(&how, &object(team)).await.unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "team");
    until("the account", async || accounts.get_opt("default").await.unwrap().is_some()).await;
    let lease = Api::<Lease>::namespaced(client.clone(), "kube-system").get("controllers").await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("one"));

    let deployments = Api::<Deployment>::namespaced(client.clone(), "team");
    let (sets, pods) = (
        Api::<ReplicaSet>::namespaced(client.clone(), "team"),
        Api::<Pod>::namespaced(client.clone(), "team"),
    );
    let containers = json!([{"name": "c", "image": "app:1"}]);
    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"type": "Recreate"},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}}}});
    deployments.create(&how, &object(web)).await.unwrap();
    let count = async |app: &str| {
        let all = pods.list(&ListParams::default().labels(app)).await.unwrap().items;
        all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count()
    };
    let told = async || {
        let web = deployments.get("web").await.unwrap();
        web.status.filter(|status| status.observed_generation == web.metadata.generation)
    };
    until("three pods", async || {
        told().await.is_some_and(|status| status.updated_replicas == Some(3)) && count("app=web").await == 3
    })
    .await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "app:2"}]}}}});
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    until("a second ReplicaSet with all pods", async || {
        let all = sets.list(&ListParams::default()).await.unwrap().items;
        let mut wanted: Vec<_> = all.iter().map(|set| set.spec.replicas.unwrap_or_default()).collect();
        wanted.sort_unstable();
        wanted == [0, 3] && told().await.is_some_and(|status| status.updated_replicas == Some(3))
    })
    .await;

    let work = json!({"metadata": {"name": "work"}, "spec": {"completions": 4, "parallelism": 2, "completionMode": "Indexed",
        "template": {"spec": {"restartPolicy": "Never", "containers": containers}}}});
    let jobs = Api::<Job>::namespaced(client.clone(), "team");
    jobs.create(&how, &object(work)).await.unwrap();
    until("two of the job", async || {
        let status = jobs.get("work").await.unwrap().status.unwrap_or_default();
        status.active == Some(2) && count("job-name=work").await == 2
    })
    .await;
    // Each succeeds as a node would tell.
    let ended = json!({"status": {"phase": "Succeeded"}});
    until("the job's end", async || {
        for pod in pods.list(&ListParams::default().labels("job-name=work")).await.unwrap() {
            // It may have gone.
            let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&ended)).await;
        }
        let status = jobs.get("work").await.unwrap().status.unwrap_or_default();
        status.succeeded == Some(4) && status.completed_indexes.as_deref() == Some("0-3")
    })
    .await;

    deployments.delete("web", &DeleteParams::background()).await.unwrap();
    until("the Deployment's dependents to go", async || {
        sets.list(&ListParams::default()).await.unwrap().items.is_empty() && count("app=web").await == 0
    })
    .await;
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "team");
    maps.create(&how, &object(json!({"metadata": {"name": "m"}}))).await.unwrap();
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    until("the namespace to go", async || namespaces.get_opt("team").await.unwrap().is_none()).await;
    running.stop().await;
    let lease = Api::<Lease>::namespaced(client, "kube-system").get("controllers").await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(""), "the lease is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_work_over_kplanes_server() {
    let cluster =
        Cluster::builder().nodes(0).without_controllers().without_scheduler().start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    body(client(&serving.kubeconfig).await).await;
    cluster.shutdown().await.unwrap();
}

/// Programs that end with the test.
struct Programs(Vec<Child>);

impl Drop for Programs {
    fn drop(&mut self) {
        for program in self.0.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(program: &Path, log: &Path, flags: &[String]) -> Child {
    let log = std::fs::File::create(log).unwrap();
    Command::new(program).args(flags).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// The program that a variable names; no package has them, so no run can require them.
fn named(variable: &str) -> Option<PathBuf> {
    let program = std::env::var_os(variable).map(PathBuf::from);
    if program.is_none() {
        println!("skipped: needs the program that {variable} names");
    }
    program
}

/// What a `kube-apiserver` is given, apart from where its objects are kept.
struct Peer {
    program: PathBuf,
    folder: TempDir,
    port: u16,
}

impl Peer {
    fn new(program: PathBuf) -> Self {
        let peer = Self { program, folder: tempfile::tempdir().unwrap(), port: port() };
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(peer.file("tokens.csv"), "test,test,1,\"system:masters\"\n").unwrap();
        std::fs::write(peer.file("sa.key"), key.serialize_pem()).unwrap();
        std::fs::write(peer.file("sa.pub"), key.public_key_pem()).unwrap();
        peer
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Starts it and waits until it answers.
    async fn start(&self, etcd: &str) -> (Programs, Client) {
        let port = self.port;
        let flags = [
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.file("certs")),
            format!("--token-auth-file={}", self.file("tokens.csv")),
            format!("--etcd-servers={etcd}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", self.file("sa.pub")),
            format!("--service-account-signing-key-file={}", self.file("sa.key")),
        ];
        let log = self.folder.path().join("server.log");
        let running = Programs(vec![spawn(&self.program, &log, &flags)]);
        let client = client(&format!(
            "{{clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}], users: [{{name: u, user: {{token: test}}}}], contexts: [{{name: x, context: {{cluster: c, user: u}}}}], current-context: x}}"
        ))
        .await;
        let namespaces = Api::<Namespace>::all(client.clone());
        let ready = tokio::time::timeout(PATIENCE, async {
            while !namespaces.get_opt("kube-system").await.is_ok_and(|found| found.is_some()) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(ready.await.is_ok(), "the server does not get ready:\n{}", log());
        (running, client)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_work_over_kubernetes_server() {
    let (Some(server), Some(etcd)) = (named("KPLANE_PEER_APISERVER"), named("KPLANE_PEER_ETCD")) else {
        return;
    };
    let peer = Peer::new(server);
    let (etcd_url, peer_url) =
        (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
    let etcd_flags = [
        format!("--data-dir={}", peer.file("etcd")),
        format!("--listen-client-urls={etcd_url}"),
        format!("--advertise-client-urls={etcd_url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=default={peer_url}"),
    ];
    let _etcd = Programs(vec![spawn(&etcd, &peer.folder.path().join("etcd.log"), &etcd_flags)]);
    let (_running, client) = peer.start(&etcd_url).await;
    body(client).await;
}

/// Kubernetes' own server over kplane's store: it starts, works, and finds everything again when it is killed and started anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_server_keeps_its_objects_in_kplanes_store() {
    let Some(server) = named("KPLANE_PEER_APISERVER") else { return };
    let store = Arc::new(MemoryStore::new());
    let face = EtcdServer::new(store.clone()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let etcd = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { face.serve(listener, std::future::pending()).await });
    let peer = Peer::new(server);
    let (running, client) = peer.start(&etcd).await;
    body(client.clone()).await;

    let maps = Api::<ConfigMap>::default_namespaced(client);
    let names: Vec<_> = (0..1_200).map(|number| format!("kept-{number:04}")).collect();
    for name in &names {
        let map = json!({"metadata": {"name": name, "labels": {"kept": "yes"}}, "data": {"of": name}});
        maps.create(&PostParams::default(), &object(map)).await.unwrap();
    }
    // Killed, not asked to end.
    drop(running);
    let (_running, client) = peer.start(&etcd).await;
    let maps = Api::<ConfigMap>::default_namespaced(client);
    // In pages, which the server asks its etcd for at one revision.
    let (mut found, mut how) = (Vec::new(), ListParams::default().labels("kept=yes").limit(500));
    loop {
        let page = maps.list(&how).await.unwrap();
        found.extend(page.items.iter().map(|map| (map.name_any(), map.data.clone().unwrap_or_default())));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => how = how.continue_token(&token),
            None => break,
        }
    }
    let wanted: Vec<_> =
        names.iter().map(|name| (name.clone(), [("of".to_owned(), name.clone())].into())).collect();
    assert_eq!(found, wanted);
    // A write from what was read before somebody else's is refused.
    let stale = maps.get("kept-0000").await.unwrap();
    let change = Patch::Merge(json!({"data": {"of": "somebody"}}));
    maps.patch("kept-0000", &PatchParams::default(), &change).await.unwrap();
    let refused = maps.replace("kept-0000", &PostParams::default(), &stale).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 409));
    store.verify().unwrap();
}
