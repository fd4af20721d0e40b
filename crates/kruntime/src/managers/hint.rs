//! Hints where a container's resources could be, and how they become one (the topology manager, KEP-693). Pure.

use super::{Machine, TopologyPolicy};

/// NUMA nodes by their bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask(u64);

impl Mask {
    pub(crate) fn of(nodes: impl IntoIterator<Item = u32>) -> Self {
        Self(nodes.into_iter().filter(|node| *node < 64).fold(0, |bits, node| bits | 1 << node))
    }

    pub(crate) fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn has(self, node: u32) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }

    pub(crate) fn nodes(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |node| self.has(*node))
    }

    pub(crate) fn is_subset(self, other: Self) -> bool {
        self.0 & other.0 == self.0
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Fewer nodes; of as many, those with the lower numbers.
    pub(crate) fn is_narrower(self, other: Self) -> bool {
        (self.count(), self.0) < (other.count(), other.0)
    }

    /// All sets of these nodes but the empty one: the small ones first.
    pub(crate) fn all(nodes: &[u32]) -> Vec<Self> {
        let mut found = Vec::new();
        for size in 1..=nodes.len() {
            combinations(nodes, size, &mut |chosen| {
                found.push(Self::of(chosen.iter().copied()));
                true
            });
        }
        found
    }
}

/// Calls `each` with every choice of `size` of the list, in its order, until that is false.
pub(super) fn combinations<T: Copy>(list: &[T], size: usize, each: &mut impl FnMut(&[T]) -> bool) -> bool {
    fn next<T: Copy>(
        rest: &[T],
        size: usize,
        chosen: &mut Vec<T>,
        each: &mut impl FnMut(&[T]) -> bool,
    ) -> bool {
        if chosen.len() == size {
            return each(chosen);
        }
        for (index, item) in rest.iter().enumerate() {
            if rest.len() - index < size - chosen.len() {
                break;
            }
            chosen.push(*item);
            let goes_on = next(&rest[index + 1..], size, chosen, each);
            chosen.pop();
            if !goes_on {
                return false;
            }
        }
        true
    }
    next(list, size, &mut Vec::with_capacity(size), each)
}

/// A place where something could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    /// The nodes; `None`: anywhere.
    pub(crate) mask: Option<Mask>,
    /// Whether there is no better place on a machine like this one.
    pub(crate) is_preferred: bool,
}

/// What is known of one resource: `None`: it doesn't matter where it is; an empty list: it can't be anywhere.
pub(crate) type Hints = Option<Vec<Hint>>;

pub(crate) const ANYWHERE: Hint = Hint { mask: None, is_preferred: true };

/// Sets the hints for the masks that will do: those with the fewest nodes that could do on the machine when nothing is taken are preferred.
pub(crate) fn hints(masks: Vec<Mask>, fewest: u32) -> Vec<Hint> {
    let hint = |mask: Mask| Hint { mask: Some(mask), is_preferred: mask.count() == fewest };
    masks.into_iter().map(hint).collect()
}

/// The best place for all resources together, and whether the policy takes it.
pub(super) fn merge(
    policy: TopologyPolicy,
    prefers_closest: bool,
    machine: &Machine,
    resources: &[Hints],
) -> (Hint, bool) {
    let is_single = policy == TopologyPolicy::SingleNumaNode;
    let mut lists: Vec<Vec<Hint>> = resources.iter().map(known).collect();
    if is_single {
        for list in &mut lists {
            list.retain(|hint| hint.is_preferred && hint.mask.is_none_or(|mask| mask.count() == 1));
        }
    }
    let default = Mask::of(machine.nodes.keys().copied());
    let merger = Merger {
        machine,
        prefers_closest: prefers_closest && !is_single,
        // The most nodes that a resource needs at least.
        nodes_wanted: lists.iter().filter_map(|list| narrowest(list)).max().unwrap_or(0),
    };
    let mut best: Option<(Mask, bool)> = None;
    each_permutation(&lists, default, &mut |merged| best = Some(merger.better(best, merged)));
    let (mask, is_preferred) = best.filter(|(mask, _)| mask.count() > 0).unwrap_or((default, false));
    let mask = Some(mask).filter(|mask| !is_single || *mask != default);
    let is_admitted = match policy {
        TopologyPolicy::None | TopologyPolicy::BestEffort => true,
        TopologyPolicy::Restricted | TopologyPolicy::SingleNumaNode => is_preferred,
    };
    (Hint { mask, is_preferred }, is_admitted)
}

fn known(hints: &Hints) -> Vec<Hint> {
    match hints {
        None => vec![ANYWHERE],
        Some(list) if list.is_empty() => vec![Hint { mask: None, is_preferred: false }],
        Some(list) => list.clone(),
    }
}

fn narrowest(list: &[Hint]) -> Option<u32> {
    list.iter().filter_map(|hint| hint.mask).map(Mask::count).min()
}

/// Takes one hint of each list, in every way: the nodes that all have, and whether that is as each would like it best.
fn each_permutation(lists: &[Vec<Hint>], default: Mask, each: &mut impl FnMut((Mask, bool))) {
    fn next(
        lists: &[Vec<Hint>],
        merged: Mask,
        first: Option<Mask>,
        is_preferred: bool,
        each: &mut impl FnMut((Mask, bool)),
    ) {
        let Some((list, rest)) = lists.split_first() else { return each((merged, is_preferred)) };
        for hint in list {
            let first = first.or(hint.mask);
            let is_same = hint.mask.is_none_or(|mask| Some(mask) == first);
            let merged = hint.mask.map_or(merged, |mask| merged.and(mask));
            next(rest, merged, first, is_preferred && hint.is_preferred && is_same, each);
        }
    }
    next(lists, default, None, true, each);
}

struct Merger<'a> {
    machine: &'a Machine,
    prefers_closest: bool,
    nodes_wanted: u32,
}

impl Merger<'_> {
    fn better(&self, current: Option<(Mask, bool)>, candidate: (Mask, bool)) -> (Mask, bool) {
        let Some(current) = current.filter(|(mask, _)| mask.count() > 0) else { return candidate };
        if candidate.0.count() == 0 {
            return current;
        }
        match (current.1, candidate.1) {
            (false, true) => candidate,
            (true, false) => current,
            (true, true) => self.fitter(current, candidate),
            (false, false) => {
                // As near to what is needed at least as can be, but not above it.
                let (has, other, wanted) = (current.0.count(), candidate.0.count(), self.nodes_wanted);
                if has > wanted || other == has {
                    self.fitter(current, candidate)
                } else if has == wanted || other > wanted || other < has {
                    current
                } else {
                    candidate
                }
            }
        }
    }

    fn fitter(&self, current: (Mask, bool), candidate: (Mask, bool)) -> (Mask, bool) {
        let (one, other) = (current.0, candidate.0);
        let is_other = if self.prefers_closest && one.count() == other.count() {
            let (near, far) = (self.distance(other), self.distance(one));
            near < far || near == far && other.is_narrower(one)
        } else {
            other.is_narrower(one)
        };
        if is_other { candidate } else { current }
    }

    /// How far the nodes are from each other, on average.
    fn distance(&self, mask: Mask) -> f64 {
        let known = |from: u32, to: u32| {
            let index = self.machine.nodes.keys().position(|node| *node == to)?;
            self.machine.nodes.get(&from)?.distances.get(index).copied()
        };
        let pairs = mask.nodes().flat_map(|from| mask.nodes().map(move |to| (from, to)));
        let sum: u64 = pairs.filter_map(|(from, to)| known(from, to)).sum();
        let count = f64::from(mask.count());
        #[expect(clippy::cast_precision_loss, reason = "distances are small")]
        let sum = sum as f64;
        sum / (count * count).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::machine::tests::machine, *};

    /// `01!` is a preferred hint for the nodes 0 and 1, `*` are all nodes, `-` any.
    fn hint(text: &str, all: Mask) -> Hint {
        let nodes = text.trim_end_matches('!');
        let mask = match nodes {
            "-" => None,
            "*" => Some(all),
            nodes => Some(Mask::of(nodes.chars().map(|digit| digit.to_digit(10).unwrap()))),
        };
        Hint { mask, is_preferred: text.ends_with('!') }
    }

    fn check(policy: TopologyPolicy, closest: bool, machine: &Machine, cases: &[(&str, &str)]) {
        let all = Mask::of(machine.nodes.keys().copied());
        for (resources, expected) in cases {
            let resources: Vec<Hints> = resources
                .split('|')
                .map(str::trim)
                .filter(|text| !text.is_empty())
                .map(|text| match text {
                    "nil" => None,
                    "none" => Some(Vec::new()),
                    list => Some(list.split_whitespace().map(|text| hint(text, all)).collect()),
                })
                .collect();
            let (found, is_admitted) = merge(policy, closest, machine, &resources);
            let expected = hint(expected, all);
            assert_eq!(found, expected, "{policy:?} {resources:?}");
            let strict = matches!(policy, TopologyPolicy::Restricted | TopologyPolicy::SingleNumaNode);
            assert_eq!(is_admitted, !strict || expected.is_preferred);
        }
    }

    const COMMON: &[(&str, &str)] = &[
        ("0! | 0!", "0!"),
        ("1! | 1!", "1!"),
        ("nil | 0!", "0!"),
        ("1! | nil", "1!"),
        ("0! 1! | 0!", "0!"),
        ("0! 1! | 1!", "1!"),
        ("0! 1! | 0! 01", "0!"),
        ("1! 01 | 0! 1! 01", "1!"),
    ];

    /// The cases of upstream's `TestPolicyBestEffortMerge`, `TestPolicyRestrictedMerge` and `TestPolicySingleNumaNodeMerge`.
    #[test]
    fn hints_become_one() {
        let four = machine(4, 2, 2, 1);
        let best_effort = [
            ("01! 02! | 01! 02!", "01!"),
            ("", "*!"),
            ("nil", "*!"),
            ("none", "*"),
            ("-!", "*!"),
            ("-", "*"),
            ("0! | 1!", "*"),
            ("0! | 0", "0"),
            ("1! | 1", "1"),
            ("0! | 01!", "0"),
            ("0! 1! | 01", "0"),
            ("1! | 01!", "1"),
            ("0123 01 | 01", "01"),
            ("0123 01 | 03", "03"),
            ("0123 01 | 12", "12"),
            ("0123 01 | 23", "23"),
        ];
        for policy in [TopologyPolicy::BestEffort, TopologyPolicy::Restricted] {
            check(policy, false, &four, COMMON);
            check(policy, false, &four, &best_effort);
        }
        check(TopologyPolicy::SingleNumaNode, false, &four, COMMON);
        let single = [
            ("", "-!"),
            ("nil", "-!"),
            ("none", "-"),
            ("-!", "-!"),
            ("-", "-"),
            ("0! | 1!", "-"),
            ("0! | 0", "-"),
            ("0! 1! | 01", "-"),
            ("01! | 0! 1! 01", "-"),
            ("nil | 0! 1! 01", "0!"),
        ];
        check(TopologyPolicy::SingleNumaNode, false, &four, &single);
    }

    /// The cases of upstream's for `prefer-closest-numa-nodes`, with the distances of its `commonNUMAInfoEightNodes`.
    #[test]
    fn close_nodes_are_preferred_where_that_is_asked_for() {
        let mut eight = machine(8, 4, 2, 1);
        let rows = [
            [10, 11, 12, 12, 30, 30, 30, 30],
            [11, 10, 12, 12, 30, 30, 30, 30],
            [12, 12, 10, 11, 30, 30, 30, 30],
            [12, 12, 11, 10, 30, 30, 30, 30],
            [30, 30, 30, 30, 10, 11, 12, 12],
            [30, 30, 30, 30, 11, 10, 12, 12],
            [30, 30, 30, 30, 12, 12, 10, 11],
            [30, 30, 30, 30, 12, 12, 13, 10],
        ];
        for (node, row) in eight.nodes.values_mut().zip(rows) {
            node.distances = row.to_vec();
        }
        let cases = [
            ("04! 02! | 04! 02!", "02!"),
            ("4! 02! | 4! 02!", "4!"),
            ("0123 01 | 12 23", "23"),
            ("0123 01 | 123 12 13 23", "23"),
        ];
        for policy in [TopologyPolicy::BestEffort, TopologyPolicy::Restricted] {
            check(policy, true, &eight, COMMON);
            check(policy, true, &eight, &cases);
        }
    }

    #[test]
    fn masks_come_the_small_ones_first() {
        let masks: Vec<Vec<u32>> = Mask::all(&[0, 1, 3]).into_iter().map(|m| m.nodes().collect()).collect();
        let expected: [&[u32]; 7] = [&[0], &[1], &[3], &[0, 1], &[0, 3], &[1, 3], &[0, 1, 3]];
        assert_eq!(masks, expected);
        assert!(Mask::of([0, 1]).is_narrower(Mask::of([0, 2])));
        assert!(Mask::of([5]).is_narrower(Mask::of([0, 1])));
    }
}
