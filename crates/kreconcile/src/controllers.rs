//! The controllers of kube-controller-manager. See [`defaults`] for the table.
//!
//! Each is a function from a [`Context`] to something that runs, so any of them can be left out or replaced. What a
//! controller decides is a pure function in its file; the loop around it does the requests. Names, reasons, messages and
//! conditions are those of Kubernetes 1.37.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use kcore::Clock;
use kube::Client;

use crate::cloud::{self, CloudProvider};
use crate::{events::EventRecorder, informer::Informers, manager::Runnable, request::Requests};

mod attach_detach;
mod attributes_class_protection;
mod autoscaler;
mod backends;
mod bootstrap_signer;
mod claim;
mod cluster_role_aggregation;
mod cron_job;
mod csr_approving;
mod csr_cleaner;
mod csr_signing;
mod daemon_set;
mod deployment;
mod disruption;
mod doubts;
mod endpoint_slice;
mod endpoint_slice_mirroring;
mod endpoints;
mod ephemeral_volume;
mod garbage_collector;
mod ip_address_repair;
mod job;
mod legacy_tokens;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod percent;
mod pod_gc;
mod pod_group_protection;
mod pod_state;
mod pod_writes;
mod protection;
mod provisioner;
mod replica_set;
mod replication_controller;
mod resource_claim;
mod resource_quota;
mod revisions;
mod service_account;
mod service_cidr;
mod stateful_set;
mod storage_version_migrator;
mod taint_eviction;
mod together;
mod token_cleaner;
mod volume_binder;

pub use attach_detach::{UNMOUNT_WAIT_MAX, attach_detach};
pub use attributes_class_protection::attributes_class_protection;
pub use autoscaler::{
    AUTOSCALER_PERIOD, MetricQuery, MetricValues, MetricsError, MetricsSource, PodMetric, autoscaler,
};
pub use bootstrap_signer::bootstrap_signer;
pub use cluster_role_aggregation::cluster_role_aggregation;
pub use cron_job::cron_job;
pub use csr_approving::csr_approving;
pub use csr_cleaner::{ANSWERED_REQUEST_AGE_MAX, WAITING_REQUEST_AGE_MAX, csr_cleaner};
pub use csr_signing::{
    CERTIFICATE_AGE_MAX, CERTIFICATE_AGE_MIN, CertificateSigner, SignError, SigningRequest, csr_signing,
};
pub use daemon_set::{FAILED_DAEMON_BACKOFF_MAX, FAILED_DAEMON_BACKOFF_MIN, daemon_set};
pub use deployment::deployment;
pub use disruption::{DISRUPTED_POD_DEADLINE, STALE_DISRUPTION_AGE, disruption};
pub use endpoint_slice::{ENDPOINTS_PER_SLICE_MAX, endpoint_slice};
pub use endpoint_slice_mirroring::{MIRRORED_ADDRESSES_MAX, endpoint_slice_mirroring};
pub use endpoints::{ADDRESSES_MAX, endpoints};
pub use ephemeral_volume::ephemeral_volume;
pub use garbage_collector::{
    ABSENT_OWNERS_MAX, CONCURRENT_GC_MAX, DISCOVERY_PERIOD, GarbageCollector, garbage_collector,
};
pub use ip_address_repair::ip_address_repair;
pub use job::{
    POD_FAILURE_BACKOFF_MAX, POD_FAILURE_BACKOFF_MIN, PODS_PER_LOOK_MAX, UNCOUNTED_PODS_MAX, job,
    ttl_after_finished,
};
pub use legacy_tokens::{LEGACY_TOKEN_AGE_MAX, LEGACY_TOKENS_PERIOD, legacy_tokens};
pub use namespace::{CONCURRENT_NAMESPACES_MAX, namespace};
pub use node_ipam::{NODE_RANGES_MAX, node_ipam};
pub use node_lifecycle::{
    EVICTION_BURST_MAX, EVICTIONS_PER_SECOND_DISRUPTED_MAX, EVICTIONS_PER_SECOND_MAX, LARGE_CLUSTER_NODES,
    UNHEALTHY_ZONE_SHARE, node_lifecycle,
};
pub use pod_gc::{MISSING_NODE_GRACE, POD_GC_PERIOD, pod_gc};
pub use pod_group_protection::pod_group_protection;
pub use protection::{claim_protection, volume_protection};
pub use provisioner::{
    Expanded, LOCAL_PROVISIONER, LocalProvisioner, ProvisionError, ProvisionRequest, Provisioner, provisioner,
};
pub use replica_set::{BURST_REPLICAS_MAX, replica_set};
pub use replication_controller::replication_controller;
pub use resource_claim::resource_claim;
pub use resource_quota::{COUNTED_KINDS_MAX, QUOTA_RESYNC_PERIOD, resource_quota};
pub use service_account::{DEFAULT_SERVICE_ACCOUNT, ROOT_CA_CONFIG_MAP, root_ca, service_account};
pub use service_cidr::{SERVICE_CIDR_GRACE, service_cidr};
pub use stateful_set::stateful_set;
pub use storage_version_migrator::storage_version_migrator;
pub use taint_eviction::taint_eviction;
pub use token_cleaner::token_cleaner;
pub use volume_binder::volume_binder;

/// Gives the client of the controller with this name.
pub type IdentityFn = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// What the built-in controllers share: informers, time, events and settings.
#[derive(Clone)]
pub struct Context {
    informers: Informers,
    clock: Arc<dyn Clock>,
    recorder: EventRecorder,
    identities: Option<IdentityFn>,
    settings: Settings,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What can be set, with upstream's defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The bundle in PEM that goes into each namespace's ConfigMap `kube-root-ca.crt`. Default: none, and no ConfigMap.
    pub root_ca: Option<Arc<str>>,
    /// How long a node may be silent before it counts as lost (`--node-monitor-grace-period`). Default: 50 s.
    pub node_monitor_grace: Duration,
    /// How long a node that has just appeared may be silent (`--node-startup-grace-period`). Default: 60 s.
    pub node_startup_grace: Duration,
    /// How often nodes are looked at (`--node-monitor-period`). Default: 5 s.
    pub node_monitor_period: Duration,
    /// Whether a volume leaves a node that is not ready after [`UNMOUNT_WAIT_MAX`], though the node says that it uses it
    /// (`--disable-force-detach-on-timeout=false`). Default: yes.
    pub force_detach: bool,
    /// How many ended pods are kept in the cluster (`--terminated-pod-gc-threshold`); 0 keeps all. Default: 12,500.
    pub terminated_pods_max: usize,
    /// How long the token of a Secret that was made for an account by itself must not have been used before it is marked, and how long it
    /// stays marked before it goes (`--legacy-service-account-token-clean-up-period`). Default: [`LEGACY_TOKEN_AGE_MAX`].
    pub legacy_token_age: Duration,
    /// Where [`LocalProvisioner`] makes volumes. Default: nowhere, and there is none.
    pub local_volumes: Option<PathBuf>,
    /// Who signs certificates. Default: nobody, and certificate requests are only approved.
    pub signer: Option<Arc<dyn CertificateSigner>>,
    /// What the cluster has of the place that it runs in. Default: nothing, and no controllers for it.
    pub cloud: Option<Arc<dyn CloudProvider>>,
    /// The ranges of all pods' addresses, such as `10.244.0.0/16` (`--cluster-cidr`), one for each family: each node gets a
    /// part of each. Default: none, and nodes' addresses are somebody else's matter.
    pub cluster_ranges: Vec<String>,
    /// How many bits the addresses of a node's pods have in common with IPv4 (`--node-cidr-mask-size-ipv4`). Default: 24.
    pub node_prefix_ipv4: u8,
    /// The same with IPv6 (`--node-cidr-mask-size-ipv6`). Default: 64.
    pub node_prefix_ipv6: u8,
    /// The ranges of services' addresses (`--service-cluster-ip-range`), which no node gets. Default: none.
    pub service_ranges: Vec<String>,
    /// How long after their start whoever led before may still be at work, as the time after which that one's lease has ended and its last
    /// request is over. Until then a Deployment gets no pods beside those of its other sets, because two that add some at once
    /// go beyond the surge, and nothing in the API keeps them from it. Default: nobody else is at work.
    pub predecessor_grace: Duration,
    /// Where the autoscaler's figures come from. Default: the API server's metrics APIs.
    pub metrics: Option<Arc<dyn MetricsSource>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root_ca: None,
            node_monitor_grace: Duration::from_secs(50),
            node_startup_grace: Duration::from_secs(60),
            node_monitor_period: Duration::from_secs(5),
            force_detach: true,
            terminated_pods_max: 12_500,
            legacy_token_age: LEGACY_TOKEN_AGE_MAX,
            local_volumes: None,
            signer: None,
            cloud: None,
            cluster_ranges: Vec::new(),
            node_prefix_ipv4: 24,
            node_prefix_ipv6: 64,
            service_ranges: Vec::new(),
            predecessor_grace: Duration::ZERO,
            metrics: None,
        }
    }
}

impl Context {
    /// A context whose controllers all use `client`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> Self {
        Self {
            recorder: EventRecorder::new(client.clone(), Arc::clone(&clock), "kube-controller-manager"),
            informers: Informers::new(client),
            clock,
            identities: None,
            settings: Settings::default(),
        }
    }

    /// Each controller writes with an identity of its own, which this function gives by the controller's name. Informers
    /// and events keep the shared one.
    #[must_use]
    pub fn identities(mut self, identities: IdentityFn) -> Self {
        self.identities = Some(identities);
        self
    }

    /// Other settings than the defaults.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// The informers that all controllers share.
    #[must_use]
    pub fn informers(&self) -> &Informers {
        &self.informers
    }

    /// The clock that all controllers go by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// A recorder for the events of a component.
    #[must_use]
    pub fn recorder(&self, component: &str) -> EventRecorder {
        self.recorder.component(component)
    }

    /// [`Settings::node_monitor_period`].
    pub(crate) fn node_monitor_period(&self) -> Duration {
        self.settings.node_monitor_period
    }

    pub(crate) fn requests(&self, controller: &str) -> Requests {
        let client = match &self.identities {
            Some(identities) => identities(controller),
            None => self.informers.client().clone(),
        };
        Requests::new(client)
    }
}

/// Every built-in controller, in the order in which they are started. What is not wanted is left out by its
/// [`name`](Runnable::name), and something else put in its place:
///
/// | name | from |
/// |---|---|
/// | `namespace-controller` | [`namespace`] |
/// | `serviceaccount-controller` | [`service_account`] |
/// | `root-ca-certificate-publisher-controller` | [`root_ca`], if [`Settings::root_ca`] is set |
/// | `deployment-controller` | [`deployment`] |
/// | `replicaset-controller` | [`replica_set`] |
/// | `replicationcontroller-controller` | [`replication_controller`] |
/// | `statefulset-controller` | [`stateful_set`] |
/// | `daemonset-controller` | [`daemon_set`] |
/// | `job-controller` | [`job`] |
/// | `cronjob-controller` | [`cron_job`] |
/// | `ttl-after-finished-controller` | [`ttl_after_finished`] |
/// | `endpointslice-controller` | [`endpoint_slice`] |
/// | `endpointslice-mirroring-controller` | [`endpoint_slice_mirroring`] |
/// | `endpoints-controller` | [`endpoints`] |
/// | `garbage-collector-controller` | [`garbage_collector`] |
/// | `node-ipam-controller` | [`node_ipam`], if [`Settings::cluster_ranges`] is set |
/// | `node-lifecycle-controller` | [`node_lifecycle`] |
/// | `taint-eviction-controller` | [`taint_eviction`] |
/// | `pod-garbage-collector-controller` | [`pod_gc`] |
/// | `disruption-controller` | [`disruption`] |
/// | `horizontal-pod-autoscaler-controller` | [`autoscaler`] |
/// | `resourcequota-controller` | [`resource_quota`] |
/// | `clusterrole-aggregation-controller` | [`cluster_role_aggregation`] |
/// | `persistentvolumeclaim-protection-controller` | [`claim_protection`] |
/// | `persistentvolume-protection-controller` | [`volume_protection`] |
/// | `volumeattributesclass-protection-controller` | [`attributes_class_protection`] |
/// | `podgroup-protection-controller` | [`pod_group_protection`] |
/// | `ephemeral-volume-controller` | [`ephemeral_volume`] |
/// | `persistentvolume-binder-controller` | [`volume_binder`] |
/// | `persistentvolume-attach-detach-controller` | [`attach_detach`] |
/// | `local-volume-provisioner` | [`provisioner`](provisioner()) with [`LocalProvisioner`], if [`Settings::local_volumes`] is set |
/// | `certificatesigningrequest-approving-controller` | [`csr_approving`] |
/// | `certificatesigningrequest-signing-controller` | [`csr_signing`], if [`Settings::signer`] is set |
/// | `resourceclaim-controller` | [`resource_claim`] |
/// | `certificatesigningrequest-cleaner-controller` | [`csr_cleaner`] |
/// | `token-cleaner-controller` | [`token_cleaner`] |
/// | `bootstrap-signer-controller` | [`bootstrap_signer`] |
/// | `legacy-serviceaccount-token-cleaner-controller` | [`legacy_tokens`] |
/// | `service-cidr-controller` | [`service_cidr`] |
/// | `ipallocator-repair-controller` | [`ip_address_repair`] |
/// | `storage-version-migrator-controller` | [`storage_version_migrator`] |
/// | `cloud-node-controller` | [`cloud::cloud_node`], if [`Settings::cloud`] knows machines |
/// | `cloud-node-lifecycle-controller` | [`cloud::cloud_node_lifecycle`], likewise |
/// | `service-lb-controller` | [`cloud::service_lb`], if it has load balancers |
/// | `node-route-controller` | [`cloud::node_route`], if it has routes |
///
/// ```no_run
/// # async fn example(client: kube::Client) {
/// use std::sync::Arc;
/// use kcore::TokioClock;
/// use kreconcile::{Manager, Start, controllers::{self, Context}};
///
/// let context = Context::new(client, Arc::new(TokioClock::new()));
/// let mut manager = Manager::new().informers(context.informers());
/// for controller in controllers::defaults(&context) {
///     if controller.name() != "pod-garbage-collector-controller" {
///         manager = manager.add(Start::Leading, controller);
///     }
/// }
/// let running = manager.start();
/// # running.stop().await;
/// # }
/// ```
#[must_use]
pub fn defaults(context: &Context) -> Vec<Arc<dyn Runnable>> {
    let mut all: Vec<Arc<dyn Runnable>> =
        vec![Arc::new(namespace(context)), Arc::new(service_account(context))];
    if let Some(bundle) = &context.settings.root_ca {
        all.push(Arc::new(root_ca(context, bundle)));
    }
    all.push(Arc::new(deployment(context)));
    all.push(Arc::new(replica_set(context)));
    all.push(Arc::new(replication_controller(context)));
    all.push(Arc::new(stateful_set(context)));
    all.push(Arc::new(daemon_set(context)));
    all.push(Arc::new(job(context)));
    all.push(Arc::new(cron_job(context)));
    all.push(Arc::new(ttl_after_finished(context)));
    all.push(Arc::new(endpoint_slice(context)));
    all.push(Arc::new(endpoint_slice_mirroring(context)));
    all.push(Arc::new(endpoints(context)));
    all.push(Arc::new(garbage_collector(context)));
    if !context.settings.cluster_ranges.is_empty() {
        all.push(Arc::new(node_ipam(context)));
    }
    all.push(Arc::new(node_lifecycle(context)));
    all.push(Arc::new(taint_eviction(context)));
    all.push(Arc::new(pod_gc(context)));
    all.push(Arc::new(disruption(context)));
    all.push(Arc::new(autoscaler(context)));
    all.push(Arc::new(resource_quota(context)));
    all.push(Arc::new(cluster_role_aggregation(context)));
    all.push(Arc::new(claim_protection(context)));
    all.push(Arc::new(volume_protection(context)));
    all.push(Arc::new(attributes_class_protection(context)));
    all.push(Arc::new(pod_group_protection(context)));
    all.push(Arc::new(ephemeral_volume(context)));
    all.push(Arc::new(volume_binder(context)));
    all.push(Arc::new(attach_detach(context)));
    if let Some(dir) = &context.settings.local_volumes {
        let volumes = Arc::new(LocalProvisioner::new(dir));
        all.push(Arc::new(provisioner(context, "local-volume-provisioner", volumes)));
    }
    all.push(Arc::new(csr_approving(context)));
    if let Some(signer) = &context.settings.signer {
        all.push(Arc::new(csr_signing(context, Arc::clone(signer))));
    }
    all.push(Arc::new(resource_claim(context)));
    all.push(Arc::new(csr_cleaner(context)));
    all.push(Arc::new(token_cleaner(context)));
    all.push(Arc::new(bootstrap_signer(context)));
    all.push(Arc::new(legacy_tokens(context)));
    all.push(Arc::new(service_cidr(context)));
    all.push(Arc::new(ip_address_repair(context)));
    all.push(Arc::new(storage_version_migrator(context)));
    if let Some(provider) = &context.settings.cloud {
        if let Some(instances) = provider.instances() {
            all.push(Arc::new(cloud::cloud_node(context, Arc::clone(&instances))));
            all.push(Arc::new(cloud::cloud_node_lifecycle(context, instances)));
        }
        if let Some(balancers) = provider.load_balancers() {
            all.push(Arc::new(cloud::service_lb(context, balancers)));
        }
        if let Some(routes) = provider.routes() {
            all.push(Arc::new(cloud::node_route(context, routes, &context.settings.cluster_ranges)));
        }
    }
    all
}
