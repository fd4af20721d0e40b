//! How fast nodes may lose their pods: slower, or not at all, when many fail together. No I/O.

use std::collections::HashMap;

use ahash::RandomState;
use tokio::time::Instant;

use crate::backoff::TokenBucket;

/// How many nodes of a healthy zone lose their pods per second (`--node-eviction-rate`).
pub const EVICTIONS_PER_SECOND_MAX: f64 = 0.1;
/// The same in a large zone where many nodes have failed (`--secondary-node-eviction-rate`).
pub const EVICTIONS_PER_SECOND_DISRUPTED_MAX: f64 = 0.01;
/// How many at once.
pub const EVICTION_BURST_MAX: u32 = 1;
/// A cluster of at most this many nodes evicts nobody from a disrupted zone (`--large-cluster-size-threshold`).
pub const LARGE_CLUSTER_NODES: usize = 50;
/// From which share of failed nodes a zone counts as disrupted (`--unhealthy-zone-threshold`).
pub const UNHEALTHY_ZONE_SHARE: f64 = 0.55;
/// With at most this many failed nodes a zone is not disrupted (upstream's `ComputeZoneState`).
const FAILED_NODES_FEW: usize = 2;

/// How a zone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZoneState {
    Normal,
    Partial,
    Full,
}

pub(super) fn zone_state(ready: usize, failed: usize) -> ZoneState {
    #[allow(clippy::cast_precision_loss, reason = "numbers of nodes are far below 2^52")]
    let share = failed as f64 / (ready + failed).max(1) as f64;
    if ready == 0 && failed > 0 {
        ZoneState::Full
    } else if failed > FAILED_NODES_FEW && share >= UNHEALTHY_ZONE_SHARE {
        ZoneState::Partial
    } else {
        ZoneState::Normal
    }
}

#[derive(Default)]
struct Zone {
    ready: usize,
    failed: usize,
    bucket: Option<TokenBucket>,
}

/// The nodes by zone, and what each zone may still lose.
#[derive(Default)]
pub(super) struct Zones {
    nodes: HashMap<String, (String, bool), RandomState>,
    zones: HashMap<String, Zone, RandomState>,
}

impl Zones {
    /// Notes how a node is.
    pub(super) fn set(&mut self, node: &str, zone: &str, ready: bool) {
        if self.nodes.get(node).is_some_and(|known| known.0 == zone && known.1 == ready) {
            return;
        }
        self.remove(node);
        self.nodes.insert(node.to_owned(), (zone.to_owned(), ready));
        let zone = self.zones.entry(zone.to_owned()).or_default();
        if ready { zone.ready += 1 } else { zone.failed += 1 }
    }

    /// The node is gone.
    pub(super) fn remove(&mut self, node: &str) {
        let Some((name, ready)) = self.nodes.remove(node) else { return };
        if let Some(zone) = self.zones.get_mut(&name) {
            let count = if ready { &mut zone.ready } else { &mut zone.failed };
            *count = count.saturating_sub(1);
            if zone.ready + zone.failed == 0 {
                self.zones.remove(&name);
            }
        }
    }

    /// Whether every zone has failed: then it is more likely that this controller is cut off than that they all have.
    fn all_failed(&self) -> bool {
        self.zones.values().all(|zone| zone_state(zone.ready, zone.failed) == ZoneState::Full)
    }

    /// Whether a node of this zone may lose its pods now. If so, it is counted.
    pub(super) fn may_evict(&mut self, zone: &str, now: Instant) -> bool {
        let (all_failed, large) = (self.all_failed(), self.nodes.len() > LARGE_CLUSTER_NODES);
        let Some(zone) = self.zones.get_mut(zone) else { return false };
        let rate = match zone_state(zone.ready, zone.failed) {
            // A cluster of one node, or one that is cut off as a whole, keeps its pods.
            ZoneState::Full if all_failed => 0.0,
            ZoneState::Full | ZoneState::Normal => EVICTIONS_PER_SECOND_MAX,
            ZoneState::Partial if large => EVICTIONS_PER_SECOND_DISRUPTED_MAX,
            ZoneState::Partial => 0.0,
        };
        let bucket = zone.bucket.get_or_insert_with(|| TokenBucket::new(rate, EVICTION_BURST_MAX, now));
        bucket.set_rate(rate, now);
        rate > 0.0 && bucket.try_take(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn zones_are_disrupted_by_share_and_number() {
        let cases = [
            (3, 0, ZoneState::Normal),
            (1, 2, ZoneState::Normal),
            (2, 3, ZoneState::Partial),
            (3, 3, ZoneState::Normal),
            (0, 1, ZoneState::Full),
            (0, 0, ZoneState::Normal),
        ];
        for (ready, failed, expected) in cases {
            assert_eq!(zone_state(ready, failed), expected, "{ready} {failed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_lose_their_pods_one_by_one() {
        let mut zones = Zones::default();
        for (node, ready) in [("a", true), ("b", true), ("c", true), ("d", false), ("e", false)] {
            zones.set(node, "z", ready);
        }
        assert!(zones.may_evict("z", Instant::now()));
        assert!(!zones.may_evict("z", Instant::now()));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(zones.may_evict("z", Instant::now()));
        tokio::time::advance(Duration::from_secs(11)).await;
        for node in ["a", "b", "c"] {
            zones.set(node, "z", false);
        }
        assert!(!zones.may_evict("z", Instant::now()), "everything has failed");
        zones.set("f", "other", true);
        assert!(zones.may_evict("z", Instant::now()), "one whole zone has failed, another lives");
    }
}
