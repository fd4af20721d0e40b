use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::runtime::Exit;

/// A node without a runtime: actions are done at once, time moves when it is told to.
struct Bench {
    pod: Pod,
    machine: PodMachine,
    observed: ObservedPod,
    probes: BTreeMap<(Arc<str>, ProbeKind), bool>,
    now: Timestamp,
    /// What was done.
    done: Vec<String>,
    finished: bool,
    status: PodStatus,
    wake_at: Option<Timestamp>,
}

fn pod(spec: Value) -> Pod {
    let meta = json!({"name": "web", "namespace": "shop", "uid": "1", "generation": 1});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
}

impl Bench {
    fn new(spec: Value) -> Self {
        Self {
            pod: pod(spec),
            machine: PodMachine::default(),
            observed: ObservedPod::default(),
            probes: BTreeMap::new(),
            now: Timestamp::UNIX_EPOCH,
            done: Vec::new(),
            finished: false,
            status: PodStatus::default(),
            wake_at: None,
        }
    }

    fn step(&mut self) -> Step {
        self.machine.step(&Input {
            pod: &self.pod,
            gone: false,
            observed: &self.observed,
            probes: &self.probes,
            busy: &BTreeSet::new(),
            host_ips: &[IpAddr::from([10, 0, 0, 1])],
            scheme: "test",
            now: self.now,
        })
    }

    /// Does what is to be done until there is no more. Says what was done.
    fn run(&mut self) -> String {
        self.done.clear();
        for _ in 0..50 {
            let step = self.step();
            self.wake_at = step.wake_at;
            self.status = step.status;
            if step.actions.is_empty() || self.finished {
                return self.done.join(" ");
            }
            for action in step.actions {
                self.act(&action);
            }
        }
        panic!("it does not come to rest: {:?}", self.done);
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::RunPod => {
                self.done.push("pod".to_owned());
                self.observed.addresses = Some(vec![IpAddr::from([10, 1, 0, 1])]);
            }
            Action::Start { container, attempt } => {
                self.done.push(format!("+{container}{attempt}"));
                let started = ObservedContainer {
                    image_id: None,
                    name: Arc::clone(container),
                    id: format!("{container}-{attempt}"),
                    attempt: *attempt,
                    phase: ContainerPhase::Running { started_at: self.now },
                };
                self.probes.retain(|(name, _), _| name != container);
                self.observed.containers.retain(|known| known.name != *container);
                self.observed.containers.push(started);
            }
            Action::Stop { container, grace, .. } => {
                self.done.push(format!("-{container}({})", grace.as_secs()));
                self.exit(container, 143);
            }
            Action::Resize { container } => {
                self.done.push(format!("~{container}"));
                let given = self.machine.resources_of(container, false).unwrap();
                self.machine.resized(container, Ok(given), self.now);
            }
            Action::Finish => {
                self.done.push("finish".to_owned());
                self.finished = true;
            }
        }
    }

    fn exit(&mut self, name: &str, code: i32) {
        let now = self.now;
        if let Some(found) = self.observed.containers.iter_mut().find(|c| *c.name == *name)
            && let ContainerPhase::Running { started_at } = found.phase
        {
            let reason = if code == 0 { "Completed" } else { "Error" };
            let exit = Exit { started_at, finished_at: now, code, signal: None, reason, message: None };
            found.phase = ContainerPhase::Exited(exit);
        }
    }

    fn probe(&mut self, name: &str, kind: ProbeKind, result: bool) {
        self.probes.insert((name.into(), kind), result);
    }

    fn pass(&mut self, seconds: i64) {
        self.now = later(self.now, SignedDuration::from_secs(seconds));
    }

    fn delete(&mut self, grace: i64) {
        let meta = &mut self.pod.metadata;
        meta.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
        meta.deletion_grace_period_seconds = Some(grace);
    }

    /// The phase and the conditions that are not true.
    fn shows(&self) -> String {
        let mut out = self.status.phase.clone().unwrap_or_default();
        for condition in self.status.conditions.iter().flatten().filter(|c| c.status != "True") {
            out.push_str(&format!(" !{}", condition.type_));
            if let Some(reason) = &condition.reason {
                out.push_str(&format!("({reason})"));
            }
        }
        out
    }

    /// The state of a container and of its start before.
    fn state(&self, name: &str) -> String {
        let lists = [&self.status.container_statuses, &self.status.init_container_statuses];
        let status = lists.into_iter().flatten().flatten().find(|status| status.name == name).unwrap();
        let text = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            let state = state.clone().unwrap_or_default();
            let waiting = state.waiting.map(|state| state.reason.unwrap_or_default());
            let ended = state
                .terminated
                .map(|state| format!("{}:{}", state.reason.unwrap_or_default(), state.exit_code));
            let runs = state.running.map(|_| "Running".to_owned());
            waiting.or(ended).or(runs).unwrap_or_default()
        };
        format!("{} last={} restarts={}", text(&status.state), text(&status.last_state), status.restart_count)
    }
}

fn main_only(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]})
}

#[test]
fn a_plain_pod_runs_in_one_go() {
    let mut bench = Bench::new(main_only("Always"));
    assert_eq!(bench.run(), "pod +a0");
    assert_eq!(bench.shows(), "Running");
    assert_eq!(bench.status.pod_ip.as_deref(), Some("10.1.0.1"));
    assert_eq!(bench.status.host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(bench.status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(bench.run(), "");
}

#[test]
fn before_its_sandbox_a_pod_waits() {
    let mut bench = Bench::new(main_only("Always"));
    bench.status = bench.step().status;
    let expected =
        "Pending !PodReadyToStartContainers !Ready(ContainersNotReady) !ContainersReady(ContainersNotReady)";
    assert_eq!(bench.shows(), expected);
    assert_eq!(bench.state("a"), "ContainerCreating last= restarts=0");
    bench.machine.pod_refused(bench.now);
    assert!(bench.step().actions.is_empty());
    bench.pass(10);
    assert_eq!(bench.run(), "pod +a0");
}

#[test]
fn init_containers_go_one_by_one_and_sidecars_stay() {
    let mut bench = Bench::new(json!({
        "initContainers": [
            {"name": "one"},
            {"name": "side", "restartPolicy": "Always", "startupProbe": {}},
            {"name": "two"},
        ],
        "containers": [{"name": "a"}, {"name": "b"}],
    }));
    assert_eq!(bench.run(), "pod +one0");
    assert_eq!(bench.state("a"), "PodInitializing last= restarts=0");
    assert!(bench.shows().contains("Pending !Initialized(ContainersNotInitialized)"));
    bench.exit("one", 0);
    assert_eq!(bench.run(), "+side0");
    bench.probe("side", ProbeKind::Startup, true);
    assert_eq!(bench.run(), "+two0");
    bench.exit("two", 0);
    assert_eq!(bench.run(), "+a0 +b0");
    assert_eq!(bench.shows(), "Running");
    bench.exit("side", 1);
    assert_eq!(bench.run(), "+side1");
    bench.delete(30);
    assert_eq!(bench.run(), "-a(30) -b(30) -side(30) finish");
}

#[test]
fn a_failed_init_container_fails_the_pod_or_is_tried_again() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let mut bench = Bench::new(spec("Never"));
    bench.run();
    bench.exit("i", 1);
    assert_eq!(bench.run(), "");
    assert!(bench.shows().starts_with("Failed"), "{}", bench.shows());
    let mut bench = Bench::new(spec("Always"));
    bench.run();
    bench.exit("i", 1);
    assert_eq!(bench.run(), "+i1");
    assert!(bench.shows().starts_with("Pending"));
}

#[test]
fn crash_loops_back_off() {
    let mut bench = Bench::new(main_only("Always"));
    bench.run();
    let mut waits = Vec::new();
    for _ in 0..8 {
        bench.exit("a", 1);
        bench.run();
        if let Some(at) = bench.wake_at.take() {
            assert!(bench.state("a").starts_with("CrashLoopBackOff last=Error:1"), "{}", bench.state("a"));
            assert!(bench.shows().starts_with("Running"));
            waits.push(at.duration_since(bench.now).as_secs());
            bench.now = at;
            bench.run();
        } else {
            waits.push(0);
        }
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    bench.pass(601);
    bench.exit("a", 1);
    assert_eq!(bench.run(), "+a9", "after ten minutes of running it starts at once");
}

#[test]
fn policies_decide_phases() {
    let check = |policy: &str, code: i32, done: &str, shows: &str| {
        let mut bench = Bench::new(main_only(policy));
        bench.run();
        bench.exit("a", code);
        assert_eq!(
            (bench.run().as_str(), bench.status.phase.as_deref()),
            (done, Some(shows)),
            "{policy} {code}"
        );
    };
    check("Never", 0, "", "Succeeded");
    check("Never", 1, "", "Failed");
    check("OnFailure", 0, "", "Succeeded");
    check("OnFailure", 1, "+a1", "Running");
    check("Always", 0, "+a1", "Running");
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let ruled = json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    let mut bench = Bench::new(ruled);
    bench.run();
    bench.exit("a", 42);
    assert_eq!(bench.run(), "+a1");
    bench.pass(11);
    bench.exit("a", 1);
    assert_eq!((bench.run().as_str(), bench.status.phase.as_deref()), ("", Some("Failed")));
}

#[test]
fn probes_gate_and_kill() {
    let probe = json!({"periodSeconds": 1});
    let mut bench = Bench::new(json!({"terminationGracePeriodSeconds": 7, "containers": [
        {"name": "a", "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe},
    ]}));
    bench.run();
    let started = |bench: &Bench| {
        let status = &bench.status.container_statuses.as_ref().unwrap()[0];
        (status.started, status.ready)
    };
    assert_eq!(started(&bench), (Some(false), false));
    bench.probe("a", ProbeKind::Startup, true);
    bench.run();
    assert_eq!(started(&bench), (Some(true), false));
    bench.probe("a", ProbeKind::Readiness, true);
    bench.run();
    assert_eq!((started(&bench), bench.shows().as_str()), ((Some(true), true), "Running"));
    bench.probe("a", ProbeKind::Liveness, false);
    assert_eq!(bench.run(), "-a(7) +a1");
    assert_eq!(bench.state("a"), "Running last=Error:143 restarts=1");
}

#[test]
fn readiness_gates_wait_for_others() {
    let mut spec = main_only("Always");
    spec["readinessGates"] = json!([{"conditionType": "lb"}]);
    let mut bench = Bench::new(spec);
    bench.run();
    assert_eq!(bench.shows(), "Running !Ready(ReadinessGatesNotReady)");
    let condition = serde_json::from_value(json!({"type": "lb", "status": "True"})).unwrap();
    bench.pod.status = Some(PodStatus { conditions: Some(vec![condition]), ..PodStatus::default() });
    bench.run();
    assert_eq!(bench.shows(), "Running");
}

#[test]
fn a_deletion_can_be_hastened_and_never_delayed() {
    let mut bench = Bench::new(main_only("Always"));
    bench.run();
    bench.delete(30);
    let stop = |step: Step| match &step.actions[..] {
        [Action::Stop { grace, .. }] => grace.as_secs(),
        other => panic!("{other:?}"),
    };
    assert_eq!(stop(bench.step()), 30);
    bench.pass(5);
    bench.delete(1);
    assert_eq!(stop(bench.step()), 1);
    bench.delete(60);
    assert!(stop(bench.step()) <= GRACE_MIN.as_secs());
    bench.exit("a", 137);
    assert_eq!(bench.run(), "finish");
    assert_eq!(bench.status.phase.as_deref(), Some("Failed"));
}

#[test]
fn the_deadline_fails_the_pod() {
    let mut spec = main_only("Always");
    spec["activeDeadlineSeconds"] = json!(60);
    let mut bench = Bench::new(spec);
    bench.run();
    assert_eq!(bench.wake_at, Some(later(bench.now, SignedDuration::from_secs(60))));
    bench.pass(60);
    assert_eq!(bench.run(), "-a(30)");
    assert_eq!(bench.status.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(bench.shows().starts_with("Failed"));
    bench.pass(600);
    assert_eq!(bench.run(), "", "what has failed stays so");
}

#[test]
fn refusals_are_shown_and_tried_again() {
    let mut bench = Bench::new(main_only("Always"));
    bench.observed.addresses = Some(Vec::new());
    let name: Arc<str> = "a".into();
    bench.machine.start_refused(&name, "ErrImagePull", "no such image".to_owned(), bench.now);
    assert!(bench.step().actions.is_empty());
    bench.status = bench.step().status;
    assert_eq!(bench.state("a"), "ErrImagePull last= restarts=0");
    bench.pass(10);
    assert_eq!(bench.step().actions.len(), 1);
    bench.machine.start_refused(&name, "ErrImagePull", "no such image".to_owned(), bench.now);
    bench.status = bench.step().status;
    assert_eq!(bench.state("a"), "ImagePullBackOff last= restarts=0");
    bench.pass(20);
    assert_eq!(bench.run(), "+a0");
}

/// An agent without memory goes on from what the API and the runtime say.
#[test]
fn a_new_machine_goes_on() {
    let mut bench = Bench::new(main_only("Always"));
    bench.run();
    bench.exit("a", 1);
    bench.run();
    bench.pod.status = Some(bench.status.clone());
    bench.machine = PodMachine::default();
    assert_eq!(bench.run(), "", "what runs is left alone");
    assert_eq!(bench.state("a"), "Running last=Error:1 restarts=1");
    bench.observed = ObservedPod::default();
    bench.machine = PodMachine::default();
    assert_eq!(bench.run(), "pod +a2", "what is gone is started once more, and counted");
}

proptest! {
    /// Whatever happens, the machine comes to rest, starts init containers in order, counts restarts one by one, and
    /// starts nothing in a pod that is deleted.
    #[test]
    fn it_comes_to_rest(
        policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        events in prop::collection::vec((0..5_usize, 0..3_i32, 0..400_i64), 1..40),
    ) {
        let mut bench = Bench::new(json!({
            "restartPolicy": policy,
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b", "livenessProbe": {}}],
        }));
        let mut starts: BTreeMap<String, u32> = BTreeMap::new();
        for (event, code, seconds) in events {
            bench.pass(seconds);
            match event {
                0..=3 => bench.exit(["i", "s", "a", "b"][event], code),
                _ => bench.probe("b", ProbeKind::Liveness, code > 0),
            }
            bench.run();
            for start in bench.done.iter().filter_map(|done| done.strip_prefix('+')) {
                let (name, attempt) = start.split_at(1);
                let count = starts.entry(name.to_owned()).or_default();
                prop_assert_eq!(attempt.parse::<u32>().unwrap(), *count);
                *count += 1;
                if name != "i" {
                    prop_assert!(matches!(
                        &find(&bench.observed, "i").unwrap().phase,
                        ContainerPhase::Exited(exit) if exit.code == 0
                    ));
                }
            }
        }
        bench.delete(5);
        bench.run();
        prop_assert!(bench.finished);
        prop_assert!(!bench.done.iter().any(|done| done.starts_with('+')), "{:?}", bench.done);
    }
}

/// A pod that the node ends fails when its last container has ended, not before, and is then a target of disruption (KEP-3329).
#[test]
fn a_pod_that_the_node_ends_fails_when_nothing_runs_any_more() {
    let end = |grace_seconds| NodeEnd {
        reason: "Evicted".to_owned(),
        message: "why".to_owned(),
        grace_seconds,
        is_refusal: false,
        is_disruption: true,
    };
    for (grace, expected) in [(Some(1), "-a(1)"), (Some(600), "-a(30)"), (None, "-a(30)"), (Some(0), "-a(1)")]
    {
        let mut bench = Bench::new(main_only("Always"));
        bench.run();
        bench.machine.end(end(grace));
        bench.machine.end(NodeEnd { reason: "Later".to_owned(), ..end(None) });
        let step = bench.step();
        assert_eq!(step.status.phase.as_deref(), Some("Running"), "something runs");
        assert_eq!(bench.run(), expected, "{grace:?}");
        assert_eq!(
            (bench.status.phase.as_deref(), bench.status.reason.as_deref()),
            (Some("Failed"), Some("Evicted"))
        );
        let conditions = bench.status.conditions.clone().unwrap_or_default();
        let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
        assert_eq!(target.reason.as_deref(), Some("TerminationByKubelet"));
        bench.pass(600);
        assert_eq!(bench.run(), "", "what has failed stays so");
        assert_eq!(bench.status.conditions.as_ref(), Some(&conditions));
    }
    let mut refused = Bench::new(main_only("Always"));
    refused.machine.end(NodeEnd { is_refusal: true, ..end(None) });
    assert_eq!(refused.run(), "");
    assert_eq!(refused.status.phase.as_deref(), Some("Failed"));
    assert_eq!((&refused.status.container_statuses, &refused.status.conditions), (&None, &None));
}

/// Changes in place (KEP-1287): by the policy of what changes, shown while they are under way, tried again when they are refused.
#[test]
fn containers_get_what_the_pod_was_given() {
    let spec = |cpu: &str, memory: &str| {
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let resources = json!({"requests": {"cpu": cpu, "memory": memory}});
        json!({"containers": [{"name": "a", "image": "i", "resources": resources, "resizePolicy": policy}]})
    };
    let room = Room { capacity: [4000, 1 << 40], used: [0, 0], ..Room::default() };
    let wants = |bench: &mut Bench, cpu: &str, memory: &str| {
        bench.pod = pod(spec(cpu, memory));
        bench.machine.consider_resize(&bench.pod, false, &room)
    };
    let in_progress = |status: &PodStatus| {
        let conditions = status.conditions.iter().flatten();
        let mut found = conditions.filter(|condition| condition.type_ == "PodResizeInProgress");
        found.next().map(|condition| condition.reason.clone().unwrap_or_default())
    };
    let mut bench = Bench::new(spec("1", "1Gi"));
    assert!(!wants(&mut bench, "1", "1Gi"));
    assert_eq!(bench.run(), "pod +a0");
    assert!(wants(&mut bench, "2", "1Gi"));
    let step = bench.step();
    assert_eq!(step.actions, [Action::Resize { container: "a".into() }]);
    assert_eq!(in_progress(&step.status).as_deref(), Some(""));
    let shown = &step.status.container_statuses.as_ref().unwrap()[0];
    let cpu = |list: &Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        list.as_ref().unwrap()["cpu"].0.clone()
    };
    let has = &shown.resources.as_ref().unwrap().requests;
    assert_eq!((cpu(&shown.allocated_resources), cpu(has)), ("2".to_owned(), "1".to_owned()));

    bench.machine.resized(&"a".into(), Err("no".to_owned()), bench.now);
    let step = bench.step();
    assert!(step.actions.is_empty());
    assert_eq!(in_progress(&step.status).as_deref(), Some("Error"));
    assert_eq!(step.wake_at, Some(later(bench.now, RETRY_AFTER)));
    bench.pass(10);
    assert_eq!(bench.run(), "~a");
    assert_eq!(in_progress(&bench.status), None);

    // A restart that is asked for is no crash: there is no back-off, however often.
    for (memory, start) in [("2Gi", "-a(30) +a1"), ("3Gi", "-a(30) +a2"), ("4Gi", "-a(30) +a3")] {
        assert!(wants(&mut bench, "2", memory));
        assert_eq!(bench.run(), start);
        assert_eq!(in_progress(&bench.status), None, "{memory}");
    }
    // What can't be given changes nothing, and a start has what was given.
    assert!(!wants(&mut bench, "9", "4Gi"));
    bench.exit("a", 1);
    assert_eq!(bench.run(), "+a4");
    let given = bench.machine.resources_of("a", false).unwrap();
    assert_eq!(cpu(&given.requests), "2");
    let conditions = bench.status.conditions.clone().unwrap_or_default();
    let pending = conditions.iter().find(|condition| condition.type_ == "PodResizePending").unwrap();
    assert_eq!(pending.reason.as_deref(), Some("Infeasible"));
}

/// KEP-5532: one container's end by its rule restarts all, init containers first; the sandbox stays.
#[test]
fn one_end_restarts_all_containers() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]);
    let mut bench = Bench::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "init"}, {"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "restartPolicyRules": rules}, {"name": "b"}],
    }));
    bench.run();
    bench.exit("init", 0);
    assert_eq!(bench.run(), "+side0 +a0 +b0");
    let running = "Running !AllContainersRestarting";
    assert_eq!(bench.shows(), running);

    bench.exit("a", 88);
    let step = bench.step();
    let conditions = step.status.conditions.clone().unwrap();
    let told = conditions.iter().find(|condition| condition.type_ == "AllContainersRestarting").unwrap();
    assert_eq!((&*told.status, told.reason.as_deref()), ("True", Some("RestartAllContainersStarted")));
    assert_eq!(step.status.phase.as_deref(), Some("Running"));
    // Nobody gets any grace, what runs no more is not stopped, and the pod begins again at once.
    assert_eq!(bench.run(), "-b(0) -side(0) +init1");
    assert_eq!(bench.state("b"), "RestartingAllContainers last=RestartingAllContainers:137 restarts=1");
    let starting =
        "Pending !Ready(ContainersNotReady) !ContainersReady(ContainersNotReady) !AllContainersRestarting";
    assert_eq!(bench.shows(), starting);
    bench.exit("init", 0);
    assert_eq!(bench.run(), "+side1 +a1 +b1");
    assert_eq!(bench.shows(), running);
    assert_eq!(bench.state("a"), "Running last=RestartingAllContainers:137 restarts=1");

    // Another end is as the policy says.
    bench.exit("a", 1);
    bench.exit("b", 0);
    bench.run();
    assert_eq!(bench.status.phase.as_deref(), Some("Failed"));
    assert_eq!(bench.state("a"), "Error:1 last=RestartingAllContainers:137 restarts=1");
}

/// The agent that began it is gone: the next one goes on, by what the API was told.
#[test]
fn a_restart_of_all_goes_on_with_the_next_agent() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]);
    let mut bench =
        Bench::new(json!({"containers": [{"name": "a", "restartPolicyRules": rules}, {"name": "b"}]}));
    assert_eq!(bench.run(), "pod +a0 +b0");
    bench.exit("a", 88);
    bench.pod.status = Some(bench.step().status);
    bench.machine = PodMachine::default();
    assert_eq!(bench.run(), "-b(0) +a1 +b1");
}

/// A pod of one container: that all are restarted is told, then it is done.
#[test]
fn a_restart_of_all_is_told_before_it_is_over() {
    let rules =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0]}}]);
    let mut bench = Bench::new(json!({"containers": [{"name": "a", "restartPolicyRules": rules}]}));
    assert_eq!(bench.run(), "pod +a0");
    for attempt in 1..4 {
        bench.exit("a", 1);
        assert_eq!(bench.run(), "");
        let told =
            bench.status.conditions.iter().flatten().find(|one| one.type_ == "AllContainersRestarting");
        assert_eq!(told.unwrap().status, "True");
        assert_eq!(bench.wake_at, Some(bench.now));
        assert_eq!(bench.run(), format!("+a{attempt}"));
    }
}
