//! How long after a write a watcher has the event, with one watcher and with a thousand; and what an event costs among many.

mod fan_out;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use http::Request;
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use kcore::local::{LocalEvent, LocalEvents, WantLocal};
use kplane_benches::{CountingAllocator, figure, percentile};
use kube::{Client, client::Body};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const WRITES: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for watchers in [1, 1_000] {
        run(watchers).await;
    }
    fan_out::run().await;
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

async fn run(watchers: usize) {
    let server = ApiServer::builder().build().expect("a server");
    server.bootstrap().await.expect("a cluster's objects");
    let client = Client::new(server.as_user(UserInfo::new("bench", [MASTERS])), "default");
    let (seen, mut arrivals) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let request = Request::get("/api/v1/namespaces/default/configmaps?watch=true&resourceVersion=1");
        let request = request.extension(WantLocal).body(Body::empty()).expect("a request");
        let response = client.send(request).await.expect("a watch");
        let mut events =
            response.extensions().get::<LocalEvents>().and_then(LocalEvents::take).expect("a hand-over");
        let seen = seen.clone();
        tasks.spawn(async move {
            while let Some(batch) = events.next().await {
                let at = now();
                for event in batch {
                    if matches!(event, LocalEvent::Added(_)) && seen.send(at).is_err() {
                        return;
                    }
                }
            }
        });
    }
    let (mut first, mut all) = (Vec::with_capacity(WRITES), Vec::with_capacity(WRITES));
    for index in 0..WRITES {
        let body = format!(r#"{{"metadata":{{"name":"map-{index}"}}}}"#);
        let request =
            Request::post("/api/v1/namespaces/default/configmaps").header("content-type", "application/json");
        let request = request.body(Body::from(body.into_bytes())).expect("a request");
        let sent = now();
        client.send(request).await.expect("created");
        let mut latencies: Vec<Duration> = Vec::with_capacity(watchers);
        for _ in 0..watchers {
            let at = arrivals.recv().await.expect("an arrival");
            latencies.push(at.saturating_duration_since(sent));
        }
        all.push(latencies.iter().copied().max().unwrap_or_default());
        first.extend(latencies);
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    figure(&format!("watch_latency_p50_{watchers}"), micros(percentile(&mut first, 0.5)), "us");
    figure(&format!("watch_latency_p99_{watchers}"), micros(percentile(&mut first, 0.99)), "us");
    figure(&format!("watch_all_told_p50_{watchers}"), micros(percentile(&mut all, 0.5)), "us");
    drop(Arc::new(tasks));
}
