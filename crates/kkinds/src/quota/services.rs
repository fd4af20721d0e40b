//! What services use.

use k8s_openapi::api::core::v1::Service;
use kcore::Quantity;

use super::Amounts;

/// The names that services are charged under.
pub(super) const SERVICE_RESOURCES: [&str; 4] =
    ["count/services", "services", "services.nodeports", "services.loadbalancers"];

/// What one service uses. Node ports count as they are asked for, as they are not allocated yet when one is admitted.
#[must_use]
pub fn service_usage(service: &Service) -> Amounts {
    let spec = service.spec.clone().unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    let named = ports.iter().filter(|port| port.node_port.is_some_and(|number| number != 0)).count();
    let (node_ports, balancers) = match spec.type_.as_deref() {
        Some("NodePort") => (ports.len(), 0),
        Some("LoadBalancer") if spec.allocate_load_balancer_node_ports == Some(false) => (named, 1),
        Some("LoadBalancer") => (ports.len(), 1),
        _ => (0, 0),
    };
    let count = |count: usize| Quantity::from_value(i64::try_from(count).unwrap_or(i64::MAX));
    let amounts = [count(1), count(1), count(node_ports), count(balancers)];
    SERVICE_RESOURCES.iter().map(ToString::to_string).zip(amounts).collect()
}
