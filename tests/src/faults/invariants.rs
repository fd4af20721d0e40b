//! What must hold at any moment, as a function of what is there now and what was there before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::ResourceExt as _;

use super::scenario::Scenario;

/// What is there at a moment, in the run's namespace.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    pub(super) claims: Vec<Arc<PersistentVolumeClaim>>,
    /// The volumes whose storage is there.
    pub(super) disks: BTreeSet<String>,
    pub(super) web: Option<Arc<Deployment>>,
    pub(super) work: Option<Arc<Job>>,
}

/// What has been seen of a run, through a client without faults.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The pods of the job that have ended, by uid, and whether they succeeded. `None`: it was being deleted before, and a job
    /// counts such a pod as failed unless it has seen it succeed by then (upstream's `isPodFailed`).
    pub(super) ended: BTreeMap<String, Option<bool>>,
    /// The controller that each pod was first seen with, by the uids of both.
    owners: BTreeMap<String, String>,
    /// What the job has counted: succeeded and failed.
    counted: [i32; 2],
    /// The claims by name, with their uid and their volume, once it is known.
    claims: BTreeMap<String, (String, Option<String>)>,
    /// Whether the user has begun to delete claims.
    pub(super) claims_may_go: bool,
    /// The greatest number of replicas that was ever asked for.
    wanted_max: i32,
    /// Whether all replicas were available once.
    was_up: bool,
    /// What did not hold.
    pub(super) broken: BTreeSet<String>,
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why a pod is not ready, if it isn't.
fn not_ready(pod: &Pod) -> Option<String> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready =
        conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status != "True")?;
    Some(format!("{} {}", phase(pod), ready.reason.as_deref().unwrap_or_default()))
}

/// Whether an object is one of this app.
pub(super) fn has_app(object: &impl kube::Resource, app: &str) -> bool {
    object.labels().get("app").is_some_and(|label| label == app)
}

/// The uid of the controller that a pod belongs to.
pub(super) fn controller_of(pod: &Pod) -> Option<&str> {
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    owner.map(|owner| owner.uid.as_str())
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

impl Seen {
    /// Takes in what is there now, and notes what does not hold.
    pub(super) fn observe(&mut self, scenario: &Scenario, view: &View) {
        self.note_ends(view);
        self.check_owners(view);
        self.check_claims(view);
        self.check_rollout(scenario, view);
        self.check_counts(view);
    }

    /// What a job has counted it does not take back, and what is to be counted is there once: a pod is counted once. That each is
    /// counted at all is seen at rest ([`counts_fit`](Self::counts_fit)).
    fn check_counts(&mut self, view: &View) {
        let Some(status) = view.work.as_ref().and_then(|work| work.status.as_ref()) else { return };
        let now = [status.succeeded, status.failed].map(Option::unwrap_or_default);
        if now[0] < self.counted[0] || now[1] < self.counted[1] {
            self.broken.insert(format!("the job counted {:?}, and then {now:?}", self.counted));
        }
        self.counted = now;
        let uncounted = status.uncounted_terminated_pods.iter();
        let uids: Vec<&String> =
            uncounted.flat_map(|all| all.succeeded.iter().chain(&all.failed).flatten()).collect();
        if uids.iter().collect::<BTreeSet<_>>().len() < uids.len() {
            self.broken.insert(format!("a pod is to be counted twice: {uids:?}"));
        }
    }

    /// How the pods of the job end, with which its counts are compared at rest.
    fn note_ends(&mut self, view: &View) {
        for pod in view.pods.iter().filter(|pod| has_app(&***pod, "work")) {
            let result = match (phase(pod), &pod.metadata.deletion_timestamp) {
                (_, Some(_)) => None,
                ("Succeeded", None) => Some(true),
                ("Failed", None) => Some(false),
                _ => continue,
            };
            // What was seen first counts: what has ended is deleted later.
            self.ended.entry(pod.uid().unwrap_or_default()).or_insert(result);
        }
    }

    /// No pod is adopted twice. Labels and selectors stay as they are, so that nobody has a reason to release one.
    fn check_owners(&mut self, view: &View) {
        for pod in &view.pods {
            let owners = pod.owner_references().iter().filter(|owner| owner.controller == Some(true)).count();
            if owners > 1 {
                self.broken.insert(format!("{} has {owners} controllers", pod.name_any()));
            }
            let uid = pod.uid().unwrap_or_default();
            match (self.owners.get(&uid).map(String::as_str), controller_of(pod)) {
                (None, Some(owner)) => drop(self.owners.insert(uid, owner.to_owned())),
                (Some(before), now) if now != Some(before) => {
                    let name = pod.name_any();
                    self.broken.insert(format!("{name} belonged to {before}, and then to {now:?}"));
                }
                _ => {}
            }
        }
    }

    /// No claim is lost, nor what is stored there: a StatefulSet keeps its claims also when it is scaled down or deleted.
    fn check_claims(&mut self, view: &View) {
        if self.claims_may_go {
            return;
        }
        for claim in &view.claims {
            let (name, uid) = (claim.name_any(), claim.uid().unwrap_or_default());
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
            if claim.metadata.deletion_timestamp.is_some() {
                self.broken.insert(format!("the claim {name} is being deleted"));
            }
            let known = self.claims.entry(name.clone()).or_insert_with(|| (uid.clone(), volume.clone()));
            if known.0 != uid {
                self.broken.insert(format!("the claim {name} is another one"));
            }
            if known.1.is_none() {
                known.1.clone_from(&volume);
            }
            if known.1 != volume {
                self.broken.insert(format!("the claim {name} had {:?}, and then {volume:?}", known.1));
            }
        }
        for (name, (_, volume)) in &self.claims {
            if !view.claims.iter().any(|claim| claim.name_any() == *name) {
                self.broken.insert(format!("the claim {name} is lost"));
            }
            if volume.as_ref().is_some_and(|volume| !view.disks.contains(volume)) {
                self.broken.insert(format!("what is stored for the claim {name} is lost"));
            }
        }
    }

    /// Never more than `maxSurge` above what is wanted; never fewer available than `maxUnavailable` allows.
    fn check_rollout(&mut self, scenario: &Scenario, view: &View) {
        let Some(web) = &view.web else { return };
        if web.metadata.deletion_timestamp.is_some() {
            return;
        }
        let wanted = web.spec.replicas.unwrap_or(1);
        self.wanted_max = self.wanted_max.max(wanted);
        let surge = i32::try_from(scenario.surge).unwrap_or(0);
        let sets: Vec<_> = view.sets.iter().filter(|set| has_app(&***set, "web")).collect();
        let asked: i32 = sets.iter().filter_map(|set| set.spec.replicas).sum();
        if asked > self.wanted_max + surge {
            let most = self.wanted_max;
            self.broken
                .insert(format!("{asked} replicas in all sets, with {most} wanted and maxSurge {surge}"));
        }
        let live = |pod: &&Arc<Pod>| has_app(&***pod, "web") && pod.metadata.deletion_timestamp.is_none();
        let up = view.pods.iter().filter(live).filter(|pod| is_ready(pod)).count();
        let up = i32::try_from(up).unwrap_or(i32::MAX);
        self.was_up |= up >= wanted;
        let least = wanted - i32::try_from(scenario.unavailable).unwrap_or(0);
        if scenario.calm && self.was_up && up < least {
            let sets = sets.iter().map(|set| (set.name_any(), set.spec.replicas)).collect::<Vec<_>>();
            let pods =
                view.pods.iter().filter(live).map(|pod| (pod.name_any(), not_ready(pod))).collect::<Vec<_>>();
            self.broken.insert(format!("{up} pods are available, {least} must be: {sets:?} {pods:?}"));
        }
    }

    /// Whether the counts of the job, succeeded and failed, are those of the pods that were seen to end: each once.
    pub(super) fn counts_fit(&self, succeeded: usize, failed: usize) -> bool {
        let count = |result: Option<bool>| self.ended.values().filter(|ended| **ended == result).count();
        let (seen, either) = (count(Some(true)), count(None));
        (seen..=seen + either).contains(&succeeded) && succeeded + failed == self.ended.len()
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn all<K: DeserializeOwned>(value: &Value) -> Vec<Arc<K>> {
        let items: Vec<K> = serde_json::from_value(value.clone()).unwrap();
        items.into_iter().map(Arc::new).collect()
    }

    /// A view from `pods`, `sets`, `claims`, `disks` and `web`.
    fn view(value: &Value) -> View {
        let or_none = |name: &str| value.get(name).cloned().unwrap_or_else(|| json!([]));
        View {
            pods: all(&or_none("pods")),
            sets: all(&or_none("sets")),
            claims: all(&or_none("claims")),
            disks: serde_json::from_value(or_none("disks")).unwrap(),
            web: value.get("web").map(|web| Arc::new(serde_json::from_value(web.clone()).unwrap())),
            work: value.get("work").map(|work| Arc::new(serde_json::from_value(work.clone()).unwrap())),
        }
    }

    fn pod(uid: &str, app: &str, owners: &[&str], phase: &str, ready: bool) -> Value {
        let owners: Vec<Value> = owners
            .iter()
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": uid, "controller": true}))
            .collect();
        let ready = if ready { "True" } else { "False" };
        json!({"metadata": {"name": uid, "uid": uid, "labels": {"app": app}, "ownerReferences": owners},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn claim(name: &str, uid: &str, volume: Option<&str>) -> Value {
        json!({"metadata": {"name": name, "uid": uid}, "spec": {"volumeName": volume}})
    }

    fn set(name: &str, replicas: u64) -> Value {
        json!({"metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"replicas": replicas, "selector": {}}})
    }

    fn web(replicas: u64) -> Value {
        json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {}, "template": {}}})
    }

    fn work(succeeded: i32, failed: i32, uncounted: [&[&str]; 2]) -> Value {
        let uncounted = json!({"succeeded": uncounted[0], "failed": uncounted[1]});
        json!({"work": {"status": {"succeeded": succeeded, "failed": failed, "uncountedTerminatedPods": uncounted}}})
    }

    /// A calm run with `maxSurge` 1 and `maxUnavailable` 1.
    fn scenario() -> Scenario {
        let (scenario, _) = Scenario::new(0);
        Scenario { surge: 1, unavailable: 1, calm: true, ..scenario }
    }

    #[test]
    fn each_invariant_holds_or_is_broken() {
        let up = |count: usize| {
            (0..count).map(|n| pod(&n.to_string(), "web", &["a"], "Running", true)).collect::<Vec<_>>()
        };
        let cases: Vec<(&str, Vec<Value>, Option<&str>)> = vec![
            (
                "a pod is adopted once",
                vec![
                    json!({"pods": [pod("p", "pair", &[], "Running", true)]}),
                    json!({"pods": [pod("p", "pair", &["a"], "Running", true)]}),
                    json!({"pods": [pod("p", "pair", &["a"], "Running", true)]}),
                ],
                None,
            ),
            (
                "two at once",
                vec![json!({"pods": [pod("p", "pair", &["a", "b"], "Running", true)]})],
                Some("2 controllers"),
            ),
            (
                "one after the other",
                vec![
                    json!({"pods": [pod("p", "pair", &["a"], "Running", true)]}),
                    json!({"pods": [pod("p", "pair", &["b"], "Running", true)]}),
                ],
                Some("belonged to a, and then to Some(\"b\")"),
            ),
            (
                "released",
                vec![
                    json!({"pods": [pod("p", "pair", &["a"], "Running", true)]}),
                    json!({"pods": [pod("p", "pair", &[], "Running", true)]}),
                ],
                Some("belonged to a, and then to None"),
            ),
            ("a job counts", vec![work(0, 1, [&["a"], &["b"]]), work(1, 2, [&[], &[]])], None),
            (
                "a job takes back",
                vec![work(2, 1, [&[], &[]]), work(3, 0, [&[], &[]])],
                Some("counted [2, 1], and then [3, 0]"),
            ),
            ("a pod that ended both ways", vec![work(0, 0, [&["a"], &["a"]])], Some("twice")),
            (
                "a claim finds its volume",
                vec![
                    json!({"claims": [claim("data-db-0", "u", None)]}),
                    json!({"claims": [claim("data-db-0", "u", Some("v"))], "disks": ["v"]}),
                ],
                None,
            ),
            (
                "lost",
                vec![json!({"claims": [claim("data-db-0", "u", None)]}), json!({})],
                Some("data-db-0 is lost"),
            ),
            (
                "made anew",
                vec![
                    json!({"claims": [claim("data-db-0", "u", None)]}),
                    json!({"claims": [claim("data-db-0", "w", None)]}),
                ],
                Some("is another one"),
            ),
            (
                "another volume",
                vec![
                    json!({"claims": [claim("data-db-0", "u", Some("v"))], "disks": ["v", "w"]}),
                    json!({"claims": [claim("data-db-0", "u", Some("w"))], "disks": ["v", "w"]}),
                ],
                Some("had Some(\"v\"), and then Some(\"w\")"),
            ),
            (
                "its storage is deleted",
                vec![
                    json!({"claims": [claim("data-db-0", "u", Some("v"))], "disks": ["v"]}),
                    json!({"claims": [claim("data-db-0", "u", Some("v"))], "disks": []}),
                ],
                Some("what is stored for the claim data-db-0 is lost"),
            ),
            (
                "a rollout within its limits",
                vec![
                    json!({"web": web(2), "sets": [set("a", 2)], "pods": up(2)}),
                    json!({"web": web(2), "sets": [set("a", 2), set("b", 1)], "pods": up(1)}),
                ],
                None,
            ),
            (
                "above maxSurge",
                vec![json!({"web": web(2), "sets": [set("a", 2), set("b", 2)], "pods": up(2)})],
                Some("4 replicas in all sets, with 2 wanted and maxSurge 1"),
            ),
            (
                "below the minimum",
                vec![
                    json!({"web": web(3), "sets": [set("a", 3)], "pods": up(3)}),
                    json!({"web": web(3), "sets": [set("a", 3)], "pods": up(1)}),
                ],
                Some("1 pods are available, 2 must be"),
            ),
        ];
        for (what, steps, broken) in cases {
            let mut seen = Seen::default();
            for step in &steps {
                seen.observe(&scenario(), &view(step));
            }
            match broken {
                None => assert!(seen.broken.is_empty(), "{what}: {:?}", seen.broken),
                Some(words) => {
                    assert!(seen.broken.iter().any(|one| one.contains(words)), "{what}: {:?}", seen.broken);
                }
            }
        }
    }

    #[test]
    fn claims_may_go_once_the_user_deletes_them() {
        let mut seen = Seen::default();
        seen.observe(&scenario(), &view(&json!({"claims": [claim("data-db-0", "u", None)]})));
        seen.claims_may_go = true;
        seen.observe(&scenario(), &view(&json!({})));
        assert!(seen.broken.is_empty(), "{:?}", seen.broken);
    }

    #[test]
    fn a_job_counts_each_pod_that_ended_once() {
        let mut seen = Seen::default();
        let mut going = pod("g", "work", &["j"], "Running", true);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let pods = [
            pod("s", "work", &["j"], "Succeeded", false),
            pod("f", "work", &["j"], "Failed", false),
            pod("r", "work", &["j"], "Running", true),
            going,
        ];
        seen.observe(&scenario(), &view(&json!({"pods": pods})));
        let cases = [
            ((1, 2), true),
            ((2, 1), true),
            ((1, 1), false),
            ((0, 3), false),
            ((3, 0), false),
            ((2, 2), false),
        ];
        for ((succeeded, failed), fits) in cases {
            assert_eq!(seen.counts_fit(succeeded, failed), fits, "{succeeded} succeeded, {failed} failed");
        }
    }
}
