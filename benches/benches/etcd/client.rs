//! The work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use kstore::testing::WireClient as Client;
use tokio::{sync::mpsc, time::Instant};

/// How many connections the clients share.
const CONNECTIONS: usize = 4;
const VALUE_BYTES: usize = 1024;

/// How long each operation took, and all of them together.
pub(crate) struct Times {
    each: Vec<Duration>,
    all: Duration,
}

impl Times {
    fn new(mut each: Vec<Duration>, all: Duration) -> Self {
        each.sort_unstable();
        Times { each, all }
    }

    pub(crate) fn count(&self) -> usize {
        self.each.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.each.len() as f64 / self.all.as_secs_f64()
    }

    /// In microseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let at = (self.each.len() * percent / 100).min(self.each.len().saturating_sub(1));
        self.each.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

fn connect(endpoint: &str) -> Arc<Client> {
    Arc::new(Client::new(endpoint).unwrap_or_else(|error| panic!("the endpoint is a URL: {error}")))
}

async fn create(client: &Client, key: String) {
    let done = client.create(key, Bytes::from_static(&[b'v'; VALUE_BYTES])).await;
    assert!(done.unwrap_or_else(|error| panic!("the key is created: {error}")), "the key is new");
}

/// Creates keys from so many clients for so long.
pub(crate) async fn creates(endpoint: &str, prefix: &str, clients: usize, time: Duration) -> Times {
    let connections: Vec<_> = (0..CONNECTIONS.min(clients)).map(|_| connect(endpoint)).collect();
    let (begin, number) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let workers = (0..clients).map(|worker| {
        let (client, number) = (connections[worker % connections.len()].clone(), number.clone());
        let prefix = prefix.to_owned();
        tokio::spawn(async move {
            let mut each = Vec::new();
            while begin.elapsed() < time {
                let key = format!("{prefix}{:032}", number.fetch_add(1, Ordering::Relaxed));
                let asked = Instant::now();
                create(&client, key).await;
                each.push(asked.elapsed());
            }
            each
        })
    });
    let each = join_all(workers).await.into_iter().flat_map(|each| each.unwrap_or_default()).collect();
    Times::new(each, begin.elapsed())
}

/// Creates so many keys, as fast as it goes.
pub(crate) async fn fill(endpoint: &str, prefix: &str, keys: u64) {
    const AT_ONCE: u64 = 64;
    let client = connect(endpoint);
    let next = Arc::new(AtomicU64::new(0));
    let workers = (0..AT_ONCE).map(|_| {
        let (client, next, prefix) = (client.clone(), next.clone(), prefix.to_owned());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= keys {
                    return;
                }
                create(&client, format!("{prefix}{number:032}")).await;
            }
        })
    });
    join_all(workers).await;
}

/// How long a range of all keys takes, on average.
pub(crate) async fn ranges(endpoint: &str, prefix: &str, keys: usize, times: u32) -> Duration {
    let client = connect(endpoint);
    let begin = Instant::now();
    for _ in 0..times {
        let found = client.range(prefix, false).await;
        assert_eq!(found.unwrap_or_else(|error| panic!("the range is read: {error}")), keys);
    }
    begin.elapsed() / times
}

/// How long after a put was sent each of the watchers has its event.
pub(crate) async fn watch(endpoint: &str, prefix: &str, watchers: usize, puts: usize) -> Times {
    let (seen, mut told) = mpsc::unbounded_channel();
    let connections: Vec<_> = (0..CONNECTIONS.min(watchers)).map(|_| connect(endpoint)).collect();
    let mut tasks = Vec::new();
    for watcher in 0..watchers {
        let stream = connections[watcher % connections.len()].watch(prefix).await;
        let mut stream = stream.unwrap_or_else(|error| panic!("the watch begins: {error}"));
        let seen = seen.clone();
        tasks.push(tokio::spawn(async move {
            while let Ok(Some(events)) = stream.next().await {
                for _ in 0..events {
                    let _ = seen.send(Instant::now());
                }
            }
        }));
    }
    let client = connect(endpoint);
    let (begin, mut each) = (Instant::now(), Vec::new());
    for number in 0..puts {
        let asked = Instant::now();
        create(&client, format!("{prefix}{number:06}")).await;
        for _ in 0..watchers {
            if let Some(at) = told.recv().await {
                each.push(at.saturating_duration_since(asked));
            }
        }
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Times::new(each, begin.elapsed())
}

/// How long it took until the first read was answered, the start counted.
pub(crate) async fn first_answer(endpoint: &str, start: Duration) -> Duration {
    let begin = Instant::now();
    let answered = connect(endpoint).range("/", true).await;
    answered.unwrap_or_else(|error| panic!("the server answers: {error}"));
    start + begin.elapsed()
}
