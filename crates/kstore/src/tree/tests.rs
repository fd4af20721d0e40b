//! The tree against a map of the standard library.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Pair(u16, u32);

impl Probe<u16> for u16 {
    fn order(&self, key: &u16) -> Ordering {
        key.cmp(self)
    }

    fn order_of_start(&self, key: &u16, bytes: usize) -> Ordering {
        key.to_be_bytes()[..bytes].cmp(&self.to_be_bytes()[..bytes])
    }

    fn part(&self, at: usize) -> u64 {
        self.to_be_bytes()[at..].iter().fold(0, |part, byte| part << 8 | u64::from(*byte))
    }
}

impl Key for u16 {
    fn common(&self, other: &u16) -> usize {
        common(&self.to_be_bytes(), &other.to_be_bytes())
    }
}

impl Item for Pair {
    type Key = u16;
    fn key(&self) -> &u16 {
        &self.0
    }
}

fn pairs(tree: &Tree<Pair>) -> Vec<(u16, u32)> {
    tree.iter().map(|Pair(key, value)| (key, value)).collect()
}

fn step(tree: &mut Tree<Pair>, map: &mut BTreeMap<u16, u32>, at: u32, (key, insert): (u16, bool)) {
    if insert {
        assert_eq!(tree.insert(Pair(key, at)).map(|Pair(_, value)| value), map.insert(key, at));
    } else {
        assert_eq!(tree.remove(&key).map(|Pair(_, value)| value), map.remove(&key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn it_is_a_map_and_copies_stay(
        first in prop::collection::vec((0u16..600, prop::bool::weighted(0.8)), 0..1_500),
        second in prop::collection::vec((0u16..600, prop::bool::weighted(0.3)), 0..900),
    ) {
        let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
        for (at, change) in first.into_iter().enumerate() {
            step(&mut tree, &mut map, at as u32, change);
        }
        prop_assert_eq!(tree.verify(), Ok(()));
        let (copy, copied) = (tree.clone(), map.clone());
        for (at, change) in second.into_iter().enumerate() {
            step(&mut tree, &mut map, 10_000 + at as u32, change);
        }
        prop_assert_eq!(tree.verify(), Ok(()));
        prop_assert_eq!(copy.verify(), Ok(()));
        prop_assert_eq!(pairs(&tree), map.clone().into_iter().collect::<Vec<_>>());
        prop_assert_eq!(pairs(&copy), copied.clone().into_iter().collect::<Vec<_>>());
        for key in (0..600).step_by(37) {
            prop_assert_eq!(tree.clone().find_mut(&key).map(|pair| pair.1), map.get(&key).copied());
            prop_assert_eq!(tree.find(&key).map(|pair| pair.1), map.get(&key).copied());
            let (rank, end) = (tree.rank(|other| other.cmp(&key)), tree.rank(|other| other.cmp(&(key + 50))));
            prop_assert_eq!(rank, map.range(..key).count());
            let slice: Vec<u16> = tree.slice(rank, end).map(|pair| pair.0).collect();
            prop_assert_eq!(slice, map.range(key..key + 50).map(|(key, _)| *key).collect::<Vec<_>>());
        }
        // What is sought may be a whole group that stands side by side.
        for group in 0..12u16 {
            let fifties = |key: &u16| (key / 50).cmp(&group);
            prop_assert_eq!(tree.rank(fifties), map.range(..group * 50).count());
        }
        let changes = diff(&copy, &tree, |old, new| old == new);
        let mut replayed = copied;
        for (before, after) in changes {
            match (before, after) {
                (before, Some(Pair(key, value))) => {
                    prop_assert_eq!(before.map(|pair| pair.1), replayed.insert(key, value));
                }
                (Some(Pair(key, value)), None) => prop_assert_eq!(replayed.remove(&key), Some(value)),
                (None, None) => prop_assert!(false, "a difference of nothing"),
            }
        }
        prop_assert_eq!(&replayed, &map);
        let mut built = Tree::from_sorted(map.iter().map(|(key, value)| Pair(*key, *value)));
        prop_assert_eq!(built.verify(), Ok(()));
        prop_assert_eq!(pairs(&built), pairs(&tree));
        for key in (0..600).step_by(7) {
            step(&mut built, &mut map, u32::from(key), (key, key % 2 == 0));
        }
        prop_assert_eq!(built.verify(), Ok(()));
    }
}

/// A difference of two trees of 60,000 that differ in one item looks at a few nodes.
#[test]
fn a_difference_costs_what_differs() {
    let mut tree = Tree::default();
    for number in 0..60_000 {
        tree.insert(Pair(number, 0));
    }
    let copy = tree.clone();
    tree.insert(Pair(31_000, 1));
    let compared = std::cell::Cell::new(0);
    let changes = diff(&copy, &tree, |old, new| {
        compared.set(compared.get() + 1);
        old == new
    });
    assert_eq!(changes, [(Some(Pair(31_000, 0)), Some(Pair(31_000, 1)))]);
    assert!(compared.get() <= LEAF_MAX, "{} items were compared", compared.get());
}

/// Keys of bytes that begin alike, end in zeros, or are the beginnings of others.
fn awkward() -> impl Strategy<Value = bytes::Bytes> {
    let part = prop::sample::select(vec![
        "",
        "a",
        "ab",
        "namespace-1/",
        "namespace-2/",
        "\0",
        "\0\0",
        "zzzzzzzz",
        "zzzzzzzzz",
        "\u{ff}",
    ]);
    prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat().into())
}

#[derive(Clone)]
struct Word(bytes::Bytes);

impl Item for Word {
    type Key = bytes::Bytes;
    fn key(&self) -> &bytes::Bytes {
        &self.0
    }
}

proptest! {
    #[test]
    fn keys_of_any_bytes_are_found(
        changes in prop::collection::vec((awkward(), prop::bool::weighted(0.7)), 0..600),
        sought in prop::collection::vec(awkward(), 0..50),
    ) {
        let (mut tree, mut set) = (Tree::default(), std::collections::BTreeSet::new());
        for (key, insert) in changes {
            match insert {
                true => prop_assert_eq!(tree.insert(Word(key.clone())).is_none(), set.insert(key)),
                false => prop_assert_eq!(tree.remove(&key).is_some(), set.remove(&key)),
            }
        }
        prop_assert_eq!(tree.verify(), Ok(()));
        for key in &sought {
            prop_assert_eq!(tree.find(&key[..]).is_some(), set.contains(key));
        }
        prop_assert_eq!(tree.iter().map(|word| word.0).collect::<Vec<_>>(), set.into_iter().collect::<Vec<_>>());
    }

    /// Entries under terms: of a node with several terms, and of one with one.
    #[test]
    fn terms_and_keys_are_found(
        changes in prop::collection::vec((awkward(), awkward(), prop::bool::weighted(0.7)), 0..600),
        sought in prop::collection::vec((awkward(), awkward()), 0..50),
    ) {
        let term = |bytes: &bytes::Bytes| crate::Term::from(&bytes[..]);
        let (mut index, mut set) = (crate::terms::TermIndex::default(), std::collections::BTreeSet::new());
        for (of, key, insert) in changes {
            if insert {
                index.insert(&term(&of), &key);
                set.insert((of, key));
            } else {
                index.remove(&term(&of), &key);
                set.remove(&(of, key));
            }
        }
        prop_assert_eq!(index.verify(), Ok(()));
        prop_assert_eq!(index.len(), set.len());
        for (of, key) in sought {
            prop_assert_eq!(index.has(&term(&of), &key), set.contains(&(of, key)));
        }
    }
}
