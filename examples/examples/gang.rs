//! A gang scheduler: the pods of a gang run together or not at all. One plug-in at four points: it counts who has a place,
//! lets pods wait for the others, gives all places back when they don't come in time, and says what is worth another try.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Result, ensure};
use k8s_openapi::{
    api::core::v1::{Node, Pod, ServiceAccount},
    apimachinery::pkg::api::resource::Quantity,
};
use kplane::Cluster;
use ksched::{
    Booking, Catalog, ClusterEvent, Hint, PodInfo, Profile, Rejection, Snapshot, Verdict, WaitingPods,
    build::pod,
    groups::Groups,
    plugin::{CycleState, Permit, PermitVerdict, PreFilter, PreFilterVerdict, QueueingHint, Reserve},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::time::Duration;

/// The gang that a pod is of.
const GANG: &str = "gang.example.com/name";
/// How many pods of the gang must have a place.
const MIN_MEMBER: &str = "gang.example.com/min-member";
/// How long a pod keeps its place for the others; longer than the longest back-off, so that pods that were told to try
/// again meet.
const WAIT_MAX: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(600);

struct Gang;

/// How many other pods of the gang had a place when the decision began.
struct Placed(usize);

fn same_gang(a: &PodInfo, b: &PodInfo) -> bool {
    a.namespace == b.namespace && a.labels.get(GANG).is_some() && a.labels.get(GANG) == b.labels.get(GANG)
}

/// `None` for pods that are of no gang.
fn min_member(pod: &PodInfo) -> Option<usize> {
    pod.labels.get(GANG)?;
    pod.labels.get(MIN_MEMBER)?.parse().ok()
}

impl PreFilter for Gang {
    fn name(&self) -> &str {
        "Gang"
    }

    /// Those that wait for a permission have a place in the snapshot, like those that run.
    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilterVerdict {
        if min_member(pod).is_none() {
            return PreFilterVerdict::Skip;
        }
        let pods = snapshot.nodes().flat_map(|node| node.pods());
        cycle.put(Placed(pods.filter(|other| same_gang(pod, other)).count()));
        PreFilterVerdict::Pass
    }
}

impl Permit for Gang {
    fn name(&self) -> &str {
        "Gang"
    }

    fn concerns(&self, pod: &PodInfo, _: &Catalog) -> bool {
        min_member(pod).is_some()
    }

    fn permit(&self, booking: &mut Booking<'_>, waiting: &WaitingPods, _: &Groups) -> PermitVerdict {
        let (pod, cycle) = (booking.pod, &mut booking.cycle);
        let Some(needed) = min_member(pod) else { return PermitVerdict::Allow };
        let placed = cycle.get::<Placed>().map_or(0, |placed| placed.0) + 1;
        if placed < needed {
            // For `unreserve`, should the others not come.
            cycle.put(waiting.clone());
            return PermitVerdict::Wait(WAIT_MAX);
        }
        for (other, _) in waiting.list().iter().filter(|(other, _)| same_gang(pod, other)) {
            waiting.allow(&other.uid, "Gang");
        }
        PermitVerdict::Allow
    }
}

impl Reserve for Gang {
    fn name(&self) -> &str {
        "Gang"
    }

    fn concerns(&self, pod: &PodInfo, _: &Catalog) -> bool {
        min_member(pod).is_some()
    }

    fn reserve(&self, _: &mut Booking<'_>) -> Verdict {
        Verdict::Pass
    }

    /// One did not get there: the others need not wait any longer, and must not keep their places from other gangs.
    fn unreserve(&self, booking: &mut Booking<'_>) {
        let Some(waiting) = booking.cycle.get::<WaitingPods>() else { return };
        for (other, _) in waiting.list().iter().filter(|(other, _)| same_gang(booking.pod, other)) {
            let why = Rejection::unschedulable("a pod of the gang found no place in time");
            waiting.reject(&other.uid, "Gang", why);
        }
    }
}

impl QueueingHint for Gang {
    fn name(&self) -> &str {
        "Gang"
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let helps = match event {
            ClusterEvent::PodAdded(other) | ClusterEvent::PodAssigned(other) => same_gang(pod, other),
            // The places that the gang itself gives back are of no use: it had them.
            ClusterEvent::PodGone(other) => !same_gang(pod, other),
            ClusterEvent::NodeAdded(_)
            | ClusterEvent::NodeUpdated { .. }
            | ClusterEvent::PodUpdated { .. }
            | ClusterEvent::TargetUpdated { .. } => true,
            _ => false,
        };
        if helps { Hint::Queue } else { Hint::Skip }
    }

    fn wants_new_pod(&self, pod: &PodInfo) -> bool {
        min_member(pod).is_some()
    }
}

fn profile() -> Result<Profile> {
    let gang = Arc::new(Gang);
    let profile = Profile::builder().pre_filter(Arc::clone(&gang) as _).reserve(Arc::clone(&gang) as _);
    Ok(profile.permit(Arc::clone(&gang) as _).hint(gang).build()?)
}

async fn create(cluster: &Cluster, name: &str, cpu: &str, gang: Option<(&str, usize)>) -> Result<()> {
    let mut object = pod(name).request("cpu", cpu).image("example/worker").object();
    object.metadata.uid = None;
    object.metadata.labels = gang.map(|(gang, members)| {
        BTreeMap::from([(GANG.to_owned(), gang.to_owned()), (MIN_MEMBER.to_owned(), members.to_string())])
    });
    Api::<Pod>::default_namespaced(cluster.client()).create(&PostParams::default(), &object).await?;
    Ok(())
}

fn has_node(pod: Option<&Pod>) -> bool {
    pod.and_then(|pod| pod.spec.as_ref()).is_some_and(|spec| spec.node_name.is_some())
}

/// Waits until the scheduler says of a pod that it has no place, and gives its reason.
async fn refused(cluster: &Cluster, name: &str) -> Result<String> {
    let why = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.clone()).unwrap_or_default();
        let mut conditions = conditions.into_iter();
        conditions.find(|it| it.type_ == "PodScheduled" && it.status == "False").and_then(|it| it.message)
    };
    let pod = cluster.wait_until::<Pod>("default", name, PATIENCE, |pod| why(pod).is_some()).await?;
    Ok(why(pod.as_deref()).unwrap_or_default())
}

async fn running(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = Api::<Pod>::default_namespaced(cluster.client()).list(&ListParams::default()).await?;
    Ok(pods.items.into_iter().filter(|pod| has_node(Some(pod))).filter_map(|pod| pod.metadata.name).collect())
}

// With the clock paused, the half minutes of waiting pass in no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<()> {
    // Four cores in all.
    let cluster = Cluster::builder()
        .nodes(2)
        .configure_node(|node| {
            node.capacity.insert("cpu".to_owned(), Quantity("2".to_owned()));
        })
        .scheduler(profile()?)
        .start()
        .await?;
    cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |account| account.is_some()).await?;
    let ready = |node: Option<&Node>| {
        node.is_some_and(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none()))
    };
    for name in ["node-1", "node-2"] {
        cluster.wait_until("", name, PATIENCE, ready).await?;
    }

    // Two of three: there is room for them, but they do not run.
    for name in ["train-0", "train-1"] {
        create(&cluster, name, "1", Some(("train", 3))).await?;
    }
    for name in ["train-0", "train-1"] {
        println!("{name}: {}", refused(&cluster, name).await?);
    }
    ensure!(running(&cluster).await?.is_empty());

    // They have given their places back: a pod that needs a whole node has one.
    create(&cluster, "alone", "2", None).await?;
    cluster.wait_until::<Pod>("default", "alone", PATIENCE, has_node).await?;

    // The third comes, and wakes the two; but there is room for two only, so none runs.
    create(&cluster, "train-2", "1", Some(("train", 3))).await?;
    println!("train-2: {}", refused(&cluster, "train-2").await?);
    let names = running(&cluster).await?;
    println!("running: {names:?}");
    ensure!(names == ["alone"]);

    // There is room for all: all run.
    let api: Api<Pod> = Api::default_namespaced(cluster.client());
    api.delete("alone", &DeleteParams::default()).await?;
    for name in ["train-0", "train-1", "train-2"] {
        cluster.wait_until::<Pod>("default", name, PATIENCE, has_node).await?;
    }
    // One is lost and made anew: the others run, so it need not wait.
    api.delete("train-1", &DeleteParams::default()).await?;
    cluster.wait_until::<Pod>("default", "train-1", PATIENCE, |pod| pod.is_none()).await?;
    create(&cluster, "train-1", "1", Some(("train", 3))).await?;
    cluster.wait_until::<Pod>("default", "train-1", PATIENCE, has_node).await?;
    println!("running: {:?}", running(&cluster).await?);
    cluster.shutdown().await?;
    Ok(())
}
