//! The scheduler, under the loads of upstream's `scheduler_perf`: decisions alone, and the whole way from the queue to the
//! binding through the API.
//!
//! `cargo bench -p kplane-benches --bench scheduler [-- NAME [NODES [decisions|whole]]]`

mod whole;
mod workloads;

use std::{sync::Arc, time::Duration};

use kplane_benches::{CountingAllocator, cpu_time, figure, percentile, resident_bytes};
use ksched::{Plan, Planner, PodInfo, Profile, decide};
use tokio::time::Instant;

use crate::workloads::{Churn, WORKLOADS, Workload, node, pod, too_large};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How many pods are measured at most, and for how long at most.
const PODS_MAX: usize = 10_000;
/// How many decisions are made from scratch at the end.
const FROM_SCRATCH: u32 = 5;
const TIME_MAX: Duration = Duration::from_secs(5);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let sizes = match words.get(1).and_then(|word| word.parse().ok()) {
        Some(size) => vec![size],
        None => vec![500, 5_000, 50_000],
    };
    let part = words.get(2).map(String::as_str);
    let wanted =
        |workload: &&Workload| words.first().is_none_or(|word| workload.name.contains(word.as_str()));
    for workload in WORKLOADS.iter().filter(wanted) {
        for &nodes in &sizes {
            if part != Some("whole") {
                decisions(workload, nodes);
            }
            if part != Some("decisions") {
                whole::run(workload, nodes);
            }
        }
    }
}

/// Decides on pod after pod, on one thread, and puts each where it was decided.
fn decisions(workload: &Workload, nodes: usize) {
    let before = resident_bytes();
    let mut planner = Planner::new([Profile::default()].into());
    for number in 0..nodes {
        planner.set_node(ksched::NodeInfo::new(node(workload, number)));
    }
    for number in 0..nodes * workload.before_percent / 100 {
        let info = named(workload.before, "sched-0", &format!("before-{number}"));
        planner.place(&info, &planner.snapshot().names()[number % nodes].clone());
    }
    let left =
        nodes - if workload.per_node_max == 1 { nodes * (workload.before_percent % 400) / 100 } else { 0 };
    let pods: Vec<_> = (0..PODS_MAX.min(left * workload.per_node_max))
        .map(|number| named(workload.measured, "sched-1", &format!("measured-{number}")))
        .collect();
    let (mut samples, begin, cpu) = (Vec::with_capacity(pods.len()), Instant::now(), cpu_time());
    for (number, pod) in pods.iter().enumerate() {
        if workload.churn != Churn::None && number % workload.churn.every(workload.upstream) == 0 {
            churn(&mut planner, workload, nodes + number);
        }
        let start = Instant::now();
        let plan = planner.plan(0, pod, &[]);
        let node = match &plan {
            Plan::Node(node) => Arc::clone(&planner.snapshot().names()[*node]),
            Plan::Decision(decision) => {
                for victim in decision.victims() {
                    planner.remove_pod(&victim.uid);
                }
                let node = decision.node().or(decision.nominated());
                node.unwrap_or_else(|| panic!("{}: {:?}", workload.name, decision.failure())).into()
            }
        };
        planner.place(pod, &node);
        samples.push(start.elapsed());
        if begin.elapsed() > TIME_MAX {
            break;
        }
    }
    let cpu = (cpu_time() - cpu).as_secs_f64();
    let name = |what: &str| format!("{}_{nodes}_{what}", workload.name);
    figure(&name("decisions"), samples.len() as f64 / cpu, "pods/s of CPU");
    figure(&name("p50"), percentile(&mut samples, 0.5).as_secs_f64() * 1e6, "us");
    figure(&name("p99"), percentile(&mut samples, 0.99).as_secs_f64() * 1e6, "us");
    let start = cpu_time();
    for _ in 0..FROM_SCRATCH {
        std::hint::black_box(decide(&Profile::default(), planner.snapshot(), &pods[0]));
    }
    figure(
        &name("from_scratch"),
        (cpu_time() - start).as_secs_f64() * 1e6 / FROM_SCRATCH as f64,
        "us CPU a pod",
    );
    figure(&name("memory"), resident_bytes().saturating_sub(before) as f64 / 1e6, "MB");
}

/// What happens meanwhile; its time counts, as it is the scheduler's.
fn churn(planner: &mut Planner, workload: &Workload, number: usize) {
    if workload.churn == Churn::Mixed {
        let node = ksched::NodeInfo::new(node(workload, number));
        let name = Arc::clone(&node.name);
        planner.set_node(node);
        planner.remove_node(&name);
    }
    let large = named(too_large, "sched-1", &format!("large-{number}"));
    let plan = planner.plan(0, &large, &[]);
    assert_eq!(plan.node(planner), None, "no node is large enough");
}

fn named(kind: fn() -> serde_json::Value, namespace: &str, name: &str) -> Arc<PodInfo> {
    let mut pod = pod(kind, namespace, name);
    pod.metadata.uid = Some(format!("uid-{name}"));
    Arc::new(PodInfo::new(pod))
}
