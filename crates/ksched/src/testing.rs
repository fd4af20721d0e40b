//! What every plug-in must keep to, as checks that its tests call.
//!
//! ```
//! use std::sync::Arc;
//! use ksched::{Snapshot, plugins::NodeResourcesFit, testing};
//!
//! testing::check_filter(Arc::new(NodeResourcesFit::default()));
//! testing::check_score(Arc::new(NodeResourcesFit::default()));
//! ```

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    build::{node, pod},
    node::NodeInfo,
    plugin::{CycleState, FilterPlugin, MAX_NODE_SCORE, ScorePlugin, Verdict},
    pod::PodInfo,
    snapshot::Snapshot,
};

/// Some nodes that differ in all that the built-in plug-ins look at, in the given order.
fn varied_nodes(backwards: bool) -> Snapshot {
    let mut nodes: Vec<NodeInfo> = (0..12u32)
        .map(|number| {
            let mut node = node(&format!("node-{number}"))
                .resource("cpu", &(number % 4 + 1).to_string())
                .resource("memory", &format!("{}Gi", number % 3 + 1))
                .label("zone", if number % 2 == 0 { "a" } else { "b" })
                .image("web:1", i64::from(number) * 100_000_000);
            if number % 5 == 0 {
                node = node.taint(
                    "dedicated",
                    "db",
                    if number == 0 { "NoSchedule" } else { "PreferNoSchedule" },
                );
            }
            if number == 7 {
                node = node.unschedulable();
            }
            node.info()
        })
        .collect();
    if backwards {
        nodes.reverse();
    }
    let mut snapshot = Snapshot::new();
    for node in nodes {
        snapshot.set_node(node);
    }
    for number in 0..20 {
        let pod = pod(&format!("other-{number}")).request("cpu", "150m").request("memory", "64Mi");
        snapshot.place(&Arc::new(pod.host_port(9000 + number % 3).info()), &format!("node-{}", number % 9));
    }
    snapshot
}

fn varied_pods() -> Vec<PodInfo> {
    vec![
        pod("plain").info(),
        pod("sized").request("cpu", "900m").request("memory", "700Mi").image("web:1").info(),
        pod("large").request("cpu", "64").request("example.com/gpu", "1").info(),
        pod("picky").node_selector("zone", "a").host_port(9001).info(),
        pod("tolerant").toleration("", "Exists", "", "").info(),
        pod("bound").on("node-3").info(),
    ]
}

/// Checks what the documentation of [`FilterPlugin`] promises: the same question gets the same answer, and the answer
/// about a node does not depend on the order of nodes; `filter_all` agrees with `filter`.
///
/// # Panics
/// When the plug-in does not keep to it.
pub fn check_filter(plugin: Arc<dyn FilterPlugin>) {
    let cycle = CycleState::default();
    let (forwards, backwards) = (varied_nodes(false), varied_nodes(true));
    for pod in varied_pods() {
        let verdicts = |snapshot: &Snapshot| -> BTreeMap<String, Verdict> {
            let one = |view: crate::snapshot::NodeView<'_>| {
                (view.name().to_owned(), plugin.filter(&cycle, &pod, view))
            };
            snapshot.nodes().map(one).collect()
        };
        let first = verdicts(&forwards);
        assert_eq!(first, verdicts(&forwards), "{}: another answer to the same question", plugin.name());
        assert_eq!(first, verdicts(&backwards), "{}: the order of nodes matters", plugin.name());
        let mut passed: Vec<usize> = (0..forwards.len()).collect();
        let mut rejected = BTreeMap::new();
        plugin.filter_all(&cycle, &pod, &forwards, &mut passed, &mut |node, rejection| {
            rejected.insert(forwards.node(node).name().to_owned(), rejection);
        });
        for view in forwards.nodes() {
            let together = match rejected.remove(view.name()) {
                Some(rejection) => Verdict::Reject(rejection),
                None => Verdict::Pass,
            };
            assert_eq!(together, first[view.name()], "{}: filter_all differs from filter", plugin.name());
            assert_eq!(passed.contains(&view.index()), together == Verdict::Pass, "{}", plugin.name());
        }
    }
}

/// Checks what the documentation of [`ScorePlugin`] promises: the same question gets the same answer, normalized scores
/// are within 0 and [`MAX_NODE_SCORE`], and the order of nodes does not matter; `score_all` agrees with `score`.
///
/// # Panics
/// When the plug-in does not keep to it.
pub fn check_score(plugin: Arc<dyn ScorePlugin>) {
    let cycle = CycleState::default();
    let (forwards, backwards) = (varied_nodes(false), varied_nodes(true));
    for pod in varied_pods() {
        let scores = |snapshot: &Snapshot| -> BTreeMap<String, i64> {
            let nodes: Vec<usize> = (0..snapshot.len()).collect();
            let mut scores = Vec::new();
            plugin.score_all(&cycle, &pod, snapshot, &nodes, &mut scores);
            let one_by_one: Vec<i64> =
                snapshot.nodes().map(|view| plugin.score(&cycle, &pod, view)).collect();
            assert_eq!(scores, one_by_one, "{}: score_all differs from score", plugin.name());
            plugin.normalize(&cycle, &pod, &mut scores);
            let names = snapshot.nodes().map(|view| view.name().to_owned());
            names.zip(scores).collect()
        };
        let first = scores(&forwards);
        assert_eq!(first, scores(&forwards), "{}: another answer to the same question", plugin.name());
        assert_eq!(first, scores(&backwards), "{}: the order of nodes matters", plugin.name());
        for (node, score) in first {
            assert!((0..=MAX_NODE_SCORE).contains(&score), "{}: {node} scores {score}", plugin.name());
        }
    }
}
