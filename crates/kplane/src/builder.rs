//! Putting a cluster together.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use kapi::{ApiServer, ApiServerBuilder, ServiceAddresses};
use kcore::{Clock, TokioClock};
use kreconcile::{Informers, Manager, Runnable, Start, controllers};
use kruntime::{ContainerRuntime, NodeAgent, NodeConfig};
use ksched::{Profile, Scheduler};
use kstore::Store;
use kube::Client;
use tokio::time::Instant;

use crate::{
    ca::{Ca, CaError, Credentials},
    certificates::Named,
    cluster::Cluster,
    defaults,
    gateway::{self, OpenedGateway},
    identities,
    ingress::{IngressAddresses, OpenedIngress, make_class},
    network::LocalNetwork,
    nodes::{KubeletAuthority, Nodes, NodesUsage},
    serve::Tasks,
    services::{Ground, ProxyMode, ServedNode, ServiceOptions, Services},
};

mod networking;

/// How many nodes a cluster may start with.
pub const NODES_MAX: usize = 10_000;

/// Makes the things that act on a cluster, from a context with its informers, clock and event recorder.
pub type ReconcilersFn = Box<dyn FnOnce(&controllers::Context) -> Vec<Arc<dyn Runnable>> + Send>;

type SettingsFn = Box<dyn FnOnce(&mut controllers::Settings) + Send>;
type NodeFn = Box<dyn Fn(&mut NodeConfig) + Send>;
type ApiFn = Box<dyn FnOnce(ApiServerBuilder) -> ApiServerBuilder + Send>;

/// Composes a cluster. Every part has a default, listed in [`defaults`](crate::defaults); every part can be replaced.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use k8s_openapi::api::core::v1::Namespace;
/// use kplane::Cluster;
///
/// let cluster = Cluster::builder().start().await?;
/// let namespaces = kube::Api::<Namespace>::all(cluster.client()).list(&Default::default()).await?;
/// assert!(namespaces.items.iter().any(|namespace| namespace.metadata.name.as_deref() == Some("kube-system")));
/// cluster.shutdown().await?;
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until `start` is called"]
pub struct ClusterBuilder {
    store: Option<Arc<dyn Store>>,
    clock: Option<Arc<dyn Clock>>,
    api: Vec<ApiFn>,
    certificates: Vec<Named>,
    controllers: bool,
    without: Vec<String>,
    reconcilers: Vec<ReconcilersFn>,
    settings: Vec<SettingsFn>,
    profiles: Vec<Profile>,
    extenders: Vec<Arc<dyn ksched::Extender>>,
    schedules: bool,
    nodes: usize,
    node_prefix: String,
    kubelet_authority: KubeletAuthority,
    runtime: Option<Arc<dyn ContainerRuntime>>,
    local: Option<LocalNetwork>,
    #[cfg(all(feature = "containers", target_os = "linux"))]
    containers: Option<crate::containers::Containers>,
    services: ServiceOptions,
    configure_node: Option<NodeFn>,
    default_class: bool,
    ingress: Option<IngressAddresses>,
    gateway: Option<BTreeMap<u16, SocketAddr>>,
}

/// Why a cluster could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The API server can't be made.
    #[error(transparent)]
    Api(#[from] kapi::BuildError),
    /// The certificate authority can't be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The objects of a fresh cluster can't be created.
    #[error("the objects of a fresh cluster can't be created")]
    Bootstrap(#[source] kapi::error::ApiError),
    /// The default StorageClass can't be made.
    #[error("the default storage class can't be made")]
    StorageClass(#[source] kube::Error),
    /// The default IngressClass can't be made.
    #[error("the default ingress class can't be made")]
    IngressClass(#[source] kube::Error),
    /// Ingresses can't be served there.
    #[error("ingresses can't be served")]
    Ingress(#[source] io::Error),
    /// The service proxy can't work here.
    #[error("the service proxy {mode} can't be used")]
    Proxy {
        /// Which one.
        mode: ProxyMode,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The service proxy's health can't be served there.
    #[error("the health of the service proxy can't be served")]
    ProxyHealth(#[source] io::Error),
    /// NetworkPolicies can't be enforced here.
    #[error("network policies can't be enforced")]
    Policies(#[source] io::Error),
    /// Gateways can't be served there.
    #[error("gateways can't be served")]
    Gateway(#[source] io::Error),
    /// The kinds of the Gateway API, or the class, can't be made.
    #[error("the kinds of the Gateway API can't be made")]
    GatewayKinds(#[source] kube::Error),
    /// A part of the cluster can't be given the rights that it needs.
    #[error("the rights of a part of the cluster can't be written")]
    Rights(#[source] kube::Error),
    /// The scheduler's profiles make no sense together.
    #[error(transparent)]
    Scheduler(#[from] ksched::BuildError),
    /// A controller that is to be left out is not there.
    #[error("there is no controller {name:?}; there are {names}")]
    UnknownController {
        /// The name that was given.
        name: String,
        /// The names that there are.
        names: String,
    },
    /// The runtime can't be used.
    #[error("the runtime can't be used")]
    Runtime(#[source] io::Error),
    /// More nodes than [`NODES_MAX`].
    #[error("{asked} nodes are asked for, {NODES_MAX} are allowed")]
    TooManyNodes {
        /// How many were asked for.
        asked: usize,
    },
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ClusterBuilder {
    /// A builder with all defaults.
    pub fn new() -> Self {
        Self {
            store: None,
            clock: None,
            api: Vec::new(),
            certificates: Vec::new(),
            controllers: true,
            without: Vec::new(),
            reconcilers: Vec::new(),
            settings: Vec::new(),
            profiles: Vec::new(),
            extenders: Vec::new(),
            schedules: true,
            nodes: defaults::NODES,
            node_prefix: defaults::NODE_PREFIX.to_owned(),
            kubelet_authority: KubeletAuthority::default(),
            runtime: None,
            local: None,
            #[cfg(all(feature = "containers", target_os = "linux"))]
            containers: None,
            services: ServiceOptions::default(),
            configure_node: None,
            default_class: false,
            ingress: None,
            gateway: None,
        }
    }

    /// Keeps the cluster's objects here.
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Takes the time from here.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Changes the API server before it is built: admission steps, authenticators, authorizers, further kinds.
    pub fn api(mut self, change: impl FnOnce(ApiServerBuilder) -> ApiServerBuilder + Send + 'static) -> Self {
        self.api.push(Box::new(change));
        self
    }

    /// Adds a step to the end of the admission chain.
    pub fn admission(self, step: Arc<dyn kapi::admission::Admission>) -> Self {
        self.api(move |api| api.admission(step))
    }

    /// Shows this certificate to callers of [`Cluster::serve`] that ask for one of the names that it is for (SNI, RFC 6066), such
    /// as one of an authority that they know. Of several the first that fits; who asks for no such name sees the cluster's own.
    pub fn certificate(mut self, credentials: Credentials) -> Self {
        self.certificates.push(Named { names: Vec::new(), credentials });
        self
    }

    /// Tells of the requests that the policy picks to this sink: a file, a webhook, one of the embedder's own.
    pub fn audit(self, policy: kapi::audit::AuditPolicy, sink: Arc<dyn kapi::audit::AuditSink>) -> Self {
        self.api(move |api| api.audit(policy, sink))
    }

    /// Starts none of the built-in controllers.
    pub fn without_controllers(mut self) -> Self {
        self.controllers = false;
        self
    }

    /// Leaves out one of the built-in controllers by name, to replace it or do
    /// without.
    pub fn without(mut self, name: impl Into<String>) -> Self {
        self.without.push(name.into());
        self
    }

    /// Starts further controllers beside the built-in ones.
    pub fn reconcilers(
        mut self,
        make: impl FnOnce(&controllers::Context) -> Vec<Arc<dyn Runnable>> + Send + 'static,
    ) -> Self {
        self.reconcilers.push(Box::new(make));
        self
    }

    /// Changes the settings of the built-in controllers.
    pub fn settings(mut self, change: impl FnOnce(&mut controllers::Settings) + Send + 'static) -> Self {
        self.settings.push(Box::new(change));
        self
    }

    /// Schedules with this profile instead of the default one; called again, with several, one for each `schedulerName`.
    pub fn scheduler(mut self, profile: Profile) -> Self {
        self.profiles.push(profile);
        self
    }

    /// Gives a program beside the scheduler a say in its decisions, for pods of all profiles.
    pub fn extender(mut self, extender: Arc<dyn ksched::Extender>) -> Self {
        self.extenders.push(extender);
        self
    }

    /// Starts no scheduler: pods stay pending until somebody binds them.
    pub fn without_scheduler(mut self) -> Self {
        self.schedules = false;
        self
    }

    /// How many nodes the cluster starts with.
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// What runs the containers of all nodes.
    pub fn runtime(mut self, runtime: Arc<dyn ContainerRuntime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Runs containers as processes of this user, in the nodes of this cluster, without root: every pod has its own loopback
    /// address, and so has every service.
    ///
    /// # Errors
    /// When no block of loopback addresses is free or no directory can be made.
    pub fn processes(mut self) -> io::Result<Self> {
        self.local = Some(LocalNetwork::claim()?);
        Ok(self)
    }

    /// Runs containers for real, by an OCI runtime or a CRI server, in the nodes of this cluster: pods have addresses of their own and
    /// reach each other, services, the cluster's DNS and, once it is served, its API. Linux, as root.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use kplane::{Cluster, Containers};
    /// let cluster = Cluster::builder().containers(Containers::oci("/var/lib/kplane")).start().await?;
    /// # cluster.shutdown().await?;
    /// # Ok(()) }
    /// ```
    #[cfg(all(feature = "containers", target_os = "linux"))]
    pub fn containers(mut self, containers: crate::containers::Containers) -> Self {
        self.containers = Some(containers);
        self
    }

    /// Makes a StorageClass [`standard`](defaults::STORAGE_CLASS) that is the default: claims get directories of this
    /// machine, from [`LocalProvisioner`](controllers::LocalProvisioner). With processes they go with the cluster, unless
    /// [`Settings::local_volumes`](controllers::Settings::local_volumes) says where to keep them.
    pub fn default_storage_class(mut self) -> Self {
        self.default_class = true;
        self
    }

    /// Changes each node before it is registered: labels, taints, capacity.
    pub fn configure_node(mut self, change: impl Fn(&mut NodeConfig) + Send + 'static) -> Self {
        self.configure_node = Some(Box::new(change));
        self
    }

    /// Starts the cluster. When this returns, requests are answered; controllers and nodes go on to start.
    ///
    /// # Errors
    /// When the store can't be used, or something that every cluster has can't be made.
    pub async fn start(self) -> Result<Cluster, StartError> {
        if self.nodes > NODES_MAX {
            return Err(StartError::TooManyNodes { asked: self.nodes });
        }
        let mut startup = Startup::new();
        let clock = self.clock.unwrap_or_else(|| Arc::new(TokioClock::new()));
        let tasks = Tasks::default();
        let ca = Arc::new(Ca::new(Arc::clone(&clock))?);
        startup.done("certificate authority");
        #[cfg(all(feature = "containers", target_os = "linux"))]
        let containers = match self.containers {
            Some(containers) => Some(containers.open(&clock).await.map_err(StartError::Runtime)?),
            None => None,
        };
        let kubelet_authority = self.kubelet_authority.serving(&ca);
        let dialer = Arc::new(Nodes::new(tasks.clone(), Arc::clone(&ca), kubelet_authority));
        let mut api = ApiServer::builder().clock(Arc::clone(&clock)).nodes(Arc::clone(&dialer) as _);
        let (usage, remote_usage) = NodesUsage::new();
        let usage = Arc::new(usage);
        api = api.usage(Arc::clone(&usage) as _);
        if let Some(store) = self.store {
            api = api.store(store);
        }
        // The API is served on this machine, and so are the pods of the process runtime.
        let addresses = self.local.as_ref().map(LocalNetwork::service_addresses);
        api = api.service_addresses(
            addresses.unwrap_or_else(|| ServiceAddresses { loopback: true, ..ServiceAddresses::default() }),
        );
        for change in self.api {
            api = change(api);
        }
        let server = api.build()?;
        server.bootstrap().await.map_err(StartError::Bootstrap)?;
        startup.done("API server");
        let component = |name: &str| identities::client(&server, name);
        let client = Client::new(server.as_user(identities::admin()), "default");
        identities::admit_kubelet_client(&client).await.map_err(StartError::Rights)?;
        if self.default_class {
            defaults::make_storage_class(&client).await.map_err(StartError::StorageClass)?;
            startup.done("storage class");
        }
        let informers = Informers::new(client.clone());
        let mut manager = Manager::new();
        if self.controllers || !self.reconcilers.is_empty() {
            identities::admit_controllers(&client).await.map_err(StartError::Rights)?;
            let root_ca: Arc<str> = ca.certificate_pem().into();
            let mut settings = controllers::Settings::default();
            settings.root_ca = Some(root_ca);
            settings.signer = Some(Arc::clone(&ca) as _);
            settings.local_volumes = Some(defaults::local_volumes(self.local.as_ref()));
            settings.cloud = self.local.as_ref().map(|local| Arc::new(local.cloud()) as _);
            for change in self.settings {
                change(&mut settings);
            }
            let context = |client| {
                let context = controllers::Context::new(client, Arc::clone(&clock));
                context.settings(|default| default.clone_from(&settings))
            };
            let own = self.reconcilers;
            let reconcilers = (!own.is_empty()).then(|| context(identities::reconcilers(&server)));
            let context = context(component(identities::CONTROLLER_MANAGER));
            let context = context.identities(identities::controllers(&server));
            let builtin = if self.controllers { controllers::defaults(&context) } else { Vec::new() };
            check_names(&self.without, &builtin)?;
            let builtin = builtin
                .into_iter()
                .filter(|runnable| !self.without.iter().any(|name| name == runnable.name()));
            let own = reconcilers
                .iter()
                .zip(std::iter::once(own))
                .flat_map(|(context, own)| own.into_iter().flat_map(move |make| make(context)));
            let own = own.collect::<Vec<_>>();
            for runnable in builtin.chain(own) {
                manager = manager.add(Start::Leading, runnable);
            }
            manager = manager.informers(context.informers());
            if let Some(context) = &reconcilers {
                manager = manager.informers(context.informers());
            }
            startup.done("controllers");
        }
        let scheduler_metrics = ksched::Metrics::default();
        if self.schedules {
            let client = if self.profiles.is_empty() {
                component(identities::SCHEDULER)
            } else {
                identities::own_scheduler(&server)
            };
            let scheduler_informers = Informers::new(client.clone());
            let mut scheduler =
                Scheduler::builder(client).clock(Arc::clone(&clock)).informers(&scheduler_informers);
            for profile in self.profiles {
                scheduler = scheduler.profile(profile);
            }
            for extender in self.extenders {
                scheduler = scheduler.extender(extender);
            }
            let scheduler = scheduler.metrics(scheduler_metrics.clone());
            manager = manager.add(Start::Leading, scheduler.build()?).informers(&scheduler_informers);
            startup.done("scheduler");
        }
        let mut nodes = None;
        let mut notes = Vec::new();
        let mut served = Vec::new();
        // Policies are enforced where pods' packets come by: those of real containers and of runtimes that are not known here.
        let mut are_forwarded = self.runtime.is_some();
        #[cfg(all(feature = "containers", target_os = "linux"))]
        {
            are_forwarded |= containers.is_some();
        }
        if self.nodes > 0 {
            #[cfg(all(feature = "containers", target_os = "linux"))]
            let real = containers.as_ref().map(|opened| Arc::clone(&opened.runtime));
            #[cfg(not(all(feature = "containers", target_os = "linux")))]
            let real = None;
            let runtime = match (self.runtime.or(real), &self.local) {
                (Some(runtime), _) => runtime,
                (None, Some(local)) => Arc::new(local.runtime(&clock).map_err(StartError::Runtime)?),
                (None, None) => defaults::runtime(&clock),
            };
            notes = runtime.info().limitations;
            let state_dir = self.local.as_ref().map(LocalNetwork::state_dir);
            let mut configs = Vec::with_capacity(self.nodes);
            for number in 1..=self.nodes {
                let mut config =
                    NodeConfig::new(format!("{}{number}", self.node_prefix), Arc::clone(&runtime));
                config.state_dir = state_dir.as_ref().map(|dir| dir.join(&*config.name));
                if let Some(local) = &self.local {
                    config.addresses = vec![local.node_address(number)];
                    config.cluster_dns = vec![local.dns_address()];
                }
                #[cfg(all(feature = "containers", target_os = "linux"))]
                if let Some(opened) = &containers {
                    config.state_dir = Some(opened.state_dir().join(&*config.name));
                    config.addresses = vec![opened.address];
                    config.cluster_dns = vec![opened.address];
                }
                if let Some(change) = &self.configure_node {
                    change(&mut config);
                }
                served.push(ServedNode {
                    name: config.name.to_string(),
                    address: config.addresses.first().copied(),
                });
                configs.push(config);
            }
            identities::admit_nodes(&client).await.map_err(StartError::Rights)?;
            let node_informers = Informers::new(component(identities::NODES));
            let agent = Arc::new(NodeAgent::new(&node_informers, Arc::clone(&clock), configs));
            manager = manager.add(Start::Always, Arc::clone(&agent)).informers(&node_informers);
            dialer.set(&agent);
            usage.set(&agent);
            nodes = Some(agent);
            startup.done("nodes");
        }
        let as_dialer = Arc::clone(&dialer) as Arc<dyn kapi::node::NodeDialer>;
        tasks.spawn(remote_usage.run(client.clone(), as_dialer, nodes.clone()));
        let mut ground = self.local.as_ref().map_or_else(Ground::default, LocalNetwork::ground);
        let mut mode = if self.local.is_some() { ProxyMode::Userspace } else { ProxyMode::Disabled };
        #[cfg(all(feature = "containers", target_os = "linux"))]
        if let Some(opened) = &containers {
            (ground, mode) = (opened.ground.clone(), ProxyMode::Nftables);
        }
        let options = self.services;
        let mut services = Services::open(&options, &ground, self.local.as_ref(), &served, mode).await?;
        let proxy_informers = Informers::new(component(identities::PROXY));
        if let Some((proxy, ports)) = services.agents(&options, &proxy_informers, &clock, &served).await? {
            manager = manager.add(Start::Always, proxy).add(Start::Always, ports).informers(&proxy_informers);
            startup.done("service proxy");
        }
        if let Some(existing) = options.policies {
            if !are_forwarded {
                let why = "pods that are processes, or simulated, have no network of their own";
                return Err(StartError::Policies(io::Error::other(why)));
            }
            identities::admit_policies(&client).await.map_err(StartError::Rights)?;
            let policy_informers = Informers::new(component(identities::POLICIES));
            let agent = services.policies(existing, &ground, &policy_informers).await?;
            manager = manager.add(Start::Always, agent).informers(&policy_informers);
            #[cfg(all(feature = "containers", target_os = "linux"))]
            notes.extend(containers.as_ref().and_then(crate::containers::Opened::policy_limitation));
            startup.done("network policies");
        }
        let mut dns = None;
        if let Some(local) = &self.local {
            identities::admit_dns(&client).await.map_err(StartError::Rights)?;
            let dns_informers = Informers::new(component(identities::DNS));
            match local.dns(&dns_informers).await {
                Ok(server) => dns = Some((server, dns_informers)),
                Err(error) => notes.push(format!("there is no cluster DNS: {error}")),
            }
            startup.done("DNS");
        }
        #[cfg(all(feature = "containers", target_os = "linux"))]
        if let Some(opened) = &containers {
            identities::admit_dns(&client).await.map_err(StartError::Rights)?;
            let dns_informers = Informers::new(component(identities::DNS));
            match opened.dns(&dns_informers).await {
                Ok(server) => dns = Some((server, dns_informers)),
                Err(error) => notes.push(format!("there is no cluster DNS: {error}")),
            }
            startup.done("DNS");
        }
        let mut ingress = None;
        if let Some(wanted) = self.ingress {
            identities::admit_ingress(&client).await.map_err(StartError::Rights)?;
            make_class(&client).await.map_err(StartError::IngressClass)?;
            let redirects = self.local.as_ref().map(|local| local.redirects.clone()).unwrap_or_default();
            let opened = OpenedIngress::open(wanted, &server, &ca, redirects).await?;
            manager = manager.add(Start::Always, opened.agent(&clock)).informers(&opened.informers);
            ingress = Some(opened);
            startup.done("ingress controller");
        }
        let mut gateway = None;
        if let Some(wanted) = self.gateway {
            identities::admit_gateway(&client).await.map_err(StartError::Rights)?;
            gateway::make_kinds(&client).await.map_err(StartError::GatewayKinds)?;
            let redirects = self.local.as_ref().map(|local| local.redirects.clone()).unwrap_or_default();
            let opened = OpenedGateway::open(&wanted, &server, &ca, redirects).await?;
            manager = manager.add(Start::Always, opened.agent(&clock)).informers(&opened.informers);
            gateway = Some(opened);
            startup.done("gateway controller");
        }
        let running = Some(manager.start());
        Ok(Cluster {
            scheduler_metrics,
            server,
            clock,
            client,
            informers,
            ca,
            certificates: self.certificates.into(),
            tasks,
            running,
            nodes,
            _dns: dns,
            services,
            ingress,
            gateway,
            node_addresses: served.iter().filter_map(|node| node.address).collect(),
            serving: std::sync::Mutex::default(),
            notes,
            startup: startup.steps,
            #[cfg(all(feature = "containers", target_os = "linux"))]
            containers,
            _local: self.local,
        })
    }
}

/// Every name to leave out is that of a controller.
fn check_names(without: &[String], builtin: &[Arc<dyn Runnable>]) -> Result<(), StartError> {
    let names: Vec<&str> = builtin.iter().map(|runnable| runnable.name()).collect();
    match without.iter().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(StartError::UnknownController { name: name.clone(), names: names.join(", ") }),
        None => Ok(()),
    }
}

/// Takes the time of each step of a start.
struct Startup {
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Startup {
    fn new() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.steps.push((step, now - self.last));
        self.last = now;
    }
}
