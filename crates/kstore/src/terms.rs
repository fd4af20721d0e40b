//! Which keys have which term.
//!
//! Each term has its keys, in their order, packed into blocks of bytes: what the keys of a block begin with is there once. An
//! entry that is found under a term costs what its key ends with, and no allocation; copying a block touches nothing else.

use std::{cmp::Ordering, sync::Arc};

use bytes::Bytes;

use crate::{
    Term,
    tree::{self, Item, Probe, Slice, Tree, common},
};

/// A block that becomes longer is parted. It is copied as a whole when it changes.
const BLOCK_BYTES_MAX: usize = 1_024;
/// Lengths are written in so many bytes; keys are shorter than `KEY_BYTES_MAX`.
const LENGTH_BYTES: usize = 2;

/// The terms of a table's entries. Copies share what they have in common.
#[derive(Clone, Default)]
pub(crate) struct TermIndex {
    groups: Tree<Group>,
    /// How many keys all terms have together.
    places: usize,
}

/// A term and its keys.
#[derive(Clone)]
struct Group {
    term: Term,
    count: usize,
    keys: Keys,
}

/// Never empty. Most terms have few keys.
#[derive(Clone)]
enum Keys {
    Few(Packed),
    Many(Tree<Block>),
}

/// Some keys that follow each other.
#[derive(Clone)]
struct Block {
    /// The first of them.
    low: Bytes,
    keys: Packed,
}

/// Keys in their order, at least one: the length of what all begin with, that, and of each the length of the rest, and the rest.
#[derive(Clone)]
struct Packed(Arc<[u8]>);

impl Item for Group {
    type Key = Term;
    fn key(&self) -> &Term {
        &self.term
    }
}

impl Item for Block {
    type Key = Bytes;
    fn key(&self) -> &Bytes {
        &self.low
    }
}

impl Probe<Term> for Term {
    fn order(&self, key: &Term) -> Ordering {
        key.cmp(self)
    }

    fn order_of_start(&self, key: &Term, bytes: usize) -> Ordering {
        tree::start(key.as_bytes(), bytes).cmp(tree::start(self.as_bytes(), bytes))
    }

    fn part(&self, at: usize) -> u64 {
        tree::part(self.as_bytes(), at)
    }
}

impl tree::Key for Term {
    fn common(&self, other: &Term) -> usize {
        common(self.as_bytes(), other.as_bytes())
    }
}

/// The two bytes that say a length, and what is behind them.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    Some((usize::from(u16::from_le_bytes(*length)), rest))
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend((part.len() as u16).to_le_bytes());
    bytes.extend(part);
}

impl Packed {
    fn of<K: AsRef<[u8]>>(keys: &[K]) -> Packed {
        let (first, last) = match keys {
            [first, .., last] => (first.as_ref(), last.as_ref()),
            [only] => (only.as_ref(), only.as_ref()),
            [] => (&[][..], &[][..]),
        };
        let start = common(first, last);
        let mut bytes = Vec::with_capacity(keys.iter().map(|key| key.as_ref().len()).sum());
        put(&mut bytes, &first[..start]);
        keys.iter().for_each(|key| put(&mut bytes, &key.as_ref()[start..]));
        Packed(bytes.into())
    }

    /// What all keys begin with.
    fn start(&self) -> &[u8] {
        length(&self.0).and_then(|(length, rest)| rest.get(..length)).unwrap_or_default()
    }

    /// The rest of each key, and where it is written.
    fn rests(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut at = LENGTH_BYTES + self.start().len();
        std::iter::from_fn(move || {
            let (length, rest) = length(self.0.get(at..)?)?;
            let place = at;
            at += LENGTH_BYTES + length;
            Some((place, rest.get(..length)?))
        })
    }

    fn keys(&self) -> Vec<Vec<u8>> {
        self.rests().map(|(_, rest)| [self.start(), rest].concat()).collect()
    }

    /// Where in the bytes the key is, or would be.
    fn find(&self, rest_of_key: &[u8]) -> Result<usize, usize> {
        for (at, rest) in self.rests() {
            match rest.cmp(rest_of_key) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(at),
                Ordering::Greater => return Err(at),
            }
        }
        Err(self.0.len())
    }

    fn has(&self, key: &[u8]) -> bool {
        key.strip_prefix(self.start()).is_some_and(|rest| self.find(rest).is_ok())
    }

    /// With one more; none if it is there already.
    fn with(&self, key: &[u8]) -> Option<Packed> {
        let Some(rest) = key.strip_prefix(self.start()) else {
            let mut keys = self.keys();
            let at = keys.binary_search_by(|other| other[..].cmp(key)).err()?;
            keys.insert(at, key.to_vec());
            return Some(Packed::of(&keys));
        };
        let at = self.find(rest).err()?;
        let mut bytes = Vec::with_capacity(self.0.len() + LENGTH_BYTES + rest.len());
        bytes.extend(&self.0[..at]);
        put(&mut bytes, rest);
        bytes.extend(&self.0[at..]);
        Some(Packed(bytes.into()))
    }

    /// Without one; none if it is not there.
    fn without(&self, key: &[u8]) -> Option<Packed> {
        let rest = key.strip_prefix(self.start())?;
        let at = self.find(rest).ok()?;
        Some(Packed([&self.0[..at], &self.0[at + LENGTH_BYTES + rest.len()..]].concat().into()))
    }

    fn is_empty(&self) -> bool {
        self.rests().next().is_none()
    }

    /// Two that together hold the same, if it is too long for one.
    fn parted(&self) -> Option<[Packed; 2]> {
        if self.0.len() <= BLOCK_BYTES_MAX {
            return None;
        }
        let keys = self.keys();
        // Keys often come in ascending order; leaving the first part fuller then wastes less.
        let at = (keys.len() * 2).div_ceil(3);
        (at < keys.len()).then(|| [Packed::of(&keys[..at]), Packed::of(&keys[at..])])
    }

    fn low(&self) -> Bytes {
        let first = self.rests().next().map(|(_, rest)| rest).unwrap_or_default();
        [self.start(), first].concat().into()
    }
}

impl Block {
    fn of(keys: Packed) -> Block {
        Block { low: keys.low(), keys }
    }
}

/// The block in which a key belongs.
fn block_of(blocks: &Tree<Block>, key: &[u8]) -> Option<Block> {
    let after = blocks.rank(|low| if low[..] <= *key { Ordering::Less } else { Ordering::Greater });
    let at = after.saturating_sub(1);
    blocks.slice(at, at + 1).next()
}

/// Puts `keys` where `old` was.
fn replace(blocks: &mut Tree<Block>, old: &Block, keys: Packed) {
    let new = match keys.parted() {
        Some([first, second]) => {
            blocks.insert(Block::of(second));
            Block::of(first)
        }
        None => Block::of(keys),
    };
    if new.low != old.low {
        blocks.remove(&old.low);
    }
    blocks.insert(new);
}

impl Keys {
    fn has(&self, key: &[u8]) -> bool {
        match self {
            Keys::Few(keys) => keys.has(key),
            Keys::Many(blocks) => block_of(blocks, key).is_some_and(|block| block.keys.has(key)),
        }
    }

    /// Whether the key was not there.
    fn insert(&mut self, key: &[u8]) -> bool {
        match self {
            Keys::Few(keys) => {
                let Some(more) = keys.with(key) else { return false };
                *self = match more.parted() {
                    Some(parts) => Keys::Many(Tree::from_sorted(parts.map(Block::of).into_iter())),
                    None => Keys::Few(more),
                };
            }
            Keys::Many(blocks) => {
                let Some(block) = block_of(blocks, key) else { return false };
                let Some(more) = block.keys.with(key) else { return false };
                replace(blocks, &block, more);
            }
        }
        true
    }

    /// Whether the key was there. What becomes empty is dropped by the caller.
    fn remove(&mut self, key: &[u8]) -> bool {
        match self {
            Keys::Few(keys) => {
                let Some(fewer) = keys.without(key) else { return false };
                *keys = fewer;
            }
            Keys::Many(blocks) => {
                let Some(block) = block_of(blocks, key) else { return false };
                let Some(fewer) = block.keys.without(key) else { return false };
                if fewer.is_empty() {
                    blocks.remove(&block.low);
                } else {
                    replace(blocks, &block, fewer);
                }
            }
        }
        true
    }
}

impl TermIndex {
    /// How many keys all terms have together.
    pub(crate) fn len(&self) -> usize {
        self.places
    }

    /// The term as it is kept already, so that equal terms share their bytes.
    pub(crate) fn intern(&self, term: Term) -> Term {
        match self.groups.find(&term) {
            Some(group) => group.term.clone(),
            None => term,
        }
    }

    /// Puts a key under a term.
    pub(crate) fn insert(&mut self, term: &Term, key: &[u8]) {
        let added = match self.groups.find_mut(term) {
            Some(group) => {
                let added = group.keys.insert(key);
                group.count += usize::from(added);
                added
            }
            None => {
                let keys = Keys::Few(Packed::of(&[key]));
                self.groups.insert(Group { term: term.clone(), count: 1, keys });
                true
            }
        };
        self.places += usize::from(added);
    }

    /// Takes a key away from a term.
    pub(crate) fn remove(&mut self, term: &Term, key: &[u8]) {
        let Some(group) = self.groups.find_mut(term) else { return };
        if !group.keys.remove(key) {
            return;
        }
        group.count -= 1;
        if group.count == 0 {
            self.groups.remove(term);
        }
        self.places -= 1;
    }

    pub(crate) fn has(&self, term: &Term, key: &[u8]) -> bool {
        self.groups.find(term).is_some_and(|group| group.keys.has(key))
    }

    /// The keys of a term, in their order.
    pub(crate) fn keys(&self, term: &Term) -> TermKeys {
        let empty = || Tree::default().iter();
        let (left, few, many) = match self.groups.find(term) {
            None => (0, None, empty()),
            Some(Group { count, keys: Keys::Few(keys), .. }) => (*count, Some(keys.clone()), empty()),
            Some(Group { count, keys: Keys::Many(blocks), .. }) => (*count, None, blocks.iter()),
        };
        let at = few.as_ref().map_or(0, |keys| LENGTH_BYTES + keys.start().len());
        TermKeys { left, block: few, at, blocks: many, key: Vec::new() }
    }

    /// Whether everything is ordered, counted and packed as it should be; what is wrong otherwise.
    pub(crate) fn verify(&self) -> Result<(), &'static str> {
        self.groups.verify()?;
        let mut places = 0;
        for group in self.groups.iter() {
            let mut keys = self.keys(&group.term);
            let (mut count, mut last) = (0, None::<Vec<u8>>);
            while let Some(key) = keys.next() {
                if last.is_some_and(|last| *last >= *key) {
                    return Err("the keys of a term are out of order");
                }
                (count, last) = (count + 1, Some(key.to_vec()));
            }
            if count != group.count || count == 0 || !keys.is_at_end() {
                return Err("a term counts its keys wrongly");
            }
            if let Keys::Many(blocks) = &group.keys {
                blocks.verify()?;
                if blocks.iter().any(|block| block.low != block.keys.low()) {
                    return Err("a block of keys is not where it begins");
                }
            }
            places += count;
        }
        if places == self.places { Ok(()) } else { Err("the terms count their keys wrongly") }
    }
}

/// The keys of a term. It owns what it reads and goes on lazily.
pub(crate) struct TermKeys {
    left: usize,
    /// The block that is being read, and where.
    block: Option<Packed>,
    at: usize,
    blocks: Slice<Block>,
    /// The key that was read last.
    key: Vec<u8>,
}

impl TermKeys {
    pub(crate) fn len(&self) -> usize {
        self.left
    }

    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        loop {
            let rest = self.block.as_ref().and_then(|block| Some((block, block.0.get(self.at..)?)));
            if let Some((block, (length, rest))) = rest.and_then(|(block, rest)| Some((block, length(rest)?)))
            {
                self.key.clear();
                self.key.extend(block.start());
                self.key.extend(rest.get(..length)?);
                self.at += LENGTH_BYTES + length;
                self.left -= 1;
                return Some(&self.key);
            }
            let block = self.blocks.next()?;
            self.at = LENGTH_BYTES + block.keys.start().len();
            self.block = Some(block.keys);
        }
    }

    /// Whether there is no more than was counted.
    fn is_at_end(&mut self) -> bool {
        self.left == 0
            && self.block.as_ref().is_none_or(|block| self.at == block.0.len())
            && self.blocks.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all(index: &TermIndex, term: &Term) -> Vec<Vec<u8>> {
        let mut keys = index.keys(term);
        let mut all = Vec::with_capacity(keys.len());
        while let Some(key) = keys.next() {
            all.push(key.to_vec());
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Keys of several lengths and beginnings, enough of them for many blocks; copies stay as they are.
        #[test]
        fn it_is_a_set_of_places(steps in prop::collection::vec((0..3_u8, 0..400_u16, prop::bool::weighted(0.7)), 0..1_500)) {
            let (mut index, mut model) = (TermIndex::default(), BTreeSet::new());
            let mut copies = Vec::new();
            for (at, (term, number, insert)) in steps.into_iter().enumerate() {
                let term = Term::from(["a", "ab", "b"][usize::from(term)]);
                let start = ["", "ns-1/some-pod-", "ns-1/", "n"][usize::from(number % 4)];
                let key = match number {
                    // The beginning of all others.
                    0 => Vec::new(),
                    _ => format!("{start}{}{number}", "7".repeat(usize::from(number) % 9)).into_bytes(),
                };
                if insert {
                    index.insert(&term, &key);
                    model.insert((term.clone(), key.clone()));
                } else {
                    index.remove(&term, &key);
                    model.remove(&(term.clone(), key.clone()));
                }
                prop_assert_eq!(index.has(&term, &key), insert);
                if at % 300 == 0 {
                    copies.push((index.clone(), model.clone()));
                }
            }
            copies.push((index, model));
            for (index, model) in &copies {
                prop_assert_eq!(index.verify(), Ok(()));
                prop_assert_eq!(index.len(), model.len());
                for term in ["a", "ab", "b", "c"].map(Term::from) {
                    let expected: Vec<_> = model.iter().filter(|(of, _)| *of == term).map(|(_, key)| key.clone()).collect();
                    prop_assert_eq!(index.keys(&term).len(), expected.len());
                    prop_assert_eq!(all(index, &term), expected);
                }
            }
        }
    }

    /// Equal terms share their bytes, and so an entry costs little.
    #[test]
    fn a_term_is_kept_once() {
        let mut index = TermIndex::default();
        let first = index.intern(Term::from("node-1"));
        index.insert(&first, b"a");
        let second = index.intern(Term::from("node-1"));
        assert!(std::ptr::eq(first.as_bytes(), second.as_bytes()));
    }

    /// A thousand keys that begin alike take little more than what they end with.
    #[test]
    fn what_keys_have_in_common_is_kept_once() {
        let mut index = TermIndex::default();
        let term = Term::from("namespace");
        for number in 0..1_000 {
            index.insert(&term, format!("a-namespace-with-a-long-name/a-deployment-{number:05}").as_bytes());
        }
        let Some(Group { keys: Keys::Many(blocks), .. }) = index.groups.find(&term) else {
            panic!("so many are in several blocks")
        };
        let bytes: usize = blocks.iter().map(|block| block.keys.0.len() + block.low.len()).sum();
        assert!(bytes < 1_000 * 8, "{bytes} bytes for 1,000 keys that differ in three");
    }
}
