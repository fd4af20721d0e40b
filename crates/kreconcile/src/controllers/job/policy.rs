//! What a pod's failure, or success, means for its Job: no I/O.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::{JobSpec, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};

use super::indexes;
use crate::controllers::pod_state;

/// The wait after the first failure of a pod (upstream's `DefaultJobPodFailureBackOff`).
pub const POD_FAILURE_BACKOFF_MIN: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait after a failure of a pod (upstream's `MaxJobPodFailureBackOff`).
pub const POD_FAILURE_BACKOFF_MAX: SignedDuration = SignedDuration::from_mins(10);

/// What the failure policy says about a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It counts.
    Counts,
    /// It does not count.
    Ignored,
    /// It counts, and the pod's index is not tried again.
    FailsIndex,
    /// The Job fails, for this reason.
    FailsJob(String),
}

/// Upstream's `matchPodFailurePolicy`: the first rule that matches decides.
pub(super) fn judge(spec: &JobSpec, pod: &Pod) -> Failure {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (number, rule) in rules.enumerate() {
        let Some(what) = matches(rule, pod) else { continue };
        let action = rule.action.as_str();
        match action {
            "Ignore" => return Failure::Ignored,
            "Count" => return Failure::Counts,
            "FailIndex" => return Failure::FailsIndex,
            "FailJob" => {
                return Failure::FailsJob(format!("{what} matching {action} rule at index {number}"));
            }
            _ => {}
        }
    }
    Failure::Counts
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = format!("{namespace}/{}", pod_state::name(pod));
    if let Some(codes) = &rule.on_exit_codes {
        let exit_code = |container: &ContainerStatus| {
            container.state.as_ref()?.terminated.as_ref().map(|ended| ended.exit_code)
        };
        let matching = |container: &&ContainerStatus| {
            let named = codes.container_name.as_ref().is_none_or(|name| *name == container.name);
            let listed = |code: i32| codes.values.contains(&code) == (codes.operator == "In");
            named && exit_code(container).is_some_and(|code| code != 0 && listed(code))
        };
        let containers = status.container_statuses.iter().flatten();
        let container = containers.chain(status.init_container_statuses.iter().flatten()).find(matching)?;
        let code = exit_code(container).unwrap_or_default();
        return Some(format!("Container {} for pod {pod_name} failed with exit code {code}", container.name));
    }
    let patterns = rule.on_pod_conditions.as_ref()?;
    let condition = status.conditions.iter().flatten().find(|condition| {
        let matching = |status: &str| status == condition.status;
        patterns.iter().any(|pattern| {
            pattern.type_ == condition.type_ && matching(pattern.status.as_deref().unwrap_or("True"))
        })
    })?;
    Some(format!("Pod {pod_name} has condition {}", condition.type_))
}

/// The rule of the success policy that these indexes meet.
pub(super) fn success_rule(spec: &JobSpec, succeeded: &BTreeSet<i32>) -> Option<usize> {
    let policy = spec.success_policy.as_ref()?;
    let completions = spec.completions.unwrap_or_default();
    policy.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, completions));
        let met = wanted.as_ref().map_or(succeeded.len(), |wanted| wanted.intersection(succeeded).count());
        match (rule.succeeded_count, &wanted) {
            (Some(count), _) => met >= usize::try_from(count).unwrap_or_default(),
            (None, Some(wanted)) => met >= wanted.len(),
            (None, None) => false,
        }
    })
}

/// The failures since the last success, and the time of the last: what the wait before new pods follows from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    count: u32,
    last: Option<Timestamp>,
}

impl Failures {
    /// With pods that have newly ended.
    pub(super) fn with(self, succeeded: &[&Pod], failed: &[&Pod]) -> Self {
        let last_success = succeeded.iter().map(|pod| finished_at(pod)).max();
        let mut known = if last_success.is_some() { Self::default() } else { self };
        let since = failed.iter().map(|pod| finished_at(pod));
        for at in since.filter(|at| last_success.is_none_or(|success| *at > success)) {
            known.count += 1;
            known.last = known.last.max(Some(at));
        }
        known
    }

    /// How long to wait until the next pod may be made.
    pub(super) fn wait(self, now: Timestamp) -> Option<std::time::Duration> {
        wait_after(self.count, self.last?, now)
    }
}

/// How long to wait after so many failures in a row, the last of them at this time; `None` when the wait is over.
pub(super) fn wait_after(count: u32, last: Timestamp, now: Timestamp) -> Option<std::time::Duration> {
    let doublings = count.checked_sub(1)?;
    let factor = 1_i32.checked_shl(doublings).filter(|factor| *factor > 0).unwrap_or(i32::MAX);
    let wait = POD_FAILURE_BACKOFF_MIN.checked_mul(factor).unwrap_or(POD_FAILURE_BACKOFF_MAX);
    let at = last.checked_add(wait.min(POD_FAILURE_BACKOFF_MAX)).ok()?;
    std::time::Duration::try_from(at.duration_since(now)).ok().filter(|wait| !wait.is_zero())
}

/// When a pod ended: by its containers, else by its condition, its deletion or its creation.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = || pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ended = |status: &ContainerStatus| {
        status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|time| time.0)
    };
    let all_ended = statuses().all(|status| ended(status).is_some());
    let by_containers = statuses().filter_map(ended).max().filter(|_| all_ended);
    let unready = pod_state::condition(pod, "Ready").filter(|ready| ready.status == "False");
    let metadata = &pod.metadata;
    by_containers
        .or_else(|| unready?.last_transition_time.as_ref().map(|time| time.0))
        .or_else(|| metadata.deletion_timestamp.as_ref().map(|time| time.0))
        .or_else(|| metadata.creation_timestamp.as_ref().map(|time| time.0))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How often the containers of running pods have been started again.
pub(super) fn restarts(pods: &[&Pod]) -> i32 {
    let running = pods.iter().filter(|pod| matches!(pod_state::phase(pod), "Running" | "Pending"));
    let statuses = running.flat_map(|pod| pod.status.iter()).flat_map(|status| {
        let containers = status.container_statuses.iter().flatten();
        containers.chain(status.init_container_statuses.iter().flatten())
    });
    statuses.map(|status| status.restart_count).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let spec: JobSpec = serde_json::from_value(json!({"template": {}, "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [1]}},
        ]}}))
        .unwrap();
        let pod = |code: i32, disrupted: bool| -> Pod {
            let conditions =
                if disrupted { json!([{"type": "DisruptionTarget", "status": "True"}]) } else { json!([]) };
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n"},
                "status": {"conditions": conditions, "containerStatuses": [{"name": "main", "image": "", "imageID": "",
                    "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]},
            }))
            .unwrap()
        };
        assert_eq!(judge(&spec, &pod(42, true)), Failure::Ignored);
        let message = "Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(judge(&spec, &pod(42, false)), Failure::FailsJob(message.into()));
        assert_eq!(judge(&spec, &pod(1, false)), Failure::Counts);
    }

    #[test]
    fn the_wait_doubles_with_each_failure_and_ends_with_a_success() {
        let pod = |second: i64| -> Pod {
            let at = Timestamp::from_second(second).unwrap().to_string();
            serde_json::from_value(json!({"metadata": {"creationTimestamp": at}})).unwrap()
        };
        let (one, two) = (pod(100), pod(200));
        let at = |second| Timestamp::from_second(second).unwrap();
        let failures = Failures::default().with(&[], &[&one]);
        assert_eq!(failures.wait(at(100)).unwrap().as_secs(), 10);
        let failures = failures.with(&[], &[&two]);
        assert_eq!(failures.wait(at(205)).unwrap().as_secs(), 15);
        assert_eq!(failures.wait(at(220)), None);
        assert_eq!(failures.with(&[&pod(300)], &[]), Failures::default());
        let many = (0..40).fold(Failures::default(), |failures, _| failures.with(&[], &[&one]));
        assert_eq!(many.wait(at(100)).unwrap().as_secs(), 600);
    }
}
