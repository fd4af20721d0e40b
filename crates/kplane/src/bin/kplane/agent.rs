//! `kplane node`: a node's agent in a process of its own.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Taint;
use kplane::{
    Credentials, Node, NodeOptions,
    node::{self, NodeCertificate, NodeRuntime},
};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{Engine, Runtime, managers::ManagerArguments, pair, read, write_private};

#[derive(clap::Args)]
pub(crate) struct NodeArguments {
    /// How the cluster is reached, and who the node is to it: `system:node:NAME` in `system:nodes`, or who else may do as much.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// How to ask for a kubeconfig where that one is not there yet, or has ended, such as with a bootstrap token.
    #[arg(long)]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// The node's name; the machine's by default.
    #[arg(long)]
    name: Option<String>,
    /// Where the node's API is served; port 0 picks a free one.
    #[arg(long, default_value = "0.0.0.0:10250")]
    listen: SocketAddr,
    /// The address that others reach the node at; found out by default.
    #[arg(long)]
    node_ip: Option<IpAddr>,
    #[command(flatten)]
    engine: Engine,
    /// Where the node's state is kept; one for each node.
    #[arg(long, default_value = "/var/lib/kplane-node")]
    dir: PathBuf,
    /// Where pods get their addresses, with the OCI runtime; each node of a cluster needs a range of its own.
    #[arg(long)]
    pod_cidr: Option<String>,
    /// Connect the pods of the OCI runtime to nothing.
    #[arg(long, conflicts_with_all = ["pod_cidr", "cni_conf_dir"])]
    no_pod_network: bool,
    /// A file or a directory of pods that the node runs by itself.
    #[arg(long)]
    static_pods: Option<PathBuf>,
    /// Whose client certificates are believed; without it nobody's, and the API server can't reach the node's pods.
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// The serving certificate, instead of one that the node makes for itself.
    #[arg(long, requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Ask the cluster for a serving certificate, which somebody has to approve there, and again before it ends.
    #[arg(long, alias = "rotate-server-certificates", conflicts_with = "tls_cert_file")]
    request_certificate: bool,
    /// Ask for another client certificate before the node's own ends.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    rotate_certificates: bool,
    /// A DNS server of the cluster; may be repeated.
    #[arg(long)]
    cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// A label of the node; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// A taint to register with; may be repeated.
    #[arg(long, value_name = "KEY[=VALUE]:EFFECT", value_parser = taint)]
    taint: Vec<Taint>,
    /// Whether pods are evicted when the machine is short of something; with real containers by default.
    #[arg(long)]
    evict: Option<bool>,
    #[command(flatten)]
    managers: ManagerArguments,
}

fn taint(text: &str) -> Result<Taint, String> {
    let (key, effect) = text.rsplit_once(':').ok_or("there is no :EFFECT")?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("{effect:?} is none of NoSchedule, PreferNoSchedule and NoExecute"));
    }
    let (key, value) = key.split_once('=').map_or((key, None), |(key, value)| (key, Some(value.to_owned())));
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

impl NodeArguments {
    fn runtime(&self) -> Result<NodeRuntime> {
        let is_real = self.engine.is_real()?;
        if !is_real && (self.no_pod_network || self.pod_cidr.is_some()) {
            bail!("--no-pod-network and --pod-cidr are for --runtime oci");
        }
        Ok(match self.engine.runtime {
            Runtime::Process => NodeRuntime::Processes,
            Runtime::Simulated => NodeRuntime::Simulated,
            #[cfg(all(feature = "containers", target_os = "linux"))]
            Runtime::Oci | Runtime::Cri => {
                let mut containers = self.engine.containers(&self.dir);
                containers = self.pod_cidr.iter().fold(containers, kplane::Containers::pod_range);
                if self.no_pod_network {
                    containers = containers.without_network();
                }
                NodeRuntime::Containers(Box::new(containers))
            }
            #[cfg(not(all(feature = "containers", target_os = "linux")))]
            Runtime::Oci | Runtime::Cri => bail!(crate::NO_CONTAINERS),
        })
    }

    fn options(&self, name: &str) -> Result<NodeOptions> {
        let mut options = NodeOptions::new(name, &self.dir);
        options.listen = self.listen;
        options.address = self.node_ip;
        options.runtime = self.runtime()?;
        options.static_pods = self.static_pods.clone();
        options.client_ca_pem = self.client_ca_file.as_deref().map(read).transpose()?;
        options.certificate = match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(certificate), Some(key)) => NodeCertificate::Given(Credentials {
                certificate_pem: read(certificate)?,
                key_pem: read(key)?,
            }),
            _ if self.request_certificate => NodeCertificate::Requested,
            _ => NodeCertificate::SelfMade,
        };
        options.rotate_certificates = self.rotate_certificates;
        options.cluster_dns.clone_from(&self.cluster_dns);
        options.cluster_domain.clone_from(&self.cluster_domain);
        options.labels = self.label.iter().cloned().collect();
        options.taints.clone_from(&self.taint);
        options.evicts = self.evict;
        (options.reserved, options.managers) = self.managers.options()?;
        Ok(options)
    }
}

async fn config_of(path: &Path) -> Result<Config> {
    let file = Kubeconfig::read_from(path)?;
    Ok(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

/// Whether the node has a kubeconfig that it can still be known by.
async fn is_joined(arguments: &NodeArguments) -> bool {
    if !arguments.kubeconfig.exists() {
        return false;
    }
    match config_of(&arguments.kubeconfig).await {
        Ok(config) => node::is_joined(&config, &arguments.dir),
        Err(error) => {
            println!("note: {}: {error:#}", arguments.kubeconfig.display());
            false
        }
    }
}

/// Runs as a node until a signal comes.
pub(crate) async fn be_node(arguments: &NodeArguments) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => read(Path::new("/proc/sys/kernel/hostname"))?.trim().to_lowercase(),
    };
    let options = arguments.options(&name)?;
    let started = async {
        if let Some(bootstrap) = arguments.bootstrap_kubeconfig.as_deref()
            && !is_joined(arguments).await
        {
            println!("asking for a certificate as system:node:{name}");
            let joined = node::join(config_of(bootstrap).await?, &name).await?;
            write_private(&arguments.kubeconfig, &joined)
                .with_context(|| format!("{} can't be written", arguments.kubeconfig.display()))?;
        }
        if options.client_ca_pem.is_none() {
            println!(
                "note: without --client-ca-file no client certificate is believed, the API server's neither"
            );
        }
        let node = Node::start(config_of(&arguments.kubeconfig).await?, options).await?;
        for note in node.notes() {
            println!("note: {note}");
        }
        println!("node {name} is served at {}", node.address());
        Ok::<_, anyhow::Error>(node)
    };
    // Somebody may have to approve the certificate first: that can be waited for no longer, too.
    let started = tokio::select! {
        started = started => Some(started?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    let Some(node) = started else { return Ok(()) };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    node.stop().await;
    Ok(())
}
