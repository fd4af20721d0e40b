//! Failures counted index by index (`backoffLimitPerIndex`, KEP-3850): no I/O.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::JobSpec, core::v1::Pod};

use super::{
    decide::{is_failed, is_tracked},
    indexes,
    policy::{self, Failure},
};
use crate::controllers::pod_state;

/// How many pods of the index have failed before this one.
pub(super) const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
/// How many more have failed that do not count by the failure policy.
pub(super) const IGNORED_FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// The failures of one index before a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IndexFailures {
    pub(super) counted: i32,
    pub(super) ignored: i32,
}

impl IndexFailures {
    /// What a pod says that came before it; nothing where it says nothing that makes sense.
    fn before(pod: &Pod) -> Self {
        let number = |key| {
            let text = pod_state::annotation(pod, key);
            text.and_then(|text| text.parse().ok()).filter(|count| *count >= 0).unwrap_or_default()
        };
        Self { counted: number(FAILURE_COUNT), ignored: number(IGNORED_FAILURE_COUNT) }
    }

    /// What came before the pod that takes the place of this one.
    pub(super) fn with(spec: &JobSpec, pod: &Pod) -> Self {
        let before = Self::before(pod);
        if policy::judge(spec, pod) == Failure::Ignored {
            Self { ignored: before.ignored.saturating_add(1), ..before }
        } else {
            Self { counted: before.counted.saturating_add(1), ..before }
        }
    }

    fn all(self) -> u32 {
        u32::try_from(self.counted.saturating_add(self.ignored)).unwrap_or_default()
    }
}

/// What a Job that counts failures by index knows of its indexes.
#[derive(Debug, Default)]
pub(super) struct PerIndex<'a> {
    /// Indexes that are given up.
    pub(super) failed: BTreeSet<i32>,
    /// The last failed pod of each index that has to be tried again. It is kept until its successor, which says how many
    /// came before it, is there.
    pub(super) held: HashMap<i32, &'a Pod>,
}

impl<'a> PerIndex<'a> {
    /// `None` for Jobs that don't count by index.
    pub(super) fn new(
        spec: &JobSpec,
        known: &str,
        pods: &'a [Arc<Pod>],
        active: &[&Pod],
        succeeded: &BTreeSet<i32>,
    ) -> Option<Self> {
        let limit = spec.backoff_limit_per_index?;
        let completions = spec.completions.unwrap_or_default();
        let mut failed = indexes::parse(known, completions);
        let ended: Vec<(i32, &Pod)> = pods
            .iter()
            .filter(|pod| is_tracked(pod) && is_failed(spec, pod))
            .filter_map(|pod| Some((indexes::index_of(pod).filter(|index| *index < completions)?, &**pod)))
            .collect();
        failed.extend(ended.iter().filter(|(_, pod)| gives_up(spec, pod, limit)).map(|(index, _)| *index));
        let running: HashSet<i32> = active.iter().filter_map(|pod| indexes::index_of(pod)).collect();
        let mut held: HashMap<i32, &Pod> = HashMap::new();
        for (index, pod) in ended {
            if succeeded.contains(&index) || failed.contains(&index) || running.contains(&index) {
                continue;
            }
            let last = held.entry(index).or_insert(pod);
            let order = |pod: &Pod| (IndexFailures::before(pod).all(), policy::finished_at(pod));
            if order(last).0 <= order(pod).0 && order(last).1 <= order(pod).1 {
                *last = pod;
            }
        }
        Some(Self { failed, held })
    }

    /// Why the Job has failed, if it has: reason and message.
    pub(super) fn end(&self, spec: &JobSpec, succeeded: usize) -> Option<(&'static str, &'static str)> {
        let count = |number: Option<i32>| usize::try_from(number.unwrap_or_default()).unwrap_or_default();
        let failed = self.failed.len();
        if spec.max_failed_indexes.is_some() && failed > count(spec.max_failed_indexes) {
            Some((
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            ))
        } else if failed > 0 && failed + succeeded >= count(spec.completions) {
            Some(("FailedIndexes", "Job has failed indexes"))
        } else {
            None
        }
    }

    /// Those of the indexes that may have a pod now; if there are none, how long until one may.
    pub(super) fn due(&self, wanted: Vec<i32>, now: Timestamp) -> Result<Vec<i32>, Option<Duration>> {
        let wait = |index: &i32| {
            let pod = self.held.get(index)?;
            let failures = IndexFailures::before(pod).all().saturating_add(1);
            policy::wait_after(failures, policy::finished_at(pod), now)
        };
        let soonest = wanted.iter().filter_map(wait).min();
        let due: Vec<i32> = wanted.into_iter().filter(|index| wait(index).is_none()).collect();
        if due.is_empty() { Err(soonest) } else { Ok(due) }
    }

    /// Whether a pod is kept for its successor.
    pub(super) fn holds(&self, pod: &Pod) -> bool {
        let held = indexes::index_of(pod).and_then(|index| self.held.get(&index));
        held.is_some_and(|held| pod_state::uid(held) == pod_state::uid(pod))
    }
}

/// Whether the failure of a pod is the end of its index.
fn gives_up(spec: &JobSpec, pod: &Pod, limit: i32) -> bool {
    match policy::judge(spec, pod) {
        Failure::FailsIndex => true,
        Failure::Ignored => false,
        Failure::Counts | Failure::FailsJob(_) => IndexFailures::before(pod).counted >= limit,
    }
}
