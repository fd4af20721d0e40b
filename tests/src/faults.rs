//! Controllers under faults, from a seed: a cluster whose controllers meet with delays, lost answers, conflicts, stale caches and
//! restarts, while a user changes things. What must always hold is checked after every event, and where everything comes to rest is
//! compared with a run without faults.
//!
//! `cargo run -p kplane-tests --bin fault_runs -- 7` repeats the run of the seed 7, write by write.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod, ServiceAccount},
    storage::v1::StorageClass,
};
use kplane::Cluster;
use kreconcile::{
    Informer, Informers, Manager, Running, Selection, Start, controllers,
    testing::{FaultSource, Faults},
};
use kruntime::runtime::simulated::SimulatedRuntime;
use kstore::{MemoryStore, Store};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

mod disks;
mod invariants;
mod rest;
mod scenario;
mod trace;

use disks::Disks;
use invariants::{Seen, View, has_app};
use scenario::{Dice, Scenario, Unreliable};
pub use trace::Trace;
use trace::TracedStore;

/// The changes that a user makes in one run, at most.
const CHANGES_MAX: u64 = 8;
/// How often the controllers end one after another, at most.
const RESTARTS_MAX: u64 = 4;
/// How often the user looks whether pods can be made.
const ACCOUNT_LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long two leaders may be at work, with what their last requests take (`Faults::delay_max`, twice): this long those that begin are
/// careful.
const PREDECESSOR_GRACE: Duration = Duration::from_millis(TAKE_OVER_MS_MAX + 1_000);
/// How long a leader goes on, in milliseconds, that does not know that there is another.
const TAKE_OVER_MS_MAX: u64 = 5_000;
/// When every run begins, in seconds since 1970.
const BEGINNING: i64 = 1_767_225_600;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Looks on through a client without faults.
struct Watcher {
    scenario: Scenario,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    claims: Informer<PersistentVolumeClaim>,
    deployments: Informer<Deployment>,
    jobs: Informer<Job>,
    disks: Disks,
    seen: Mutex<Seen>,
}

impl Watcher {
    /// What must hold at any moment.
    fn check(&self) {
        let view = View {
            pods: self.pods.in_namespace("default"),
            sets: self.sets.in_namespace("default"),
            claims: self.claims.in_namespace("default"),
            disks: self.disks.there(),
            web: self.deployments.get("default", "web"),
            work: self.jobs.get("default", "work"),
        };
        lock(&self.seen).observe(&self.scenario, &view);
    }

    /// Checks after each batch of events.
    async fn watch(self: Arc<Self>) {
        let (mut pods, mut sets) = (self.pods.subscribe(), self.sets.subscribe());
        let (mut claims, mut deployments) = (self.claims.subscribe(), self.deployments.subscribe());
        let mut jobs = self.jobs.subscribe();
        loop {
            let more = tokio::select! {
                biased;
                batch = pods.next() => batch.is_some(),
                batch = sets.next() => batch.is_some(),
                batch = claims.next() => batch.is_some(),
                batch = deployments.next() => batch.is_some(),
                batch = jobs.next() => batch.is_some(),
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
    disks: Disks,
    running: Option<Running>,
}

impl World {
    fn start_controllers(&mut self) {
        let client = self.cluster.client();
        let client = self.source.as_ref().map_or(client.clone(), |source| source.client(client));
        let context = controllers::Context::new(client, Arc::clone(self.cluster.clock()));
        let context = context.settings(|settings| settings.predecessor_grace = PREDECESSOR_GRACE);
        let mut manager = Manager::new().informers(context.informers());
        for controller in controllers::defaults(&context) {
            manager = manager.add(Start::Leading, controller);
        }
        let provisioner = controllers::provisioner(&context, "disks", Arc::new(self.disks.clone()));
        manager = manager.add(Start::Leading, Arc::new(provisioner));
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

/// Plays the scenario of a seed, with or without faults, and says where everything comes to rest, and what was written. Each write is
/// printed as it comes if it `is_printed`.
///
/// # Errors
/// What did not hold, or did not come to rest.
pub async fn run(seed: u64, faults: Option<Faults>, is_printed: bool) -> Result<(String, Trace), String> {
    let (scenario, mut dice) = Scenario::new(seed);
    let base = jiff::Timestamp::from_second(BEGINNING).map_err(text)?;
    let clock: Arc<dyn kcore::Clock> = Arc::new(kcore::TokioClock::starting_at(base));
    let script = Arc::new(Unreliable(Mutex::new(Dice(seed ^ 1))));
    let runtime = Arc::new(SimulatedRuntime::with_script(Arc::clone(&clock), script));
    let store = Arc::new(TracedStore::new(Arc::new(MemoryStore::new()), is_printed));
    let cluster = Cluster::builder().store(Arc::clone(&store) as Arc<dyn Store>).clock(clock);
    let cluster = cluster.runtime(runtime).nodes(2).without_controllers();
    let cluster = cluster.start().await.map_err(text)?;
    let client = cluster.client();
    let informers = Informers::new(client.clone());
    let disks = Disks::new(seed ^ 3);
    let watcher = Arc::new(Watcher {
        scenario,
        pods: informers.of(Selection::all()),
        sets: informers.of(Selection::all()),
        claims: informers.of(Selection::all()),
        deployments: informers.of(Selection::all()),
        jobs: informers.of(Selection::all()),
        disks: disks.clone(),
        seen: Mutex::default(),
    });
    informers.synced().await;
    let watching = tokio::spawn(Arc::clone(&watcher).watch());
    let source = faults.map(|faults| FaultSource::new(faults, seed));
    let mut world = World { cluster, source, disks, running: None };
    world.start_controllers();
    let played = play(&mut world, &client, &scenario, &mut dice).await;
    let at_rest = match played {
        Ok(()) => rest::rest(&watcher, &client).await,
        Err(error) => Err(error),
    };
    let gone = match &at_rest {
        Ok(_) => clear_away(&mut world, &watcher, &client, &mut dice).await,
        Err(_) => Ok(()),
    };
    watching.abort();
    let broken = std::mem::take(&mut lock(&watcher.seen).broken);
    drop(world.running.take());
    informers.stop().await;
    if !broken.is_empty() {
        return Err(format!("{scenario:?}: {broken:?}"));
    }
    let summary = at_rest?;
    gone?;
    Ok((summary, store.trace()))
}

/// What a user does, with controllers that end and start anew meanwhile.
async fn play(
    world: &mut World,
    client: &Client,
    scenario: &Scenario,
    dice: &mut Dice,
) -> Result<(), String> {
    let (deployments, sets, jobs) = (
        Api::<Deployment>::default_namespaced(client.clone()),
        Api::<StatefulSet>::default_namespaced(client.clone()),
        Api::<Job>::default_namespaced(client.clone()),
    );
    let pods = Api::<Pod>::default_namespaced(client.clone());
    let how = PostParams::default();
    // Pods that a user makes are refused as long as the controllers have not made their account.
    let accounts = Api::<ServiceAccount>::default_namespaced(client.clone());
    while accounts.get_opt("default").await.map_err(text)?.is_none() {
        tokio::time::sleep(ACCOUNT_LOOK_EVERY).await;
    }
    Api::<StorageClass>::all(client.clone()).create(&how, &Scenario::class()).await.map_err(text)?;
    deployments.create(&how, &scenario.web()).await.map_err(text)?;
    sets.create(&how, &scenario.db()).await.map_err(text)?;
    jobs.create(&how, &scenario.work()).await.map_err(text)?;
    for set in scenario.pair() {
        Api::<ReplicaSet>::default_namespaced(client.clone()).create(&how, &set).await.map_err(text)?;
    }
    let mut restarts = Dice(scenario.seed ^ 2);
    let patching = PatchParams::default();
    for number in 0..dice.between(2, CHANGES_MAX) {
        tokio::time::sleep(Duration::from_millis(dice.between(0, 20_000))).await;
        if world.source.is_some() {
            disturb(world, scenario, &mut restarts).await;
        }
        let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("app:{number}")}]}}}});
        let scaled = json!({"spec": {"replicas": dice.between(0, 6)}});
        let choice = if scenario.calm { dice.between(0, 2) } else { dice.between(0, 5) };
        match choice {
            0 => drop(deployments.patch("web", &patching, &Patch::Strategic(&image)).await.map_err(text)?),
            1 => drop(sets.patch("db", &patching, &Patch::Strategic(&image)).await.map_err(text)?),
            2 => drop(pods.create(&how, &Scenario::stray(number)).await.map_err(text)?),
            3 => drop(deployments.patch("web", &patching, &Patch::Merge(&scaled)).await.map_err(text)?),
            4 => drop(sets.patch("db", &patching, &Patch::Merge(&scaled)).await.map_err(text)?),
            _ => {
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

/// Deletes everything, under faults again where there are any, and sees that it goes.
async fn clear_away(
    world: &mut World,
    watcher: &Watcher,
    client: &Client,
    dice: &mut Dice,
) -> Result<(), String> {
    let mut restarts = Dice(watcher.scenario.seed ^ 4);
    if let Some(source) = &world.source {
        source.resume();
    }
    rest::delete_all(client, dice).await?;
    if let Some(source) = world.source.clone() {
        for _ in 0..restarts.between(0, RESTARTS_MAX) {
            tokio::time::sleep(Duration::from_millis(restarts.between(0, 5_000))).await;
            disturb(world, &watcher.scenario, &mut restarts).await;
        }
        tokio::time::sleep(Duration::from_millis(restarts.between(0, 5_000))).await;
        source.stop();
    }
    rest::nothing_is_left(watcher, client).await
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
        1 if !scenario.calm => {
            world.take_over(Duration::from_millis(dice.between(0, TAKE_OVER_MS_MAX))).await
        }
        _ => {}
    }
}

/// The runs of a seed, without faults and with them, each in a runtime of its own with paused time; they must come to rest alike. Gives
/// what the run with faults wrote.
///
/// # Errors
/// What did not hold.
pub fn check(seed: u64, is_printed: bool) -> Result<Trace, String> {
    let alone = |faults, is_printed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.map_err(text)?.block_on(run(seed, faults, is_printed))
    };
    let (calm, _) = alone(None, false).map_err(|why| format!("without faults: {why}"))?;
    let (shaken, trace) = alone(Some(Faults::default()), is_printed)?;
    if calm == shaken {
        Ok(trace)
    } else {
        Err(format!("at rest without faults\n{calm}\nwith faults\n{shaken}"))
    }
}
