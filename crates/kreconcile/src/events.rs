//! Telling people what was done: `core/v1` Events.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ahash::RandomState;
use kcore::{Clock, Stored, clock::format_time};
use kube::Client;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    backoff::TokenBucket,
    request::{self, PatchKind, Requests, Written},
    resource::ResourceType,
};

/// How many events may wait to be written; more are dropped and counted.
pub const WAITING_EVENTS_MAX: usize = 1000;
/// How many events about one object one component may write at once (client-go's `defaultSpamBurst`).
pub const OBJECT_BURST_MAX: u32 = 25;
/// How many events about one object one component may write per second in the long run (client-go's `defaultSpamQPS`).
pub const OBJECT_PER_SECOND_MAX: f64 = 1.0 / 300.0;
/// How many events that differ in their message only are written before they are put together (client-go's
/// `defaultAggregateMaxEvents`).
pub const SIMILAR_EVENTS_MAX: usize = 10;
/// After how long without one more, events that differ in their message only are written apart again (client-go's
/// `defaultAggregateIntervalInSeconds`).
pub const SIMILAR_EVENTS_AGE_MAX: Duration = Duration::from_secs(600);
/// How many events and objects are remembered, each (client-go's `maxLruCacheEntries`).
pub const REMEMBERED_MAX: usize = 4096;
/// The longest message, in bytes (the API's validation).
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// How often a write is tried when the server can't be reached (client-go's `maxTriesPerEvent`).
pub const TRIES_MAX: u32 = 12;
/// The wait between two tries (client-go's `defaultSleepDuration`).
pub const TRY_WAIT: Duration = Duration::from_secs(10);

const SIMILAR_PREFIX: &str = "(combined from similar events): ";

/// Whether an event is as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Something went as it should.
    Normal,
    /// Something did not.
    Warning,
}

impl EventType {
    /// The word in the event's `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The object that an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// The object's `apiVersion`.
    pub api_version: String,
    /// The object's kind.
    pub kind: String,
    /// The object's namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The object's uid.
    pub uid: String,
    /// The object's `resourceVersion`; may be empty.
    pub resource_version: String,
    /// The part of the object, such as `spec.containers{web}`; may be empty.
    pub field_path: String,
}

impl Regarding {
    /// This object of this kind.
    #[must_use]
    pub fn of(object: &Stored, resource: &ResourceType) -> Self {
        let header = object.header();
        Self {
            api_version: resource.api_version(),
            kind: resource.kind.clone(),
            namespace: header.namespace.to_string(),
            name: header.name.to_string(),
            uid: header.uid.to_string(),
            resource_version: object.revision().to_string(),
            field_path: String::new(),
        }
    }

    /// The part of the object that the event is about.
    #[must_use]
    pub fn field(mut self, path: impl Into<String>) -> Self {
        self.field_path = path.into();
        self
    }

    fn value(&self) -> Value {
        let mut value =
            json!({"kind": self.kind, "name": self.name, "uid": self.uid, "apiVersion": self.api_version});
        let optional = [
            ("namespace", &self.namespace),
            ("resourceVersion", &self.resource_version),
            ("fieldPath", &self.field_path),
        ];
        for (key, text) in optional {
            if !text.is_empty() {
                value[key] = text.as_str().into();
            }
        }
        value
    }
}

/// Writes events, without ever making its caller wait.
///
/// Events are what `kubectl describe` and `kubectl events` show. Repeated ones are counted in one Event object, similar
/// ones put together and floods cut off, by the rules and numbers of client-go's `EventCorrelator`. They are written by a
/// task that ends with the last clone; what can't be written is dropped and counted.
///
/// ```no_run
/// # fn example(client: kube::Client, clock: std::sync::Arc<dyn kcore::Clock>, about: &kreconcile::Regarding) {
/// use kreconcile::{EventRecorder, EventType};
/// let recorder = EventRecorder::new(client, clock, "my-controller");
/// recorder.record(about, EventType::Normal, "Greeted", "said hello");
/// # }
/// ```
#[derive(Clone)]
pub struct EventRecorder {
    component: Arc<str>,
    sender: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl fmt::Debug for EventRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRecorder")
            .field("component", &self.component)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

/// One event as it was recorded.
struct Note {
    component: Arc<str>,
    about: Regarding,
    kind: EventType,
    reason: String,
    message: String,
}

impl EventRecorder {
    /// A recorder that writes through `client`, as this component.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(client: Client, clock: Arc<dyn Clock>, component: impl Into<Arc<str>>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_EVENTS_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            requests: Requests::new(client),
            clock,
            dropped: Arc::clone(&dropped),
            memory: Memory::default(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(writer.run(receiver)));
        Self { component: component.into(), sender, dropped, _task: Arc::new(task) }
    }

    /// The same recorder for another component.
    #[must_use]
    pub fn component(&self, component: impl Into<Arc<str>>) -> Self {
        Self { component: component.into(), ..self.clone() }
    }

    /// Records an event. `reason` is one word in CamelCase for programs, `message` a sentence for people.
    pub fn record(&self, about: &Regarding, kind: EventType, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let end =
                (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
            message.truncate(end);
        }
        let component = Arc::clone(&self.component);
        let note = Note { component, about: about.clone(), kind, reason: reason.to_owned(), message };
        if self.sender.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events were dropped: too many at once, or refused by the server.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// An event without its message: events of one kind are similar.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SimilarKey {
    component: Arc<str>,
    about: Regarding,
    kind: EventType,
    reason: String,
}

struct Similar {
    messages: HashSet<String, RandomState>,
    last: Instant,
}

/// An Event object that was written.
#[derive(Clone)]
struct Series {
    name: String,
    count: u64,
    first: String,
    last: Instant,
}

/// What client-go's correlator remembers.
#[derive(Default)]
struct Memory {
    buckets: HashMap<(Arc<str>, Regarding), TokenBucket, RandomState>,
    similar: HashMap<SimilarKey, Similar, RandomState>,
    series: HashMap<(SimilarKey, String), Series, RandomState>,
    names: u64,
}

/// What to write for a note.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing: too many.
    Drop,
    /// A new Event, or one more in the series of an existing one, with this message.
    Write { message: String, combined: bool },
}

impl Memory {
    fn judge(&mut self, note: &Note, now: Instant) -> (SimilarKey, Verdict) {
        let about =
            Regarding { resource_version: String::new(), field_path: String::new(), ..note.about.clone() };
        let key = SimilarKey {
            component: Arc::clone(&note.component),
            about: note.about.clone(),
            kind: note.kind,
            reason: note.reason.clone(),
        };
        let key = SimilarKey { about: Regarding { resource_version: String::new(), ..key.about }, ..key };
        self.forget_some(now);
        let fresh = || Similar { messages: HashSet::default(), last: now };
        let similar = self.similar.entry(key.clone()).or_insert_with(fresh);
        if now.saturating_duration_since(similar.last) > SIMILAR_EVENTS_AGE_MAX {
            similar.messages.clear();
        }
        similar.last = now;
        let combined = if similar.messages.len() >= SIMILAR_EVENTS_MAX {
            !similar.messages.contains(&note.message)
        } else {
            similar.messages.insert(note.message.clone());
            false
        };
        let bucket = self.buckets.entry((Arc::clone(&note.component), about));
        let bucket = bucket.or_insert_with(|| TokenBucket::new(OBJECT_PER_SECOND_MAX, OBJECT_BURST_MAX, now));
        if !bucket.try_take(now) {
            return (key, Verdict::Drop);
        }
        let message =
            if combined { format!("{SIMILAR_PREFIX}{}", note.message) } else { note.message.clone() };
        (key, Verdict::Write { message, combined })
    }

    /// Keeps the memory within its limit. Forgetting only means that a series is begun anew.
    fn forget_some(&mut self, now: Instant) {
        let recent = |last: Instant| now.saturating_duration_since(last) < SIMILAR_EVENTS_AGE_MAX;
        if self.similar.len() >= REMEMBERED_MAX {
            self.similar.retain(|_, similar| recent(similar.last));
        }
        if self.series.len() >= REMEMBERED_MAX {
            self.series.retain(|_, series| recent(series.last));
        }
        if self.similar.len() >= REMEMBERED_MAX {
            self.similar.clear();
        }
        if self.series.len() >= REMEMBERED_MAX {
            self.series.clear();
        }
        if self.buckets.len() >= REMEMBERED_MAX {
            self.buckets.clear();
        }
    }
}

struct Writer {
    requests: Requests,
    clock: Arc<dyn Clock>,
    dropped: Arc<AtomicU64>,
    memory: Memory,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let (key, verdict) = self.memory.judge(&note, Instant::now());
            let Verdict::Write { message, combined } = verdict else { continue };
            if !self.write(&note, key, message, combined).await {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn write(&mut self, note: &Note, key: SimilarKey, message: String, combined: bool) -> bool {
        let series_key = (key, if combined { SIMILAR_PREFIX.to_owned() } else { message.clone() });
        for attempt in 1..=TRIES_MAX {
            let known = self.memory.series.get(&series_key).cloned();
            let now = format_time(self.clock.now());
            let result = match &known {
                Some(series) => self.add_to(note, series, &message, &now).await,
                None => self.create(note, &message, &now).await,
            };
            match result {
                Ok(series) => {
                    self.memory.series.insert(series_key, series);
                    return true;
                }
                Err(error) if known.is_some() && request::is_not_found(&error) => {
                    // It has run out in the meantime; the next try makes a new one.
                    self.memory.series.remove(&series_key);
                }
                Err(kube::Error::Api(status)) => {
                    tracing::debug!(%status, reason = note.reason, "the server refuses an event");
                    return false;
                }
                Err(error) => {
                    tracing::debug!(%error, attempt, "an event can't be written");
                    if attempt < TRIES_MAX {
                        tokio::time::sleep(TRY_WAIT).await;
                    }
                }
            }
        }
        false
    }

    async fn create(&mut self, note: &Note, message: &str, now: &str) -> Result<Series, kube::Error> {
        // client-go names events after the time in nanoseconds; a counter keeps equal times apart.
        self.memory.names += 1;
        let nanoseconds = self.clock.now().as_nanosecond() + i128::from(self.memory.names);
        let name = format!("{}.{nanoseconds:x}", note.about.name);
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace_of(&note.about)},
            "involvedObject": note.about.value(),
            "reason": note.reason,
            "message": message,
            "source": {"component": &*note.component},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "type": note.kind.as_str(),
            "eventTime": null,
            "reportingComponent": &*note.component,
            "reportingInstance": "",
        });
        let body = serde_json::to_vec(&event).map_err(kube::Error::SerdeError)?;
        let path = format!("/api/v1/namespaces/{}/events", namespace_of(&note.about));
        self.requests.create::<Written>(&path, body).await?;
        Ok(Series { name, count: 1, first: now.to_owned(), last: Instant::now() })
    }

    async fn add_to(
        &self,
        note: &Note,
        series: &Series,
        message: &str,
        now: &str,
    ) -> Result<Series, kube::Error> {
        let path = format!("/api/v1/namespaces/{}/events/{}", namespace_of(&note.about), series.name);
        let count = series.count + 1;
        let patch =
            json!({"count": count, "lastTimestamp": now, "firstTimestamp": series.first, "message": message});
        self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await?;
        Ok(Series { count, last: Instant::now(), ..series.clone() })
    }
}

/// Events about cluster-scoped objects live in `default`, as in client-go.
fn namespace_of(about: &Regarding) -> &str {
    if about.namespace.is_empty() { "default" } else { &about.namespace }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str) -> Note {
        Note {
            component: "test".into(),
            about: Regarding { name: "x".into(), ..Regarding::default() },
            kind: EventType::Normal,
            reason: "Tested".into(),
            message: message.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_about_one_object_is_cut_off_and_comes_back_slowly() {
        let mut memory = Memory::default();
        let written = |memory: &mut Memory| {
            let verdicts = (0..40).map(|_| memory.judge(&note("same"), Instant::now()).1);
            verdicts.filter(|verdict| *verdict != Verdict::Drop).count()
        };
        assert_eq!(written(&mut memory), 25);
        tokio::time::advance(Duration::from_secs(601)).await;
        assert_eq!(written(&mut memory), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn similar_events_are_put_together_after_ten() {
        let mut memory = Memory::default();
        let mut combined = Vec::new();
        for number in 0..12 {
            if let (_, Verdict::Write { message, combined: true }) =
                memory.judge(&note(&format!("m{number}")), Instant::now())
            {
                combined.push(message);
            }
        }
        assert_eq!(combined, ["(combined from similar events): m10", "(combined from similar events): m11"]);
    }
}
