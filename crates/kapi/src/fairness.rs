//! API priority and fairness (KEP-1040): which requests are worked on at once, which wait, which are sent away.
//!
//! A request is classified by the `FlowSchema` objects into a priority level and a flow. Each level has seats, a share of
//! [`SEATS_TOTAL`]; what finds none waits in one of the level's queues, which flows share so that a busy one can't starve the
//! others. Seats that a level lends are given to others as long as they are idle. Watches and upgraded connections last long and
//! take no seat.

mod bootstrap;
mod counters;
mod level;
mod ratios;
mod schema;
mod width;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use kcore::{Status, status::StatusDetails};
use kstore::Range;
use serde_json::Value;

pub(crate) use self::{bootstrap::objects as bootstrap_objects, level::Seat};
use self::{
    counters::{Counters, Flow, Stay, Waiting},
    level::{Levels, Refusal},
    ratios::{Busy, Kinds, Phase},
    schema::FlowSchema,
};
use crate::{
    authn::UserInfo,
    error::ApiResult,
    objects::{Objects, stored},
    registry::Resource,
    request::RequestInfo,
    server::lasts,
};

/// How many requests are worked on at the same time (`--max-requests-inflight` and `--max-mutating-requests-inflight`).
pub const SEATS_TOTAL: usize = 600;
/// How long a request waits for a seat at most; upstream gives it a quarter of the default request timeout.
pub const WAIT_MAX: Duration = Duration::from_secs(15);
/// When a caller that was sent away may come back, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;
/// The group of flow schemas and priority levels.
const GROUP: &str = "flowcontrol.apiserver.k8s.io";

/// Decides when requests are worked on.
#[derive(Debug)]
pub(crate) struct Fairness {
    schemas: Option<Arc<Resource>>,
    levels_table: Option<Arc<Resource>>,
    synced: AtomicU64,
    /// One reads the objects at a time.
    reading: Mutex<()>,
    classes: ArcSwap<Vec<Class>>,
    levels: Arc<Levels>,
    counters: Counters,
    kinds: Arc<Kinds>,
}

/// A flow schema with its level, in the order of precedence.
#[derive(Debug)]
struct Class {
    schema: FlowSchema,
    level: usize,
    exempt: bool,
    uids: (HeaderValue, HeaderValue),
    flow: Arc<Flow>,
}

/// What a request got: its seat, and by which objects, for the answer's headers.
pub(crate) struct Turn {
    _seat: Option<Seat>,
    _stay: Option<Stay>,
    _busy: Option<Busy>,
    /// The uids of the flow schema and the priority level.
    pub(crate) uids: Option<(HeaderValue, HeaderValue)>,
}

impl Fairness {
    pub(crate) fn new(objects: &Objects) -> Self {
        let find = |plural| objects.registry().find(GROUP, "v1", plural);
        let fairness = Self {
            schemas: find("flowschemas"),
            levels_table: find("prioritylevelconfigurations"),
            synced: AtomicU64::new(0),
            reading: Mutex::default(),
            classes: ArcSwap::default(),
            levels: Arc::new(Levels::new(SEATS_TOTAL)),
            counters: Counters::default(),
            kinds: Arc::default(),
        };
        let (levels, schemas) = bootstrap_objects();
        fairness.configure(&levels, &schemas);
        fairness
    }

    /// Takes the objects in the store over, if they have changed.
    fn sync(&self, objects: &Objects) {
        let (Some(schemas), Some(levels)) = (&self.schemas, &self.levels_table) else {
            return;
        };
        let snapshot = objects.snapshot();
        let revision =
            snapshot.table_revision(schemas.table).max(snapshot.table_revision(levels.table)).get();
        if self.synced.load(Ordering::Acquire) >= revision {
            return;
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let all = |resource: &Resource| -> Vec<Value> {
            let entries = snapshot.range(resource.table, Range::all());
            entries.filter_map(|entry| stored(&resource.def, &entry).value().ok()).collect()
        };
        let (levels, schemas) = (all(levels), all(schemas));
        // Until the cluster has been bootstrapped, the built-in configuration stays.
        if !levels.is_empty() && !schemas.is_empty() {
            self.configure(&levels, &schemas);
        }
        self.synced.store(revision, Ordering::Release);
    }

    fn configure(&self, levels: &[Value], schemas: &[Value]) {
        self.levels.configure(levels);
        self.kinds.configure(SEATS_TOTAL, self.levels.places());
        let header = |object: &Value| {
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            HeaderValue::from_str(uid).unwrap_or_else(|_| HeaderValue::from_static(""))
        };
        let classes = schemas.iter().filter_map(|object| {
            let schema = FlowSchema::of(object);
            let named = |level: &&Value| level["metadata"]["name"] == *schema.level;
            let level = levels.iter().find(named)?;
            let exempt = level["spec"]["type"] == "Exempt";
            Some(Class {
                level: self.levels.index(&schema.level)?,
                exempt,
                uids: (header(object), header(level)),
                flow: self.counters.flow(&schema.level, &schema.name),
                schema,
            })
        });
        let mut classes: Vec<Class> = classes.collect();
        classes.sort_by(|a, b| {
            (a.schema.precedence, &a.schema.name).cmp(&(b.schema.precedence, &b.schema.name))
        });
        self.classes.store(Arc::new(classes));
    }

    /// Waits for the request's turn; the seat is held while it is worked on.
    pub(crate) async fn admit(
        &self,
        objects: &Objects,
        user: &UserInfo,
        request: &RequestInfo,
        limit: Option<&str>,
    ) -> ApiResult<Turn> {
        self.sync(objects);
        let mutating = !matches!(request.verb.as_str(), "get" | "list" | "watch" | "head");
        let (level, flow, uids, counters) = {
            let classes = self.classes.load();
            let Some(class) = classes.iter().find(|class| class.schema.matches(user, request)) else {
                return Ok(Turn { _seat: None, _stay: None, _busy: None, uids: None });
            };
            let uids = Some(class.uids.clone());
            if lasts(request) || class.exempt {
                // What lasts is counted as begun; how long it lasts says nothing.
                class.flow.dispatched();
                let stay = (!lasts(request)).then(|| class.flow.enter(1));
                let busy = (!lasts(request)).then(|| self.kinds.enter(mutating, Phase::Executing));
                return Ok(Turn { _seat: None, _stay: stay, _busy: busy, uids });
            }
            (class.level, class.schema.flow(user, request), uids, Arc::clone(&class.flow))
        };
        let width = width::of(objects, request, limit);
        let seat = match self.levels.sit(level, flow, width) {
            level::Place::Seat(seat) => {
                counters.estimated(seat.width());
                Ok(seat)
            }
            level::Place::Queue(place, width) => {
                counters.estimated(width);
                let waiting = Waiting::new(&counters, width);
                let _busy = self.kinds.enter(mutating, Phase::Waiting);
                let seat = tokio::time::timeout(WAIT_MAX, place).await.unwrap_or(None);
                waiting.end(seat.is_some());
                seat.ok_or(Refusal::TimeOut)
            }
            level::Place::Nowhere(why) => Err(why),
        };
        match seat {
            Ok(seat) => {
                counters.dispatched();
                let busy = self.kinds.enter(mutating, Phase::Executing);
                let stay = Some(counters.enter(seat.width()));
                Ok(Turn { _seat: Some(seat), _stay: stay, _busy: Some(busy), uids })
            }
            Err(why) => {
                counters.rejected(why);
                Err(too_many().into())
            }
        }
    }

    /// Everything that is counted, in the text form of Prometheus.
    pub(crate) fn write_metrics(&self, out: &mut String) {
        counters::write_limits(&self.levels.limits(), out);
        self.counters.write(out);
        ratios::write_usage(&self.levels.usage(), out);
        self.kinds.write(out);
    }
}

/// 429, with the time after which to come back.
fn too_many() -> Status {
    let why = "The server has received too many requests and has asked us to try again later";
    let mut status = Status::failure(429, "TooManyRequests", why);
    status.details =
        Some(StatusDetails { retry_after_seconds: RETRY_AFTER_SECONDS, ..StatusDetails::default() });
    status
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use futures::FutureExt as _;
    use kcore::TokioClock;
    use serde_json::json;

    use super::*;
    use crate::{
        kinds::Strategies,
        registry::{Registry, builtin},
        schema,
    };

    fn objects() -> Objects {
        let catalog = schema::builtin::catalog();
        let defs = builtin::resources(&catalog, &Strategies::default());
        let store = Arc::new(kstore::MemoryStore::new());
        Objects::new(store, Arc::new(Registry::new(catalog)), Arc::new(TokioClock::new()), defs).unwrap()
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        Box::pin(future).now_or_never()
    }

    fn request(verb: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            resource: "pods".to_owned(),
            namespace: "a".to_owned(),
            ..RequestInfo::default()
        }
    }

    #[tokio::test]
    async fn what_finds_no_seat_waits_and_what_finds_no_queue_is_sent_away() {
        let objects = objects();
        let fairness = Fairness::new(&objects);
        let level = |name: &str, shares: u32, response: Value| {
            json!({
                "metadata": {"name": name, "uid": name},
                "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": response}},
            })
        };
        let queue = json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 1}});
        let (_, schemas) = bootstrap_objects();
        fairness.configure(
            &[level("global-default", 1, queue), level("other", 299, json!({"type": "Reject"}))],
            &schemas,
        );
        let jane = UserInfo::new("jane", ["system:authenticated"]);
        let get = request("get");
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(now(fairness.admit(&objects, &jane, &get, None)).expect("a seat").unwrap());
        }
        assert_eq!(held[0].uids.as_ref().unwrap().1, "global-default");
        let watch = now(fairness.admit(&objects, &jane, &request("watch"), None))
            .expect("watches take no seat")
            .unwrap();
        assert!(watch._seat.is_none());
        let mut waiting = Box::pin(fairness.admit(&objects, &jane, &get, None));
        assert!(waiting.as_mut().now_or_never().is_none(), "the third waits");
        let error =
            now(fairness.admit(&objects, &jane, &get, None)).unwrap().err().expect("the queue is full");
        assert_eq!((error.0.code, error.0.details.unwrap().retry_after_seconds), (429, 1));
        drop(held.pop());
        let turn = waiting.await;
        assert!(turn.is_ok());
        // Somebody who gives up.
        let mut gone = Box::pin(fairness.admit(&objects, &jane, &get, None));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        let mut text = String::new();
        fairness.write_metrics(&mut text);
        let labels = "flow_schema=\"global-default\",priority_level=\"global-default\"";
        let waited = "apiserver_flowcontrol_request_wait_duration_seconds_count";
        for line in [
            // Three got a seat, and the watch.
            &format!("apiserver_flowcontrol_dispatched_requests_total{{{labels}}} 4"),
            &format!("apiserver_flowcontrol_rejected_requests_total{{{labels},reason=\"queue-full\"}} 1"),
            &format!("apiserver_flowcontrol_rejected_requests_total{{{labels},reason=\"cancelled\"}} 1"),
            &format!("apiserver_flowcontrol_current_executing_requests{{{labels}}} 2"),
            &format!("apiserver_flowcontrol_current_executing_seats{{{labels}}} 2"),
            &format!("apiserver_flowcontrol_current_inqueue_requests{{{labels}}} 0"),
            &format!("apiserver_flowcontrol_current_inqueue_seats{{{labels}}} 0"),
            &format!("apiserver_flowcontrol_work_estimated_seats_bucket{{{labels},le=\"1\"}} 4"),
            &format!("{waited}{{execute=\"true\",{labels}}} 1"),
            &format!("{waited}{{execute=\"false\",{labels}}} 1"),
            &format!("apiserver_flowcontrol_request_execution_seconds_count{{{labels},type=\"regular\"}} 1"),
            "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"global-default\"} 2",
            "apiserver_flowcontrol_upper_limit_seats{priority_level=\"global-default\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_sent_away() {
        let objects = objects();
        let fairness = Fairness::new(&objects);
        let jane = UserInfo::new("jane", ["system:authenticated"]);
        let mut held = Vec::new();
        while let Some(turn) = now(fairness.admit(&objects, &jane, &request("get"), None)) {
            held.push(turn.unwrap());
        }
        assert!(held.len() > 100, "idle levels lend their seats: {}", held.len());
        assert!(held.len() < SEATS_TOTAL, "but not all of them");
        let began = tokio::time::Instant::now();
        assert_eq!(fairness.admit(&objects, &jane, &request("get"), None).await.err().unwrap().0.code, 429);
        assert_eq!(began.elapsed(), WAIT_MAX);
        // Others have their own seats, and administrators need none.
        let scheduler = UserInfo::new("system:kube-scheduler", ["system:authenticated"]);
        assert!(now(fairness.admit(&objects, &scheduler, &request("get"), None)).is_some());
        let admin = UserInfo::new("admin", ["system:masters"]);
        assert!(
            now(fairness.admit(&objects, &admin, &request("get"), None)).unwrap().unwrap()._seat.is_none()
        );
    }
}
