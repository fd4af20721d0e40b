//! The planner, which keeps what it knows, chooses what a decision from scratch chooses.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Service};
use ksched::{
    NodeInfo, Plan, Planner, PodInfo, Profile, Snapshot,
    build::{node, pod},
    decide_among,
    plugin::CycleState,
};
use serde_json::{Value, json};

/// Small, fast and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

fn random_node(dice: &mut Dice, name: &str) -> NodeInfo {
    let mut built = node(name)
        .resource("cpu", &(2 + dice.roll(6)).to_string())
        .resource("memory", &format!("{}Gi", 1 + dice.roll(4)))
        .resource("pods", &(2 + dice.roll(8)).to_string())
        .image("web:1", 200_000_000 * i64::try_from(dice.roll(3)).unwrap());
    if dice.roll(8) > 0 {
        built = built.label("zone", ["a", "b", "c"][usize::try_from(dice.roll(3)).unwrap()]);
    }
    if dice.roll(8) > 0 {
        built = built.label("kubernetes.io/hostname", name);
    }
    built = match dice.roll(9) {
        0 => built.taint("k", "v", "NoSchedule"),
        1 => built.taint("k", "v", "PreferNoSchedule"),
        2 => built.unschedulable(),
        _ => built,
    };
    built.info()
}

fn term(color: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"color": color}}, "topologyKey": key})
}

/// The kinds of pods: what they say about nodes and about each other.
fn spec(kind: u64) -> (Value, Value) {
    let host = "kubernetes.io/hostname";
    let spread = |key: &str, otherwise: &str, skew: u32| {
        json!({"topologySpreadConstraints": [{"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": otherwise,
            "labelSelector": {"matchLabels": {"color": "blue"}}}]})
    };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    match kind {
        0 => (json!({}), json!({})),
        1 => (
            json!({"color": "green"}),
            json!({"affinity": {"podAntiAffinity": {required: [term("green", host)]}}}),
        ),
        2 => (
            json!({"color": "blue"}),
            json!({"affinity": {"podAffinity": {required: [term("blue", "zone")]}}}),
        ),
        3 => (
            json!({"color": "red"}),
            json!({"affinity": {"podAffinity": {preferred: [{"weight": 7, "podAffinityTerm": term("red", "zone")}]},
                "podAntiAffinity": {preferred: [{"weight": 3, "podAffinityTerm": term("blue", host)}]}}}),
        ),
        4 => (json!({"color": "blue"}), spread("zone", "DoNotSchedule", 1)),
        5 => (json!({"color": "blue"}), spread(host, "ScheduleAnyway", 2)),
        6 => (json!({"color": "blue"}), spread("zone", "ScheduleAnyway", 1)),
        7 => (
            json!({}),
            json!({"affinity": {"nodeAffinity": {preferred: [{"weight": 5, "preference":
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}}]}},
                "tolerations": [{"operator": "Exists"}]}),
        ),
        8 => (json!({"color": "green"}), json!({"nodeSelector": {"zone": "a"}})),
        // Of a Service, so that the default constraints count.
        9 => (json!({"app": "served"}), json!({})),
        _ => (
            json!({"color": "green"}),
            json!({"affinity": {"podAntiAffinity": {required: [term("red", "zone")]}}}),
        ),
    }
}

fn random_pod(dice: &mut Dice, number: usize) -> Arc<PodInfo> {
    let (labels, spec) = spec(dice.roll(11));
    let mut built = pod(&format!("p{number}")).request("cpu", "300m").image("web:1");
    if dice.roll(9) == 0 {
        built = built.host_port(80);
    }
    let built = built.edit(|pod| {
        pod.metadata.labels = serde_json::from_value(labels).unwrap();
        let mut value = serde_json::to_value(pod.spec.clone().unwrap_or_default()).unwrap();
        for (key, part) in spec.as_object().unwrap() {
            value[key] = part.clone();
        }
        pod.spec = serde_json::from_value(value).unwrap();
    });
    Arc::new(built.info())
}

fn start() -> Snapshot {
    let mut snapshot = Snapshot::new();
    let space: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "default", "labels": {"team": "a"}}})).unwrap();
    snapshot.catalog_mut().set(Arc::new(space));
    let service: Service = serde_json::from_value(
        json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {"selector": {"app": "served"}}}),
    )
    .unwrap();
    snapshot.catalog_mut().set(Arc::new(service));
    snapshot
}

/// A node offers something else, or has other images, or both.
fn resize(dice: &mut Dice, planner: &mut Planner) {
    let names = Arc::clone(planner.snapshot().names());
    let Some(name) = names.get(usize::try_from(dice.roll(12)).unwrap()) else { return };
    let index = planner.snapshot().find(name).unwrap();
    let known = Arc::clone(planner.snapshot().node(index).info());
    let other = random_node(dice, name);
    let mut node = (*known.object).clone();
    let (status, new) = (node.status.get_or_insert_default(), other.object.status.clone().unwrap());
    if dice.roll(3) > 0 {
        status.allocatable = new.allocatable;
    }
    if dice.roll(2) == 0 {
        status.images = new.images;
    }
    planner.set_node(NodeInfo::new(node));
}

/// An object of another kind comes, changes or goes, as when a plug-in books it.
fn change_object(dice: &mut Dice, planner: &mut Planner) {
    let pod = Arc::new(pod("holder").info());
    let (mut cycle, what) = (CycleState::default(), dice.roll(4));
    let label = ["served", "other"][usize::try_from(dice.roll(2)).unwrap()];
    planner.book(&mut cycle, &pod, &"n0".into(), |booking| {
        let catalog = booking.catalog_mut();
        match what {
            0 => {
                let service = json!({"metadata": {"name": "s", "namespace": "default"},
                    "spec": {"selector": {"app": label}}});
                catalog.set::<Service>(Arc::new(serde_json::from_value(service).unwrap()));
            }
            1 => {
                catalog.remove::<Service>("default", "s");
            }
            2 => {
                let space = json!({"metadata": {"name": "default", "labels": {"team": label}}});
                catalog.set::<Namespace>(Arc::new(serde_json::from_value(space).unwrap()));
            }
            _ => {
                let claim = json!({"metadata": {"namespace": "default", "name": label}});
                catalog.set::<PersistentVolumeClaim>(Arc::new(serde_json::from_value(claim).unwrap()));
            }
        }
    });
}

/// Runs one random history; tells how many choices were made from what was kept, and how many from scratch.
fn run(seed: u64) -> (usize, usize) {
    let mut dice = Dice(seed);
    let profile = Profile::default();
    let mut planner = Planner::with_snapshot([profile.clone()].into(), start());
    for number in 0..3 + dice.roll(8) {
        planner.set_node(random_node(&mut dice, &format!("n{number}")));
    }
    let mut placed: Vec<Arc<PodInfo>> = Vec::new();
    let (mut kept, mut anew) = (0, 0);
    for step in 0..150 {
        match dice.roll(24) {
            0 => {
                let name = format!("n{}", dice.roll(12));
                planner.set_node(random_node(&mut dice, &name));
            }
            1 => planner.remove_node(&format!("n{}", dice.roll(12))),
            7 => resize(&mut dice, &mut planner),
            8 => change_object(&mut dice, &mut planner),
            2..6 if !placed.is_empty() => {
                let at = usize::try_from(dice.roll(placed.len() as u64)).unwrap();
                assert!(planner.remove_pod(&placed.swap_remove(at).uid));
            }
            6 if !placed.is_empty() => {
                // One is told to go: it still takes its place, but counts for nobody.
                let at = usize::try_from(dice.roll(placed.len() as u64)).unwrap();
                let (mut going, node) =
                    ((*placed[at]).clone(), planner.snapshot().node_of(&placed[at].uid).unwrap().clone());
                going.deleting = true;
                placed[at] = Arc::new(going);
                planner.place(&placed[at], &node);
            }
            _ => {
                let pod = random_pod(&mut dice, step);
                // Now and then room is being made for somebody.
                let mut nominated = Vec::new();
                for number in 0..dice.roll(6).saturating_sub(3) {
                    let node = format!("n{}", dice.roll(12));
                    nominated
                        .push((random_pod(&mut dice, 1000 + usize::try_from(number).unwrap()), node.into()));
                }
                let plan = planner.plan(0, &pod, &nominated);
                match plan {
                    Plan::Node(_) => kept += 1,
                    Plan::Decision(_) => anew += 1,
                }
                let expected = decide_among(&profile, planner.snapshot(), &pod, &nominated);
                assert_eq!(plan.node(&planner), expected.node(), "seed {seed}, step {step}: {pod:?}");
                if let Some(node) = expected.node() {
                    planner.place(&pod, node);
                    placed.push(pod);
                }
            }
        }
    }
    (kept, anew)
}

#[test]
fn the_choice_is_that_of_a_decision_from_scratch() {
    let (mut kept, mut anew) = (0, 0);
    for seed in 0..150 {
        let counts = run(seed);
        kept += counts.0;
        anew += counts.1;
    }
    // What has no place is decided from scratch, to say why.
    assert!(kept > 0 && anew > 0, "{kept} kept, {anew} anew");
}

/// A claim for one pod only was given to a second one: when the first was planned nobody used it, and that was kept.
#[test]
fn a_claim_for_one_pod_is_not_given_to_the_next() {
    let mut snapshot = Snapshot::new();
    for name in ["a", "b"] {
        snapshot.set_node(node(name).info());
    }
    let volume = json!({"metadata": {"name": "v"}, "spec": {}});
    let volume: k8s_openapi::api::core::v1::PersistentVolume = serde_json::from_value(volume).unwrap();
    snapshot.catalog_mut().set(Arc::new(volume));
    let claim = json!({"metadata": {"namespace": "default", "name": "c",
        "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v", "accessModes": ["ReadWriteOncePod"]}});
    snapshot.catalog_mut().set::<PersistentVolumeClaim>(Arc::new(serde_json::from_value(claim).unwrap()));
    let mut planner = Planner::with_snapshot([Profile::default()].into(), snapshot);
    for (name, expected) in [("first", true), ("second", false)] {
        let volume = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        let volumes = serde_json::from_value(volume).unwrap();
        let pod = Arc::new(pod(name).edit(|pod| pod.spec.get_or_insert_default().volumes = volumes).info());
        let plan = planner.plan(0, &pod, &[]);
        let node = plan.node(&planner).map(str::to_owned);
        assert_eq!(node.is_some(), expected, "{name}: {plan:?}");
        if let Some(node) = node {
            planner.place(&pod, &node);
        }
    }
}

/// Volumes that are still to be chosen take a decision whose notes are kept; no other pod pays for that.
#[test]
fn only_pods_that_have_something_to_book_are_decided_on_from_scratch() {
    let mut planner = Planner::new([Profile::default()].into());
    planner.set_node(node("a").info());
    let with_claim = |name: &str, claim: &str| {
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": claim}});
        let volume = serde_json::from_value(volume).unwrap();
        Arc::new(pod(name).edit(|pod| pod.spec.get_or_insert_default().volumes = Some(vec![volume])).info())
    };
    let mut snapshot = planner.snapshot().clone();
    let catalog = snapshot.catalog_mut();
    let class =
        json!({"metadata": {"name": "net"}, "provisioner": "x", "volumeBindingMode": "WaitForFirstConsumer"});
    catalog
        .set::<k8s_openapi::api::storage::v1::StorageClass>(Arc::new(serde_json::from_value(class).unwrap()));
    let claim =
        json!({"metadata": {"namespace": "default", "name": "open"}, "spec": {"storageClassName": "net"}});
    catalog.set::<PersistentVolumeClaim>(Arc::new(serde_json::from_value(claim).unwrap()));
    let mut planner = Planner::with_snapshot([Profile::default()].into(), snapshot);
    for (pod, quick) in [(Arc::new(pod("plain").info()), true), (with_claim("q", "open"), false)] {
        let plan = planner.plan(0, &pod, &[]);
        assert_eq!(plan.node(&planner), Some("a"));
        assert_eq!(matches!(plan, Plan::Node(_)), quick, "{}", pod.name);
    }
}

/// What was kept used to be void whenever anything was booked or any object changed: with one pod with a volume or a device
/// between two plain ones, every plain one had all nodes asked again.
#[test]
fn what_is_kept_is_void_only_when_it_depends_on_what_has_changed() {
    let mut planner = Planner::with_snapshot([Profile::default()].into(), start());
    for name in ["a", "b", "c"] {
        planner.set_node(node(name).resource("cpu", "4").resource("memory", "8Gi").image("web:1", 1).info());
    }
    let plain = |name: &str| Arc::new(pod(name).request("cpu", "100m").info());
    let choose = |planner: &mut Planner, name: &str| {
        let pod = plain(name);
        let plan = planner.plan(0, &pod, &[]);
        assert!(matches!(plan, Plan::Node(_)));
        let node = plan.node(planner).unwrap().to_owned();
        planner.place(&pod, &node);
        planner.classes_made()
    };
    let book = |planner: &mut Planner, value: &Value| {
        let holder = plain("holder");
        planner.book(&mut CycleState::default(), &holder, &"a".into(), |booking| {
            let (catalog, value) = (booking.catalog_mut(), value.clone());
            match value["kind"].as_str().unwrap() {
                "Service" => catalog.set::<Service>(Arc::new(serde_json::from_value(value).unwrap())),
                _ => catalog.set::<PersistentVolumeClaim>(Arc::new(serde_json::from_value(value).unwrap())),
            }
        });
    };
    let object = |kind: &str| json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}});
    assert_eq!(choose(&mut planner, "p0"), 1);
    assert_eq!(choose(&mut planner, "p1"), 1);
    book(&mut planner, &object("PersistentVolumeClaim"));
    assert_eq!(choose(&mut planner, "p2"), 1, "a pod without volumes does not depend on claims");
    planner.set_node(node("b").resource("cpu", "8").resource("memory", "8Gi").image("db:1", 1).info());
    assert_eq!(choose(&mut planner, "p3"), 1, "that node alone is asked again");
    book(&mut planner, &object("Service"));
    assert_eq!(choose(&mut planner, "p4"), 2, "a Service may have the pod spread");
    planner.set_node(node("b").resource("cpu", "8").resource("memory", "8Gi").label("zone", "z").info());
    assert_eq!(choose(&mut planner, "p5"), 3, "a label may matter to all");
}
