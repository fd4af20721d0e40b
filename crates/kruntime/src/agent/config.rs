//! What a node is.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Taint, apimachinery::pkg::api::resource::Quantity};

use crate::{
    demand,
    eviction::{EvictionOptions, Signal},
    managers::ResourceManagers,
    node,
    runtime::ContainerRuntime,
};

/// One node that an agent serves.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name.
    pub name: Arc<str>,
    /// What runs its containers. Several nodes may share one.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// The node's addresses; the first is its `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// Labels beyond the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// The taints to register with.
    pub taints: Vec<Taint>,
    /// What the node has.
    pub capacity: BTreeMap<String, Quantity>,
    /// What of that is kept for the system: pods get the rest (upstream's `systemReserved` and `kubeReserved` together). Nothing by default.
    pub reserved: BTreeMap<String, Quantity>,
    /// Who has processors alone, and whose memory is near to them; see [`managers`](crate::managers). `None`, the default: nobody. Needs a runtime
    /// that can bind containers to processors.
    pub managers: Option<Arc<ResourceManagers>>,
    /// The kubelet version to report.
    pub kubelet_version: String,
    /// The port that the node's API is said to be on.
    pub kubelet_port: i32,
    /// Where volumes are made: a directory of the agent's own, needed by runtimes that materialise pods.
    pub state_dir: Option<PathBuf>,
    /// The addresses of the cluster's DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// Whether events are written for the node and its pods.
    pub events: bool,
    /// What is done when the node is short of something. `None`, the default, means nothing: the node has no pressure, whatever the machine
    /// that it is on is short of, so that no simulated node and no developer's full disk ends anybody's pods by surprise.
    pub eviction: Option<EvictionOptions>,
    /// A file, or a directory of files, each with a pod that the node runs by itself (upstream's `staticPodPath`); see
    /// [`static_pods`](crate::static_pods). None by default.
    pub static_pods: Option<PathBuf>,
    /// How long the node's Lease holds, whole seconds; it is renewed when a quarter of that has passed, but not more than once in a second
    /// (upstream's `nodeLeaseDurationSeconds`). Whoever makes it longer gives the node lifecycle controller more patience, too.
    /// [`LEASE_DEFAULT`](crate::node::LEASE_DEFAULT) by default.
    pub lease: Duration,
    /// How often a status that has not changed is written, not more than once in a second (upstream's
    /// `nodeStatusReportFrequency`). [`STATUS_EVERY_DEFAULT`](crate::node::STATUS_EVERY_DEFAULT) by default.
    pub status_every: Duration,
    /// Whether nobody else has pods in the runtime: those that it has from before and the API no longer knows, as they were deleted while
    /// no agent was there, are then removed. No by default.
    pub owns_runtime: bool,
    /// Whether plug-ins may register with the node, as CSI drivers do, by sockets in `plugins_registry` below `state_dir`: see
    /// the module `plugins`. Needs the feature `plugins`, Linux, a `state_dir` that no other node has, and a runtime that
    /// materialises pods. No by default.
    pub plugins: bool,
}

impl NodeConfig {
    /// A node with 4 CPUs, 16 GiB of memory and room for 110 pods at 127.0.0.1, which writes events if its runtime
    /// really runs something. Change the fields to taste.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, runtime: Arc<dyn ContainerRuntime>) -> Self {
        let capacity = [("cpu", "4"), ("memory", "16Gi"), ("ephemeral-storage", "100Gi"), ("pods", "110")];
        let events = runtime.info().materialises;
        Self {
            name: name.into(),
            runtime,
            addresses: vec![IpAddr::from([127, 0, 0, 1])],
            labels: BTreeMap::new(),
            taints: Vec::new(),
            capacity: capacity.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into(),
            reserved: BTreeMap::new(),
            managers: None,
            kubelet_version: "v1.37.0".to_owned(),
            kubelet_port: 10250,
            state_dir: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            events,
            eviction: None,
            static_pods: None,
            lease: node::LEASE_DEFAULT,
            status_every: node::STATUS_EVERY_DEFAULT,
            owns_runtime: false,
            plugins: false,
        }
    }

    /// What pods don't get of the node: what is reserved, and what is to be left by the hard thresholds of `eviction` for memory and the nodes'
    /// disk (upstream's `GetNodeAllocatableReservation`).
    #[must_use]
    pub fn reservation(&self) -> BTreeMap<String, Quantity> {
        let mut all = self.reserved.clone();
        for threshold in self.eviction.iter().flat_map(|eviction| &eviction.thresholds) {
            let name = match threshold.signal {
                Signal::Memory => "memory",
                Signal::NodeFs => "ephemeral-storage",
                _ => continue,
            };
            let capacity = demand::amount(Some(&self.capacity), name).and_then(|all| u64::try_from(all).ok());
            let Some(capacity) = capacity.filter(|_| threshold.grace.is_zero()) else { continue };
            let reserved = demand::amount(Some(&self.reserved), name).unwrap_or(0);
            let left = i64::try_from(threshold.below.of(capacity)).unwrap_or(i64::MAX);
            all.insert(name.to_owned(), Quantity(reserved.saturating_add(left).to_string()));
        }
        all
    }

    /// What pods may have of the node: what it has without its [`reservation`](Self::reservation), as upstream's `status.allocatable`.
    #[must_use]
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let (mut left, reservation) = (self.capacity.clone(), self.reservation());
        for (name, quantity) in &mut left {
            let amount = |list| demand::amount(Some(list), name);
            if let (Some(reserved), Some(all)) = (amount(&reservation), amount(&self.capacity)) {
                let rest = all.saturating_sub(reserved).max(0);
                *quantity = Quantity(if name == "cpu" { format!("{rest}m") } else { rest.to_string() });
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::{Amount, Threshold};
    use crate::runtime::simulated::SimulatedRuntime;

    #[test]
    fn what_is_reserved_is_not_for_pods() {
        let runtime = Arc::new(SimulatedRuntime::new(Arc::new(kcore::SystemClock)));
        let mut config = NodeConfig::new("node", runtime);
        assert_eq!(config.allocatable(), config.capacity);
        let reserved = [("cpu", "500m"), ("memory", "1Gi"), ("pods", "200"), ("other", "1")];
        config.reserved = reserved.map(|(name, text)| (name.to_owned(), Quantity(text.to_owned()))).into();
        let left = config.allocatable();
        let expected =
            [("cpu", "3500m"), ("ephemeral-storage", "100Gi"), ("memory", "16106127360"), ("pods", "0")];
        assert_eq!(left, expected.map(|(name, text)| (name.to_owned(), Quantity(text.to_owned()))).into());

        // What hard thresholds want to be left is reserved, too: 100Mi of memory and a tenth of the disk by default.
        let mut eviction = EvictionOptions::new(Arc::new(crate::signals::SetSignals::default()));
        let mut soft = Threshold::hard(Signal::Memory, Amount::Percent(50));
        soft.grace = jiff::SignedDuration::from_secs(60);
        eviction.thresholds.push(soft);
        config.eviction = Some(eviction);
        let left = config.allocatable();
        assert_eq!(left["memory"].0, ((15_u64 << 30) - (100 << 20)).to_string());
        assert_eq!(left["ephemeral-storage"].0, (90_u64 << 30).to_string());
        assert_eq!(left["cpu"].0, "3500m");
        assert_eq!(config.reservation()["memory"].0, ((1_u64 << 30) + (100 << 20)).to_string());
    }
}
