//! Which devices a container gets, as upstream's device manager chooses. Pure.

use std::collections::BTreeSet;

pub(super) type Ids = BTreeSet<String>;

/// What is known when a container wants devices of a resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) pod: &'a str,
    pub(super) container: &'a str,
    pub(super) resource: &'a str,
    /// How many it wants.
    pub(super) wanted: usize,
    /// What it has already, from an earlier start.
    pub(super) has: Option<&'a Ids>,
    /// What init containers of the pod have, which have ended before it begins.
    pub(super) reusable: &'a Ids,
    /// The healthy ones; `None` when no plug-in has registered.
    pub(super) healthy: Option<&'a Ids>,
    /// What anybody has.
    pub(super) in_use: &'a Ids,
    /// Those that are where the topology manager wants them; none where it has no say.
    pub(super) near: &'a Ids,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Nothing: it has all that it wants.
    Has,
    /// It gets these.
    These(Ids),
    /// It gets `sure`, and so many of `available`, of which the plug-in may prefer some.
    Of { sure: Ids, available: Ids, more: usize },
}

/// Errors are upstream's.
pub(super) fn choose(asked: &Asked<'_>) -> Result<Choice, String> {
    let Asked { pod, container, resource, wanted, .. } = *asked;
    if let Some(has) = asked.has
        && has.len() != wanted
    {
        let before = has.len();
        return Err(format!(
            "pod {pod:?} container {container:?} changed request for resource {resource:?} from {before} to {wanted}"
        ));
    }
    let healthy = asked.healthy.ok_or_else(|| format!("cannot allocate unregistered device {resource}"))?;
    if healthy.is_empty() {
        return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
    }
    if let Some(has) = asked.has {
        if !has.is_subset(healthy) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            ));
        }
        return Ok(Choice::Has);
    }
    let sure: Ids = asked.reusable.iter().take(wanted).cloned().collect();
    let more = wanted - sure.len();
    if more == 0 {
        return Ok(if wanted == 0 { Choice::Has } else { Choice::These(sure) });
    }
    let available: Ids = healthy.difference(asked.in_use).cloned().collect();
    let left = available.len();
    if left < more {
        return Err(format!(
            "requested number of devices unavailable for {resource}. Requested: {more}, Available: {left}"
        ));
    }
    let near: Ids = available.intersection(asked.near).cloned().collect();
    if more < near.len() {
        return Ok(Choice::Of { sure, available: near, more });
    }
    // All that are near, and others beside them.
    let more = more - near.len();
    let available = available.difference(&near).cloned().collect();
    let sure = sure.union(&near).cloned().collect();
    Ok(if more == 0 { Choice::These(sure) } else { Choice::Of { sure, available, more } })
}

/// The devices when the plug-in prefers these: first those of its choice that may be had, then others, of which those that are known to be
/// `far` come before those of which nothing is known.
pub(super) fn settle(sure: &Ids, available: &Ids, more: usize, preferred: &Ids, far: &Ids) -> Ids {
    let first = preferred.intersection(available);
    let (far, rest): (Vec<_>, Vec<_>) = available.difference(preferred).partition(|id| far.contains(*id));
    sure.iter().chain(first.chain(far).chain(rest).take(more)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Ids {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn containers_get_healthy_devices_that_nobody_has() {
        // Upstream's `TestPodContainerDeviceAllocation`, `TestDevicesToAllocate` and their like. In order: wanted, has, reusable, healthy, in use.
        let of = |sure: &str, available: &str, more| {
            Ok(Choice::Of { sure: ids(sure), available: ids(available), more })
        };
        let cases = [
            (2, None, "", Some("a b c"), "", of("", "a b c", 2)),
            (1, None, "", Some("a b c"), "a", of("", "b c", 1)),
            (2, None, "a", Some("a b"), "a", of("a", "b", 1)),
            (1, None, "a b", Some("a b"), "a b", Ok(Choice::These(ids("a")))),
            (0, None, "", Some("a"), "", Ok(Choice::Has)),
            (1, Some("a"), "", Some("a b"), "a", Ok(Choice::Has)),
            (
                2,
                Some("a"),
                "",
                Some("a b"),
                "a",
                Err("pod \"p\" container \"c\" changed request for resource \"r\" from 1 to 2"),
            ),
            (1, None, "", None, "", Err("cannot allocate unregistered device r")),
            (1, Some("a"), "", None, "a", Err("cannot allocate unregistered device r")),
            (
                1,
                None,
                "",
                Some(""),
                "",
                Err("no healthy devices present; cannot allocate unhealthy devices r"),
            ),
            (
                1,
                Some("a"),
                "",
                Some("b"),
                "a",
                Err(
                    "previously allocated devices are no longer healthy; cannot allocate unhealthy devices r",
                ),
            ),
            (
                3,
                None,
                "",
                Some("a b c"),
                "a",
                Err("requested number of devices unavailable for r. Requested: 3, Available: 2"),
            ),
        ];
        for (number, (wanted, has, reusable, healthy, in_use, expected)) in cases.into_iter().enumerate() {
            let (has, healthy) = (has.map(ids), healthy.map(ids));
            let asked = Asked {
                pod: "p",
                container: "c",
                resource: "r",
                wanted,
                has: has.as_ref(),
                reusable: &ids(reusable),
                healthy: healthy.as_ref(),
                in_use: &ids(in_use),
                near: &Ids::new(),
            };
            assert_eq!(choose(&asked), expected.map_err(str::to_owned), "{number}");
        }
    }

    #[test]
    fn preferences_count_where_they_can_be_met() {
        let cases = [
            ("", "a b c d", 2, "c d", "c d"),
            ("", "a b c", 2, "c x", "a c"),
            ("z", "a b c", 1, "z b", "b z"),
            ("", "a b c", 1, "b c", "b"),
            ("", "a b c", 2, "", "a b"),
        ];
        for (sure, available, more, preferred, expected) in cases {
            assert_eq!(
                settle(&ids(sure), &ids(available), more, &ids(preferred), &Ids::new()),
                ids(expected),
                "{preferred}"
            );
        }
    }
    #[test]
    fn devices_that_are_near_come_first() {
        // Upstream's `TestTopologyAlignedAllocation`. In order: wanted, reusable, near, far, what is given without a preference.
        let cases = [
            (1, "", "c d", "a b", "c"),
            (2, "", "c d", "a b", "c d"),
            (3, "", "c d", "a", "a c d"),
            // Of the others those whose place is known come first.
            (3, "", "c d", "b", "b c d"),
            (2, "a", "c d", "", "a c"),
            (2, "", "", "b", "a b"),
        ];
        for (wanted, reusable, near, far, expected) in cases {
            let (healthy, reusable) = (ids("a b c d"), ids(reusable));
            let asked = Asked {
                pod: "p",
                container: "c",
                resource: "r",
                wanted,
                has: None,
                reusable: &reusable,
                healthy: Some(&healthy),
                in_use: &reusable,
                near: &ids(near),
            };
            let found = match choose(&asked).unwrap() {
                Choice::These(ids) => ids,
                Choice::Of { sure, available, more } => {
                    settle(&sure, &available, more, &Ids::new(), &ids(far))
                }
                Choice::Has => Ids::new(),
            };
            assert_eq!(found, ids(expected), "{wanted} {near} {far}");
        }
    }
}
