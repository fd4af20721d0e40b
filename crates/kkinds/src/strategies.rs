//! Which strategy a built-in resource has.

use std::sync::Arc;

use kschema::strategy::{Plain, Strategy};

use crate::{
    config_map, cron_job, daemon_set, deployment, endpoints, event, job, limit_range, namespace, node,
    persistent_volume, persistent_volume_claim, pod, replication_controller, resource_quota, secret,
    service::{self, ServiceAddresses},
    service_account, stateful_set,
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
        "deployments.apps" => Arc::new(deployment::Deployments),
        "replicasets.apps" => Arc::new(deployment::ReplicaSets),
        "statefulsets.apps" => Arc::new(stateful_set::StatefulSets),
        "daemonsets.apps" => Arc::new(daemon_set::DaemonSets),
        "controllerrevisions.apps" => Arc::new(stateful_set::ControllerRevisions),
        "replicationcontrollers" => Arc::new(replication_controller::ReplicationControllers),
        "jobs.batch" => Arc::new(job::Jobs),
        "cronjobs.batch" => Arc::new(cron_job::CronJobs),
        _ => Arc::new(Plain),
    }
}
