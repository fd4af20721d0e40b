//! The servers, each a process of its own.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use kplane::faces::{Face, Flags};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::Instant;

/// How long a server may take until it is ready.
const READY_MAX: Duration = Duration::from_secs(60);
const FACE: &str = "--face";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The real one, over the real etcd.
    Peer,
    /// kplane's, with its objects in memory.
    Memory,
    /// kplane's, over the real etcd.
    Etcd,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peer => "kube_apiserver",
            Self::Memory => "kplane_memory",
            Self::Etcd => "kplane_etcd",
        }
    }
}

/// A server that runs, with the etcd it needs.
pub(super) struct Server {
    processes: Vec<Child>,
    folder: PathBuf,
    pub(super) client: Client,
}

/// Serves as the face that the arguments name until it is killed.
pub(super) fn serve_face() -> bool {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() != Some(FACE) {
        return false;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let served = runtime.block_on(Face::ApiServer.run(&Flags::parse(words), std::future::pending()));
    served.expect("a server");
    true
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

impl Server {
    /// Starts one with nothing in it; none if its programs are not named.
    pub(super) async fn start(kind: Kind) -> Option<Self> {
        let etcd = std::env::var_os("KPLANE_PEER_ETCD");
        let program = match kind {
            Kind::Peer => PathBuf::from(std::env::var_os("KPLANE_PEER_APISERVER")?),
            Kind::Memory | Kind::Etcd => std::env::current_exe().ok()?,
        };
        let port = free_port();
        let folder = std::env::temp_dir().join(format!("kplane-bench-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut processes = Vec::new();
        let mut flags = flags(&folder, port);
        if kind != Kind::Memory {
            let client = free_port();
            processes.push(start_etcd(Path::new(&etcd?), client, &folder));
            flags.push(format!("--etcd-servers=http://127.0.0.1:{client}"));
        }
        let mut command = Command::new(program);
        if kind != Kind::Peer {
            command.arg(FACE);
        }
        let log = std::fs::File::create(folder.join("server.log")).expect("a file");
        processes.push(command.args(flags).stdout(Stdio::null()).stderr(log).spawn().expect("a process"));
        let server = Self { processes, client: client(port).await, folder };
        server.is_ready().await;
        Some(server)
    }

    async fn is_ready(&self) {
        let until = Instant::now() + READY_MAX;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            let namespace =
                http::Request::get("/api/v1/namespaces/default").body(Vec::new()).expect("a request");
            if self.client.request_text(request).await.is_ok()
                && self.client.request_text(namespace).await.is_ok()
            {
                return;
            }
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
                panic!("a server did not get ready:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// CPU time so far, of all threads of all processes.
    pub(super) fn cpu(&self) -> Duration {
        self.processes.iter().map(cpu_of).sum()
    }
}

fn cpu_of(process: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // Linux counts in hundredths of a second, whatever the kernel's own clock does.
    Duration::from_millis(ticks * 10)
}

/// The same for both: who may do what is not looked at, and there are no service accounts.
fn flags(folder: &Path, port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    std::fs::write(file("tokens.csv"), "bench,bench,1,\"system:masters\"\n").expect("a file");
    let key = rcgen::KeyPair::generate().expect("a key");
    std::fs::write(file("sa.key"), key.serialize_pem()).expect("a file");
    // The real server reads no public key out of a private one of this kind.
    std::fs::write(file("sa.pub"), key.public_key_pem()).expect("a file");
    vec![
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", file("certs")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=AlwaysAllow".to_owned(),
        "--anonymous-auth=false".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
    ]
}

fn start_etcd(program: &Path, client: u16, folder: &Path) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{}", free_port()));
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(folder.join("etcd")).arg("--unsafe-no-fsync");
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("an etcd")
}

async fn client(port: u16) -> Client {
    let text = format!(
        "{{clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}], users: [{{name: u, user: {{token: bench}}}}], contexts: [{{name: x, context: {{cluster: c, user: u}}}}], current-context: x}}"
    );
    let kubeconfig = Kubeconfig::from_yaml(&text).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
