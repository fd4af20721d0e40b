//! The rules that look at one node at a time, against a naive reference: each as Kubernetes documents it ("Taints and Tolerations",
//! "Assigning Pods to Nodes", "Resource Management for Pods and Containers", "Resource Bin Packing") and as the scores of
//! `pkg/scheduler/framework/plugins` are computed, answered from the objects' JSON.

use std::{collections::BTreeMap, sync::Arc};

use ksched::{
    Decision, NodeInfo, NodeVerdict, PodInfo, Profile, Snapshot, decide,
    plugins::{NodeResourcesFit, ScoringStrategy},
};
use serde_json::{Value, json};

const SEEDS: u64 = 4_000;

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

    fn node(&mut self, name: &str) -> Value {
        let mut labels = json!({"kubernetes.io/hostname": name, "size": self.below(5).to_string()});
        if !self.one_in(4) {
            labels["zone"] = json!(self.pick(&["x", "y"]));
        }
        let taints: Vec<_> = (0..self.below(3).saturating_sub(1))
            .map(|_| {
                let effect = self.pick(&["NoSchedule", "NoExecute", "PreferNoSchedule", "PreferNoSchedule"]);
                json!({"key": self.pick(&["k", "l"]), "value": self.pick(&["", "v"]), "effect": effect})
            })
            .collect();
        let mut allocatable = json!({
            "cpu": format!("{}m", 500 * (2 + self.below(8))),
            "memory": format!("{}Mi", 512 * (1 + self.below(8))),
            "pods": (1 + self.below(6)).to_string(),
        });
        if self.one_in(2) {
            allocatable["example.com/gpu"] = json!(self.below(4).to_string());
        }
        let images: Vec<_> = ["web:1", "db:1"]
            .into_iter()
            .filter(|_| self.one_in(2))
            .map(|name| json!({"names": [format!("docker.io/library/{name}"), name]}))
            .collect();
        let images: Vec<_> = images
            .into_iter()
            .map(|mut image| {
                image["sizeBytes"] = json!(100_000_000 * (1 + self.below(8)));
                image
            })
            .collect();
        json!({"metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints, "unschedulable": self.one_in(9)},
            "status": {"allocatable": allocatable, "images": images}})
    }

    fn container(&mut self, name: &str) -> Value {
        let mut requests = json!({});
        if self.one_in(2) {
            requests["cpu"] = json!(format!("{}m", 100 * (1 + self.below(8))));
        }
        if self.one_in(2) {
            requests["memory"] = json!(format!("{}Mi", 64 * (1 + self.below(8))));
        }
        if self.one_in(5) {
            let gpus = json!((1 + self.below(2)).to_string());
            requests["example.com/gpu"] = gpus;
        }
        json!({"name": name, "image": self.pick(&["web:1", "db:1", "job:1"]), "resources": {"requests": requests}})
    }

    fn expression(&mut self) -> Value {
        match self.below(6) {
            0 => json!({"key": "zone", "operator": "In", "values": [self.pick(&["x", "y", "z"])]}),
            1 => json!({"key": "zone", "operator": "NotIn", "values": [self.pick(&["x", "y", "z"])]}),
            2 => json!({"key": "zone", "operator": "Exists"}),
            3 => json!({"key": "zone", "operator": "DoesNotExist"}),
            4 => json!({"key": "size", "operator": "Gt", "values": [self.below(4).to_string()]}),
            _ => json!({"key": "size", "operator": "Lt", "values": [(1 + self.below(4)).to_string()]}),
        }
    }

    fn term(&mut self) -> Value {
        let mut term =
            json!({"matchExpressions": (0..self.below(3)).map(|_| self.expression()).collect::<Vec<_>>()});
        if self.one_in(4) {
            let operator = self.pick(&["In", "NotIn"]);
            term["matchFields"] = json!([
                {"key": "metadata.name", "operator": operator, "values": [format!("n{}", self.below(5))]}]);
        }
        term
    }

    fn pod(&mut self, name: &str) -> Value {
        let mut containers: Vec<_> =
            (0..=self.below(2)).map(|number| self.container(&format!("c{number}"))).collect();
        if self.one_in(3) {
            let mut port = json!({"containerPort": 80, "hostPort": 8000 + self.below(2)});
            if self.one_in(3) {
                port["hostIP"] = json!(self.pick(&["0.0.0.0", "10.0.0.1", "10.0.0.2"]));
            }
            if self.one_in(3) {
                port["protocol"] = json!(self.pick(&["TCP", "UDP"]));
            }
            containers[0]["ports"] = json!([port]);
        }
        let init: Vec<_> = (0..self.below(3))
            .map(|number| {
                let mut container = self.container(&format!("i{number}"));
                if self.one_in(3) {
                    container["restartPolicy"] = json!("Always");
                }
                container
            })
            .collect();
        let tolerations: Vec<_> = (0..self.below(3))
            .map(|_| {
                let operator = self.pick(&["Equal", "Exists", ""]);
                let key =
                    if operator == "Exists" { self.pick(&["k", "l", ""]) } else { self.pick(&["k", "l"]) };
                let value = if operator == "Exists" { "" } else { self.pick(&["", "v"]) };
                let effect = self.pick(&["", "NoSchedule", "NoExecute", "PreferNoSchedule"]);
                json!({"key": key, "operator": operator, "value": value, "effect": effect})
            })
            .collect();
        let mut spec = json!({"containers": containers, "initContainers": init, "tolerations": tolerations});
        if self.one_in(4) {
            spec["overhead"] = json!({"cpu": "50m", "memory": "16Mi"});
        }
        if self.one_in(4) {
            spec["nodeSelector"] = json!({"zone": self.pick(&["x", "y"])});
        }
        let mut affinity = json!({});
        if self.one_in(3) {
            let terms: Vec<_> = (0..=self.below(2)).map(|_| self.term()).collect();
            affinity[REQUIRED] = json!({"nodeSelectorTerms": terms});
        }
        if self.one_in(2) {
            let terms: Vec<_> = (0..=self.below(2))
                .map(|_| json!({"weight": 1 + self.below(50), "preference": {"matchExpressions": [self.expression()]}}))
                .collect();
            affinity[PREFERRED] = json!(terms);
        }
        spec["affinity"] = json!({"nodeAffinity": affinity});
        json!({"metadata": {"name": name, "uid": name, "namespace": "default"}, "spec": spec})
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const RESOURCES: [&str; 3] = ["cpu", "memory", "example.com/gpu"];

/// The nodes with the pods that are there.
struct World {
    nodes: Vec<Value>,
    pods: Vec<Vec<Value>>,
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An amount as these tests write them: CPU in thousandths, the rest in units.
fn amount(value: &Value) -> Option<i64> {
    let written = value.as_str()?;
    if let Some(mebibytes) = written.strip_suffix("Mi") {
        return Some(mebibytes.parse::<i64>().unwrap() * 1024 * 1024);
    }
    Some(written.trim_end_matches('m').parse().unwrap())
}

/// What a pod asks for; containers that say nothing ask for `otherwise`.
fn requests(pod: &Value, resource: &str, otherwise: i64) -> i64 {
    let of = |container: &Value| amount(&container["resources"]["requests"][resource]).unwrap_or(otherwise);
    let mut running: i64 = list(&pod["spec"]["containers"]).iter().map(of).sum();
    let (mut sidecars, mut starting) = (0, 0);
    for container in list(&pod["spec"]["initContainers"]) {
        if text(&container["restartPolicy"]) == "Always" {
            running += of(container);
            sidecars += of(container);
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars + of(container));
        }
    }
    running.max(starting) + amount(&pod["spec"]["overhead"][resource]).unwrap_or_default()
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let (effect, key) = (text(&toleration["effect"]), text(&toleration["key"]));
    (effect.is_empty() || effect == text(&taint["effect"]))
        && (key.is_empty() || key == text(&taint["key"]))
        && (text(&toleration["operator"]) == "Exists" || text(&toleration["value"]) == text(&taint["value"]))
}

fn is_tolerated(pod: &Value, taint: &Value) -> bool {
    list(&pod["spec"]["tolerations"]).iter().any(|toleration| tolerates(toleration, taint))
}

fn matches(expression: &Value, there: Option<&str>) -> bool {
    let values = list(&expression["values"]);
    let number = |value: &str| value.parse::<i64>().unwrap();
    match text(&expression["operator"]) {
        "In" => values.iter().any(|value| value.as_str() == there),
        "NotIn" => values.iter().all(|value| value.as_str() != there),
        "Exists" => there.is_some(),
        "DoesNotExist" => there.is_none(),
        "Gt" => there.is_some_and(|there| number(there) > number(text(&values[0]))),
        "Lt" => there.is_some_and(|there| number(there) < number(text(&values[0]))),
        other => unreachable!("{other}"),
    }
}

/// Whether a node is what a term means; one without requirements means no node.
fn term_matches(term: &Value, node: &Value) -> bool {
    let (labels, fields) = (list(&term["matchExpressions"]), list(&term["matchFields"]));
    let label = |expression: &Value| node["metadata"]["labels"][text(&expression["key"])].as_str();
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|expression| matches(expression, label(expression)))
        && fields.iter().all(|expression| matches(expression, node["metadata"]["name"].as_str()))
}

fn affinity_allows(pod: &Value, node: &Value) -> bool {
    let selector = pod["spec"]["nodeSelector"].as_object().into_iter().flatten();
    let required = &pod["spec"]["affinity"]["nodeAffinity"][REQUIRED];
    selector.into_iter().all(|(key, value)| node["metadata"]["labels"][key] == *value)
        && (required.is_null()
            || list(&required["nodeSelectorTerms"]).iter().any(|term| term_matches(term, node)))
}

/// Address, protocol and number of each port that a pod takes of its node.
fn ports(pod: &Value) -> Vec<(String, String, i64)> {
    let or = |value: &Value, otherwise: &str| value.as_str().unwrap_or(otherwise).to_owned();
    let all = list(&pod["spec"]["containers"]).iter().flat_map(|container| list(&container["ports"]));
    all.map(|port| {
        (or(&port["hostIP"], "0.0.0.0"), or(&port["protocol"], "TCP"), port["hostPort"].as_i64().unwrap())
    })
    .collect()
}

fn ports_are_free(pod: &Value, others: &[Value]) -> bool {
    let any = "0.0.0.0";
    let taken: Vec<_> = others.iter().flat_map(ports).collect();
    !ports(pod).iter().any(|(address, protocol, port)| {
        taken.iter().any(|(other, its_protocol, its_port)| {
            (address == other || address == any || other == any)
                && protocol == its_protocol
                && port == its_port
        })
    })
}

fn allocatable(node: &Value, resource: &str) -> i64 {
    amount(&node["status"]["allocatable"][resource]).unwrap_or_default()
}

fn fits(pod: &Value, node: &Value, others: &[Value]) -> bool {
    let count = i64::try_from(others.len()).unwrap();
    let has_room = |resource: &str| {
        let taken: i64 = others.iter().map(|other| requests(other, resource, 0)).sum();
        let wanted = requests(pod, resource, 0);
        wanted == 0 || wanted <= allocatable(node, resource) - taken
    };
    count < allocatable(node, "pods") && RESOURCES.into_iter().all(has_room)
}

/// The first plug-in, in the profile's order, that rejects a node.
fn rejected_by(pod: &Value, node: &Value, others: &[Value]) -> Option<&'static str> {
    let cordoned = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    let repels = |taint: &&Value| text(&taint["effect"]) != "PreferNoSchedule" && !is_tolerated(pod, taint);
    if node["spec"]["unschedulable"] == json!(true) && !is_tolerated(pod, &cordoned) {
        Some("NodeUnschedulable")
    } else if list(&node["spec"]["taints"]).iter().any(|taint| repels(&taint)) {
        Some("TaintToleration")
    } else if !affinity_allows(pod, node) {
        Some("NodeAffinity")
    } else if !ports_are_free(pod, others) {
        Some("NodePorts")
    } else if !fits(pod, node, others) {
        Some("NodeResourcesFit")
    } else {
        None
    }
}

fn taint_score(pod: &Value, node: &Value) -> i64 {
    let disliked = |taint: &&Value| text(&taint["effect"]) == "PreferNoSchedule" && !is_tolerated(pod, taint);
    i64::try_from(list(&node["spec"]["taints"]).iter().filter(disliked).count()).unwrap()
}

fn affinity_score(pod: &Value, node: &Value) -> i64 {
    let preferred = list(&pod["spec"]["affinity"]["nodeAffinity"][PREFERRED]).iter();
    let met = preferred.filter(|one| term_matches(&one["preference"], node));
    met.map(|one| one["weight"].as_i64().unwrap()).sum()
}

/// Containers that ask for nothing count as so much (`DefaultMilliCPURequest`, `DefaultMemoryRequest`).
fn default_request(resource: &str) -> i64 {
    match resource {
        "cpu" => 100,
        "memory" => 200 * 1024 * 1024,
        _ => 0,
    }
}

/// How full a node is with the pod: for each resource that counts, its weight, what is asked for, and what there is.
fn usage(pod: &Value, node: &Value, others: &[Value], weights: &[(&str, i64)]) -> Vec<(i64, i64, i64)> {
    let counted = weights.iter().filter(|(resource, _)| {
        let is_asked_for = !resource.contains('/') || requests(pod, resource, 0) > 0;
        is_asked_for && allocatable(node, resource) > 0
    });
    counted
        .map(|(resource, weight)| {
            let otherwise = default_request(resource);
            let all = others.iter().chain([pod]);
            (*weight, all.map(|pod| requests(pod, resource, otherwise)).sum(), allocatable(node, resource))
        })
        .collect()
}

fn mean(scores: &[(i64, i64)]) -> i64 {
    let weights: i64 = scores.iter().map(|(weight, _)| weight).sum();
    let sum: i64 = scores.iter().map(|(weight, score)| weight * score).sum();
    if weights == 0 { 0 } else { sum / weights }
}

fn least(usage: &[(i64, i64, i64)]) -> i64 {
    let free = |(weight, asked, there): &(i64, i64, i64)| {
        (*weight, if asked > there { 0 } else { (there - asked) * 100 / there })
    };
    mean(&usage.iter().map(free).collect::<Vec<_>>())
}

fn most(usage: &[(i64, i64, i64)]) -> i64 {
    let full = |(weight, asked, there): &(i64, i64, i64)| (*weight, asked.min(there) * 100 / there);
    mean(&usage.iter().map(full).collect::<Vec<_>>())
}

/// The shape from 0 at 0 % over 4 at 50 % to 10 at 100 %.
fn ratio(usage: &[(i64, i64, i64)]) -> i64 {
    let on_shape = |(weight, asked, there): &(i64, i64, i64)| {
        let percent = if asked > there { 100 } else { asked * 100 / there };
        (*weight, if percent <= 50 { 40 * percent / 50 } else { 40 + 60 * (percent - 50) / 50 })
    };
    // What scores nothing does not count among the weights.
    let scores: Vec<_> = usage.iter().map(on_shape).filter(|(_, score)| *score > 0).collect();
    let weights: i64 = scores.iter().map(|(weight, _)| weight).sum();
    let sum: i64 = scores.iter().map(|(weight, score)| weight * score).sum();
    if weights == 0 { 0 } else { (sum as f64 / weights as f64).round() as i64 }
}

fn evenness(node: &Value, pods: &[&Value]) -> i64 {
    let fractions: Vec<f64> = ["cpu", "memory"]
        .into_iter()
        .map(|resource| {
            let asked: i64 = pods.iter().map(|pod| requests(pod, resource, 0)).sum();
            (asked as f64 / allocatable(node, resource) as f64).min(1.0)
        })
        .collect();
    ((1.0 - ((fractions[0] - fractions[1]) / 2.0).abs()) * 100.0) as i64
}

fn balance_score(pod: &Value, node: &Value, others: &[Value]) -> i64 {
    let without: Vec<&Value> = others.iter().collect();
    let with: Vec<&Value> = others.iter().chain([pod]).collect();
    50 + (50 + evenness(node, &with) - evenness(node, &without)) / 2
}

fn image_score(world: &World, pod: &Value, node: &Value) -> i64 {
    let size = |node: &Value, name: &str| {
        let named = |image: &&Value| list(&image["names"]).contains(&json!(name));
        list(&node["status"]["images"]).iter().find(named).map(|image| image["sizeBytes"].as_i64().unwrap())
    };
    let init = list(&pod["spec"]["initContainers"]);
    let all: Vec<&Value> = init.iter().chain(list(&pod["spec"]["containers"])).collect();
    let sum: i64 = all
        .iter()
        .filter_map(|container| {
            let name = text(&container["image"]);
            let on = world.nodes.iter().filter(|node| size(node, name).is_some()).count();
            Some((size(node, name)? as f64 * (on as f64 / world.nodes.len() as f64)) as i64)
        })
        .sum();
    let mebibyte = 1024 * 1024;
    let (least, most) = (23 * mebibyte, 1000 * mebibyte * i64::try_from(all.len()).unwrap());
    100 * (sum.clamp(least, most) - least) / (most - least)
}

/// Stretches scores so that the largest becomes 100.
fn stretched(raw: &[i64], reverse: bool) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or_default();
    raw.iter()
        .map(|score| {
            let score = if most == 0 { 0 } else { 100 * score / most };
            if reverse { 100 - score } else { score }
        })
        .collect()
}

type Usage = fn(&[(i64, i64, i64)]) -> i64;

/// A profile with how it scores the use of resources, and the resources' weights.
type Case = (Profile, Usage, Vec<(&'static str, i64)>);

fn profiles() -> Vec<Case> {
    let shape: Vec<(i64, i64)> = vec![(0, 0), (50, 4), (100, 10)];
    let with = |strategy: ScoringStrategy, weights: &[(&'static str, i64)]| {
        let fit = NodeResourcesFit::new(strategy, weights.iter().copied());
        Profile::builder().score(Arc::new(fit), 1).build().unwrap()
    };
    let (even, uneven) =
        (vec![("cpu", 1), ("memory", 1)], vec![("cpu", 2), ("memory", 1), ("example.com/gpu", 3)]);
    vec![
        (Profile::default(), least as Usage, even),
        (with(ScoringStrategy::MostAllocated, &uneven), most, uneven.clone()),
        (with(ScoringStrategy::RequestedToCapacityRatio(shape.into()), &uneven), ratio, uneven),
    ]
}

fn info(pod: &Value) -> Arc<PodInfo> {
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod.clone()).unwrap();
    Arc::new(PodInfo::new(pod))
}

fn world(random: &mut Random) -> (World, Snapshot) {
    let nodes: Vec<_> = (0..1 + random.below(6)).map(|number| random.node(&format!("n{number}"))).collect();
    let (mut snapshot, mut pods) = (Snapshot::new(), vec![Vec::new(); nodes.len()]);
    for node in &nodes {
        let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(node.clone()).unwrap();
        snapshot.set_node(NodeInfo::new(node));
    }
    for number in 0..random.below(9) {
        let (pod, on) = (random.pod(&format!("p{number}")), random.below(nodes.len() as u64));
        snapshot.place(&info(&pod), &format!("n{on}"));
        pods[usize::try_from(on).unwrap()].push(pod);
    }
    (World { nodes, pods }, snapshot)
}

/// Compares the scores of one plug-in; it may be silent only where `is_silent` says so.
fn check_scores(
    decision: &Decision,
    plugin: &str,
    feasible: &[String],
    raw: &[i64],
    normalized: &[i64],
    is_silent: bool,
    seed: u64,
) {
    for (at, node) in feasible.iter().enumerate() {
        let found = decision.scores(node).find(|score| score.plugin == plugin);
        let found = found.map(|score| (score.raw, score.normalized));
        let expected = (!is_silent).then(|| (raw[at], normalized[at]));
        assert_eq!(found, expected, "seed {seed}: {plugin} on {node}");
    }
}

#[test]
fn rules_about_one_node_are_as_the_reference_says() {
    let profiles = profiles();
    let mut said: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let (world, snapshot) = world(&mut random);
        let pod = random.pod("incoming");
        let (profile, score_usage, weights) = &profiles[usize::try_from(seed % 3).unwrap()];
        let decision = decide(profile, &snapshot, &info(&pod));
        let mut feasible = Vec::new();
        for (at, (name, verdict)) in decision.verdicts().into_iter().enumerate() {
            let (node, others) = (&world.nodes[at], &world.pods[at]);
            let expected = rejected_by(&pod, node, others);
            *said.entry(expected.unwrap_or("none")).or_default() += 1;
            match verdict {
                NodeVerdict::Feasible(_) => feasible.push(name.to_owned()),
                // The affinity may name the nodes that come into question before any filter is asked.
                NodeVerdict::Rejected { plugin: "", .. } | NodeVerdict::NotAsked => {
                    assert!(!affinity_allows(&pod, node), "seed {seed}: {name}: {pod}");
                    continue;
                }
                NodeVerdict::Rejected { .. } => {}
            }
            let found = if let NodeVerdict::Rejected { plugin, .. } = verdict { Some(plugin) } else { None };
            assert_eq!(found, expected, "seed {seed}: {name}: {node}\n{pod}\n{others:?}");
        }
        let of = |score: &dyn Fn(&Value, &[Value]) -> i64| -> Vec<i64> {
            let at = |name: &String| snapshot.find(name).unwrap();
            feasible.iter().map(|name| score(&world.nodes[at(name)], &world.pods[at(name)])).collect()
        };
        let check = |plugin: &str, raw: &[i64], normalized: &[i64], is_silent: bool| {
            check_scores(&decision, plugin, &feasible, raw, normalized, is_silent, seed);
        };
        let taints = of(&|node, _| taint_score(&pod, node));
        check("TaintToleration", &taints, &stretched(&taints, true), false);
        let affinity = of(&|node, _| affinity_score(&pod, node));
        let nothing = list(&pod["spec"]["affinity"]["nodeAffinity"][PREFERRED]).is_empty();
        check("NodeAffinity", &affinity, &stretched(&affinity, false), nothing);
        let fit = of(&|node, others| score_usage(&usage(&pod, node, others, weights)));
        check("NodeResourcesFit", &fit, &fit, false);
        let balance = of(&|node, others| balance_score(&pod, node, others));
        let nothing = ["cpu", "memory"].into_iter().all(|resource| requests(&pod, resource, 0) == 0);
        check("NodeResourcesBalancedAllocation", &balance, &balance, nothing);
        let images = of(&|node, _| image_score(&world, &pod, node));
        check("ImageLocality", &images, &images, false);
    }
    let plugins =
        ["NodeUnschedulable", "TaintToleration", "NodeAffinity", "NodePorts", "NodeResourcesFit", "none"];
    for plugin in plugins {
        assert!(said.get(plugin).is_some_and(|count| *count > 200), "{plugin}: nothing is tested: {said:?}");
    }
}
