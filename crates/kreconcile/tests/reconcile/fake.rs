//! Just enough of an API server to run controllers against: objects in memory, one revision, watches.

#![allow(clippy::result_large_err, reason = "an error is the answer here, and made once per request")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kcore::{
    Clock, Status, Stored,
    local::{LocalEvent, LocalEvents, WantLocal},
};
use kreconcile::ResourceType;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

type ObjectId = (String, String, String);
type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Default)]
struct State {
    revision: u64,
    /// By plural name, namespace and name.
    objects: BTreeMap<ObjectId, Value>,
    log: Vec<(u64, String, LocalEvent)>,
    /// Watches from before this revision are told that it is gone.
    floor: u64,
}

pub(crate) struct FakeApi {
    kinds: Vec<ResourceType>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
    /// Give no events within the process.
    pub(crate) json_only: AtomicBool,
    pub(crate) no_streaming_list: AtomicBool,
    /// Nothing is answered but 500.
    pub(crate) broken: AtomicBool,
    /// So many creates of pods are done, and answered as if nobody knew.
    pub(crate) lost_answers: AtomicUsize,
    /// Watches of pods tell nothing.
    pub(crate) held: AtomicBool,
    /// It has no kinds.
    pub(crate) empty: AtomicBool,
    pub(crate) writes: AtomicUsize,
    pub(crate) lists: AtomicUsize,
    cut: watch::Sender<u64>,
}

#[derive(Clone)]
struct Target {
    kind: ResourceType,
    namespace: String,
    name: String,
    subresource: String,
    query: BTreeMap<String, String>,
}

impl FakeApi {
    pub(crate) fn new(kinds: Vec<ResourceType>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            kinds,
            state: Mutex::new(State { revision: 1, ..State::default() }),
            changed: watch::Sender::new(1),
            clock,
            json_only: AtomicBool::new(false),
            no_streaming_list: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            lost_answers: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            empty: AtomicBool::new(false),
            writes: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
            cut: watch::Sender::new(0),
        })
    }

    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        Client::new(
            tower::service_fn(move |request| {
                let api = Arc::clone(&api);
                async move { Ok::<_, Infallible>(api.answer(request).await) }
            }),
            "default",
        )
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        state.objects.get(&(plural.into(), namespace.into(), name.into())).cloned()
    }

    pub(crate) fn count(&self, plural: &str) -> usize {
        self.state.lock().unwrap().objects.keys().filter(|id| id.0 == plural).count()
    }

    pub(crate) fn list(&self, plural: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter(|(id, _)| id.0 == plural).map(|(_, object)| object.clone()).collect()
    }

    /// Changes an object as its node or user would.
    pub(crate) fn edit(&self, plural: &str, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut state = self.state.lock().unwrap();
        let id = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = state.objects[&id].clone();
        edit(&mut object);
        self.store(&mut state, id, object);
    }

    pub(crate) fn add(&self, plural: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let id =
            (plural.to_owned(), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        self.prepare(&mut object, state.revision);
        self.store(&mut state, id, object);
    }

    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        self.drop_object(&mut state, &(plural.into(), namespace.into(), name.into()));
    }

    /// Ends all watches; with `compact` what they would resume from is gone.
    pub(crate) fn cut_watches(&self, compact: bool) {
        let mut state = self.state.lock().unwrap();
        if compact {
            state.revision += 1;
            state.floor = state.revision;
        }
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Waits until `holds` does, for two days at most.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if holds(self) {
                    return;
                }
                changed.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(2 * 86_400), wait).await;
        assert!(waited.is_ok(), "{what} never came to be");
    }

    fn prepare(&self, object: &mut Value, revision: u64) {
        let meta = &mut object["metadata"];
        if meta["uid"].is_null() {
            meta["uid"] = format!("uid-{revision}").into();
        }
        meta["generation"] = 1.into();
        meta["creationTimestamp"] = kcore::clock::format_time(self.clock.now()).into();
    }

    fn store(&self, state: &mut State, id: ObjectId, mut object: Value) -> Value {
        let old = state.objects.get(&id);
        if let Some(old) = old {
            if *old == object {
                return object;
            }
            if old["spec"] != object["spec"] {
                object["metadata"]["generation"] =
                    (old["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
            }
            let finalizers = object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
                && object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
            if !object["metadata"]["deletionTimestamp"].is_null() && finalizers && id.0 != "pods" {
                state.objects.insert(id.clone(), object.clone());
                self.drop_object(state, &id);
                return object;
            }
        }
        let is_new = old.is_none();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let stored = Arc::new(Stored::from_value(object.clone()).unwrap());
        let event = if is_new { LocalEvent::Added(stored) } else { LocalEvent::Modified(stored) };
        let revision = state.revision;
        state.log.push((revision, id.0.clone(), event));
        state.objects.insert(id, object.clone());
        self.changed.send_replace(revision);
        object
    }

    fn drop_object(&self, state: &mut State, id: &ObjectId) {
        let mut object = state.objects.remove(id).unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let event = LocalEvent::Deleted(Arc::new(Stored::from_value(object).unwrap()));
        let revision = state.revision;
        state.log.push((revision, id.0.clone(), event));
        self.changed.send_replace(revision);
    }

    fn target(&self, uri: &http::Uri) -> Option<Target> {
        let parts: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, plural, rest @ ..] if !matches!(*plural, "status" | "finalize") => {
                (*namespace, [&[*plural], rest].concat())
            }
            rest => ("", rest.to_vec()),
        };
        let plural = rest.first()?;
        let kind = self.kinds.iter().find(|kind| kind.plural == *plural && kind.group == group);
        let query = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(key, value)| (key.to_owned(), value.replace("%3D", "="))).collect();
        let at = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
        let kind = kind.filter(|kind| kind.version == version)?.clone();
        Some(Target { kind, namespace: namespace.to_owned(), name: at(1), subresource: at(2), query })
    }

    async fn answer(self: &Arc<Self>, request: Request<Body>) -> Response<AnswerBody> {
        if self.broken.load(Ordering::Relaxed) {
            return failure(Status::internal("broken"));
        }
        if self.empty.load(Ordering::Relaxed) {
            return failure(Status::no_such_path());
        }
        let (parts, body) = request.into_parts();
        if matches!(parts.uri.path(), "/api" | "/apis") {
            return success(&self.discovery(parts.uri.path() == "/api"));
        }
        if let ["apis", group, version] =
            parts.uri.path().trim_matches('/').split('/').collect::<Vec<_>>()[..]
        {
            return success(&self.resources(group, version));
        }
        let Some(target) = self.target(&parts.uri) else { return failure(Status::no_such_path()) };
        let local = parts.extensions.get::<WantLocal>().is_some() && !self.json_only.load(Ordering::Relaxed);
        if parts.method == Method::GET && target.query.contains_key("watch") {
            return self.watch(&target, local);
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let result = match parts.method {
            Method::GET if target.name.is_empty() => Ok(self.list_page(&target)),
            Method::GET => {
                self.get(&target.kind.plural, &target.namespace, &target.name).ok_or_else(|| missing(&target))
            }
            method => {
                self.writes.fetch_add(1, Ordering::Relaxed);
                let is_pod = method == Method::POST && target.kind.plural == "pods";
                let fewer = |left: usize| left.checked_sub(1);
                let lost = is_pod
                    && self.lost_answers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok();
                let written = self.write(&method, &target, body);
                if lost { Err(Status::failure(504, "Timeout", "no answer")) } else { written }
            }
        };
        result.map_or_else(failure, |value| success(&value))
    }

    /// What a group has; everything in it can be scaled.
    fn resources(&self, group: &str, version: &str) -> Value {
        let kinds = self.kinds.iter().filter(|kind| kind.group == group && kind.version == version);
        let each = kinds.flat_map(|kind| {
            let scale = json!({"name": format!("{}/scale", kind.plural), "kind": "Scale", "namespaced": kind.namespaced});
            [json!({"name": kind.plural, "kind": kind.kind, "namespaced": kind.namespaced}), scale]
        });
        json!({"kind": "APIResourceList", "resources": each.collect::<Vec<_>>()})
    }

    fn discovery(&self, core: bool) -> Value {
        let kinds = self.kinds.iter().filter(|kind| kind.group.is_empty() == core);
        let group = |kind: &ResourceType| {
            json!({"metadata": {"name": kind.group}, "versions": [{"version": kind.version, "resources": [{
                "resource": kind.plural, "responseKind": {"kind": kind.kind},
                "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                "verbs": ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"],
            }]}]})
        };
        json!({"kind": "APIGroupDiscoveryList", "items": kinds.map(group).collect::<Vec<_>>()})
    }

    fn list_page(&self, target: &Target) -> Value {
        self.lists.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap();
        let all: Vec<&Value> =
            state.objects.iter().filter(|(id, _)| selects(target, id)).map(|(_, o)| o).collect();
        let start = target.query.get("continue").map_or(0, |token| token.parse().unwrap());
        // Two at a time, whatever is asked for.
        let page: Vec<&&Value> = all.iter().skip(start).take(2).collect();
        let next = start + page.len();
        let token = if next < all.len() { next.to_string() } else { String::new() };
        json!({"metadata": {"resourceVersion": state.revision.to_string(), "continue": token}, "items": page})
    }

    fn watch(self: &Arc<Self>, target: &Target, local: bool) -> Response<AnswerBody> {
        let state = self.state.lock().unwrap();
        let initial = target.query.contains_key("sendInitialEvents");
        if initial && self.no_streaming_list.load(Ordering::Relaxed) {
            return failure(Status::failure(422, "Invalid", "sendInitialEvents is forbidden"));
        }
        let mut first = Vec::new();
        let mut from = target.query.get("resourceVersion").map_or(0, |from| from.parse().unwrap());
        if initial {
            from = state.revision;
            let objects = state.objects.iter().filter(|(id, _)| selects(target, id));
            let added =
                |object: &Value| LocalEvent::Added(Arc::new(Stored::from_value(object.clone()).unwrap()));
            first.extend(objects.map(|(_, object)| added(object)));
            first.push(LocalEvent::Bookmark { revision: from, initial_events_end: true });
        } else if from < state.floor {
            return failure(Status::expired("too old resource version"));
        }
        drop(state);
        let events = self.events(target.clone(), from, first);
        if local {
            let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
            response.extensions_mut().insert(LocalEvents::new(events));
            return response;
        }
        let lines = events.map(|batch| {
            let text: String = batch.iter().map(|event| line(event) + "\n").collect();
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(text)))
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
    }

    /// What comes after `first`, until the watches are cut.
    fn events(
        self: &Arc<Self>,
        target: Target,
        from: u64,
        first: Vec<LocalEvent>,
    ) -> impl Stream<Item = Vec<LocalEvent>> + Send + use<> {
        let (api, changed, mut cut) = (Arc::clone(self), self.changed.subscribe(), self.cut.subscribe());
        let following = stream::unfold((api, from, changed), move |(api, from, mut changed)| {
            let target = target.clone();
            async move {
                loop {
                    changed.borrow_and_update();
                    let (batch, to) = api.after(&target, from);
                    let is_held = target.kind.plural == "pods" && api.held.load(Ordering::Relaxed);
                    if !batch.is_empty() && !is_held {
                        return Some((batch, (api, to, changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        let ended = async move {
            cut.borrow_and_update();
            let _ = cut.changed().await;
        };
        let first = stream::iter((!first.is_empty()).then_some(first));
        first.chain(following).take_until(ended)
    }

    fn after(&self, target: &Target, from: u64) -> (Vec<LocalEvent>, u64) {
        let state = self.state.lock().unwrap();
        let wanted = |event: &LocalEvent| match event {
            LocalEvent::Added(object) | LocalEvent::Modified(object) | LocalEvent::Deleted(object) => {
                let header = object.header();
                let id = (target.kind.plural.clone(), header.namespace.to_string(), header.name.to_string());
                selects(target, &id)
            }
            _ => true,
        };
        let start = state.log.partition_point(|(at, _, _)| *at <= from);
        let later = state.log[start..].iter().filter(|(_, plural, _)| *plural == target.kind.plural);
        let events = later.map(|(_, _, event)| event).filter(|event| wanted(event));
        (events.cloned().collect(), state.revision)
    }

    fn write(&self, method: &Method, target: &Target, body: Value) -> Result<Value, Status> {
        let mut state = self.state.lock().unwrap();
        let plural = target.kind.plural.clone();
        if method == Method::POST {
            return self.create(&mut state, target, body);
        }
        if target.name.is_empty() {
            let ids: Vec<_> = state.objects.keys().filter(|id| selects(target, id)).cloned().collect();
            for id in ids {
                self.delete(&mut state, &id, &Value::Null)?;
            }
            return Ok(json!({}));
        }
        let id = (plural, target.namespace.clone(), target.name.clone());
        let known = state.objects.get(&id).cloned().ok_or_else(|| missing(target))?;
        let conflict = || Status::conflict(&target.kind.group, &target.kind.plural, &target.name, "changed");
        if *method == Method::DELETE {
            let uid = &body["preconditions"]["uid"];
            let revision = &body["preconditions"]["resourceVersion"];
            let meta = &known["metadata"];
            if (!uid.is_null() && *uid != meta["uid"])
                || (!revision.is_null() && *revision != meta["resourceVersion"])
            {
                return Err(conflict());
            }
            return self.delete(&mut state, &id, &body["propagationPolicy"]);
        }
        for key in ["resourceVersion", "uid"] {
            let wanted = &body["metadata"][key];
            if !wanted.is_null() && *wanted != known["metadata"][key] {
                return Err(conflict());
            }
        }
        let mut new = known.clone();
        if *method == Method::PUT {
            new = body;
        } else {
            merge(&mut new, &body);
        }
        if target.subresource == "status" {
            let status = new["status"].take();
            new = known;
            new["status"] = status;
        }
        Ok(self.store(&mut state, id, new))
    }

    fn create(&self, state: &mut State, target: &Target, mut object: Value) -> Result<Value, Status> {
        let meta = &mut object["metadata"];
        if let (Some(prefix), None) = (meta["generateName"].as_str(), meta["name"].as_str()) {
            meta["name"] = format!("{prefix}{}", state.revision).into();
        }
        if target.kind.namespaced {
            meta["namespace"] = target.namespace.as_str().into();
        }
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let id = (target.kind.plural.clone(), target.namespace.clone(), name.clone());
        if state.objects.contains_key(&id) {
            return Err(Status::already_exists(&target.kind.group, &target.kind.plural, &name));
        }
        self.prepare(&mut object, state.revision);
        Ok(self.store(state, id, object))
    }

    fn delete(&self, state: &mut State, id: &ObjectId, propagation: &Value) -> Result<Value, Status> {
        let mut object = state.objects[id].clone();
        let finalizer = match propagation.as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.extend(finalizer.map(Value::from));
        if finalizers.is_empty() && object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
            self.drop_object(state, id);
            return Ok(object);
        }
        object["metadata"]["finalizers"] = finalizers.into();
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = kcore::clock::format_time(self.clock.now()).into();
        }
        Ok(self.store(state, id.clone(), object))
    }
}

fn selects(target: &Target, id: &ObjectId) -> bool {
    let named = target.query.get("fieldSelector").and_then(|text| text.strip_prefix("metadata.name="));
    id.0 == target.kind.plural
        && (target.namespace.is_empty() || id.1 == target.namespace)
        && named.is_none_or(|name| id.2 == name)
}

fn missing(target: &Target) -> Status {
    Status::not_found(&target.kind.group, &target.kind.plural, &target.name)
}

fn merge(object: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut object[key], value);
        }
    }
}

fn line(event: &LocalEvent) -> String {
    let of =
        |kind: &str, object: &Stored| json!({"type": kind, "object": object.value().unwrap()}).to_string();
    match event {
        LocalEvent::Added(object) => of("ADDED", object),
        LocalEvent::Modified(object) => of("MODIFIED", object),
        LocalEvent::Deleted(object) => of("DELETED", object),
        LocalEvent::Bookmark { revision, initial_events_end } => {
            let annotations = json!({"k8s.io/initial-events-end": initial_events_end.to_string()});
            let metadata = json!({"resourceVersion": revision.to_string(), "annotations": annotations});
            json!({"type": "BOOKMARK", "object": {"metadata": metadata}}).to_string()
        }
        LocalEvent::Error(status) => json!({"type": "ERROR", "object": status}).to_string(),
    }
}

fn success(value: &Value) -> Response<AnswerBody> {
    Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

fn failure(status: Status) -> Response<AnswerBody> {
    let mut response =
        Response::new(Full::new(Bytes::from(serde_json::to_vec(&status).unwrap())).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap();
    response
}
