//! What was decided about a pod, and why.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write, sync::Arc};

use crate::{
    plugin::{CycleState, Finality, Rejection, Repair},
    pod::PodInfo,
    snapshot::NodeIndex,
};

/// The text when there are no nodes at all (upstream's `ErrNoNodesAvailable`).
pub const NO_NODES: &str = "no nodes available to schedule pods";

/// The outcome for a pod: the node, or why there is none; with what each plug-in said about each node.
#[derive(Debug)]
pub struct Decision {
    pub(crate) names: Arc<Vec<Arc<str>>>,
    pub(crate) chosen: Option<NodeIndex>,
    pub(crate) nomination: Nomination,
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// What is to be done so that the pod may find a node the next time.
    pub(crate) repairs: Vec<Arc<dyn Repair>>,
    pub(crate) diagnosis: Diagnosis,
    /// The nodes that all filters let pass, ascending.
    pub(crate) feasible: Vec<NodeIndex>,
    pub(crate) scores: Vec<ScoreColumn>,
    /// The weighted sums, in the order of `feasible`.
    pub(crate) totals: Vec<i64>,
    pub(crate) cycle: CycleState,
}

/// The scores of one plug-in, in the order of the feasible nodes.
#[derive(Clone, Debug)]
pub(crate) struct ScoreColumn {
    pub(crate) plugin: Arc<str>,
    pub(crate) weight: i64,
    pub(crate) raw: Vec<i64>,
    pub(crate) normalized: Vec<i64>,
}

/// One plug-in's score of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score<'a> {
    /// The plug-in.
    pub plugin: &'a str,
    /// As the plug-in gave it.
    pub raw: i64,
    /// Within 0 and 100.
    pub normalized: i64,
    /// Multiplied by the plug-in's weight.
    pub weighted: i64,
}

/// What was said about one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeVerdict<'a> {
    /// All filters let it pass; the sum of its weighted scores.
    Feasible(i64),
    /// A plug-in rejected it.
    Rejected {
        /// The plug-in; empty when no filter was asked, because a plug-in had named the nodes that come into question.
        plugin: &'a str,
        /// Why.
        rejection: &'a Rejection,
    },
    /// No filter was asked, because a plug-in had rejected the pod before.
    NotAsked,
}

/// What becomes of the node where room is being made for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Nomination {
    /// It stays as it is.
    #[default]
    Keep,
    /// There is none any more.
    Clear,
    /// It is this one.
    Node(Arc<str>),
}

/// Why nodes were rejected.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// How many nodes there are.
    pub nodes: usize,
    /// What a plug-in said of the pod before any node was looked at.
    pub pre_filter: Option<Rejection>,
    /// Each rejected node with the plug-in, ascending per plug-in.
    pub rejected: Vec<(NodeIndex, Arc<str>, Rejection)>,
    /// Nodes that were left out without asking, with the reason.
    pub left_out: Option<(Vec<NodeIndex>, Rejection)>,
    /// What was said about helping the pod.
    pub post_filter: String,
    /// The plug-ins whose rejections an event would have to change, in the order of their first rejection.
    pub plugins: Vec<Arc<str>>,
}

impl Decision {
    /// The node that the pod goes to.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.chosen.map(|index| &*self.names[index])
    }

    pub(crate) fn node_name(&self) -> Option<&Arc<str>> {
        self.chosen.map(|index| &self.names[index])
    }

    /// The node where room is being made for the pod.
    #[must_use]
    pub fn nominated(&self) -> Option<&str> {
        if let Nomination::Node(node) = &self.nomination { Some(node) } else { None }
    }

    /// The pods that have to go to make room on the [nominated](Self::nominated) node, the most important first.
    #[must_use]
    pub fn victims(&self) -> &[Arc<PodInfo>] {
        &self.victims
    }

    /// Why there is no node, in the words of kube-scheduler; `None` when there is one.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.chosen.is_none().then(|| self.diagnosis.message())
    }

    /// Why nodes were rejected.
    #[must_use]
    pub fn diagnosis(&self) -> &Diagnosis {
        &self.diagnosis
    }

    /// Every node with what was said about it, in the snapshot's order.
    #[must_use]
    pub fn verdicts(&self) -> Vec<(&str, NodeVerdict<'_>)> {
        let mut verdicts: Vec<_> = self.names.iter().map(|name| (&**name, NodeVerdict::NotAsked)).collect();
        for (position, &index) in self.feasible.iter().enumerate() {
            verdicts[index].1 = NodeVerdict::Feasible(self.totals.get(position).copied().unwrap_or_default());
        }
        for (index, plugin, rejection) in &self.diagnosis.rejected {
            verdicts[*index].1 = NodeVerdict::Rejected { plugin, rejection };
        }
        if let Some((nodes, rejection)) = &self.diagnosis.left_out {
            for &index in nodes {
                verdicts[index].1 = NodeVerdict::Rejected { plugin: "", rejection };
            }
        }
        verdicts
    }

    /// A table for people: each node with its total and the scores that make it up, or with the plug-in that rejected it
    /// and why. The chosen node comes first, then the feasible ones, the best first; then the others by name.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut verdicts = self.verdicts();
        let chosen = self.node();
        verdicts.sort_by_key(|(name, verdict)| {
            let total = if let NodeVerdict::Feasible(total) = verdict { Some(*total) } else { None };
            (Some(*name) != chosen, std::cmp::Reverse(total), *name)
        });
        let width = verdicts.iter().map(|(name, _)| name.len()).max().unwrap_or_default().max(4);
        let mut text = format!(
            "{:width$}  {:>8}  {}\n",
            "NODE", "TOTAL", "SCORES (raw, normalized, weighted), OR WHY NOT"
        );
        for (name, verdict) in verdicts {
            let (total, rest) = match verdict {
                NodeVerdict::Feasible(total) => {
                    let scores = self.scores(name).map(|score| {
                        format!("{} {}/{}/{}", score.plugin, score.raw, score.normalized, score.weighted)
                    });
                    (total.to_string(), scores.collect::<Vec<_>>().join(", "))
                }
                NodeVerdict::Rejected { plugin: "", rejection } => ("-".to_owned(), rejection.message()),
                NodeVerdict::Rejected { plugin, rejection } => {
                    ("-".to_owned(), format!("{plugin}: {}", rejection.message()))
                }
                NodeVerdict::NotAsked => ("-".to_owned(), "not asked".to_owned()),
            };
            // Writing into a string can't fail.
            let _ = writeln!(text, "{name:width$}  {total:>8}  {rest}");
        }
        match (chosen, self.failure()) {
            (Some(node), _) => {
                let _ = writeln!(text, "\nThe pod goes to {node}.");
            }
            (None, why) => {
                let _ = writeln!(text, "\n{}", why.unwrap_or_default());
            }
        }
        text
    }

    /// Each plug-in's score of a node; nothing for nodes that are not feasible.
    pub fn scores(&self, node: &str) -> impl Iterator<Item = Score<'_>> {
        let position = self.feasible.iter().position(|&index| *self.names[index] == *node);
        self.scores.iter().filter_map(move |column| {
            let position = position?;
            let normalized = column.normalized[position];
            let raw = column.raw.get(position).copied().unwrap_or(normalized);
            Some(Score { plugin: &column.plugin, raw, normalized, weighted: normalized * column.weight })
        })
    }
}

impl Diagnosis {
    /// The text of the event `FailedScheduling` and of the pod's condition (upstream's `FitError`): the count of nodes
    /// for each reason, in the order of the texts, and what was said about helping the pod.
    #[must_use]
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return NO_NODES.to_owned();
        }
        let mut text = format!("0/{} nodes are available:", self.nodes);
        match &self.pre_filter {
            Some(rejection) => {
                let _ = write!(text, " {}.", rejection.message());
            }
            None => {
                let counts = self.counts();
                if !counts.is_empty() {
                    let _ = write!(text, " {}.", counts.join(", "));
                }
            }
        }
        if !self.post_filter.is_empty() {
            let _ = write!(text, " {}", self.post_filter);
        }
        text
    }

    /// The finality of each rejected node, those included that were left out. When the pod was rejected before any node was looked
    /// at, that counts for all nodes.
    pub fn finalities(&self) -> impl Iterator<Item = (NodeIndex, Finality)> {
        let before = self.pre_filter.iter();
        let before = before.flat_map(|said| (0..self.nodes).map(|index| (index, said.finality)));
        let rejected = self.rejected.iter().map(|(index, _, rejection)| (*index, rejection.finality));
        let left_out = self.left_out.iter();
        let left_out =
            left_out.flat_map(|(nodes, rejection)| nodes.iter().map(|&index| (index, rejection.finality)));
        before.chain(rejected).chain(left_out)
    }

    fn counts(&self) -> Vec<String> {
        let mut counts: BTreeMap<&Cow<'static, str>, usize> = BTreeMap::new();
        for (_, _, rejection) in &self.rejected {
            for reason in &rejection.reasons {
                *counts.entry(reason).or_default() += 1;
            }
        }
        if let Some((nodes, rejection)) = &self.left_out {
            for reason in &rejection.reasons {
                *counts.entry(reason).or_default() += nodes.len();
            }
        }
        let mut lines: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        // Upstream sorts the finished texts, so "10 ..." comes before "2 ...".
        lines.sort_unstable();
        lines
    }
}
