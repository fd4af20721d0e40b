use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use k8s_openapi::api::coordination::v1::Lease;
use kcore::TokioClock;
use kreconcile::{LeaderElector, ResourceType};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fake::FakeApi;

type Journal = Arc<Mutex<Vec<String>>>;

struct Candidate {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn candidate(api: &Arc<FakeApi>, name: &'static str, journal: &Journal, start: Instant) -> Candidate {
    let elector = LeaderElector::new(api.client(), Arc::new(TokioClock::new()), "kube-system", "lock", name);
    let (stop, journal) = (CancellationToken::new(), Arc::clone(journal));
    let token = stop.clone();
    let task = tokio::spawn(async move {
        let lead = |leadership: kreconcile::Leadership| {
            let journal = Arc::clone(&journal);
            async move {
                let note = |what: &str| {
                    let at = start.elapsed().as_secs();
                    journal.lock().unwrap().push(format!("{at} {name} {what} {}", leadership.term));
                };
                note("leads");
                leadership.lost.cancelled().await;
                note("ends");
            }
        };
        elector.run(token, lead).await;
    });
    Candidate { stop, task }
}

fn api() -> Arc<FakeApi> {
    FakeApi::new(vec![ResourceType::of::<Lease>()], Arc::new(TokioClock::new()))
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_back_is_taken_at_the_next_try() {
    let (api, journal, start) = (api(), Journal::default(), Instant::now());
    let one = candidate(&api, "one", &journal, start);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let two = candidate(&api, "two", &journal, start);
    tokio::time::sleep(Duration::from_secs(99)).await;
    assert_eq!(*journal.lock().unwrap(), ["0 one leads 0"]);
    one.stop.cancel();
    one.task.await.unwrap();
    let lease = api.get("leases", "kube-system", "lock").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let seen = journal.lock().unwrap().clone();
    assert_eq!(seen[1], "100 one ends 0");
    assert!(seen[2].ends_with("two leads 1"), "{seen:?}");
    two.stop.cancel();
    two.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_starts() {
    let (api, journal, start) = (api(), Journal::default(), Instant::now());
    let one = candidate(&api, "one", &journal, start);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let two = candidate(&api, "two", &journal, start);
    tokio::time::sleep(Duration::from_secs(20)).await;
    one.task.abort();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = journal.lock().unwrap().clone();
    let taken: u64 = seen[1].split(' ').next().unwrap().parse().unwrap();
    assert!((34..=42).contains(&taken), "15 s after the last renewal, and at the next try: {seen:?}");

    api.broken.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = journal.lock().unwrap().clone();
    let lost: u64 = seen[2].split(' ').next().unwrap().parse().unwrap();
    assert!(lost <= 81 + 13, "10 s without a renewal end it: {seen:?}");
    api.broken.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(journal.lock().unwrap()[3].contains("two leads"));
    two.stop.cancel();
    two.task.await.unwrap();
}
