//! What differs between two tables.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use crate::rules::Rule;

/// The rules of Services by their names.
pub(super) type Services = BTreeMap<Arc<str>, Arc<[Rule]>>;
/// A Service with its rules.
pub(super) type Gone = (Arc<str>, Arc<[Rule]>);
/// A Service with the rules that it had, if it had any, and those that it has.
pub(super) type Changed = (Arc<str>, Option<Arc<[Rule]>>, Arc<[Rule]>);

/// What one map has and the other not, and what is not the same in both. Both are gone through once, side by side, and what did not
/// change is the same pointer: ten thousand Services cost as much as a few look-ups in a map of them.
pub(super) fn differences(before: &Services, after: &Services) -> (Vec<Gone>, Vec<Changed>) {
    let (mut gone, mut changed) = (Vec::new(), Vec::new());
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return (gone, changed),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) if Arc::ptr_eq(old, new) => Ordering::Equal,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { after.next() } else { None };
        match (old, new) {
            (Some((service, rules)), None) => gone.push((Arc::clone(service), Arc::clone(rules))),
            (old, Some((service, rules))) => {
                let old = old.map(|(_, old)| old);
                if !old.is_some_and(|old| Arc::ptr_eq(old, rules) || old == rules) {
                    changed.push((Arc::clone(service), old.cloned(), Arc::clone(rules)));
                }
            }
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::Transport;

    #[test]
    fn differences_are_found_side_by_side() {
        let rules = |port: u16| -> Arc<[Rule]> {
            Arc::from([crate::testing::rule(([10, 96, 0, 1], port).into(), Transport::Tcp, &[])])
        };
        let map = |text: &str| -> Services {
            let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
            pairs.map(|(name, port)| (Arc::from(name), rules(port.parse().unwrap()))).collect()
        };
        for (before, after, expected_gone, expected_changed) in [
            ("", "", "", ""),
            ("", "a=1 b=2", "", "a+ b+"),
            ("a=1 b=2", "", "a b", ""),
            ("a=1 b=2 c=3", "a=1 b=2 c=3", "", ""),
            ("a=1 b=2 c=3", "a=1 b=9 c=3", "", "b"),
            ("a=1 c=3 e=5", "b=2 c=4 d=4 e=5", "a", "b+ c d+"),
        ] {
            let (gone, changed) = differences(&map(before), &map(after));
            let gone: Vec<_> = gone.iter().map(|(name, _)| name.to_string()).collect();
            let changed: Vec<_> = changed
                .iter()
                .map(|(name, old, _)| format!("{name}{}", if old.is_some() { "" } else { "+" }))
                .collect();
            assert_eq!(
                (gone.join(" "), changed.join(" ")),
                (expected_gone.to_owned(), expected_changed.to_owned())
            );
        }
    }
}
