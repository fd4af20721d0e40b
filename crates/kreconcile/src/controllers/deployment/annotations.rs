//! The annotations in which a rollout keeps its notes.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;

/// Which rollout a set belongs to.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Which rollouts it belonged to before.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// How many replicas the Deployment asked for when the set was last sized.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// How many the Deployment could have had then, with those of a rollout.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// The longest history, in bytes (upstream's `maxRevHistoryLengthInChars`).
const HISTORY_BYTES_MAX: usize = 2000;

/// What a Deployment keeps to itself.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub(super) fn revision(annotations: &BTreeMap<String, String>) -> Option<i64> {
    annotations.get(REVISION)?.parse().ok()
}

pub(super) fn number(annotations: &BTreeMap<String, String>, key: &str) -> Option<i32> {
    annotations.get(key)?.parse().ok().filter(|number| *number >= 0)
}

pub(super) fn set_replicas(annotations: &mut BTreeMap<String, String>, desired: i32, max: i32) {
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), max.to_string());
}

/// Copies the Deployment's annotations to those of its newest set, and raises the set's revision to `revision`.
pub(super) fn sync(deployment: &Deployment, annotations: &mut BTreeMap<String, String>, revision: i64) {
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let known = annotations.get(REVISION).cloned();
    let number = match known.as_deref().unwrap_or_default() {
        "" => 0,
        text => match text.parse::<i64>() {
            Ok(number) => number,
            // Somebody wrote something else there; it is left alone.
            Err(_) => return,
        },
    };
    if number >= revision {
        return;
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
    if let Some(known) = known {
        let history = annotations.entry(HISTORY.to_owned()).or_default();
        *history = add_to_history(history, &known);
    }
}

/// The history with one more revision, without as many of the first as makes it fit.
fn add_to_history(history: &str, revision: &str) -> String {
    if history.is_empty() {
        return revision.to_owned();
    }
    let mut rest = history;
    while rest.len() + revision.len() + 1 > HISTORY_BYTES_MAX {
        match rest.split_once(',') {
            Some((_, later)) => rest = later,
            None => return revision.to_owned(),
        }
    }
    format!("{rest},{revision}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_is_rolled_back_to_keeps_its_history() {
        let deployment: Deployment = serde_json::from_value(serde_json::json!({
            "metadata": {"annotations": {"kubernetes.io/change-cause": "why", REVISION: "9"}},
            "spec": {"selector": {}, "template": {}},
        }))
        .unwrap();
        let mut annotations = BTreeMap::new();
        for revision in [1, 3, 5, 5] {
            sync(&deployment, &mut annotations, revision);
        }
        assert_eq!(annotations[REVISION], "5");
        assert_eq!(annotations[HISTORY], "1,3");
        assert_eq!(annotations["kubernetes.io/change-cause"], "why");
        let long = "1,".repeat(998) + "1";
        assert!(add_to_history(&long, "12345").len() <= HISTORY_BYTES_MAX);
    }
}
