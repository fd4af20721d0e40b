//! How many replicas a metric asks for (upstream's `replica_calculator.go`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kcore::quantity::Quantity;

use super::metrics::PodMetric;
use crate::controllers::pod_state;

/// How long after its start a pod's CPU counts only if it is ready (`--horizontal-pod-autoscaler-cpu-initialization-period`).
pub(super) const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// How long after its start a pod that is not ready counts as never having been (`...-initial-readiness-delay`).
pub(super) const INITIAL_READINESS: Duration = Duration::from_secs(30);

pub(super) type PodMetrics = BTreeMap<String, PodMetric>;

/// By how much a figure may differ from its target before anything is done, downwards and upwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    pub(super) fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// A number of replicas, and the figure that it was found from, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) usage: i64,
    /// In percent of what is requested.
    pub(super) utilization: Option<i32>,
}

/// The pods by what their figures are good for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(pods: &[Arc<Pod>], metrics: &PodMetrics, resource: &str, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = pod_state::name(pod).to_owned();
        if pod_state::is_terminating(pod) || pod_state::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pod_state::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(metric) = metrics.get(&name) {
            if resource == "cpu" && !is_cpu_known(pod, metric, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether the CPU that a pod uses says anything of its load: not while it starts.
fn is_cpu_known(pod: &Pod, metric: &PodMetric, now: Timestamp) -> bool {
    let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(start)) = (pod_state::condition(pod, "Ready"), start) else { return false };
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let after = |time: Timestamp, duration: Duration| time.checked_add(duration).unwrap_or(Timestamp::MAX);
    let not_ready = ready.status == "False";
    if after(start.0, CPU_INITIALIZATION) > now {
        !not_ready && metric.at >= after(changed, metric.window)
    } else {
        !(not_ready && after(start.0, INITIAL_READINESS) > changed)
    }
}

/// What the containers of each pod request, in thousandths.
fn requests(
    pods: &[Arc<Pod>],
    container: Option<&str>,
    resource: &str,
) -> Result<BTreeMap<String, i64>, String> {
    pods.iter().map(|pod| Ok((pod_state::name(pod).to_owned(), request(pod, container, resource)?))).collect()
}

fn request(pod: &Pod, container: Option<&str>, resource: &str) -> Result<i64, String> {
    let name = pod_state::name(pod);
    let spec = pod.spec.as_ref();
    let amount = |quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        Quantity::parse(&quantity.0).map(|quantity| quantity.milli()).unwrap_or_default()
    };
    let whole = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    if let (Some(whole), None) = (whole.filter(|whole| !whole.is_empty()), container) {
        let found = whole.get(resource).map(amount);
        return found.ok_or_else(|| format!("missing pod-level request for {resource} in Pod {name}"));
    }
    let sidecar = |one: &&Container| one.restart_policy.as_deref() == Some("Always");
    let containers = spec.into_iter().flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten().filter(sidecar);
        spec.containers.iter().chain(inits)
    });
    let mut sum: i64 = 0;
    for one in containers.filter(|one| container.is_none_or(|container| container == one.name)) {
        let requested =
            one.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
        let Some(requested) = requested else {
            return Err(format!("missing request for {resource} in container {} of Pod {name}", one.name));
        };
        sum = sum.saturating_add(amount(requested));
    }
    Ok(sum)
}

/// A number of replicas from a share of them; never more than fit.
#[allow(clippy::cast_possible_truncation, reason = "the value is brought into range first; a cast saturates")]
fn ceil(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

#[allow(clippy::cast_precision_loss, reason = "as upstream: figures are far below 2^52")]
fn ratio(usage: i64, target: i64) -> f64 {
    usage as f64 / target as f64
}

fn utilization(metrics: &PodMetrics, requests: &BTreeMap<String, i64>) -> Result<(i64, i64), String> {
    let (mut used, mut requested, mut count) = (0_i64, 0_i64, 0_i64);
    for (name, metric) in metrics {
        if let Some(request) = requests.get(name) {
            used = used.saturating_add(metric.milli);
            requested = requested.saturating_add(*request);
            count += 1;
        }
    }
    if requested == 0 {
        return Err("no metrics returned matched known pods".to_owned());
    }
    Ok((used.saturating_mul(100) / requested, used / count))
}

fn average(metrics: &PodMetrics) -> i64 {
    let sum = metrics.values().fold(0_i64, |sum, metric| sum.saturating_add(metric.milli));
    sum / i64::try_from(metrics.len().max(1)).unwrap_or(i64::MAX)
}

/// What a metric of pods is compared with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// So many thousandths on the average.
    Average(i64),
    /// So many percent of what the pods, or one container of each, request.
    Utilization { percent: i32, container: Option<&'a str> },
}

/// The replicas that a metric of the pods asks for. Pods without a figure count against the change: as using all they may
/// when there are to be fewer, as using nothing when there are to be more; so do pods that are not ready, for more.
pub(super) fn from_pods(
    current: i32,
    target: Target<'_>,
    resource: &str,
    tolerances: Tolerances,
    pods: &[Arc<Pod>],
    mut metrics: PodMetrics,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, &metrics, resource, now);
    metrics.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if metrics.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requested = match target {
        Target::Average(_) => BTreeMap::new(),
        Target::Utilization { container, .. } => requests(pods, container, resource)?,
    };
    let measure = |metrics: &PodMetrics| match target {
        Target::Average(wanted) => {
            let usage = average(metrics);
            Ok((ratio(usage, wanted), Proposal { replicas: current, usage, utilization: None }))
        }
        Target::Utilization { percent, .. } => {
            let (used, usage) = utilization(metrics, &requested)?;
            let utilization = Some(i32::try_from(used).unwrap_or(i32::MAX));
            Ok::<_, String>((ratio(used, percent.into()), Proposal { replicas: current, usage, utilization }))
        }
    };
    let (before, same) = measure(&metrics)?;
    let to = |replicas: i32| Ok(Proposal { replicas, ..same });
    let with_unready = !groups.unready.is_empty() && before > 1.0;
    let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    if !with_unready && groups.missing.is_empty() {
        return to(if tolerances.holds(before) { current } else { ceil(before * count(groups.ready)) });
    }
    let filler = |milli| PodMetric::new(milli, now, Duration::ZERO);
    for name in &groups.missing {
        let full = match target {
            Target::Average(wanted) => wanted,
            Target::Utilization { percent, .. } => {
                let request = requested.get(name).copied().unwrap_or_default();
                request.saturating_mul(i64::from(percent.max(100))) / 100
            }
        };
        if before < 1.0 {
            metrics.insert(name.clone(), filler(full));
        } else if before > 1.0 {
            metrics.insert(name.clone(), filler(0));
        }
    }
    if with_unready {
        metrics.extend(groups.unready.iter().map(|name| (name.clone(), filler(0))));
    }
    let (after, _) = measure(&metrics)?;
    let turned = (before < 1.0 && after > 1.0) || (before > 1.0 && after < 1.0);
    if tolerances.holds(after) || turned {
        return to(current);
    }
    let replicas = ceil(after * count(metrics.len()));
    let against = (after < 1.0 && replicas > current) || (after > 1.0 && replicas < current);
    to(if against { current } else { replicas })
}

/// The replicas that a figure of something else asks for, of which there shall be so much in all.
pub(super) fn from_value(
    current: i32,
    usage: i64,
    target: i64,
    tolerances: Tolerances,
    pods: &[Arc<Pod>],
) -> Result<Proposal, String> {
    let ratio = ratio(usage, target);
    let to = |replicas| Ok(Proposal { replicas, usage, utilization: None });
    if current == 0 {
        return to(ceil(ratio));
    }
    if tolerances.holds(ratio) {
        return to(current);
    }
    if pods.is_empty() {
        let why = "no pods returned by selector while calculating replica count";
        return Err(format!("unable to calculate ready pods: {why}"));
    }
    let ready =
        pods.iter().filter(|pod| pod_state::phase(pod) == "Running" && pod_state::is_ready(pod)).count();
    to(ceil(ratio * f64::from(u32::try_from(ready).unwrap_or(u32::MAX))))
}

/// The replicas that a figure of something else asks for, of which there shall be so much for each pod.
pub(super) fn from_value_per_pod(pods: i32, usage: i64, target: i64, tolerances: Tolerances) -> Proposal {
    let share = ratio(usage, target);
    let replicas = if tolerances.holds(share / f64::from(pods)) { pods } else { ceil(share) };
    let each = if pods > 0 { usage.saturating_add(i64::from(pods) - 1) / i64::from(pods) } else { usage };
    Proposal { replicas, usage: each, utilization: None }
}
