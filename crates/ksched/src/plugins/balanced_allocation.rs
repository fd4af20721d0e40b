//! Nodes on which resources are used up evenly are better.

use std::sync::Arc;

use smallvec::SmallVec;

use super::dynamic_resources::offered::{Left, Offered};

use crate::{
    plugin::{CycleState, MAX_NODE_SCORE, PreScore, PreScoreVerdict, ScorePlugin},
    pod::PodInfo,
    resources,
    snapshot::{NodeIndex, NodeView, Snapshot, columns::ResourceColumn},
    track::{ScoreTracker, Surroundings, Track},
};

const NAME: &str = "NodeResourcesBalancedAllocation";

/// Scores by how much the pod evens out the used fractions of the resources: 75 when it changes nothing, towards 100
/// when they come closer, towards 50 when they move apart. Pods that ask for none of the resources get no score.
#[derive(Clone, Debug)]
pub struct BalancedAllocation {
    resources: Vec<Arc<str>>,
    devices: Arc<Offered>,
}

/// A resource that counts: its name, its column if any node has it itself, and what a pod asks for.
type Wanted<'a> = (&'a str, Option<&'a ResourceColumn>, i64);

impl Default for BalancedAllocation {
    /// CPU and memory.
    fn default() -> Self {
        Self::new(["cpu", "memory"])
    }
}

impl BalancedAllocation {
    /// Evens out these resources.
    #[must_use]
    pub fn new<N: Into<Arc<str>>>(resources: impl IntoIterator<Item = N>) -> Self {
        Self { resources: resources.into_iter().map(Into::into).collect(), devices: Arc::default() }
    }

    /// The resources that count for this pod, with what it asks for.
    fn resolve<'a>(&'a self, pod: &PodInfo, snapshot: &'a Snapshot) -> SmallVec<[Wanted<'a>; 4]> {
        let with_amount = |name: &'a Arc<str>| {
            let wanted = pod.requests.get(name);
            let counts = wanted != 0 || !resources::is_scalar(name);
            counts.then(|| (&**name, snapshot.columns().resource(name), wanted))
        };
        self.resources.iter().filter_map(with_amount).collect()
    }

    /// What is left of the devices that stand for the resources that count.
    fn left(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Left<'_>> {
        let asked = self.resources.iter().filter(|name| pod.requests.get(name) != 0);
        self.devices.left(asked, snapshot.catalog())
    }
}

#[allow(clippy::cast_precision_loss, reason = "upstream computes the same fraction of the same two numbers")]
fn fraction(requested: i64, allocatable: i64) -> f64 {
    (requested as f64 / allocatable as f64).min(1.0)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "as upstream truncates, from 0 to 100"
)]
fn evenness(fractions: &[f64]) -> i64 {
    let deviation = match fractions {
        [] | [_] => 0.0,
        [a, b] => ((a - b) / 2.0).abs(),
        all => {
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            (all.iter().map(|fraction| (fraction - mean) * (fraction - mean)).sum::<f64>() / all.len() as f64)
                .sqrt()
        }
    };
    ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
}

impl PreScore for BalancedAllocation {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_score(
        &self,
        _cycle: &mut CycleState,
        pod: &PodInfo,
        _snapshot: &Snapshot,
        _nodes: &[NodeIndex],
    ) -> PreScoreVerdict {
        if self.resources.iter().all(|name| pod.requests.get(name) == 0) {
            return PreScoreVerdict::Skip;
        }
        PreScoreVerdict::Pass
    }
}

impl ScorePlugin for BalancedAllocation {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64 {
        score_row(&self.resolve(pod, node.snapshot()), self.left(pod, node.snapshot()).as_ref(), node)
    }

    fn score_all(
        &self,
        _cycle: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
        scores: &mut Vec<i64>,
    ) {
        // The columns are looked up by name once, not once per node.
        let (wanted, left) = (self.resolve(pod, snapshot), self.left(pod, snapshot));
        scores.extend(nodes.iter().map(|&row| score_row(&wanted, left.as_ref(), snapshot.node(row))));
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        Track::Node
    }

    fn is_normalized(&self) -> bool {
        true
    }
}

fn score_row(wanted: &[Wanted<'_>], left: Option<&Left<'_>>, node: NodeView<'_>) -> i64 {
    let mut with: SmallVec<[f64; 4]> = SmallVec::new();
    let mut without: SmallVec<[f64; 4]> = SmallVec::new();
    let row = node.index();
    for (name, column, wanted) in wanted {
        let (mut allocatable, mut requested) =
            column.map_or((0, 0), |column| (column.allocatable[row], column.requested[row]));
        if let (0, Some(left)) = (allocatable, left) {
            (allocatable, requested) = left.of(name, node.info());
        }
        if allocatable != 0 {
            with.push(fraction(requested + wanted, allocatable));
            without.push(fraction(requested, allocatable));
        }
    }
    MAX_NODE_SCORE / 2 + (MAX_NODE_SCORE / 2 + evenness(&with) - evenness(&without)) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{node, pod};

    #[test]
    fn evening_out_is_better() {
        // Used before: (cpu, memory) of 1000 each; asked for; score.
        for (used, wanted, expected) in [
            ((0, 0), (500, 500), 75),
            ((500, 0), (0, 500), 87),
            ((0, 0), (1000, 0), 50),
            ((200, 600), (400, 0), 85),
            ((1000, 1000), (1000, 1000), 75),
        ] {
            let sized = |name: &str, (cpu, memory): (i32, i32)| {
                pod(name).request("cpu", &format!("{cpu}m")).request("memory", &memory.to_string()).info()
            };
            let mut snapshot = Snapshot::new();
            snapshot.set_node(node("n").resource("cpu", "1").resource("memory", "1000").info());
            snapshot.place(&Arc::new(sized("used", used)), "n");
            let plugin = BalancedAllocation::default();
            let score = plugin.score(&CycleState::default(), &sized("p", wanted), snapshot.node(0));
            assert_eq!(score, expected, "{used:?} {wanted:?}");
        }
    }
}
