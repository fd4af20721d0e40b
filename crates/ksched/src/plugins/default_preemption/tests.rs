use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use proptest::prelude::*;
use serde_json::json;

use crate::{
    Decision, PodInfo, Profile, Snapshot,
    build::{PodBuilder, node, pod},
    decide, decide_among,
};

/// A pod on a node: its node, name, priority, CPUs and the minute when it started.
type Running = (&'static str, &'static str, i32, u32, u32);

fn running((_, name, priority, cpu, minute): Running) -> PodBuilder {
    pod(name).priority(priority).request("cpu", &cpu.to_string()).edit(|pod| {
        let status = json!({"startTime": format!("2030-01-01T00:{minute:02}:00Z")});
        pod.status = serde_json::from_value(status).unwrap();
        pod.metadata.labels = Some([("app".to_owned(), name[..1].to_owned())].into());
    })
}

fn cluster(nodes: &[&str], cpus: u32, pods: &[Running]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for name in nodes {
        snapshot.set_node(node(name).resource("cpu", &cpus.to_string()).info());
    }
    for &pod in pods {
        snapshot.place(&running(pod).on(pod.0).info().into(), pod.0);
    }
    snapshot
}

fn budget(snapshot: &mut Snapshot, app: &str, allowed: i32, disrupted: &[&str]) {
    let disrupted: serde_json::Map<_, _> =
        disrupted.iter().map(|name| ((*name).to_owned(), json!("2030-01-01T00:00:00Z"))).collect();
    let budget: PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": {"name": app, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"disruptionsAllowed": allowed, "disruptedPods": disrupted, "currentHealthy": 1,
            "desiredHealthy": 1, "expectedPods": 1},
    }))
    .unwrap();
    snapshot.catalog_mut().set(Arc::new(budget));
}

fn outcome(decision: &Decision) -> (Option<&str>, Vec<&str>) {
    (decision.nominated(), decision.victims().iter().map(|victim| &*victim.name).collect())
}

/// The rules of upstream's `pickOneNodeForPreemption` and `SelectVictimsOnNode`, one after the other
/// (`default_preemption_test.go` has cases of each).
#[test]
fn the_fewest_and_least_important_pods_go() {
    let cases: &[(&str, &[Running], &str, &[&str])] = &[
        ("the lowest of the highest priorities", &[("a", "p", 2, 4, 0), ("b", "q", 1, 4, 0)], "b", &["q"]),
        (
            "the smallest sum of priorities",
            &[("a", "p", 2, 2, 0), ("a", "q", 2, 2, 0), ("b", "r", 2, 2, 0), ("b", "s", 1, 2, 0)],
            "b",
            &["r", "s"],
        ),
        (
            "the fewest victims, also of negative priorities",
            &[("a", "p", -5, 2, 0), ("a", "q", -5, 2, 0), ("b", "r", -5, 4, 0)],
            "b",
            &["r"],
        ),
        ("the latest start", &[("a", "p", 1, 4, 7), ("b", "q", 1, 4, 9), ("c", "r", 1, 4, 8)], "b", &["q"]),
        (
            "of one node, who is not needed stays, the most important first",
            &[
                ("a", "p", 1, 1, 0),
                ("a", "q", 2, 1, 0),
                ("a", "r", 0, 1, 0),
                ("a", "s", 1, 1, 1),
                ("b", "t", 9, 4, 0),
            ],
            "a",
            &["p", "s", "r"],
        ),
        ("no one of the same priority", &[("a", "p", 10, 4, 0), ("b", "q", 9, 4, 0)], "b", &["q"]),
    ];
    for (what, pods, node, victims) in cases {
        let snapshot = cluster(&["a", "b", "c"][..if *what == "the latest start" { 3 } else { 2 }], 4, pods);
        let preemptor = pod("x").priority(10).request("cpu", "3").info();
        let decision = decide(&Profile::default(), &snapshot, &preemptor);
        assert_eq!(outcome(&decision), (Some(*node), victims.to_vec()), "{what}");
        assert_eq!(decision.node(), None);
    }
}

#[test]
fn budgets_are_kept_if_that_can_be() {
    let pods = [("a", "p", 1, 4, 0), ("b", "q", 5, 4, 0)];
    for (allowed, disrupted, expected) in
        [(0, &[][..], ("b", "q")), (1, &[][..], ("a", "p")), (0, &["p"][..], ("a", "p"))]
    {
        let mut snapshot = cluster(&["a", "b"], 4, &pods);
        budget(&mut snapshot, "p", allowed, disrupted);
        let decision =
            decide(&Profile::default(), &snapshot, &pod("x").priority(10).request("cpu", "1").info());
        assert_eq!(outcome(&decision), (Some(expected.0), vec![expected.1]), "{allowed} {disrupted:?}");
    }
    // On one node, those go first that no budget protects, even when they are more important.
    let mut snapshot = cluster(&["a"], 2, &[("a", "p", 1, 1, 0), ("a", "q", 5, 1, 0)]);
    budget(&mut snapshot, "p", 0, &[]);
    let decision = decide(&Profile::default(), &snapshot, &pod("x").priority(10).request("cpu", "1").info());
    assert_eq!(outcome(&decision), (Some("a"), vec!["q"]));
}

#[test]
fn where_nothing_helps_it_is_said_why() {
    let preemptor = pod("x").priority(10).request("cpu", "3");
    let mut snapshot =
        cluster(&["a", "b"], 4, &[("a", "p", 10, 4, 0), ("b", "q", 10, 3, 0), ("b", "r", 1, 1, 0)]);
    snapshot.set_node(node("c").resource("cpu", "8").unschedulable().info());
    let text = |decision: Decision| decision.failure().unwrap();
    assert_eq!(
        text(decide(&Profile::default(), &snapshot, &preemptor.clone().info())),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. no new claims to deallocate, \
         preemption: 0/3 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming pod, 1 \
         Preemption is not helpful for scheduling."
    );
    // Room is being made already: the victim has been told to go.
    let victim = running(("a", "v", 1, 4, 0)).on("a").edit(|pod| {
        pod.metadata.deletion_timestamp = serde_json::from_value(json!("2030-01-01T00:00:00Z")).unwrap();
        let condition =
            json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"});
        pod.status.get_or_insert_default().conditions = serde_json::from_value(json!([condition])).unwrap();
    });
    let mut snapshot = cluster(&["a", "b"], 4, &[("b", "p", 1, 4, 0)]);
    snapshot.place(&victim.info().into(), "a");
    let nominated = [(Arc::new(preemptor.clone().info()), "a".into())];
    assert_eq!(
        text(decide_among(&Profile::default(), &snapshot, &preemptor.info(), &nominated)),
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to a \
         terminating pod on the nominated node."
    );
}

#[test]
fn a_nominated_pod_goes_where_room_was_made_and_others_leave_it_to_it() {
    let snapshot = cluster(&["a", "b"], 4, &[("a", "p", 1, 3, 0)]);
    let important: Arc<PodInfo> = pod("x").priority(10).request("cpu", "1").info().into();
    let nominated = [(Arc::clone(&important), "a".into())];
    let decide = |pod: &PodInfo| decide_among(&Profile::default(), &snapshot, pod, &nominated);
    assert_eq!(decide(&important).node(), Some("a"), "though b is emptier");
    let one = |priority| pod("y").priority(priority).request("cpu", "1").info();
    assert_eq!(decide(&one(5)).verdicts().len(), 2);
    let feasible = |pod: &PodInfo| decide(pod).scores("a").count() > 0;
    assert!(!feasible(&one(5)) && !feasible(&one(10)), "the room on a is taken");
    assert!(feasible(&one(11)), "who is more important may take it");
}

/// What is compared: the highest priority, the sum, and how many.
type Harm = (i32, i64, usize);

/// The rule in a few lines: of all sets of victims that make room on a node, found by trying.
fn naive(
    pods: &[(usize, i32, u32)],
    nodes: usize,
    cpus: u32,
    priority: i32,
    wants: u32,
) -> Option<(usize, Vec<usize>)> {
    let mut best: Option<(Harm, usize, Vec<usize>)> = None;
    for node in 0..nodes {
        let mut on_it: Vec<usize> = (0..pods.len()).filter(|&pod| pods[pod].0 == node).collect();
        on_it.sort_by_key(|&pod| (-pods[pod].1, pod));
        let fixed: u32 = on_it.iter().filter(|&&pod| pods[pod].1 >= priority).map(|&pod| pods[pod].2).sum();
        if fixed + wants > cpus {
            continue;
        }
        let (mut used, mut victims) = (fixed, Vec::new());
        for pod in on_it.into_iter().filter(|&pod| pods[pod].1 < priority) {
            if used + pods[pod].2 + wants <= cpus {
                used += pods[pod].2;
            } else {
                victims.push(pod);
            }
        }
        let first = *victims.first()?;
        let sum = victims.iter().map(|&pod| i64::from(pods[pod].1) + (1 << 31)).sum();
        let harm = (pods[first].1, sum, victims.len());
        if best.as_ref().is_none_or(|(known, ..)| harm < *known) {
            best = Some((harm, node, victims));
        }
    }
    best.map(|(_, node, victims)| (node, victims))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn as_the_naive_rule(
        pods in proptest::collection::vec((0..4_usize, 0..4, 1..4_u32), 0..24),
        priority in 0..5,
        wants in 1..8_u32,
    ) {
        const CPUS: u32 = 8;
        let mut snapshot = Snapshot::new();
        for number in 0..4 {
            snapshot.set_node(node(&format!("n{number}")).resource("cpu", &CPUS.to_string()).info());
        }
        let mut left = [CPUS; 4];
        let pods: Vec<_> = pods.into_iter().filter(|(node, _, cpu)| {
            let fits = left[*node] >= *cpu;
            if fits {
                left[*node] -= cpu;
            }
            fits
        }).collect();
        for (number, (node, priority, cpu)) in pods.iter().enumerate() {
            // All start at once, so that the name decides between equals.
            let pod = pod(&format!("p{number:02}")).priority(*priority).request("cpu", &cpu.to_string());
            snapshot.place(&pod.info().into(), &format!("n{node}"));
        }
        let preemptor = pod("x").priority(priority).request("cpu", &wants.to_string()).info();
        let decision = decide(&Profile::default(), &snapshot, &preemptor);
        let fits = left.iter().any(|left| *left >= wants);
        prop_assert_eq!(decision.node().is_some(), fits);
        if fits {
            return Ok(());
        }
        let expected = naive(&pods, 4, CPUS, priority, wants);
        let harm = |victims: &[usize]| {
            let mut priorities: Vec<i32> = victims.iter().map(|&pod| pods[pod].1).collect();
            priorities.sort_unstable();
            priorities
        };
        let seen: Vec<usize> = decision.victims().iter().map(|pod| pod.name[1..].parse().unwrap()).collect();
        prop_assert_eq!(decision.nominated().is_some(), expected.is_some());
        if let Some((_, victims)) = expected {
            prop_assert_eq!(harm(&seen), harm(&victims));
            // Without them it fits there.
            let node = decision.nominated().unwrap().to_owned();
            for victim in decision.victims() {
                snapshot.remove_pod(&victim.uid);
            }
            let nominated = [(Arc::new(preemptor.clone()), node.as_str().into())];
            let decision = decide_among(&Profile::default(), &snapshot, &preemptor, &nominated);
            prop_assert_eq!(decision.node(), Some(&*node));
        }
    }
}
