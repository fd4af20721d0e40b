use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::{Value, json};

use super::{
    decide::{self, TRACKING, View, decide},
    indexes::COMPLETION_INDEX,
    policy::Failures,
};

#[test]
fn pods_tell_of_a_newer_job_than_is_known() {
    let pod = |phase: &str, tracked: bool| {
        let finalizers: &[&str] = if tracked { &[TRACKING] } else { &[] };
        let pod = json!({"metadata": {"name": "p", "finalizers": finalizers}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
    };
    for (status, pods, expected) in [
        (json!({}), vec![pod("Succeeded", true), pod("Failed", true), pod("Running", false)], false),
        (json!({}), vec![pod("Succeeded", false)], true),
        (json!({"succeeded": 1}), vec![pod("Succeeded", false)], false),
        (json!({"succeeded": 1}), vec![pod("Failed", false)], true),
        (json!({"uncountedTerminatedPods": {"failed": ["u"]}}), vec![pod("Failed", false)], false),
        (json!({"failed": 2}), vec![pod("Failed", false)], false),
    ] {
        let mut world = World::new(json!({}));
        world.job.status = Some(serde_json::from_value(status.clone()).unwrap());
        assert_eq!(decide::shows_more_than_counted(&world.job, &pods), expected, "{status}");
    }
}

#[test]
fn a_pod_that_was_released_after_the_job_was_read_tells_of_a_newer_one() {
    let mut world = World::new(json!({}));
    world.job.status = Some(
        serde_json::from_value(json!({"succeeded": 3, "uncountedTerminatedPods": {"failed": ["listed"]}}))
            .unwrap(),
    );
    for (uid, phase, tracked, expected) in [
        ("new", "Succeeded", false, true),
        ("new", "Failed", false, true),
        ("new", "Succeeded", true, false),
        ("new", "Running", false, false),
        ("listed", "Failed", false, false),
    ] {
        let finalizers: &[&str] = if tracked { &[TRACKING] } else { &[] };
        let pod = json!({"metadata": {"name": "p", "uid": uid, "finalizers": finalizers}, "status": {"phase": phase}});
        let pod = serde_json::from_value::<Pod>(pod).unwrap();
        assert_eq!(decide::was_counted_since(&world.job, [&pod]), expected, "{uid} {phase} {tracked}");
    }
}

/// A Job, its pods, and what the controller has done.
struct World {
    job: Job,
    pods: Vec<Pod>,
    failures: Failures,
    now: Timestamp,
    made: usize,
    after: Option<Duration>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut object = json!({"metadata": {"name": "j"}, "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6,
            "template": {"spec": {"containers": [], "restartPolicy": "Never"}}}});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        let now = "2030-01-01T00:00:00Z".parse().unwrap();
        let job = serde_json::from_value(object).unwrap();
        Self { job, pods: Vec::new(), failures: Failures::default(), now, made: 0, after: None }
    }

    /// One look of the controller, with everything that it decides carried out.
    fn look(&mut self) {
        let pods: Vec<_> = self.pods.iter().cloned().map(Arc::new).collect();
        let spec = self.job.spec.clone().unwrap();
        let view = View { job: &self.job, spec: &spec, pods: &pods, failures: self.failures, now: self.now };
        let decision = decide(view);
        for index in &decision.create {
            self.made += 1;
            let name = format!("p{}", self.made);
            let mut pod = json!({"metadata": {"annotations": index.map(|index| json!({COMPLETION_INDEX: index.to_string()}))}});
            if let Some(failed) = &decision.failed_before {
                let before = index.and_then(|index| failed.get(&index).copied()).unwrap_or_default();
                super::note_failures(&mut pod, before);
            }
            let annotations = &pod["metadata"]["annotations"];
            let metadata = json!({"name": name, "uid": name, "finalizers": [TRACKING], "annotations": annotations,
                "creationTimestamp": self.now.to_string()});
            let pod = json!({"metadata": metadata, "status": {"phase": "Running"}});
            self.pods.push(serde_json::from_value(pod).unwrap());
        }
        for (name, _) in &decision.delete {
            let pod = self.pods.iter_mut().find(|pod| pod.metadata.name.as_ref() == Some(name)).unwrap();
            pod.metadata.deletion_timestamp = Some(crate::controllers::pod_state::stored_time(self.now));
        }
        for name in &decision.release {
            let pod = self.pods.iter_mut().find(|pod| pod.metadata.name.as_ref() == Some(name)).unwrap();
            pod.metadata.finalizers = None;
        }
        self.job.status = Some(decision.status);
        self.failures = decision.failures;
        self.after = decision.after;
    }

    /// Looks until nothing changes, with pods that were told to go and are released going.
    fn settle(&mut self) {
        for _ in 0..50 {
            let before = (self.job.status.clone(), self.pods.clone());
            if decide::is_finished(&self.job) {
                return;
            }
            self.look();
            self.pods
                .retain(|pod| pod.metadata.deletion_timestamp.is_none() || pod.metadata.finalizers.is_some());
            if before == (self.job.status.clone(), self.pods.clone()) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn end(&mut self, name: &str, phase: &str) {
        let pod = self.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some(name)).unwrap();
        pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
    }

    fn running(&self) -> usize {
        self.pods.iter().filter(|pod| crate::controllers::pod_state::is_active(pod)).count()
    }

    /// The conditions that are true, and the counts.
    fn show(&self) -> String {
        let status = self.job.status.as_ref().unwrap();
        let conditions = status.conditions.iter().flatten().filter(|condition| condition.status == "True");
        let mut text: Vec<String> =
            conditions.map(|known| format!("{}:{}", known.type_, known.reason.clone().unwrap())).collect();
        let count = |count: Option<i32>| count.unwrap_or_default();
        text.push(format!("{}/{}", count(status.succeeded), count(status.failed)));
        text.join(" ")
    }
}

#[test]
fn a_job_runs_to_its_completions() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 2}));
    world.settle();
    assert_eq!(world.running(), 2);
    world.end("p1", "Succeeded");
    world.settle();
    assert_eq!((world.running(), world.made), (2, 3));
    world.end("p2", "Succeeded");
    world.end("p3", "Succeeded");
    world.settle();
    assert_eq!(world.show(), "SuccessCriteriaMet:CompletionsReached Complete:CompletionsReached 3/0");
    assert!(world.job.status.unwrap().completion_time.is_some());
}

#[test]
fn a_work_queue_ends_when_one_has_succeeded_and_none_runs() {
    let mut world = World::new(json!({"completions": null, "parallelism": 2}));
    world.settle();
    world.end("p1", "Succeeded");
    world.settle();
    assert_eq!((world.running(), world.made), (1, 2), "no new pod after the first success");
    world.end("p2", "Succeeded");
    world.settle();
    assert!(world.show().contains("Complete:"), "{}", world.show());
}

#[test]
fn failures_wait_and_count_against_the_limit() {
    let mut world = World::new(json!({"backoffLimit": 1}));
    world.settle();
    world.end("p1", "Failed");
    world.settle();
    assert_eq!(world.running(), 0);
    assert_eq!(world.after, Some(Duration::from_secs(10)));
    world.now += SignedDuration::from_secs(11);
    world.settle();
    world.end("p2", "Failed");
    world.settle();
    assert_eq!(world.show(), "FailureTarget:BackoffLimitExceeded Failed:BackoffLimitExceeded 0/2");
}

#[test]
fn the_deadline_stops_what_runs() {
    let mut world = World::new(json!({"activeDeadlineSeconds": 60}));
    world.settle();
    assert_eq!(world.after, Some(Duration::from_secs(60)));
    world.now += SignedDuration::from_secs(60);
    world.settle();
    assert_eq!(world.show(), "FailureTarget:DeadlineExceeded Failed:DeadlineExceeded 0/1");
}

#[test]
fn each_index_succeeds_once() {
    let mut world = World::new(json!({"completionMode": "Indexed", "completions": 4, "parallelism": 4}));
    world.settle();
    world.end("p1", "Succeeded");
    world.end("p3", "Failed");
    world.now += SignedDuration::from_secs(30);
    world.settle();
    assert_eq!(world.job.status.as_ref().unwrap().completed_indexes.as_deref(), Some("0"));
    assert_eq!(world.made, 5, "index 2 is tried again");
    for name in ["p2", "p4", "p5"] {
        world.end(name, "Succeeded");
    }
    world.settle();
    assert_eq!(world.job.status.as_ref().unwrap().completed_indexes.as_deref(), Some("0-3"));
    assert_eq!(world.show(), "SuccessCriteriaMet:CompletionsReached Complete:CompletionsReached 4/1");
}

#[test]
fn a_success_policy_ends_the_job_early() {
    let policy = json!({"rules": [{"succeededIndexes": "1"}]});
    let mut world = World::new(
        json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "successPolicy": policy}),
    );
    world.settle();
    world.end("p2", "Succeeded");
    world.settle();
    assert!(
        world.show().starts_with("SuccessCriteriaMet:SuccessPolicy Complete:SuccessPolicy"),
        "{}",
        world.show()
    );
}

#[test]
fn a_suspended_job_runs_nothing_until_it_is_resumed() {
    let mut world = World::new(json!({"suspend": true}));
    world.settle();
    assert_eq!((world.made, world.show().as_str()), (0, "Suspended:JobSuspended 0/0"));
    assert!(world.job.status.as_ref().unwrap().start_time.is_none());
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!((world.made, world.show().as_str()), (1, "0/0"));
    assert!(world.job.status.as_ref().unwrap().start_time.is_some());
}

#[test]
fn a_pod_is_counted_once_however_often_it_is_looked_at() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2}));
    world.settle();
    world.end("p1", "Succeeded");
    // The finalizer does not come off for a while.
    for _ in 0..3 {
        world.look();
        world.pods[0].metadata.finalizers = Some(vec![TRACKING.to_owned()]);
    }
    assert_eq!(world.show(), "0/0", "its uid waits in the status");
    world.settle();
    assert_eq!(world.show(), "1/0");
}

/// Cases of upstream's `TestSyncJobWithJobBackoffLimitPerIndex` and of its integration tests (KEP-3850).
#[test]
fn indexes_fail_one_by_one() {
    let mut world = World::new(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "backoffLimit": i32::MAX, "backoffLimitPerIndex": 1}));
    world.settle();
    world.end("p1", "Failed");
    world.settle();
    let status = |world: &World| world.job.status.clone().unwrap();
    assert_eq!(
        (world.made, world.after),
        (3, Some(Duration::from_secs(10))),
        "index 0 waits, the others run"
    );
    assert!(world.pods[0].metadata.finalizers.is_some(), "the failed pod is kept for its successor");
    assert_eq!(status(&world).failed_indexes.as_deref(), Some(""));
    world.now += SignedDuration::from_secs(10);
    world.settle();
    assert_eq!(world.made, 4);
    let count = crate::controllers::pod_state::annotation(&world.pods[3], super::FAILURE_COUNT);
    assert_eq!(count, Some("1"));
    assert!(world.pods[0].metadata.finalizers.is_none(), "it is counted now");
    world.end("p4", "Failed");
    world.end("p2", "Succeeded");
    world.settle();
    assert_eq!(status(&world).failed_indexes.as_deref(), Some("0"));
    assert_eq!(world.made, 4, "index 0 is given up");
    world.end("p3", "Succeeded");
    world.settle();
    assert_eq!(world.show(), "FailureTarget:FailedIndexes Failed:FailedIndexes 2/2");
}

#[test]
fn too_many_failed_indexes_fail_the_job_and_a_policy_may_give_one_up_at_once() {
    let rules = json!({"rules": [
        {"action": "FailIndex", "onPodConditions": [{"type": "Broken", "status": "True"}]},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]});
    let mut world = World::new(json!({"completionMode": "Indexed", "completions": 5, "parallelism": 5,
        "backoffLimit": i32::MAX, "backoffLimitPerIndex": 3, "maxFailedIndexes": 1, "podFailurePolicy": rules}));
    let fail = |world: &mut World, name: &str, kind: &str| {
        world.end(name, "Failed");
        let pod = world.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some(name)).unwrap();
        let conditions = json!([{"type": kind, "status": "True"}]);
        pod.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
    };
    world.settle();
    fail(&mut world, "p3", "DisruptionTarget");
    fail(&mut world, "p1", "Broken");
    world.settle();
    assert_eq!(world.job.status.as_ref().unwrap().failed_indexes.as_deref(), Some("0"));
    world.now += SignedDuration::from_secs(10);
    world.settle();
    let annotation = |key| crate::controllers::pod_state::annotation(&world.pods[5], key);
    assert_eq!(
        (annotation(super::FAILURE_COUNT), annotation(super::IGNORED_FAILURE_COUNT)),
        (Some("0"), Some("1"))
    );
    fail(&mut world, "p2", "Broken");
    world.settle();
    let end = "FailureTarget:MaxFailedIndexesExceeded Failed:MaxFailedIndexesExceeded";
    assert!(world.show().starts_with(end), "{}", world.show());
    assert_eq!(world.job.status.as_ref().unwrap().failed_indexes.as_deref(), Some("0,1"));
}
