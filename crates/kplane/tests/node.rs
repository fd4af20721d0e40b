//! `kplane node`: a node whose agent is another process, reached by TLS.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Node, Pod, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kplane::Cluster;
use kube::{
    Api, Client, Config,
    api::PostParams,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
/// How kubectl is told to do without WebSockets (KEP-4006).
const SPDY: [(&str, &str); 2] =
    [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

fn kubectl_program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::var_os("KPLANE_KUBECTL").map(PathBuf::from);
    let found = named.into_iter().chain(std::env::split_paths(&path).map(|folder| folder.join("kubectl")));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        skip("kubectl");
    }
    found
}

fn skip(what: &str) {
    let required = std::env::var_os("KPLANE_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "this run requires {what}");
    println!("skipped: needs {what}");
}

/// A child that doesn't outlive the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster that takes the certificates that nodes make for themselves.
fn unchecked() -> kplane::ClusterBuilder {
    Cluster::builder().nodes(0).kubelet_authority(kplane::KubeletAuthority::Unchecked)
}

/// A cluster without nodes, served, and the files of a node elsewhere.
struct Subject {
    cluster: Cluster,
    folder: TempDir,
}

impl Subject {
    async fn new(cluster: Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        std::fs::write(folder.path().join("admin"), &serving.kubeconfig).unwrap();
        std::fs::write(folder.path().join("ca.crt"), cluster.ca_pem()).unwrap();
        std::fs::write(folder.path().join("node"), cluster.node_kubeconfig("away").unwrap()).unwrap();
        let subject = Self { cluster, folder };
        let there = |found: Option<&ServiceAccount>| found.is_some();
        subject.cluster.wait_until("default", "default", PATIENCE, there).await.unwrap();
        subject
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Starts the node's process; where it serves.
    fn start(&self, further: &[&str]) -> (Program, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kplane"));
        command.args(["node", "--name", "away", "--listen", "127.0.0.1:0"]);
        // Given as they are from where the node is started.
        command.current_dir(self.folder.path());
        command.args(["--kubeconfig", "node", "--client-ca-file", "ca.crt", "--dir", "state"]);
        let mut program =
            Program(command.args(further).env("RUST_LOG", "warn").stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the node does not say where it is served") };
            if let Some((_, address)) = line.split_once(" is served at ") {
                break address.to_owned();
            }
        };
        (program, address)
    }

    fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubectl_program().unwrap());
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("KUBECONFIG", self.path("admin")).env("HOME", self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// Runs kubectl, beside the cluster.
    async fn run(&self, line: &str, environment: &[(&str, &str)]) -> Output {
        let mut command = self.kubectl(&line.split_whitespace().collect::<Vec<_>>());
        command.envs(environment.iter().copied());
        beside(move || command.output().unwrap()).await
    }

    /// Runs kubectl, which must succeed; its output.
    async fn good(&self, line: &str, environment: &[(&str, &str)]) -> String {
        let output = self.run(line, environment).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {line} {environment:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn create<K>(&self, namespace: &str, object: Value)
    where
        K: kube::Resource<DynamicType = ()>
            + serde::de::DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let path = K::url_path(&(), (!namespace.is_empty()).then_some(namespace));
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&object).unwrap()).unwrap();
        self.cluster.client().request::<K>(request).await.unwrap();
    }

    async fn pod(&self, name: &str, is: impl Fn(&Value) -> bool + Send) -> Value {
        let value = |pod: Option<&Pod>| serde_json::to_value(pod).unwrap();
        let found =
            self.cluster.wait_until::<Pod>("default", name, PATIENCE, move |pod| is(&value(pod))).await;
        value(found.unwrap().as_deref())
    }

    /// A client of the node's own API.
    async fn to_node(&self, address: &str, user: Value) -> Client {
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}"),
                "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.unwrap()).unwrap()
    }

    /// A token of a service account, which gets a role over these subresources of nodes.
    async fn token(&self, name: &str, resources: &[&str]) -> String {
        self.create::<ServiceAccount>("default", json!({"metadata": {"name": name}})).await;
        if !resources.is_empty() {
            let rule = json!({"apiGroups": [""], "resources": resources, "verbs": ["get"]});
            self.create::<ClusterRole>("", json!({"metadata": {"name": name}, "rules": [rule]})).await;
            let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": "default"});
            let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
            let binding = json!({"metadata": {"name": name}, "roleRef": role, "subjects": [subject]});
            self.create::<ClusterRoleBinding>("", binding).await;
        }
        let accounts: Api<ServiceAccount> = Api::default_namespaced(self.cluster.client());
        let request = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
        let made = accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap();
        made.status.and_then(|status| status.token).unwrap()
    }
}

/// Runs what blocks beside the cluster, and not for too long.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(work)).await.unwrap().unwrap()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// What a node's API answers: the status, and the text.
async fn ask(client: &Client, method: &str, path: &str) -> (u16, String) {
    use http_body_util::BodyExt as _;
    let request = http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let answer = tokio::time::timeout(PATIENCE, client.send(request)).await.unwrap().unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// The user of a kubeconfig.
fn user_of(kubeconfig: &str) -> Value {
    let value: Value = serde_json::from_str(kubeconfig).unwrap();
    value["users"][0]["user"].clone()
}

/// Answers each connection with what it was sent, in capitals, once the sender has said its last.
const SERVER: &str = "import socketserver\n\
    class Handler(socketserver.StreamRequestHandler):\n\
    \x20def handle(self): self.wfile.write(self.rfile.read().upper())\n\
    socketserver.ThreadingTCPServer.allow_reuse_address = True\n\
    server = socketserver.ThreadingTCPServer(('0.0.0.0', 8080), Handler)\n\
    print('listening', flush=True)\n\
    server.serve_forever()\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reaches_the_pods_of_a_node_elsewhere() {
    if kubectl_program().is_none() {
        return;
    }
    let subject = Subject::new(unchecked().start().await.unwrap()).await;
    let (program, address) = subject.start(&["--label", "example.com/where=away"]);
    let ready = |node: Option<&Node>| is_ready(&serde_json::to_value(node).unwrap());
    let node = subject.cluster.wait_until::<Node>("", "away", PATIENCE, ready).await.unwrap();
    let node = serde_json::to_value(node.as_deref()).unwrap();
    assert_eq!(node["metadata"]["labels"]["example.com/where"], "away");
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap();
    assert_eq!(format!("127.0.0.1:{port}"), address);

    let script = "echo started; while read line; do echo \"got $line\"; done; exec sleep 1000";
    let containers = json!([
        {"name": "echo", "image": "none", "stdin": true, "command": ["sh", "-c", script]},
        {"name": "server", "image": "none", "command": ["python3", "-u", "-c", SERVER],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}},
    ]);
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": containers});
    subject.create::<Pod>("default", json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let before = subject.pod("p", is_ready).await;
    assert_eq!(before["spec"]["nodeName"], "away");
    pods_are_reached(&subject).await;
    use_is_told(&subject).await;
    strangers_are_refused(&subject, &address).await;

    // The agent dies; the next one brings the pod back, at another port.
    drop(program);
    let (_program, other) = subject.start(&["--label", "example.com/where=away"]);
    assert_ne!(other, address);
    let at = |node: Option<&Node>| {
        let port = node.and_then(|node| node.status.as_ref()?.daemon_endpoints.as_ref());
        port.and_then(|all| all.kubelet_endpoint.as_ref()).map(|all| all.port)
            == other.rsplit(':').next().and_then(|port| port.parse().ok())
    };
    subject.cluster.wait_until::<Node>("", "away", PATIENCE, at).await.unwrap();
    let id = |pod: &Value| pod["status"]["containerStatuses"][1]["containerID"].clone();
    let after = subject.pod("p", |pod| is_ready(pod) && id(pod) != id(&before)).await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(subject.good("exec p -c echo -- echo back", &[]).await, "back\n");
    let deleted = subject.good("delete pod p --wait=true --timeout=60s", &[]).await;
    assert!(deleted.contains("deleted"), "{deleted}");
    subject.cluster.shutdown().await.unwrap();
}

async fn pods_are_reached(subject: &Subject) {
    assert_eq!(subject.good("logs -f p -c server --limit-bytes=9", &[]).await, "listening");
    let raw = "/api/v1/nodes/away/proxy";
    assert_eq!(subject.good(&format!("get --raw {raw}/healthz"), &[]).await, "ok");
    let pods = subject.good(&format!("get --raw {raw}/pods"), &[]).await;
    assert_eq!(serde_json::from_str::<Value>(&pods).unwrap()["items"][0]["metadata"]["name"], "p");
    let metrics = subject.good(&format!("get --raw {raw}/metrics"), &[]).await;
    assert!(metrics.contains("kubelet_node_name{node=\"away\"} 1\n"), "{metrics}");
    assert!(metrics.contains("kubelet_running_containers{container_state=\"running\"} 2\n"), "{metrics}");
    let refused = subject.run(&format!("get --raw {raw}/logs/"), &[]).await;
    assert!(!refused.status.success());
    for way in [&[][..], &SPDY] {
        assert_eq!(subject.good("exec p -c echo -- echo hello", way).await, "hello\n");
        let failed = subject.run("exec p -c echo -- false", way).await;
        let why = String::from_utf8_lossy(&failed.stderr);
        assert!(why.contains("exit code 1"), "{way:?}: {why}");

        let mut attach = subject.kubectl(&["attach", "-i", "p", "-c", "echo"]);
        attach.envs(way.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let line = beside(move || {
            let mut child = Program(attach.spawn().unwrap());
            let mut stdin = child.0.stdin.take().unwrap();
            let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
            stdin.write_all(b"words\n").unwrap();
            lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("got"))).unwrap().unwrap()
        });
        assert_eq!(line.await, "got words", "{way:?}");

        let content = "some text\n".repeat(50_000);
        let (here, there) = (subject.path("here"), subject.path("there"));
        std::fs::write(&here, &content).unwrap();
        subject.good(&format!("cp -c echo {here} p:{there}"), way).await;
        assert!(std::fs::read_to_string(&there).unwrap() == content, "{way:?}");

        let mut forward = subject.kubectl(&["port-forward", "pod/p", ":8080"]);
        forward.envs(way.iter().copied()).stdout(Stdio::piped());
        let answer = beside(move || {
            let mut child = Program(forward.spawn().unwrap());
            let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
            let line = lines.next().unwrap().unwrap();
            let rest = line.strip_prefix("Forwarding from ").unwrap_or_else(|| panic!("{line}"));
            let mut connection = TcpStream::connect(rest.split_once(" -> ").unwrap().0).unwrap();
            connection.write_all("twelve bytes".repeat(1000).as_bytes()).unwrap();
            connection.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.await == "TWELVE BYTES".repeat(1000), "{way:?}");
    }
}

/// The first question starts the readings, of which it takes two.
async fn use_is_told(subject: &Subject) {
    let client = subject.cluster.client();
    let path = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/p";
    let told = async {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            every.tick().await;
            let request = http::Request::get(path).body(Vec::new()).unwrap();
            if let Ok(metrics) = client.request::<Value>(request).await {
                return metrics;
            }
        }
    };
    let metrics = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(metrics["containers"].as_array().unwrap().len(), 2, "{metrics}");
    let top = subject.good("top pod p --containers --no-headers", &[]).await;
    assert!(top.contains("echo") && top.contains("server"), "{top}");
    let top = subject.good("top node away --no-headers", &[]).await;
    assert!(top.starts_with("away"), "{top}");
}

/// Who asks the node directly needs an identity, and a right for what they ask.
async fn strangers_are_refused(subject: &Subject, address: &str) {
    const RUN: &str = "/run/default/p/echo?cmd=id";
    let everything = ["/pods", "/healthz", "/metrics", "/stats/summary", "/containerLogs/default/p/echo"];
    let everything = everything.into_iter().map(|path| ("GET", path)).chain([("POST", RUN)]);
    let everything: Vec<_> =
        everything.chain([("GET", "/exec/default/p/echo?command=id"), ("GET", "/nowhere")]).collect();
    for (who, user, code) in [
        ("nobody", json!({}), 401),
        ("a wrong token", json!({"token": "x.y.z"}), 401),
        ("a plain account", json!({"token": subject.token("plain", &[]).await}), 403),
        // A node may neither ask another one nor itself.
        ("a node", user_of(&subject.cluster.node_kubeconfig("away").unwrap()), 403),
        ("another node", user_of(&subject.cluster.node_kubeconfig("other").unwrap()), 403),
    ] {
        let client = subject.to_node(address, user).await;
        for (method, path) in &everything {
            let (found, text) = ask(&client, method, path).await;
            assert_eq!(found, code, "{who}: {method} {path}: {text}");
        }
    }
    let token = json!({"token": subject.token("scraper", &["nodes/metrics"]).await});
    let scraper = subject.to_node(address, token).await;
    let token = json!({"token": subject.token("checker", &["nodes/healthz"]).await});
    let checker = subject.to_node(address, token).await;
    let admin = subject.to_node(address, user_of(&subject.cluster.kubeconfig().unwrap())).await;
    for (client, method, path, code) in [
        (&scraper, "GET", "/metrics", 200),
        (&scraper, "GET", "/metrics/resource", 200),
        (&scraper, "GET", "/stats/summary", 403),
        (&scraper, "POST", "/metrics", 403),
        (&scraper, "POST", RUN, 403),
        // What begins like something allowed is not that.
        (&scraper, "GET", "/metrics/../run/default/p/echo?cmd=id", 404),
        (&scraper, "GET", "/metrics%2f..%2fpods", 404),
        (&checker, "GET", "/healthz", 200),
        (&checker, "GET", "/pods", 403),
        (&admin, "GET", "/pods", 200),
        (&admin, "GET", "/logs/", 405),
        (&admin, "GET", "/nowhere", 404),
        (&admin, "POST", "/run/default/p/echo", 400),
        (&admin, "POST", "/run/default/none/echo?cmd=id", 404),
    ] {
        let (found, text) = ask(client, method, path).await;
        assert_eq!(found, code, "{method} {path}: {text}");
    }
    let (code, text) = ask(&admin, "POST", "/run/default/p/echo?cmd=echo%20hello").await;
    assert_eq!((code, text.as_str()), (200, "hello\n"));

    // A certificate that says the same as an administrator's, and is signed by somebody else.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut forged = rcgen::CertificateParams::default();
    forged.distinguished_name.push(rcgen::DnType::CommonName, "kubernetes-admin");
    forged.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
    let certificate = forged.self_signed(&key).unwrap();
    let encoded = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let user = json!({"client-certificate-data": encoded(&certificate.pem()),
        "client-key-data": encoded(&key.serialize_pem())});
    let forger = subject.to_node(address, user).await;
    let request = http::Request::get("/pods").body(Body::empty()).unwrap();
    let answer = tokio::time::timeout(PATIENCE, forger.send(request)).await.unwrap();
    assert!(answer.is_err(), "{:?}", answer.map(|answer| answer.status()));
}

/// The way of a machine that knows no more than a token: a client certificate that controllers approve, and a serving certificate that
/// somebody approves. Until then an API server that looks at certificates doesn't talk to the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_by_a_bootstrap_token() {
    let cluster = Cluster::builder().nodes(0).api(|api| api.bootstrap_tokens(true));
    let subject = Subject::new(cluster.start().await.unwrap()).await;
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true"}});
    subject.create::<k8s_openapi::api::core::v1::Secret>("kube-system", secret).await;
    for role in
        ["system:node-bootstrapper", "system:certificates.k8s.io:certificatesigningrequests:nodeclient"]
    {
        let group =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers"});
        let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
        let name = format!("test:{role}");
        let binding = json!({"metadata": {"name": name}, "roleRef": reference, "subjects": [group]});
        subject.create::<ClusterRoleBinding>("", binding).await;
    }
    let mut kubeconfig: Value = serde_json::from_str(&subject.cluster.kubeconfig().unwrap()).unwrap();
    kubeconfig["users"][0]["user"] = json!({"token": "abcdef.0123456789abcdef"});
    std::fs::write(subject.path("bootstrap"), kubeconfig.to_string()).unwrap();
    std::fs::remove_file(subject.path("node")).unwrap();

    let bootstrap = subject.path("bootstrap");
    let arguments = ["--bootstrap-kubeconfig", &bootstrap, "--runtime", "simulated", "--request-certificate"];
    let (program, _) = subject.start(&arguments);
    let ready = |node: Option<&Node>| is_ready(&serde_json::to_value(node).unwrap());
    subject.cluster.wait_until::<Node>("", "away", PATIENCE, ready).await.unwrap();
    let written = std::fs::read_to_string(subject.path("node")).unwrap();
    assert!(!written.contains("abcdef"), "the token is for joining only");

    let client = subject.cluster.client();
    let healthz = async || {
        let request = http::Request::get("/api/v1/nodes/away/proxy/healthz").body(Vec::new()).unwrap();
        client.request_text(request).await
    };
    let why = healthz().await.unwrap_err().to_string();
    assert!(why.contains("certificate"), "{why}");
    approve_serving(&client).await;
    let answered = async {
        let mut every = tokio::time::interval(Duration::from_millis(200));
        loop {
            every.tick().await;
            if let Ok(text) = healthz().await {
                return text;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, answered).await.unwrap(), "ok");

    // The next agent has what was issued to this one, and asks nobody.
    drop(program);
    let kept = std::fs::read_to_string(subject.path("state/pki/kubelet-server-current.pem")).unwrap();
    let (_program, address) = subject.start(&arguments);
    let (authority, name) = (subject.cluster.ca_pem().to_owned(), address.clone());
    let shown = beside(move || shown_certificate(&name, &authority)).await;
    assert!(kept.contains(&shown), "{kept}\n{shown}");
    let requests: Api<k8s_openapi::api::certificates::v1::CertificateSigningRequest> = Api::all(client);
    let all = requests.list(&kube::api::ListParams::default()).await.unwrap();
    assert_eq!(all.items.len(), 2, "one for the client, one for the server");
}

/// The first line of the certificate that is shown at an address to who believes this authority.
fn shown_certificate(address: &str, authority: &str) -> String {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    let shown = &connection.peer_certificates().unwrap()[0];
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, shown);
    encoded[..64].to_owned()
}

/// As `kubectl certificate approve` does it, once the request is there.
async fn approve_serving(client: &Client) {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
    use kube::api::{ListParams, Patch, PatchParams};
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let found = async {
        let mut every = tokio::time::interval(Duration::from_millis(200));
        loop {
            every.tick().await;
            let all = requests.list(&ListParams::default()).await.unwrap();
            let serving =
                all.items.into_iter().find(|one| one.spec.signer_name == "kubernetes.io/kubelet-serving");
            if let Some(found) = serving {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await.unwrap();
    assert_eq!(found.spec.username.as_deref(), Some("system:node:away"));
    let condition =
        json!({"type": "Approved", "status": "True", "reason": "KubectlApprove", "message": "by the test"});
    let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    let name = found.metadata.name.unwrap();
    requests.patch_approval(&name, &PatchParams::default(), &patch).await.unwrap();
}

#[cfg(all(feature = "containers", target_os = "linux"))]
mod containers {
    use kruntime::testing::images::{BUSYBOX, write_busybox};

    use super::*;

    const IMAGE: &str = "example.test/busybox:1";

    fn missing() -> Option<&'static str> {
        if !Path::new(BUSYBOX).is_file() {
            return Some("busybox");
        }
        let has = |dir: &str| Path::new(dir).join("runc").is_file();
        if !["/usr/sbin", "/usr/bin", "/sbin", "/bin"].into_iter().any(has) {
            return Some("runc");
        }
        let id = Command::new("id").arg("-u").output().unwrap();
        (id.stdout != b"0\n").then_some("root")
    }

    /// Real containers don't notice that their agent is killed: none is started again, nothing that they said is lost, and what was
    /// deleted meanwhile ends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn real_containers_outlive_their_agent() {
        if let Some(what) = missing() {
            return skip(what);
        }
        if kubectl_program().is_none() {
            return;
        }
        let subject = Subject::new(unchecked().start().await.unwrap()).await;
        write_busybox(&subject.folder.path().join("layout"), IMAGE, &json!({"Cmd": ["sh"]})).unwrap();
        let layout = subject.path("layout");
        let arguments = ["--runtime", "oci", "--image", &layout, "--no-pod-network", "--evict", "false"];
        let (program, _) = subject.start(&arguments);
        let create = async |name: &str, script: &str| {
            let container = json!({"name": "c", "image": IMAGE, "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "v", "mountPath": "/data"}]});
            let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container],
                "volumes": [{"name": "v", "emptyDir": {}}]});
            subject.create::<Pod>("default", json!({"metadata": {"name": name}, "spec": spec})).await;
            subject.pod(name, is_ready).await
        };
        // Speaks again when it is told to, by a file in its volume.
        let script = "echo first; until [ -e /data/go ]; do sleep 0.1; done; echo second; exec sleep 1000";
        let before = create("stays", script).await;
        create("goes", "exec sleep 1000").await;
        drop(program);
        let forced = "delete pod goes --force --grace-period=0 --wait=false";
        subject.good(forced, &[]).await;

        let (mut program, _) = subject.start(&arguments);
        let told = async {
            let mut every = tokio::time::interval(Duration::from_millis(500));
            loop {
                every.tick().await;
                let output = subject.run("exec stays -- touch /data/go", &[]).await;
                if output.status.success() {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, told).await.unwrap();
        assert_eq!(subject.good("logs -f stays --limit-bytes=13", &[]).await, "first\nsecond\n");
        let after = subject.pod("stays", is_ready).await;
        let status = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            json!([status["containerID"], status["restartCount"], status["state"]])
        };
        assert_eq!(status(&after), status(&before));
        assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);

        subject.good("delete pod stays --wait=true --timeout=60s", &[]).await;
        let pods = subject.folder.path().join("state/containers/pods");
        let left = async {
            let mut every = tokio::time::interval(Duration::from_millis(200));
            while std::fs::read_dir(&pods).unwrap().count() > 0 {
                every.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, left).await.expect("the pods' directories go");
        // In order, too, it ends.
        let ended = Command::new("kill").arg(program.0.id().to_string()).status().unwrap();
        assert!(ended.success());
        assert!(beside(move || program.0.wait().unwrap()).await.success());
    }
}
