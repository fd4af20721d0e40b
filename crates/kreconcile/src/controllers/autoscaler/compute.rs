//! What each metric of an autoscaler asks for.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, MetricIdentifier,
            MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
            ResourceMetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};
use kcore::quantity;

use super::{
    metrics::{MetricQuery, MetricValues, MetricsSource},
    replicas::{PodMetrics, Proposal, Target, Tolerances, from_pods, from_value, from_value_per_pod},
};

/// By how much a figure may differ from its target (`--horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;

/// What a metric asks for, and how it is told.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) replicas: i32,
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why a metric asks for nothing: a reason, what the event and condition say, and the whole.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) reason: &'static str,
    pub(super) why: String,
    pub(super) whole: String,
}

/// What all metrics of an autoscaler have in common.
pub(super) struct Subject<'a> {
    pub(super) hpa: &'a HorizontalPodAutoscaler,
    pub(super) source: &'a dyn MetricsSource,
    pub(super) namespace: &'a str,
    /// The selector of the target's pods, as the scale has it.
    pub(super) selector: &'a str,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) spec_replicas: i32,
    pub(super) status_replicas: i32,
    pub(super) now: Timestamp,
}

fn milli(quantity: &Quantity) -> i64 {
    quantity::Quantity::parse(&quantity.0).map(|quantity| quantity.milli()).unwrap_or_default()
}

/// An amount as the status shows it: memory in powers of two.
fn shown(resource: &str, milli: i64) -> Quantity {
    let whole = resource == "memory" && milli % 1000 == 0;
    let quantity = if whole {
        quantity::Quantity::with_format(milli / 1000, quantity::Format::BinarySi)
    } else {
        quantity::Quantity::from_milli(milli)
    };
    Quantity(quantity.to_string())
}

#[allow(clippy::cast_precision_loss, reason = "tolerances are far below 2^52")]
pub(super) fn tolerances(hpa: &HorizontalPodAutoscaler) -> Tolerances {
    let behavior = hpa.spec.behavior.as_ref();
    let of = |quantity: Option<&Quantity>| quantity.map_or(TOLERANCE, |set| milli(set) as f64 / 1000.0);
    let down = behavior.and_then(|behavior| behavior.scale_down.as_ref()?.tolerance.as_ref());
    let up = behavior.and_then(|behavior| behavior.scale_up.as_ref()?.tolerance.as_ref());
    Tolerances { down: of(down), up: of(up) }
}

/// A label selector in the syntax of a query.
pub(super) fn selector_text(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return String::new() };
    let pairs = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|one| {
        let values = one.values.as_deref().unwrap_or_default().join(",");
        match &*one.operator {
            "In" => format!("{} in ({values})", one.key),
            "NotIn" => format!("{} notin ({values})", one.key),
            "DoesNotExist" => format!("!{}", one.key),
            _ => one.key.clone(),
        }
    });
    pairs.chain(expressions).collect::<Vec<_>>().join(",")
}

impl Subject<'_> {
    /// What one metric asks for.
    pub(super) async fn compute(&self, spec: &MetricSpec) -> Result<Found, Unknown> {
        let missing = || ("InvalidMetricSourceType", format!("unknown metric source type {:?}", spec.type_));
        let (reason, before, result) = match &*spec.type_ {
            "Resource" => {
                let before = spec
                    .resource
                    .as_ref()
                    .map(|known| format!("failed to get {} resource metric value", known.name));
                ("FailedGetResourceMetric", before, self.resource(spec).await)
            }
            "ContainerResource" => {
                let before = spec.container_resource.as_ref();
                let before =
                    before.map(|known| format!("failed to get {} container metric value", known.container));
                ("FailedGetContainerResourceMetric", before, self.container(spec).await)
            }
            "Pods" => {
                let before = "failed to get pods metric value".to_owned();
                ("FailedGetPodsMetric", Some(before), self.pods(spec).await)
            }
            "Object" => {
                let before = "failed to get object metric value".to_owned();
                ("FailedGetObjectMetric", Some(before), self.object(spec).await)
            }
            "External" => {
                let before = spec.external.as_ref();
                let before =
                    before.map(|known| format!("failed to get {} external metric value", known.metric.name));
                ("FailedGetExternalMetric", before, self.external(spec).await)
            }
            _ => {
                let (reason, why) = missing();
                return Err(Unknown { reason, whole: why.clone(), why });
            }
        };
        result.map_err(|why| {
            let whole = format!("{}: {why}", before.unwrap_or_default());
            Unknown { reason, why, whole }
        })
    }

    async fn read(&self, query: MetricQuery<'_>) -> Result<MetricValues, String> {
        self.source.read(&query).await.map_err(|error| error.to_string())
    }

    async fn resource_proposal(
        &self,
        target: &MetricTarget,
        resource: &str,
        container: Option<&str>,
    ) -> Result<(Proposal, MetricValueStatus), String> {
        let (wanted, what) = match (&target.average_value, target.average_utilization) {
            (Some(value), _) => (Target::Average(milli(value)), "usage"),
            (None, Some(percent)) => (Target::Utilization { percent, container }, "utilization"),
            (None, None) => {
                return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned());
            }
        };
        let failed = |why: String| format!("failed to get {resource} {what}: {why}");
        let (namespace, pods) = (self.namespace, self.selector);
        let query = MetricQuery::Resource { namespace, pods, resource, container };
        let answer = self.read(query).await;
        let answer =
            answer.map_err(|why| failed(format!("unable to get metrics for resource {resource}: {why}")))?;
        let found = self.of_pods(wanted, resource, answer).map_err(failed)?;
        let current = MetricValueStatus {
            average_utilization: found.utilization,
            average_value: Some(shown(resource, found.usage)),
            value: None,
        };
        Ok((found, current))
    }

    fn of_pods(&self, target: Target<'_>, resource: &str, answer: MetricValues) -> Result<Proposal, String> {
        let MetricValues::Pods(metrics) = answer else {
            return Err("the metrics source gave no figures of pods".to_owned());
        };
        let metrics: PodMetrics = metrics;
        let tolerances = tolerances(self.hpa);
        from_pods(self.spec_replicas, target, resource, tolerances, self.pods, metrics, self.now)
    }

    async fn resource(&self, spec: &MetricSpec) -> Result<Found, String> {
        let source = spec.resource.as_ref().ok_or("the metric has no resource")?;
        let (found, current) = self.resource_proposal(&source.target, &source.name, None).await?;
        let name = match found.utilization {
            None => format!("{} resource", source.name),
            Some(_) => format!("{} resource utilization (percentage of request)", source.name),
        };
        let status = MetricStatus {
            type_: "Resource".to_owned(),
            resource: Some(ResourceMetricStatus { name: source.name.clone(), current }),
            ..MetricStatus::default()
        };
        Ok(Found { replicas: found.replicas, name, status })
    }

    async fn container(&self, spec: &MetricSpec) -> Result<Found, String> {
        let source = spec.container_resource.as_ref().ok_or("the metric has no containerResource")?;
        let (found, current) =
            self.resource_proposal(&source.target, &source.name, Some(&source.container)).await?;
        let name = match found.utilization {
            None => format!("{} resource", source.name),
            Some(_) => format!("{} container resource utilization (percentage of request)", source.name),
        };
        let status = MetricStatus {
            type_: "ContainerResource".to_owned(),
            container_resource: Some(ContainerResourceMetricStatus {
                name: source.name.clone(),
                container: source.container.clone(),
                current,
            }),
            ..MetricStatus::default()
        };
        Ok(Found { replicas: found.replicas, name, status })
    }

    async fn pods(&self, spec: &MetricSpec) -> Result<Found, String> {
        let source = spec.pods.as_ref().ok_or("the metric has no pods")?;
        let target = source.target.average_value.as_ref().ok_or("the metric has no average value")?;
        let series = selector_text(source.metric.selector.as_ref());
        let metric = &*source.metric.name;
        let query =
            MetricQuery::Pods { namespace: self.namespace, pods: self.selector, metric, series: &series };
        let answer = self.read(query).await.map_err(|why| format!("unable to get metric {metric}: {why}"))?;
        let found = self.of_pods(Target::Average(milli(target)), "", answer)?;
        let current =
            MetricValueStatus { average_value: Some(shown("", found.usage)), ..MetricValueStatus::default() };
        let status = MetricStatus {
            type_: "Pods".to_owned(),
            pods: Some(PodsMetricStatus { current, metric: source.metric.clone() }),
            ..MetricStatus::default()
        };
        Ok(Found { replicas: found.replicas, name: format!("pods metric {metric}"), status })
    }

    /// What is asked for by one figure, of which there shall be so much in all or for each pod.
    fn of_value(
        &self,
        target: &MetricTarget,
        usage: i64,
    ) -> Option<Result<(Proposal, MetricValueStatus), String>> {
        let tolerances = tolerances(self.hpa);
        if let Some(each) = &target.average_value {
            let found = from_value_per_pod(self.status_replicas, usage, milli(each), tolerances);
            let average_value = Some(shown("", found.usage));
            return Some(Ok((found, MetricValueStatus { average_value, ..MetricValueStatus::default() })));
        }
        let value = target.value.as_ref()?;
        let found = from_value(self.spec_replicas, usage, milli(value), tolerances, self.pods);
        Some(found.map(|found| {
            let value = Some(shown("", found.usage));
            (found, MetricValueStatus { value, ..MetricValueStatus::default() })
        }))
    }

    async fn object(&self, spec: &MetricSpec) -> Result<Found, String> {
        let source = spec.object.as_ref().ok_or("the metric has no object")?;
        let object = &source.described_object;
        let series = selector_text(source.metric.selector.as_ref());
        let metric = &*source.metric.name;
        let resource = resource_name(object.api_version.as_deref().unwrap_or_default(), &object.kind);
        let query = MetricQuery::Object {
            namespace: self.namespace,
            resource: &resource,
            name: &object.name,
            metric,
            series: &series,
        };
        let named = format!("{} {}/{}", object.kind, self.namespace, object.name);
        let answer = self.read(query).await;
        let answer = answer.map_err(|why| format!("unable to get metric {metric}: {named} {why}"))?;
        let usage = sum(&answer)?;
        let neither =
            "invalid object metric source: neither a value target nor an average value target was set";
        let (found, current) = self.of_value(&source.target, usage).ok_or(neither)??;
        let name = match current.value {
            Some(_) => format!("{} metric {metric}", object.kind),
            None => external_name(&source.metric),
        };
        let status = MetricStatus {
            type_: "Object".to_owned(),
            object: Some(ObjectMetricStatus {
                current,
                described_object: object.clone(),
                metric: source.metric.clone(),
            }),
            ..MetricStatus::default()
        };
        Ok(Found { replicas: found.replicas, name, status })
    }

    async fn external(&self, spec: &MetricSpec) -> Result<Found, String> {
        let source = spec.external.as_ref().ok_or("the metric has no external")?;
        let series = selector_text(source.metric.selector.as_ref());
        let metric = &*source.metric.name;
        let query = MetricQuery::External { namespace: self.namespace, metric, series: &series };
        let failed = |why| {
            let which = format!("{}/{metric}/{series}", self.namespace);
            format!("failed to get {metric} external metric: unable to get external metric {which}: {why}")
        };
        let usage = sum(&self.read(query).await.map_err(failed)?)?;
        let neither =
            "invalid external metric source: neither a value target nor an average value target was set";
        let (found, current) = self.of_value(&source.target, usage).ok_or(neither)??;
        let status = MetricStatus {
            type_: "External".to_owned(),
            external: Some(ExternalMetricStatus { current, metric: source.metric.clone() }),
            ..MetricStatus::default()
        };
        Ok(Found { replicas: found.replicas, name: external_name(&source.metric), status })
    }
}

fn external_name(metric: &MetricIdentifier) -> String {
    format!("external metric {}({})", metric.name, selector_text(metric.selector.as_ref()))
}

fn sum(answer: &MetricValues) -> Result<i64, String> {
    match answer {
        MetricValues::Values(values) if !values.is_empty() => {
            Ok(values.iter().fold(0_i64, |sum, value| sum.saturating_add(*value)))
        }
        _ => Err("the metrics source gave no figure".to_owned()),
    }
}

/// A kind's resource by the usual rules (apimachinery's `UnsafeGuessKindToResource`), for the metrics API.
fn resource_name(api_version: &str, kind: &str) -> String {
    let mut plural = kind.to_lowercase();
    if plural.ends_with('s') {
        plural.push_str("es");
    } else if let Some(stem) = plural.strip_suffix('y') {
        plural = format!("{stem}ies");
    } else {
        plural.push('s');
    }
    match kcore::kind::split_api_version(api_version).0 {
        "" => plural,
        group => format!("{plural}.{group}"),
    }
}
