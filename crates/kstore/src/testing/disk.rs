//! Crashes of the disk engine: a simulated disk, a workload on it, and what must hold after each crash, all from one seed.
//!
//! ```
//! // A thousand of these run in the tests of this crate; `KSTORE_SEED=7 cargo test -p kstore --test crashes` repeats one.
//! kstore::testing::disk::lives(7, Default::default());
//! ```

pub mod damage;
mod history;
mod sim;
#[cfg(test)]
mod tests;
mod workload;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Random, model::table_by_first_byte};
use crate::{
    Durability, Entry, LeaseId, OpenError, Revision, Snapshot, Store, SyncPolicy, TableId, TableSpec,
    WatchRequest,
    disk::{
        DiskStore,
        pipeline::{Step, step},
    },
};
pub use history::history;
pub use sim::{Failures, SimDisk};
use workload::{Told, client};

/// What a run is about, besides its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// The first life ends at this operation on the disk, counted from 1; otherwise the seed says when.
    pub crash_at: Option<u64>,
    /// The disk fails now and then: writes, syncs, a lack of room.
    pub failures: bool,
    /// Some tables may lose what a crash finds unwritten, and the seed chooses how syncs are done.
    pub loose: bool,
    /// A bit of a file changes while the store is closed.
    pub bit_flips: bool,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations on the disk in the first life.
    pub steps: u64,
    /// Commits that were acknowledged.
    pub acknowledged: u64,
    /// How often the store was opened.
    pub opened: u64,
    /// How often it was refused, because what was acknowledged was damaged.
    pub refused: u64,
    /// Frames that recoveries did again and cut off.
    pub frames: u64,
    /// See `frames`.
    pub frames_cut: u64,
    /// Checkpoints that were loaded.
    pub checkpoints: u64,
    /// Commits and leases that were refused since the disk was full.
    pub full: u64,
    /// How often the store fenced itself, other than by the crash.
    pub fenced: u64,
}

/// How often the store lives in one run.
const LIVES: usize = 3;
const CLIENTS: u64 = 3;

/// Lets a store live and crash a few times on a simulated disk, with clients at work, and checks after each crash that
/// everything acknowledged is there, nothing half is, no revision comes twice, watches resume, leases have their time.
///
/// # Panics
/// If something does not hold; the message begins with the seed.
pub fn lives(seed: u64, plan: Plan) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    // Inside, since the disk reads the paused clock from its beginning.
    runtime.block_on(async { Run::new(seed, plan).live().await })
}

/// What was known when a life ended.
struct Before {
    /// Everything that was done, and as much as was shown.
    pending: Snapshot,
    shown: Snapshot,
    /// The policy, and whether the disk lost its power: then what was not synced may be gone.
    policy: SyncPolicy,
    power: bool,
}

struct Run {
    seed: u64,
    plan: Plan,
    random: Random,
    disk: SimDisk,
    tally: Tally,
    /// What clients were told of leases.
    told: Told,
}

impl Run {
    fn new(seed: u64, plan: Plan) -> Run {
        let random = Random::new(seed);
        let disk = SimDisk::new(seed ^ 0xd15c);
        Run { seed, plan, random, disk, tally: Tally::default(), told: Told::default() }
    }

    async fn live(mut self) -> Tally {
        let mut before: Option<Before> = None;
        for life in 0..LIVES {
            let failures = self.failures(life);
            self.disk.plan(failures);
            let policy = self.policy();
            let Some(store) = self.open(policy, &mut before).await else { continue };
            let store = Arc::new(store);
            if let Some(before) = &before {
                self.check(&store, before);
            }
            self.work(&store, life).await;
            let pending = store.pending();
            let shown = store.snapshot();
            // What is decided on is not shown, and stays as it is: neither is ever half there.
            pending.verify().unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
            shown.verify().unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
            drop(store);
            let power = self.random.happens(700);
            self.disk.restart(power);
            before = Some(Before { pending, shown, policy, power });
            tokio::time::advance(Duration::from_millis(self.random.below(8_000))).await;
            if self.plan.bit_flips && self.random.happens(500) {
                self.disk.flip_a_bit();
                self.open_damaged(policy, before.as_ref());
                return self.tally;
            }
        }
        self.tally
    }

    fn failures(&mut self, life: usize) -> Failures {
        let crash_at = match (life, self.plan.crash_at) {
            (0, Some(at)) => Some(at),
            (_, Some(_)) => None,
            (_, None) => Some(1 + self.random.below(220)),
        };
        let fails = self.plan.failures && self.random.happens(600);
        let which = self.random.below(3);
        let at = Some(1 + self.random.below(150));
        Failures {
            crash_at,
            sync_fails_at: at.filter(|_| fails && which == 0),
            write_fails_at: at.filter(|_| fails && which == 1),
            bytes_max: (fails && which == 2).then(|| 150_000 + self.random.below(300_000)),
            reads_fail: false,
            lies: false,
        }
    }

    fn policy(&mut self) -> SyncPolicy {
        match self.random.below(4) {
            0 if self.plan.loose => SyncPolicy::Never,
            1 if self.plan.loose => SyncPolicy::Interval(Duration::from_millis(50)),
            _ => SyncPolicy::EveryCommit,
        }
    }

    fn try_open(&self, policy: SyncPolicy) -> Result<DiskStore, OpenError> {
        let disk = self.disk.clone();
        let clock = disk.clone();
        let builder = DiskStore::builder("sim").sync(policy).segment_bytes(64 * 1024);
        let builder = builder.checkpoint_bytes(96 * 1024).wall_clock(move || clock.wall());
        builder.open_files(Arc::new(disk), true)
    }

    /// Opens the store. A crash may come in the middle, or a read may fail; then it is opened again.
    async fn open(&mut self, policy: SyncPolicy, before: &mut Option<Before>) -> Option<DiskStore> {
        if before.is_some() && self.plan.failures && self.random.happens(100) {
            self.disk.fail_reads(true);
            let opened = self.try_open(policy);
            assert!(matches!(opened, Err(OpenError::Io { .. })), "seed {}: {opened:?}", self.seed);
            self.disk.fail_reads(false);
        }
        for _ in 0..2 {
            match self.try_open(policy) {
                Ok(store) => {
                    let report = store.recovery();
                    self.tally.opened += 1;
                    self.tally.frames += report.frames;
                    self.tally.frames_cut += report.frames_cut;
                    self.tally.checkpoints += u64::from(report.checkpoint.is_some());
                    return Some(store);
                }
                Err(error) => {
                    let io = matches!(error, OpenError::Io { .. });
                    assert!(io && self.disk.has_failed(), "seed {}: {error}", self.seed);
                    let power = self.random.happens(500);
                    self.disk.restart(power);
                    if let Some(before) = before {
                        before.power |= power;
                    }
                }
            }
        }
        panic!("seed {}: the store doesn't open on a disk that doesn't fail", self.seed)
    }

    /// Opens a store one of whose bits has changed. It may be refused; if not, what is there is what once was.
    fn open_damaged(&mut self, policy: SyncPolicy, before: Option<&Before>) {
        match self.try_open(policy) {
            Ok(store) => {
                self.tally.opened += 1;
                if let Some(before) = before
                    && let Some((found, past)) = self.found(&store, before)
                {
                    self.same_entries(&past, &store.snapshot(), found);
                }
            }
            Err(OpenError::Corrupt { .. } | OpenError::Format { .. }) => self.tally.refused += 1,
            Err(error) => panic!("seed {}: a changed bit led to {error}", self.seed),
        }
    }

    /// Lets clients work and the disk go step by step, in an order that the seed chooses, until they have finished or the
    /// disk has failed.
    async fn work(&mut self, store: &Arc<DiskStore>, life: usize) {
        let tables = self.tables(store);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let random = Random::new(self.seed * 1_000 + life as u64 * 10 + number);
                tokio::spawn(client(store.clone(), tables.clone(), random, self.told.clone()))
            })
            .collect();
        let mut jobs = Vec::new();
        loop {
            for _ in 0..self.random.below(4) {
                tokio::task::yield_now().await;
            }
            if self.random.happens(20) {
                tokio::time::advance(Duration::from_millis(self.random.below(400))).await;
            }
            jobs.extend(store.engine().take_jobs());
            if jobs.is_empty() && clients.iter().all(|client| client.is_finished()) {
                break;
            }
            if !jobs.is_empty() {
                let at = self.random.below(jobs.len() as u64) as usize;
                match step(jobs.swap_remove(at)) {
                    Step::More(job) => jobs.push(job),
                    Step::Ended(ended) => store.engine().enter(|state, _, after| state.ended(ended, after)),
                }
            }
            if self.disk.has_crashed() {
                break;
            }
        }
        for client in clients {
            client.abort();
            if let Err(error) = client.await
                && error.is_panic()
            {
                panic!("seed {}: {error}", self.seed);
            }
        }
        if life == 0 {
            self.tally.steps = self.disk.steps();
        }
        let (acknowledged, full, fenced) = self.told.counts();
        (self.tally.acknowledged, self.tally.full, self.tally.fenced) = (acknowledged, full, fenced);
    }

    fn tables(&self, store: &DiskStore) -> Vec<TableId> {
        let mut specs = vec![table_by_first_byte("a"), table_by_first_byte("b")];
        if self.plan.loose {
            let relaxed = Durability::Relaxed { max_loss: Duration::from_millis(300) };
            specs.push(TableSpec::new("relaxed").durability(relaxed));
            specs.push(TableSpec::new("memory").durability(Durability::Memory));
        }
        let open =
            |spec| store.open_table(spec).unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        specs.into_iter().map(open).collect()
    }

    /// The last revision of before that was found, and the state that was there at it.
    fn found(&self, store: &DiskStore, before: &Before) -> Option<(Revision, Snapshot)> {
        let found = store.recovery().revision_found;
        assert!(found <= before.pending.revision(), "seed {}: {found} was never taken", self.seed);
        before.pending.at(found).ok().map(|past| (found, past))
    }

    fn check(&self, store: &DiskStore, before: &Before) {
        let seed = self.seed;
        let (now, shown) = (store.snapshot(), before.shown.revision());
        now.verify().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(
            now.revision() >= shown,
            "seed {seed}: revision {shown} was shown, and may come again after {}",
            now.revision()
        );
        let Some((found, past)) = self.found(store, before) else {
            assert!(self.plan.loose, "seed {seed}: what is below the floor was durable");
            return;
        };
        let durable = match (self.plan.loose, before.policy) {
            (false, SyncPolicy::EveryCommit) => shown,
            // What was synchronous; see `Told`.
            (_, SyncPolicy::EveryCommit) => self.told.synced(),
            // The operating system still had what was written.
            (_, _) if !before.power => self.told.synced(),
            (_, _) => Revision::ZERO,
        };
        assert!(found >= durable, "seed {seed}: {durable} was acknowledged and is lost, {found} was found");
        self.told.recovered(found);
        self.same_entries(&past, &now, found);
        self.same_events(before, &now, found);
        if !self.plan.loose {
            for (_, table) in now.tables() {
                let resumed = store.watch(WatchRequest::new(table, shown));
                assert!(resumed.is_ok(), "seed {seed}: a watch can't go on at {shown}: {resumed:?}");
            }
        } else if found < shown {
            for (_, table) in now.tables() {
                let resumed = store.watch(WatchRequest::new(table, shown));
                assert!(resumed.is_err(), "seed {seed}: a watch goes on at {shown} and misses a loss");
            }
        }
        if durable == shown && !self.plan.loose {
            self.told.check_leases(store, seed, self.disk.wall());
        }
    }

    /// Each table is as it was; those that are not kept are empty.
    fn same_entries(&self, past: &Snapshot, now: &Snapshot, found: Revision) {
        let entries = |snapshot: &Snapshot, name: &str| -> BTreeMap<Bytes, Arc<Entry>> {
            let table = snapshot.tables().find(|(other, _)| *other == name).map(|(_, id)| id);
            let all = table.map(|table| snapshot.range(table, crate::Range::all()));
            all.into_iter().flatten().map(|entry| (entry.key().clone(), entry)).collect()
        };
        let names = past.tables().chain(now.tables()).map(|(name, _)| name.to_owned());
        for name in names {
            let was = if name == "memory" { BTreeMap::new() } else { entries(past, &name) };
            let is = entries(now, &name);
            assert!(
                was.len() == is.len() && was.values().zip(is.values()).all(|(was, is)| was.same(is)),
                "seed {}: table {name} at {found} was {was:?} and is {is:?}",
                self.seed
            );
        }
    }

    /// Events that are still known are the same.
    fn same_events(&self, before: &Before, now: &Snapshot, found: Revision) {
        for (name, table) in now.tables().filter(|(name, _)| *name != "memory") {
            let Some((_, old)) = before.pending.tables().find(|(other, _)| *other == name) else { continue };
            let from = now.table_floor(table).max(before.pending.table_floor(old));
            let events = |snapshot: &Snapshot, table| -> Vec<(Revision, Bytes, bool, Option<Revision>)> {
                let events = snapshot.events(table, from).unwrap_or_default();
                let known = events.into_iter().filter(|event| event.revision <= found);
                let short = |event: crate::Event| {
                    let previous = event.previous.map(|previous| previous.modified());
                    (event.revision, event.entry.key().clone(), event.entry.is_tombstone(), previous)
                };
                known.map(short).collect()
            };
            let (was, is) = (events(&before.pending, old), events(now, table));
            assert_eq!(was, is, "seed {}: the events of {name} after {from}", self.seed);
        }
    }
}

/// A lease as its client knows it.
#[derive(Clone, Copy, Debug)]
struct Lease {
    id: LeaseId,
    /// When it ends, counted from 1970.
    ends: Duration,
}
