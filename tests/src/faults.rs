//! Controllers under faults, from a seed: a cluster whose controllers meet with delays, lost answers, conflicts, stale caches and
//! restarts, while a user changes things. What must always hold is checked after every event, and where everything comes to rest is
//! compared with a run without faults.
//!
//! `cargo run --release -p kplane-tests --example fault_runs -- 7` repeats the run of the seed 7.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::Pod,
};
use kplane::Cluster;
use kreconcile::{
    Informer, Informers, Manager, Running, Selection, Start, controllers,
    testing::{FaultSource, Faults},
};
use kruntime::runtime::{
    ContainerConfig, SandboxConfig,
    simulated::{Plan, Script, SimulatedRuntime},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy},
};
use serde_json::{Value, json};

/// How long everything may take to come to rest, in the cluster's time.
const REST_MAX: Duration = Duration::from_secs(4 * 3600);
/// How often it is looked whether everything is at rest.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The changes that a user makes in one run, at most.
const CHANGES_MAX: u64 = 8;
/// How often the controllers end one after another, at most.
const RESTARTS_MAX: u64 = 4;

/// A small generator of numbers (SplitMix64), so that what a user does is the same with and without faults.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }
}

/// Every fifth container of a job fails.
#[derive(Debug)]
struct Unreliable(Mutex<Dice>);

impl Script for Unreliable {
    fn plan(&self, pod: &SandboxConfig, _: &ContainerConfig) -> Plan {
        let mut dice = lock(&self.0);
        if pod.name.starts_with("work-") {
            let run_time = Some(Duration::from_secs(dice.between(1, 20)));
            return Plan { run_time, exit_code: i32::from(dice.between(1, 5) == 1), ..Plan::forever() };
        }
        Plan { start_delay: Duration::from_millis(dice.between(0, 3000)), ..Plan::forever() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the seed says about a run.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    seed: u64,
    replicas: u64,
    surge: u64,
    unavailable: u64,
    members: u64,
    completions: u64,
    parallelism: u64,
    /// Only new templates, nothing is scaled or deleted: then as many pods are available as there must be.
    calm: bool,
}

impl Scenario {
    fn new(seed: u64) -> (Self, Dice) {
        let mut dice = Dice(seed);
        let surge = dice.between(0, 2);
        let scenario = Self {
            seed,
            replicas: dice.between(2, 5),
            surge,
            unavailable: dice.between(u64::from(surge == 0), 2),
            members: dice.between(1, 4),
            completions: dice.between(1, 6),
            parallelism: dice.between(1, 4),
            calm: dice.between(0, 1) == 0,
        };
        (scenario, dice)
    }

    fn template(app: &str) -> Value {
        json!({"metadata": {"labels": {"app": app}}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "app:1"}]}})
    }

    fn objects(&self) -> (Deployment, StatefulSet, Job) {
        let mut work = Self::template("work");
        work["spec"]["restartPolicy"] = json!("Never");
        let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": self.replicas,
            "selector": {"matchLabels": {"app": "web"}}, "template": Self::template("web"),
            "strategy": {"rollingUpdate": {"maxSurge": self.surge, "maxUnavailable": self.unavailable}}}});
        let db = json!({"metadata": {"name": "db"}, "spec": {"replicas": self.members, "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}}, "template": Self::template("db")}});
        let work = json!({"metadata": {"name": "work"}, "spec": {"completions": self.completions,
            "parallelism": self.parallelism, "backoffLimit": 1000, "template": work}});
        let read = "these objects are well-formed";
        (
            serde_json::from_value(web).expect(read),
            serde_json::from_value(db).expect(read),
            serde_json::from_value(work).expect(read),
        )
    }
}

/// What has been seen of a run, through a client without faults.
#[derive(Debug, Default)]
struct Seen {
    /// The pods of the job that have ended, by uid, and whether they succeeded. `None`: it was being deleted before, and a job
    /// counts such a pod as failed unless it has seen it succeed by then (upstream's `isPodFailed`).
    ended: BTreeMap<String, Option<bool>>,
    /// The greatest number of replicas that was ever asked for.
    wanted_max: i32,
    /// Whether all replicas were available once.
    was_up: bool,
    broken: BTreeSet<String>,
}

struct Watcher {
    scenario: Scenario,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    seen: Mutex<Seen>,
}

fn is_ready(pod: &Pod) -> bool {
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

fn has_app(pod: &Pod, app: &str) -> bool {
    pod.labels().get("app").is_some_and(|label| label == app)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

impl Watcher {
    /// What must hold at any moment.
    fn check(&self) {
        let mut seen = lock(&self.seen);
        let pods = self.pods.in_namespace("default");
        for pod in pods.iter().filter(|pod| has_app(pod, "work")) {
            let result = match (phase(pod), &pod.metadata.deletion_timestamp) {
                (_, Some(_)) => None,
                ("Succeeded", None) => Some(true),
                ("Failed", None) => Some(false),
                _ => continue,
            };
            // What was seen first counts: what has ended is deleted later.
            seen.ended.entry(pod.uid().unwrap_or_default()).or_insert(result);
        }
        for pod in &pods {
            let owners = pod.owner_references().iter().filter(|owner| owner.controller == Some(true)).count();
            if owners > 1 {
                seen.broken.insert(format!("{} has {owners} controllers", pod.name_any()));
            }
        }
        let Some(web) = self.deployments.get("default", "web") else { return };
        if web.metadata.deletion_timestamp.is_some() {
            return;
        }
        let wanted = web.spec.replicas.unwrap_or(1);
        seen.wanted_max = seen.wanted_max.max(wanted);
        let surge = i32::try_from(self.scenario.surge).unwrap_or(0);
        let sets = self.sets.in_namespace("default");
        let asked: i32 = sets.iter().filter_map(|set| set.spec.replicas).sum();
        if asked > seen.wanted_max + surge {
            let most = seen.wanted_max;
            seen.broken
                .insert(format!("{asked} replicas in all sets, with {most} wanted and maxSurge {surge}"));
        }
        let live = |pod: &&Arc<Pod>| has_app(pod, "web") && pod.metadata.deletion_timestamp.is_none();
        let up = pods.iter().filter(live).filter(|pod| is_ready(pod)).count();
        let up = i32::try_from(up).unwrap_or(i32::MAX);
        seen.was_up |= up >= wanted;
        let least = wanted - i32::try_from(self.scenario.unavailable).unwrap_or(0);
        if self.scenario.calm && seen.was_up && up < least {
            let sets = sets.iter().map(|set| (set.name_any(), set.spec.replicas)).collect::<Vec<_>>();
            let pods =
                pods.iter().filter(live).map(|pod| (pod.name_any(), not_ready(pod))).collect::<Vec<_>>();
            seen.broken.insert(format!("{up} pods are available, {least} must be: {sets:?} {pods:?}"));
        }
    }

    /// Checks after each batch of events.
    async fn watch(self: Arc<Self>) {
        let (mut pods, mut sets) = (self.pods.subscribe(), self.sets.subscribe());
        let mut deployments = self.deployments.subscribe();
        loop {
            let more = tokio::select! {
                batch = pods.next() => batch.is_some(),
                batch = sets.next() => batch.is_some(),
                batch = deployments.next() => batch.is_some(),
            };
            if !more {
                return;
            }
            self.check();
        }
    }
}

/// A cluster whose controllers can be started anew.
struct World {
    cluster: Cluster,
    source: Option<FaultSource>,
    running: Option<Running>,
}

impl World {
    fn start_controllers(&mut self) {
        let client = self.cluster.client();
        let client = self.source.as_ref().map_or(client.clone(), |source| source.client(client));
        let context = controllers::Context::new(client, Arc::clone(self.cluster.clock()));
        let mut manager = Manager::new().informers(context.informers());
        for controller in controllers::defaults(&context) {
            manager = manager.add(Start::Leading, controller);
        }
        // What ran before ends wherever it is.
        self.running = Some(manager.start());
    }

    /// Starts controllers while the ones before go on: two leaders, until the first one learns that it is none any more.
    async fn take_over(&mut self, learns_after: Duration) {
        let before = self.running.take();
        self.start_controllers();
        tokio::time::sleep(learns_after).await;
        drop(before);
    }
}

/// Plays the scenario of a seed, with or without faults, and says where everything comes to rest.
///
/// # Errors
/// What did not hold, or did not come to rest.
pub async fn run(seed: u64, faults: Option<Faults>) -> Result<String, String> {
    let (scenario, mut dice) = Scenario::new(seed);
    let clock: Arc<dyn kcore::Clock> = Arc::new(kcore::TokioClock::new());
    let script = Arc::new(Unreliable(Mutex::new(Dice(seed ^ 1))));
    let runtime = Arc::new(SimulatedRuntime::with_script(Arc::clone(&clock), script));
    let cluster = Cluster::builder().clock(clock).runtime(runtime).nodes(2).without_controllers();
    let cluster = cluster.start().await.map_err(|error| error.to_string())?;
    let client = cluster.client();
    let informers = Informers::new(client.clone());
    let watcher = Arc::new(Watcher {
        scenario,
        pods: informers.of(Selection::all()),
        sets: informers.of(Selection::all()),
        deployments: informers.of(Selection::all()),
        seen: Mutex::default(),
    });
    informers.synced().await;
    let watching = tokio::spawn(Arc::clone(&watcher).watch());
    let source = faults.map(|faults| FaultSource::new(faults, seed));
    let mut world = World { cluster, source, running: None };
    world.start_controllers();
    let played = play(&mut world, &client, &scenario, &mut dice).await;
    let at_rest = match played {
        Ok(()) => rest(&watcher, &client).await,
        Err(error) => Err(error),
    };
    let gone = match &at_rest {
        Ok(_) => clear_away(&client, &mut dice).await,
        Err(_) => Ok(()),
    };
    watching.abort();
    let broken = std::mem::take(&mut lock(&watcher.seen).broken);
    drop(world.running.take());
    informers.stop().await;
    let summary = at_rest?;
    gone?;
    if broken.is_empty() { Ok(summary) } else { Err(format!("{scenario:?}: {broken:?}")) }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What a user does, with controllers that end and start anew meanwhile.
async fn play(
    world: &mut World,
    client: &Client,
    scenario: &Scenario,
    dice: &mut Dice,
) -> Result<(), String> {
    let (web, db, work) = scenario.objects();
    let (deployments, sets, jobs) = (
        Api::<Deployment>::default_namespaced(client.clone()),
        Api::<StatefulSet>::default_namespaced(client.clone()),
        Api::<Job>::default_namespaced(client.clone()),
    );
    let how = PostParams::default();
    deployments.create(&how, &web).await.map_err(text)?;
    sets.create(&how, &db).await.map_err(text)?;
    jobs.create(&how, &work).await.map_err(text)?;
    let mut restarts = Dice(scenario.seed ^ 2);
    let patching = PatchParams::default();
    for number in 0..dice.between(2, CHANGES_MAX) {
        tokio::time::sleep(Duration::from_millis(dice.between(0, 20_000))).await;
        if world.source.is_some() {
            disturb(world, scenario, &mut restarts).await;
        }
        let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("app:{number}")}]}}}});
        let scaled = json!({"spec": {"replicas": dice.between(0, 6)}});
        let choice = if scenario.calm { dice.between(0, 1) } else { dice.between(0, 4) };
        match choice {
            0 => drop(deployments.patch("web", &patching, &Patch::Strategic(&image)).await.map_err(text)?),
            1 => drop(sets.patch("db", &patching, &Patch::Strategic(&image)).await.map_err(text)?),
            2 => drop(deployments.patch("web", &patching, &Patch::Merge(&scaled)).await.map_err(text)?),
            3 => drop(sets.patch("db", &patching, &Patch::Merge(&scaled)).await.map_err(text)?),
            _ => {
                let pods = Api::<Pod>::default_namespaced(client.clone());
                let mut all = pods.list(&Default::default()).await.map_err(text)?.items;
                all.retain(|pod| has_app(pod, "web") || has_app(pod, "db"));
                let index = usize::try_from(dice.next()).unwrap_or_default() % all.len().max(1);
                if let Some(pod) = all.get(index) {
                    // It may have gone by itself.
                    let _ = pods.delete(&pod.name_any(), &DeleteParams::default()).await;
                }
            }
        }
    }
    if world.source.is_some() {
        disturb(world, scenario, &mut restarts).await;
        tokio::time::sleep(Duration::from_millis(restarts.between(0, 10_000))).await;
    }
    if let Some(source) = &world.source {
        source.stop();
    }
    Ok(())
}

/// Ends the controllers, or lets others run beside them for a moment. Each request takes its time, so that wherever a reconcile
/// waits, one or another is ended there.
async fn disturb(world: &mut World, scenario: &Scenario, dice: &mut Dice) {
    match dice.between(0, 3) {
        // Again and again, as when a process can't stay up.
        0 => {
            for _ in 0..dice.between(1, RESTARTS_MAX) {
                world.start_controllers();
                tokio::time::sleep(Duration::from_millis(dice.between(0, 1_500))).await;
            }
        }
        // Two that delete at once may delete what the other one has left: that so many are up is then nobody's promise.
        1 if !scenario.calm => world.take_over(Duration::from_millis(dice.between(0, 5_000))).await,
        _ => {}
    }
}

/// Waits until everything is as its specification says, and gives it in words.
async fn rest(watcher: &Watcher, client: &Client) -> Result<String, String> {
    let began = tokio::time::Instant::now();
    loop {
        let state = look(watcher, client).await?;
        let last = match state {
            Ok(summary) => return Ok(summary),
            Err(last) => last,
        };
        if began.elapsed() > REST_MAX {
            return Err(format!("{:?} does not come to rest: {last}", watcher.scenario));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The state in words, or why it is not at rest.
async fn look(watcher: &Watcher, client: &Client) -> Result<Result<String, String>, String> {
    let web = Api::<Deployment>::default_namespaced(client.clone()).get("web").await.map_err(text)?;
    let db = Api::<StatefulSet>::default_namespaced(client.clone()).get("db").await.map_err(text)?;
    let work = Api::<Job>::default_namespaced(client.clone()).get("work").await.map_err(text)?;
    let pods =
        Api::<Pod>::default_namespaced(client.clone()).list(&Default::default()).await.map_err(text)?.items;
    let (wanted, members) = (web.spec.replicas.unwrap_or_default(), db.spec.replicas.unwrap_or_default());
    let status = web.status.clone().unwrap_or_default();
    let up = status.observed_generation == web.metadata.generation
        && [status.replicas, status.updated_replicas, status.available_replicas]
            .iter()
            .all(|count| count.unwrap_or_default() == wanted);
    let members_status = db.status.clone().unwrap_or_default();
    let kept = members_status.observed_generation == db.metadata.generation
        && members_status.replicas == members
        && members_status.ready_replicas.unwrap_or_default() == members
        && members_status.current_revision == members_status.update_revision;
    let done = work.status.clone().unwrap_or_default();
    let complete =
        done.conditions.iter().flatten().any(|one| one.type_ == "Complete" && one.status == "True");
    if !(up && kept && complete) {
        return Ok(Err(format!("{status:?} {members_status:?} {done:?}")));
    }
    let mut summary = String::new();
    for (app, count) in [("web", wanted), ("db", members)] {
        let own: Vec<&Pod> = pods.iter().filter(|pod| has_app(pod, app)).collect();
        let image = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        let images: BTreeSet<_> = own.iter().filter_map(image).collect();
        if i32::try_from(own.len()) != Ok(count) || !own.iter().all(|pod| is_ready(pod)) {
            return Ok(Err(format!("{} pods of {app}, {count} are wanted", own.len())));
        }
        let _ = writeln!(summary, "{app}: {count} of {images:?}");
    }
    let seen = lock(&watcher.seen);
    let counted = |result: Option<bool>| seen.ended.values().filter(|ended| **ended == result).count();
    let told =
        [done.succeeded, done.failed].map(|count| usize::try_from(count.unwrap_or_default()).unwrap_or(0));
    let (succeeded, either) = (counted(Some(true)), counted(None));
    let fits = (succeeded..=succeeded + either).contains(&told[0]) && told[0] + told[1] == seen.ended.len();
    if !fits {
        return Err(format!(
            "{:?}: the job counts {told:?}, its pods were {:?}",
            watcher.scenario, seen.ended
        ));
    }
    if done.succeeded.unwrap_or_default() < i32::try_from(watcher.scenario.completions).unwrap_or_default() {
        return Err(format!("{:?}: the job is complete with {told:?}", watcher.scenario));
    }
    let _ = write!(summary, "work: complete");
    Ok(Ok(summary))
}

/// Deletes everything in one way or another; nothing may be left.
async fn clear_away(client: &Client, dice: &mut Dice) -> Result<(), String> {
    let mut how = || {
        let policies = [PropagationPolicy::Background, PropagationPolicy::Foreground];
        let policy = policies[usize::from(dice.between(0, 1) == 1)].clone();
        DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }
    };
    Api::<Deployment>::default_namespaced(client.clone()).delete("web", &how()).await.map_err(text)?;
    Api::<StatefulSet>::default_namespaced(client.clone()).delete("db", &how()).await.map_err(text)?;
    Api::<Job>::default_namespaced(client.clone()).delete("work", &how()).await.map_err(text)?;
    let began = tokio::time::Instant::now();
    loop {
        let pods =
            Api::<Pod>::default_namespaced(client.clone()).list(&Default::default()).await.map_err(text)?;
        let sets = Api::<ReplicaSet>::default_namespaced(client.clone())
            .list(&Default::default())
            .await
            .map_err(text)?;
        if pods.items.is_empty() && sets.items.is_empty() {
            return Ok(());
        }
        if began.elapsed() > REST_MAX {
            let left: Vec<String> = pods.items.iter().map(|pod| pod.name_any()).collect();
            return Err(format!("orphans: {left:?} and {} sets", sets.items.len()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The runs of a seed, with faults and without, each in a runtime of its own with paused time; they must come to rest alike.
///
/// # Errors
/// What did not hold.
pub fn check(seed: u64) -> Result<(), String> {
    let alone = |faults| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.map_err(text)?.block_on(run(seed, faults))
    };
    let calm = alone(None).map_err(|why| format!("without faults: {why}"))?;
    let shaken = alone(Some(Faults::default()))?;
    if calm == shaken {
        Ok(())
    } else {
        Err(format!("at rest without faults\n{calm}\nwith faults\n{shaken}"))
    }
}
