//! Which devices there are, and who has them, for others on the node.

use super::{Devices, Known, locked};
use crate::pod_resources::proto::{ContainerDevices, TopologyInfo};

/// One entry for each device and NUMA node, or for a device that is near to none; so has upstream.
fn tell(resource: &str, id: &str, device: Option<&Known>) -> Vec<ContainerDevices> {
    let one = |topology| ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology,
    };
    let nodes = device.map(|device| device.nodes.as_slice()).unwrap_or_default();
    if nodes.is_empty() {
        return vec![one(None)];
    }
    nodes.iter().map(|node| one(Some(TopologyInfo::of([*node])))).collect()
}

impl Devices {
    /// What a container was given.
    pub(crate) fn tell(&self, uid: &str, container: &str) -> Vec<ContainerDevices> {
        let given = locked(&self.given).of(uid, container).cloned().unwrap_or_default();
        let plugins = locked(&self.plugins);
        let of_resource = |(resource, allocation): (&String, &super::Allocation)| {
            let known = plugins.get(resource).map(|plugin| &plugin.devices);
            let tell = |id: &String| tell(resource, id, known.and_then(|known| known.get(id)));
            allocation.ids.iter().flat_map(tell).collect::<Vec<_>>()
        };
        given.iter().flat_map(of_resource).collect()
    }

    /// All that can be given, whether it is or not.
    pub(crate) fn tell_healthy(&self) -> Vec<ContainerDevices> {
        let plugins = locked(&self.plugins);
        let devices = plugins.iter().flat_map(|(resource, plugin)| {
            let healthy = plugin.devices.iter().filter(|(_, device)| device.is_healthy);
            healthy.map(move |(id, device)| (resource, id, device))
        });
        devices.flat_map(|(resource, id, device)| tell(resource, id, Some(device))).collect()
    }
}
