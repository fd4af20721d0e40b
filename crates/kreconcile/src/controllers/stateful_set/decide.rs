//! What to do about the pods of a StatefulSet, given what they are: no I/O. Upstream's `stateful_set_control.go`.

use std::{cmp::Reverse, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};

use super::claims;
use crate::controllers::{percent::scaled, pod_state, replica_set::to_i32};

/// The label with the name of the revision that a pod was made from.
pub(super) const REVISION_LABEL: &str = "controller-revision-hash";
/// The label with a pod's own name.
pub(super) const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The label with a pod's ordinal.
pub(super) const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// What is known about a set.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) pods: &'a [Arc<Pod>],
    /// A claim of the set's namespace by name.
    pub(super) claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    /// The names of the revision that pods had before an update, and of the newest one.
    pub(super) current: &'a str,
    pub(super) update: &'a str,
    pub(super) now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Make the pod with this ordinal, of the newest revision or of the current one, and its claims before.
    Create {
        ordinal: i32,
        newest: bool,
    },
    /// Make the claims that a pod lacks, and have them owned as the policy says.
    Claims(Arc<Pod>),
    /// Give the pod its name and storage back.
    Mend(Arc<Pod>),
    /// Have the claims of a pod that is to go owned as the policy says.
    Retain(Arc<Pod>),
    Delete(Arc<Pod>),
}

/// What to do, in phases: one begins when all of the one before has succeeded. In a phase, an ordered set does one step
/// after the other, a parallel one does all at once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) phases: Vec<Vec<Step>>,
    /// The phase whose deletions replace pods of the current revision, by index.
    pub(super) rollout: Option<usize>,
    pub(super) status: StatefulSetStatus,
}

/// The set's name and the ordinal in the name of a pod.
pub(super) fn parent_and_ordinal(pod_name: &str) -> Option<(&str, i32)> {
    let (parent, ordinal) = pod_name.rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    let ordinal = digits.then(|| ordinal.parse().ok()).flatten()?;
    Some((parent, ordinal))
}

pub(super) fn ordinal(pod: &Pod) -> Option<i32> {
    parent_and_ordinal(pod_state::name(pod)).map(|(_, ordinal)| ordinal)
}

fn start_ordinal(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or_default()
}

fn replicas(set: &StatefulSet) -> i32 {
    set.spec.replicas.unwrap_or(1).max(0)
}

/// Whether the pod's ordinal is among those that the set asks for.
pub(super) fn is_in_range(set: &StatefulSet, pod: &Pod) -> bool {
    let start = i64::from(start_ordinal(set));
    let range = start..start + i64::from(replicas(set));
    ordinal(pod).is_some_and(|ordinal| range.contains(&i64::from(ordinal)))
}

/// Whether pods are made and deleted without waiting for each other.
pub(super) fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() == Some("Parallel")
}

fn is_rolling(set: &StatefulSet) -> bool {
    let strategy = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy != Some("OnDelete")
}

fn partition(set: &StatefulSet) -> Option<i32> {
    let rolling = set.spec.update_strategy.as_ref()?.rolling_update.as_ref()?;
    Some(rolling.partition.unwrap_or_default())
}

pub(super) fn revision(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(REVISION_LABEL)).map(String::as_str).unwrap_or_default()
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pod_state::phase(pod) == "Running" && pod_state::is_ready(pod)
}

impl View<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        let min_ready = self.set.spec.min_ready_seconds.unwrap_or_default();
        pod_state::available_in(pod, min_ready, self.now).is_some_and(|wait| wait.is_zero())
    }

    fn is_unavailable(&self, pod: Option<&Arc<Pod>>) -> bool {
        pod.is_none_or(|pod| !self.is_available(pod) || is_going(pod))
    }

    /// A pod that is made anew below the partition, or before an update has reached it, is as it was.
    fn makes_newest(&self, ordinal: i32) -> bool {
        let start = start_ordinal(self.set);
        let kept = match partition(self.set) {
            Some(partition) => partition,
            None if is_rolling(self.set) => {
                self.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or_default()
            }
            None => return true,
        };
        i64::from(ordinal) >= i64::from(start) + i64::from(kept)
    }

    fn status<'a>(&self, pods: impl Iterator<Item = &'a Arc<Pod>>, collisions: i32) -> StatefulSetStatus {
        let (mut all, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
        for pod in pods {
            let created = !pod_state::phase(pod).is_empty();
            all += i32::from(created);
            if is_running_and_ready(pod) {
                ready += 1;
                available += i32::from(self.is_available(pod));
            }
            if created && !is_going(pod) {
                current += i32::from(revision(pod) == self.current);
                updated += i32::from(revision(pod) == self.update);
            }
        }
        let nonzero = |count: i32| (count != 0).then_some(count);
        StatefulSetStatus {
            replicas: all,
            ready_replicas: nonzero(ready),
            available_replicas: Some(available),
            current_replicas: nonzero(current),
            updated_replicas: nonzero(updated),
            current_revision: Some(self.current.to_owned()),
            update_revision: Some(self.update.to_owned()),
            observed_generation: self.set.metadata.generation.filter(|generation| *generation != 0),
            collision_count: Some(collisions),
            conditions: self.set.status.as_ref().and_then(|status| status.conditions.clone()),
        }
    }

    fn claims_fit(&self, pod: &Pod) -> bool {
        let Some(ordinal) = ordinal(pod) else { return true };
        let name = self.set.metadata.name.as_deref().unwrap_or_default();
        let templates = self.set.spec.volume_claim_templates.iter().flatten();
        templates.into_iter().all(|template| {
            let claim = (self.claim)(&claims::name(template, name, ordinal));
            claim.is_none_or(|claim| claims::owners_wanted(&claim, self.set, pod).is_none())
        })
    }

    fn waits_for_stale_claim(&self, ordinal: i32) -> bool {
        if !claims::Retention::of(self.set).delete_when_scaled {
            return false;
        }
        let name = self.set.metadata.name.as_deref().unwrap_or_default();
        let pod = format!("{name}-{ordinal}");
        let templates = self.set.spec.volume_claim_templates.iter().flatten();
        let mut claims =
            templates.filter_map(|template| (self.claim)(&claims::name(template, name, ordinal)));
        claims.any(|claim| claims::is_stale(&claim, &pod))
    }

    /// The steps for one replica; the flag says that an ordered set goes no further this time.
    fn replica(&self, ordinal: i32, pod: Option<&Arc<Pod>>, steps: &mut Vec<Step>) -> bool {
        let Some(pod) = pod else {
            if !self.waits_for_stale_claim(ordinal) {
                steps.push(Step::Create { ordinal, newest: self.makes_newest(ordinal) });
            }
            return true;
        };
        if pod_state::is_terminal(pod) {
            // A new one is made when this one has gone.
            if !is_going(pod) {
                steps.push(Step::Delete(Arc::clone(pod)));
            }
            return true;
        }
        if pod_state::phase(pod) == "Pending" && self.lacks_claims(pod) {
            steps.push(Step::Claims(Arc::clone(pod)));
        }
        let ordered = !is_parallel(self.set);
        if ordered && (is_going(pod) || !is_running_and_ready(pod) || !self.is_available(pod)) {
            return true;
        }
        if !(identity_fits(self.set, pod) && storage_fits(self.set, pod) && self.claims_fit(pod)) {
            steps.push(Step::Mend(Arc::clone(pod)));
        }
        false
    }

    fn lacks_claims(&self, pod: &Pod) -> bool {
        let Some(ordinal) = ordinal(pod) else { return false };
        let name = self.set.metadata.name.as_deref().unwrap_or_default();
        let mut templates = self.set.spec.volume_claim_templates.iter().flatten();
        let missing =
            templates.any(|template| (self.claim)(&claims::name(template, name, ordinal)).is_none());
        missing || !self.claims_fit(pod)
    }

    /// Pods beyond what is asked for go from the highest ordinal on; an ordered set has one go at a time, when all
    /// others are well. `first_unavailable` may go although it is not.
    fn condemned(&self, condemned: &[Arc<Pod>], first_unavailable: Option<&str>) -> (Vec<Step>, bool) {
        let mut steps = Vec::new();
        let ordered = !is_parallel(self.set);
        for pod in condemned {
            if is_going(pod) {
                if ordered {
                    return (steps, true);
                }
                continue;
            }
            let well = is_running_and_ready(pod) && self.is_available(pod);
            if ordered && !well && first_unavailable != Some(pod_state::uid(pod)) {
                return (steps, true);
            }
            steps.push(Step::Delete(Arc::clone(pod)));
            if ordered {
                return (steps, true);
            }
        }
        (steps, false)
    }

    /// The pods that an update has go now: from the highest ordinal on, as many as may be unavailable at once.
    fn rollout(&self, replicas: &[Option<Arc<Pod>>]) -> Vec<Step> {
        let rolling =
            self.set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let may = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let may = may.map_or(1, |may| scaled(Some(may), to_i32(replicas.len()), false)).max(1);
        let unavailable = replicas.iter().filter(|pod| self.is_unavailable(pod.as_ref())).count();
        let room = usize::try_from(may).unwrap_or(1).saturating_sub(unavailable);
        let from = usize::try_from(partition(self.set).unwrap_or_default()).unwrap_or_default();
        let old = |pod: &&Arc<Pod>| revision(pod) != self.update && !is_going(pod);
        let candidates = replicas.iter().skip(from).rev().flatten().filter(old);
        candidates.take(room).map(|pod| Step::Delete(Arc::clone(pod))).collect()
    }
}

/// Decides what to do. A set that is being deleted gets its status only.
pub(super) fn plan(view: &View<'_>, collisions: i32) -> Plan {
    let set = view.set;
    let start = start_ordinal(set);
    let mut replicas: Vec<Option<Arc<Pod>>> = vec![None; usize::try_from(replicas(set)).unwrap_or_default()];
    let mut condemned = Vec::new();
    for pod in view.pods {
        let Some(ordinal) = ordinal(pod) else { continue };
        let place = usize::try_from(i64::from(ordinal) - i64::from(start)).ok();
        match place.and_then(|place| replicas.get_mut(place)) {
            Some(place) => *place = Some(Arc::clone(pod)),
            None => condemned.push(Arc::clone(pod)),
        }
    }
    condemned.sort_by_key(|pod| Reverse(ordinal(pod)));
    let status = view.status(replicas.iter().flatten().chain(&condemned), collisions);
    let mut plan = Plan { phases: Vec::new(), rollout: None, status };
    if set.metadata.deletion_timestamp.is_some() {
        plan.status = view.status(view.pods.iter(), collisions);
        return plan;
    }
    let ordered = !is_parallel(set);
    let mut steps = Vec::new();
    for (ordinal, pod) in (start..).zip(&replicas) {
        if view.replica(ordinal, pod.as_ref(), &mut steps) && ordered {
            plan.phases.push(steps);
            return plan;
        }
    }
    plan.phases.push(steps);
    let retain = condemned.iter().filter(|pod| !view.claims_fit(pod));
    plan.phases.push(retain.map(|pod| Step::Retain(Arc::clone(pod))).collect());
    let first = replicas.iter().find(|pod| view.is_unavailable(pod.as_ref()));
    let first = match first {
        Some(pod) => pod.as_ref(),
        None => condemned.iter().rev().find(|pod| view.is_unavailable(Some(pod))),
    };
    let (steps, blocked) = view.condemned(&condemned, first.map(|pod| pod_state::uid(pod)));
    plan.phases.push(steps);
    if !blocked && is_rolling(set) {
        plan.rollout = Some(plan.phases.len());
        plan.phases.push(view.rollout(&replicas));
    }
    plan
}

/// An update is complete when all pods are of the newest revision and ready.
pub(super) fn complete(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let wanted = replicas(set);
    let updated = status.updated_replicas.unwrap_or_default();
    if is_rolling(set)
        && updated == wanted
        && status.ready_replicas.unwrap_or_default() == wanted
        && status.replicas == wanted
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
}

/// Whether a pod has the label with its name.
pub(super) fn identity_fits(set: &StatefulSet, pod: &Pod) -> bool {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_NAME_LABEL));
    let member = parent_and_ordinal(pod_state::name(pod)).map(|(parent, _)| parent);
    member == set.metadata.name.as_deref() && label.map(String::as_str) == pod.metadata.name.as_deref()
}

/// Whether a pod uses its claims.
pub(super) fn storage_fits(set: &StatefulSet, pod: &Pod) -> bool {
    let Some(ordinal) = ordinal(pod) else { return false };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut templates = set.spec.volume_claim_templates.iter().flatten();
    templates.all(|template| {
        let volume = volumes.iter().find(|volume| Some(&volume.name) == template.metadata.name.as_ref());
        let source = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
        source.is_some_and(|source| source.claim_name == claims::name(template, name, ordinal))
    })
}
