//! The end of a node that is announced: its pods end before it, the least important first (KEP-2000, KEP-2712).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kreconcile::EventType;
use tokio::time::Instant;

use super::{Node, NodeAgent, PodEntry, pressure::has_running};
use crate::{eviction::CRITICAL_PRIORITY, machine::NodeEnd, runtime::PodUid};

/// How often it is looked whether the pods of a group have ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the status of a pod says that ended with its node, in upstream's words.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// How long the pods of a priority and above get, up to the next higher one (upstream's `shutdownGracePeriodByPodPriority`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownPeriod {
    /// The lowest priority that it is for. Pods below the lowest period's are of that one, too.
    pub priority: i32,
    /// How long they get. A pod whose own grace is shorter gets that.
    pub grace: Duration,
}

/// The periods of upstream's `shutdownGracePeriod` and `shutdownGracePeriodCriticalPods`: critical pods get the latter, which is a part of
/// the former, after all others have had the rest.
///
/// ```
/// use std::time::Duration;
/// let periods = kruntime::agent::shutdown_periods(Duration::from_secs(30), Duration::from_secs(10));
/// assert_eq!((periods[0].grace.as_secs(), periods[1].grace.as_secs()), (20, 10));
/// ```
#[must_use]
pub fn shutdown_periods(total: Duration, critical: Duration) -> [ShutdownPeriod; 2] {
    [
        ShutdownPeriod { priority: 0, grace: total.saturating_sub(critical) },
        ShutdownPeriod { priority: CRITICAL_PRIORITY, grace: critical.min(total) },
    ]
}

/// The keys of each period, from the lowest to the highest.
fn group<K>(pods: impl IntoIterator<Item = (K, i32)>, periods: &[ShutdownPeriod]) -> Vec<(Duration, Vec<K>)> {
    let periods: BTreeMap<i32, Duration> =
        periods.iter().map(|period| (period.priority, period.grace)).collect();
    let mut groups: BTreeMap<i32, (Duration, Vec<K>)> =
        periods.iter().map(|(priority, grace)| (*priority, (*grace, Vec::new()))).collect();
    for (key, priority) in pods {
        let own = periods.range(..=priority).next_back().or_else(|| periods.first_key_value());
        if let Some((_, group)) = own.and_then(|(priority, _)| groups.get_mut(priority)) {
            group.push(key);
        }
    }
    groups.into_values().collect()
}

impl NodeAgent {
    /// Ends all pods of a node before the machine goes down, group by group, and takes no more: they fail with the reason `Terminated`,
    /// and the node is not ready. Each group gets its period at most; the next one begins as soon as it has ended. Without any
    /// period nothing is ended. Gives the pods that have not ended in time; `None` when there is no such node.
    ///
    /// To be called when the machine is told to shut down; this library does not listen for that itself.
    pub async fn shut_down(&self, node: &str, periods: &[ShutdownPeriod]) -> Option<Vec<PodUid>> {
        let node: Arc<Node> = self.inner.nodes().get(node).cloned()?;
        node.set_shutting_down(self.inner.clock.now());
        let said = "Shutdown manager detected shutdown event".to_owned();
        self.inner.node_event(&node, EventType::Normal, "Shutdown", said);
        self.inner.node_changed.notify_one();
        let mut here: Vec<Arc<PodEntry>> = {
            let entries = self.inner.entries();
            entries.values().filter(|entry| entry.node.config.name == node.config.name).cloned().collect()
        };
        here.sort_by(|one, other| one.uid.cmp(&other.uid));
        let with_priority = here.into_iter().map(|entry| {
            let priority = entry.pod().spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            (entry, priority)
        });
        let mut left = Vec::new();
        for (grace, group) in group(with_priority, periods) {
            for entry in &group {
                entry.end(NodeEnd {
                    reason: REASON.to_owned(),
                    message: MESSAGE.to_owned(),
                    grace_seconds: Some(grace.as_secs()),
                    is_refusal: false,
                    is_disruption: true,
                });
                self.inner.queue.add(entry.uid.clone());
            }
            let until = Instant::now() + grace;
            let runs = |entry: &&Arc<PodEntry>| has_running(entry) || entry.is_busy();
            while group.iter().any(|entry| runs(&entry)) && Instant::now() < until {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            left.extend(group.iter().filter(runs).map(|entry| entry.uid.clone()));
        }
        Some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After upstream's `Test_groupByPriority`.
    #[test]
    fn pods_are_of_the_highest_period_that_they_reach() {
        let of = |periods: &[(i32, u64)], pods: &[i32]| -> Vec<(u64, Vec<i32>)> {
            let periods: Vec<_> = periods
                .iter()
                .map(|(priority, grace)| ShutdownPeriod {
                    priority: *priority,
                    grace: Duration::from_secs(*grace),
                })
                .collect();
            let groups = group(pods.iter().map(|pod| (*pod, *pod)), &periods);
            groups.into_iter().map(|(grace, pods)| (grace.as_secs(), pods)).collect()
        };
        let periods = [(100, 3), (0, 1), (10, 2)];
        let pods = [5, 100, -7, 10, 99, 2_000_000_000, 0];
        let expected = vec![(1, vec![5, -7, 0]), (2, vec![10, 99]), (3, vec![100, 2_000_000_000])];
        assert_eq!(of(&periods, &pods), expected);
        assert_eq!(of(&[(50, 4)], &[1, 60]), [(4, vec![1, 60])]);
        assert!(of(&[], &[1]).is_empty());
    }
}
