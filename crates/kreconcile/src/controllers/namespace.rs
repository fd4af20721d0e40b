//! Namespaces that are to go: their content first.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kcore::Clock;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    controllers::{Context, pod_writes::error_message},
    discovery::{self, Discovered},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Query, Requests},
    resource::Selection,
    trigger::{MapTo, Trigger},
};

mod conditions;

use conditions::{Findings, Remaining};

/// How many namespaces are worked on at once (`--concurrent-namespace-syncs`).
pub const CONCURRENT_NAMESPACES_MAX: usize = 10;
/// How long to wait for finalizers that others must take off (upstream's `finalizerEstimateSeconds`).
const FINALIZER_WAIT: Duration = Duration::from_secs(15);
/// The finalizer in a namespace's spec that this controller takes off.
const FINALIZER: &str = "kubernetes";

/// The controller `namespace-controller`: deletes everything in a namespace that is to go, pods first
/// (`OrderedNamespaceDeletion`), of every kind that the server says it has; tells in conditions what is in the way; and at
/// the end takes the finalizer off.
///
/// Upstream waits 5 s before it begins, for caches of other API servers to learn that the namespace takes nothing new;
/// here each look lists again before the finalizer goes, and there is no wait.
pub fn namespace(context: &Context) -> Controller {
    const NAME: &str = "namespace-controller";
    let namespaces = context.informers().of::<Namespace>(Selection::all());
    let pods = context.informers().of::<Pod>(Selection::all());
    let reconciler = Namespaces {
        namespaces: namespaces.clone(),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
    };
    let of_gone_pod = {
        let namespaces = namespaces.clone();
        MapTo::Keys(Arc::new(move |change, keys| {
            let namespace = &change.header().namespace;
            let is_going = || {
                let known = namespaces.lister().get("", namespace);
                known.is_some_and(|known| known.header().deletion.is_some())
            };
            if change.new.is_none() && is_going() {
                keys.push(ObjectKey::cluster(&**namespace));
            }
        }))
    };
    Controller::new(NAME, reconciler)
        .workers(CONCURRENT_NAMESPACES_MAX)
        .on(Trigger::new(&namespaces, MapTo::Itself))
        .on(Trigger::new(&pods, of_gone_pod))
}

struct Namespaces {
    namespaces: Informer<Namespace>,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for Namespaces {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let known = self.namespaces.lister().get("", &key.name);
        if known.is_none_or(|known| known.header().deletion.is_none()) {
            return Ok(Action::Done);
        }
        let path = format!("/api/v1/namespaces/{}", key.name);
        let namespace = match self.requests.get::<Value>(&path).await {
            Ok(namespace) => namespace,
            Err(error) if request::is_not_found(&error) => return Ok(Action::Done),
            Err(error) => return Err(error.into()),
        };
        let finalizers = namespace["spec"]["finalizers"].as_array();
        if namespace["metadata"]["deletionTimestamp"].is_null() || finalizers.is_none_or(Vec::is_empty) {
            return Ok(Action::Done);
        }
        let result = self.empty(&key.name, &path, &namespace).await;
        match result {
            Err(ReconcileError::Api(error)) if request::is_not_found(&error) => Ok(Action::Done),
            result => result,
        }
    }
}

impl Namespaces {
    async fn empty(&self, name: &str, path: &str, namespace: &Value) -> Result<Action, ReconcileError> {
        let status_path = format!("{path}/status");
        if namespace["status"]["phase"] != "Terminating" {
            let patch = json!({"status": {"phase": "Terminating"}});
            self.requests.patch::<Value>(&status_path, PatchKind::Merge, &patch).await?;
        }
        let deleted_at = namespace["metadata"]["deletionTimestamp"].as_str().unwrap_or_default();
        let deleted_at = deleted_at.parse().unwrap_or_else(|_| self.clock.now());
        let findings = self.delete_content(name, deleted_at).await;
        let old = &namespace["status"]["conditions"];
        if let Some(conditions) = conditions::update(old, &findings, self.clock.now()) {
            let patch = json!({"status": {"phase": "Terminating", "conditions": conditions}});
            self.requests.patch::<Value>(&status_path, PatchKind::Merge, &patch).await?;
        }
        if let Some(error) = findings.first_error() {
            return Err(ReconcileError::other(error));
        }
        if !findings.remaining.is_empty() {
            let wait = findings.wait / 2 + Duration::from_secs(1);
            return Ok(Action::After(wait));
        }
        self.finalize(path).await
    }

    async fn delete_content(&self, namespace: &str, deleted_at: Timestamp) -> Findings {
        let mut findings = Findings::default();
        let found = match discovery::discover(&self.requests).await {
            Ok(found) => found,
            Err(error) => {
                findings.discovery_error = Some(error_message(&error));
                return findings;
            }
        };
        if !found.failures.is_empty() {
            let why: Vec<String> =
                found.failures.iter().map(|(what, why)| format!("{what}: {why}")).collect();
            let count = why.len();
            let why = format!("unable to retrieve the complete list of server APIs: {}", why.join(", "));
            findings.discovery_error =
                Some(format!("Discovery failed for some groups, {count} failing: {why}"));
        }
        let deletable = |found: &Discovered| found.resource.namespaced && found.can("delete");
        let mut kinds: Vec<Discovered> = found.resources.into_iter().filter(deletable).collect();
        let is_pods = |kind: &Discovered| kind.resource.group.is_empty() && kind.resource.plural == "pods";
        kinds.sort_by_key(|kind| !is_pods(kind));
        for kind in kinds {
            let pods = is_pods(&kind);
            self.delete_kind(&kind, namespace, deleted_at, &mut findings).await;
            // What the pods use stays until they have ended.
            if pods && !findings.remaining.is_empty() {
                break;
            }
        }
        findings
    }

    async fn delete_kind(
        &self,
        kind: &Discovered,
        namespace: &str,
        deleted_at: Timestamp,
        to: &mut Findings,
    ) {
        if let Err(error) = self.try_delete_kind(kind, namespace, deleted_at, to).await
            && !is_unsupported(&error)
        {
            to.content_errors.push(error_message(&error));
        }
    }

    async fn try_delete_kind(
        &self,
        kind: &Discovered,
        namespace: &str,
        deleted_at: Timestamp,
        to: &mut Findings,
    ) -> Result<(), kube::Error> {
        if !kind.can("list") {
            if kind.can("deletecollection") {
                self.delete_collection(kind, namespace).await?;
            }
            return Ok(());
        }
        let before = self.list(kind, namespace).await?;
        if before.is_empty() {
            return Ok(());
        }
        let pods = kind.resource.group.is_empty() && kind.resource.plural == "pods";
        let wait = if pods { self.grace_left(&before, deleted_at) } else { Duration::ZERO };
        if kind.can("deletecollection") {
            self.delete_collection(kind, namespace).await?;
        } else {
            for item in &before {
                self.delete_one(kind, namespace, &item.metadata.name).await?;
            }
        }
        let left = self.list(kind, namespace).await?;
        if left.is_empty() {
            return Ok(());
        }
        let mut remaining = Remaining::new(&kind.resource, left.len());
        for finalizer in left.iter().flat_map(|item| &item.metadata.finalizers) {
            *remaining.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
        if wait.is_zero() && remaining.finalizers.is_empty() {
            let gvr = format!("{}, Resource={}", kind.resource.api_version(), kind.resource.plural);
            let error = format!("unexpected items still remain in namespace: {namespace} for gvr: {gvr}");
            to.content_errors.push(error);
        }
        to.wait = to.wait.max(if wait.is_zero() { FINALIZER_WAIT } else { wait });
        to.remaining.push(remaining);
        Ok(())
    }

    /// How long the pods may still take to end.
    fn grace_left(&self, pods: &[Item], deleted_at: Timestamp) -> Duration {
        let running = pods.iter().filter(|pod| !matches!(&*pod.status.phase, "Succeeded" | "Failed"));
        let longest = running.map(|pod| pod.spec.termination_grace_period_seconds).max().unwrap_or_default();
        let grace = Duration::from_secs(longest);
        let passed = Duration::try_from(self.clock.now().duration_since(deleted_at)).unwrap_or_default();
        if passed >= grace { Duration::ZERO } else { grace }
    }

    async fn list(&self, kind: &Discovered, namespace: &str) -> Result<Vec<Item>, kube::Error> {
        let list: List = self.requests.get(&kind.resource.path(namespace, "")).await?;
        Ok(list.items)
    }

    async fn delete_collection(&self, kind: &Discovered, namespace: &str) -> Result<(), kube::Error> {
        let mut query = Query::new(kind.resource.path(namespace, ""));
        query.add("propagationPolicy", "Background");
        self.requests.delete(&query.finish(), &background()).await.map(drop)
    }

    async fn delete_one(&self, kind: &Discovered, namespace: &str, name: &str) -> Result<(), kube::Error> {
        match self.requests.delete(&kind.resource.path(namespace, name), &background()).await {
            Err(error) if !request::is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn finalize(&self, path: &str) -> Result<Action, ReconcileError> {
        // Read again: conditions were written since.
        let mut namespace: Value = self.requests.get(path).await?;
        if let Some(finalizers) = namespace["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        match self.requests.replace::<Value>(&format!("{path}/finalize"), &namespace).await {
            Ok(_) => Ok(Action::Done),
            Err(error) if request::is_not_found(&error) => Ok(Action::Done),
            Err(error) => Err(error.into()),
        }
    }
}

fn background() -> request::DeleteHow {
    request::DeleteHow { propagation: Some("Background"), ..request::DeleteHow::default() }
}

/// Some kinds say that they can do what they then refuse: nothing to be done about these.
fn is_unsupported(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 405))
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Item>,
}

/// The little that matters of an object that must go.
#[derive(Deserialize)]
struct Item {
    metadata: ItemMeta,
    #[serde(default)]
    spec: ItemSpec,
    #[serde(default)]
    status: ItemStatus,
}

#[derive(Deserialize)]
struct ItemMeta {
    name: String,
    #[serde(default)]
    finalizers: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ItemSpec {
    #[serde(deserialize_with = "lenient")]
    termination_grace_period_seconds: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ItemStatus {
    #[serde(deserialize_with = "lenient")]
    phase: String,
}

/// Objects of any kind are read as items; a field of another meaning is as good as none.
fn lenient<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + serde::de::DeserializeOwned,
    D: serde::Deserializer<'de>,
{
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

type Counts = BTreeMap<String, usize>;
