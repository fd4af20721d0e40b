//! A filter that reads a kind of your own: `Reservation`s keep nodes for teams. The scheduler watches the kind because the
//! plug-in asks for it, and pods that were turned away are tried again when a reservation that concerns them changes.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Result, ensure};
use k8s_openapi::{
    api::core::v1::{Node, Pod, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kplane::Cluster;
use ksched::{
    ClusterEvent, Hint, Interest, NodeView, ObjectEvent, PodInfo, Profile, Snapshot, Verdict,
    build::{node, pod},
    decide,
    plugin::{CycleState, FilterPlugin, QueueingHint},
};
use kube::{
    Api, CustomResource, CustomResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Duration;

const PATIENCE: Duration = Duration::from_secs(600);

/// Keeps nodes for the pods of a team, which say so in their label `team`.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(group = "example.com", version = "v1", kind = "Reservation")]
struct ReservationSpec {
    team: String,
    nodes: Vec<String>,
}

/// Pods of a team go to its nodes only, and nobody else's pods go there.
struct Reserved;

impl FilterPlugin for Reserved {
    fn name(&self) -> &str {
        "Reserved"
    }

    /// All reservations are looked at for each node, as there are few. With thousands of them, a `PreFilter` would note
    /// the nodes of the pod's team in the cycle.
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: NodeView<'_>) -> Verdict {
        let reservations = node.snapshot().catalog().list::<Reservation>();
        let of_node = reservations.filter(|it| it.spec.nodes.iter().any(|name| name == node.name()));
        let owners: Vec<&str> = of_node.map(|it| &*it.spec.team).collect();
        match pod.labels.get("team") {
            Some(team) if owners.contains(&team) => Verdict::Pass,
            Some(_) => Verdict::unresolvable("node(s) were not reserved for the team"),
            None if owners.is_empty() => Verdict::Pass,
            None => Verdict::unresolvable("node(s) were reserved for a team"),
        }
    }
}

impl QueueingHint for Reserved {
    fn name(&self) -> &str {
        "Reserved"
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let helps = match event {
            ClusterEvent::Object(object) => match object.of::<Reservation>() {
                Some((old, new)) => concerns(pod, old, new),
                None => false,
            },
            // A node that joins may be reserved already.
            ClusterEvent::NodeAdded(_) | ClusterEvent::TargetUpdated { .. } => true,
            _ => false,
        };
        if helps { Hint::Queue } else { Hint::Skip }
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest::of::<Reservation>()]
    }
}

/// A team is helped by a node that is reserved for it now, everybody else by a node that is not any more.
fn concerns(pod: &PodInfo, old: Option<&Reservation>, new: Option<&Reservation>) -> bool {
    fn nodes(it: Option<&Reservation>) -> &[String] {
        it.map_or(&[], |it| &it.spec.nodes)
    }
    match pod.labels.get("team") {
        Some(team) => {
            new.is_some_and(|new| new.spec.team == team) && old.map(|it| &it.spec) != new.map(|it| &it.spec)
        }
        None => nodes(old).iter().any(|node| !nodes(new).contains(node)),
    }
}

fn reservation(name: &str, team: &str, nodes: &[&str]) -> Reservation {
    let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
    Reservation::new(name, ReservationSpec { team: team.to_owned(), nodes })
}

fn team_pod(name: &str, team: Option<&str>) -> Pod {
    let mut pod = pod(name).image("example/app").object();
    pod.metadata.labels = team.map(|team| BTreeMap::from([("team".to_owned(), team.to_owned())]));
    pod
}

fn profile() -> Result<Profile> {
    Ok(Profile::builder().filter(Arc::new(Reserved)).hint(Arc::new(Reserved)).build()?)
}

/// Without a cluster: the catalog of a snapshot takes objects of any kind.
fn decided() -> Result<()> {
    let mut snapshot = Snapshot::new();
    for name in ["a", "b"] {
        snapshot.set_node(node(name).resource("cpu", "4").resource("memory", "8Gi").info());
    }
    snapshot.catalog_mut().set(Arc::new(reservation("db", "db", &["b"])));
    for (team, expected) in [(None, Some("a")), (Some("db"), Some("b")), (Some("ml"), None)] {
        let decision = decide(&profile()?, &snapshot, &PodInfo::new(team_pod("p", team)));
        println!("team {team:?}: {:?} {}", decision.node(), decision.failure().unwrap_or_default());
        ensure!(decision.node() == expected);
    }
    // What wakes whom, before and after a change.
    let (small, large) = (reservation("db", "db", &["b"]), reservation("db", "db", &["a", "b"]));
    for (team, old, new, expected) in [
        (Some("db"), Some(&small), Some(&large), Hint::Queue),
        (Some("db"), Some(&small), Some(&small), Hint::Skip),
        (Some("ml"), Some(&small), Some(&large), Hint::Skip),
        (None, Some(&small), Some(&large), Hint::Skip),
        (None, Some(&large), Some(&small), Hint::Queue),
        (None, Some(&large), None, Hint::Queue),
    ] {
        let event = ObjectEvent::new(old.cloned().map(Arc::new), new.cloned().map(Arc::new));
        let pod = PodInfo::new(team_pod("p", team));
        ensure!(Reserved.hint(&pod, &ClusterEvent::Object(event)) == expected);
    }
    Ok(())
}

fn condition(pod: Option<&Pod>) -> Option<String> {
    let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.find(|it| it.type_ == "PodScheduled" && it.status == "False")?.message.clone()
}

fn node_of(pod: Option<&Pod>) -> Option<String> {
    pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone())
}

async fn create(cluster: &Cluster, name: &str, team: Option<&str>) -> Result<()> {
    let mut pod = team_pod(name, team);
    pod.metadata.uid = None;
    Api::<Pod>::default_namespaced(cluster.client()).create(&PostParams::default(), &pod).await?;
    Ok(())
}

async fn goes_to(cluster: &Cluster, name: &str, node: &str) -> Result<()> {
    let pod = cluster.wait_until::<Pod>("default", name, PATIENCE, |pod| node_of(pod).is_some()).await?;
    println!("{name} goes to {:?}", node_of(pod.as_deref()));
    ensure!(node_of(pod.as_deref()).as_deref() == Some(node));
    Ok(())
}

async fn is_refused(cluster: &Cluster, name: &str) -> Result<()> {
    let pod = cluster.wait_until::<Pod>("default", name, PATIENCE, |pod| condition(pod).is_some()).await?;
    let why = condition(pod.as_deref()).unwrap_or_default();
    println!("{name}: {why}");
    ensure!(why.contains("reserved"));
    Ok(())
}

async fn start() -> Result<Cluster> {
    let cluster = Cluster::builder().nodes(2).scheduler(profile()?).start().await?;
    cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |account| account.is_some()).await?;
    let ready = |node: Option<&Node>| {
        node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
    };
    for name in ["node-1", "node-2"] {
        cluster.wait_until("", name, PATIENCE, ready).await?;
    }
    Ok(cluster)
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<()> {
    decided()?;
    let cluster = start().await?;
    // There are no reservations, and not even the kind: the scheduler goes on without it.
    create(&cluster, "db", Some("db")).await?;
    is_refused(&cluster, "db").await?;

    let crds = Api::<CustomResourceDefinition>::all(cluster.client());
    crds.create(&PostParams::default(), &Reservation::crd()).await?;
    let established = |crd: Option<&CustomResourceDefinition>| {
        let conditions = crd.and_then(|crd| crd.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|it| it.type_ == "Established" && it.status == "True")
    };
    cluster.wait_until("", "reservations.example.com", PATIENCE, established).await?;
    let reservations = Api::<Reservation>::all(cluster.client());
    reservations.create(&PostParams::default(), &reservation("db", "db", &["node-2"])).await?;
    // The reservation wakes the pod that waits for it.
    goes_to(&cluster, "db", "node-2").await?;
    for name in ["web-0", "web-1", "web-2"] {
        create(&cluster, name, None).await?;
        goes_to(&cluster, name, "node-1").await?;
    }

    // Changed, it wakes another team; and everybody, once it is gone.
    create(&cluster, "ml", Some("ml")).await?;
    is_refused(&cluster, "ml").await?;
    let handed_on = json!({"spec": {"team": "ml", "nodes": ["node-1", "node-2"]}});
    reservations.patch("db", &PatchParams::default(), &Patch::Merge(handed_on)).await?;
    let pod = cluster.wait_until::<Pod>("default", "ml", PATIENCE, |pod| node_of(pod).is_some()).await?;
    println!("ml goes to {:?}", node_of(pod.as_deref()));
    create(&cluster, "web-3", None).await?;
    is_refused(&cluster, "web-3").await?;
    reservations.delete("db", &DeleteParams::default()).await?;
    cluster.wait_until::<Pod>("default", "web-3", PATIENCE, |pod| node_of(pod).is_some()).await?;
    cluster.shutdown().await?;
    Ok(())
}
