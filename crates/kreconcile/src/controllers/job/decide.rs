//! What a Job needs next, given its pods: no I/O.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
    core::v1::Pod,
};

use super::{
    indexes,
    per_index::{IndexFailures, PerIndex},
    policy::{self, Failure, Failures},
};
use crate::{
    controllers::{pod_state, replica_set::to_i32},
    events::EventType,
};

/// The finalizer that keeps a pod until it has been counted.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// How many pods are made or deleted in one look (upstream's `MaxPodCreateDeletePerSync`).
pub const PODS_PER_LOOK_MAX: usize = 500;
/// How many ended pods are written into the status at once (upstream's `MaxUncountedPods`).
pub const UNCOUNTED_PODS_MAX: usize = 500;

/// What is known of a Job.
pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) failures: Failures,
    pub(super) now: Timestamp,
}

/// What is to be done about a Job: first pods are made or deleted, then the status is written, and then pods released.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) status: JobStatus,
    /// The completion indexes of pods to make; `None` for those without one.
    pub(super) create: Vec<Option<i32>>,
    /// The failures before the pods to make, where they count by index; those that are not there have none.
    pub(super) failed_before: Option<HashMap<i32, IndexFailures>>,
    /// The names and uids of pods to delete.
    pub(super) delete: Vec<(String, String)>,
    /// The names of pods that are counted in the status, or will be once it is written.
    pub(super) release: Vec<String>,
    pub(super) events: Vec<(EventType, String, String)>,
    pub(super) after: Option<Duration>,
    pub(super) failures: Failures,
}

pub(super) fn has_condition(status: Option<&JobStatus>, kind: &str) -> bool {
    let conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Whether the Job has come to its end.
pub(super) fn is_finished(job: &Job) -> bool {
    has_condition(job.status.as_ref(), "Complete") || has_condition(job.status.as_ref(), "Failed")
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

fn replaces_failed_only(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether a pod counts as failed. One that is told to go may never come to say so itself.
pub(super) fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pod_state::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !replaces_failed_only(spec) && pod.metadata.deletion_timestamp.is_some(),
    }
}

/// The end that a Job is about to come to.
#[derive(Clone, Debug)]
struct End {
    success: bool,
    reason: String,
    message: String,
}

impl End {
    fn new(success: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { success, reason: reason.to_owned(), message: message.into() }
    }

    /// The condition that says so before the last pods are gone.
    fn announcement(&self) -> &'static str {
        if self.success { "SuccessCriteriaMet" } else { "FailureTarget" }
    }
}

/// One look at a Job that has not ended: upstream's `syncJob`. The caller has made sure that the pods are as the last look
/// left them, or newer.
pub(super) fn decide(view: View<'_>) -> Decision {
    let mut look = Look::new(view);
    look.count();
    look.find_end();
    if look.end.is_some() {
        look.stop_pods();
    } else {
        if look.view.job.metadata.deletion_timestamp.is_none() {
            look.manage();
        }
        look.check_completion();
    }
    look.track();
    look.conclude();
    look.decision
}

/// Whether a decision counts a pod on the word of what is known of the pods: one that has ended and is not in the status yet, or
/// one that is in the status and waits no longer, though it can't be seen that its finalizer is gone.
pub(super) fn counts_anything(job: &Job, pods: &[Arc<Pod>], decision: &Decision) -> bool {
    let uncounted = job.status.as_ref().and_then(|status| status.uncounted_terminated_pods.as_ref());
    let waiting: HashSet<&str> = uncounted
        .into_iter()
        .flat_map(|uncounted| uncounted.succeeded.iter().chain(&uncounted.failed).flatten())
        .map(String::as_str)
        .collect();
    let released = pods.iter().filter(|pod| decision.release.iter().any(|name| name == pod_state::name(pod)));
    let mut new = released.filter(|pod| !waiting.contains(pod_state::uid(pod)));
    let seen: HashSet<&str> = pods.iter().map(|pod| pod_state::uid(pod)).collect();
    new.next().is_some() || waiting.iter().any(|uid| !seen.contains(uid))
}

/// Whether more pods have ended and been released than the Job has counted: somebody has counted them in a newer one.
pub(super) fn shows_more_than_counted(job: &Job, pods: &[Arc<Pod>]) -> bool {
    let status = job.status.clone().unwrap_or_default();
    let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
    let released = |phase: &str| {
        let pods = pods.iter().filter(|pod| !is_tracked(pod) && pod_state::phase(pod) == phase);
        to_i32(pods.count())
    };
    let waiting = |uids: Option<Vec<String>>| to_i32(uids.map_or(0, |uids| uids.len()));
    released("Succeeded") > status.succeeded.unwrap_or_default() + waiting(uncounted.succeeded)
        || released("Failed") > status.failed.unwrap_or_default() + waiting(uncounted.failed)
}

/// Whether one of these pods, which changed after the Job did, has ended and been released without being on the Job's list of those to count:
/// a newer one must have it. (A pod that has been counted for long can change, too: what follows is a question to the server.)
pub(super) fn was_counted_since<'a>(job: &Job, pods: impl IntoIterator<Item = &'a Pod>) -> bool {
    let uncounted = job.status.as_ref().and_then(|status| status.uncounted_terminated_pods.as_ref());
    let is_waiting = |pod: &Pod| {
        let lists = uncounted.into_iter().flat_map(|lists| [&lists.succeeded, &lists.failed]);
        lists.flatten().flatten().any(|uid| uid == pod_state::uid(pod))
    };
    let has_ended = |pod: &Pod| matches!(pod_state::phase(pod), "Succeeded" | "Failed");
    pods.into_iter().any(|pod| has_ended(pod) && !is_tracked(pod) && !is_waiting(pod))
}

struct Look<'a> {
    view: View<'a>,
    decision: Decision,
    indexed: bool,
    active: Vec<&'a Pod>,
    active_count: i32,
    terminating: i32,
    ready: i32,
    succeeded: i32,
    failed: i32,
    /// Indexes that the status says have succeeded, and those with the pods that were seen.
    known_indexes: BTreeSet<i32>,
    succeeded_indexes: BTreeSet<i32>,
    per_index: Option<PerIndex<'a>>,
    uncounted_succeeded: HashSet<String>,
    uncounted_failed: HashSet<String>,
    end: Option<End>,
}

impl<'a> Look<'a> {
    fn new(view: View<'a>) -> Self {
        let pods = view.pods;
        let active: Vec<&Pod> =
            pods.iter().map(|pod| &**pod).filter(|pod| pod_state::is_active(pod)).collect();
        let count = |holds: &dyn Fn(&Pod) -> bool| to_i32(pods.iter().filter(|pod| holds(pod)).count());
        let status = view.job.status.clone().unwrap_or_default();
        let uids = |list: Option<&Vec<String>>| list.into_iter().flatten().cloned().collect::<HashSet<_>>();
        let uncounted = status.uncounted_terminated_pods.as_ref();
        Self {
            indexed: view.spec.completion_mode.as_deref() == Some("Indexed"),
            active_count: to_i32(active.len()),
            terminating: count(&pod_state::is_terminating),
            ready: count(&|pod| pod_state::is_active(pod) && pod_state::is_ready(pod)),
            succeeded: status.succeeded.unwrap_or_default(),
            failed: status.failed.unwrap_or_default(),
            known_indexes: BTreeSet::new(),
            succeeded_indexes: BTreeSet::new(),
            per_index: None,
            uncounted_succeeded: uids(uncounted.and_then(|uncounted| uncounted.succeeded.as_ref())),
            uncounted_failed: uids(uncounted.and_then(|uncounted| uncounted.failed.as_ref())),
            end: None,
            active,
            decision: Decision { status, ..Decision::default() },
            view,
        }
    }

    fn completions(&self) -> i32 {
        self.view.spec.completions.unwrap_or(i32::MAX)
    }

    fn suspended(&self) -> bool {
        self.view.spec.suspend.unwrap_or_default()
    }

    /// Whether a pod has ended and is neither counted nor about to be.
    fn is_new(&self, pod: &Pod) -> bool {
        let uid = pod_state::uid(pod);
        is_tracked(pod) && !self.uncounted_succeeded.contains(uid) && !self.uncounted_failed.contains(uid)
    }

    fn count(&mut self) {
        let spec = self.view.spec;
        let new: Vec<&Pod> = self.view.pods.iter().map(|pod| &**pod).filter(|pod| self.is_new(pod)).collect();
        let succeeded: Vec<&Pod> =
            new.iter().copied().filter(|pod| pod_state::phase(pod) == "Succeeded").collect();
        let failed: Vec<&Pod> = new.iter().copied().filter(|pod| is_failed(spec, pod)).collect();
        self.decision.failures = self.view.failures.with(&succeeded, &failed);
        let counting = failed.iter().filter(|pod| policy::judge(spec, pod) != Failure::Ignored).count();
        self.succeeded += to_i32(succeeded.len() + self.uncounted_succeeded.len());
        self.failed += to_i32(counting + self.uncounted_failed.len());
        if self.indexed {
            let status = &self.decision.status;
            let known = status.completed_indexes.as_deref().unwrap_or_default();
            self.known_indexes = indexes::parse(known, self.completions());
            let seen = succeeded.iter().filter_map(|pod| indexes::index_of(pod));
            let seen = seen.filter(|index| *index < self.completions());
            self.succeeded_indexes = self.known_indexes.iter().copied().chain(seen).collect();
            self.succeeded = to_i32(self.succeeded_indexes.len());
            let known = status.failed_indexes.as_deref().unwrap_or_default();
            let done = &self.succeeded_indexes;
            self.per_index = PerIndex::new(spec, known, self.view.pods, &self.active, done);
        }
        if self.decision.status.start_time.is_none() && !self.suspended() {
            self.decision.status.start_time = Some(pod_state::stored_time(self.view.now));
        }
    }

    /// Whether the Job has come to its end, or has been told so before.
    fn find_end(&mut self) {
        let spec = self.view.spec;
        for (success, kind) in [(true, "SuccessCriteriaMet"), (false, "FailureTarget")] {
            let known = self.decision.status.conditions.iter().flatten();
            let known = known.into_iter().find(|known| known.type_ == kind && known.status == "True");
            if let Some(known) = known {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                self.end = Some(End::new(success, &text(&known.reason), text(&known.message)));
                return;
            }
        }
        let failing = self.view.pods.iter().filter(|pod| is_failed(spec, pod)).find_map(|pod| {
            match policy::judge(spec, pod) {
                Failure::FailsJob(why) => Some(why),
                _ => None,
            }
        });
        let limit = spec.backoff_limit.unwrap_or(if self.per_index.is_some() { i32::MAX } else { 6 });
        self.end = if let Some(why) = failing {
            Some(End::new(false, "PodFailurePolicy", why))
        } else if self.failed > limit || self.restarted_too_often(limit) {
            Some(End::new(false, "BackoffLimitExceeded", "Job has reached the specified backoff limit"))
        } else if self.past_deadline() {
            Some(End::new(false, "DeadlineExceeded", "Job was active longer than specified deadline"))
        } else if let Some((reason, message)) = self.failed_by_index() {
            Some(End::new(false, reason, message))
        } else if self.indexed {
            let rule = policy::success_rule(spec, &self.succeeded_indexes);
            rule.map(|rule| End::new(true, "SuccessPolicy", format!("Matched rules at index {rule}")))
        } else {
            None
        };
    }

    fn failed_by_index(&self) -> Option<(&'static str, &'static str)> {
        self.per_index.as_ref()?.end(self.view.spec, self.succeeded_indexes.len())
    }

    fn restarted_too_often(&self, limit: i32) -> bool {
        let template = self.view.spec.template.spec.as_ref();
        let restarts_in_place =
            template.is_some_and(|spec| spec.restart_policy.as_deref() == Some("OnFailure"));
        if !restarts_in_place {
            return false;
        }
        let restarts = policy::restarts(&self.active);
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    /// Whether the deadline is over; if not, a look at that time is planned.
    fn past_deadline(&mut self) -> bool {
        let (Some(seconds), Some(start)) =
            (self.view.spec.active_deadline_seconds, self.decision.status.start_time.as_ref())
        else {
            return false;
        };
        if self.suspended() {
            return false;
        }
        let Ok(at) = start.0.checked_add(SignedDuration::from_secs(seconds)) else { return false };
        let left = at.duration_since(self.view.now);
        if left.is_positive() {
            self.look_after(Duration::try_from(left).unwrap_or_default());
        }
        !left.is_positive()
    }

    fn look_after(&mut self, wait: Duration) {
        let known = self.decision.after.get_or_insert(wait);
        *known = wait.min(*known);
    }

    fn delete(&mut self, pods: &[&Pod]) {
        for pod in pods {
            self.decision.delete.push((pod_state::name(pod).to_owned(), pod_state::uid(pod).to_owned()));
            self.active_count -= 1;
            self.terminating += 1;
            if pod_state::is_ready(pod) {
                self.ready -= 1;
            }
        }
    }

    fn stop_pods(&mut self) {
        let active = std::mem::take(&mut self.active);
        self.delete(&active);
    }

    /// Brings the number of running pods to what is wanted.
    fn manage(&mut self) {
        let spec = self.view.spec;
        if self.suspended() {
            return self.stop_pods();
        }
        let parallelism = spec.parallelism.unwrap_or(1);
        let wanted = match spec.completions {
            None if self.succeeded > 0 => self.active_count,
            None => parallelism,
            Some(completions) => (completions - self.succeeded).min(parallelism).max(0),
        };
        let surplus = self.surplus(usize::try_from(self.active_count - wanted).unwrap_or_default());
        if !surplus.is_empty() {
            return self.delete(&surplus);
        }
        let held = if replaces_failed_only(spec) { self.terminating } else { 0 };
        let missing = usize::try_from(wanted - held - self.active_count).unwrap_or_default();
        if missing == 0 {
            return;
        }
        if self.per_index.is_none()
            && let Some(wait) = self.decision.failures.wait(self.view.now)
        {
            return self.look_after(wait);
        }
        let count = missing.min(PODS_PER_LOOK_MAX);
        if !self.indexed {
            self.decision.create = vec![None; count];
        } else if let Err(wait) = self.create_indexes(count) {
            return wait.into_iter().for_each(|wait| self.look_after(wait));
        }
        self.active_count += to_i32(self.decision.create.len());
    }

    /// Plans pods for the first indexes that have none; where failures count by index, for those of them whose wait is over.
    fn create_indexes(&mut self, count: usize) -> Result<(), Option<Duration>> {
        let waits_for_end = replaces_failed_only(self.view.spec);
        let pods = self.view.pods.iter().map(|pod| &**pod);
        let busy: HashSet<i32> = pods
            .filter(|pod| pod_state::is_active(pod) || (waits_for_end && pod_state::is_terminating(pod)))
            .filter_map(indexes::index_of)
            .collect();
        let given_up = self.per_index.as_ref().map(|known| &known.failed);
        let free = (0..self.completions()).filter(|index| {
            let over =
                self.succeeded_indexes.contains(index) || given_up.is_some_and(|all| all.contains(index));
            !over && !busy.contains(index)
        });
        let mut wanted: Vec<i32> = free.take(count).collect();
        if let Some(known) = &self.per_index {
            wanted = known.due(wanted, self.view.now)?;
            let before =
                |index: &i32| Some((*index, IndexFailures::with(self.view.spec, known.held.get(index)?)));
            self.decision.failed_before = Some(wanted.iter().filter_map(before).collect());
        }
        self.decision.create = wanted.into_iter().map(Some).collect();
        Ok(())
    }

    /// The active pods that are one too many: first those whose index is taken or makes no sense, then by upstream's order.
    fn surplus(&self, at_least: usize) -> Vec<&'a Pod> {
        let mut pods = self.active.clone();
        pods.sort_by(|one, two| pod_state::deletion_order((one, 0), (two, 0), self.view.now));
        let mut chosen = Vec::new();
        if self.indexed {
            let mut taken = HashSet::new();
            // The pod that is worth most keeps the index.
            for pod in pods.iter().rev() {
                let index = indexes::index_of(pod).filter(|index| *index < self.completions());
                if index.is_none_or(|index| !taken.insert(index)) {
                    chosen.push(*pod);
                }
            }
            pods.retain(|pod| !chosen.iter().any(|other| std::ptr::eq(*other, *pod)));
        }
        let more = at_least.saturating_sub(chosen.len());
        chosen.extend(pods.into_iter().take(more));
        chosen.truncate(PODS_PER_LOOK_MAX);
        chosen
    }

    fn check_completion(&mut self) {
        let complete = match self.view.spec.completions {
            None => self.succeeded > 0 && self.active_count == 0,
            Some(completions) => self.succeeded >= completions && self.active_count == 0,
        };
        if complete {
            let message = "Reached expected number of succeeded pods";
            self.end = Some(End::new(true, "CompletionsReached", message));
        } else if self.view.job.metadata.deletion_timestamp.is_none() {
            self.note_suspension();
        }
    }

    fn note_suspension(&mut self) {
        let known = self.decision.status.conditions.iter().flatten().find(|known| known.type_ == "Suspended");
        let was = known.is_some_and(|known| known.status == "True");
        let (status, reason, message, event) = match (self.suspended(), was) {
            (true, false) => ("True", "JobSuspended", "Job suspended", "Suspended"),
            (false, true) => ("False", "JobResumed", "Job resumed", "Resumed"),
            _ => return,
        };
        self.set_condition("Suspended", status, reason, message);
        self.decision.events.push((EventType::Normal, event.to_owned(), message.to_owned()));
        self.decision.status.start_time = (!self.suspended()).then(|| pod_state::stored_time(self.view.now));
    }

    fn set_condition(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let conditions = self.decision.status.conditions.get_or_insert_default();
        conditions.retain(|known| known.type_ != kind);
        conditions.push(JobCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(pod_state::stored_time(self.view.now)),
            last_transition_time: Some(pod_state::stored_time(self.view.now)),
        });
    }

    /// Counts each ended pod exactly once: its uid is written into the status, then its finalizer is taken off, and only
    /// when that is seen does the uid become a number.
    fn track(&mut self) {
        let tracked: HashSet<&str> =
            self.view.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| pod_state::uid(pod)).collect();
        let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
        let status = &mut self.decision.status;
        let uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
        for (list, keep, count) in [
            (uncounted.succeeded, &mut succeeded, &mut status.succeeded),
            (uncounted.failed, &mut failed, &mut status.failed),
        ] {
            let all = list.unwrap_or_default();
            let before = all.len();
            keep.extend(all.into_iter().filter(|uid| tracked.contains(uid.as_str())));
            let counted = to_i32(before - keep.len());
            if counted > 0 {
                *count = Some(count.unwrap_or_default() + counted);
            }
        }
        let mut new_indexes = 0;
        for pod in self.view.pods.iter().filter(|pod| is_tracked(pod)) {
            if new_indexes + succeeded.len() + failed.len() >= UNCOUNTED_PODS_MAX {
                break;
            }
            let uid = pod_state::uid(pod).to_owned();
            let fails = is_failed(self.view.spec, pod);
            let has_succeeded = pod_state::phase(pod) == "Succeeded";
            let job_goes = self.view.job.metadata.deletion_timestamp.is_some();
            let held = self.per_index.as_ref().is_some_and(|known| known.holds(pod));
            if !(job_goes || self.end.is_some() || has_succeeded || (fails && !held)) {
                continue;
            }
            self.decision.release.push(pod_state::name(pod).to_owned());
            let index = indexes::index_of(pod)
                .filter(|index| *index < self.view.spec.completions.unwrap_or(i32::MAX));
            let in_range = !self.indexed || index.is_some();
            let already = self.uncounted_succeeded.contains(&uid) || self.uncounted_failed.contains(&uid);
            let ends_badly = fails || self.end.as_ref().is_some_and(|end| !end.success);
            if has_succeeded && !self.uncounted_failed.contains(&uid) {
                if self.indexed {
                    new_indexes += usize::from(index.is_some_and(|index| self.known_indexes.insert(index)));
                } else if !already {
                    succeeded.push(uid);
                }
            } else if ends_badly
                && !already
                && in_range
                && policy::judge(self.view.spec, pod) != Failure::Ignored
            {
                failed.push(uid);
            }
        }
        if self.indexed {
            let status = &mut self.decision.status;
            status.succeeded = Some(to_i32(self.known_indexes.len())).filter(|count| *count > 0);
            status.completed_indexes =
                Some(indexes::format(&self.known_indexes)).filter(|text| !text.is_empty());
            status.failed_indexes = self.per_index.as_ref().map(|known| indexes::format(&known.failed));
        }
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let uncounted = UncountedTerminatedPods { succeeded: some(succeeded), failed: some(failed) };
        self.decision.status.uncounted_terminated_pods = Some(uncounted);
    }

    /// Writes the counts, and the end when there is one.
    fn conclude(&mut self) {
        let status = &mut self.decision.status;
        status.active = Some(self.active_count).filter(|count| *count > 0);
        status.ready = Some(self.ready);
        status.terminating = Some(self.terminating);
        let Some(end) = self.end.clone() else { return };
        if !has_condition(Some(&self.decision.status), end.announcement()) {
            self.set_condition(end.announcement(), "True", &end.reason, &end.message);
        }
        let uncounted = self.decision.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let waiting = uncounted.succeeded.is_some() || uncounted.failed.is_some();
        // The end is written in a look of its own, after everything that must come before it has been seen.
        let busy = !self.decision.delete.is_empty() || !self.decision.release.is_empty();
        if waiting || busy || self.terminating > 0 {
            return;
        }
        let kind = if end.success { "Complete" } else { "Failed" };
        self.set_condition(kind, "True", &end.reason, &end.message);
        if end.success {
            self.decision.status.completion_time = Some(pod_state::stored_time(self.view.now));
            let surplus = self.view.spec.completions.is_some_and(|completions| self.succeeded > completions);
            if surplus {
                let message = "Too many succeeded pods running after completion count reached";
                self.event(EventType::Warning, "TooManySucceededPods", message);
            }
            self.event(EventType::Normal, "Completed", "Job completed");
        } else {
            self.event(EventType::Warning, &end.reason, &end.message);
        }
    }

    fn event(&mut self, kind: EventType, reason: &str, message: &str) {
        self.decision.events.push((kind, reason.to_owned(), message.to_owned()));
    }
}
