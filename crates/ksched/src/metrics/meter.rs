//! How long the extension points and their plug-ins take, under upstream's names.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    cycle::{mix, pod_hash},
    event::Hint,
    metrics::{Family, Label, Metrics},
    plugin::{Finality, Verdict},
    pod::PodInfo,
};

/// Of how many pods out of a hundred it is measured how long each plug-in takes (upstream's
/// `pluginMetricsSamplePercent`). Extension points are measured for all pods.
pub const PLUGIN_SAMPLE_PERCENT: u64 = 10;

/// Measures one try of a pod, or nothing: then the clock is not read, and each question costs a comparison.
///
/// A decision is a pure function, and stays one: what it decides does not depend on what is measured.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    metrics: Option<Metrics>,
    profile: Arc<str>,
    is_sampled: bool,
}

/// When something began, if that is measured.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Begin(Option<Instant>);

impl Meter {
    /// Measures nothing.
    pub(crate) fn none(profile: &Arc<str>) -> Self {
        Self { metrics: None, profile: Arc::clone(profile), is_sampled: false }
    }

    /// For this pod's try with this number. Which pods are in the sample is decided by what they are called, so that a run can
    /// be repeated.
    pub(crate) fn new(metrics: &Metrics, pod: &PodInfo, attempt: u32) -> Self {
        let is_sampled = is_sampled(pod, attempt);
        Self { metrics: Some(metrics.clone()), profile: Arc::clone(&pod.scheduler_name), is_sampled }
    }

    /// An extension point begins.
    pub(crate) fn begin(&self) -> Begin {
        Begin(self.metrics.as_ref().map(|_| Instant::now()))
    }

    /// A plug-in is asked next.
    pub(crate) fn begin_plugin(&self) -> Begin {
        Begin(if self.is_sampled { Some(Instant::now()) } else { None })
    }

    /// All plug-ins of an extension point were asked.
    pub(crate) fn point(&self, point: &'static str, status: &'static str, begin: Begin) {
        if let (Some(metrics), Begin(Some(since))) = (&self.metrics, begin) {
            metrics.point(point, status, &self.profile, since.elapsed());
        }
    }

    /// A plug-in was asked.
    pub(crate) fn plugin(&self, plugin: &Arc<str>, point: &'static str, status: &'static str, begin: Begin) {
        if let (Some(metrics), Begin(Some(since))) = (&self.metrics, begin) {
            let labels = [plugin.into(), point.into(), status.into()];
            metrics.observe(Family::Plugin, labels, since.elapsed().as_secs_f64());
        }
    }

    /// A plug-in was asked so many questions: one for each node, or one in all.
    pub(crate) fn evaluated(&self, plugin: &Arc<str>, point: &'static str, questions: usize) {
        if let Some(metrics) = &self.metrics {
            let labels = [plugin.into(), point.into(), Label::from(&self.profile)];
            metrics.add(Family::Evaluations, labels, i64::try_from(questions).unwrap_or(i64::MAX));
        }
    }

    /// A queueing hint was given.
    pub(crate) fn queueing_hint(
        metrics: &Metrics,
        plugin: &Arc<str>,
        event: &'static str,
        hint: Hint,
        took: Duration,
    ) {
        let hint = match hint {
            Hint::Queue => "Queue",
            Hint::Skip => "QueueSkip",
        };
        metrics.observe(Family::QueueingHint, [plugin.into(), event.into(), hint.into()], took.as_secs_f64());
    }

    /// What is kept for pods like this one was of no use any more.
    pub(crate) fn flushed(&self, reason: &'static str) {
        if let Some(metrics) = &self.metrics {
            metrics.add(Family::BatchFlushed, [Label::from(&self.profile), reason.into()], 1);
        }
    }

    /// All nodes were asked for what is kept from now on.
    pub(crate) fn stored(&self, begin: Begin) {
        if let (Some(metrics), Begin(Some(since))) = (&self.metrics, begin) {
            metrics.observe(
                Family::StoreResults,
                [Label::from(&self.profile)],
                since.elapsed().as_secs_f64(),
            );
        }
    }

    /// What is kept for pods like this one was asked for a node.
    pub(crate) fn hint(&self, is_found: bool, begin: Begin) {
        let (Some(metrics), Begin(Some(since))) = (&self.metrics, begin) else { return };
        let took: Duration = since.elapsed();
        let (hinted, result) = if is_found { ("hint", "hint_used") } else { ("no_hint", "no_hint") };
        let profile = || Label::from(&self.profile);
        metrics.observe(Family::NodeHint, [hinted.into(), profile()], took.as_secs_f64());
        metrics.add(Family::Batch, [profile(), result.into()], 1);
    }
}

/// Whether a pod's try with this number is in the sample.
pub(crate) fn is_sampled(pod: &PodInfo, attempt: u32) -> bool {
    mix(pod_hash(u64::from(attempt), pod)) % 100 < PLUGIN_SAMPLE_PERCENT
}

pub(crate) const SUCCESS: &str = "Success";
pub(crate) const ERROR: &str = "Error";
pub(crate) const SKIP: &str = "Skip";
pub(crate) const WAIT: &str = "Wait";
pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";

/// Upstream's word (`Code.String`).
pub(crate) fn finality_status(finality: Finality) -> &'static str {
    match finality {
        Finality::Unschedulable => UNSCHEDULABLE,
        Finality::Unresolvable => "UnschedulableAndUnresolvable",
        Finality::Pending => "Pending",
    }
}

/// Upstream's word for how an operation ended.
pub(crate) fn result_status<T, E>(result: &Result<T, E>) -> &'static str {
    if result.is_ok() { SUCCESS } else { ERROR }
}

/// Upstream's word (`Code.String`).
pub(crate) fn verdict_status(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => SUCCESS,
        Verdict::Reject(rejection) => finality_status(rejection.finality),
    }
}
