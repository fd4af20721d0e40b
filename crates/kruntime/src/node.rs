//! Nodes as the API sees them: the Node object, its conditions, and the Lease that says that it lives.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use http::{Method, Request, StatusCode};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kcore::clock::{format_micro_time, format_time};
use kube::client::Body;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    agent::{Inner, Node, WriteError},
    eviction::Pressure,
};

/// How long a Lease holds where a node's configuration says nothing else (upstream's `nodeLeaseDurationSeconds`).
pub const LEASE_DEFAULT: Duration = Duration::from_secs(40);
/// A Lease is renewed when this part of its time has passed, as upstream.
const RENEWALS_PER_LEASE: u32 = 4;
/// How often a status that has not changed is written where a node's configuration says nothing else (upstream's
/// `nodeStatusReportFrequency`).
pub const STATUS_EVERY_DEFAULT: Duration = Duration::from_secs(300);
/// How long it takes at most until nodes are looked at again that have come meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How soon a failed write is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked who is due: one look at all nodes costs less than a look for each.
const TICK: Duration = Duration::from_millis(100);
/// How many nodes write at the same time.
const WRITES_MAX: usize = 16;
/// The annotation of nodes whose volumes the attach-detach controller attaches.
const MANAGED_ATTACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// The namespace of the Leases.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

#[derive(Clone, Copy, Debug)]
struct Beat {
    registered: bool,
    lease_at: Instant,
    status_at: Instant,
}

/// Registers nodes and keeps them alive. One task for all nodes of the agent: it sleeps until the next one is due.
/// First renewals are spread over the interval, so that many nodes don't write at once ever after.
pub(crate) async fn run(inner: &Inner) {
    let mut beats: HashMap<Arc<str>, Beat, ahash::RandomState> = HashMap::default();
    loop {
        let nodes: Vec<Arc<Node>> = inner.nodes().values().cloned().collect();
        let names: HashSet<&Arc<str>, ahash::RandomState> =
            nodes.iter().map(|node| &node.config.name).collect();
        beats.retain(|name, _| names.contains(name));
        let now = Instant::now();
        let fresh = Beat { registered: false, lease_at: now, status_at: now };
        let due: Vec<_> = nodes
            .iter()
            .map(|node| (Arc::clone(node), *beats.get(&node.config.name).unwrap_or(&fresh)))
            .filter(|(node, beat)| beat.lease_at.min(beat.status_at) <= now || node.is_status_changed())
            .collect();
        let done: Vec<_> = futures::stream::iter(due)
            .map(|(node, beat)| async move {
                (Arc::clone(&node.config.name), beat_once(inner, &node, beat).await)
            })
            .buffer_unordered(WRITES_MAX)
            .collect()
            .await;
        beats.extend(done);
        let next = nodes.iter().filter_map(|node| beats.get(&node.config.name));
        let next = next.map(|beat| beat.lease_at.min(beat.status_at)).min();
        let next = next.unwrap_or_else(|| now + LOOK_EVERY).max(now + TICK);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = inner.node_changed.notified() => {}
        }
    }
}

async fn beat_once(inner: &Inner, node: &Node, mut beat: Beat) -> Beat {
    if node.stop.is_cancelled() {
        return beat;
    }
    let now = Instant::now();
    let first = !beat.registered;
    if node.take_status_changed() {
        beat.status_at = now;
    }
    if beat.status_at <= now {
        let written = if first { register(inner, node).await } else { write_status(inner, node).await };
        match written {
            Ok(()) => {
                beat.registered = true;
                beat.status_at = now + node.config.status_every.max(RETRY_AFTER);
            }
            Err(error) => {
                // A node that somebody deleted registers again.
                beat.registered &= !error.is_gone();
                beat.status_at = now + RETRY_AFTER;
                tracing::debug!(node = %node.config.name, %error, "the node's status is not written yet");
            }
        }
    }
    if beat.registered && beat.lease_at <= now {
        let renewed_every = (node.config.lease / RENEWALS_PER_LEASE).max(RETRY_AFTER);
        beat.lease_at = match renew(inner, node).await {
            Ok(()) if first => now + renewed_every.mul_f64(rand::rng().random_range(0.1..1.0)),
            Ok(()) => now + renewed_every,
            Err(error) => {
                tracing::debug!(node = %node.config.name, %error, "the node's lease is not renewed yet");
                now + RETRY_AFTER
            }
        };
    }
    if !beat.registered {
        beat.lease_at = beat.status_at;
    }
    beat
}

/// Creates the Node with its status; one that is there already gets its labels and its status anew.
async fn register(inner: &Inner, node: &Node) -> Result<(), WriteError> {
    let in_use = node.volumes_in_use();
    let object = object(node, inner.clock.now(), in_use.as_ref());
    match send(inner, Method::POST, "/api/v1/nodes".to_owned(), "application/json", &object).await {
        // The status of a new object is ignored by most kinds, not by Node; where it is, the next write sets it.
        Ok(()) => {}
        Err(WriteError::Refused(StatusCode::CONFLICT)) => {
            let mut known = json!({"metadata": {"labels": object["metadata"]["labels"]}});
            if let Some(annotations) = object["metadata"].get("annotations") {
                known["metadata"]["annotations"] = annotations.clone();
            }
            let path = format!("/api/v1/nodes/{}", node.config.name);
            send(inner, Method::PATCH, path, "application/strategic-merge-patch+json", &known).await?;
            return write_status(inner, node).await;
        }
        Err(error) => return Err(error),
    }
    node.told_in_use(in_use);
    Ok(())
}

async fn write_status(inner: &Inner, node: &Node) -> Result<(), WriteError> {
    let in_use = node.volumes_in_use();
    let body = json!({"status": status(node, inner.clock.now(), in_use.as_ref())});
    let path = format!("/api/v1/nodes/{}/status", node.config.name);
    send(inner, Method::PATCH, path, "application/strategic-merge-patch+json", &body).await?;
    node.told_in_use(in_use);
    Ok(())
}

async fn renew(inner: &Inner, node: &Node) -> Result<(), WriteError> {
    let name = &*node.config.name;
    let now = format_micro_time(inner.clock.now());
    let patch = json!({"spec": {
        "renewTime": now, "holderIdentity": name, "leaseDurationSeconds": node.config.lease.as_secs().max(1),
    }});
    let path = format!("{LEASES}/{name}");
    match send(inner, Method::PATCH, path, "application/merge-patch+json", &patch).await {
        Err(WriteError::Refused(StatusCode::NOT_FOUND)) => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease"},
                "spec": patch["spec"],
            });
            send(inner, Method::POST, LEASES.to_owned(), "application/json", &lease).await
        }
        other => other,
    }
}

async fn send(
    inner: &Inner,
    method: Method,
    path: String,
    content_type: &str,
    body: &Value,
) -> Result<(), WriteError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(Body::from(serde_json::to_vec(body)?))?;
    inner.send(request).await
}

/// Go's name of the machine's architecture, as Kubernetes uses it in labels.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn object(node: &Node, now: Timestamp, in_use: Option<&BTreeSet<String>>) -> Value {
    let name = &*node.config.name;
    let mut labels = serde_json::Map::new();
    for (key, value) in [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.insert(key.to_owned(), value.into());
    }
    labels.extend(node.config.labels.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
    let mut spec = serde_json::Map::new();
    if !node.config.taints.is_empty() {
        spec.insert("taints".to_owned(), serde_json::to_value(&node.config.taints).unwrap_or_default());
    }
    let mut metadata = json!({"name": name, "labels": labels});
    if in_use.is_some() {
        // Its volumes are attached by a controller; it does not do so itself.
        metadata["annotations"] = json!({MANAGED_ATTACH: "true"});
    }
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": metadata,
        "spec": spec,
        "status": status(node, now, in_use),
    })
}

/// What pods may ask nodes for that not all nodes can (KEP-5328), in alphabetical order.
const DECLARED_FEATURES: [&str; 1] = ["RestartAllContainersOnContainerExits"];

/// `in_use`: the volumes that nobody may detach, of a node that takes such.
fn status(node: &Node, now: Timestamp, in_use: Option<&BTreeSet<String>>) -> Value {
    let now = format_time(now);
    let condition = |type_: &str, status: bool, reason: &str, message: &str, since| {
        json!({
            "type": type_, "status": if status { "True" } else { "False" }, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": format_time(since),
        })
    };
    let pressures = [Pressure::Memory, Pressure::Disk, Pressure::Pid].map(|pressure| {
        let (is_there, since) = node.pressure(pressure);
        condition(
            pressure.condition(),
            is_there,
            pressure.reason(is_there),
            pressure.message(is_there),
            since,
        )
    });
    let ready = match node.shutting_down() {
        Some(since) => condition("Ready", false, "KubeletNotReady", "node is shutting down", since),
        None => condition("Ready", true, "KubeletReady", "kubelet is posting ready status", node.since),
    };
    let conditions: Vec<Value> = pressures.into_iter().chain([ready]).collect();
    let mut addresses: Vec<_> = node
        .config
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": &*node.config.name}));
    let handlers = std::iter::once("").chain(node.handlers.iter().map(String::as_str));
    let handlers: Vec<_> = handlers.map(|name| json!({"name": name})).collect();
    let (mut capacity, mut allocatable) = (node.config.capacity.clone(), node.config.allocatable());
    for (resource, (all, healthy)) in node.device_counts() {
        capacity.insert(resource.clone(), Quantity(all.to_string()));
        allocatable.insert(resource, Quantity(healthy.to_string()));
    }
    let mut status = json!({
        "addresses": addresses,
        "runtimeHandlers": handlers,
        "allocatable": allocatable,
        "capacity": capacity,
        "conditions": conditions,
        "declaredFeatures": DECLARED_FEATURES,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": node.config.kubelet_port}},
        "nodeInfo": {
            "architecture": architecture(),
            "bootID": file("/proc/sys/kernel/random/boot_id"),
            "containerRuntimeVersion": node.version,
            "kernelVersion": file("/proc/sys/kernel/osrelease"),
            "kubeProxyVersion": "",
            "kubeletVersion": node.config.kubelet_version,
            "machineID": file("/etc/machine-id"),
            "operatingSystem": "linux",
            "osImage": os_image(),
            "systemUUID": file("/etc/machine-id"),
        },
    });
    if let Some(in_use) = in_use {
        status["volumesInUse"] = json!(in_use);
    }
    status
}

/// A small file of the kernel; reading it does not block.
fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn os_image() -> String {
    let release = file("/etc/os-release");
    let line = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or("Linux").trim_matches('"').to_owned()
}
