//! A client that meets with what can go wrong between a controller and its API server, from a seed.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use kcore::local::{LocalEvent, LocalEventStream, LocalEvents};
use kube::{Client, client::Body};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

/// How often what goes wrong: probabilities from 0 to 1, and times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// How long a request or its answer takes at most.
    pub delay_max: Duration,
    /// A request fails with 500 and nothing is done.
    pub refused: f64,
    /// A write fails with 409 and nothing is done, as if somebody else had been first.
    pub conflict: f64,
    /// A write is done, and its answer lost: the caller sees a 500.
    pub lost: f64,
    /// How long events are held back at most, so that caches are stale; their order stays.
    pub stale_max: Duration,
    /// An event is told twice.
    pub twice: f64,
    /// A watch ends after a batch of events.
    pub cut: f64,
    /// A watch ends with 410, so that everything is listed again.
    pub expired: f64,
}

impl Default for Faults {
    /// Much of everything.
    fn default() -> Self {
        Self {
            delay_max: Duration::from_millis(500),
            refused: 0.05,
            conflict: 0.05,
            lost: 0.05,
            stale_max: Duration::from_secs(3),
            twice: 0.1,
            cut: 0.02,
            expired: 0.01,
        }
    }
}

/// Makes clients that meet with [`Faults`]. All of them draw from one seed, and stop doing so together.
///
/// ```
/// use kreconcile::testing::{FaultSource, Faults};
/// # fn example(client: kube::Client) {
/// let source = FaultSource::new(Faults::default(), 42);
/// let unlucky = source.client(client);
/// // ... controllers over `unlucky`; then, to see where they come to rest:
/// source.stop();
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FaultSource {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    faults: Faults,
    random: Mutex<StdRng>,
    stopped: AtomicBool,
}

impl FaultSource {
    /// A source that draws from this seed.
    #[must_use]
    pub fn new(faults: Faults, seed: u64) -> Self {
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        Self { shared: Arc::new(Shared { faults, random, stopped: AtomicBool::new(false) }) }
    }

    /// From now on nothing goes wrong any more, also for watches that are open.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
    }

    /// From now on things go wrong again.
    pub fn resume(&self) {
        self.shared.stopped.store(false, Ordering::Release);
    }

    /// A client over `client` that meets with faults.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn client(&self, client: Client) -> Client {
        let shared = Arc::clone(&self.shared);
        let namespace = client.default_namespace().to_owned();
        let service = tower::service_fn(move |request| {
            let (shared, client) = (Arc::clone(&shared), client.clone());
            async move { shared.carry_out(&client, request).await }
        });
        Client::new(service, namespace)
    }
}

impl Shared {
    /// Whether something goes wrong this time.
    fn hits(&self, probability: f64) -> bool {
        !self.stopped.load(Ordering::Acquire)
            && self.random.lock().unwrap_or_else(PoisonError::into_inner).random_bool(probability)
    }

    /// A time up to this one.
    fn up_to(&self, most: Duration) -> Duration {
        if self.stopped.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        most.mul_f64(self.random.lock().unwrap_or_else(PoisonError::into_inner).random())
    }

    async fn wait(&self, most: Duration) {
        let time = self.up_to(most);
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

    async fn carry_out(
        self: Arc<Self>,
        client: &Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, kube::Error> {
        let is_write = request.method() != Method::GET;
        self.wait(self.faults.delay_max).await;
        if self.hits(self.faults.refused) {
            return failure(500, "InternalError", "nothing was done");
        }
        if is_write && request.method() != Method::POST && self.hits(self.faults.conflict) {
            return failure(
                409,
                "Conflict",
                "the object has been modified; please apply your changes to the latest version and try again",
            );
        }
        let mut response = client.send(request).await?;
        self.wait(self.faults.delay_max).await;
        if is_write && self.hits(self.faults.lost) {
            return failure(500, "InternalError", "the answer was lost");
        }
        let events = response.extensions_mut().remove::<LocalEvents>().and_then(|events| events.take());
        if let Some(events) = events {
            response.extensions_mut().insert(LocalEvents::new(self.disturb(events)));
        }
        Ok(response)
    }

    /// The events of a watch, later, twice, or not to their end.
    fn disturb(self: Arc<Self>, events: LocalEventStream) -> LocalEventStream {
        let disturbed = futures::stream::unfold(Some((self, events)), |state| async {
            let (shared, mut events) = state?;
            let mut batch = events.next().await?;
            // The caller would never have a state at all if its first list were cut off again and again.
            let begins = batch
                .iter()
                .any(|event| matches!(event, LocalEvent::Bookmark { initial_events_end: true, .. }));
            shared.wait(shared.faults.stale_max).await;
            if shared.hits(shared.faults.twice)
                && let Some(LocalEvent::Modified(object)) = batch.last()
            {
                batch.push(LocalEvent::Modified(Arc::clone(object)));
            }
            if !begins && shared.hits(shared.faults.expired) {
                let status = kcore::Status::expired("too old resource version");
                return Some((vec![LocalEvent::Error(Box::new(status))], None));
            }
            let goes_on = begins || !shared.hits(shared.faults.cut);
            Some((batch, goes_on.then_some((shared, events))))
        });
        Box::pin(disturbed)
    }
}

fn failure(code: u16, reason: &str, message: &str) -> Result<Response<Body>, kube::Error> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    let response = Response::builder()
        .status(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        .header(header::CONTENT_TYPE, "application/json");
    response.body(Body::from(status.to_string().into_bytes())).map_err(kube::Error::HttpError)
}
