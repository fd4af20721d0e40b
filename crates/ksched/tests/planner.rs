//! The planner, which keeps what it knows, chooses what a decision from scratch chooses.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Service};
use ksched::{
    NodeInfo, Plan, Planner, PodInfo, Profile, Snapshot,
    build::{node, pod},
    decide_among,
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
