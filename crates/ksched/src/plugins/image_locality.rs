//! Nodes that have a pod's images are better.

use std::sync::Arc;

use crate::{
    plugin::{CycleState, MAX_NODE_SCORE, ScorePlugin},
    pod::PodInfo,
    snapshot::{NodeIndex, NodeView, Snapshot},
    track::{ScoreTracker, Surroundings, Track},
};

const MEBIBYTE: i64 = 1024 * 1024;
/// Below this sum of sizes a node scores 0 (upstream's `minThreshold`).
const SUM_MIN: i64 = 23 * MEBIBYTE;
/// From this size per container on a node scores 100 (upstream's `maxContainerThreshold`).
const CONTAINER_SUM_MAX: i64 = 1000 * MEBIBYTE;

/// Scores by the sizes of the pod's images that the node has, each scaled by the fraction of nodes that have it, so that
/// a rare image does not draw all pods to the few nodes that have it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageLocality;

impl ScorePlugin for ImageLocality {
    fn name(&self) -> &str {
        "ImageLocality"
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "as upstream scales")]
    fn score(&self, _cycle: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> i64 {
        let images = &node.info().images;
        if images.is_empty() || pod.containers == 0 {
            return 0;
        }
        let nodes = node.snapshot().len() as f64;
        let scaled = |name: &std::sync::Arc<str>| {
            let spread = node.snapshot().nodes_with_image(name) as f64 / nodes;
            images.get(name).map_or(0, |size| (*size as f64 * spread) as i64)
        };
        let sum_max = CONTAINER_SUM_MAX * i64::try_from(pod.containers).unwrap_or(1);
        let sum = pod.images.iter().map(scaled).sum::<i64>().clamp(SUM_MIN, sum_max);
        MAX_NODE_SCORE * (sum - SUM_MIN) / (sum_max - SUM_MIN)
    }

    fn score_all(
        &self,
        cycle: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
        scores: &mut Vec<i64>,
    ) {
        // Mostly no node has any of the images; then nothing needs to be looked up in each.
        if pod.images.iter().all(|image| snapshot.nodes_with_image(image) == 0) {
            scores.resize(scores.len() + nodes.len(), 0);
            return;
        }
        scores.extend(nodes.iter().map(|&index| self.score(cycle, pod, snapshot.node(index))));
    }

    fn track(&self, _pod: &Arc<PodInfo>, _around: &mut Surroundings<'_>) -> Track<dyn ScoreTracker> {
        Track::Node
    }

    fn is_normalized(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{node, pod};

    #[test]
    fn images_draw_pods() {
        for (image, expected) in [("small:1", 0), ("large", 100), ("half:1", 50), ("none:1", 0)] {
            let mut snapshot = Snapshot::new();
            let builder = node("a").image("small:1", 20 * MEBIBYTE).image("large:latest", 4000 * MEBIBYTE);
            snapshot.set_node(builder.image("half:1", 1023 * MEBIBYTE).info());
            snapshot.set_node(node("b").image("other:1", 1).info());
            let mut scores = Vec::new();
            let pod = pod("p").image(image).info();
            ImageLocality.score_all(&CycleState::default(), &pod, &snapshot, &[0, 1], &mut scores);
            assert_eq!(scores, [expected, 0], "{image}");
        }
    }
}
