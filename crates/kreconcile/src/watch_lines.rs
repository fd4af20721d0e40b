//! Reading a watch or a list that came as JSON, from a server in another process.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body_util::BodyExt;
use kcore::{Status, Stored, local::LocalEvent};
use kube::client::Body;
use serde::Deserialize;
use serde_json::Value;

use crate::{reflector::WatchError, resource::ResourceType};

/// The longest line of a watch that is read. An object is at most a few MiB (etcd's limit is 1.5 MiB, the API server's
/// 3 MiB).
pub(crate) const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many events are put into one batch.
const BATCH_EVENTS_MAX: usize = 1024;

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Cuts a response body into lines and reads them as events.
pub(crate) struct EventLines {
    body: Body,
    buffer: BytesMut,
    /// How much of `buffer` is known to have no end of line.
    searched: usize,
    ended: bool,
}

impl EventLines {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// Batches of events. Ends with the body; ends with an error event when the body breaks or makes no sense.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Vec<LocalEvent>> + Send {
        futures::stream::unfold(self, |mut lines| async move {
            let batch = lines.batch().await;
            (!batch.is_empty()).then_some((batch, lines))
        })
    }

    async fn batch(&mut self) -> Vec<LocalEvent> {
        let mut batch = Vec::new();
        while batch.is_empty() && !self.ended {
            while batch.len() < BATCH_EVENTS_MAX
                && let Some(line) = self.line()
            {
                match read_event(&line) {
                    Ok(event) => batch.push(event),
                    Err(why) => {
                        self.ended = true;
                        batch.push(broken(why));
                        return batch;
                    }
                }
            }
            if batch.is_empty() {
                self.fill(&mut batch).await;
            }
        }
        batch
    }

    fn line(&mut self) -> Option<Bytes> {
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let line = self.buffer.split_to(self.searched + at + 1).freeze();
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }

    async fn fill(&mut self, batch: &mut Vec<LocalEvent>) {
        match self.body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
                if self.buffer.len() > EVENT_BYTES_MAX && self.searched == 0 {
                    self.ended = !self.buffer.contains(&b'\n');
                    if self.ended {
                        batch.push(broken("an event is too long"));
                    }
                }
            }
            Some(Err(error)) => {
                self.ended = true;
                tracing::debug!(%error, "the watch's connection broke");
                batch.push(broken("the connection broke"));
            }
            None => self.ended = true,
        }
    }
}

fn broken(why: &str) -> LocalEvent {
    LocalEvent::Error(Box::new(Status::internal(why)))
}

#[derive(Deserialize)]
struct EventLine {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

fn read_event(line: &[u8]) -> Result<LocalEvent, &'static str> {
    let event: EventLine = serde_json::from_slice(line).map_err(|_| "an event is not JSON")?;
    let stored = |object| Stored::from_value(object).map(Arc::new).map_err(|_| "an object has no revision");
    match event.kind.as_str() {
        "ADDED" => stored(event.object).map(LocalEvent::Added),
        "MODIFIED" => stored(event.object).map(LocalEvent::Modified),
        "DELETED" => stored(event.object).map(LocalEvent::Deleted),
        "BOOKMARK" => {
            let metadata = &event.object["metadata"];
            let revision = revision_of(metadata).ok_or("a bookmark has no revision")?;
            let initial_events_end = metadata["annotations"][INITIAL_EVENTS_END] == "true";
            Ok(LocalEvent::Bookmark { revision, initial_events_end })
        }
        "ERROR" => {
            let status = Status::deserialize(&event.object).map_err(|_| "an error is no Status")?;
            Ok(LocalEvent::Error(Box::new(status)))
        }
        _ => Err("an event has an unknown type"),
    }
}

fn revision_of(metadata: &Value) -> Option<u64> {
    metadata["resourceVersion"].as_str()?.parse().ok()
}

/// One page of a list.
pub(crate) struct Page {
    pub(crate) objects: Vec<Stored>,
    pub(crate) revision: u64,
    pub(crate) token: String,
}

/// Reads a page of a list. The items of a list carry neither kind nor version, so these are put in.
pub(crate) fn read_page(bytes: &[u8], resource: &ResourceType) -> Result<Page, WatchError> {
    let mut list: Value =
        serde_json::from_slice(bytes).map_err(|_| WatchError::Malformed("the list is not JSON"))?;
    let metadata = list["metadata"].take();
    let revision = revision_of(&metadata).ok_or(WatchError::Malformed("the list has no revision"))?;
    let Value::Array(items) = list["items"].take() else {
        return Err(WatchError::Malformed("the list has no items"));
    };
    let mut objects = Vec::with_capacity(items.len());
    for mut item in items {
        if let Some(object) = item.as_object_mut() {
            object.entry("apiVersion").or_insert_with(|| resource.api_version().into());
            object.entry("kind").or_insert_with(|| resource.kind.clone().into());
        }
        let stored = Stored::from_value(item);
        objects.push(stored.map_err(|_| WatchError::Malformed("an object has no revision"))?);
    }
    let token = metadata["continue"].as_str().unwrap_or_default().to_owned();
    Ok(Page { objects, revision, token })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn check(body: &str, expected: &str) {
        let mut seen = Vec::new();
        let mut events = Box::pin(EventLines::new(Body::from(body.as_bytes().to_vec())).into_stream());
        while let Some(batch) = events.next().await {
            seen.extend(batch.into_iter().map(|event| match event {
                LocalEvent::Added(o) => format!("+{}@{}", o.header().name, o.revision()),
                LocalEvent::Modified(o) => format!("~{}@{}", o.header().name, o.revision()),
                LocalEvent::Deleted(o) => format!("-{}@{}", o.header().name, o.revision()),
                LocalEvent::Bookmark { revision, initial_events_end } => {
                    format!("={revision} {initial_events_end}")
                }
                LocalEvent::Error(status) => format!("!{}", status.code),
            }));
        }
        assert_eq!(seen.join(","), expected, "{body}");
    }

    #[tokio::test]
    async fn lines_become_events() {
        let line = |kind: &str, name: &str, at: u32| {
            format!(
                r#"{{"type":"{kind}","object":{{"metadata":{{"name":"{name}","resourceVersion":"{at}"}}}}}}"#
            )
        };
        check(&format!("{}\n\n{}\n", line("ADDED", "a", 1), line("DELETED", "a", 2)), "+a@1,-a@2").await;
        check(&format!("{}\n{}", line("MODIFIED", "a", 1), line("ADDED", "cut", 2)), "~a@1").await;
        check("{\"type\":\"ADDED\",\"object\":{}}\n", "!500").await;
        check("nonsense\n", "!500").await;
        check(r#"{"type":"ERROR","object":{"kind":"Status","code":410}}"#, "").await;
        check("{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410}}\n", "!410").await;
        let bookmark = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        check(&format!("{bookmark}\n"), "=9 true").await;
    }
}
