//! An ordered tree whose copies share what they have in common (a copy-on-write B+tree).
//!
//! A copy costs a reference count. A change copies the nodes on its path, but only those that a copy still shares: the
//! rest is changed in place, so that a batch of changes between two publications copies each touched node once. Every
//! node knows how many items are below it, so ranks, and therefore exact counts of ranges, cost O(log n).

mod heads;
mod slice;
#[cfg(test)]
mod tests;

use std::{cmp::Ordering, sync::Arc};

use heads::Heads;
pub(crate) use heads::{Key, Probe, common, part, start};
pub(crate) use slice::{Slice, diff};

/// A leaf is shared item by item when it is copied, so it is kept small.
const LEAF_MAX: usize = 16;
const INNER_MAX: usize = 32;

/// What a tree holds: something with an order.
pub(crate) trait Item: Clone {
    /// What items are ordered by; cloned into inner nodes.
    type Key: Key;
    fn key(&self) -> &Self::Key;

    /// Looks at what a clone changes. Clones of shared items wait for one cache miss after the other, mere looks don't wait for
    /// each other: so what is about to be cloned one by one is looked at all at once before.
    fn touch(&self) {}
}

pub(crate) struct Tree<T: Item> {
    root: Option<Arc<Node<T>>>,
}

enum Node<T: Item> {
    Leaf(Leaf<T>),
    Inner(Inner<T>),
}

struct Leaf<T: Item> {
    /// Sorted, never empty.
    items: Vec<T>,
    heads: Heads,
}

/// Where children begin.
struct Lows<K> {
    keys: Vec<K>,
    heads: Heads,
}

struct Inner<T: Item> {
    /// One for each child, sorted: not greater than any key below it, greater than every key before. They change seldom, so
    /// copies of the node share them.
    lows: Arc<Lows<T::Key>>,
    /// In order, never empty.
    children: Vec<Child<T>>,
}

struct Child<T: Item> {
    /// How many items are below.
    count: usize,
    node: Arc<Node<T>>,
}

impl<T: Item> Clone for Tree<T> {
    fn clone(&self) -> Self {
        Tree { root: self.root.clone() }
    }
}

impl<T: Item> Default for Tree<T> {
    fn default() -> Self {
        Tree { root: None }
    }
}

impl<T: Item> Clone for Child<T> {
    fn clone(&self) -> Self {
        Child { count: self.count, node: self.node.clone() }
    }
}

impl<T: Item> Clone for Node<T> {
    /// With room for one more, since a node is copied in order to be changed.
    fn clone(&self) -> Self {
        match self {
            Node::Leaf(leaf) => {
                touch_all(&leaf.items);
                Node::Leaf(Leaf { items: with_room(&leaf.items), heads: leaf.heads.clone() })
            }
            Node::Inner(inner) => {
                inner.children.iter().for_each(|child| touch(&child.node));
                Node::Inner(Inner { lows: inner.lows.clone(), children: with_room(&inner.children) })
            }
        }
    }
}

/// See [`Item::touch`].
pub(crate) fn touch<T>(shared: &Arc<T>) {
    std::hint::black_box(Arc::strong_count(shared));
}

fn touch_all<T: Item>(items: &[T]) {
    items.iter().for_each(Item::touch);
}

fn with_room<C: Clone>(source: &[C]) -> Vec<C> {
    let mut copy = Vec::with_capacity(source.len() + 1);
    copy.extend_from_slice(source);
    copy
}

impl<T: Item> Node<T> {
    /// How many items are below.
    fn count(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.items.len(),
            Node::Inner(inner) => inner.children.iter().map(|child| child.count).sum(),
        }
    }

    /// How many items or children it holds itself.
    fn width(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.items.len(),
            Node::Inner(inner) => inner.children.len(),
        }
    }

    fn width_max(&self) -> usize {
        match self {
            Node::Leaf(_) => LEAF_MAX,
            Node::Inner(_) => INNER_MAX,
        }
    }

    /// Takes what is right of `at` out into a node of its own. `at` is inside.
    fn split_off(&mut self, at: usize) -> (T::Key, Node<T>) {
        match self {
            Node::Leaf(leaf) => {
                let right = leaf.items.split_off(at);
                leaf.heads = heads_of(&leaf.items);
                (right[0].key().clone(), Node::Leaf(Leaf::new(right)))
            }
            Node::Inner(inner) => {
                let lows = Arc::make_mut(&mut inner.lows);
                let right = lows.keys.split_off(at);
                lows.heads = Heads::of(lows.keys.iter());
                let children = inner.children.split_off(at);
                (right[0].clone(), Node::Inner(Inner { lows: Arc::new(Lows::new(right)), children }))
            }
        }
    }

    /// Appends a sibling of the same level.
    fn append(&mut self, right: Node<T>) {
        match (self, right) {
            (Node::Leaf(leaf), Node::Leaf(more)) => {
                leaf.items.extend(more.items);
                leaf.heads = heads_of(&leaf.items);
            }
            (Node::Inner(inner), Node::Inner(more)) => {
                let lows = Arc::make_mut(&mut inner.lows);
                lows.keys.extend(Arc::unwrap_or_clone(more.lows).keys);
                lows.heads = Heads::of(lows.keys.iter());
                inner.children.extend(more.children);
            }
            _ => unreachable!("siblings are of one level"),
        }
    }
}

fn heads_of<T: Item>(items: &[T]) -> Heads {
    Heads::of(items.iter().map(Item::key))
}

impl<T: Item> Leaf<T> {
    fn new(items: Vec<T>) -> Leaf<T> {
        Leaf { heads: heads_of(&items), items }
    }

    /// Where the item is that is sought, or where it would be.
    fn find(&self, probe: &(impl Probe<T::Key> + ?Sized)) -> Result<usize, usize> {
        let Some(first) = self.items.first() else { return Err(0) };
        let narrow = self.heads.narrow(first.key(), probe);
        let found = self.items[narrow.clone()].binary_search_by(|item| probe.order(item.key()));
        found.map(|at| narrow.start + at).map_err(|at| narrow.start + at)
    }

    fn insert(&mut self, at: usize, item: T) {
        let neighbour = self.items.get(at).or_else(|| self.items.last()).map(Item::key);
        let fits = self.heads.insert(at, item.key(), neighbour);
        self.items.insert(at, item);
        if !fits {
            self.heads = heads_of(&self.items);
        }
    }
}

impl<K: Key> Lows<K> {
    fn new(keys: Vec<K>) -> Lows<K> {
        Lows { heads: Heads::of(keys.iter()), keys }
    }

    fn insert(&mut self, at: usize, low: K) {
        let neighbour = self.keys.get(at).or_else(|| self.keys.last());
        let fits = self.heads.insert(at, &low, neighbour);
        self.keys.insert(at, low);
        if !fits {
            self.heads = Heads::of(self.keys.iter());
        }
    }

    fn remove(&mut self, at: usize) {
        self.keys.remove(at);
        self.heads.remove(at);
    }
}

impl<K: Clone> Clone for Lows<K> {
    fn clone(&self) -> Self {
        Lows { keys: self.keys.clone(), heads: self.heads.clone() }
    }
}

impl<T: Item> Inner<T> {
    /// In which child something belongs.
    fn child_of(&self, probe: &(impl Probe<T::Key> + ?Sized)) -> usize {
        let Some(first) = self.lows.keys.first() else { return 0 };
        let narrow = self.lows.heads.narrow(first, probe);
        let below = self.lows.keys[narrow.clone()].partition_point(|low| probe.order(low).is_le());
        (narrow.start + below).saturating_sub(1)
    }
}

impl<T: Item> Tree<T> {
    pub(crate) fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.count())
    }

    /// The item with that key.
    pub(crate) fn find(&self, probe: &(impl Probe<T::Key> + ?Sized)) -> Option<&T> {
        // Most often it is there. What is sought then begins as all keys of a node do on the whole way down, and that need not be
        // looked at, which would be a cache miss for each node: whatever is found in the end either is what is sought or not.
        if let Some(found) = self.find_unchecked(probe) {
            return Some(found);
        }
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Inner(inner) => node = &inner.children[inner.child_of(probe)].node,
                Node::Leaf(leaf) => return leaf.find(probe).ok().map(|at| &leaf.items[at]),
            }
        }
    }

    /// The item with that key; none perhaps although it is there, if it doesn't begin as others do.
    fn find_unchecked(&self, probe: &(impl Probe<T::Key> + ?Sized)) -> Option<&T> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Inner(Inner { lows, children }) => {
                    let narrow = lows.heads.guess(probe);
                    let below = match narrow.len() {
                        0 => 0,
                        _ => lows.keys[narrow.clone()].partition_point(|low| probe.order(low).is_le()),
                    };
                    node = &children[(narrow.start + below).saturating_sub(1)].node;
                }
                Node::Leaf(leaf) => {
                    let mut candidates = leaf.items[leaf.heads.guess(probe)].iter();
                    return candidates.find(|item| probe.order(item.key()).is_eq());
                }
            }
        }
    }

    /// The item with that key, to be changed, its key excepted.
    pub(crate) fn find_mut(&mut self, probe: &(impl Probe<T::Key> + ?Sized)) -> Option<&mut T> {
        // Nothing is copied for what is not there.
        self.find(probe)?;
        let mut node = self.root.as_mut()?;
        loop {
            match Arc::make_mut(node) {
                Node::Inner(inner) => {
                    let at = inner.child_of(probe);
                    node = &mut inner.children[at].node;
                }
                Node::Leaf(leaf) => {
                    let at = leaf.find(probe).ok()?;
                    return leaf.items.get_mut(at);
                }
            }
        }
    }

    /// How many items come before what is sought: those for which `compare` is less. It may be equal for several that stand
    /// side by side.
    pub(crate) fn rank(&self, compare: impl Fn(&T::Key) -> Ordering) -> usize {
        let Some(mut node) = self.root.as_deref() else { return 0 };
        let mut before = 0;
        loop {
            match node {
                Node::Inner(inner) => {
                    // A child that begins with what is sought may not be the first that has it.
                    let at = inner.lows.keys.partition_point(|low| compare(low).is_lt()).saturating_sub(1);
                    before += inner.children[..at].iter().map(|child| child.count).sum::<usize>();
                    node = &inner.children[at].node;
                }
                Node::Leaf(Leaf { items, .. }) => {
                    return before + items.partition_point(|item| compare(item.key()).is_lt());
                }
            }
        }
    }

    /// The items from rank `from` up to but without rank `to`.
    pub(crate) fn slice(&self, from: usize, to: usize) -> Slice<T> {
        Slice::new(self.root.clone(), from, to.saturating_sub(from))
    }

    pub(crate) fn iter(&self) -> Slice<T> {
        self.slice(0, self.len())
    }

    /// Puts an item in; the one it replaces.
    pub(crate) fn insert(&mut self, item: T) -> Option<T> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(Leaf::new(vec![item]))));
            return None;
        };
        let (replaced, split) = insert(root, item);
        if let Some((low, right)) = split {
            let left = root.clone();
            let lows = Arc::new(Lows::new(vec![low_of(&left), low]));
            let first = Child { count: left.count(), node: left };
            let second = Child { count: right.count(), node: Arc::new(right) };
            self.root = Some(Arc::new(Node::Inner(Inner { lows, children: vec![first, second] })));
        }
        replaced
    }

    /// A tree of items that come in their order, each once; what the keys of the lowest nodes cost, and no more.
    pub(crate) fn from_sorted(items: impl ExactSizeIterator<Item = T>) -> Tree<T> {
        let leaves = in_groups(items, LEAF_MAX, |items: Vec<T>| {
            (items[0].key().clone(), Node::Leaf(Leaf::new(items)))
        });
        let mut level: Vec<(T::Key, Node<T>)> = leaves;
        while level.len() > 1 {
            level = in_groups(level.into_iter(), INNER_MAX, |group| {
                let mut lows = Vec::with_capacity(group.len());
                let mut children = Vec::with_capacity(group.len());
                for (low, node) in group {
                    lows.push(low);
                    children.push(Child { count: node.count(), node: Arc::new(node) });
                }
                (lows[0].clone(), Node::Inner(Inner { lows: Arc::new(Lows::new(lows)), children }))
            });
        }
        Tree { root: level.pop().map(|(_, node)| Arc::new(node)) }
    }

    /// Takes an item out; if it isn't there, the nodes on the way to it have been copied for nothing.
    pub(crate) fn remove(&mut self, key: &T::Key) -> Option<T> {
        let root = self.root.as_mut()?;
        let removed = remove(root, key);
        let only = match &**root {
            Node::Leaf(leaf) if leaf.items.is_empty() => Some(None),
            Node::Inner(inner) if inner.children.len() == 1 => Some(Some(inner.children[0].node.clone())),
            _ => None,
        };
        if let Some(root) = only {
            self.root = root;
        }
        removed
    }

    /// Whether every node is ordered, counted and filled as it should be; what is wrong otherwise.
    pub(crate) fn verify(&self) -> Result<(), &'static str> {
        match &self.root {
            None => Ok(()),
            Some(root) => verify(root, None, None).map(|_| ()),
        }
    }
}

/// Makes a node of each so many items; the last two share what is left, so that none is too narrow.
fn in_groups<I, N>(
    mut items: impl ExactSizeIterator<Item = I>,
    width_max: usize,
    make: impl Fn(Vec<I>) -> N,
) -> Vec<N> {
    let mut nodes = Vec::with_capacity(items.len().div_ceil(width_max));
    while items.len() > 0 {
        let left = items.len();
        let width = match left {
            _ if left <= width_max => left,
            _ if left < 2 * width_max => left / 2,
            _ => width_max,
        };
        nodes.push(make(items.by_ref().take(width).collect()));
    }
    nodes
}

/// The smallest key below.
fn low_of<T: Item>(node: &Node<T>) -> T::Key {
    match node {
        Node::Leaf(leaf) => leaf.items[0].key().clone(),
        Node::Inner(inner) => inner.lows.keys[0].clone(),
    }
}

type Split<T> = Option<(<T as Item>::Key, Node<T>)>;

fn insert<T: Item>(node: &mut Arc<Node<T>>, item: T) -> (Option<T>, Split<T>) {
    let node = Arc::make_mut(node);
    let replaced = match node {
        Node::Leaf(leaf) => match leaf.find(item.key()) {
            Ok(at) => Some(std::mem::replace(&mut leaf.items[at], item)),
            Err(at) => {
                leaf.insert(at, item);
                None
            }
        },
        Node::Inner(inner) => {
            let at = inner.child_of(item.key());
            if at == 0 && *item.key() < inner.lows.keys[0] {
                let lows = Arc::make_mut(&mut inner.lows);
                lows.keys[0] = item.key().clone();
                lows.heads = Heads::of(lows.keys.iter());
            }
            let child = &mut inner.children[at];
            let (replaced, split) = insert(&mut child.node, item);
            match split {
                None => child.count += usize::from(replaced.is_none()),
                Some((low, right)) => {
                    child.count = child.node.count();
                    inner.children.insert(at + 1, Child { count: right.count(), node: Arc::new(right) });
                    Arc::make_mut(&mut inner.lows).insert(at + 1, low);
                }
            }
            replaced
        }
    };
    let (width, width_max) = (node.width(), node.width_max());
    // Keys often come in ascending order; leaving the left part fuller then wastes less.
    let split = (width > width_max).then(|| node.split_off(width * 2 / 3));
    (replaced, split)
}

fn remove<T: Item>(node: &mut Arc<Node<T>>, key: &T::Key) -> Option<T> {
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => {
            let at = leaf.find(key).ok()?;
            leaf.heads.remove(at);
            Some(leaf.items.remove(at))
        }
        Node::Inner(inner) => {
            let at = inner.child_of(key);
            let child = &mut inner.children[at];
            let removed = remove(&mut child.node, key)?;
            child.count -= 1;
            if child.node.width() < child.node.width_max() / 3 {
                refill(inner, at);
            }
            Some(removed)
        }
    }
}

/// Joins a child that has become narrow with a neighbour, and parts them again where they are too wide for one node.
fn refill<T: Item>(inner: &mut Inner<T>, at: usize) {
    let lows = Arc::make_mut(&mut inner.lows);
    if inner.children.len() < 2 {
        if inner.children[at].count == 0 {
            inner.children.remove(at);
            lows.remove(at);
        }
        return;
    }
    let left_at = at.saturating_sub(1);
    let right = inner.children.remove(left_at + 1);
    lows.remove(left_at + 1);
    let left = &mut inner.children[left_at];
    let node = Arc::make_mut(&mut left.node);
    node.append(Arc::unwrap_or_clone(right.node));
    let (width, width_max) = (node.width(), node.width_max());
    if width > width_max {
        let (low, parted) = node.split_off(width / 2);
        left.count = left.node.count();
        inner.children.insert(left_at + 1, Child { count: parted.count(), node: Arc::new(parted) });
        lows.insert(left_at + 1, low);
    } else {
        left.count += right.count;
    }
}

/// The depth of the node.
fn verify<T: Item>(
    node: &Node<T>,
    low: Option<&T::Key>,
    high: Option<&T::Key>,
) -> Result<usize, &'static str> {
    if node.width() == 0 || node.width() > node.width_max() {
        return Err("a node is empty or too wide");
    }
    let inside = |key: &T::Key| low.is_none_or(|low| low <= key) && high.is_none_or(|high| key < high);
    match node {
        Node::Leaf(Leaf { items, heads }) => {
            if !items.is_sorted_by(|a, b| a.key() < b.key()) || !items.iter().all(|item| inside(item.key())) {
                return Err("the items of a leaf are out of order");
            }
            if !heads.are_of(items.iter().map(Item::key)) {
                return Err("the heads of a leaf are not those of its keys");
            }
            Ok(1)
        }
        Node::Inner(Inner { lows, children }) => {
            let Lows { keys: lows, heads } = &**lows;
            if lows.len() != children.len() || !lows.is_sorted_by(|a, b| a < b) {
                return Err("the children of a node are out of order");
            }
            if !heads.are_of(lows.iter()) {
                return Err("the heads of a node are not those of its keys");
            }
            let mut depths = Vec::with_capacity(children.len());
            for (at, child) in children.iter().enumerate() {
                if child.count != child.node.count() {
                    return Err("a node counts its items wrongly");
                }
                depths.push(verify(&child.node, Some(&lows[at]), lows.get(at + 1).or(high))?);
            }
            if depths.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err("the leaves are not of one depth");
            }
            Ok(depths[0] + 1)
        }
    }
}
