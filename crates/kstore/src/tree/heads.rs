//! What a search in a node looks at first: eight bytes of each key, behind what all keys of the node have in common.
//!
//! Keys are elsewhere in memory, so that looking at one costs two cache misses; the heads of a node stand side by side. Keys of
//! a table begin alike, and what is common is not in the heads, so that they tell nearly all keys of a node apart.

use std::cmp::Ordering;

use bytes::Bytes;
use smallvec::SmallVec;

use super::LEAF_MAX;

/// Something that a tree is ordered by, in the order of its bytes.
pub(crate) trait Key: Ord + Clone + Probe<Self> {
    /// How many bytes both begin with. Behind so many, `part` tells of them what it can.
    fn common(&self, other: &Self) -> usize;
}

/// Something that is sought among keys.
pub(crate) trait Probe<K: ?Sized> {
    /// How a key relates to what is sought.
    fn order(&self, key: &K) -> Ordering;
    /// How the first `bytes` bytes of a key relate to those of what is sought; equal only if both have them in common.
    fn order_of_start(&self, key: &K, bytes: usize) -> Ordering;
    /// The eight bytes from `at` on, zeros behind the end. Of two keys that have `at` bytes in common, the one whose part is less
    /// is less.
    fn part(&self, at: usize) -> u64;
}

pub(crate) fn part(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(whole) = rest.first_chunk() {
        return u64::from_be_bytes(*whole);
    }
    let mut padded = [0; 8];
    padded[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(padded)
}

pub(crate) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

pub(crate) fn start(bytes: &[u8], length: usize) -> &[u8] {
    &bytes[..length.min(bytes.len())]
}

impl Probe<Bytes> for [u8] {
    fn order(&self, key: &Bytes) -> Ordering {
        key[..].cmp(self)
    }

    fn order_of_start(&self, key: &Bytes, bytes: usize) -> Ordering {
        start(key, bytes).cmp(start(self, bytes))
    }

    fn part(&self, at: usize) -> u64 {
        part(self, at)
    }
}

impl Probe<Bytes> for Bytes {
    fn order(&self, key: &Bytes) -> Ordering {
        self[..].order(key)
    }

    fn order_of_start(&self, key: &Bytes, bytes: usize) -> Ordering {
        self[..].order_of_start(key, bytes)
    }

    fn part(&self, at: usize) -> u64 {
        part(self, at)
    }
}

impl Key for Bytes {
    fn common(&self, other: &Bytes) -> usize {
        common(self, other)
    }
}

/// The heads of a node's keys.
#[derive(Clone, Default)]
pub(super) struct Heads {
    /// So many bytes all keys of the node have in common, or more.
    skip: usize,
    heads: SmallVec<[u64; LEAF_MAX + 1]>,
}

impl Heads {
    /// Of keys in their order.
    pub(super) fn of<'a, K: Key + 'a>(keys: impl DoubleEndedIterator<Item = &'a K> + Clone) -> Heads {
        let (Some(first), Some(last)) = (keys.clone().next(), keys.clone().next_back()) else {
            return Heads::default();
        };
        let skip = first.common(last);
        Heads { skip, heads: keys.map(|key| key.part(skip)).collect() }
    }

    /// The keys that can be what is sought: all before are less, all from the end on are greater.
    pub(super) fn narrow<K, P: Probe<K> + ?Sized>(&self, first: &K, probe: &P) -> std::ops::Range<usize> {
        match probe.order_of_start(first, self.skip) {
            Ordering::Less => self.heads.len()..self.heads.len(),
            Ordering::Greater => 0..0,
            Ordering::Equal => self.guess(probe),
        }
    }

    /// The keys that can be what is sought, if that begins as all keys of the node do.
    pub(super) fn guess<K, P: Probe<K> + ?Sized>(&self, probe: &P) -> std::ops::Range<usize> {
        let sought = probe.part(self.skip);
        let from = self.heads.partition_point(|head| *head < sought);
        let same = self.heads[from..].iter().take_while(|head| **head == sought).count();
        from..from + same
    }

    /// A key was put in at `at`; whether its head is there now. Otherwise the keys have less in common than before.
    pub(super) fn insert<K: Key>(&mut self, at: usize, key: &K, neighbour: Option<&K>) -> bool {
        let fits = neighbour.is_some_and(|neighbour| key.order_of_start(neighbour, self.skip).is_eq());
        if fits {
            self.heads.insert(at, key.part(self.skip));
        }
        fits
    }

    pub(super) fn remove(&mut self, at: usize) {
        self.heads.remove(at);
    }

    /// Whether they are those of these keys.
    pub(super) fn are_of<'a, K: Key + 'a>(
        &self,
        keys: impl DoubleEndedIterator<Item = &'a K> + Clone,
    ) -> bool {
        let whole = Heads::of(keys.clone());
        self.skip <= whole.skip && self.heads.iter().copied().eq(keys.map(|key| key.part(self.skip)))
    }
}
