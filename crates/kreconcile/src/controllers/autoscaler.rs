//! HorizontalPodAutoscalers: as many replicas as the metrics ask for (KEP-117, KEP-853).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ahash::RandomState;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::{
    autoscaling::v2::{
        HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
        MetricStatus,
    },
    core::v1::Pod,
};
use kcore::{Clock, Stored, kind, selector::LabelSelector};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{Context, pod_state::stored_time, pod_writes::error_message},
    events::{EventRecorder, EventType, Regarding},
    expectations::{EXPECTATION_RECHECK, Expectations},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

mod compute;
mod metrics;
mod rate;
mod replicas;
#[cfg(test)]
mod tests;

pub use metrics::{MetricQuery, MetricValues, MetricsError, MetricsSource, PodMetric};

use compute::{Subject, Unknown};
use rate::{Bounds, History, normalize};

/// How often each autoscaler looks at its metrics (`--horizontal-pod-autoscaler-sync-period`).
pub const AUTOSCALER_PERIOD: Duration = Duration::from_secs(15);

/// The controller `horizontal-pod-autoscaler-controller`: sets the number of replicas of whatever has a `scale`, by metrics of
/// its pods, their containers, other objects, or anything outside of the cluster. Of several metrics the one counts that asks
/// for most; policies and stabilization windows limit how fast it goes. Figures come from [`Settings::metrics`], by default
/// from the metrics APIs.
///
/// [`Settings::metrics`]: super::Settings::metrics
pub fn autoscaler(context: &Context) -> Controller {
    const NAME: &str = "horizontal-pod-autoscaler-controller";
    let autoscalers = context.informers().of::<HorizontalPodAutoscaler>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let requests = context.requests(NAME);
    let source = context.settings.metrics.clone();
    let reconciler = Autoscalers {
        resource: ResourceType::of::<HorizontalPodAutoscaler>(),
        written: Expectations::new(autoscalers.lister().clone()),
        source: source.unwrap_or_else(|| Arc::new(metrics::ApiMetrics { requests: requests.clone() })),
        requests,
        recorder: context.recorder("horizontal-pod-autoscaler"),
        clock: Arc::clone(context.clock()),
        autoscalers: autoscalers.clone(),
        pods: pods.clone(),
        histories: Mutex::default(),
        selectors: Mutex::default(),
    };
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&autoscalers, MapTo::Itself).when(Predicate::GenerationChanged))
        .reads(&pods)
}

struct Autoscalers {
    resource: ResourceType,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    written: Expectations,
    source: Arc<dyn MetricsSource>,
    requests: Requests,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
    /// What each autoscaler has done lately; forgotten with it.
    histories: Mutex<HashMap<ObjectKey, History, RandomState>>,
    /// Whose pods each autoscaler scales, as its target last said; by namespace and name, so that neighbours are found.
    selectors: Mutex<BTreeMap<ObjectKey, LabelSelector>>,
}

#[async_trait]
impl Reconciler for Autoscalers {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.autoscalers.lister().get(&key.namespace, &key.name) else {
            self.written.forget(key);
            self.histories().remove(key);
            self.selectors().remove(key);
            return Ok(Action::Done);
        };
        if !self.written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let hpa = stored.typed::<HorizontalPodAutoscaler>()?;
        let mut look = Look {
            all: self,
            key,
            hpa: &hpa,
            about: Regarding::of(&stored, &self.resource),
            status: hpa.status.clone().unwrap_or_default(),
            now: self.clock.now(),
        };
        if let Err(why) = look.carry_out().await {
            tracing::debug!(%key, why, "an autoscaler could not do all that it should");
        }
        let status = look.status;
        self.write(key, &stored, &hpa, &status).await?;
        Ok(Action::After(AUTOSCALER_PERIOD))
    }
}

impl Autoscalers {
    fn histories(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, History, RandomState>> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn selectors(&self) -> std::sync::MutexGuard<'_, BTreeMap<ObjectKey, LabelSelector>> {
        self.selectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The autoscalers that select one of these pods, `key` among them: each as Go shows name and namespace.
    fn selecting(&self, key: &ObjectKey, selector: &LabelSelector, pods: &[Arc<Pod>]) -> Vec<String> {
        let none = BTreeMap::new();
        let labels: Vec<_> = pods.iter().map(|pod| pod.metadata.labels.as_ref().unwrap_or(&none)).collect();
        let mut selectors = self.selectors();
        selectors.insert(key.clone(), selector.clone());
        let first = ObjectKey::new(Arc::clone(&key.namespace), "");
        let neighbours = selectors.range(first..).take_while(|(other, _)| other.namespace == key.namespace);
        let selects = |selector: &LabelSelector| {
            let mut each = labels.iter();
            each.any(|labels| selector.matches_with(|key| labels.get(key).map(String::as_str)))
        };
        let selecting = neighbours.filter(|(_, selector)| selects(selector));
        selecting.map(|(other, _)| format!("{{{} {}}}", other.name, other.namespace)).collect()
    }

    async fn write(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        hpa: &HorizontalPodAutoscaler,
        status: &HorizontalPodAutoscalerStatus,
    ) -> Result<(), ReconcileError> {
        let path = self.resource.path(&key.namespace, &key.name);
        let written =
            self.requests.write_status(&path, stored.revision(), hpa.status.as_ref(), status).await?;
        self.written.wrote(key, written);
        Ok(())
    }

    /// The path of the target's subresource `scale`.
    async fn scale_path(
        &self,
        key: &ObjectKey,
        api_version: &str,
        wanted: &str,
        name: &str,
    ) -> Result<String, String> {
        let (group, version) = kind::split_api_version(api_version);
        let path =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let no_match = || format!("no matches for kind {wanted:?} in group {group:?}");
        let list = self.requests.get::<Value>(&path).await.map_err(|_not_served| no_match())?;
        let all = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
        let plural = |one: &Value| one["name"].as_str().unwrap_or_default().to_owned();
        let found = all.iter().find(|one| one["kind"] == *wanted && !plural(one).contains('/'));
        let resource = ResourceType {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: wanted.to_owned(),
            plural: plural(found.ok_or_else(no_match)?),
            namespaced: true,
        };
        Ok(format!("{}/scale", resource.path(&key.namespace, name)))
    }
}

/// One look at an autoscaler; the status grows on the way.
struct Look<'a> {
    all: &'a Autoscalers,
    key: &'a ObjectKey,
    hpa: &'a HorizontalPodAutoscaler,
    about: Regarding,
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

/// What a target's `scale` says.
struct Scale {
    path: String,
    object: Value,
    replicas: i32,
    status_replicas: i32,
    selector: String,
}

fn number(value: &Value) -> i32 {
    i32::try_from(value.as_i64().unwrap_or_default()).unwrap_or(i32::MAX)
}

impl Look<'_> {
    fn tell(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.all.recorder.record(&self.about, kind, reason, message);
    }

    fn condition(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let conditions = self.status.conditions.get_or_insert_default();
        let index = conditions.iter().position(|known| known.type_ == kind).unwrap_or_else(|| {
            conditions.push(HorizontalPodAutoscalerCondition {
                type_: kind.to_owned(),
                ..HorizontalPodAutoscalerCondition::default()
            });
            conditions.len() - 1
        });
        let status = if holds { "True" } else { "False" };
        if conditions[index].status != status {
            conditions[index].last_transition_time = Some(stored_time(self.now));
        }
        status.clone_into(&mut conditions[index].status);
        conditions[index].reason = Some(reason.to_owned());
        conditions[index].message = Some(message.into());
    }

    async fn carry_out(&mut self) -> Result<(), String> {
        let hpa = self.hpa;
        let spec = &hpa.spec;
        let scale = match self.scale().await {
            Ok(scale) => scale,
            Err(why) => {
                self.tell(EventType::Warning, "FailedGetScale", why.clone());
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                self.condition("AbleToScale", false, "FailedGetScale", message);
                return Err(why);
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.condition("AbleToScale", true, "SucceededGetScale", message);
        let bounds =
            Bounds { min: spec.min_replicas.unwrap_or(1), max: spec.max_replicas, current: scale.replicas };
        self.all.histories().entry(self.key.clone()).or_default().begin(self.now, bounds.current);
        let mut metrics = Vec::new();
        let (desired, why) = if bounds.current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.condition("ScalingActive", false, "ScalingDisabled", message);
            (0, String::new())
        } else if bounds.current > bounds.max {
            (bounds.max, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if bounds.current < bounds.min {
            (bounds.min, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.by_metrics(&scale, &mut metrics).await {
                Ok((wanted, name)) => self.normalized(bounds, wanted, &name),
                Err(why) => {
                    self.tell(EventType::Warning, "FailedComputeMetricsReplicas", why.clone());
                    self.show(bounds.current, None, metrics);
                    return Err(why);
                }
            }
        };
        if desired != bounds.current
            && let Err(error) = self.rescale(&scale, desired).await
        {
            let message = format!("New size: {desired}; reason: {why}; error: {error}");
            self.tell(EventType::Warning, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {error}");
            self.condition("AbleToScale", false, "FailedUpdateScale", message);
            self.show(bounds.current, None, metrics);
            return Err(error);
        }
        if desired != bounds.current {
            let message = format!("the HPA controller was able to update the target scale to {desired}");
            self.condition("AbleToScale", true, "SucceededRescale", message);
            self.tell(EventType::Normal, "SuccessfulRescale", format!("New size: {desired}; reason: {why}"));
            if spec.behavior.is_some() {
                let mut histories = self.all.histories();
                histories.entry(self.key.clone()).or_default().scaled(self.now, bounds.current, desired);
            }
            self.status.last_scale_time = Some(stored_time(self.now));
        }
        self.show(bounds.current, Some(desired), metrics);
        Ok(())
    }

    fn show(&mut self, current: i32, desired: Option<i32>, metrics: Vec<MetricStatus>) {
        self.status.current_replicas = Some(current);
        if let Some(desired) = desired {
            self.status.desired_replicas = desired;
        }
        self.status.current_metrics = (!metrics.is_empty()).then_some(metrics);
    }

    async fn scale(&self) -> Result<Scale, String> {
        let target = &self.hpa.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or("v1");
        let path = self.all.scale_path(self.key, version, &target.kind, &target.name).await?;
        let object = self.all.requests.get::<Value>(&path).await.map_err(|error| error_message(&error))?;
        let selector = object["status"]["selector"].as_str().unwrap_or_default().to_owned();
        let (replicas, status_replicas) =
            (number(&object["spec"]["replicas"]), number(&object["status"]["replicas"]));
        Ok(Scale { path, object, replicas, status_replicas, selector })
    }

    async fn rescale(&self, scale: &Scale, replicas: i32) -> Result<(), String> {
        let revision = &scale.object["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": revision}, "spec": {"replicas": replicas}});
        let written = self.all.requests.patch::<Written>(&scale.path, PatchKind::Merge, &patch).await;
        written.map(drop).map_err(|error| error_message(&error))
    }

    /// What the metrics ask for, and which of them asks for most. Not all have to be known, if the known ones ask for more
    /// than there is.
    async fn by_metrics(
        &mut self,
        scale: &Scale,
        statuses: &mut Vec<MetricStatus>,
    ) -> Result<(i32, String), String> {
        let hpa = self.hpa;
        let pods = self.selected(scale)?;
        let subject = Subject {
            hpa,
            source: &*self.all.source,
            namespace: &self.key.namespace,
            selector: &scale.selector,
            pods: &pods,
            spec_replicas: scale.replicas,
            status_replicas: scale.status_replicas,
            now: self.now,
        };
        let all = hpa.spec.metrics.as_deref().unwrap_or_default();
        let (mut most, mut name) = (0, String::new());
        let mut unknown: Vec<Unknown> = Vec::new();
        for metric in all {
            match subject.compute(metric).await {
                Ok(found) => {
                    if most == 0 || found.replicas > most {
                        (most, name) = (found.replicas, found.name);
                    }
                    statuses.push(found.status);
                }
                Err(why) => {
                    self.tell(EventType::Warning, why.reason, why.why.clone());
                    unknown.push(why);
                }
            }
        }
        if let Some(first) = unknown.first()
            && (unknown.len() >= all.len() || most < scale.replicas)
        {
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            self.condition("ScalingActive", false, first.reason, message);
            return Err(format!(
                "invalid metrics ({} invalid out of {}), first error is: {}",
                unknown.len(),
                all.len(),
                first.whole
            ));
        }
        let message = format!("the HPA was able to successfully calculate a replica count from {name}");
        self.condition("ScalingActive", true, "ValidMetricFound", message);
        Ok((most, name))
    }

    /// The target's pods.
    fn selected(&mut self, scale: &Scale) -> Result<Vec<Arc<Pod>>, String> {
        if scale.selector.is_empty() {
            let why = "selector is required";
            self.tell(EventType::Warning, "SelectorRequired", why);
            let message = "the HPA target's scale is missing a selector";
            self.condition("ScalingActive", false, "InvalidSelector", message);
            return Err(why.to_owned());
        }
        match LabelSelector::parse(&scale.selector) {
            Ok(selector) => {
                let pods = self.all.pods.select(&self.key.namespace, &selector);
                let selecting = self.all.selecting(self.key, &selector, &pods);
                if selecting.len() <= 1 {
                    return Ok(pods);
                }
                let why = format!(
                    "pods by selector {} are controlled by multiple HPAs: [{}]",
                    scale.selector,
                    selecting.join(" ")
                );
                self.tell(EventType::Warning, "AmbiguousSelector", why.clone());
                self.condition("ScalingActive", false, "AmbiguousSelector", why.clone());
                Err(why)
            }
            Err(error) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                self.tell(EventType::Warning, "InvalidSelector", why.clone());
                self.condition("ScalingActive", false, "InvalidSelector", why.clone());
                Err(why)
            }
        }
    }

    fn normalized(&mut self, bounds: Bounds, wanted: i32, metric: &str) -> (i32, String) {
        let why = match wanted.cmp(&bounds.current) {
            std::cmp::Ordering::Greater => format!("{metric} above target"),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let behavior = self.hpa.spec.behavior.as_ref();
        let normalized = {
            let mut histories = self.all.histories();
            let history = histories.entry(self.key.clone()).or_default();
            normalize(history, behavior, bounds, wanted, self.now)
        };
        let (reason, message) = normalized.able;
        self.condition("AbleToScale", true, reason, message);
        let (limited, (reason, message)) = normalized.limited;
        self.condition("ScalingLimited", limited, reason, message);
        (normalized.replicas, why)
    }
}
