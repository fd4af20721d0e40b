//! Which claims containers use, for others on the node.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{Claims, locked};
use crate::pod_resources::proto::DynamicResource;

impl Claims {
    /// The claims that a container uses, with all that is prepared for them. A claim that is not prepared is left out.
    pub(crate) fn tell(&self, pod: &Pod, container: &Container) -> Vec<DynamicResource> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let used = match self.used(pod, container) {
            Ok(used) => used,
            Err(why) => {
                tracing::debug!(why, container = container.name, "it is not known which claims are used");
                return Vec::new();
            }
        };
        let known = locked(&self.known);
        let infos = used.into_iter().filter_map(|(claim, _)| known.0.get(&(namespace.clone(), claim)));
        infos.filter(|info| !info.is_empty()).map(super::state::Info::tell).collect()
    }
}
