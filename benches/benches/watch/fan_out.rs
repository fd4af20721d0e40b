//! One event among many watchers: 10,000 of which 1 wants it, and 1,000 that all want it.

use std::collections::HashSet;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use kapi::{
    ApiServer, AsUser,
    authn::{MASTERS, UserInfo},
};
use kcore::local::{LocalEvent, LocalEvents, WantLocal};
use kplane_benches::{Cost, Meter, figure, percentile};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tower::Service as _;

const WATCHERS: usize = 10_000;
const INTERESTED: usize = 1_000;
const WRITES: usize = 1_000;
const SHARED_WRITES: usize = 200;
/// How often the runtime is given a turn, so that every watcher waits for events before the clock starts.
const TURNS: usize = 2_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WANTED: &str = "/api/v1/namespaces/default/configmaps?watch=true&fieldSelector=metadata.name%3Dwanted";

/// A server with the object that is written, and the watchers' tasks.
struct Stage {
    server: AsUser,
    tasks: JoinSet<()>,
    seen: mpsc::UnboundedSender<Instant>,
    arrivals: mpsc::UnboundedReceiver<Instant>,
    data: String,
}

pub(crate) async fn run() {
    alone("alone", |_| String::new(), 0).await;
    let by_name = |index| format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Dother-{index}");
    alone("10000_by_name", by_name, WATCHERS - 1).await;
    let by_namespace = |index| format!("/api/v1/namespaces/other-{index}/configmaps?watch=true");
    alone("10000_by_namespace", by_namespace, WATCHERS - 1).await;
    for (name, bytes) in [("1k", 1024), ("16k", 16 * 1024)] {
        shared(name, bytes).await;
    }
    shared_objects().await;
}

/// One watcher that wants each event, among others that want none. An event's cost is all that a write costs, with the write
/// itself; what the others add is the difference to `alone`.
async fn alone(name: &str, path: fn(usize) -> String, others: usize) {
    let mut stage = Stage::new(1024).await;
    stage.watch(WANTED).await;
    for index in 0..others {
        stage.watch(&path(index)).await;
    }
    let (cost, mut latencies) = stage.write(WRITES, 1).await;
    assert!(stage.arrivals.is_empty(), "a watcher was told of what it did not want");
    cost.print_event(&format!("watch_fan_out_{name}"));
    let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
    figure(&format!("watch_fan_out_{name}_latency_p50"), micros(percentile(&mut latencies, 0.5)), "us");
    figure(&format!("watch_fan_out_{name}_latency_p99"), micros(percentile(&mut latencies, 0.99)), "us");
}

/// A thousand watchers that all want each event. What each adds hardly grows with the object: its bytes are copied into the
/// watcher's answer, not encoded for it.
async fn shared(name: &str, bytes: usize) {
    let mut costs = Vec::new();
    for watchers in [1, INTERESTED] {
        let mut stage = Stage::new(bytes).await;
        for _ in 0..watchers {
            stage.watch(WANTED).await;
        }
        let (cost, _) = stage.write(SHARED_WRITES, watchers).await;
        cost.print_event(&format!("watch_shared_{watchers}_{name}"));
        costs.push(cost);
    }
    let added = |of: fn(&Cost) -> f64| (of(&costs[1]) - of(&costs[0])) / (INTERESTED - 1) as f64;
    figure(&format!("watch_shared_{name}_cpu_per_watcher"), added(|cost| cost.cpu_us), "us");
    figure(&format!("watch_shared_{name}_allocations_per_watcher"), added(|cost| cost.allocations), "1");
    figure(
        &format!("watch_shared_{name}_allocated_per_watcher"),
        added(|cost| cost.allocated_bytes),
        "bytes",
    );
}

/// How many encodings a thousand watchers within the process are given for one event: they are told apart by where they lie.
async fn shared_objects() {
    let mut stage = Stage::new(1024).await;
    let mut streams = Vec::with_capacity(INTERESTED);
    for _ in 0..INTERESTED {
        let request = Request::get(WANTED).extension(WantLocal).body(Full::default()).expect("a request");
        let response = stage.server.call(request).await.expect("an answer");
        let events = response.extensions().get::<LocalEvents>().and_then(LocalEvents::take);
        let mut events = events.expect("a hand-over");
        events.next().await.expect("the object as it is");
        streams.push(events);
    }
    stage.put(1).await;
    let mut encodings = HashSet::new();
    for events in &mut streams {
        for event in events.next().await.expect("a batch") {
            if let LocalEvent::Modified(object) = event {
                encodings.insert(object.raw().as_ptr() as usize);
            }
        }
    }
    figure("watch_shared_encodings_per_event", encodings.len() as f64, "1");
}

impl Stage {
    async fn new(bytes: usize) -> Self {
        let server = ApiServer::builder().build().expect("a server");
        server.bootstrap().await.expect("a cluster's objects");
        let server = server.as_user(UserInfo::new("bench", [MASTERS]));
        let (seen, arrivals) = mpsc::unbounded_channel();
        let mut stage = Self { server, tasks: JoinSet::new(), seen, arrivals, data: "x".repeat(bytes) };
        let body = stage.body(0);
        stage.send(Method::POST, MAPS, body).await;
        stage
    }

    fn body(&self, count: usize) -> Bytes {
        let data = &self.data;
        let text =
            format!(r#"{{"metadata":{{"name":"wanted"}},"data":{{"count":"{count}","value":"{data}"}}}}"#);
        Bytes::from(text)
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Response<kapi::Body> {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(Full::new(body)).expect("a request");
        let response = self.server.call(request).await.expect("an answer");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response
    }

    async fn put(&mut self, count: usize) {
        let body = self.body(count);
        self.send(Method::PUT, &format!("{MAPS}/wanted"), body).await;
    }

    /// Starts a watcher that reads bytes, as one behind a connection does, and tells when it got some.
    async fn watch(&mut self, path: &str) {
        let mut body = self.send(Method::GET, path, Bytes::new()).await.into_body();
        if path == WANTED {
            body.frame().await.expect("the object as it is").expect("bytes");
        }
        let seen = self.seen.clone();
        self.tasks.spawn(async move {
            while let Some(Ok(_)) = body.frame().await {
                if seen.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }

    /// Writes the object again and again, each time waiting until all watchers that want the event have it.
    async fn write(&mut self, writes: usize, watchers: usize) -> (Cost, Vec<std::time::Duration>) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        let mut latencies = Vec::with_capacity(writes * watchers);
        let meter = Meter::start();
        for count in 1..=writes {
            let begin = Instant::now();
            self.put(count).await;
            for _ in 0..watchers {
                let at = self.arrivals.recv().await.expect("an arrival");
                latencies.push(at.saturating_duration_since(begin));
            }
        }
        (meter.stop(writes), latencies)
    }
}
