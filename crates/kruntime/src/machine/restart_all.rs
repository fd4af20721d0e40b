//! All containers of a pod are started anew, init containers first, when one of them ends as its rules say (the action
//! `RestartAllContainers`, KEP-5532). The sandbox stays, and with it the pod's address and volumes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, Pod, PodSpec};

use super::{Action, Busy, Input, Plan, PodMachine, StopReason};
use crate::runtime::{ContainerPhase, ObservedContainer, ObservedPod};

/// The condition of a pod whose containers are all being ended.
pub(super) const CONDITION: &str = "AllContainersRestarting";
/// The reason in the states of containers that were removed.
pub(super) const REASON: &str = "RestartingAllContainers";
const MESSAGE: &str = "The container is removed because RestartAllContainers in place";
/// The code of who was killed.
const KILLED: i32 = 137;
const ACTION: &str = "RestartAllContainers";

/// A restart of all containers.
#[derive(Clone, Debug, Default)]
pub(super) struct RestartAll {
    /// The containers are being ended.
    pub(super) goes_on: bool,
    /// The starts that are as if they were removed, by container.
    removed: BTreeMap<Arc<str>, String>,
}

/// What a container's rules say about this end: the first one that is for it counts (upstream's `FindMatchingContainerRestartRule`).
pub(super) fn rule(container: &Container, code: i32) -> Option<&str> {
    let rules = container.restart_policy_rules.iter().flatten();
    let mut matching = rules.filter(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|value| *value == code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    });
    matching.next().map(|rule| rule.action.as_str())
}

/// The containers that are restarted together.
fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Whether any rule of the pod may ask for it.
pub(super) fn can_happen(spec: &PodSpec) -> bool {
    all(spec)
        .flat_map(|container| container.restart_policy_rules.iter().flatten())
        .any(|one| one.action == ACTION)
}

/// The end of a container that was removed.
pub(super) fn removed() -> ContainerStateTerminated {
    ContainerStateTerminated {
        reason: Some(REASON.to_owned()),
        message: Some(MESSAGE.to_owned()),
        exit_code: KILLED,
        ..ContainerStateTerminated::default()
    }
}

pub(super) fn message() -> String {
    MESSAGE.to_owned()
}

fn was_going_on(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == CONDITION && condition.status == "True")
}

impl RestartAll {
    pub(super) fn is_removed(&self, container: &ObservedContainer) -> bool {
        self.removed.get(&container.name) == Some(&container.id)
    }

    /// The pod without the starts that are as if they were removed; `None` if there are none.
    pub(super) fn left(&self, observed: &ObservedPod) -> Option<ObservedPod> {
        if !observed.containers.iter().any(|container| self.is_removed(container)) {
            return None;
        }
        let mut left = observed.clone();
        left.containers.retain(|container| !self.is_removed(container));
        Some(left)
    }
}

impl PodMachine {
    /// Takes note of ends that ask for it, and of when all have ended: then they are as if they were removed.
    pub(super) fn watch_restart_all(&mut self, input: &Input<'_>, spec: &PodSpec) {
        if !can_happen(spec) {
            return;
        }
        let of = |seen: &ObservedContainer| all(spec).find(|container| *container.name == *seen.name);
        let counted: Vec<(&Container, &ObservedContainer)> = input
            .observed
            .containers
            .iter()
            .filter(|seen| !self.restart_all.is_removed(seen))
            .filter_map(|seen| Some((of(seen)?, seen)))
            .collect();
        let asks = |(container, seen): &(&Container, &ObservedContainer)| match &seen.phase {
            ContainerPhase::Exited(exit) => rule(container, exit.code) == Some(ACTION),
            ContainerPhase::Running { .. } => false,
        };
        if !self.restart_all.goes_on {
            // An agent that came back goes on with what it has told the API. What is told first is seen by others.
            self.restart_all.goes_on =
                counted.iter().any(asks) || (self.last.is_none() && was_going_on(input.pod));
            return;
        }
        let has_ended = |(_, seen): &(_, &ObservedContainer)| matches!(seen.phase, ContainerPhase::Exited(_));
        if !counted.iter().all(has_ended) || is_busy(input, spec) {
            return;
        }
        for (_, seen) in &counted {
            self.restart_all.removed.insert(Arc::clone(&seen.name), seen.id.clone());
            self.memory.entry(Arc::clone(&seen.name)).or_default().last = Some(removed());
        }
        self.restart_all.goes_on = false;
        self.initialized = false;
    }

    /// Ends all containers, without grace, as upstream does.
    pub(super) fn plan_restart_all(&self, input: &Input<'_>, spec: &PodSpec, plan: &mut Plan) {
        let mut waits = is_busy(input, spec);
        // Those that others are beside come before them.
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let name: Arc<str> = container.name.as_str().into();
            let seen = super::find(input.observed, &name);
            let runs = seen.is_some_and(|seen| matches!(seen.phase, ContainerPhase::Running { .. }));
            waits |= runs;
            let starts = input.busy.contains(&Busy::Start(Arc::clone(&name)));
            if runs && !starts && !input.busy.contains(&Busy::Stop(Arc::clone(&name))) {
                let (grace, why) = (Duration::ZERO, StopReason::RestartAll);
                plan.actions.push(Action::Stop { container: name, grace, why });
            }
        }
        if !waits {
            plan.wake(input.now);
        }
    }

    /// How often a container was started whose last start is as if it were removed.
    pub(super) fn removed_attempt(&self, name: &str) -> Option<u32> {
        let seen = self.memory.get(name)?.seen.as_ref()?;
        self.restart_all.is_removed(seen).then_some(seen.attempt + 1)
    }
}

/// Whether one of the containers is being started or stopped.
fn is_busy(input: &Input<'_>, spec: &PodSpec) -> bool {
    all(spec).any(|container| {
        let name: Arc<str> = container.name.as_str().into();
        input.busy.contains(&Busy::Start(Arc::clone(&name))) || input.busy.contains(&Busy::Stop(name))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let container: Container = serde_json::from_value(json!({"name": "c", "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [1, 2]}},
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [2, 3]}},
            {"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0, 4]}},
            {"action": "Restart"},
        ]}))
        .unwrap();
        for (code, expected) in [
            (0, None),
            (1, Some("Restart")),
            (2, Some("Restart")),
            (3, Some(ACTION)),
            (4, None),
            (5, Some(ACTION)),
        ] {
            assert_eq!(rule(&container, code), expected, "{code}");
        }
    }
}
