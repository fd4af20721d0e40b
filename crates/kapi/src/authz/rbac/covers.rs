//! Whether some rules allow all that others do (upstream's `component-helpers/auth/rbac/validation` and
//! `registry/rbac/validation`): nobody may give away what they don't hold, and what a role lacks is added at start.

use std::collections::BTreeMap;

use super::rule::{PolicyRule, has, path_covers};

/// How many single permissions a role is broken down into before it counts as too large to be compared. A role of this size
/// can't be held by anybody but who may escalate.
pub const PERMISSIONS_MAX: usize = 100_000;

/// The single permissions among `wanted` that no rule of `held` covers, in order. Empty: all are covered.
///
/// A list longer than [`PERMISSIONS_MAX`] is cut off there, with the rules that were not looked at counted as missing.
///
/// ```
/// use kapi::authz::{PolicyRule, missing};
/// use serde_json::json;
///
/// let rule = |verbs: &[&str]| PolicyRule::of(&json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}));
/// assert!(missing(&[rule(&["*"])], &[rule(&["get"])]).is_empty());
/// assert_eq!(missing(&[rule(&["get"])], &[rule(&["get", "list"])]), [rule(&["list"])]);
/// ```
#[must_use]
pub fn missing(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut left = PERMISSIONS_MAX;
    let mut missing = Vec::new();
    for rule in wanted {
        let size = permissions(rule);
        if size > left {
            missing.push(rule.clone());
            continue;
        }
        left -= size;
        // Most often one rule of the holder covers all of it, which saves taking it apart.
        if held.iter().any(|held| covers_whole(held, rule)) {
            continue;
        }
        let parts = parts_of(rule);
        missing.extend(parts.into_iter().filter(|part| !held.iter().any(|held| covers(held, part))));
    }
    missing
}

fn permissions(rule: &PolicyRule) -> usize {
    let resources = [rule.api_groups.len(), rule.resources.len(), rule.resource_names.len().max(1)];
    let resources = resources.into_iter().fold(rule.verbs.len(), usize::saturating_mul);
    resources.saturating_add(rule.verbs.len().saturating_mul(rule.non_resource_urls.len()))
}

/// Whether a rule is no broader than another in any part, so that each of its permissions is covered by that.
fn covers_whole(held: &PolicyRule, rule: &PolicyRule) -> bool {
    (rule.resources.is_empty() || rule.non_resource_urls.is_empty()) && covers(held, rule)
}

/// The single permissions of a rule: one verb, one resource of one group, at most one name; or one verb and one path.
fn parts_of(rule: &PolicyRule) -> Vec<PolicyRule> {
    let one = |word: &String| vec![word.clone()];
    let mut parts = Vec::with_capacity(permissions(rule));
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                let part = PolicyRule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    ..PolicyRule::default()
                };
                if rule.resource_names.is_empty() {
                    parts.push(part);
                    continue;
                }
                parts.extend(
                    rule.resource_names
                        .iter()
                        .map(|name| PolicyRule { resource_names: one(name), ..part.clone() }),
                );
            }
        }
    }
    for url in &rule.non_resource_urls {
        for verb in &rule.verbs {
            let urls = one(url);
            parts.push(PolicyRule { verbs: one(verb), non_resource_urls: urls, ..PolicyRule::default() });
        }
    }
    parts
}

fn has_all(list: &[String], words: &[String]) -> bool {
    words.iter().all(|word| has(list, word))
}

fn covers(held: &PolicyRule, part: &PolicyRule) -> bool {
    (has(&held.verbs, "*") || has_all(&held.verbs, &part.verbs))
        && (has(&held.api_groups, "*") || has_all(&held.api_groups, &part.api_groups))
        && part.resources.iter().all(|resource| resource_covered(&held.resources, resource))
        && (held.resource_names.is_empty()
            || (!part.resource_names.is_empty() && has_all(&held.resource_names, &part.resource_names)))
        && part
            .non_resource_urls
            .iter()
            .all(|path| held.non_resource_urls.iter().any(|owner| path_covers(owner, path)))
}

fn resource_covered(held: &[String], resource: &str) -> bool {
    has(held, "*")
        || has(held, resource)
        || resource.split_once('/').is_some_and(|(_, subresource)| {
            held.iter().any(|one| one.strip_prefix("*/") == Some(subresource))
        })
}

/// Single permissions that differ in nothing but the verb, put together again, for people to read.
pub(crate) fn compact(parts: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut simple: BTreeMap<(String, String, Vec<String>), PolicyRule> = BTreeMap::new();
    let mut others = Vec::new();
    for part in parts {
        match (part.api_groups.as_slice(), part.resources.as_slice(), part.resource_names.len()) {
            ([group], [resource], 0 | 1) if part.non_resource_urls.is_empty() => {
                let key = (group.clone(), resource.clone(), part.resource_names.clone());
                match simple.entry(key) {
                    std::collections::btree_map::Entry::Occupied(mut known) => {
                        known.get_mut().verbs.extend(part.verbs);
                    }
                    std::collections::btree_map::Entry::Vacant(place) => {
                        place.insert(part);
                    }
                }
            }
            _ => others.push(part),
        }
    }
    others.extend(simple.into_values());
    others
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::RequestInfo;

    fn words(text: &str) -> Vec<String> {
        text.split(',').filter(|word| !word.is_empty()).map(|word| word.replace("core", "")).collect()
    }

    /// `verbs groups resources names`, or `verbs /paths`; `-` for none.
    fn rule(text: &str) -> PolicyRule {
        let parts: Vec<Vec<String>> = text.split(' ').map(|part| words(part.trim_matches('-'))).collect();
        match parts.as_slice() {
            [verbs, urls] => {
                PolicyRule { verbs: verbs.clone(), non_resource_urls: urls.clone(), ..PolicyRule::default() }
            }
            [verbs, groups, resources, names] => PolicyRule {
                verbs: verbs.clone(),
                api_groups: groups.clone(),
                resources: resources.clone(),
                resource_names: names.clone(),
                ..PolicyRule::default()
            },
            _ => unreachable!("{text}"),
        }
    }

    fn rules(text: &str) -> Vec<PolicyRule> {
        text.split("; ").filter(|one| !one.is_empty()).map(rule).collect()
    }

    /// Cases of upstream's `policy_comparator_test.go`.
    #[test]
    fn what_is_not_held_is_found() {
        for (held, wanted, expected) in [
            ("get v1 builds -", "get v1 builds -", ""),
            ("get v1 builds -; delete v1 builds -", "get,delete v1 builds -", ""),
            ("get v1 builds -; update v1 builds -", "get,delete v1 builds -", "delete v1 builds -"),
            ("get v1 builds -; get v1 deployments -", "get v1 builds,deployments -", ""),
            ("get v1 builds -; get v2 builds -", "get v1,v2 builds -", ""),
            ("* v1 builds -", "get,delete v1 builds -", ""),
            ("get v1 builds -", "* v1 builds -", "* v1 builds -"),
            ("get v1 * -", "get v1 foo/bar -", ""),
            ("get v1 */bar -", "get v1 foo/bar,bar -", "get v1 bar -"),
            ("get v1 foo/* -", "get v1 foo/bar -", "get v1 foo/bar -"),
            ("get v1 builds a", "get v1 builds -", "get v1 builds -"),
            ("get v1 builds -", "get v1 builds a,b", ""),
            ("get v1 builds a", "get v1 builds a,b", "get v1 builds b"),
            ("get /a,/b", "get /a", ""),
            ("get /a/*", "get /a/b,/a/*,/a", "get /a"),
            ("get *", "get,put /a", "put /a"),
            ("get v1 * -", "get /a", "get /a"),
            ("get * * -", "get core pods -", ""),
            ("", "get core pods -", "get core pods -"),
        ] {
            assert_eq!(missing(&rules(held), &rules(wanted)), rules(expected), "{held} against {wanted}");
        }
    }

    #[test]
    fn verbs_are_put_together() {
        let parts = rules("get core pods -; get /a; list core pods -; get core pods x; watch core pods -");
        assert_eq!(compact(parts), rules("get /a; get,list,watch core pods -; get core pods x"));
    }

    #[test]
    fn enormous_rules_are_held_by_nobody() {
        let many: Vec<String> = (0..400).map(|number| number.to_string()).collect();
        let big = PolicyRule {
            verbs: many.clone(),
            api_groups: many.clone(),
            resources: many,
            ..PolicyRule::default()
        };
        assert_eq!(missing(&rules("* * * -"), std::slice::from_ref(&big)), [big]);
    }

    fn some_rule() -> impl Strategy<Value = PolicyRule> {
        let list = |words: &'static [&'static str], min: usize| {
            prop::collection::vec(prop::sample::select(words).prop_map(str::to_owned), min..3)
        };
        let resources = (
            list(&["get", "list", "*"], 1),
            list(&["", "apps", "*"], 1),
            list(&["pods", "pods/log", "*/log", "*", "jobs"], 1),
            list(&["a", "b"], 0),
        );
        let paths = (list(&["get", "list", "*"], 1), list(&["/a", "/a/*", "/a/b", "/*", "*"], 1));
        prop_oneof![
            resources.prop_map(|(verbs, api_groups, resources, resource_names)| PolicyRule {
                verbs,
                api_groups,
                resources,
                resource_names,
                ..PolicyRule::default()
            }),
            paths.prop_map(|(verbs, non_resource_urls)| PolicyRule {
                verbs,
                non_resource_urls,
                ..PolicyRule::default()
            }),
        ]
    }

    /// Every request that can be told apart by the words of [`some_rule`], with a word of each sort that it doesn't have.
    fn requests() -> Vec<RequestInfo> {
        let mut all = Vec::new();
        for verb in ["get", "list", "other"] {
            for path in ["/", "/a", "/a/", "/a/b", "/a/c", "/b"] {
                all.push(RequestInfo { verb: verb.into(), path: path.into(), ..RequestInfo::default() });
            }
            for group in ["", "apps", "other"] {
                for (resource, subresource) in
                    [("pods", ""), ("pods", "log"), ("jobs", ""), ("jobs", "log"), ("x", ""), ("x", "y")]
                {
                    all.extend(["", "a", "b", "c"].map(|name| RequestInfo {
                        is_resource: true,
                        verb: verb.into(),
                        group: group.into(),
                        resource: resource.into(),
                        subresource: subresource.into(),
                        name: name.into(),
                        ..RequestInfo::default()
                    }));
                }
            }
        }
        all
    }

    proptest! {
        /// The naive model: who holds all that is wanted may do nothing less than what is wanted, whatever is asked.
        #[test]
        fn who_holds_all_may_do_all(
            held in prop::collection::vec(some_rule(), 0..4),
            wanted in prop::collection::vec(some_rule(), 1..3),
        ) {
            let allows = |rules: &[PolicyRule], request: &RequestInfo| rules.iter().any(|rule| rule.allows(request));
            let lacking = missing(&held, &wanted);
            for request in requests() {
                if allows(&wanted, &request) && !allows(&held, &request) {
                    prop_assert!(allows(&lacking, &request), "{request:?} is lacking but not told");
                }
            }
            // What is told as missing is wanted, and with it all is held.
            let mut more = held;
            more.extend(lacking.clone());
            prop_assert!(missing(&more, &wanted).is_empty());
            prop_assert!(missing(&wanted, &lacking).is_empty());
        }
    }
}
