//! The framework for something that is not a pod: replicas of database shards onto machines. No cluster, no API server: what
//! is to be placed is described as a pod, what it goes to as a node, and the program carries the decisions out itself.
//!
//! The types keep the words of Kubernetes, because its plug-ins read them: requests, labels, taints and affinities mean the
//! same here. What they have no word for goes into labels, annotations and resources with names of one's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use ksched::{
    NodeView, PodInfo, Profile, Snapshot, Verdict,
    build::{node, pod},
    decide,
    plugin::{CycleState, FilterPlugin},
    plugins::{NodeResourcesFit, NodeUnschedulable, ScoringStrategy},
    profile::ProfileBuilder,
    what_if,
};

/// What the machines have, and the shards need, in names of our own: any name with a domain will do.
const DISK_GB: &str = "db.example.com/disk-gb";
const IOPS: &str = "db.example.com/iops";
const SHARDS: u32 = 100;
const REPLICAS: u32 = 3;
const MACHINES: u32 = 20;
const RACKS: u32 = 5;

/// One copy of a shard.
#[derive(Clone, Copy)]
struct Replica {
    shard: u32,
    number: u32,
    disk_gb: u32,
    iops: u32,
}

impl Replica {
    /// The replica as the framework sees it.
    fn info(self) -> Arc<PodInfo> {
        let replica = pod(&format!("shard-{}-{}", self.shard, self.number))
            .request(DISK_GB, &self.disk_gb.to_string())
            .request(IOPS, &self.iops.to_string())
            // The first copies come first, should there not be room for all.
            .priority(-i32::try_from(self.number).unwrap_or(i32::MAX))
            .edit(|pod| {
                let labels = BTreeMap::from([("shard".to_owned(), self.shard.to_string())]);
                pod.metadata.labels = Some(labels);
            });
        Arc::new(replica.info())
    }
}

/// No two copies of a shard on one rack.
struct OnePerRack;

impl FilterPlugin for OnePerRack {
    fn name(&self) -> &str {
        "OnePerRack"
    }

    fn filter(&self, _: &CycleState, replica: &PodInfo, machine: NodeView<'_>) -> Verdict {
        let rack = machine.info().labels.get("rack");
        let shard = replica.labels.get("shard");
        let mut neighbours =
            machine.snapshot().nodes().filter(|other| other.info().labels.get("rack") == rack);
        if neighbours.any(|other| other.pods().iter().any(|copy| copy.labels.get("shard") == shard)) {
            return Verdict::unschedulable("machine(s) had a copy on their rack");
        }
        Verdict::Pass
    }
}

/// Only what has a meaning for shards: nothing of containers, volumes or images.
fn profile() -> Result<Profile> {
    let room = NodeResourcesFit::new(ScoringStrategy::LeastAllocated, [(DISK_GB, 1), (IOPS, 3)]);
    let room = Arc::new(room);
    let profile = ProfileBuilder::empty()
        .filter(Arc::new(NodeUnschedulable))
        .filter(Arc::clone(&room) as _)
        .score(room, 1)
        .filter(Arc::new(OnePerRack));
    Ok(profile.build()?)
}

fn machines() -> Snapshot {
    let mut machines = Snapshot::new();
    for number in 0..MACHINES {
        let machine = node(&format!("machine-{number}"))
            .resource(DISK_GB, "2000")
            .resource(IOPS, "50000")
            .label("rack", &format!("rack-{}", number % RACKS));
        machines.set_node(machine.info());
    }
    machines
}

fn replicas() -> Vec<Arc<PodInfo>> {
    let shards = (0..SHARDS).flat_map(|shard| {
        let (disk_gb, iops) = (50 + shard % 7 * 10, 500 + shard % 3 * 1000);
        (0..REPLICAS).map(move |number| Replica { shard, number, disk_gb, iops }.info())
    });
    shards.collect()
}

/// On how many racks each shard is.
fn racks(machines: &Snapshot) -> BTreeMap<String, usize> {
    let mut racks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for machine in machines.nodes() {
        for copy in machine.pods() {
            let shard = copy.labels.get("shard").unwrap_or_default().to_owned();
            let rack = machine.info().labels.get("rack").unwrap_or_default().to_owned();
            racks.entry(shard).or_default().insert(rack);
        }
    }
    racks.into_iter().map(|(shard, racks)| (shard, racks.len())).collect()
}

fn main() -> Result<()> {
    let profile = profile()?;
    let placed = what_if::place(&profile, &machines(), &replicas());
    let copies: Vec<usize> = placed.snapshot.nodes().map(|machine| machine.pods().len()).collect();
    println!("copies per machine: {copies:?}");
    ensure!(placed.unplaced.is_empty() && placed.placed.len() == (SHARDS * REPLICAS) as usize);
    let racks_used = racks(&placed.snapshot);
    ensure!(racks_used.len() == SHARDS as usize && racks_used.values().all(|racks| *racks == 3));
    let (least, most) = (copies.iter().min().context("machines")?, copies.iter().max().context("machines")?);
    ensure!(most - least <= 6, "the load is even");

    // A machine has to be repaired: where do its copies go? Only asked; to carry it out is the program's part.
    let moves = what_if::drain(&profile, &placed.snapshot, "machine-7");
    for (copy, machine) in moves.placed.iter().take(3) {
        println!("{} moves to {machine}", copy.name);
    }
    ensure!(moves.unplaced.is_empty() && moves.placed.len() == copies_on(&placed.snapshot, "machine-7"));
    ensure!(racks(&moves.snapshot).values().all(|racks| *racks == 3));

    // A sixth copy has no rack left, and is told so.
    let mut state = moves.snapshot.clone();
    for number in REPLICAS..=RACKS {
        let copy = Replica { shard: 0, number, disk_gb: 50, iops: 500 }.info();
        let decision = decide(&profile, &state, &copy);
        match decision.node() {
            Some(machine) => state.place(&copy, machine),
            None => {
                println!("copy {}: {}", number + 1, decision.failure().unwrap_or_default());
                ensure!(number == RACKS);
            }
        }
    }
    ensure!(racks(&state).get("0") == Some(&(RACKS as usize)));
    Ok(())
}

fn copies_on(machines: &Snapshot, name: &str) -> usize {
    machines.find(name).map_or(0, |index| machines.node(index).pods().len())
}
