//! Which strategy a built-in resource has.

use std::sync::Arc;

use kschema::strategy::{Plain, Strategy};

use crate::{
    batch, misc, namespace, node, pod,
    service::{self, ServiceAddresses},
    workload,
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
        "services" => Arc::new(service::Services::new(Arc::clone(&strategies.addresses))),
        "deployments.apps" => Arc::new(workload::Deployments),
        "replicasets.apps" => Arc::new(workload::ReplicaSets),
        "statefulsets.apps" => Arc::new(workload::StatefulSets),
        "daemonsets.apps" => Arc::new(workload::DaemonSets),
        "replicationcontrollers" => Arc::new(workload::ReplicationControllers),
        "jobs.batch" => Arc::new(batch::Jobs),
        "cronjobs.batch" => Arc::new(batch::CronJobs),
        _ => misc::strategy(qualified).unwrap_or_else(|| Arc::new(Plain)),
    }
}
