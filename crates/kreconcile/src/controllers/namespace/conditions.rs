//! What is in the way of a namespace that is to go, in its conditions.

use std::time::Duration;

use jiff::Timestamp;
use kcore::clock::format_time;
use serde_json::{Value, json};

use super::Counts;
use crate::resource::ResourceType;

/// What one look at a namespace's content found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) discovery_error: Option<String>,
    pub(super) content_errors: Vec<String>,
    pub(super) remaining: Vec<Remaining>,
    /// How long it may take until what remains is gone.
    pub(super) wait: Duration,
}

/// How many objects of a kind are left.
#[derive(Debug)]
pub(super) struct Remaining {
    what: String,
    count: usize,
    pub(super) finalizers: Counts,
}

impl Remaining {
    pub(super) fn new(resource: &ResourceType, count: usize) -> Self {
        Self { what: format!("{}.{}", resource.plural, resource.group), count, finalizers: Counts::new() }
    }
}

impl Findings {
    pub(super) fn first_error(&self) -> Option<String> {
        self.discovery_error.clone().or_else(|| self.content_errors.first().cloned())
    }
}

/// Type, reason and message of a condition that is false, in the order in which they are written.
const OK: [(&str, &str, &str); 5] = [
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
    ("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
];

/// Reason and message of the condition of this type, when it is true.
fn trouble(kind: &str, findings: &Findings) -> Option<(&'static str, String)> {
    let list = |mut texts: Vec<String>| {
        texts.sort_unstable();
        texts.join(", ")
    };
    match kind {
        "NamespaceDeletionDiscoveryFailure" => Some(("DiscoveryFailed", findings.discovery_error.clone()?)),
        "NamespaceDeletionContentFailure" if !findings.content_errors.is_empty() => {
            let (count, errors) = (findings.content_errors.len(), list(findings.content_errors.clone()));
            let message = format!("Failed to delete all resource types, {count} remaining: {errors}");
            Some(("ContentDeletionFailed", message))
        }
        "NamespaceContentRemaining" if !findings.remaining.is_empty() => {
            let text = |left: &Remaining| format!("{} has {} resource instances", left.what, left.count);
            let left = list(findings.remaining.iter().map(text).collect());
            Some(("SomeResourcesRemain", format!("Some resources are remaining: {left}")))
        }
        "NamespaceFinalizersRemaining" => {
            let mut counts = Counts::new();
            for (finalizer, count) in findings.remaining.iter().flat_map(|left| &left.finalizers) {
                *counts.entry(finalizer.clone()).or_insert(0) += count;
            }
            let left =
                counts.iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"));
            let left = list(left.collect());
            let message = format!("Some content in the namespace has finalizers remaining: {left}");
            (!counts.is_empty()).then_some(("SomeFinalizersRemain", message))
        }
        _ => None,
    }
}

/// The conditions with what was found; `None` when they say so already.
pub(super) fn update(old: &Value, findings: &Findings, now: Timestamp) -> Option<Vec<Value>> {
    let mut conditions = old.as_array().cloned().unwrap_or_default();
    let mut changed = false;
    for (kind, reason, message) in OK {
        let trouble = trouble(kind, findings);
        let status = if trouble.is_some() { "True" } else { "False" };
        let (reason, message) = trouble.unwrap_or_else(|| (reason, message.to_owned()));
        let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": format_time(now),
            "reason": reason, "message": message});
        match conditions.iter_mut().find(|known| known["type"] == kind) {
            None => conditions.push(condition),
            Some(known) => {
                if ["status", "reason", "message"].iter().all(|key| known[key] == condition[key]) {
                    continue;
                }
                if known["status"] == condition["status"] {
                    condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
                }
                *known = condition;
            }
        }
        changed = true;
    }
    changed.then_some(conditions)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn conditions_say_what_is_in_the_way_and_stay_when_nothing_changes() {
        let now = Timestamp::UNIX_EPOCH;
        let mut left = Remaining::new(&ResourceType::of::<Pod>(), 2);
        left.finalizers.insert("example.com/keep".into(), 2);
        let findings = Findings { remaining: vec![left], ..Findings::default() };
        let conditions = update(&Value::Null, &findings, now).unwrap();
        let messages: Vec<_> = conditions
            .iter()
            .filter(|condition| condition["status"] == "True")
            .map(|condition| condition["message"].as_str().unwrap())
            .collect();
        assert_eq!(
            messages,
            [
                "Some resources are remaining: pods. has 2 resource instances",
                "Some content in the namespace has finalizers remaining: example.com/keep in 2 resource instances"
            ]
        );
        assert_eq!(conditions.len(), 5);
        assert!(update(&Value::Array(conditions), &findings, now).is_none());
    }
}
