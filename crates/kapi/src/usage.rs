//! The resource metrics API, `metrics.k8s.io/v1beta1`: what pods and nodes use, for `kubectl top` and the autoscaler
//! (`k8s.io/metrics/pkg/apis/metrics/v1beta1`; metrics-server's `pkg/api`).
//!
//! [`ApiServerBuilder::usage`](crate::ApiServerBuilder::usage) serves it from a [`UsageSource`]. Upstream an aggregated server
//! answers for this group; here its kinds are made of pods and nodes as they are asked for ([`Derive`]).

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use kcore::{Gvr, Quantity, Stored, clock::format_time};
use serde_json::{Value, json};

use crate::{
    custom::{KindError, OwnKind},
    derived::Derive,
    registry::ResourceDef,
};

/// The group of the API.
pub const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";

/// An amount of processor time and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, in billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// What somebody used over a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured<T> {
    /// When it was measured.
    pub at: Timestamp,
    /// The time before `at` that the processor time is an average of.
    pub window: Duration,
    /// How much.
    pub usage: T,
}

/// Tells what pods and nodes use.
///
/// It is asked once for each request, at the same time for several; a call may be dropped when the caller goes away. Who knows
/// nothing of a pod or node says `None`: it is missing in lists, and not found.
#[async_trait]
pub trait UsageSource: fmt::Debug + Send + Sync + 'static {
    /// What the containers of these pods use, by their names, in the order of the pods' `uids`.
    async fn pods(&self, uids: &[Box<str>]) -> Vec<Option<Measured<Vec<(Arc<str>, Usage)>>>>;

    /// What these nodes use, in the order of their `names`.
    async fn nodes(&self, names: &[Box<str>]) -> Vec<Option<Measured<Usage>>>;
}

const _: Option<&dyn UsageSource> = None;

impl Usage {
    /// As a `ResourceList`: both in the shortest form, memory in powers of two where that can be.
    fn value(self) -> Value {
        let text = |text: String| Quantity::parse(&text).map(|quantity| quantity.to_string()).unwrap_or(text);
        let memory = match self.memory_bytes {
            bytes if bytes > 0 && bytes % 1024 == 0 => text(format!("{}Ki", bytes / 1024)),
            bytes => bytes.to_string(),
        };
        json!({"cpu": text(format!("{}n", self.cpu_nanocores)), "memory": memory})
    }
}

/// A duration as Go writes it, in whole milliseconds.
fn go_duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let fraction =
        if millis == 0 { String::new() } else { format!(".{millis:03}").trim_end_matches('0').to_owned() };
    let rest = format!("{}{fraction}s", seconds % 60);
    match (hours, minutes) {
        (0, 0) => rest,
        (0, _) => format!("{minutes}m{rest}"),
        _ => format!("{hours}h{minutes}m{rest}"),
    }
}

impl<T> Measured<T> {
    /// The fields of a `PodMetrics` or `NodeMetrics`; what was used is added by `usage`.
    fn value(&self, key: &str, usage: impl FnOnce(&T) -> Value) -> Value {
        let mut value = json!({"timestamp": format_time(self.at), "window": go_duration(self.window)});
        value[key] = usage(&self.usage);
        value
    }
}

#[derive(Debug)]
struct Pods(Arc<dyn UsageSource>);

#[async_trait]
impl Derive for Pods {
    fn from(&self) -> Gvr {
        Gvr::new("", "v1", "pods")
    }

    async fn derive(&self, pods: &[Arc<Stored>]) -> Vec<Option<Value>> {
        let uids: Vec<_> = pods.iter().map(|pod| pod.header().uid.clone()).collect();
        let all = self.0.pods(&uids).await.into_iter();
        let containers = |all: &Vec<(Arc<str>, Usage)>| {
            all.iter().map(|(name, usage)| json!({"name": &**name, "usage": usage.value()})).collect()
        };
        all.map(|pod| Some(pod?.value("containers", containers))).collect()
    }
}

#[derive(Debug)]
struct Nodes(Arc<dyn UsageSource>);

#[async_trait]
impl Derive for Nodes {
    fn from(&self) -> Gvr {
        Gvr::new("", "v1", "nodes")
    }

    async fn derive(&self, nodes: &[Arc<Stored>]) -> Vec<Option<Value>> {
        let names: Vec<_> = nodes.iter().map(|node| node.header().name.clone()).collect();
        let all = self.0.nodes(&names).await.into_iter();
        all.map(|node| Some(node?.value("usage", |usage| usage.value()))).collect()
    }
}

/// The two kinds of the API, served from `source`.
///
/// # Errors
/// Never, unless their schemas are broken.
pub fn kinds(source: &Arc<dyn UsageSource>) -> Result<[ResourceDef; 2], KindError> {
    let quantities = json!({"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}});
    let schema = |key: &str, used: Value| {
        let mut schema = json!({"type": "object", "properties": {
            "metadata": {"type": "object"}, "timestamp": {"type": "string", "format": "date-time"}, "window": {"type": "string"}}});
        schema["properties"][key] = used;
        schema
    };
    let containers = json!({"type": "array", "items": {"type": "object", "properties": {
        "name": {"type": "string"}, "usage": quantities}}});
    let pods = OwnKind::new(GROUP, VERSION, ("PodMetrics", "pods"), true, schema("containers", containers))
        .column("Window", "string", ".window")?
        .derived(Arc::new(Pods(Arc::clone(source))));
    let nodes = OwnKind::new(GROUP, VERSION, ("NodeMetrics", "nodes"), false, schema("usage", quantities))
        .column("cpu", "string", ".usage.cpu")?
        .column("memory", "string", ".usage.memory")?
        .column("Window", "string", ".window")?
        .derived(Arc::new(Nodes(Arc::clone(source))));
    Ok([nodes.singular("").build()?, pods.singular("").build()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forms of `resource.Quantity` and `metav1.Duration`, as metrics-server's answers have them.
    #[test]
    fn amounts_and_times_are_written_as_upstreams() {
        for (cpu, memory, expected) in [
            (0, 0, json!({"cpu": "0", "memory": "0"})),
            (250_000_000, 64 << 20, json!({"cpu": "250m", "memory": "64Mi"})),
            (2_000_000_000, 1025 << 10, json!({"cpu": "2", "memory": "1025Ki"})),
            (1_234_567, 1000, json!({"cpu": "1234567n", "memory": "1000"})),
        ] {
            assert_eq!(Usage { cpu_nanocores: cpu, memory_bytes: memory }.value(), expected);
        }
        for (millis, expected) in
            [(15_000, "15s"), (10_500, "10.5s"), (60_000, "1m0s"), (3_661_001, "1h1m1.001s"), (0, "0s")]
        {
            assert_eq!(go_duration(Duration::from_millis(millis)), expected);
        }
    }
}
