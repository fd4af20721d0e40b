//! Spreading and affinity between pods against a naive reference: the rules as the documentation of Kubernetes words them
//! ("Pod Topology Spread Constraints", "Inter-pod affinity and anti-affinity", KEP-3022, KEP-3094, KEP-2249), each answered
//! by looking at every pod and node again.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Namespace;
use ksched::{
    NodeVerdict, PodInfo, Profile, ProfileBuilder, Snapshot,
    build::node,
    decide,
    plugins::{InterPodAffinity, PodTopologySpread},
};
use serde_json::{Value, json};

const SEEDS: u64 = 3000;

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

    fn selector(&mut self) -> Value {
        match self.below(5) {
            0 => json!({}),
            1 => json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}),
            2 => json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
            _ => json!({"matchLabels": {"app": self.pick(&["web", "db"])}}),
        }
    }

    fn term(&mut self) -> Value {
        let mut term = json!({"topologyKey": self.pick(&["zone", "host"]), "labelSelector": self.selector()});
        if self.one_in(3) {
            term["namespaces"] = json!([self.pick(&["default", "other"])]);
        }
        if self.one_in(4) {
            term["namespaceSelector"] = if self.one_in(2) {
                json!({})
            } else {
                json!({"matchLabels": {"team": self.pick(&["a", "b"])}})
            };
        }
        term
    }

    fn terms(&mut self, in_how_many: u64) -> Vec<Value> {
        if self.one_in(in_how_many) { (0..=self.below(2)).map(|_| self.term()).collect() } else { Vec::new() }
    }

    fn weighted(&mut self, in_how_many: u64) -> Vec<Value> {
        let terms = self.terms(in_how_many);
        terms
            .into_iter()
            .map(|term| json!({"weight": 1 + self.below(100), "podAffinityTerm": term}))
            .collect()
    }

    fn affinity(&mut self) -> Value {
        json!({
            "podAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": self.terms(4),
                "preferredDuringSchedulingIgnoredDuringExecution": self.weighted(3),
            },
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": self.terms(4),
                "preferredDuringSchedulingIgnoredDuringExecution": self.weighted(3),
            },
        })
    }

    fn constraint(&mut self) -> Value {
        let mut constraint = json!({
            "maxSkew": 1 + self.below(2),
            "topologyKey": self.pick(&["zone", "host", "kubernetes.io/hostname"]),
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": self.selector(),
        });
        if self.one_in(2) {
            constraint["whenUnsatisfiable"] = json!("ScheduleAnyway");
        } else if self.one_in(3) {
            constraint["minDomains"] = json!(1 + self.below(4));
        }
        if self.one_in(3) {
            constraint["matchLabelKeys"] = json!(["tier"]);
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if self.one_in(2) {
                constraint[policy] = json!(self.pick(&["Honor", "Ignore"]));
            }
        }
        constraint
    }

    fn pod(&mut self, name: &str, spreads: bool) -> PodInfo {
        let mut labels = json!({"app": self.pick(&["web", "db", "job"])});
        if self.one_in(2) {
            labels["tier"] = json!(self.pick(&["front", "back"]));
        }
        let mut object = json!({
            "metadata": {
                "name": name, "uid": name, "namespace": self.pick(&["default", "default", "other"]), "labels": labels,
            },
            "spec": {"containers": [{"name": "main"}]},
        });
        if spreads {
            let constraints: Vec<_> = (0..=self.below(2)).map(|_| self.constraint()).collect();
            object["spec"]["topologySpreadConstraints"] = json!(constraints);
            if self.one_in(3) {
                object["spec"]["nodeSelector"] = json!({"disk": "ssd"});
            }
            if self.one_in(3) {
                object["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
            }
            if self.one_in(8) {
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
        } else {
            object["spec"]["affinity"] = self.affinity();
        }
        PodInfo::new(serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(object).unwrap())
    }

    fn cluster(&mut self, spreads: bool) -> Snapshot {
        let mut snapshot = Snapshot::new();
        for (name, team) in [("default", "a"), ("other", "b")] {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.to_owned());
            namespace.metadata.labels = Some(BTreeMap::from([("team".to_owned(), team.to_owned())]));
            snapshot.catalog_mut().set(Arc::new(namespace));
        }
        let nodes = 1 + self.below(7);
        for number in 0..nodes {
            let name = format!("n{number}");
            let mut node = node(&name).label("host", &name).label("kubernetes.io/hostname", &name);
            if !self.one_in(6) {
                node = node.label("zone", self.pick(&["x", "y", "z"]));
            }
            if self.one_in(2) {
                node = node.label("disk", "ssd");
            }
            if self.one_in(4) {
                node = node.taint("dedicated", "", "NoSchedule");
            }
            snapshot.set_node(node.info());
        }
        for number in 0..self.below(if spreads { 24 } else { 14 }) {
            let pod = Arc::new(self.pod(&format!("p{number}"), spreads));
            snapshot.place(&pod, &format!("n{}", self.below(nodes)));
        }
        snapshot
    }
}

/// Node, the value that it has for a label.
fn value<'a>(snapshot: &'a Snapshot, node: &str, key: &str) -> Option<&'a str> {
    snapshot.node(snapshot.find(node).unwrap()).info().labels.get(key)
}

fn spec(pod: &PodInfo) -> Value {
    serde_json::to_value(pod.object.spec.as_ref().unwrap()).unwrap()
}

/// All pods with their nodes' names.
fn placed(snapshot: &Snapshot) -> Vec<(Arc<PodInfo>, String)> {
    let of_node = |node: ksched::NodeView<'_>| -> Vec<_> {
        node.pods().iter().map(|pod| (Arc::clone(pod), node.name().to_owned())).collect()
    };
    snapshot.nodes().flat_map(of_node).collect()
}

fn selects<'a>(selector: &Value, label: impl Fn(&str) -> Option<&'a str>) -> bool {
    if selector.is_null() {
        return false;
    }
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    labels.into_iter().all(|(key, wanted)| label(key) == wanted.as_str())
        && expressions.all(|expression| {
            let there = label(expression["key"].as_str().unwrap());
            match expression["operator"].as_str().unwrap() {
                "Exists" => there.is_some(),
                "NotIn" => {
                    expression["values"].as_array().unwrap().iter().all(|value| value.as_str() != there)
                }
                other => unreachable!("{other}"),
            }
        })
}

/// Whether a term of `owner` means `pod`.
fn means(snapshot: &Snapshot, term: &Value, owner: &PodInfo, pod: &PodInfo) -> bool {
    let named = term["namespaces"].as_array().cloned().unwrap_or_default();
    let namespace = snapshot.catalog().get::<Namespace>("", &pod.namespace).unwrap();
    let team = namespace.metadata.labels.as_ref().unwrap()["team"].clone();
    let in_namespace = if named.is_empty() && term["namespaceSelector"].is_null() {
        owner.namespace == pod.namespace
    } else {
        named.contains(&json!(&*pod.namespace))
            || selects(&term["namespaceSelector"], |key| (key == "team").then_some(team.as_str()))
    };
    in_namespace && selects(&term["labelSelector"], |key| pod.labels.get(key))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn key(term: &Value) -> &str {
    term["topologyKey"].as_str().unwrap()
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn affinity_allows(snapshot: &Snapshot, pod: &PodInfo, node: &str) -> bool {
    let affinity = spec(pod)["affinity"].clone();
    let near = list(&affinity["podAffinity"][REQUIRED]);
    let far = list(&affinity["podAntiAffinity"][REQUIRED]);
    let together = |a: &str, b: &str, key: &str| {
        value(snapshot, a, key).is_some() && value(snapshot, a, key) == value(snapshot, b, key)
    };
    let others = placed(snapshot);
    let friend = |other: &PodInfo| near.iter().all(|term| means(snapshot, term, pod, other));
    let has_labels = near.iter().all(|term| value(snapshot, node, key(term)).is_some());
    let near_all = near
        .iter()
        .all(|term| others.iter().any(|(other, there)| friend(other) && together(node, there, key(term))));
    let no_friends = !others.iter().any(|(other, there)| {
        friend(other) && near.iter().any(|term| value(snapshot, there, key(term)).is_some())
    });
    let far_from_all = !far.iter().any(|term| {
        others
            .iter()
            .any(|(other, there)| means(snapshot, term, pod, other) && together(node, there, key(term)))
    });
    let unwanted = others.iter().any(|(other, there)| {
        let terms = list(&spec(other)["affinity"]["podAntiAffinity"][REQUIRED]);
        terms.iter().any(|term| means(snapshot, term, other, pod) && together(node, there, key(term)))
    });
    (near.is_empty() || has_labels && (near_all || no_friends && friend(pod))) && far_from_all && !unwanted
}

fn affinity_score(snapshot: &Snapshot, pod: &PodInfo, node: &str) -> i64 {
    let mut score = 0;
    for (other, there) in placed(snapshot) {
        for (owner, target) in [(pod, &*other), (&*other, pod)] {
            let affinity = spec(owner)["affinity"].clone();
            let mut terms = Vec::new();
            for (kind, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
                for term in list(&affinity[kind][PREFERRED]) {
                    terms.push((sign * term["weight"].as_i64().unwrap(), term["podAffinityTerm"].clone()));
                }
            }
            if owner.uid == other.uid {
                terms.extend(list(&affinity["podAffinity"][REQUIRED]).into_iter().map(|term| (1, term)));
            }
            for (weight, term) in terms {
                let here = value(snapshot, node, key(&term));
                if means(snapshot, &term, owner, target)
                    && here.is_some()
                    && here == value(snapshot, &there, key(&term))
                {
                    score += weight;
                }
            }
        }
    }
    score
}

/// Whether a pod counts for a constraint of another pod.
fn counts(constraint: &Value, owner: &PodInfo, pod: &PodInfo) -> bool {
    let same = list(&constraint["matchLabelKeys"]).iter().all(|key| {
        let key = key.as_str().unwrap();
        owner.labels.get(key).is_none() || owner.labels.get(key) == pod.labels.get(key)
    });
    same && selects(&constraint["labelSelector"], |key| pod.labels.get(key))
}

/// An empty selector, with nothing from `matchLabelKeys` either, counts no pods.
fn counts_any(constraint: &Value, owner: &PodInfo) -> bool {
    let joined = list(&constraint["matchLabelKeys"]);
    constraint["labelSelector"] != json!({})
        || joined.iter().any(|key| owner.labels.get(key.as_str().unwrap()).is_some())
}

fn on_node(snapshot: &Snapshot, constraint: &Value, pod: &PodInfo, node: &str) -> i64 {
    let counted = placed(snapshot).into_iter().filter(|(other, there)| {
        there == node
            && other.namespace == pod.namespace
            && !other.deleting
            && counts_any(constraint, pod)
            && counts(constraint, pod, other)
    });
    i64::try_from(counted.count()).unwrap()
}

fn includes(snapshot: &Snapshot, constraint: &Value, pod: &PodInfo, node: &str) -> bool {
    let info = Arc::clone(snapshot.node(snapshot.find(node).unwrap()).info());
    let wants_ssd = !spec(pod)["nodeSelector"].is_null();
    let honors_affinity = constraint["nodeAffinityPolicy"] != "Ignore";
    let honors_taints = constraint["nodeTaintsPolicy"] == "Honor";
    (!honors_affinity || !wants_ssd || info.labels.get("disk") == Some("ssd"))
        && (!honors_taints || info.taints.is_empty() || !pod.tolerations.is_empty())
}

fn constraints(pod: &PodInfo, action: &str) -> Vec<Value> {
    let all = list(&spec(pod)["topologySpreadConstraints"]);
    all.into_iter().filter(|constraint| constraint["whenUnsatisfiable"] == action).collect()
}

fn has_all(snapshot: &Snapshot, constraints: &[Value], node: &str) -> bool {
    constraints.iter().all(|constraint| value(snapshot, node, key(constraint)).is_some())
}

fn spread_allows(snapshot: &Snapshot, pod: &PodInfo, node: &str) -> bool {
    let constraints = constraints(pod, "DoNotSchedule");
    constraints.iter().all(|constraint| {
        let Some(here) = value(snapshot, node, key(constraint)) else { return false };
        let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
        for other in snapshot.nodes().map(|other| other.name()) {
            if has_all(snapshot, &constraints, other) && includes(snapshot, constraint, pod, other) {
                *domains.entry(value(snapshot, other, key(constraint)).unwrap()).or_default() +=
                    on_node(snapshot, constraint, pod, other);
            }
        }
        let too_few = (domains.len() as i64) < constraint["minDomains"].as_i64().unwrap_or(1);
        let least = if too_few { 0 } else { *domains.values().min().unwrap() };
        let itself = i64::from(counts(constraint, pod, pod));
        domains.get(here).copied().unwrap_or(0) + itself - least <= constraint["maxSkew"].as_i64().unwrap()
    })
}

/// -1 for a node that is not scored.
fn spread_score(snapshot: &Snapshot, pod: &PodInfo, feasible: &[String], node: &str) -> i64 {
    let constraints = constraints(pod, "ScheduleAnyway");
    if !has_all(snapshot, &constraints, node) {
        return -1;
    }
    let scored: Vec<_> = feasible.iter().filter(|node| has_all(snapshot, &constraints, node)).collect();
    let mut score = 0.0;
    for constraint in &constraints {
        let key = key(constraint);
        let here = value(snapshot, node, key).unwrap();
        let (size, count) = if key == "kubernetes.io/hostname" {
            (scored.len(), on_node(snapshot, constraint, pod, node))
        } else {
            let values: std::collections::BTreeSet<_> =
                scored.iter().map(|node| value(snapshot, node, key).unwrap()).collect();
            let nodes = snapshot.nodes().map(|other| other.name()).filter(|other| {
                has_all(snapshot, &constraints, other)
                    && includes(snapshot, constraint, pod, other)
                    && value(snapshot, other, key) == Some(here)
            });
            (values.len(), nodes.map(|other| on_node(snapshot, constraint, pod, other)).sum())
        };
        score +=
            count as f64 * ((size + 2) as f64).ln() + (constraint["maxSkew"].as_i64().unwrap() - 1) as f64;
    }
    score.round() as i64
}

/// Gives how many nodes were feasible and how many were not, so that a test can see that it tests something.
fn check(
    seed: u64,
    spreads: bool,
    profile: &Profile,
    allows: impl Fn(&Snapshot, &PodInfo, &str) -> bool,
    score: impl Fn(&Snapshot, &PodInfo, &[String], &str) -> i64,
) -> (usize, usize) {
    let mut random = Random(seed);
    let snapshot = random.cluster(spreads);
    let pod = random.pod("incoming", spreads);
    let decision = decide(profile, &snapshot, &pod);
    let verdicts = decision.verdicts();
    let feasible: Vec<String> = verdicts
        .iter()
        .filter(|(_, verdict)| matches!(verdict, NodeVerdict::Feasible(_)))
        .map(|(node, _)| (*node).to_owned())
        .collect();
    let names = snapshot.nodes().map(|node| node.name().to_owned());
    let expected: Vec<String> = names.filter(|node| allows(&snapshot, &pod, node)).collect();
    assert_eq!(feasible, expected, "seed {seed}: {}\n{}", spec(&pod), decision.failure().unwrap_or_default());
    let expected: Vec<i64> = feasible.iter().map(|node| score(&snapshot, &pod, &feasible, node)).collect();
    let scores: Vec<Option<i64>> =
        feasible.iter().map(|node| decision.scores(node).next().map(|score| score.raw)).collect();
    if scores.iter().any(Option::is_some) {
        let scores: Vec<_> = scores.into_iter().flatten().collect();
        assert_eq!(scores, expected, "seed {seed}: {}", spec(&pod));
    } else {
        assert!(expected.iter().all(|score| *score == 0), "seed {seed}: {expected:?} but not scored");
    }
    (feasible.len(), verdicts.len() - feasible.len())
}

fn check_seeds(check: impl Fn(u64) -> (usize, usize)) {
    let (mut feasible, mut rejected) = (0, 0);
    for seed in 0..SEEDS {
        let (more, fewer) = check(seed);
        feasible += more;
        rejected += fewer;
    }
    assert!(
        feasible > 1000 && rejected > 1000,
        "{feasible} feasible, {rejected} rejected: nothing is tested"
    );
}

#[test]
fn affinity_between_pods_is_as_the_reference_says() {
    let plugin = Arc::new(InterPodAffinity::default());
    let profile = ProfileBuilder::empty()
        .pre_filter(Arc::clone(&plugin) as Arc<_>)
        .filter(Arc::clone(&plugin) as Arc<_>)
        .pre_score(Arc::clone(&plugin) as Arc<_>)
        .score(plugin, 2)
        .build()
        .unwrap();
    let score =
        |snapshot: &Snapshot, pod: &PodInfo, _: &[String], node: &str| affinity_score(snapshot, pod, node);
    check_seeds(|seed| check(seed, false, &profile, affinity_allows, score));
}

#[test]
fn spreading_is_as_the_reference_says() {
    let plugin = Arc::new(PodTopologySpread::default());
    let profile = ProfileBuilder::empty()
        .pre_filter(Arc::clone(&plugin) as Arc<_>)
        .filter(Arc::clone(&plugin) as Arc<_>)
        .pre_score(Arc::clone(&plugin) as Arc<_>)
        .score(plugin, 2)
        .build()
        .unwrap();
    check_seeds(|seed| check(seed, true, &profile, spread_allows, spread_score));
}

/// Notes that are kept up to date pod by pod say the same as notes made anew, which preemption relies on.
#[test]
fn notes_follow_pods_that_come_and_go() {
    use ksched::plugin::{CycleState, FilterPlugin, PreFilter, PreFilterVerdict};
    fn follow<P: PreFilter + FilterPlugin>(plugin: &P, spreads: bool) -> usize {
        let mut compared = 0;
        for seed in 0..SEEDS {
            let mut random = Random(seed);
            let before = random.cluster(spreads);
            let pod = random.pod("incoming", spreads);
            let all = placed(&before);
            let Some((moved, from)) = all.iter().find(|(other, _)| !other.deleting) else { continue };
            let mut after = before.clone();
            after.remove_pod(&moved.uid);
            let (mut edited, mut anew) = (CycleState::default(), CycleState::default());
            if plugin.pre_filter(&mut edited, &pod, &before) != PreFilterVerdict::Pass
                || plugin.pre_filter(&mut anew, &pod, &after) != PreFilterVerdict::Pass
            {
                continue;
            }
            let verdicts = |cycle: &CycleState| -> Vec<_> {
                before.nodes().map(|node| plugin.filter(cycle, &pod, node)).collect()
            };
            let original = edited.clone();
            let first = verdicts(&original);
            let node = before.node(before.find(from).unwrap());
            plugin.remove_pod(&mut edited, &pod, moved, node);
            assert_eq!(verdicts(&edited), verdicts(&anew), "seed {seed}: removed {}", moved.name);
            assert_eq!(verdicts(&original), first, "seed {seed}: the clone's notes changed");
            plugin.add_pod(&mut edited, &pod, moved, node);
            assert_eq!(verdicts(&edited), first, "seed {seed}: added {} again", moved.name);
            compared += 1;
        }
        compared
    }
    assert!(follow(&InterPodAffinity::default(), false) > 500);
}
