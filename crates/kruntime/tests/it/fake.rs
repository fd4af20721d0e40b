//! An API server small enough to read: pods are kept and watched, everything else is noted and agreed to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kcore::{
    Stored,
    local::{LocalEvent, LocalEvents},
};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

/// A request that changed something: its method, its path and its body.
pub(crate) type Write = (Method, String, Value);

#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    revision: u64,
    pods: BTreeMap<String, Value>,
    watchers: Vec<mpsc::UnboundedSender<LocalEvent>>,
    writes: Vec<Write>,
    /// Other objects, by their paths.
    objects: BTreeMap<String, Value>,
    is_away: bool,
}

fn stored(pod: &Value) -> Arc<Stored> {
    Arc::new(Stored::from_value(pod.clone()).unwrap())
}

impl State {
    fn put(&mut self, mut pod: Value) {
        self.revision += 1;
        pod["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let event = if self.pods.contains_key(&name) {
            LocalEvent::Modified(stored(&pod))
        } else {
            LocalEvent::Added(stored(&pod))
        };
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
        self.pods.insert(name, pod);
    }

    fn remove(&mut self, name: &str) {
        self.revision += 1;
        let Some(mut pod) = self.pods.remove(name) else { return };
        pod["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let event = LocalEvent::Deleted(stored(&pod));
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    fn watch(&mut self, pods: bool) -> LocalEvents {
        let (sender, receiver) = mpsc::unbounded_channel();
        for pod in self.pods.values().filter(|_| pods) {
            sender.send(LocalEvent::Added(stored(pod))).unwrap();
        }
        sender
            .send(LocalEvent::Bookmark { revision: self.revision.max(1), initial_events_end: true })
            .unwrap();
        if pods {
            self.watchers.push(sender.clone());
        }
        LocalEvents::new(futures::stream::unfold((receiver, sender), |(mut receiver, sender)| async move {
            Some((vec![receiver.recv().await?], (receiver, sender)))
        }))
    }
}

impl FakeApi {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// A client of it.
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Makes or changes a pod.
    pub(crate) fn put(&self, pod: Value) {
        self.state().put(pod);
    }

    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        let mut pod = state.pods[name].clone();
        change(&mut pod);
        state.put(pod);
    }

    /// Keeps an object at a path. It is changed by those who write there.
    pub(crate) fn put_object(&self, path: &str, object: Value) {
        self.state().objects.insert(path.to_owned(), object);
    }

    /// The object that is kept at a path; null when there is none.
    pub(crate) fn object(&self, path: &str) -> Value {
        self.state().objects.get(path).cloned().unwrap_or_default()
    }

    /// Waits until `is` holds for the object that is kept at a path.
    pub(crate) async fn until_object(&self, path: &str, is: impl Fn(&Value) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if is(&self.object(path)) {
                return;
            }
            changed.await;
        }
    }

    /// Answers nothing any more, or does so again; who watches is not told.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.state().is_away = is_away;
    }

    /// The pods by name.
    pub(crate) fn pods(&self) -> BTreeMap<String, Value> {
        self.state().pods.clone()
    }

    /// Removes a pod.
    pub(crate) fn remove(&self, name: &str) {
        self.state().remove(name);
        self.0.changed.notify_waiters();
    }

    /// Waits until `is` holds for the pods.
    pub(crate) async fn until(&self, is: impl Fn(&BTreeMap<String, Value>) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if is(&self.state().pods) {
                return;
            }
            changed.await;
        }
    }

    /// What was written about pods so far.
    pub(crate) fn pod_writes(&self) -> Vec<Write> {
        self.state().writes.iter().filter(|(_, path, _)| path.contains("/pods/")).cloned().collect()
    }

    /// What was written so far to paths with this in them.
    pub(crate) fn writes_to(&self, part: &str) -> Vec<Write> {
        self.state().writes.iter().filter(|(_, path, _)| path.contains(part)).cloned().collect()
    }

    /// Waits until `is` holds for what was written to paths with this in them.
    pub(crate) async fn until_written(&self, part: &str, is: impl Fn(&[Write]) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if is(&self.writes_to(part)) {
                return;
            }
            changed.await;
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        if self.state().is_away {
            let mut response = Response::new(Full::default());
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            return response;
        }
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default();
        if query.contains("watch=true") {
            let events = self.state().watch(path.ends_with("/pods"));
            let mut response = Response::new(Full::default());
            response.extensions_mut().insert(events);
            return response;
        }
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let mut answer = json!({});
        if parts.method == Method::GET {
            let names: Vec<&str> = path.split('/').collect();
            let kept = self.state().objects.get(&path).cloned();
            if let Some(object) = kept {
                answer = object;
            } else if path.starts_with("/apis/storage.k8s.io/") {
                return not_found();
            } else if let [.., "runtimeclasses", name] = names[..] {
                // One class that there is, one whose handler nobody has, and no others.
                if !["special", "other"].contains(&name) {
                    return not_found();
                }
                answer = json!({"metadata": {"name": name}, "handler": format!("{name}-handler")});
            } else if let [.., "nodes", name] = names[..] {
                answer = json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")}});
            } else if path.ends_with("/configmaps/config") {
                answer = json!({"metadata": {"name": "config"}, "data": {"key": "value"}});
            }
        } else {
            let mut state = self.state();
            let names: Vec<&str> = path.split('/').collect();
            match (parts.method.clone(), &names[..]) {
                (Method::PATCH, [.., "pods", name, "status"]) => {
                    let mut pod = state.pods[*name].clone();
                    merge_status(&mut pod["status"], &body["status"]);
                    state.put(pod);
                }
                (Method::DELETE, [.., "pods", name]) => state.remove(name),
                (Method::DELETE, [.., "resourceslices"]) => {
                    answer = json!({"kind": "Status", "status": "Success"})
                }
                (Method::POST, [.., "pods"]) => {
                    let mut pod = body.clone();
                    pod["metadata"]["uid"] = json!(format!("made-{}", state.revision + 1));
                    pod["status"] = json!({"phase": "Pending"});
                    state.put(pod);
                }
                (Method::POST, [.., "serviceaccounts", name, "token"]) => {
                    let audiences = &body["spec"]["audiences"];
                    answer = json!({"metadata": {}, "spec": body["spec"], "status": {
                        "token": format!("token of {name} for {audiences}"),
                        "expirationTimestamp": "2999-01-01T00:00:00Z",
                    }});
                }
                (Method::POST, _) if path.starts_with("/apis/storage.k8s.io/") => {
                    let name = body["metadata"]["name"].as_str().unwrap();
                    state.objects.insert(format!("{path}/{name}"), body.clone());
                    answer = body.clone();
                }
                (method, _) => {
                    let path = path.strip_suffix("/status").unwrap_or(&path);
                    if let Some(object) = state.objects.get_mut(path) {
                        match method {
                            Method::PUT => *object = body.clone(),
                            Method::DELETE => drop(state.objects.remove(path)),
                            _ => merge(object, &body),
                        }
                        answer = state.objects.get(path).cloned().unwrap_or_default();
                    }
                }
            }
            state.writes.push((parts.method, path, body));
        }
        self.0.changed.notify_waiters();
        Response::new(Full::new(answer.to_string().into()))
    }
}

fn not_found() -> Response<Full<Bytes>> {
    let status = json!({"kind": "Status", "code": 404, "reason": "NotFound", "status": "Failure"});
    let mut response = Response::new(Full::new(status.to_string().into()));
    *response.status_mut() = http::StatusCode::NOT_FOUND;
    response
}

/// A merge patch (RFC 7396).
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (key, patch) in patch {
        match patch {
            Value::Null => drop(value.as_object_mut().unwrap().remove(key)),
            _ => merge(&mut value[key], patch),
        }
    }
}

/// A strategic merge, as far as a pod's status needs one.
fn merge_status(status: &mut Value, patch: &Value) {
    for (key, value) in patch.as_object().unwrap() {
        match (key.as_str(), value) {
            ("conditions", Value::Array(patched)) => {
                let mut all = status["conditions"].as_array().cloned().unwrap_or_default();
                for condition in patched {
                    all.retain(|known| known["type"] != condition["type"]);
                    if condition["$patch"] != "delete" {
                        all.push(condition.clone());
                    }
                }
                status["conditions"] = all.into();
            }
            (_, Value::Null) => {
                status.as_object_mut().unwrap().remove(key);
            }
            _ => status[key] = value.clone(),
        }
    }
}

/// Reads a stream of bytes to its end.
pub(crate) async fn text(mut stream: impl futures::Stream<Item = Bytes> + Unpin) -> String {
    let mut out = Vec::new();
    while let Some(bytes) = stream.next().await {
        out.extend_from_slice(&bytes);
    }
    String::from_utf8_lossy(&out).into_owned()
}
