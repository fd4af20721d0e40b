//! Runs the pods of the nodes' own files, and keeps their mirrors.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Method, Request, StatusCode};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kreconcile::{Change, EventType};
use kube::{Api, client::Body};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Inner, Node, PodEntry, WriteError};
use crate::{
    machine::PodMachine,
    runtime::PodUid,
    static_pods::{self, CHECK_EVERY, Found, is_mirror, is_mirror_of, key},
};

/// How soon a mirror that could not be written is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A pod's namespace and name.
type Key = (String, String);

/// What the whole agent knows of static pods.
#[derive(Debug, Default)]
pub(crate) struct Statics {
    known: Mutex<Known>,
    /// A mirror has come, changed or gone, or a static pod has ended.
    changed: Notify,
    /// Ends when the files of all nodes have been read once.
    pub(super) were_read: CancellationToken,
}

#[derive(Debug, Default)]
struct Known {
    /// The pods that run, or end.
    running: HashMap<Key, PodUid>,
    /// What the API has of them.
    mirrors: HashMap<Key, Arc<Pod>>,
}

impl Statics {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The static pod of that name.
    pub(super) fn named(&self, namespace: &str, name: &str) -> Option<PodUid> {
        self.known().running.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Static pods stand for their mirrors: who asks by the API's uid means them.
    pub(crate) fn meant(&self, uids: &[PodUid]) -> Vec<PodUid> {
        let known = self.known();
        if known.mirrors.is_empty() {
            return uids.to_vec();
        }
        let of = |(key, mirror): (&Key, &Arc<Pod>)| {
            Some((mirror.metadata.uid.clone()?, known.running.get(key)?.clone()))
        };
        let by_mirror: HashMap<String, PodUid> = known.mirrors.iter().filter_map(of).collect();
        uids.iter().map(|uid| by_mirror.get(uid.as_str()).unwrap_or(uid).clone()).collect()
    }

    /// Takes note of mirrors. Says whether the change was about one: nothing else is to be done for it.
    pub(super) fn noted(&self, change: &Change) -> bool {
        let old = change.old_as::<Pod>().filter(|pod| is_mirror(pod));
        let new = change.new_as::<Pod>().filter(|pod| is_mirror(pod));
        if old.is_none() && new.is_none() {
            return false;
        }
        let mut known = self.known();
        if let Some(old) = &old {
            known.mirrors.remove(&key(old));
        }
        let is_new = new.is_some();
        if let Some(new) = new {
            known.mirrors.insert(key(&new), new);
        }
        self.changed.notify_one();
        // A pod under the same name that is no mirror is somebody else's.
        is_new || change.new.is_none()
    }

    /// A static pod has ended and is forgotten.
    pub(super) fn ended(&self, uid: &PodUid) {
        self.known().running.retain(|_, running| running != uid);
        self.changed.notify_one();
    }
}

/// What the files of one node gave last.
#[derive(Default)]
struct Files {
    found: Found,
    /// Whether they were ever read: before that nobody knows which mirrors have lost their pod.
    were_read: bool,
    due: Option<Instant>,
}

/// One task for all nodes of the agent.
pub(super) async fn run(inner: &Inner) {
    let mut files: HashMap<Arc<str>, Files, ahash::RandomState> = HashMap::default();
    loop {
        let nodes: Vec<Arc<Node>> = inner.nodes().values().cloned().collect();
        let names: BTreeSet<&Arc<str>> = nodes.iter().map(|node| &node.config.name).collect();
        files.retain(|name, _| names.contains(name));
        let mut next = Instant::now() + CHECK_EVERY;
        for node in &nodes {
            let files = files.entry(Arc::clone(&node.config.name)).or_default();
            if files.due.is_none_or(|due| due <= Instant::now()) {
                inner.read_files(node, files).await;
                files.due = Some(Instant::now() + CHECK_EVERY);
            }
            next = files.due.map_or(next, |due| due.min(next));
            inner.sync_static_pods(node, &files.found);
            if files.were_read && !inner.sync_mirrors(node, &files.found).await {
                next = next.min(Instant::now() + RETRY_AFTER);
            }
        }
        inner.statics.were_read.cancel();
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = inner.statics.changed.notified() => {}
        }
    }
}

impl Inner {
    async fn read_files(&self, node: &Arc<Node>, files: &mut Files) {
        let Some(place) = node.config.static_pods.clone() else {
            files.were_read = true;
            return;
        };
        let (shown, name) = (place.display().to_string(), Arc::clone(&node.config.name));
        let read = tokio::task::spawn_blocking(move || static_pods::read(&place, &name)).await;
        let mut found = match read.map_err(std::io::Error::other).and_then(|read| read) {
            Ok(found) => found,
            // What was there before goes on.
            Err(error) => {
                let mut found = std::mem::take(&mut files.found);
                found.bad = BTreeMap::from([(shown, format!("it can't be read: {error}"))]);
                found
            }
        };
        files.were_read = true;
        for (path, why) in &found.bad {
            if files.found.bad.get(path) != Some(why) {
                tracing::warn!(node = %node.config.name, path, why, "a manifest of a static pod is wrong");
                let message = format!("Can't process manifest file {path:?}: {why}");
                self.node_event(node, EventType::Warning, "InvalidManifest", message);
            }
        }
        for (key, pod) in &mut found.pods {
            // The same pod was seen when it was seen first.
            match files.found.pods.remove(key) {
                Some(known) if known.metadata.uid == pod.metadata.uid => *pod = known,
                _ => static_pods::note_seen(pod, self.clock.now()),
            }
        }
        files.found = found;
    }

    /// Ends the pods that aren't wanted any more, and begins those that are, each after the one of its name has ended.
    fn sync_static_pods(&self, node: &Arc<Node>, found: &Found) {
        // Those that are static alone: an agent may have very many other pods, and very many nodes that ask.
        let running: Vec<PodUid> = self.statics.known().running.values().cloned().collect();
        let here = running.iter().filter_map(|uid| self.entry(uid));
        for entry in here.filter(|entry| entry.node.config.name == node.config.name) {
            let pod = entry.pod();
            if found.pods.get(&key(&pod)).is_none_or(|wanted| wanted.metadata.uid != pod.metadata.uid) {
                entry.set_gone();
                self.queue.add(entry.uid.clone());
            }
        }
        if node.shutting_down().is_some() {
            return;
        }
        for (key, pod) in &found.pods {
            let uid = PodUid::from(pod.metadata.uid.as_deref().unwrap_or_default());
            {
                let mut known = self.statics.known();
                if known.running.contains_key(key) || self.entry(&uid).is_some() {
                    continue;
                }
                known.running.insert(key.clone(), uid.clone());
            }
            let pod = Arc::new(pod.clone());
            let entry = PodEntry::new_static(uid.clone(), Arc::clone(node), pod, PodMachine::default());
            self.entries().insert(uid.clone(), Arc::new(entry));
            self.queue.add(uid);
        }
    }

    /// Makes the mirrors that are missing, takes those away that show nothing, and tells pods of theirs. Says whether all could be written.
    async fn sync_mirrors(&self, node: &Arc<Node>, found: &Found) -> bool {
        let mirrors: BTreeMap<Key, Arc<Pod>> = {
            let known = self.statics.known();
            let of_node = |pod: &Pod| {
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&*node.config.name)
            };
            known
                .mirrors
                .iter()
                .filter(|(_, pod)| of_node(pod))
                .map(|(key, pod)| (key.clone(), Arc::clone(pod)))
                .collect()
        };
        let mut is_done = true;
        for (key, mirror) in &mirrors {
            match found.pods.get(key) {
                Some(pod) if is_mirror_of(mirror, pod) => {
                    let uid = self.statics.named(&key.0, &key.1);
                    if let Some(entry) = uid.and_then(|uid| self.entry(&uid))
                        && Some(entry.uid.as_str()) == pod.metadata.uid.as_deref()
                        && entry.set_mirror(Arc::clone(mirror))
                    {
                        self.queue.add(entry.uid.clone());
                    }
                }
                // The next one is made when the API has told that this one is gone.
                _ => is_done &= self.delete(mirror).await,
            }
        }
        let missing: Vec<&Pod> =
            found.pods.iter().filter(|(key, _)| !mirrors.contains_key(*key)).map(|(_, pod)| pod).collect();
        if missing.is_empty() {
            return is_done;
        }
        let object = match Api::<NodeObject>::all(self.client.clone()).get(&node.config.name).await {
            Ok(object) => object,
            Err(error) => {
                tracing::debug!(node = %node.config.name, %error, "mirrors wait until the node is registered");
                return false;
            }
        };
        let node_uid = object.metadata.uid.unwrap_or_default();
        for pod in missing {
            if let Err(error) = self.make_mirror(pod, &node.config.name, &node_uid).await {
                tracing::warn!(pod = pod.metadata.name, %error, "the mirror of a static pod is not made yet");
                is_done = false;
            }
        }
        is_done
    }

    async fn make_mirror(&self, pod: &Pod, node: &str, node_uid: &str) -> Result<(), WriteError> {
        let mirror = static_pods::mirror(pod, node, node_uid)?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/api/v1/namespaces/{namespace}/pods"))
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(&mirror)?))?;
        match self.send(request).await {
            // It is there already, and the informer will tell.
            Err(WriteError::Refused(StatusCode::CONFLICT)) => Ok(()),
            other => other,
        }
    }
}
