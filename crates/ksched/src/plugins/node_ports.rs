//! Two pods can't have the same port of one host.

use std::sync::Arc;

use crate::{
    event::{ClusterEvent, Hint},
    plugin::{CycleState, FilterPlugin, PreFilter, PreFilterVerdict, QueueingHint, Verdict},
    pod::{HostPort, PodInfo},
    snapshot::{NodeView, Snapshot},
    track::{FilterTracker, Surroundings, Track},
};

const NAME: &str = "NodePorts";
const REASON: &str = "node(s) didn't have free ports for the requested pod ports";

/// Rejects nodes on which a host port that the pod asks for is taken. `0.0.0.0` meets every address; protocols are
/// apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodePorts;

fn conflict(wanted: &[HostPort], taken: &[HostPort]) -> bool {
    wanted.iter().any(|wanted| taken.iter().any(|taken| wanted.conflicts_with(taken)))
}

impl PreFilter for NodePorts {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilterVerdict {
        if pod.host_ports.is_empty() { PreFilterVerdict::Skip } else { PreFilterVerdict::Pass }
    }

    fn ignores_other_pods(&self) -> bool {
        true
    }
}

impl FilterPlugin for NodePorts {
    fn name(&self) -> &str {
        NAME
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        if conflict(&pod.host_ports, node.ports()) { Verdict::unschedulable(REASON) } else { Verdict::Pass }
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn FilterTracker> {
        Track::Node
    }
}

impl QueueingHint for NodePorts {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone(gone) => conflict(&pod.host_ports, &gone.host_ports),
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_meet() {
        let port =
            |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        let taken = [port("127.0.0.1", "TCP", 80), port("0.0.0.0", "UDP", 53)];
        for (wanted, expected) in [
            (port("127.0.0.1", "TCP", 80), true),
            (port("127.0.0.2", "TCP", 80), false),
            (port("0.0.0.0", "TCP", 80), true),
            (port("0.0.0.0", "UDP", 80), false),
            (port("10.0.0.1", "UDP", 53), true),
            (port("10.0.0.1", "TCP", 53), false),
        ] {
            assert_eq!(conflict(std::slice::from_ref(&wanted), &taken), expected, "{wanted:?}");
        }
    }
}
