//! The rules about volumes that are there, against a naive reference: which pods may use one disk together ("Volumes", access modes), in
//! which zones a volume is, and how many a node takes ("Node-specific Volume Limits"). Which volume a claim gets is compared in
//! the tests of `VolumeBinding`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::CSINode,
};
use ksched::{NodeVerdict, PodInfo, Profile, Snapshot, build::node, decide};
use serde_json::{Value, from_value, json};

const SEEDS: u64 = 3_000;
const VOLUMES: u64 = 6;

/// SplitMix64: the same numbers for the same seed everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % bound
    }

    fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    /// A volume of a CSI driver in a zone, or in several, or anywhere; and whether one pod only may use it.
    fn volume(&mut self, number: u64) -> (Value, bool) {
        let mut labels = json!({});
        if self.one_in(2) {
            labels["topology.kubernetes.io/zone"] = json!(self.pick(&["x", "y", "x__y"]));
        }
        if self.one_in(4) {
            labels["failure-domain.beta.kubernetes.io/zone"] = json!(self.pick(&["x", "y"]));
        }
        let csi = json!({"driver": self.pick(&["fast", "slow"]), "volumeHandle": format!("h{number}")});
        (
            json!({"metadata": {"name": format!("v{number}"), "labels": labels}, "spec": {"csi": csi}}),
            self.one_in(4),
        )
    }

    fn pod(&mut self, name: &str) -> Value {
        let mut volumes = Vec::new();
        for number in 0..self.below(4) {
            let name = format!("m{number}");
            let read_only = self.one_in(2);
            let disk = self.pick(&["one", "two"]).to_owned();
            volumes.push(match self.below(9) {
                0 => json!({"name": name, "gcePersistentDisk": {"pdName": disk, "readOnly": read_only}}),
                1 => json!({"name": name, "awsElasticBlockStore": {"volumeID": disk, "readOnly": read_only}}),
                2 => json!({"name": name, "iscsi": {"iqn": disk, "lun": 0, "targetPortal": "t", "readOnly": read_only}}),
                3 => {
                    let mut monitors = vec![self.pick(&["m1", "m2"])];
                    if self.one_in(2) {
                        monitors.push("m3");
                    }
                    json!({"name": name, "rbd": {"monitors": monitors, "image": disk, "readOnly": read_only}})
                }
                _ => json!({"name": name,
                    "persistentVolumeClaim": {"claimName": format!("c{}", self.below(VOLUMES))}}),
            });
        }
        json!({"metadata": {"name": name, "uid": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c"}], "volumes": volumes}})
    }
}

struct World {
    /// The volumes by the names of their claims, and whether one pod only may use each.
    volumes: BTreeMap<String, (Value, bool)>,
    /// The zone of each node, if it has one, and how many volumes of each driver it takes.
    nodes: Vec<(Option<&'static str>, BTreeMap<&'static str, usize>)>,
    pods: Vec<Vec<Value>>,
}

fn mounts(pod: &Value) -> &[Value] {
    pod["spec"]["volumes"].as_array().map_or(&[], Vec::as_slice)
}

fn claims(pod: &Value) -> Vec<&str> {
    mounts(pod).iter().filter_map(|mount| mount["persistentVolumeClaim"]["claimName"].as_str()).collect()
}

/// Whether two pods can't both use what they mount.
fn conflict(one: &Value, other: &Value) -> bool {
    let same = |kind: &str, key: &str| {
        !one[kind].is_null() && !other[kind].is_null() && one[kind][key] == other[kind][key]
    };
    let writes = |kind: &str| one[kind]["readOnly"] != json!(true) || other[kind]["readOnly"] != json!(true);
    let monitors = |mount: &Value| mount["rbd"]["monitors"].as_array().cloned().unwrap_or_default();
    same("gcePersistentDisk", "pdName") && writes("gcePersistentDisk")
        || same("awsElasticBlockStore", "volumeID")
        || same("iscsi", "iqn") && writes("iscsi")
        || same("rbd", "image")
            && writes("rbd")
            && monitors(one).iter().any(|name| monitors(other).contains(name))
}

/// Claims for one pod that another pod has, wherever it is.
fn is_taken(world: &World, pod: &Value) -> bool {
    let used: BTreeSet<&str> = world.pods.iter().flatten().flat_map(claims).collect();
    claims(pod).iter().any(|claim| world.volumes[*claim].1 && used.contains(claim))
}

fn disks_are_free(pod: &Value, others: &[Value]) -> bool {
    let mut theirs = others.iter().flat_map(mounts);
    theirs.all(|other| mounts(pod).iter().all(|mount| !conflict(mount, other)))
}

/// The volumes of CSI drivers, each once.
fn attached(world: &World, pods: &[&Value]) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = pods.iter().flat_map(|pod| claims(pod)).map(|claim| &world.volumes[claim].0["spec"]["csi"]);
    all.map(|csi| (text(&csi["driver"]), text(&csi["volumeHandle"]))).collect()
}

fn has_slots(world: &World, pod: &Value, at: usize) -> bool {
    let limits = &world.nodes[at].1;
    let there = attached(world, &world.pods[at].iter().collect::<Vec<_>>());
    let new: BTreeSet<_> = attached(world, &[pod]).difference(&there).cloned().collect();
    new.iter().all(|(driver, _)| {
        let count = |all: &BTreeSet<(String, String)>| all.iter().filter(|(its, _)| its == driver).count();
        limits.get(&**driver).is_none_or(|limit| count(&there) + count(&new) <= *limit)
    })
}

fn zone_allows(world: &World, pod: &Value, at: usize) -> bool {
    let Some(zone) = world.nodes[at].0 else { return true };
    claims(pod).iter().all(|claim| {
        let labels = world.volumes[*claim].0["metadata"]["labels"].as_object().unwrap();
        labels.values().all(|zones| zones.as_str().unwrap().split("__").any(|one| one == zone))
    })
}

fn rejected_by(world: &World, pod: &Value, at: usize) -> Option<&'static str> {
    if !disks_are_free(pod, &world.pods[at]) || is_taken(world, pod) {
        Some("VolumeRestrictions")
    } else if !has_slots(world, pod, at) {
        Some("NodeVolumeLimits")
    } else if !zone_allows(world, pod, at) {
        Some("VolumeZone")
    } else {
        None
    }
}

fn info(pod: &Value) -> Arc<PodInfo> {
    Arc::new(PodInfo::new(from_value::<Pod>(pod.clone()).unwrap()))
}

fn world(random: &mut Random) -> (World, Snapshot) {
    let mut snapshot = Snapshot::new();
    let mut volumes = BTreeMap::new();
    for number in 0..VOLUMES {
        let (volume, alone) = random.volume(number);
        let mode = if alone { "ReadWriteOncePod" } else { "ReadWriteMany" };
        let claim = json!({"metadata": {"name": format!("c{number}"), "namespace": "default",
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": format!("v{number}"), "accessModes": [mode]}});
        let catalog = snapshot.catalog_mut();
        catalog.set(Arc::new(from_value::<PersistentVolume>(volume.clone()).unwrap()));
        catalog.set(Arc::new(from_value::<PersistentVolumeClaim>(claim).unwrap()));
        volumes.insert(format!("c{number}"), (volume, alone));
    }
    let mut nodes = Vec::new();
    for number in 0..1 + random.below(5) {
        let zone = [None, Some("x"), Some("y")][usize::try_from(random.below(3)).unwrap()];
        let name = format!("n{number}");
        let built = node(&name).resource("pods", "100");
        snapshot.set_node(
            zone.map_or(built.clone(), |zone| built.label("topology.kubernetes.io/zone", zone)).info(),
        );
        let mut limits = BTreeMap::new();
        for driver in ["fast", "slow"] {
            if random.one_in(2) {
                limits.insert(driver, usize::try_from(1 + random.below(3)).unwrap());
            }
        }
        let drivers: Vec<_> = limits
            .iter()
            .map(|(driver, count)| json!({"name": driver, "nodeID": name, "allocatable": {"count": count}}))
            .collect();
        let drivers = json!({"metadata": {"name": name}, "spec": {"drivers": drivers}});
        snapshot.catalog_mut().set(Arc::new(from_value::<CSINode>(drivers).unwrap()));
        nodes.push((zone, limits));
    }
    let mut pods = vec![Vec::new(); nodes.len()];
    for number in 0..random.below(6) {
        let (pod, on) = (random.pod(&format!("p{number}")), random.below(nodes.len() as u64));
        snapshot.place(&info(&pod), &format!("n{on}"));
        pods[usize::try_from(on).unwrap()].push(pod);
    }
    (World { volumes, nodes, pods }, snapshot)
}

#[test]
fn rules_about_volumes_are_as_the_reference_says() {
    let mut said: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let (world, snapshot) = world(&mut random);
        let pod = random.pod("incoming");
        let decision = decide(&Profile::default(), &snapshot, &info(&pod));
        for (at, (name, verdict)) in decision.verdicts().into_iter().enumerate() {
            let expected = rejected_by(&world, &pod, at);
            *said.entry(expected.unwrap_or("none")).or_default() += 1;
            let found = match verdict {
                NodeVerdict::Feasible(_) => None,
                NodeVerdict::Rejected { plugin, .. } => Some(plugin),
                NodeVerdict::NotAsked => Some("not asked"),
            };
            assert_eq!(found, expected, "seed {seed}: {name}: {pod}\n{:?}", world.pods);
        }
    }
    for plugin in ["VolumeRestrictions", "NodeVolumeLimits", "VolumeZone", "none"] {
        assert!(said.get(plugin).is_some_and(|count| *count > 200), "{plugin}: nothing is tested: {said:?}");
    }
}
