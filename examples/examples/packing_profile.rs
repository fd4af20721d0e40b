//! Bin packing beside the default profile: both from one `KubeSchedulerConfiguration`, compared before they run, side by
//! side in one scheduler, and a look at what draining a node would do.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kplane::Cluster;
use ksched::{PodInfo, Profile, build::pod, config::SchedulerConfiguration, registry::Registry, what_if};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use tokio::time::Duration;

/// A file that kube-scheduler takes too, by `--config`.
const CONFIGURATION: &str = "
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packing
  plugins:
    score:
      # It likes nodes that are used evenly, empty ones above all.
      disabled:
      - name: NodeResourcesBalancedAllocation
  pluginConfig:
  - name: NodeResourcesFit
    args:
      scoringStrategy:
        type: MostAllocated
        resources:
        - {name: cpu, weight: 1}
        - {name: memory, weight: 1}
";
const NODES: usize = 4;
const PODS: usize = 12;
const PATIENCE: Duration = Duration::from_secs(60);

/// Twelve pods of half a core each; a node has four cores.
fn load(scheduler: &str) -> Vec<Pod> {
    let pod = |number| {
        let pod = pod(&format!("{scheduler}-{number}")).request("cpu", "500m").request("memory", "1Gi");
        let mut pod = pod.image("example/app").object();
        if let Some(spec) = &mut pod.spec {
            spec.scheduler_name = Some(scheduler.to_owned());
        }
        pod
    };
    (0..PODS).map(pod).collect()
}

/// Nothing runs yet, and nothing is written: the two are compared on the nodes of the cluster as they are.
async fn compared(cluster: &Cluster, profiles: &[Profile]) -> Result<()> {
    let [spreading, packing] = profiles else { anyhow::bail!("two profiles") };
    let (snapshot, _) = what_if::from_cluster(&cluster.client(), profiles).await?;
    let pods: Vec<Arc<PodInfo>> = load("any").into_iter().map(|pod| Arc::new(PodInfo::new(pod))).collect();
    let difference = what_if::compare(spreading, packing, &snapshot, &pods);
    let (spread, packed) = difference.nodes_used;
    println!(
        "{PODS} pods use {spread} nodes by default and {packed} packed; {} move",
        difference.moved.len()
    );
    ensure!(difference.nodes_used == (4, 2) && difference.unplaced == (0, 0));
    Ok(())
}

/// Creates pods, waits until each has a node, and counts the pods of each node.
async fn placed(cluster: &Cluster, pods: Vec<Pod>) -> Result<BTreeMap<String, usize>> {
    let api: Api<Pod> = Api::default_namespaced(cluster.client());
    let mut names = Vec::new();
    for mut pod in pods {
        pod.metadata.uid = None;
        names.push(api.create(&PostParams::default(), &pod).await?.metadata.name.context("a name")?);
    }
    let node = |pod: Option<&Pod>| pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    let mut nodes = BTreeMap::new();
    for name in names {
        let pod = cluster.wait_until::<Pod>("default", &name, PATIENCE, |pod| node(pod).is_some()).await?;
        *nodes.entry(node(pod.as_deref()).unwrap_or_default()).or_default() += 1;
    }
    Ok(nodes)
}

/// What would become of the pods of a node?
async fn drained(cluster: &Cluster, packing: &Profile, nodes: &BTreeMap<String, usize>) -> Result<()> {
    let profiles = std::slice::from_ref(packing);
    let (snapshot, waiting) = what_if::from_cluster(&cluster.client(), profiles).await?;
    ensure!(waiting.is_empty());
    for name in nodes.keys() {
        let after = what_if::drain(packing, &snapshot, name);
        println!("without {name}: {} pods move, {} find no place", after.placed.len(), after.unplaced.len());
        ensure!(after.unplaced.is_empty() && after.placed.iter().all(|(_, node)| **node != **name));
    }
    // All others are full already: then there is no room, and it says why.
    let mut full = snapshot.clone();
    let (drained, others) =
        nodes.keys().next().map(|first| (first, snapshot.names().iter())).context("a node")?;
    for other in others.filter(|other| ***other != **drained) {
        full.place(&Arc::new(pod(&format!("filler-{other}")).request("cpu", "2").info()), other);
        full.place(&Arc::new(pod(&format!("more-{other}")).request("cpu", "2").info()), other);
    }
    let after = what_if::drain(packing, &full, drained);
    let (_, why) = after.unplaced.first().context("no room")?;
    println!("and were the others full: {why}");
    ensure!(after.placed.is_empty() && why.contains("3 Insufficient cpu"));
    // Only asked: the node is as it was.
    let node = Api::<Node>::all(cluster.client()).get(drained).await?;
    ensure!(node.spec.is_none_or(|spec| spec.unschedulable != Some(true)));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let configuration = SchedulerConfiguration::from_value(serde_saphyr::from_str(CONFIGURATION)?)?;
    let profiles = configuration.profiles(&Registry::default())?;
    let mut builder = Cluster::builder().nodes(NODES);
    for profile in &profiles {
        builder = builder.scheduler(profile.clone());
    }
    let cluster = builder.start().await?;
    cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |account| account.is_some()).await?;
    let ready = |node: Option<&Node>| {
        node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
    };
    for number in 1..=NODES {
        cluster.wait_until("", &format!("node-{number}"), PATIENCE, ready).await?;
    }
    compared(&cluster, &profiles).await?;

    // A pod says by `spec.schedulerName` which profile it is for.
    let packed = placed(&cluster, load("packing")).await?;
    println!("packed: {packed:?}");
    ensure!(packed.values().copied().collect::<Vec<_>>().iter().sum::<usize>() == PODS && packed.len() == 2);
    drained(&cluster, &profiles[1], &packed).await?;
    let spread = placed(&cluster, load("default-scheduler")).await?;
    println!("by default: {spread:?}");
    let free: Vec<_> = spread.keys().filter(|node| !packed.contains_key(*node)).collect();
    ensure!(free.len() == 2, "the two empty nodes are used first");
    let pods = Api::<Pod>::default_namespaced(cluster.client()).list(&ListParams::default()).await?;
    ensure!(pods.items.len() == 2 * PODS);
    cluster.shutdown().await?;
    Ok(())
}
