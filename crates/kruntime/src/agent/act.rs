//! Carrying out what the machine decided.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, ContainerPort, Lifecycle, Pod, PodSpec, ResourceRequirements};
use knet::network::PortMapping;
use kreconcile::EventType;

use super::{Inner, NodeConfig, PodEntry, security};
use crate::{
    demand,
    downward::Facts,
    env, handler,
    machine::{Action, GRACE_MIN, StopReason},
    runtime::{ContainerConfig, RuntimeError, SandboxConfig, ports::protocol_of},
    volumes::{self, VolumeNote},
};

/// What came of an action.
pub(super) enum Outcome {
    Done,
    PodRefused,
    StartRefused { container: Arc<str>, reason: &'static str, message: String },
    Resized { container: Arc<str>, outcome: Result<ResourceRequirements, String> },
}

impl Inner {
    pub(super) async fn act(self: Arc<Self>, entry: Arc<PodEntry>, action: Action) -> Outcome {
        match action {
            Action::RunPod => self.run_pod(&entry).await,
            Action::Start { container, attempt } => self.start(&entry, &container, attempt).await,
            Action::Stop { container, grace, why } => {
                self.stop(&entry, &container, grace, why).await;
                Outcome::Done
            }
            Action::Resize { container } => self.resize(&entry, &container).await,
            Action::Finish => Outcome::Done,
        }
    }

    async fn run_pod(&self, entry: &PodEntry) -> Outcome {
        let pod = entry.pod();
        if let Err(refusal) = self.allocate(entry, &pod).await {
            self.refuse(entry, refusal.reason, refusal.message);
            // It may have been refused at once, and then nobody looks again by itself.
            self.queue.add(entry.uid.clone());
            return Outcome::PodRefused;
        }
        if let Some(volumes) = &entry.node.volumes {
            let now = self.clock.now();
            match volumes.refresh(&pod, &entry.node.config, &self.sources, now).await {
                Ok(notes) => self.tell_notes(entry, notes),
                Err(error) => {
                    self.event(entry, None, EventType::Warning, "FailedMount", error.to_string());
                    return Outcome::PodRefused;
                }
            }
        }
        if let Err(why) = self.prepare_claims(entry, &pod).await {
            let message = format!("Failed to prepare dynamic resources: {why}");
            self.event(entry, None, EventType::Warning, "FailedPrepareDynamicResources", message);
            return Outcome::PodRefused;
        }
        let mut config = sandbox_config(&pod, entry);
        let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
        if let Some(class) = class.filter(|class| !class.is_empty()) {
            match self.sources.runtime_handler(class).await {
                Ok(handler) => config.runtime_handler = handler,
                Err(error) => return self.pod_refused(entry, &error),
            }
        }
        match entry.node.config.runtime.run_pod(&entry.uid, &config).await {
            Ok(_) => Outcome::Done,
            Err(error) => self.pod_refused(entry, &error),
        }
    }

    /// Tells what there is to tell about the pod's volumes.
    pub(super) fn tell_notes(&self, entry: &PodEntry, notes: Vec<VolumeNote>) {
        for note in notes {
            self.event(entry, None, note.kind, note.reason, note.message);
        }
    }

    fn pod_refused(&self, entry: &PodEntry, error: &RuntimeError) -> Outcome {
        let message = format!("Failed to create pod sandbox: {error}");
        self.event(entry, None, EventType::Warning, "FailedCreatePodSandBox", message);
        Outcome::PodRefused
    }

    async fn start(&self, entry: &Arc<PodEntry>, name: &Arc<str>, attempt: u32) -> Outcome {
        let pod = entry.pod();
        let Some(mut container) = container_of(&pod, name) else { return Outcome::Done };
        // What it was given may be less than it wants by now.
        if let Some(given) = entry.resources_of(name, true) {
            container.resources = Some(given);
        }
        let started = async {
            self.ensure_image_volumes(entry, &pod, &container).await?;
            self.ensure_image(entry, &pod, &container).await?;
            if let Some(managers) = &entry.node.config.managers {
                managers.starting(&pod, name);
            }
            let config = self.container_config(entry, &pod, &container, attempt).await?;
            self.event(entry, Some(name), EventType::Normal, "Created", "Container created".to_owned());
            entry.node.config.runtime.start(&entry.uid, &config).await
        };
        if let Err(error) = started.await {
            let reason = error.waiting_reason();
            // What is wrong with an image was told by an event of its own.
            let said = if reason.contains("Image") { reason.to_owned() } else { error.to_string() };
            self.event(entry, Some(name), EventType::Warning, "Failed", format!("Error: {said}"));
            return Outcome::StartRefused { container: Arc::clone(name), reason, message: error.to_string() };
        }
        self.event(entry, Some(name), EventType::Normal, "Started", "Container started".to_owned());
        let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        if let Some(hook) = hook
            && let Err(error) = handler::run_hook(entry, &container, hook).await
        {
            let message = format!("PostStartHook failed: {error}");
            self.event(entry, Some(name), EventType::Warning, "FailedPostStartHook", message);
            let grace =
                pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
            let grace = Duration::from_secs(grace.max(0).unsigned_abs());
            if let Err(error) = entry.node.config.runtime.stop(&entry.uid, name, grace).await {
                tracing::warn!(pod = %entry.uid, %error, "a container whose hook failed is not stopped");
            }
        }
        Outcome::Done
    }

    /// Gives a container that runs more or less.
    async fn resize(&self, entry: &PodEntry, name: &Arc<str>) -> Outcome {
        let pod = entry.pod();
        let (Some(mut container), Some(given)) = (container_of(&pod, name), entry.resources_of(name, false))
        else {
            return Outcome::Done;
        };
        container.resources = Some(given.clone());
        let node = &entry.node.config;
        let mut resources = security::resources(&pod, &container, memory_capacity(node));
        entry.node.bind(&entry.uid, name, &mut resources);
        let outcome = node.runtime.resize(&entry.uid, name, &resources).await;
        match &outcome {
            Ok(()) => {
                let message = format!("Container {name} was resized");
                self.event(entry, Some(name), EventType::Normal, "ResizeCompleted", message);
            }
            Err(error) => {
                let message = format!("Container {name} can't be resized: {error}");
                self.event(entry, Some(name), EventType::Warning, "ResizeError", message);
            }
        }
        let outcome = outcome.map(|()| given).map_err(|error| error.to_string());
        Outcome::Resized { container: Arc::clone(name), outcome }
    }

    /// The `preStop` hook and the stop share the grace; the stop gets two seconds of it at least.
    async fn stop(&self, entry: &PodEntry, name: &Arc<str>, grace: Duration, why: StopReason) {
        let pod = entry.pod();
        let message = match why {
            StopReason::PodEnds | StopReason::RestartAll => format!("Stopping container {name}"),
            StopReason::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
            StopReason::Resize => format!("Container {name} resize requires restart"),
            StopReason::Startup => format!("Container {name} failed startup probe, will be restarted"),
        };
        self.event(entry, Some(name), EventType::Normal, "Killing", message);
        let begun = tokio::time::Instant::now();
        // Without grace there is no time for a hook.
        let container = container_of(&pod, name).filter(|_| !grace.is_zero());
        let hook = container.as_ref().and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        if let Some((container, hook)) = hook {
            match tokio::time::timeout(grace, handler::run_hook(entry, container, hook)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let message = format!("PreStopHook failed: {error}");
                    self.event(entry, Some(name), EventType::Warning, "FailedPreStopHook", message);
                }
                Err(_) => tracing::debug!(pod = %entry.uid, "the preStop hook used up the grace"),
            }
        }
        let left = grace.saturating_sub(begun.elapsed());
        let left = if hook.is_some() { left.max(GRACE_MIN) } else { left };
        if let Err(error) = entry.node.config.runtime.stop(&entry.uid, name, left).await {
            let message = format!("error killing pod: {error}");
            self.event(entry, None, EventType::Warning, "FailedKillPod", message);
        }
    }

    async fn container_config(
        &self,
        entry: &PodEntry,
        pod: &Pod,
        container: &Container,
        attempt: u32,
    ) -> Result<ContainerConfig, RuntimeError> {
        let mut config = ContainerConfig {
            name: container.name.as_str().into(),
            attempt,
            image: container.image.clone().unwrap_or_default(),
            stdin: container.stdin.unwrap_or(false),
            tty: container.tty.unwrap_or(false),
            ..ContainerConfig::default()
        };
        let node = &entry.node.config;
        config.resources = security::resources(pod, container, memory_capacity(node));
        entry.node.bind(&entry.uid, &container.name, &mut config.resources);
        if !entry.node.materialises {
            return Ok(config);
        }
        let pod_ips: Vec<IpAddr> = node.runtime.observe(&entry.uid).addresses.unwrap_or_default();
        let allocatable = node.allocatable();
        let facts = Facts { pod, pod_ips: &pod_ips, host_ips: &node.addresses, allocatable: &allocatable };
        let env = env::resolve(&facts, container, &self.sources).await?;
        let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
            list.iter().flatten().map(|text| env::expand(text, &env)).collect()
        };
        config.command = expanded(&container.command);
        config.args = expanded(&container.args);
        config.working_dir = container.working_dir.as_ref().filter(|dir| !dir.is_empty()).map(PathBuf::from);
        config.images = volumes::image::mounts(pod, container, &env)?;
        if let Some(volumes) = &entry.node.volumes {
            // An agent that has come back has not made them yet.
            if !volumes.are_made(&entry.uid) {
                let notes = volumes.refresh(pod, node, &self.sources, self.clock.now()).await?;
                self.tell_notes(entry, notes);
            }
            config.mounts = volumes.mounts(pod, container, &env)?;
        }
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        if let Some(devices) = &entry.node.devices {
            devices.apply(entry.uid.as_str(), &container.name, &mut config).await?;
        }
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        if let Some(claims) = &entry.node.claims {
            let names = claims.cdi(pod, container).map_err(RuntimeError::Config)?;
            let known = &mut config.devices.cdi;
            names.into_iter().for_each(|name| {
                if !known.contains(&name) {
                    known.push(name)
                }
            });
        }
        let hostname = hostname(pod);
        config.env.push(("HOSTNAME".to_owned(), hostname));
        config.env.extend(env);
        security::set_security(&mut config, pod, container)?;
        let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        config.termination_message_path = Some(PathBuf::from(path));
        config.termination_message_from_log =
            container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        config.stop_signal = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone());
        Ok(config)
    }
}

fn memory_capacity(node: &NodeConfig) -> i64 {
    demand::amount(Some(&node.capacity), "memory").unwrap_or(0)
}

/// The container of that name, of whatever list; an ephemeral one as if it were a usual one.
pub(crate) fn container_of(pod: &Pod, name: &str) -> Option<Container> {
    let spec = pod.spec.as_ref()?;
    let usual = spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name);
    usual.cloned().or_else(|| {
        let found = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        Some(Container {
            name: found.name.clone(),
            image: found.image.clone(),
            command: found.command.clone(),
            args: found.args.clone(),
            env: found.env.clone(),
            env_from: found.env_from.clone(),
            working_dir: found.working_dir.clone(),
            volume_mounts: found.volume_mounts.clone(),
            security_context: found.security_context.clone(),
            stdin: found.stdin,
            tty: found.tty,
            lifecycle: None::<Lifecycle>,
            ..Container::default()
        })
    })
}

/// `spec.hostname`, else the pod's name, cut to the 63 characters of a host name.
fn hostname(pod: &Pod) -> String {
    let wanted = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let name = wanted.or(pod.metadata.name.as_deref()).unwrap_or_default();
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

fn sandbox_config(pod: &Pod, entry: &PodEntry) -> SandboxConfig {
    let node = &entry.node.config;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let annotations = Arc::new(pod.metadata.annotations.clone().unwrap_or_default());
    let mut config = SandboxConfig {
        namespace: namespace.into(),
        name: pod.metadata.name.as_deref().unwrap_or_default().into(),
        node: Arc::clone(&node.name),
        annotations,
        ..SandboxConfig::default()
    };
    let Some(spec) = pod.spec.as_ref().filter(|_| entry.node.materialises) else { return config };
    config.overhead = security::overhead(spec);
    config.hostname = hostname(pod);
    config.fqdn =
        spec.subdomain.as_ref().filter(|subdomain| !subdomain.is_empty()).map(|subdomain| {
            format!("{}.{subdomain}.{namespace}.svc.{}", config.hostname, node.cluster_domain)
        });
    config.host_network = spec.host_network.unwrap_or(false);
    config.host_pid = spec.host_pid.unwrap_or(false);
    config.host_ipc = spec.host_ipc.unwrap_or(false);
    config.share_processes = spec.share_process_namespace.unwrap_or(false);
    let usual = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    config.privileged = usual
        .filter_map(|container| container.security_context.as_ref())
        .any(|context| context.privileged == Some(true));
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    config.sysctls = sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect();
    let aliases = spec.host_aliases.iter().flatten();
    config.host_aliases =
        aliases.map(|alias| (alias.ip.clone(), alias.hostnames.clone().unwrap_or_default())).collect();
    config.ports = host_ports(spec);
    config.resolv_conf = resolv_conf(spec, namespace, &node.cluster_dns, &node.cluster_domain);
    config
}

/// The node's ports that the pod's containers ask for. On the node's network they are the container's own.
fn host_ports(spec: &PodSpec) -> Vec<PortMapping> {
    if spec.host_network == Some(true) {
        return Vec::new();
    }
    let sidecars = spec.init_containers.iter().flatten();
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mapping = |port: &ContainerPort| {
        Some(PortMapping {
            host_address: port.host_ip.as_ref().and_then(|ip| ip.parse().ok()),
            host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
            pod_port: u16::try_from(port.container_port).ok()?,
            protocol: protocol_of(port.protocol.as_deref().unwrap_or("TCP"))?,
        })
    };
    ports.filter_map(mapping).collect()
}

/// The resolver's configuration by `spec.dnsPolicy` and `spec.dnsConfig`; `None` means the machine's own.
fn resolv_conf(spec: &PodSpec, namespace: &str, cluster_dns: &[IpAddr], domain: &str) -> Option<String> {
    let own = spec.dns_config.as_ref();
    let policy = match (spec.dns_policy.as_deref().unwrap_or("ClusterFirst"), spec.host_network) {
        ("ClusterFirst", Some(true)) => "Default",
        (policy, _) => policy,
    };
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), BTreeMap::new());
    match policy {
        "ClusterFirst" | "ClusterFirstWithHostNet" if !cluster_dns.is_empty() => {
            servers.extend(cluster_dns.iter().map(ToString::to_string));
            searches.extend([
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ]);
            options.insert("ndots".to_owned(), Some("5".to_owned()));
        }
        "None" => {}
        _ if own.is_none() => return None,
        _ => {}
    }
    if let Some(own) = own {
        servers.extend(own.nameservers.iter().flatten().cloned());
        searches.extend(own.searches.iter().flatten().cloned());
        options.extend(own.options.iter().flatten().filter_map(|o| Some((o.name.clone()?, o.value.clone()))));
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    if !options.is_empty() {
        let options: Vec<_> = options
            .into_iter()
            .map(|(name, value)| value.map_or_else(|| name.clone(), |value| format!("{name}:{value}")))
            .collect();
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    Some(text)
}
