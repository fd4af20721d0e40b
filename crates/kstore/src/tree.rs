//! An ordered tree whose copies share what they have in common (a copy-on-write B+tree).
//!
//! A copy costs a reference count. A change copies the nodes on its path, but only those that a copy still shares: the
//! rest is changed in place, so that a batch of changes between two publications copies each touched node once. Every
//! node knows how many items are below it, so ranks, and therefore exact counts of ranges, cost O(log n).

use std::{cmp::Ordering, sync::Arc};

/// A leaf is shared item by item when it is copied, so it is kept small.
const LEAF_MAX: usize = 24;
const INNER_MAX: usize = 32;

/// What a tree holds: something with an order.
pub(crate) trait Item: Clone {
    /// What items are ordered by; cloned into inner nodes.
    type Key: Ord + Clone;
    fn key(&self) -> &Self::Key;
}

pub(crate) struct Tree<T: Item> {
    root: Option<Arc<Node<T>>>,
}

enum Node<T: Item> {
    /// Sorted, never empty.
    Leaf(Vec<T>),
    /// Sorted by `low`, never empty.
    Inner(Vec<Child<T>>),
}

struct Child<T: Item> {
    /// Not greater than any key below; greater than every key before.
    low: T::Key,
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
        Child { low: self.low.clone(), count: self.count, node: self.node.clone() }
    }
}

impl<T: Item> Clone for Node<T> {
    /// With room for one more, since a node is copied in order to be changed.
    fn clone(&self) -> Self {
        match self {
            Node::Leaf(items) => Node::Leaf(with_room(items)),
            Node::Inner(children) => Node::Inner(with_room(children)),
        }
    }
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
            Node::Leaf(items) => items.len(),
            Node::Inner(children) => children.iter().map(|child| child.count).sum(),
        }
    }

    /// How many items or children it holds itself.
    fn width(&self) -> usize {
        match self {
            Node::Leaf(items) => items.len(),
            Node::Inner(children) => children.len(),
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
            Node::Leaf(items) => {
                let right = items.split_off(at);
                (right[0].key().clone(), Node::Leaf(right))
            }
            Node::Inner(children) => {
                let right = children.split_off(at);
                (right[0].low.clone(), Node::Inner(right))
            }
        }
    }

    /// Appends a sibling of the same level.
    fn append(&mut self, right: Node<T>) {
        match (self, right) {
            (Node::Leaf(items), Node::Leaf(more)) => items.extend(more),
            (Node::Inner(children), Node::Inner(more)) => children.extend(more),
            _ => unreachable!("siblings are of one level"),
        }
    }
}

/// In which child a key belongs.
fn child_at<T: Item>(children: &[Child<T>], compare: &impl Fn(&T::Key) -> Ordering) -> usize {
    children.partition_point(|child| compare(&child.low).is_le()).saturating_sub(1)
}

impl<T: Item> Tree<T> {
    pub(crate) fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.count())
    }

    /// The item for which `compare`, which says how an item's key relates to what is sought, is equal.
    pub(crate) fn get(&self, compare: impl Fn(&T::Key) -> Ordering) -> Option<&T> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Inner(children) => node = &children[child_at(children, &compare)].node,
                Node::Leaf(items) => {
                    return items.binary_search_by(|item| compare(item.key())).ok().map(|at| &items[at]);
                }
            }
        }
    }

    /// How many items come before what is sought: those for which `compare` is less.
    pub(crate) fn rank(&self, compare: impl Fn(&T::Key) -> Ordering) -> usize {
        let Some(mut node) = self.root.as_deref() else { return 0 };
        let mut before = 0;
        loop {
            match node {
                Node::Inner(children) => {
                    let at = child_at(children, &compare);
                    before += children[..at].iter().map(|child| child.count).sum::<usize>();
                    node = &children[at].node;
                }
                Node::Leaf(items) => {
                    return before + items.partition_point(|item| compare(item.key()).is_lt());
                }
            }
        }
    }

    /// The items from rank `from` up to but without rank `to`.
    pub(crate) fn slice(&self, from: usize, to: usize) -> Slice<T> {
        let mut slice = Slice { path: Vec::new(), remaining: to.saturating_sub(from) };
        if let Some(root) = &self.root {
            slice.descend(root.clone(), from);
        }
        slice
    }

    pub(crate) fn iter(&self) -> Slice<T> {
        self.slice(0, self.len())
    }

    /// Puts an item in; the one it replaces.
    pub(crate) fn insert(&mut self, item: T) -> Option<T> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(vec![item])));
            return None;
        };
        let (replaced, split) = insert(root, item);
        if let Some((low, right)) = split {
            let left = root.clone();
            let first = Child { low: low_of(&left), count: left.count(), node: left };
            let second = Child { low, count: right.count(), node: Arc::new(right) };
            self.root = Some(Arc::new(Node::Inner(vec![first, second])));
        }
        replaced
    }

    /// Takes an item out.
    pub(crate) fn remove(&mut self, key: &T::Key) -> Option<T> {
        // Looked for first, so that nothing is copied for a key that is not there.
        self.get(|other| other.cmp(key))?;
        let root = self.root.as_mut()?;
        let removed = remove(root, key);
        let only = match &**root {
            Node::Leaf(items) if items.is_empty() => Some(None),
            Node::Inner(children) if children.len() == 1 => Some(Some(children[0].node.clone())),
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

/// The smallest key below.
fn low_of<T: Item>(node: &Node<T>) -> T::Key {
    match node {
        Node::Leaf(items) => items[0].key().clone(),
        Node::Inner(children) => children[0].low.clone(),
    }
}

type Split<T> = Option<(<T as Item>::Key, Node<T>)>;

fn insert<T: Item>(node: &mut Arc<Node<T>>, item: T) -> (Option<T>, Split<T>) {
    let node = Arc::make_mut(node);
    let replaced = match node {
        Node::Leaf(items) => match items.binary_search_by(|other| other.key().cmp(item.key())) {
            Ok(at) => Some(std::mem::replace(&mut items[at], item)),
            Err(at) => {
                items.insert(at, item);
                None
            }
        },
        Node::Inner(children) => {
            let at = child_at(children, &|low| low.cmp(item.key()));
            let child = &mut children[at];
            if *item.key() < child.low {
                child.low = item.key().clone();
            }
            let (replaced, split) = insert(&mut child.node, item);
            match split {
                None => child.count += usize::from(replaced.is_none()),
                Some((low, right)) => {
                    child.count = child.node.count();
                    children.insert(at + 1, Child { low, count: right.count(), node: Arc::new(right) });
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
        Node::Leaf(items) => {
            let at = items.binary_search_by(|other| other.key().cmp(key)).ok()?;
            Some(items.remove(at))
        }
        Node::Inner(children) => {
            let at = child_at(children, &|low| low.cmp(key));
            let removed = remove(&mut children[at].node, key)?;
            children[at].count -= 1;
            if children[at].node.width() < children[at].node.width_max() / 3 {
                refill(children, at);
            }
            Some(removed)
        }
    }
}

/// Joins a child that has become narrow with a neighbour, and parts them again where they are too wide for one node.
fn refill<T: Item>(children: &mut Vec<Child<T>>, at: usize) {
    if children.len() < 2 {
        if children[at].count == 0 {
            children.remove(at);
        }
        return;
    }
    let left_at = at.saturating_sub(1);
    let right = children.remove(left_at + 1);
    let left = &mut children[left_at];
    let node = Arc::make_mut(&mut left.node);
    node.append(Arc::unwrap_or_clone(right.node));
    let (width, width_max) = (node.width(), node.width_max());
    if width > width_max {
        let (low, parted) = node.split_off(width / 2);
        left.count = left.node.count();
        children.insert(left_at + 1, Child { low, count: parted.count(), node: Arc::new(parted) });
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
        Node::Leaf(items) => {
            if !items.is_sorted_by(|a, b| a.key() < b.key()) || !items.iter().all(|item| inside(item.key())) {
                return Err("the items of a leaf are out of order");
            }
            Ok(1)
        }
        Node::Inner(children) => {
            if !children.is_sorted_by(|a, b| a.low < b.low) {
                return Err("the children of a node are out of order");
            }
            let mut depths = Vec::with_capacity(children.len());
            for (at, child) in children.iter().enumerate() {
                if child.count != child.node.count() {
                    return Err("a node counts its items wrongly");
                }
                depths.push(verify(
                    &child.node,
                    Some(&child.low),
                    children.get(at + 1).map(|next| &next.low).or(high),
                )?);
            }
            if depths.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err("the leaves are not of one depth");
            }
            Ok(depths[0] + 1)
        }
    }
}

/// Items in order. It owns the nodes it is in and goes on lazily.
pub(crate) struct Slice<T: Item> {
    /// From the root to a leaf: node and place in it. The leaf's place is that of the next item.
    path: Vec<(Arc<Node<T>>, usize)>,
    remaining: usize,
}

impl<T: Item> Slice<T> {
    /// Goes down to the leaf with the item of rank `rank` below `node`.
    fn descend(&mut self, mut node: Arc<Node<T>>, mut rank: usize) {
        loop {
            let below = match &*node {
                Node::Leaf(_) => break,
                Node::Inner(children) => {
                    let mut at = 0;
                    while at + 1 < children.len() && rank >= children[at].count {
                        rank -= children[at].count;
                        at += 1;
                    }
                    (at, children[at].node.clone())
                }
            };
            self.path.push((node, below.0));
            node = below.1;
        }
        self.path.push((node, rank));
    }

    /// Leaves finished nodes, so that the last of the path is a leaf with an item to come, or the path is empty.
    fn settle(&mut self) {
        while let Some((node, at)) = self.path.last_mut() {
            if *at < node.width() {
                match &**node {
                    Node::Leaf(_) => return,
                    Node::Inner(children) => {
                        let below = children[*at].node.clone();
                        self.descend(below, 0);
                        return;
                    }
                }
            }
            self.path.pop();
            if let Some((_, parent_at)) = self.path.last_mut() {
                *parent_at += 1;
            }
        }
    }

    fn peek(&mut self) -> Option<&T> {
        self.settle();
        match self.path.last() {
            Some((node, at)) => match &**node {
                Node::Leaf(items) => items.get(*at),
                Node::Inner(_) => None,
            },
            None => None,
        }
    }

    /// Passes over everything that both are about to yield from the same node; whether anything was.
    fn skip_shared(&mut self, other: &mut Slice<T>) -> bool {
        self.settle();
        other.settle();
        // A node is about to begin where its own place and those below it are all 0: look at the widest first.
        let begins =
            |path: &[(Arc<Node<T>>, usize)]| path.iter().rev().take_while(|(_, at)| *at == 0).count();
        let (mine, theirs) = (begins(&self.path), begins(&other.path));
        for level in (0..mine.min(theirs)).rev() {
            let (at, other_at) = (self.path.len() - 1 - level, other.path.len() - 1 - level);
            if Arc::ptr_eq(&self.path[at].0, &other.path[other_at].0) {
                self.leave(at);
                other.leave(other_at);
                return true;
            }
        }
        false
    }

    /// Goes on behind the node at that place of the path.
    fn leave(&mut self, at: usize) {
        self.remaining = self.remaining.saturating_sub(self.path[at].0.count());
        self.path.truncate(at);
        if let Some((_, parent_at)) = self.path.last_mut() {
            *parent_at += 1;
        }
    }
}

impl<T: Item> Iterator for Slice<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.remaining == 0 {
            return None;
        }
        let item = self.peek()?.clone();
        self.remaining -= 1;
        if let Some((_, at)) = self.path.last_mut() {
            *at += 1;
        }
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl<T: Item> ExactSizeIterator for Slice<T> {}

/// What is in one of two trees only, or different in both, in order. Costs what differs, not what is there: nodes that the
/// trees share are passed over.
pub(crate) fn diff<T: Item>(
    old: &Tree<T>,
    new: &Tree<T>,
    same: impl Fn(&T, &T) -> bool,
) -> Vec<(Option<T>, Option<T>)> {
    let (mut old, mut new) = (old.iter(), new.iter());
    let mut changes = Vec::new();
    loop {
        while old.skip_shared(&mut new) {}
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.key().cmp(new.key()),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let unchanged = matches!((&before, &after), (Some(before), Some(after)) if same(before, after));
        if !unchanged {
            changes.push((before, after));
        }
    }
}
