//! Watching: initial events, changes, selectors, bookmarks, 410, and the local hand-over.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use kcore::local::{LocalEvent, LocalEvents, WantLocal};
use kstore::Store as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{json as send, send as raw, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// An open watch, read line by line.
struct Lines {
    body: kapi::Body,
    read: Vec<u8>,
}

impl Lines {
    async fn open(server: &ApiServer, query: &str) -> Self {
        let request = Request::get(format!("{MAPS}?watch=true&{query}")).body(Empty::<Bytes>::new()).unwrap();
        let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), read: Vec::new() }
    }

    /// The next event: its type, and the object's name or, for a bookmark, "".
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.read.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

async fn put(server: &ApiServer, name: &str, label: &str) {
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"l": label}}});
    let (code, _) = send(server, "POST", MAPS, &object).await;
    if code == 409 {
        let patch = format!(r#"{{"metadata":{{"labels":{{"l":"{label}"}}}}}}"#);
        assert_eq!(
            raw(server, "PATCH", &format!("{MAPS}/{name}"), "application/merge-patch+json", patch).await.0,
            200
        );
    }
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test(start_paused = true)]
async fn changes_come_in_order_and_selectors_turn_them() {
    let server = server().await;
    put(&server, "a", "x").await;
    let mut all = Lines::open(&server, "").await;
    let mut selected = Lines::open(&server, "labelSelector=l%3Dy").await;
    assert_eq!(all.brief().await, pair("ADDED", "a"));
    put(&server, "a", "y").await;
    put(&server, "b", "z").await;
    put(&server, "a", "x").await;
    send(&server, "DELETE", &format!("{MAPS}/b"), &Value::Null).await;
    for expected in [("MODIFIED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")] {
        assert_eq!(all.brief().await, pair(expected.0, expected.1));
    }
    assert_eq!(selected.brief().await, pair("ADDED", "a"));
    let left = selected.next().await.unwrap();
    assert_eq!(
        (left["type"].as_str(), left["object"]["metadata"]["labels"]["l"].as_str()),
        (Some("DELETED"), Some("y"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_streaming_list_ends_its_initial_events_with_a_bookmark() {
    let server = server().await;
    put(&server, "a", "x").await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=300";
    let mut watch = Lines::open(&server, query).await;
    assert_eq!(watch.brief().await, pair("ADDED", "a"));
    let end = watch.next().await.unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!((end["type"].as_str(), end["object"]["kind"].as_str()), (Some("BOOKMARK"), Some("ConfigMap")));
    // What happens elsewhere moves the bookmark on.
    send(&server, "POST", "/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await;
    let bookmark = watch.next().await.unwrap();
    let revision = |value: &Value| {
        value["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    };
    assert!(bookmark["type"] == "BOOKMARK" && revision(&bookmark) > revision(&end));
    assert!(watch.next().await.is_none(), "the watch ends at its time");
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_after_its_revision_and_410_says_that_it_is_gone() {
    let server = server().await;
    put(&server, "a", "x").await;
    let revision = server.objects().snapshot().revision();
    put(&server, "b", "x").await;
    let mut watch = Lines::open(&server, &format!("resourceVersion={revision}")).await;
    assert_eq!(watch.brief().await, pair("ADDED", "b"));
    server.objects().store().compact(server.objects().snapshot().revision()).await.unwrap();
    let mut watch = Lines::open(&server, &format!("resourceVersion={revision}")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((event["type"].as_str(), event["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(watch.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_client_in_the_process_gets_the_objects_themselves() {
    let server = server().await;
    put(&server, "a", "x").await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let request = Request::get(format!("{MAPS}?watch=true&{query}"))
        .extension(WantLocal)
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    let mut events = response.extensions().get::<LocalEvents>().unwrap().take().unwrap();
    let batch = events.next().await.unwrap();
    assert!(
        matches!(batch.as_slice(), [LocalEvent::Added(object), LocalEvent::Bookmark { initial_events_end: true, .. }] if &*object.header().name == "a")
    );
    put(&server, "b", "x").await;
    let batch = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
    assert!(matches!(batch.as_slice(), [LocalEvent::Added(object)] if &*object.header().name == "b"));
}

#[tokio::test]
async fn a_server_that_ends_ends_its_watches_cleanly() {
    use http_body_util::{BodyExt as _, Full};
    use tower::ServiceExt as _;

    let server = crate::harness::server().await;
    let request =
        http::Request::get("/api/v1/namespaces?watch=true").body(Full::<bytes::Bytes>::default()).unwrap();
    let admin = kapi::authn::UserInfo::new("admin", [kapi::authn::MASTERS]);
    let mut body = server.as_user(admin).oneshot(request).await.unwrap().into_body();
    assert!(body.frame().await.is_some(), "the objects there are");
    assert_eq!(crate::harness::get(&server, "/readyz").await.0, 200);
    server.drain();
    assert!(body.frame().await.is_none(), "the watch ends");
    assert_eq!(crate::harness::get(&server, "/readyz").await.0, 500);
    assert_eq!(crate::harness::get(&server, "/livez").await.0, 200);
    assert_eq!(crate::harness::get(&server, "/api/v1/namespaces/default").await.0, 200);
}
