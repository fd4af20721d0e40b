//! `kplane up`: a Kubernetes cluster in one process, without root.

mod agent;
mod managers;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use kplane::{
    Cluster, ClusterBuilder, IngressAddresses, KubeletAuthority, ProxyMode,
    faces::{self, Face, Flags},
    knet::{policy::nftables, proxy::ipvs::Scheduler},
};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

/// For those to whom time is dearer than memory: most of what a request allocates is small and short-lived.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Kubernetes cluster in one process.
#[derive(Parser)]
#[command(name = "kplane", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster and keep it running until Ctrl-C or SIGTERM.
    Up(Box<Up>),
    /// Be a node of a cluster elsewhere, until Ctrl-C or SIGTERM: run its pods and answer for them.
    Node(Box<agent::NodeArguments>),
    /// Put `kube-apiserver` and `etcd` into a folder, for KUBEBUILDER_ASSETS.
    Assets {
        /// The folder; kubectl is not among them.
        folder: PathBuf,
    },
    /// Say where a pod would go, and why: each node's scores, or what keeps the pod away. Nothing is changed.
    Explain(Explain),
    /// Serve etcd's v3 API, with etcd's flags; `kplane etcd --help` lists them.
    Etcd,
    /// Serve as kube-apiserver would, with its flags; `kplane kube-apiserver --help` lists them.
    #[command(name = "kube-apiserver")]
    ApiServer,
}

#[derive(clap::Args)]
struct Up {
    /// How many nodes the cluster has; 3 by default, and 1 with real containers, as they all are on this machine.
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=5000))]
    nodes: Option<u16>,
    /// Where the API is served; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where the kubeconfig is written.
    #[arg(long, default_value = "kplane.kubeconfig")]
    kubeconfig: PathBuf,
    #[command(flatten)]
    engine: Engine,
    /// Where real containers, their images and volumes are kept.
    #[arg(long, default_value = "/var/lib/kplane")]
    dir: PathBuf,
    /// Let a node in another process join: writes kubeconfig and ca.crt for `kplane node` of this name into the folder; may be
    /// repeated.
    #[arg(long, value_name = "NAME=FOLDER", value_parser = pair)]
    join: Vec<(String, String)>,
    /// Whose serving certificates of nodes elsewhere are believed: a file, `cluster` for the cluster's own authority, or `none`, by
    /// which they are not looked at.
    #[arg(long, value_name = "FILE|cluster|none", default_value = "cluster")]
    kubelet_certificate_authority: PathBuf,
    /// What brings connections to Services: userspace with processes, nftables with real containers by default; those in the kernel need
    /// root.
    #[arg(long, value_enum)]
    proxy_mode: Option<Proxy>,
    /// How IPVS chooses an endpoint: rr, wrr, lc, wlc, lblc, lblcr, sh, dh, sed, nq or mh.
    #[arg(long, value_name = "SCHEDULER", default_value = "rr")]
    ipvs_scheduler: Scheduler,
    /// Where the service proxy's health is served, with `/healthz`, `/livez` and `/proxyMode`; nowhere by default.
    #[arg(long, value_name = "ADDRESS")]
    proxy_health: Option<SocketAddr>,
    /// Enforce NetworkPolicies, for real containers; connections that exist are kept, or cut when they are no longer allowed.
    #[arg(long, value_enum, value_name = "EXISTING")]
    network_policy: Option<Existing>,
    /// Serve Ingresses here, in the clear.
    #[arg(long, value_name = "ADDRESS", requires = "ingress_https")]
    ingress_http: Option<SocketAddr>,
    /// Serve Ingresses here, over TLS.
    #[arg(long, value_name = "ADDRESS", requires = "ingress_http")]
    ingress_https: Option<SocketAddr>,
    /// Serve a port of Gateways at an address, such as `80=127.0.0.1:8080`; may be repeated.
    #[arg(long, value_name = "PORT=ADDRESS", value_parser = gateway_port)]
    gateway: Vec<(u16, SocketAddr)>,
}

/// What runs containers, of a cluster or of one node.
#[derive(clap::Args)]
struct Engine {
    /// What runs the containers.
    #[arg(long, value_enum, default_value_t = Runtime::Process)]
    runtime: Runtime,
    /// The socket of the CRI server.
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    cri_socket: PathBuf,
    /// The OCI runtime's program; runc by default.
    #[arg(long)]
    oci_runtime: Option<PathBuf>,
    /// Connect pods by CNI plug-ins, for the OCI runtime, by the configuration in this directory.
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Where CNI plug-ins are; may be repeated.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: Vec<PathBuf>,
    /// An OCI layout or archive to take images from, for the OCI runtime; may be repeated.
    #[arg(long)]
    image: Vec<PathBuf>,
}

/// Reads `80=127.0.0.1:8080`.
fn gateway_port(text: &str) -> Result<(u16, SocketAddr), String> {
    let (port, address) = text.split_once('=').ok_or("a port, `=` and an address are needed")?;
    let port = port.parse().map_err(|error| format!("{port}: {error}"))?;
    Ok((port, address.parse().map_err(|error| format!("{address}: {error}"))?))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("there is no =")?;
    if key.is_empty() { Err("there is nothing before =".to_owned()) } else { Ok((key.into(), value.into())) }
}

#[derive(clap::Args)]
struct Explain {
    /// What is explained.
    kind: Explained,
    /// The pod's name.
    name: String,
    /// The pod's namespace; that of the kubeconfig's context by default.
    #[arg(long, short)]
    namespace: Option<String>,
    /// The kubeconfig of the cluster; KUBECONFIG or ~/.kube/config by default.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// A KubeSchedulerConfiguration; kube-scheduler's defaults without one.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Explained {
    /// A pod.
    Pod,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// Containers are processes of the user who starts the cluster.
    Process,
    /// Nothing really runs.
    Simulated,
    /// Images by an OCI runtime, as root.
    Oci,
    /// Images by a server of the Container Runtime Interface, such as containerd, as root.
    Cri,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Proxy {
    /// None.
    Disabled,
    /// Sockets of the cluster's process, without root: with processes only.
    Userspace,
    /// Maps in the kernel, by nft.
    Nftables,
    /// Rules in the kernel, by iptables.
    Iptables,
    /// Virtual servers in the kernel.
    Ipvs,
}

impl Proxy {
    fn mode(self, scheduler: Scheduler) -> ProxyMode {
        match self {
            Self::Disabled => ProxyMode::Disabled,
            Self::Userspace => ProxyMode::Userspace,
            Self::Nftables => ProxyMode::Nftables,
            Self::Iptables => ProxyMode::Iptables,
            Self::Ipvs => ProxyMode::Ipvs(scheduler),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Existing {
    /// Connections go on.
    Kept,
    /// Connections end.
    Cut,
}

impl From<Existing> for nftables::Existing {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Kept => Self::Kept,
            Existing::Cut => Self::Cut,
        }
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().peekable();
    let program = words.next();
    // Under its own name the command takes the other as its first word: their flags are not its own.
    if let Some(face) = program.as_deref().and_then(Face::of).or_else(|| Face::of(words.peek()?)) {
        return serve_face(face, &Flags::parse(words));
    }
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let command = arguments.command;
    match &command {
        Command::Up(_) | Command::Node(_) | Command::Explain(_) => {}
        Command::Assets { folder } => return install(folder),
        // Only reached when a flag of kplane's own comes before the word.
        Command::Etcd => return serve_face(Face::Etcd, &Flags::default()),
        Command::ApiServer => return serve_face(Face::ApiServer, &Flags::default()),
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no threads can be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match &command {
            Command::Explain(explain) => explained(explain).await,
            Command::Up(up) => run(up).await,
            Command::Node(arguments) => agent::be_node(arguments).await,
            Command::Assets { .. } | Command::Etcd | Command::ApiServer => Ok(()),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn install(folder: &std::path::Path) -> ExitCode {
    match std::env::current_exe().and_then(|program| faces::install(folder, &program)) {
        Ok(()) => {
            println!("export KUBEBUILDER_ASSETS={}", absolute(folder).display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// Runs as `kube-apiserver` or `etcd`.
fn serve_face(face: Face, flags: &Flags) -> ExitCode {
    if flags.wants_help() {
        print!("{}", face.help());
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let served =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from);
    let served = served.and_then(|runtime| {
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let end = async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            Ok(face.run(flags, end).await?)
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn explained(explain: &Explain) -> Result<()> {
    let Explained::Pod = explain.kind;
    let options = KubeConfigOptions::default();
    let config = match &explain.kubeconfig {
        Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
        None => Config::from_kubeconfig(&options).await?,
    };
    let profiles = match &explain.config {
        Some(path) => kplane::explain::profiles(path)?,
        None => vec![ksched::Profile::default()],
    };
    let namespace = explain.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)?;
    print!("{}", kplane::explain::pod(&client, &profiles, &namespace, &explain.name).await?);
    Ok(())
}

async fn run(up: &Up) -> Result<()> {
    // Signals are caught from the very start, so that an early Ctrl-C ends cleanly too.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let begin = Instant::now();
    let nodes = up.nodes.unwrap_or(if up.engine.is_real()? { 1 } else { 3 });
    println!("starting a cluster with {nodes} node{}", if nodes == 1 { "" } else { "s" });
    let mut builder = Cluster::builder().nodes(usize::from(nodes));
    builder = builder.kubelet_authority(match up.kubelet_certificate_authority.to_str() {
        Some("cluster") => KubeletAuthority::Cluster,
        Some("none") => KubeletAuthority::Unchecked,
        _ => KubeletAuthority::Pem(read(&up.kubelet_certificate_authority)?),
    });
    builder = match up.engine.runtime {
        Runtime::Process => {
            builder.processes().context("the process runtime can't be used; try --runtime simulated")?
        }
        Runtime::Simulated => builder,
        #[cfg(all(feature = "containers", target_os = "linux"))]
        Runtime::Oci | Runtime::Cri => builder.containers(up.engine.containers(&up.dir)),
        #[cfg(not(all(feature = "containers", target_os = "linux")))]
        Runtime::Oci | Runtime::Cri => bail!(NO_CONTAINERS),
    };
    let cluster = with_network(builder, up).start().await.context("the cluster could not be started")?;
    for (part, took) in cluster.startup() {
        report(part, *took);
    }
    for note in cluster.notes() {
        println!("  note: {note}");
    }
    let before = Instant::now();
    let serving = cluster.serve(up.listen).await?;
    write_private(&up.kubeconfig, &serving.kubeconfig)
        .with_context(|| format!("{} can't be written", up.kubeconfig.display()))?;
    for (name, folder) in &up.join {
        let folder = Path::new(folder);
        std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
        for (file, text) in
            [("kubeconfig", cluster.node_kubeconfig(name)?), ("ca.crt", cluster.ca_pem().to_owned())]
        {
            let path = folder.join(file);
            write_private(&path, &text).with_context(|| format!("{} can't be written", path.display()))?;
        }
    }
    report(&format!("https://{}", serving.address), before.elapsed());
    report("ready", begin.elapsed());
    println!(
        "\n  export KUBECONFIG={}\n  kubectl get nodes\n\nCtrl-C ends the cluster.",
        absolute(&up.kubeconfig).display()
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("\nending the cluster");
    let before = Instant::now();
    cluster.shutdown().await?;
    report("ended", before.elapsed());
    Ok(())
}

fn with_network(mut builder: ClusterBuilder, up: &Up) -> ClusterBuilder {
    if let Some(mode) = up.proxy_mode {
        builder = builder.service_proxy(mode.mode(up.ipvs_scheduler));
    }
    if let Some(address) = up.proxy_health {
        builder = builder.proxy_health(address);
    }
    if let Some(existing) = up.network_policy {
        builder = builder.network_policies(existing.into());
    }
    if let (Some(http), Some(https)) = (up.ingress_http, up.ingress_https) {
        builder = builder.ingress(IngressAddresses { http, https });
    }
    if !up.gateway.is_empty() {
        builder = builder.gateway(up.gateway.iter().copied());
    }
    builder
}

#[cfg(not(all(feature = "containers", target_os = "linux")))]
const NO_CONTAINERS: &str = "real containers need Linux and a build with the feature containers";

impl Engine {
    /// Whether containers are real.
    fn is_real(&self) -> Result<bool> {
        let is_real = matches!(self.runtime, Runtime::Oci | Runtime::Cri);
        if !is_real && (self.oci_runtime.is_some() || !self.image.is_empty()) {
            bail!("--oci-runtime and --image are for --runtime oci");
        }
        if self.cni_conf_dir.is_some() && self.runtime != Runtime::Oci {
            bail!("--cni-conf-dir is for --runtime oci");
        }
        Ok(is_real)
    }

    #[cfg(all(feature = "containers", target_os = "linux"))]
    fn containers(&self, dir: &Path) -> kplane::Containers {
        let containers = match self.runtime {
            Runtime::Cri => kplane::Containers::cri(&self.cri_socket, dir),
            _ => kplane::Containers::oci(dir),
        };
        let containers = self.oci_runtime.iter().fold(containers, kplane::Containers::program);
        let containers = self.cni_conf_dir.iter().fold(containers, |containers, folder| {
            let mut options = kplane::knet::network::cni::CniOptions::default();
            options.config_dir.clone_from(folder);
            options.plugin_dirs.clone_from(&self.cni_bin_dir);
            options.cache_dir = dir.join("cni");
            containers.cni(options)
        });
        self.image.iter().fold(containers, kplane::Containers::image)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

fn report(what: &str, took: Duration) {
    println!("  {what:<32} {:>8.1} ms", took.as_secs_f64() * 1000.0);
}

fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A kubeconfig holds a key: only its owner may read it. It is written whole or not at all.
fn write_private(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}
