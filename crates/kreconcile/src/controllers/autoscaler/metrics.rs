//! Where the autoscaler's figures come from.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use kcore::quantity::Quantity;
use serde_json::Value;

use crate::request::{Query, Requests};

/// How old a figure of a pod may be when the API does not say over which time it was taken.
const WINDOW_DEFAULT: Duration = Duration::from_secs(60);

/// A figure of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PodMetric {
    /// The figure, in thousandths.
    pub milli: i64,
    /// When it was taken.
    pub at: Timestamp,
    /// Over which time it was taken.
    pub window: Duration,
}

impl PodMetric {
    /// A figure of `milli` thousandths, taken at `at` over `window`.
    #[must_use]
    pub fn new(milli: i64, at: Timestamp, window: Duration) -> Self {
        Self { milli, at, window }
    }
}

/// What the autoscaler wants to know. Selectors are in the syntax of the `labelSelector` query parameter; an empty one
/// selects everything.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum MetricQuery<'a> {
    /// How much of a resource the pods use.
    Resource {
        /// The pods' namespace.
        namespace: &'a str,
        /// Which pods.
        pods: &'a str,
        /// The resource, such as `cpu`.
        resource: &'a str,
        /// Only this container of each pod.
        container: Option<&'a str>,
    },
    /// A figure of each pod.
    Pods {
        /// The pods' namespace.
        namespace: &'a str,
        /// Which pods.
        pods: &'a str,
        /// The metric's name.
        metric: &'a str,
        /// Which series of the metric.
        series: &'a str,
    },
    /// A figure of one object.
    Object {
        /// The object's namespace.
        namespace: &'a str,
        /// Its resource as `plural` or `plural.group`.
        resource: &'a str,
        /// Its name.
        name: &'a str,
        /// The metric's name.
        metric: &'a str,
        /// Which series of the metric.
        series: &'a str,
    },
    /// Figures of something outside of the cluster.
    External {
        /// Whose namespace.
        namespace: &'a str,
        /// The metric's name.
        metric: &'a str,
        /// Which series of the metric.
        series: &'a str,
    },
}

/// The answer to a [`MetricQuery`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MetricValues {
    /// Of pods, by their names: for `Resource` and `Pods`.
    Pods(BTreeMap<String, PodMetric>),
    /// In thousandths: one for `Object`, one for each series for `External`.
    Values(Vec<i64>),
}

/// Why there are no figures. The words are shown in conditions and events.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MetricsError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl MetricsError {
    /// Wraps any error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Tells the autoscaler what the pods use, and whatever else it scales by.
///
/// It is asked once per metric of each autoscaler and look, every 15 s; calls overlap. An error, or an answer of the wrong
/// kind, makes that metric count as unknown.
#[async_trait]
pub trait MetricsSource: Send + Sync + 'static {
    /// The figures.
    ///
    /// # Errors
    /// When there are none: nothing answers, or nothing is known of these pods.
    async fn read(&self, query: &MetricQuery<'_>) -> Result<MetricValues, MetricsError>;
}

const _: Option<&dyn MetricsSource> = None;

impl fmt::Debug for dyn MetricsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsSource")
    }
}

/// Asks the API server for `metrics.k8s.io`, `custom.metrics.k8s.io` and `external.metrics.k8s.io`, whoever serves them.
pub(super) struct ApiMetrics {
    pub(super) requests: Requests,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn milli(value: &Value) -> Option<i64> {
    Quantity::parse(value.as_str()?).ok().map(|quantity| quantity.milli())
}

fn items<'a>(answer: &'a Value, api: &str) -> Result<&'a [Value], MetricsError> {
    match answer["items"].as_array().map(Vec::as_slice) {
        None | Some([]) => Err(MetricsError::new(format!("no metrics returned from {api} metrics API"))),
        Some(items) => Ok(items),
    }
}

fn time(value: &Value) -> Timestamp {
    text(value, "timestamp").parse().unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The `window` of the resource metrics API, in Go's notation, such as `1m30s`.
fn window(value: &Value) -> Duration {
    let parsed = text(value, "window").parse::<jiff::SignedDuration>().ok();
    parsed
        .and_then(|window| window.try_into().ok())
        .filter(|window: &Duration| !window.is_zero())
        .unwrap_or(WINDOW_DEFAULT)
}

/// What each pod uses; pods of which a container is not known are left out.
fn resource_values(
    items: &[Value],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, PodMetric>, MetricsError> {
    let mut pods = BTreeMap::new();
    for item in items {
        let (namespace, name) = (text(&item["metadata"], "namespace"), text(&item["metadata"], "name"));
        let all = item["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of = |one: &Value| milli(&one["usage"][resource]);
        let used = match container {
            None => all.iter().map(of).sum::<Option<i64>>(),
            Some(container) => {
                let found = all.iter().find(|one| text(one, "name") == container);
                let missing = || {
                    let pod = format!("{namespace}/{name}");
                    MetricsError::new(format!("container {container} not present in metrics for pod {pod}"))
                };
                of(found.ok_or_else(missing)?)
            }
        };
        if let Some(milli) = used {
            pods.insert(name.to_owned(), PodMetric { milli, at: time(item), window: window(item) });
        }
    }
    Ok(pods)
}

fn pod_values(items: &[Value]) -> BTreeMap<String, PodMetric> {
    let each = items.iter().filter_map(|item| {
        let seconds = item["windowSeconds"].as_u64().map_or(WINDOW_DEFAULT, Duration::from_secs);
        let metric = PodMetric { milli: milli(&item["value"])?, at: time(item), window: seconds };
        Some((text(&item["describedObject"], "name").to_owned(), metric))
    });
    each.collect()
}

impl ApiMetrics {
    async fn ask(&self, api: &str, query: Query) -> Result<Value, MetricsError> {
        self.requests.get(&query.finish()).await.map_err(|error| {
            let error = crate::controllers::pod_writes::error_message(&error);
            MetricsError::new(format!("unable to fetch metrics from {api} metrics API: {error}"))
        })
    }
}

#[async_trait]
impl MetricsSource for ApiMetrics {
    async fn read(&self, query: &MetricQuery<'_>) -> Result<MetricValues, MetricsError> {
        match *query {
            MetricQuery::Resource { namespace, pods, resource, container } => {
                let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
                let mut query = Query::new(path);
                query.add_unless_empty("labelSelector", pods);
                let answer = self.ask("resource", query).await?;
                Ok(MetricValues::Pods(resource_values(items(&answer, "resource")?, resource, container)?))
            }
            MetricQuery::Pods { namespace, pods, metric, series } => {
                let path =
                    format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/*/{metric}");
                let mut query = Query::new(path);
                query.add_unless_empty("labelSelector", pods);
                query.add_unless_empty("metricLabelSelector", series);
                let answer = self.ask("custom", query).await?;
                Ok(MetricValues::Pods(pod_values(items(&answer, "custom")?)))
            }
            MetricQuery::Object { namespace, resource, name, metric, series } => {
                let root = "/apis/custom.metrics.k8s.io/v1beta2/namespaces";
                let mut query = Query::new(match resource {
                    "namespaces" => format!("{root}/{name}/metrics/{metric}"),
                    _ => format!("{root}/{namespace}/{resource}/{name}/{metric}"),
                });
                query.add_unless_empty("metricLabelSelector", series);
                let answer = self.ask("custom", query).await?;
                let first = items(&answer, "custom")?.first().and_then(|item| milli(&item["value"]));
                Ok(MetricValues::Values(first.into_iter().collect()))
            }
            MetricQuery::External { namespace, metric, series } => {
                let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}");
                let mut query = Query::new(path);
                query.add_unless_empty("labelSelector", series);
                let answer = self.ask("external", query).await?;
                let values = items(&answer, "external")?.iter().filter_map(|item| milli(&item["value"]));
                Ok(MetricValues::Values(values.collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The answers of upstream's `client_test.go` (podautoscaler/metrics).
    #[test]
    fn figures_are_read_as_the_apis_give_them() {
        let at = "2030-01-01T00:00:00Z";
        let one = |usage: Value| {
            json!({"metadata": {"namespace": "n", "name": "p"}, "timestamp": at, "window": "30s",
            "containers": [{"name": "a", "usage": {"cpu": "1500m", "memory": "1Ki"}}, {"name": "b", "usage": usage}]})
        };
        let metric = |milli| PodMetric::new(milli, at.parse().unwrap(), Duration::from_secs(30));
        let both = one(json!({"cpu": "2"}));
        let cases = [
            (&both, "cpu", None, Ok(Some(metric(3500)))),
            (&both, "cpu", Some("b"), Ok(Some(metric(2000)))),
            (&both, "memory", None, Ok(None)),
            (&both, "memory", Some("a"), Ok(Some(metric(1_024_000)))),
            (&both, "cpu", Some("c"), Err("container c not present in metrics for pod n/p")),
        ];
        for (item, resource, container, expected) in cases {
            let seen = resource_values(std::slice::from_ref(item), resource, container);
            let seen = seen.map(|pods| pods.get("p").copied()).map_err(|error| error.to_string());
            assert_eq!(seen, expected.map_err(str::to_owned), "{resource} {container:?}");
        }
        let custom = json!({"describedObject": {"name": "p"}, "value": "10", "timestamp": at});
        let expected = PodMetric { window: WINDOW_DEFAULT, ..metric(10_000) };
        assert_eq!(pod_values(&[custom]), BTreeMap::from([("p".to_owned(), expected)]));
        let none = items(&json!({"items": []}), "external").unwrap_err();
        assert_eq!(none.to_string(), "no metrics returned from external metrics API");
    }

    /// Asks over a client whose server answers with `answer`; gives the path that was asked for beside what was read.
    async fn ask(query: &MetricQuery<'_>, answer: Value) -> (String, Result<MetricValues, String>) {
        let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let _ = sender.send(request.uri().to_string());
            let body = kube::client::Body::from(answer.to_string().into_bytes());
            async move { Ok::<_, std::convert::Infallible>(http::Response::new(body)) }
        });
        let source = ApiMetrics { requests: Requests::new(kube::Client::new(service, "default")) };
        let read = source.read(query).await.map_err(|error| error.to_string());
        (asked.recv().await.unwrap_or_default(), read)
    }

    /// The requests of upstream's `client_test.go` and of the clients of the metrics APIs, with their answers.
    #[tokio::test]
    async fn each_metric_has_its_api() {
        let at = "2030-01-01T00:00:00Z";
        let value = |value: &str| json!({"items": [{"describedObject": {"name": "p"}, "value": value, "timestamp": at, "windowSeconds": 30}]});
        let (namespace, pods, metric, series) = ("shop", "app=web", "qps", "verb in (GET)");
        let root = "/apis/custom.metrics.k8s.io/v1beta2/namespaces";
        let one = PodMetric::new(10_500, at.parse().unwrap(), Duration::from_secs(30));
        let of_pods = Ok(MetricValues::Pods(BTreeMap::from([("p".to_owned(), one)])));
        let object =
            |resource| MetricQuery::Object { namespace, resource, name: "front", metric, series: "" };
        let cases = [
            (
                MetricQuery::Pods { namespace, pods, metric, series },
                value("10500m"),
                format!("{root}/shop/pods/*/qps?labelSelector=app%3Dweb&metricLabelSelector=verb%20in%20%28GET%29"),
                of_pods,
            ),
            (
                object("ingresses.networking.k8s.io"),
                value("7"),
                format!("{root}/shop/ingresses.networking.k8s.io/front/qps"),
                Ok(MetricValues::Values(vec![7000])),
            ),
            (
                object("namespaces"),
                value("7"),
                format!("{root}/front/metrics/qps"),
                Ok(MetricValues::Values(vec![7000])),
            ),
            (
                MetricQuery::External { namespace, metric, series },
                json!({"items": [{"value": "1"}, {"value": "2500m"}]}),
                "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/qps?labelSelector=verb%20in%20%28GET%29"
                    .to_owned(),
                Ok(MetricValues::Values(vec![1000, 2500])),
            ),
            (
                MetricQuery::External { namespace, metric, series: "" },
                json!({"items": []}),
                "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/qps".to_owned(),
                Err("no metrics returned from external metrics API".to_owned()),
            ),
            (
                MetricQuery::Resource { namespace, pods, resource: "cpu", container: Some("a") },
                json!({"items": [{"metadata": {"name": "p"}, "timestamp": at, "window": "30s",
                    "containers": [{"name": "a", "usage": {"cpu": "10500m"}}, {"name": "b", "usage": {"cpu": "1"}}]}]}),
                "/apis/metrics.k8s.io/v1beta1/namespaces/shop/pods?labelSelector=app%3Dweb".to_owned(),
                Ok(MetricValues::Pods(BTreeMap::from([("p".to_owned(), one)]))),
            ),
        ];
        for (query, answer, path, expected) in cases {
            assert_eq!(ask(&query, answer).await, (path, expected), "{query:?}");
        }
    }
}
