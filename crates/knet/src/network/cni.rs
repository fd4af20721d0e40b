//! Pods are connected by plug-ins: the runtime's side of the Container Network Interface, versions 0.1.0 to 1.1.0.
//!
//! The rules are those of the specification (`containernetworking/cni`, SPEC.md): a network is a list of plug-ins, each an executable
//! that is told by its environment what to do, reads its configuration with the result of the plug-in before it, and writes a result
//! or an error. Results are kept in files, as libcni does, so that pods can be disconnected by another life of the process.

mod cache;
mod config;
mod execute;
mod result;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};

use self::{
    cache::{Cache, Entry},
    execute::{Call, Executor},
};
pub use self::{
    config::{ConfigError, NetworkConfig, PluginConfig},
    execute::PluginError,
    result::addresses,
};
use super::{Attached, NetworkError, PodAttachment, PodNetwork};
use crate::policy::Protocol;

/// What can be set, with its defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CniOptions {
    /// Where configurations are: the first in the order of names counts. Default: `/etc/cni/net.d`.
    pub config_dir: PathBuf,
    /// Where plug-ins are. Default: `/opt/cni/bin`.
    pub plugin_dirs: Vec<PathBuf>,
    /// Where results are kept. Default: `/var/lib/cni`.
    pub cache_dir: PathBuf,
    /// The pod's device. Default: `eth0`.
    pub device: String,
    /// Whether the plug-in `loopback` brings up each pod's `lo` first. Default: yes.
    pub loopback: bool,
    /// How long a plug-in may take; then it is ended. Default: two minutes.
    pub timeout: Duration,
}

impl Default for CniOptions {
    fn default() -> Self {
        Self {
            config_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into()],
            cache_dir: "/var/lib/cni".into(),
            device: "eth0".to_owned(),
            loopback: true,
            timeout: Duration::from_secs(120),
        }
    }
}

/// The network that CNI plug-ins make. The configuration is read for each pod, so that it may come, and change, at any time.
///
/// ```no_run
/// # async fn example() -> Result<(), knet::network::NetworkError> {
/// use knet::network::{PodAttachment, PodNetwork, cni::{CniNetwork, CniOptions}};
/// let network = CniNetwork::new(CniOptions::default());
/// let pod = PodAttachment {
///     id: "0123abc".into(), namespace: "shop".into(), name: "web".into(), uid: "1-2".into(),
///     netns: Some("/run/netns/web".into()), ports: Vec::new(),
/// };
/// println!("{:?}", network.attach(&pod).await?.addresses);
/// network.detach(&pod).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct CniNetwork {
    options: CniOptions,
    executor: Executor,
    cache: Cache,
}

/// What each call for an attachment has.
struct Attachment<'a> {
    pod: &'a PodAttachment,
    device: &'a str,
    arguments: String,
    capabilities: Value,
}

impl CniNetwork {
    /// A network with these settings.
    #[must_use]
    pub fn new(options: CniOptions) -> Self {
        let executor = Executor::new(options.plugin_dirs.clone(), options.timeout);
        let cache = Cache::new(options.cache_dir.join("results"));
        Self { options, executor, cache }
    }

    /// Checks that a pod is connected as it was: the command `CHECK` of each plug-in.
    ///
    /// # Errors
    /// When it isn't, or was never connected.
    pub async fn check(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        let network = self.network()?;
        let attachment = self.attachment(pod)?;
        let cached = self.cached(&network, &attachment)?;
        let Some(cached) = cached else {
            return Err(NetworkError::Invalid(format!("{} is not attached to {}", pod.id, network.name)));
        };
        self.check_list(&network, &attachment, &cached).await
    }

    fn network(&self) -> Result<NetworkConfig, NetworkError> {
        NetworkConfig::load(&self.options.config_dir)
            .map_err(|error| NetworkError::NotReady(error.to_string()))
    }

    /// The network that brings up `lo`.
    fn loopback() -> NetworkConfig {
        NetworkConfig {
            name: "cni-loopback".to_owned(),
            version: "0.3.1".to_owned(),
            plugins: vec![PluginConfig::new(json!({"type": "loopback"}))],
            disable_check: false,
            disable_gc: false,
        }
    }

    fn attachment<'a>(&'a self, pod: &'a PodAttachment) -> Result<Attachment<'a>, NetworkError> {
        config::check_id(&pod.id).map_err(|error| NetworkError::Invalid(error.to_string()))?;
        config::check_device(&self.options.device)
            .map_err(|error| NetworkError::Invalid(error.to_string()))?;
        // What stands between the signs can't have them; Kubernetes' names never do.
        let arguments = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &pod.namespace),
            ("K8S_POD_NAME", &pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &pod.id),
            ("K8S_POD_UID", &pod.uid),
        ];
        if arguments.iter().any(|(_, value)| value.contains([';', '='])) {
            return Err(NetworkError::Invalid(format!("{}/{} is no name of a pod", pod.namespace, pod.name)));
        }
        let arguments: Vec<String> = arguments.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let ports = pod.ports.iter().map(|port| {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let host = port.host_address.map(|address| address.to_string()).unwrap_or_default();
            json!({"hostPort": port.host_port, "containerPort": port.pod_port, "protocol": protocol, "hostIP": host})
        });
        let ports: Vec<Value> = ports.collect();
        let mut capabilities = json!({});
        if !ports.is_empty() {
            capabilities["portMappings"] = ports.into();
        }
        Ok(Attachment { pod, device: &self.options.device, arguments: arguments.join(";"), capabilities })
    }

    fn cached(&self, network: &NetworkConfig, of: &Attachment<'_>) -> Result<Option<Entry>, NetworkError> {
        let read = self.cache.read(&network.name, &of.pod.id, of.device);
        read.map_err(|error| NetworkError::Io("the result of an attachment".to_owned(), error))
    }

    fn call<'a>(command: &'a str, of: &'a Attachment<'_>) -> Call<'a> {
        Call {
            command,
            container: Some(&of.pod.id),
            netns: of.pod.netns.as_deref(),
            device: Some(of.device),
            arguments: Some(&of.arguments),
        }
    }

    async fn add_list(&self, network: &NetworkConfig, of: &Attachment<'_>) -> Result<Value, NetworkError> {
        let mut previous = None;
        for plugin in &network.plugins {
            let input = network.input(plugin, previous.as_ref(), &of.capabilities);
            let output = self.executor.run(plugin.kind(), &Self::call("ADD", of), &input).await?;
            previous = Some(result::checked(output, &network.version)?);
        }
        let result = previous.unwrap_or_else(|| json!({"cniVersion": network.version}));
        let entry = Entry {
            id: of.pod.id.clone(),
            device: of.device.to_owned(),
            network: network.clone(),
            netns: of.pod.netns.clone(),
            arguments: of.arguments.clone(),
            capabilities: of.capabilities.clone(),
            result: result.clone(),
        };
        self.cache
            .write(&entry)
            .map_err(|error| NetworkError::Io("the result of an attachment".to_owned(), error))?;
        Ok(result)
    }

    /// Undoes an attachment, the last plug-in first, with the configuration that it was made with.
    async fn delete_list(&self, network: &NetworkConfig, of: &Attachment<'_>) -> Result<(), NetworkError> {
        let cached = self.cached(network, of)?;
        let (network, capabilities) = match &cached {
            Some(entry) => (&entry.network, &entry.capabilities),
            None => (network, &of.capabilities),
        };
        // Versions before 0.4.0 know no result there.
        let previous = cached.as_ref().map(|entry| &entry.result).filter(|_| network.is_at_least(0, 4));
        for plugin in network.plugins.iter().rev() {
            let input = network.input(plugin, previous, capabilities);
            self.executor.run(plugin.kind(), &Self::call("DEL", of), &input).await?;
        }
        self.cache
            .remove(&network.name, &of.pod.id, of.device)
            .map_err(|error| NetworkError::Io("the result of an attachment".to_owned(), error))
    }

    async fn check_list(
        &self,
        network: &NetworkConfig,
        of: &Attachment<'_>,
        cached: &Entry,
    ) -> Result<(), NetworkError> {
        if network.disable_check || !network.is_at_least(0, 4) {
            return Ok(());
        }
        for plugin in &network.plugins {
            let input = network.input(plugin, Some(&cached.result), &cached.capabilities);
            self.executor.run(plugin.kind(), &Self::call("CHECK", of), &input).await?;
        }
        Ok(())
    }

    async fn add_or_undo(&self, network: &NetworkConfig, of: &Attachment<'_>) -> Result<Value, NetworkError> {
        match self.add_list(network, of).await {
            Ok(result) => Ok(result),
            Err(error) => {
                if let Err(undo) = self.delete_list(network, of).await {
                    tracing::warn!(%undo, pod = of.pod.name, "an attachment that failed is not undone");
                }
                Err(error)
            }
        }
    }

    /// Tells plug-ins of version 1.1 which attachments there are, so that they take back the others.
    async fn collect_list(&self, network: &NetworkConfig, alive: &[String]) -> Result<(), NetworkError> {
        if network.disable_gc || !network.is_at_least(1, 1) {
            return Ok(());
        }
        let valid: Vec<Value> =
            alive.iter().map(|id| json!({"containerID": id, "ifname": self.options.device})).collect();
        let mut first = Ok(());
        for plugin in &network.plugins {
            let mut input = network.input(plugin, None, &json!({}));
            input["cni.dev/valid-attachments"] = valid.clone().into();
            let ran = self.executor.run(plugin.kind(), &Call::of_network("GC"), &input).await;
            // One that fails doesn't keep the others from it.
            if let (Ok(()), Err(error)) = (&first, ran) {
                first = Err(error.into());
            }
        }
        first
    }
}

#[async_trait]
impl PodNetwork for CniNetwork {
    async fn attach(&self, pod: &PodAttachment) -> Result<Attached, NetworkError> {
        if pod.netns.is_none() {
            return Err(NetworkError::Invalid(format!("{} has no network namespace", pod.id)));
        }
        let network = self.network()?;
        let attachment = self.attachment(pod)?;
        if let Some(cached) = self.cached(&network, &attachment)? {
            // A `CHECK` that fails is no reason to take a running pod's network away: plug-ins have failed it for less.
            if cached.netns == pod.netns {
                return Ok(Attached { addresses: addresses(&cached.result) });
            }
            self.delete_list(&cached.network, &attachment).await?;
        }
        if self.options.loopback {
            let lo = Attachment { device: "lo", capabilities: json!({}), ..self.attachment(pod)? };
            let loopback = Self::loopback();
            if self.cached(&loopback, &lo)?.is_none() {
                self.add_or_undo(&loopback, &lo).await?;
            }
        }
        let result = self.add_or_undo(&network, &attachment).await?;
        Ok(Attached { addresses: addresses(&result) })
    }

    async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        let attachment = self.attachment(pod)?;
        // What was attached is undone as it was attached, whatever the configuration says now.
        let known = self.cache.of_container(&pod.id);
        let known =
            known.map_err(|error| NetworkError::Io("the results of attachments".to_owned(), error))?;
        if known.iter().all(|entry| entry.device != attachment.device)
            && let Ok(network) = self.network()
        {
            self.delete_list(&network, &attachment).await?;
        }
        for entry in known {
            let of = Attachment { device: &entry.device, ..self.attachment(pod)? };
            self.delete_list(&entry.network, &of).await?;
        }
        Ok(())
    }

    async fn collect(&self, alive: &[String]) -> Result<(), NetworkError> {
        let entries = self.cache.all();
        let entries =
            entries.map_err(|error| NetworkError::Io("the results of attachments".to_owned(), error))?;
        let mut first = Ok(());
        for entry in entries.into_iter().filter(|entry| !alive.contains(&entry.id)) {
            let pod = PodAttachment {
                id: entry.id.clone(),
                namespace: String::new(),
                name: String::new(),
                uid: String::new(),
                netns: entry.netns.clone().filter(|path| path.exists()),
                ports: Vec::new(),
            };
            let of = Attachment {
                pod: &pod,
                device: &entry.device,
                arguments: entry.arguments.clone(),
                capabilities: entry.capabilities.clone(),
            };
            let undone = self.delete_list(&entry.network, &of).await;
            first = first.and(undone);
        }
        let network = self.network()?;
        first.and(self.collect_list(&network, alive).await)
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        let network = self.network()?;
        for plugin in &network.plugins {
            self.executor.find(plugin.kind()).map_err(|error| NetworkError::NotReady(error.to_string()))?;
        }
        if !network.is_at_least(1, 1) {
            return Ok(());
        }
        for plugin in &network.plugins {
            let input = network.input(plugin, None, &json!({}));
            let status = self.executor.run(plugin.kind(), &Call::of_network("STATUS"), &input).await;
            status.map_err(|error| NetworkError::NotReady(error.to_string()))?;
        }
        Ok(())
    }
}
