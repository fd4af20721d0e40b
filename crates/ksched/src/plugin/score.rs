//! The extension points that say where a pod runs best.

use std::sync::Arc;

use crate::{
    plugin::{cycle_state::CycleState, verdict::PreScoreVerdict},
    pod::PodInfo,
    snapshot::{NodeIndex, NodeView, Snapshot},
    track::{ScoreTracker, Surroundings, Track},
};

/// The best score of a node (upstream's `MaxNodeScore`); the worst is 0.
pub const MAX_NODE_SCORE: i64 = 100;

/// Takes notes for the score, once per pod.
pub trait PreScore: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// `nodes` are those that all filters let pass.
    fn pre_score(
        &self,
        cycle: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
    ) -> PreScoreVerdict;
}

/// Says how good a node is for a pod.
///
/// After [`normalize`](Self::normalize), scores must lie within 0 and [`MAX_NODE_SCORE`]; they are multiplied by the
/// plug-in's weight and added up. `testing::check_score` (feature `testing`) checks it.
///
/// ```
/// use std::sync::Arc;
/// use ksched::{Profile, Snapshot, build::{node, pod}, decide, plugin::{CycleState, ScorePlugin}, PodInfo, NodeView};
///
/// /// Likes nodes that say they run on green energy.
/// struct Green;
///
/// impl ScorePlugin for Green {
///     fn name(&self) -> &str {
///         "Green"
///     }
///
///     fn score(&self, _: &CycleState, _: &PodInfo, node: NodeView<'_>) -> i64 {
///         if node.info().labels.get("energy") == Some("green") { 100 } else { 0 }
///     }
/// }
///
/// let profile = Profile::builder().score(Arc::new(Green), 10).build()?;
/// let mut snapshot = Snapshot::new();
/// snapshot.set_node(node("coal").resource("cpu", "8").info());
/// snapshot.set_node(node("wind").resource("cpu", "4").label("energy", "green").info());
///
/// let decision = decide(&profile, &snapshot, &pod("p").request("cpu", "1").info());
/// assert_eq!(decision.node(), Some("wind"));
/// assert_eq!(decision.scores("wind").find(|score| score.plugin == "Green").map(|score| score.weighted), Some(1000));
/// # Ok::<(), ksched::BuildError>(())
/// ```
pub trait ScorePlugin: Send + Sync + 'static {
    /// The plug-in's name.
    fn name(&self) -> &str;

    /// The raw score of one node.
    fn score(&self, cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64;

    /// How its scores are kept up to date for pods that are equal; by default it is asked anew for each. With
    /// [`Track::Node`], what the [`PreScore`] of the same name says must depend on the pod alone.
    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        Track::Anew
    }

    /// Whether [`normalize`](Self::normalize) changes nothing. `false` by default.
    fn is_normalized(&self) -> bool {
        false
    }

    /// Brings the raw scores of all nodes into the range. By default they stay as they are; see
    /// [`normalize_by_max`]. Nodes with equal raw scores must stay equal.
    fn normalize(&self, _cycle: &CycleState, _pod: &PodInfo, _scores: &mut [i64]) {}

    /// Appends the raw score of each node. This default is right for all; see
    /// [`FilterPlugin::filter_all`](crate::plugin::FilterPlugin::filter_all).
    fn score_all(
        &self,
        cycle: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
        scores: &mut Vec<i64>,
    ) {
        scores.extend(nodes.iter().map(|&index| self.score(cycle, pod, snapshot.node(index))));
    }
}

/// Stretches scores so that the best is [`MAX_NODE_SCORE`] (upstream's `DefaultNormalizeScore`); with `reverse` the
/// smallest raw score is the best. Raw scores must not be negative.
pub fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        let stretched = if most == 0 { 0 } else { MAX_NODE_SCORE * *score / most };
        *score = if reverse { MAX_NODE_SCORE - stretched } else { stretched };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_stretched() {
        for (mut scores, reverse, expected) in [
            (vec![1, 2, 3, 4], false, vec![25, 50, 75, 100]),
            (vec![1, 2, 3, 4], true, vec![75, 50, 25, 0]),
            (vec![0, 0], false, vec![0, 0]),
            (vec![0, 0], true, vec![100, 100]),
            (vec![1000, 10, 20], false, vec![100, 1, 2]),
        ] {
            normalize_by_max(&mut scores, reverse);
            assert_eq!(scores, expected);
        }
    }
}
