//! Sets of fields: who owns what. A tree of path elements, sorted, with set algebra as structured-merge-diff has it.

use std::{cmp::Ordering, sync::Arc};

use super::path::{At, PathElement};

/// A set of the fields of an object.
///
/// A field and the fields below it are members on their own: `{.spec}` and `{.spec.replicas}` have nothing in common.
///
/// ```
/// use kschema::apply::{PathElement, Set};
///
/// let path = |names: &[&str]| names.iter().map(|name| PathElement::field(name)).collect::<Vec<_>>();
/// let mut mine = Set::default();
/// mine.insert(path(&["spec", "replicas"]));
/// mine.insert(path(&["spec", "paused"]));
/// let mut theirs = Set::default();
/// theirs.insert(path(&["spec", "replicas"]));
/// assert_eq!(mine.difference(&theirs).paths(), [".spec.paused"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Sorted, without duplicates.
    pub(crate) members: Vec<PathElement>,
    /// Sorted by element, without duplicates.
    ///
    /// Shared, so that sets made of others copy only what is different.
    pub(crate) children: Vec<(PathElement, Arc<Set>)>,
}

impl Set {
    /// The set of one field of the root after the other.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a [&'a str]>) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(path.iter().map(|name| PathElement::field(name)));
        }
        set
    }

    /// The set of fields named by paths such as `spec.replicas`, as strategies name what they reset.
    ///
    /// ```
    /// assert_eq!(kschema::apply::Set::dotted(["status", "spec.replicas"]).paths(), [".status", ".spec.replicas"]);
    /// ```
    pub fn dotted<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(path.split('.').map(PathElement::field));
        }
        set
    }

    /// Adds the field at the end of `path`, without the fields on the way. The root is never a member.
    pub fn insert(&mut self, path: impl IntoIterator<Item = PathElement>) {
        let mut steps = path.into_iter();
        let Some(mut step) = steps.next() else { return };
        let mut set = self;
        for next in steps {
            set = set.descend(step);
            step = next;
        }
        set.insert_member(step);
    }

    pub(crate) fn insert_at(&mut self, at: &At<'_>) {
        self.insert(at.steps());
    }

    /// Makes the place a member, with all of `below` below it.
    pub(crate) fn graft(&mut self, at: &At<'_>, below: Self) {
        let mut steps = at.steps();
        let Some(last) = steps.pop() else { return };
        steps.into_iter().fold(self, Self::descend).add(last, below);
    }

    /// Makes `element` a member, with all of `below` below it.
    pub(crate) fn add(&mut self, element: PathElement, below: Self) {
        if !(below.members.is_empty() && below.children.is_empty()) {
            let child = self.descend(element.clone());
            *child = if child.members.is_empty() && child.children.is_empty() {
                below
            } else {
                child.union(&below)
            };
        }
        self.insert_member(element);
    }

    pub(crate) fn insert_member(&mut self, element: PathElement) {
        // Walks go in order, so that the place is mostly the end.
        if self.members.last().is_none_or(|last| *last < element) {
            self.members.push(element);
        } else if let Err(place) = self.members.binary_search(&element) {
            self.members.insert(place, element);
        }
    }

    /// The set below `element`, made if it is not there.
    pub(crate) fn descend(&mut self, element: PathElement) -> &mut Self {
        let place = if self.children.last().is_none_or(|(last, _)| *last < element) {
            self.children.push((element, Arc::default()));
            self.children.len() - 1
        } else {
            match self.children.binary_search_by(|(child, _)| child.cmp(&element)) {
                Ok(place) => place,
                Err(place) => {
                    self.children.insert(place, (element, Arc::default()));
                    place
                }
            }
        };
        Arc::make_mut(&mut self.children[place].1)
    }

    /// Whether the field at the end of the path is a member.
    #[must_use]
    pub fn has(&self, path: &[PathElement]) -> bool {
        let Some((last, way)) = path.split_last() else { return false };
        way.iter().try_fold(self, |set, step| set.child(step)).is_some_and(|set| set.has_member(last))
    }

    pub(crate) fn has_member(&self, element: &PathElement) -> bool {
        self.members.binary_search(element).is_ok()
    }

    /// The set of what is below `element`.
    #[must_use]
    pub fn child(&self, element: &PathElement) -> Option<&Self> {
        let place = self.children.binary_search_by(|(child, _)| child.cmp(element)).ok()?;
        Some(&self.children[place].1)
    }

    /// Whether nothing is a member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.iter().all(|(_, child)| child.is_empty())
    }

    /// How many fields are members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len() + self.children.iter().map(|(_, child)| child.len()).sum::<usize>()
    }

    /// Every member as a path from the root, parents first.
    #[must_use]
    pub fn iter_paths(&self) -> Vec<Vec<PathElement>> {
        let (mut paths, mut prefix) = (Vec::new(), Vec::new());
        self.collect_paths(&mut prefix, &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for member in &self.members {
            let mut path = prefix.clone();
            path.push(member.clone());
            paths.push(path);
        }
        for (element, child) in &self.children {
            prefix.push(element.clone());
            child.collect_paths(prefix, paths);
            prefix.pop();
        }
    }

    /// Every member's path as text.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.iter_paths().iter().map(|path| show(path)).collect()
    }

    /// What is in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut members = Vec::with_capacity(self.members.len().max(other.members.len()));
        zip(&self.members, &other.members, |element| element, |a, b| members.extend(a.or(b).cloned()));
        let mut children = Vec::with_capacity(self.children.len().max(other.children.len()));
        zip(
            &self.children,
            &other.children,
            |(element, _)| element,
            |a, b| match (a, b) {
                (Some((element, a)), Some((_, b))) => children.push((element.clone(), Arc::new(a.union(b)))),
                (a, b) => children.extend(a.or(b).cloned()),
            },
        );
        Self { members, children }
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut members = Vec::new();
        zip(
            &self.members,
            &other.members,
            |element| element,
            |a, b| members.extend(a.filter(|_| b.is_some()).cloned()),
        );
        let mut children = Vec::new();
        zip(
            &self.children,
            &other.children,
            |(element, _)| element,
            |a, b| {
                if let (Some((element, a)), Some((_, b))) = (a, b) {
                    let both = a.intersection(b);
                    if !both.is_empty() {
                        children.push((element.clone(), Arc::new(both)));
                    }
                }
            },
        );
        Self { members, children }
    }

    /// What is in this set and not in the other. Members below a member of the other set stay.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.subtract(other, false)
    }

    /// [`difference`](Self::difference) that also takes away everything below the other set's members.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.subtract(other, true)
    }

    fn subtract(&self, other: &Self, recursive: bool) -> Self {
        let mut members = Vec::with_capacity(self.members.len());
        zip(
            &self.members,
            &other.members,
            |element| element,
            |a, b| members.extend(a.filter(|_| b.is_none()).cloned()),
        );
        let mut children = Vec::with_capacity(self.children.len());
        zip(
            &self.children,
            &other.children,
            |(element, _)| element,
            |a, b| {
                let Some((element, a)) = a else { return };
                if recursive && other.has_member(element) {
                    return;
                }
                match b {
                    None => children.push((element.clone(), a.clone())),
                    Some((_, b)) => {
                        let rest = a.subtract(b, recursive);
                        if !rest.is_empty() {
                            children.push((element.clone(), Arc::new(rest)));
                        }
                    }
                }
            },
        );
        Self { members, children }
    }

    /// The members that no other member lies below.
    #[must_use]
    pub fn leaves(&self) -> Self {
        let members = self.members.iter().filter(|member| self.child(member).is_none()).cloned().collect();
        let children = self
            .children
            .iter()
            .map(|(element, child)| (element.clone(), Arc::new(child.leaves())))
            .collect();
        Self { members, children }
    }
}

/// Steps through two sorted lists at once.
fn zip<'a, T>(
    a: &'a [T],
    b: &'a [T],
    element: impl Fn(&T) -> &PathElement,
    mut each: impl FnMut(Option<&'a T>, Option<&'a T>),
) {
    let (mut i, mut j) = (0, 0);
    loop {
        let order = match (a.get(i), b.get(j)) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => element(a).cmp(element(b)),
        };
        match order {
            Ordering::Less => each(Some(&a[i]), None),
            Ordering::Greater => each(None, Some(&b[j])),
            Ordering::Equal => each(Some(&a[i]), Some(&b[j])),
        }
        i += usize::from(order != Ordering::Greater);
        j += usize::from(order != Ordering::Less);
    }
}

/// A path as text: `.spec.ports[port=80].name`.
pub(crate) fn show(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_set() -> impl Strategy<Value = Set> {
        let name = prop::sample::select(vec!["a", "b", "c"]);
        let path = prop::collection::vec(name, 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| Set::of(paths.iter().map(Vec::as_slice)))
    }

    fn brute(set: &Set) -> std::collections::BTreeSet<String> {
        set.paths().into_iter().collect()
    }

    proptest! {
        #[test]
        fn algebra_is_that_of_sets(a in any_set(), b in any_set()) {
            let (x, y) = (brute(&a), brute(&b));
            prop_assert_eq!(brute(&a.union(&b)), x.union(&y).cloned().collect());
            prop_assert_eq!(brute(&a.intersection(&b)), x.intersection(&y).cloned().collect());
            prop_assert_eq!(brute(&a.difference(&b)), x.difference(&y).cloned().collect());
            prop_assert_eq!(a.len(), x.len());
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert!(a.difference(&a).is_empty());
        }

        #[test]
        fn the_recursive_difference_takes_what_lies_below(a in any_set(), b in any_set()) {
            let gone: Vec<_> = brute(&b).into_iter().collect();
            let expected: std::collections::BTreeSet<_> = brute(&a)
                .into_iter()
                .filter(|path| !gone.iter().any(|top| path == top || path.starts_with(&format!("{top}."))))
                .collect();
            prop_assert_eq!(brute(&a.recursive_difference(&b)), expected);
        }

        #[test]
        fn leaves_have_nothing_below(a in any_set()) {
            let all = brute(&a);
            let expected: std::collections::BTreeSet<_> =
                all.iter().filter(|path| !all.iter().any(|other| other.starts_with(&format!("{path}.")))).cloned().collect();
            prop_assert_eq!(brute(&a.leaves()), expected);
        }
    }
}
