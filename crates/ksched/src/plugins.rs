//! The built-in plug-ins, under upstream's names and with upstream's texts; one file each.

mod balanced_allocation;
mod default_binder;
mod default_preemption;
mod dynamic_resources;
mod gang_scheduling;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_declared_features;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod priority_sort;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::sync::Arc;

pub use balanced_allocation::BalancedAllocation;
pub use default_binder::DefaultBinder;
pub use default_preemption::DefaultPreemption;
pub use dynamic_resources::{BINDING_TIMEOUT, DynamicResources, FILTER_TIMEOUT};
pub use gang_scheduling::{GANG_WAIT_MAX, GangScheduling};
pub(crate) use gang_scheduling::{NAME as GANG_SCHEDULING, WAITING as WAITING_FOR_GANG};
pub use image_locality::ImageLocality;
pub use inter_pod_affinity::InterPodAffinity;
pub use node_affinity::NodeAffinity;
pub use node_declared_features::{Features, NodeDeclaredFeatures};
pub use node_name::NodeName;
pub use node_ports::NodePorts;
pub use node_resources_fit::{NodeResourcesFit, ScoringStrategy};
pub use node_unschedulable::NodeUnschedulable;
pub use node_volume_limits::NodeVolumeLimits;
pub use pod_topology_spread::PodTopologySpread;
pub use priority_sort::PrioritySort;
pub use scheduling_gates::SchedulingGates;
pub use taint_toleration::TaintToleration;
pub use volume_binding::{BIND_TIMEOUT, VolumeBinding};
pub use volume_restrictions::VolumeRestrictions;
pub use volume_zone::VolumeZone;

use crate::profile::ProfileBuilder;

/// Adds the default plug-ins in upstream's order (`getDefaultPlugins` in `apis/config/v1/default_plugins.go`).
pub(crate) fn add_defaults(builder: ProfileBuilder) -> ProfileBuilder {
    let fit = Arc::new(NodeResourcesFit::default());
    let balanced = Arc::new(BalancedAllocation::default());
    let spread = Arc::new(PodTopologySpread::default());
    let between_pods = Arc::new(InterPodAffinity::default());
    let devices = Arc::new(DynamicResources::default());
    builder
        .pre_enqueue(Arc::new(SchedulingGates))
        .hint(Arc::new(SchedulingGates))
        .pre_enqueue(Arc::clone(&devices) as Arc<_>)
        .pre_enqueue(Arc::new(GangScheduling))
        .permit(Arc::new(GangScheduling))
        .hint(Arc::new(GangScheduling))
        .pre_filter(Arc::new(NodeAffinity::default()))
        .pre_filter(Arc::new(NodePorts))
        .pre_filter(Arc::new(VolumeRestrictions))
        .pre_filter(Arc::new(NodeVolumeLimits))
        .pre_filter(Arc::new(VolumeBinding::default()))
        .pre_filter(Arc::new(VolumeZone))
        .pre_filter(Arc::clone(&spread) as Arc<_>)
        .pre_filter(Arc::clone(&between_pods) as Arc<_>)
        .pre_filter(Arc::clone(&devices) as Arc<_>)
        .pre_filter(Arc::new(NodeDeclaredFeatures))
        .filter(Arc::new(NodeUnschedulable))
        .filter(Arc::new(NodeName))
        .filter(Arc::new(TaintToleration))
        .filter(Arc::new(NodeAffinity::default()))
        .filter(Arc::new(NodePorts))
        .filter(Arc::clone(&fit) as Arc<_>)
        .filter(Arc::new(VolumeRestrictions))
        .filter(Arc::new(NodeVolumeLimits))
        .filter(Arc::new(VolumeBinding::default()))
        .filter(Arc::new(VolumeZone))
        .filter(Arc::clone(&spread) as Arc<_>)
        .filter(Arc::clone(&between_pods) as Arc<_>)
        .filter(Arc::clone(&devices) as Arc<_>)
        .filter(Arc::new(NodeDeclaredFeatures))
        .hint(Arc::new(NodeUnschedulable))
        .hint(Arc::new(NodeName))
        .hint(Arc::new(TaintToleration))
        .hint(Arc::new(NodeAffinity::default()))
        .hint(Arc::new(NodePorts))
        .hint(Arc::clone(&fit) as Arc<_>)
        .hint(Arc::new(VolumeRestrictions))
        .hint(Arc::new(NodeVolumeLimits))
        .hint(Arc::new(VolumeBinding::default()))
        .hint(Arc::new(VolumeZone))
        .hint(Arc::clone(&spread) as Arc<_>)
        .hint(Arc::clone(&between_pods) as Arc<_>)
        .hint(Arc::clone(&devices) as Arc<_>)
        .hint(Arc::new(NodeDeclaredFeatures))
        .post_filter(Arc::clone(&devices) as Arc<_>)
        .post_filter(Arc::new(DefaultPreemption::default()))
        .hint(Arc::new(DefaultPreemption::default()))
        .pre_score(Arc::new(NodeAffinity::default()))
        .pre_score(Arc::clone(&spread) as Arc<_>)
        .pre_score(Arc::clone(&between_pods) as Arc<_>)
        .pre_score(Arc::clone(&balanced) as Arc<_>)
        .pre_score(Arc::clone(&devices) as Arc<_>)
        .score(Arc::new(TaintToleration), 3)
        .score(Arc::new(NodeAffinity::default()), 2)
        .score(fit, 1)
        .score(spread, 2)
        .score(between_pods, 2)
        .score(Arc::clone(&devices) as Arc<_>, 2)
        .score(balanced, 1)
        .score(Arc::new(ImageLocality), 1)
        .reserve(Arc::new(VolumeBinding::default()))
        .reserve(Arc::clone(&devices) as Arc<_>)
        .pre_bind(Arc::new(VolumeBinding::default()))
        .pre_bind(devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_filter, check_score};

    #[test]
    fn the_filters_keep_to_the_contract() {
        check_filter(Arc::new(NodeUnschedulable));
        check_filter(Arc::new(NodeName));
        check_filter(Arc::new(TaintToleration));
        check_filter(Arc::new(NodeAffinity::default()));
        check_filter(Arc::new(NodePorts));
        check_filter(Arc::new(NodeResourcesFit::default()));
        check_filter(Arc::new(VolumeRestrictions));
        check_filter(Arc::new(NodeVolumeLimits));
        check_filter(Arc::new(VolumeBinding::default()));
        check_filter(Arc::new(VolumeZone));
        check_filter(Arc::new(PodTopologySpread::default()));
        check_filter(Arc::new(InterPodAffinity::default()));
        check_filter(Arc::new(DynamicResources::default()));
        check_filter(Arc::new(NodeDeclaredFeatures));
    }

    #[test]
    fn the_scores_keep_to_the_contract() {
        check_score(Arc::new(TaintToleration));
        check_score(Arc::new(PodTopologySpread::default()));
        check_score(Arc::new(InterPodAffinity::default()));
        check_score(Arc::new(NodeAffinity::default()));
        check_score(Arc::new(NodeResourcesFit::default()));
        check_score(Arc::new(NodeResourcesFit::new(
            ScoringStrategy::MostAllocated,
            [("cpu", 3), ("memory", 1)],
        )));
        check_score(Arc::new(BalancedAllocation::default()));
        check_score(Arc::new(ImageLocality));
        check_score(Arc::new(DynamicResources::default()));
    }
}
