//! Which strategy a built-in resource has.

use std::sync::Arc;

use kschema::strategy::{Plain, Strategy};

use crate::{
    batch, config_map, endpoints, event, limit_range, misc, namespace, node, persistent_volume,
    persistent_volume_claim, pod, replication_controller, resource_quota, secret,
    service::{self, ServiceAddresses},
    service_account, workload,
};

/// What the built-in strategies need from outside.
#[derive(Clone, Debug, Default)]
pub struct Strategies {
    /// Which addresses and ports services get.
    pub addresses: Arc<ServiceAddresses>,
}

/// The strategy of a built-in resource.
#[must_use]
pub fn builtin(qualified: &str, strategies: &Strategies) -> Arc<dyn Strategy> {
    match qualified {
        "pods" => Arc::new(pod::Pods),
        "podtemplates" => Arc::new(pod::PodTemplates),
        "nodes" => Arc::new(node::Nodes),
        "namespaces" => Arc::new(namespace::Namespaces),
        "configmaps" => Arc::new(config_map::ConfigMaps),
        "secrets" => Arc::new(secret::Secrets),
        "serviceaccounts" => Arc::new(service_account::ServiceAccounts),
        "endpoints" => Arc::new(endpoints::Endpoints { loopback: strategies.addresses.loopback }),
        "endpointslices.discovery.k8s.io" => {
            Arc::new(endpoints::EndpointSlices { loopback: strategies.addresses.loopback })
        }
        "events" => Arc::new(event::Events { strict: false }),
        "events.events.k8s.io" => Arc::new(event::Events { strict: true }),
        "limitranges" => Arc::new(limit_range::LimitRanges),
        "resourcequotas" => Arc::new(resource_quota::ResourceQuotas),
        "persistentvolumes" => Arc::new(persistent_volume::PersistentVolumes),
        "persistentvolumeclaims" => Arc::new(persistent_volume_claim::PersistentVolumeClaims),
        "services" => Arc::new(service::Services::new(Arc::clone(&strategies.addresses))),
        "deployments.apps" => Arc::new(workload::Deployments),
        "replicasets.apps" => Arc::new(workload::ReplicaSets),
        "statefulsets.apps" => Arc::new(workload::StatefulSets),
        "daemonsets.apps" => Arc::new(workload::DaemonSets),
        "replicationcontrollers" => Arc::new(replication_controller::ReplicationControllers),
        "jobs.batch" => Arc::new(batch::Jobs),
        "cronjobs.batch" => Arc::new(batch::CronJobs),
        _ => misc::strategy(qualified).unwrap_or_else(|| Arc::new(Plain)),
    }
}
