//! What a node and its pods use, in the two forms of the kubelet's API: the summary (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`)
//! and the resource metrics (`pkg/kubelet/metrics/collectors/resource_metrics.go`).

use std::{fmt::Write as _, sync::Arc};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::{
    agent::{Inner, PodEntry},
    eviction::PodDisk,
    runtime::{ContainerPhase, PodUid},
    stats::PodStats,
    volumes::VolumeStats,
};

async fn pods(inner: &Inner, entries: &[Arc<PodEntry>]) -> Vec<Option<PodStats>> {
    let uids: Vec<PodUid> = entries.iter().map(|entry| entry.uid.clone()).collect();
    inner.pod_stats(&uids).await
}

/// The document of `/stats/summary`; `only_cpu_and_memory` leaves out what is on disks.
pub(super) async fn summary(
    inner: &Inner,
    node: &str,
    entries: &[Arc<PodEntry>],
    only_cpu_and_memory: bool,
) -> Value {
    let stats = pods(inner, entries).await;
    let disks = if only_cpu_and_memory { Vec::new() } else { inner.disks(entries).await };
    let disks = disks.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let volumes = futures::stream::iter(entries).then(|entry| async move {
        match entry.node.volumes.as_ref().filter(|_| !only_cpu_and_memory) {
            Some(volumes) => volumes.stats(&entry.uid, inner.clock.now()).await,
            None => Vec::new(),
        }
    });
    let volumes: Vec<Vec<VolumeStats>> = volumes.collect().await;
    let pods = entries.iter().zip(stats).zip(disks).zip(volumes).map(|(((entry, stats), disk), volumes)| {
        let pod = entry.pod();
        let meta = &pod.metadata;
        let mut value = json!({
            "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "startTime": pod.status.as_ref().and_then(|status| status.start_time.as_ref()),
        });
        if let Some(stats) = stats {
            let at = kcore::clock::format_time(stats.at);
            let use_of = |rate: u64, total: u64, memory: u64| {
                json!({
                    "cpu": {"time": at, "usageNanoCores": rate, "usageCoreNanoSeconds": total},
                    "memory": {"time": at, "usageBytes": memory, "workingSetBytes": memory},
                })
            };
            let mut sums = (0, 0, 0);
            let mut containers = Vec::with_capacity(stats.containers.len());
            for container in &stats.containers {
                let (rate, total) = (container.cpu_nanocores, container.cpu_nanoseconds);
                sums = (sums.0 + rate, sums.1 + total, sums.2 + container.memory_bytes);
                let mut one = use_of(rate, total, container.memory_bytes);
                one["name"] = json!(&*container.name);
                containers.push(one);
            }
            let whole = use_of(sums.0, sums.1, sums.2);
            value["cpu"] = whole["cpu"].clone();
            value["memory"] = whole["memory"].clone();
            value["containers"] = json!(containers);
        }
        if let Some(disk) = disk {
            add_disk(&mut value, &pod, &disk, inner.clock.now());
        }
        add_volumes(&mut value, &volumes, meta.namespace.as_deref().unwrap_or_default());
        value
    });
    let pods: Vec<Value> = pods.collect();
    let mut document = json!({"node": {"nodeName": node}, "pods": pods});
    if let Some(stats) = inner.node_stats(&[node]).await.pop().flatten() {
        let at = kcore::clock::format_time(stats.at);
        document["node"]["cpu"] = json!({"time": at, "usageNanoCores": stats.cpu_nanocores});
        let memory = stats.memory_bytes;
        document["node"]["memory"] = json!({"time": at, "usageBytes": memory, "workingSetBytes": memory});
    }
    document
}

/// Adds what a pod has on disks.
fn add_disk(value: &mut Value, pod: &Pod, disk: &PodDisk, now: Timestamp) {
    let at = kcore::clock::format_time(now);
    let of = |bytes: u64| json!({"time": at, "usedBytes": bytes});
    value["ephemeral-storage"] = of(disk.total(pod));
    let volumes = disk.volumes.iter().map(|(name, bytes)| {
        let mut volume = of(*bytes);
        volume["name"] = json!(name);
        volume
    });
    value["volume"] = volumes.collect();
    for container in value["containers"].as_array_mut().into_iter().flatten() {
        if let Some(disk) = disk.containers.iter().find(|disk| container["name"] == *disk.name) {
            container["rootfs"] = of(disk.root_bytes);
            container["logs"] = of(disk.log_bytes);
        }
    }
}

/// Adds what drivers say of their volumes.
fn add_volumes(value: &mut Value, volumes: &[VolumeStats], namespace: &str) {
    let shown = volumes.iter().map(|stats| {
        let mut volume = json!({
            "name": stats.name, "time": kcore::clock::format_time(stats.at),
            "usedBytes": stats.used_bytes, "capacityBytes": stats.capacity_bytes,
            "availableBytes": stats.available_bytes, "inodesUsed": stats.inodes_used, "inodes": stats.inodes,
            "inodesFree": stats.inodes_free,
        });
        if let Some(claim) = &stats.claim {
            volume["pvcRef"] = json!({"name": claim, "namespace": namespace});
        }
        volume
    });
    match value["volume"].as_array_mut() {
        Some(all) => all.extend(shown),
        None if volumes.is_empty() => {}
        None => value["volume"] = shown.collect(),
    }
}

/// The text of `/metrics/resource`. What a node uses is what its pods use.
pub(super) async fn resource(inner: &Inner, node: &str, entries: &[Arc<PodEntry>]) -> String {
    let stats = pods(inner, entries).await;
    let (mut cpu, mut memory, mut started) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu_total, mut memory_total, mut last) = (0_u64, 0_u64, inner.clock.now());
    for (entry, stats) in entries.iter().zip(stats) {
        let Some(stats) = stats else { continue };
        let (pod, at) = (entry.pod(), stats.at.as_millisecond());
        last = stats.at;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let observed = entry.node.config.runtime.observe(&entry.uid);
        for container in &stats.containers {
            let labels = format!("container=\"{}\",namespace=\"{namespace}\",pod=\"{name}\"", container.name);
            cpu_total += container.cpu_nanoseconds;
            memory_total += container.memory_bytes;
            cpu.push(format!("{{{labels}}} {} {at}", seconds(container.cpu_nanoseconds)));
            memory.push(format!("{{{labels}}} {} {at}", container.memory_bytes));
            let since = observed.containers.iter().find(|known| known.name == container.name);
            if let Some(ContainerPhase::Running { started_at }) = since.map(|one| &one.phase) {
                started.push(format!("{{{labels}}} {}", started_at.as_second()));
            }
        }
    }
    let at = last.as_millisecond();
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[String]| {
        if samples.is_empty() {
            return;
        }
        let _ = writeln!(text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        samples.iter().for_each(|sample| {
            let _ = writeln!(text, "{name}{sample}");
        });
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &cpu,
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        &memory,
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        &started,
    );
    if inner.nodes().contains_key(node) {
        let total = [format!(" {} {at}", seconds(cpu_total))];
        family(
            "node_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the node in core-seconds",
            &total,
        );
        let total = [format!(" {memory_total} {at}")];
        family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes", &total);
    }
    family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        &[" 0".to_owned()],
    );
    text
}

/// The text of `/metrics`: what a kubelet counts of that, under its names (`pkg/kubelet/metrics`).
pub(super) fn metrics(node: &str, entries: &[Arc<PodEntry>]) -> String {
    let (mut pods, mut running, mut exited) = (0_u64, 0_u64, 0_u64);
    for entry in entries {
        let observed = entry.node.config.runtime.observe(&entry.uid);
        pods += u64::from(observed.addresses.is_some());
        for container in &observed.containers {
            match container.phase {
                ContainerPhase::Running { .. } => running += 1,
                ContainerPhase::Exited(_) => exited += 1,
            }
        }
    }
    let mut text = format!(
        "# HELP kubelet_node_name The name of the node; its value is always 1\n# TYPE kubelet_node_name gauge\n\
         kubelet_node_name{{node=\"{node}\"}} 1\n\
         # HELP kubelet_running_containers The containers on the node, by state\n\
         # TYPE kubelet_running_containers gauge\n"
    );
    for (state, count) in [("exited", exited), ("running", running)] {
        let _ = writeln!(text, "kubelet_running_containers{{container_state=\"{state}\"}} {count}");
    }
    let _ = write!(
        text,
        "# HELP kubelet_running_pods The pods whose sandbox runs\n# TYPE kubelet_running_pods gauge\n\
         kubelet_running_pods {pods}\n"
    );
    text
}

fn seconds(nanoseconds: u64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}
