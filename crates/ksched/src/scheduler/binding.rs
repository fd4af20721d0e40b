//! One pod's way from its decision to its node.

use std::{sync::Arc, time::Duration};

use kcore::Clock;
use tokio::time::Instant;

use crate::{
    extender::Extender,
    metrics::{
        Family, Meter, Metrics,
        meter::{self, result_status},
    },
    observer::Observer,
    plugin::{BindError, BindOutcome, Binding, CycleState, PreBind, Rejection},
    pod::PodInfo,
    profile::Profile,
    queue::QueuedPod,
    waiting::{Answer, WaitingPods},
};

/// A pod that has a node and is to be bound.
pub(super) struct Job {
    pub(super) metrics: Metrics,
    pub(super) meter: Meter,
    pub(super) client: kube::Client,
    pub(super) profiles: Arc<[Profile]>,
    /// Which of them it is.
    pub(super) profile: usize,
    pub(super) extenders: Arc<[Arc<dyn Extender>]>,
    pub(super) cycle: CycleState,
    pub(super) queued: QueuedPod,
    pub(super) node: Arc<str>,
    pub(super) wait: Option<Wait>,
    /// What has something to do before the pod is bound.
    pub(super) pre_bind: Vec<Arc<dyn PreBind>>,
    pub(super) observer: Observer,
    pub(super) clock: Arc<dyn Clock>,
}

/// A permission that is still to come.
pub(super) struct Wait {
    pub(super) answer: Answer,
    /// How long each plug-in would wait.
    pub(super) times: Vec<(Arc<str>, Duration)>,
}

/// What a task of the scheduler has done.
pub(super) enum Done {
    /// A binding ended.
    Binding(Box<Bound>),
    /// A condition was written, or could not be.
    Report,
    /// What was to help the pod with this uid is done, or could not be.
    Repair { uid: Arc<str>, failed: bool },
    /// The victims of the pod with this uid are told to go, but for those where it failed.
    Preemption { uid: Arc<str>, failed: bool, took: Duration },
}

/// How a binding ended.
pub(super) struct Bound {
    pub(super) queued: QueuedPod,
    pub(super) node: Arc<str>,
    pub(super) cycle: CycleState,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Bound,
    Refused(Arc<str>, Rejection),
    Failed(BindError),
}

pub(super) async fn run(mut job: Job, waiting: WaitingPods) -> Done {
    let (waits, since) = (job.wait.is_some(), Instant::now());
    let permitted = permitted(job.wait.take(), &job.queued.pod.uid, &waiting).await;
    if waits {
        let result = if permitted.is_ok() { "Success" } else { "Unschedulable" };
        job.metrics.observe(Family::PermitWait, [result.into()], since.elapsed().as_secs_f64());
    }
    let outcome = match permitted {
        Err((plugin, rejection)) => Outcome::Refused(plugin, rejection),
        Ok(()) => match bind(&job).await {
            Ok(()) => Outcome::Bound,
            Err(error) => Outcome::Failed(error),
        },
    };
    Done::Binding(Box::new(Bound { queued: job.queued, node: job.node, cycle: job.cycle, outcome }))
}

async fn permitted(
    wait: Option<Wait>,
    uid: &str,
    waiting: &WaitingPods,
) -> Result<(), (Arc<str>, Rejection)> {
    let Some(Wait { mut answer, times }) = wait else { return Ok(()) };
    let Some((plugin, time)) = times.into_iter().min_by_key(|(_, time)| *time) else { return Ok(()) };
    let answered = match tokio::time::timeout(time, &mut answer).await {
        Ok(answer) => answer.ok(),
        Err(_) if waiting.forget(uid) => None,
        // Answered at the last moment. It counts, as whoever gave the answer was told that the pod waited: a gang would be
        // torn apart otherwise.
        Err(_) => answer.await.ok(),
    };
    answered.unwrap_or_else(|| {
        let reason = format!("rejected due to timeout after waiting {time:?} at plugin {plugin}");
        Err((plugin, Rejection::unschedulable(reason)))
    })
}

async fn bind(job: &Job) -> Result<(), BindError> {
    let points = &job.profiles[job.profile].points;
    let Job { client, cycle, observer, queued, node, meter, metrics, .. } = job;
    let binding = Binding { client, cycle, observer, clock: &*job.clock, metrics, pod: &queued.pod, node };
    if !job.pre_bind.is_empty() {
        let begin = meter.begin();
        let done = prepare(job, binding).await;
        meter.point("PreBind", result_status(&done), begin);
        done?;
    }
    let begin = meter.begin();
    let call = metrics.api_call("pod_binding");
    let bound = bind_by_any(job, binding).await;
    call.end(bound.is_ok());
    meter.point("Bind", result_status(&bound), begin);
    bound?;
    if !points.post_bind.is_empty() {
        let begin = meter.begin();
        for entry in &points.post_bind {
            let begin = meter.begin_plugin();
            entry.plugin.post_bind(binding).await;
            meter.plugin(&entry.name, "PostBind", meter::SUCCESS, begin);
        }
        meter.point("PostBind", meter::SUCCESS, begin);
    }
    Ok(())
}

async fn prepare(job: &Job, binding: Binding<'_>) -> Result<(), BindError> {
    for plugin in &job.pre_bind {
        let begin = job.meter.begin_plugin();
        let done = plugin.pre_bind(binding).await;
        job.meter.plugin(&plugin.name().into(), "PreBind", result_status(&done), begin);
        done?;
    }
    Ok(())
}

async fn bind_by_any(job: &Job, binding: Binding<'_>) -> Result<(), BindError> {
    let mut bound = bind_by_extender(&job.extenders, binding.pod, binding.node).await?;
    for entry in &job.profiles[job.profile].points.bind {
        if bound {
            break;
        }
        let begin = job.meter.begin_plugin();
        let outcome = entry.plugin.bind(binding).await;
        let status = match &outcome {
            Ok(BindOutcome::Skip) => meter::SKIP,
            outcome => result_status(outcome),
        };
        job.meter.plugin(&entry.name, "Bind", status, begin);
        bound = outcome? == BindOutcome::Bound;
    }
    if bound { Ok(()) } else { Err(BindError::NotHandled) }
}

/// Whether an extender has bound the pod.
async fn bind_by_extender(
    extenders: &[Arc<dyn Extender>],
    pod: &PodInfo,
    node: &str,
) -> Result<bool, BindError> {
    for extender in extenders.iter().filter(|extender| extender.is_interested(pod)) {
        match extender.bind(pod, node).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) if extender.is_ignorable() => {
                tracing::info!(%error, extender = extender.name(), "an extender can't bind and is ignored");
            }
            Err(error) => return Err(BindError::Extender(error)),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::build::pod;

    fn wait(answer: Answer) -> Option<Wait> {
        Some(Wait { answer, times: vec![("Gang".into(), Duration::from_secs(10))] })
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_allowed_in_time_is_refused() {
        let (waiting, pod) = (WaitingPods::default(), Arc::new(pod("p").info()));
        let answer = waiting.add(&pod, &"a".into(), vec!["Gang".into()]);
        let (plugin, rejection) = permitted(wait(answer), &pod.uid, &waiting).await.unwrap_err();
        let expected = "rejected due to timeout after waiting 10s at plugin Gang";
        assert_eq!((&*plugin, &*rejection.message()), ("Gang", expected));
        assert!(!waiting.allow(&pod.uid, "Gang"), "it does not wait any more");
    }

    /// Another thread had taken the pod out of those that wait, to allow it, when the time was up; the pod was refused, and
    /// the rest of its gang bound without it.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_under_way_when_the_time_is_up_counts() {
        let (sender, answer) = oneshot::channel();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(11)).await;
            sender.send(Ok(())).unwrap();
        });
        assert_eq!(permitted(wait(answer), "uid-p", &WaitingPods::default()).await, Ok(()));
    }
}
