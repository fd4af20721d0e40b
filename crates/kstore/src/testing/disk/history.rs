//! What clients see of one key, over crashes of the machine under them.

use std::{sync::Arc, time::Duration};

use super::{SimDisk, sim::Failures};
use crate::{
    CommitError, Compare, DiskStore, Entry, Op, OpenError, Store, TableId, TableSpec, Txn,
    disk::pipeline::{Step, step},
    testing::{
        Random,
        linear::{Answer, Operation, Recorder, Request},
    },
};

const LIVES: u64 = 3;
const CLIENTS: u64 = 3;
const STEPS: u64 = 16;

/// The operations of clients of one key on a store whose machine loses its power twice; none if the store was refused because
/// it found that what it had acknowledged was gone. With `lies`, the disk says that it has synced and has not: then
/// acknowledged writes get lost, which a checker of histories must notice.
///
/// # Panics
/// If the store cannot be opened for another reason.
pub fn history(seed: u64, lies: bool) -> Option<Vec<Operation>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap_or_else(|error| panic!("{error}")).block_on(live(seed, lies))
}

async fn live(seed: u64, lies: bool) -> Option<Vec<Operation>> {
    let disk = SimDisk::new(seed);
    let mut random = Random::new(seed ^ 0x415);
    let recorder = Arc::new(Recorder::default());
    for life in 0..LIVES {
        disk.plan(Failures { lies, ..Failures::default() });
        let store = DiskStore::builder("sim").segment_bytes(0).checkpoint_bytes(60_000);
        let store = match store.open_files(Arc::new(disk.clone()), true) {
            Ok(store) => Arc::new(store),
            Err(OpenError::Corrupt { .. }) => return None,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        // Not before it is open, so that a life has operations of clients.
        let crash_at = Some(disk.steps() + 20 + random.below(120));
        disk.plan_more(Failures { crash_at, lies, ..Failures::default() });
        let table =
            store.open_table(TableSpec::new("t")).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let random = Random::new(seed * 100 + life * 10 + number);
                tokio::spawn(client(store.clone(), table, random, recorder.clone()))
            })
            .collect();
        let mut jobs = Vec::new();
        while !disk.has_crashed() {
            if jobs.is_empty() && clients.iter().all(|client| client.is_finished()) {
                break;
            }
            for _ in 0..random.below(4) {
                tokio::task::yield_now().await;
            }
            jobs.extend(store.engine().take_jobs());
            if !jobs.is_empty() {
                match step(jobs.swap_remove(random.below(jobs.len() as u64) as usize)) {
                    Step::More(job) => jobs.push(job),
                    Step::Ended(ended) => store.engine().enter(|state, _, after| state.ended(ended, after)),
                }
            }
        }
        // A crash that no flight has noticed yet leaves its callers without an answer.
        store.engine().enter(|state, _, after| state.fence(std::io::Error::other("no power"), after));
        for client in clients {
            client.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        drop(store);
        disk.restart(true);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    Some(recorder.operations())
}

fn value(entry: &Option<Arc<Entry>>) -> Option<u64> {
    let entry = entry.as_ref()?;
    std::str::from_utf8(entry.value()).ok()?.parse().ok()
}

async fn client(store: Arc<DiskStore>, table: TableId, mut random: Random, recorder: Arc<Recorder>) {
    for _ in 0..STEPS {
        let asked = recorder.ask();
        let current = store.snapshot().get(table, b"k");
        recorder.answer(asked, Request::Read, Answer::Is(value(&current)));
        let expected = value(&current);
        tokio::task::yield_now().await;
        let compare = match &current {
            None => Compare::absent(table, "k"),
            Some(entry) => Compare::ValueIs { table, key: "k".into(), value: entry.value().clone() },
        };
        let wanted = (!random.happens(200)).then(|| random.below(1_000_000));
        let op = match wanted {
            None => Op::delete(table, "k"),
            Some(value) => Op::put(table, "k", value.to_string()),
        };
        let (asked, request) = (recorder.ask(), Request::Swap(expected, wanted));
        let answer = match store.commit(Txn::new().compare(compare).op(op)).await {
            Ok(_) => Answer::Done,
            Err(CommitError::Conflict { current, .. }) => Answer::Is(value(&current)),
            Err(CommitError::UnknownOutcome) => Answer::Unknown,
            // It was not done.
            Err(CommitError::Store(_)) => return,
            Err(error) => panic!("{error}"),
        };
        recorder.answer(asked, request, answer);
        if answer == Answer::Unknown {
            return;
        }
    }
}
