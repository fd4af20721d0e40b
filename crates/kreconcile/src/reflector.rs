//! The list and watch that keeps an informer's cache up to date.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ahash::RandomState;
use futures::StreamExt;
use http::{Request, header};
use kcore::{
    Status, Stored,
    local::{LocalEvent, LocalEventStream, LocalEvents, WantLocal},
};
use kube::{Client, client::Body};
use rand::Rng;
use tokio::time::Instant;

use crate::{
    backoff::Backoff,
    informer::{Shared, Step},
    request::{self, Query},
    watch_lines::{self, EventLines},
};

/// How many objects one page of a list has, as in client-go.
pub const LIST_PAGE_ITEMS: usize = 500;
/// The first wait after a failed list or watch (client-go's reflector).
pub const RETRY_MIN: Duration = Duration::from_millis(800);
/// The longest wait between two tries (client-go's reflector).
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// A watch that lived this long was well; the next failure starts from [`RETRY_MIN`].
pub const RETRY_RESET: Duration = Duration::from_secs(120);
/// How long the server is asked to keep a watch at least; the time asked for is between this and twice this.
pub const WATCH_TIMEOUT_MIN: Duration = Duration::from_secs(300);
/// A watch that ended without an error after less than this is not resumed at once.
const WATCH_TOO_SHORT: Duration = Duration::from_secs(1);

const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.9";
const METADATA_LIST_ONLY: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;q=0.9";

/// Why a list or a watch ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The revision to go on from is gone: list again.
    #[error("the revision to resume from has expired")]
    Expired,
    /// The server does not know streaming lists.
    #[error("the server refuses streaming lists")]
    NoStreamingList,
    /// A watch event reports an error.
    #[error("the watch reports an error: {0}")]
    Status(#[source] Box<Status>),
    /// The request failed.
    #[error(transparent)]
    Request(#[from] kube::Error),
    /// The answer can't be read.
    #[error("the watch can't be read: {0}")]
    Malformed(&'static str),
}

/// Keeps `shared` up to date until it is told to stop.
pub(crate) async fn run(shared: Arc<Shared>, client: Client) {
    let stop = shared.stop.clone();
    let reflector = Reflector { shared: Arc::clone(&shared), client, revision: None, streaming_list: true };
    stop.run_until_cancelled(reflector.keep()).await;
    shared.close();
}

struct Reflector {
    shared: Arc<Shared>,
    client: Client,
    /// Where the next watch starts; `None` when there must be a list first.
    revision: Option<u64>,
    /// Whether the server is believed to know `sendInitialEvents` (Kubernetes 1.32 and later by default).
    streaming_list: bool,
}

impl Reflector {
    async fn keep(mut self) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let started = Instant::now();
            let result = self.once().await;
            let lived = started.elapsed();
            if lived >= RETRY_RESET {
                backoff.reset();
            }
            let resource = &self.shared.resource.plural;
            match result {
                Ok(()) if lived >= WATCH_TOO_SHORT => continue,
                Ok(()) => tracing::debug!(resource, "the watch ended early"),
                Err(WatchError::NoStreamingList) => {
                    self.streaming_list = false;
                    continue;
                }
                Err(WatchError::Expired) => {
                    tracing::debug!(resource, "the watch has expired, listing again");
                    if self.revision.take().is_some() && lived >= WATCH_TOO_SHORT {
                        continue;
                    }
                }
                Err(WatchError::Request(error)) if request::is_not_found(&error) => {
                    // A kind that somebody has yet to define, perhaps: said once, and asked for again.
                    if self.shared.is_absent() {
                        tracing::warn!(resource, %error, "the server does not have this kind, trying again");
                    }
                }
                Err(error) => {
                    tracing::warn!(resource, %error, "list and watch failed, trying again");
                }
            }
            let wait = backoff.next_jittered(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    /// One watch, with a list before it if one is needed.
    async fn once(&mut self) -> Result<(), WatchError> {
        if self.revision.is_none() && !self.streaming_list {
            self.list().await?;
        }
        let mut events = self.open().await?;
        let mut initial = self.revision.is_none().then(HashMap::<_, _, RandomState>::default);
        while let Some(batch) = events.next().await {
            let mut steps = Vec::with_capacity(batch.len());
            let mut revision = self.revision.unwrap_or_default();
            for event in batch {
                let object = match event {
                    LocalEvent::Error(status) => {
                        // What came before the error in this batch still counts.
                        self.commit(&mut steps, revision, initial.is_some());
                        return Err(error_of(status));
                    }
                    LocalEvent::Bookmark { revision: at, initial_events_end } => {
                        revision = revision.max(at);
                        if initial_events_end && let Some(objects) = initial.take() {
                            self.shared.replace(objects.into_values().collect(), revision);
                            self.revision = Some(revision);
                        }
                        continue;
                    }
                    LocalEvent::Added(object) | LocalEvent::Modified(object) => Step::Put(object),
                    LocalEvent::Deleted(object) => Step::Remove(object),
                };
                let (Step::Put(stored) | Step::Remove(stored)) = &object;
                revision = revision.max(stored.revision());
                match &mut initial {
                    None => steps.push(object),
                    Some(objects) => collect(objects, object),
                }
            }
            self.commit(&mut steps, revision, initial.is_some());
        }
        Ok(())
    }

    fn commit(&mut self, steps: &mut Vec<Step>, revision: u64, listing: bool) {
        if listing {
            return;
        }
        if !steps.is_empty() || self.revision != Some(revision) {
            self.shared.apply(std::mem::take(steps), revision);
            self.revision = Some(revision);
        }
    }

    fn query(&self) -> Query {
        let selection = &self.shared.selection;
        let resource = &self.shared.resource;
        let mut path = Query::new(resource.path(&selection.namespace, ""));
        path.add_unless_empty("labelSelector", &selection.labels);
        path.add_unless_empty("fieldSelector", &selection.fields);
        path
    }

    /// Starts a watch: from the last revision, or else as a streaming list (KEP-3157).
    async fn open(&self) -> Result<LocalEventStream, WatchError> {
        let mut query = self.query();
        query.add("watch", "true");
        query.add("allowWatchBookmarks", "true");
        let spread = rand::rng().random_range(1.0..2.0);
        query.add("timeoutSeconds", &WATCH_TIMEOUT_MIN.mul_f64(spread).as_secs().to_string());
        match self.revision {
            Some(revision) => query.add("resourceVersion", &revision.to_string()),
            None => {
                query.add("sendInitialEvents", "true");
                query.add("resourceVersionMatch", "NotOlderThan");
            }
        }
        let accept = if self.shared.selection.metadata_only { METADATA_ONLY } else { "application/json" };
        let mut request = Request::get(query.finish())
            .header(header::ACCEPT, accept)
            // A compressed watch would be held back until a block is full.
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Body::empty())
            .map_err(kube::Error::HttpError)?;
        request.extensions_mut().insert(WantLocal);
        let response = self.client.send(request).await?;
        if !response.status().is_success() {
            let code = response.status();
            let error = request::error_of(response).await;
            let refused =
                self.revision.is_none() && self.streaming_list && matches!(code.as_u16(), 400 | 422);
            return Err(match error {
                _ if code == http::StatusCode::GONE => WatchError::Expired,
                _ if refused => WatchError::NoStreamingList,
                error => WatchError::Request(error),
            });
        }
        if let Some(events) = response.extensions().get::<LocalEvents>().and_then(LocalEvents::take) {
            return Ok(events);
        }
        Ok(Box::pin(EventLines::new(response.into_body()).into_stream()))
    }

    /// Lists page by page, for servers without streaming lists.
    async fn list(&mut self) -> Result<(), WatchError> {
        let (mut objects, mut token) = (Vec::new(), String::new());
        let accept =
            if self.shared.selection.metadata_only { METADATA_LIST_ONLY } else { "application/json" };
        let revision = loop {
            let mut query = self.query();
            query.add("limit", &LIST_PAGE_ITEMS.to_string());
            query.add_unless_empty("continue", &token);
            let request = Request::get(query.finish())
                .header(header::ACCEPT, accept)
                .body(Body::empty())
                .map_err(kube::Error::HttpError)?;
            let response = self.client.send(request).await?;
            if response.status() == http::StatusCode::GONE && !token.is_empty() {
                return Err(WatchError::Expired);
            }
            let page = request::body_of(response).await?;
            let page = watch_lines::read_page(&page, &self.shared.resource)?;
            objects.extend(page.objects.into_iter().map(Arc::new));
            if page.token.is_empty() {
                break page.revision;
            }
            token = page.token;
        };
        self.shared.replace(objects, revision);
        self.revision = Some(revision);
        Ok(())
    }
}

type Initial = HashMap<(Box<str>, Box<str>), Arc<Stored>, RandomState>;

fn collect(objects: &mut Initial, step: Step) {
    let key = |object: &Stored| (object.header().namespace.clone(), object.header().name.clone());
    match step {
        Step::Put(object) => objects.insert(key(&object), object),
        Step::Remove(object) => objects.remove(&key(&object)),
    };
}

fn error_of(status: Box<Status>) -> WatchError {
    if status.code == 410 { WatchError::Expired } else { WatchError::Status(status) }
}
