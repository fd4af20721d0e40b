//! Scheduler plug-ins of your own: a filter that keeps pods in their region and a score that likes green energy; first as a
//! pure decision that is explained, then in a running cluster.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kplane::Cluster;
use ksched::{
    NodeVerdict, NodeView, PodInfo, Profile, Snapshot, Verdict,
    build::{node, pod},
    decide,
    plugin::{CycleState, FilterPlugin, Rejection, ScorePlugin},
};
use kube::{Api, api::PostParams};
use serde_json::json;

/// A pod that names a region goes only there.
struct InRegion;

impl FilterPlugin for InRegion {
    fn name(&self) -> &str {
        "InRegion"
    }

    fn filter(&self, _: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let wanted = pod.labels.get("region");
        if wanted.is_none_or(|wanted| node.info().labels.get("region") == Some(wanted)) {
            return Verdict::Pass;
        }
        Verdict::Reject(Rejection::unresolvable("node(s) were in another region"))
    }
}

/// Likes nodes that run on green energy.
struct Green;

impl ScorePlugin for Green {
    fn name(&self) -> &str {
        "Green"
    }

    fn score(&self, _: &CycleState, _: &PodInfo, node: NodeView<'_>) -> i64 {
        if node.info().labels.get("energy") == Some("green") { 100 } else { 0 }
    }
}

fn profile() -> Result<Profile> {
    Ok(Profile::builder().filter(Arc::new(InRegion)).score(Arc::new(Green), 10).build()?)
}

/// What would happen? A decision needs no cluster: it is a function of profile, snapshot and pod.
fn explained() -> Result<()> {
    let mut snapshot = Snapshot::new();
    let machine =
        |name: &str| node(name).resource("cpu", "4").resource("memory", "8Gi").resource("pods", "110");
    snapshot.set_node(machine("coal").label("region", "north").info());
    snapshot.set_node(machine("wind").label("region", "north").label("energy", "green").info());
    snapshot.set_node(machine("far").label("region", "south").label("energy", "green").info());
    let pod = pod("web").request("cpu", "1").edit(|pod| {
        pod.metadata.labels = Some([("region".to_owned(), "north".to_owned())].into());
    });
    let decision = decide(&profile()?, &snapshot, &pod.info());
    for (name, verdict) in decision.verdicts() {
        match verdict {
            NodeVerdict::Feasible(total) => {
                let scores =
                    decision.scores(name).map(|score| format!("{} {}", score.plugin, score.weighted));
                println!("{name}: {total} ({})", scores.collect::<Vec<_>>().join(", "));
            }
            NodeVerdict::Rejected { plugin, rejection } => {
                println!("{name}: {plugin}: {}", rejection.message())
            }
            NodeVerdict::NotAsked => println!("{name}: not asked"),
        }
    }
    ensure!(decision.node() == Some("wind"));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    explained()?;
    let cluster = Cluster::builder()
        .nodes(3)
        .configure_node(|node| {
            let energy = if &*node.name == "node-2" { "green" } else { "grey" };
            node.labels.insert("energy".to_owned(), energy.to_owned());
        })
        .scheduler(profile()?)
        .start()
        .await?;
    let patience = Duration::from_secs(30);
    cluster.wait_until::<ServiceAccount>("default", "default", patience, |account| account.is_some()).await?;
    let node = |node: Option<&k8s_openapi::api::core::v1::Node>| {
        node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
    };
    for name in ["node-1", "node-2", "node-3"] {
        cluster.wait_until("", name, patience, node).await?;
    }
    let pod =
        json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "example/c"}]}});
    Api::<Pod>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let placed = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.spec.as_ref()).is_some_and(|spec| spec.node_name.is_some())
    };
    let pod = cluster.wait_until::<Pod>("default", "web", patience, placed).await?;
    let node = pod.and_then(|pod| pod.spec.clone()).and_then(|spec| spec.node_name).unwrap_or_default();
    println!("in the cluster, web went to {node}");
    ensure!(node == "node-2");
    cluster.shutdown().await?;
    Ok(())
}
