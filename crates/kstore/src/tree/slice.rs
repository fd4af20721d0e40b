//! Items in their order, and what differs between two trees.

use std::{cmp::Ordering, sync::Arc};

use super::{Inner, Item, Node, Tree};

/// Items in order. It owns the nodes it is in and goes on lazily.
pub(crate) struct Slice<T: Item> {
    /// From the root to a leaf: node and place in it. The leaf's place is that of the next item.
    path: Vec<(Arc<Node<T>>, usize)>,
    remaining: usize,
}

impl<T: Item> Slice<T> {
    /// So many items below `root`, from that of a rank on.
    pub(super) fn new(root: Option<Arc<Node<T>>>, from: usize, remaining: usize) -> Slice<T> {
        let mut slice = Slice { path: Vec::new(), remaining };
        if let Some(root) = root {
            slice.descend(root, from);
        }
        slice
    }

    /// Goes down to the leaf with the item of rank `rank` below `node`.
    fn descend(&mut self, mut node: Arc<Node<T>>, mut rank: usize) {
        loop {
            let below = match &*node {
                Node::Leaf(leaf) => {
                    leaf.items.iter().skip(rank).take(self.remaining).for_each(Item::touch);
                    break;
                }
                Node::Inner(Inner { children, .. }) => {
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
                    Node::Inner(inner) => {
                        if let Some(next) = inner.children.get(*at + 1) {
                            super::touch(&next.node);
                        }
                        let below = inner.children[*at].node.clone();
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
                Node::Leaf(leaf) => leaf.items.get(*at),
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
