//! Every default of a cluster, in one place.
//!
//! | part | default | replaced by |
//! |---|---|---|
//! | store | `kstore::MemoryStore` | [`ClusterBuilder::store`](crate::ClusterBuilder::store) |
//! | clock | `kcore::TokioClock` | [`ClusterBuilder::clock`](crate::ClusterBuilder::clock) |
//! | admission, authentication, authorization | `kapi`'s | [`ClusterBuilder::api`](crate::ClusterBuilder::api) |
//! | controllers | all of `kreconcile::controllers::defaults` | [`ClusterBuilder::without`](crate::ClusterBuilder::without), [`ClusterBuilder::reconcilers`](crate::ClusterBuilder::reconcilers) |
//! | scheduler | one default profile of `ksched` | [`ClusterBuilder::scheduler`](crate::ClusterBuilder::scheduler), [`ClusterBuilder::without_scheduler`](crate::ClusterBuilder::without_scheduler) |
//! | nodes | one, `node-1` | [`ClusterBuilder::nodes`](crate::ClusterBuilder::nodes) |
//! | runtime | simulated | [`ClusterBuilder::runtime`](crate::ClusterBuilder::runtime), [`ClusterBuilder::processes`](crate::ClusterBuilder::processes), [`ClusterBuilder::containers`](crate::ClusterBuilder) |
//! | storage class | none | [`ClusterBuilder::default_storage_class`](crate::ClusterBuilder::default_storage_class) |
//! | ingress controller | none | [`ClusterBuilder::ingress`](crate::ClusterBuilder::ingress) |
//! | gateways | none | [`ClusterBuilder::gateway`](crate::ClusterBuilder::gateway) |
//! | service proxy | none; userspace with processes; nftables with real containers | [`ClusterBuilder::service_proxy`](crate::ClusterBuilder::service_proxy), [`ClusterBuilder::proxy`](crate::ClusterBuilder::proxy) |
//! | the proxy's health | not served | [`ClusterBuilder::proxy_health`](crate::ClusterBuilder::proxy_health) |
//! | NetworkPolicies | not enforced | [`ClusterBuilder::network_policies`](crate::ClusterBuilder::network_policies) |
//! | pod network | none; a bridge with an OCI runtime; the server's with a CRI server | [`Containers::cni`](crate::Containers) |

use std::{path::PathBuf, sync::Arc};

use k8s_openapi::api::storage::v1::StorageClass;
use kcore::Clock;
use kreconcile::controllers::LOCAL_PROVISIONER;
use kruntime::{ContainerRuntime, runtime::simulated::SimulatedRuntime};
use kube::{Api, Client, api::PostParams};

use crate::network::LocalNetwork;

/// How many nodes a cluster has.
pub const NODES: usize = 1;
/// What nodes are called, before their number.
pub const NODE_PREFIX: &str = "node-";
/// The name of the default StorageClass, if there is to be one.
pub const STORAGE_CLASS: &str = "standard";

/// The name of the default IngressClass, if Ingresses are served.
pub const INGRESS_CLASS: &str = "kplane";

/// The name of the GatewayClass, if Gateways are served.
pub const GATEWAY_CLASS: &str = "kplane";

/// What runs containers: nothing really runs, so a cluster in a test needs nothing of its machine.
#[must_use]
pub fn runtime(clock: &Arc<dyn Clock>) -> Arc<dyn ContainerRuntime> {
    Arc::new(SimulatedRuntime::new(Arc::clone(clock)))
}

/// Where volumes are made: with processes, in the directory that goes with the cluster. Elsewhere nothing is made before a
/// real container uses a volume.
pub(crate) fn local_volumes(local: Option<&LocalNetwork>) -> PathBuf {
    let dir = local.map_or_else(std::env::temp_dir, LocalNetwork::state_dir);
    dir.join("kplane-volumes")
}

/// Makes the default StorageClass, unless a class of its name is there already.
pub(crate) async fn make_storage_class(client: &Client) -> Result<(), kube::Error> {
    let mut class = StorageClass { provisioner: LOCAL_PROVISIONER.to_owned(), ..StorageClass::default() };
    class.metadata.name = Some(STORAGE_CLASS.to_owned());
    let default = ("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned());
    class.metadata.annotations = Some([default].into());
    class.reclaim_policy = Some("Delete".to_owned());
    class.volume_binding_mode = Some("Immediate".to_owned());
    class.allow_volume_expansion = Some(true);
    match Api::all(client.clone()).create(&PostParams::default(), &class).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}
