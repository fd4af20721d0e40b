//! How many pods the controllers of pods ask for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ahash::RandomState;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kcore::kind;
use serde_json::Value;

use crate::{
    controllers::{Context, pod_state},
    informer::Informer,
    request::{self, Requests},
    resource::{ResourceType, Selection},
};

/// Why it is not known how many pods there should be. The words are upstream's: they are shown in conditions and events.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScaleError {
    #[error("found no controllers for pod {0:?}")]
    NoControllers(String),
    #[error("no matches for kind {kind:?} in version {version:?}")]
    NoKind { kind: String, version: String },
    #[error("{0} does not implement the scale subresource")]
    NoScale(String),
    #[error(transparent)]
    Request(#[from] kube::Error),
}

/// How many kinds with a `scale` are remembered; beyond that they are looked up anew.
const KNOWN_KINDS_MAX: usize = 1024;

/// Finds the scale of a pod's controller: in informers for the usual kinds, else by asking the server.
pub(super) struct Scales {
    replication_controllers: Informer<ReplicationController>,
    replica_sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful_sets: Informer<StatefulSet>,
    requests: Requests,
    /// Kinds by `apiVersion` and kind.
    kinds: Mutex<HashMap<(String, String), ResourceType, RandomState>>,
}

/// A controller's uid and the number of its pods.
type Scale = (String, i32);

impl Scales {
    pub(super) fn new(context: &Context, requests: Requests) -> Self {
        let informers = context.informers();
        Self {
            replication_controllers: informers.of(Selection::all()),
            replica_sets: informers.of(Selection::all()),
            deployments: informers.of(Selection::all()),
            stateful_sets: informers.of(Selection::all()),
            requests,
            kinds: Mutex::default(),
        }
    }

    /// The informers that are read.
    pub(super) fn reads(context: &Context) -> [Informer<()>; 4] {
        let informers = context.informers();
        [
            informers.of::<ReplicationController>(Selection::all()).untyped(),
            informers.of::<ReplicaSet>(Selection::all()).untyped(),
            informers.of::<Deployment>(Selection::all()).untyped(),
            informers.of::<StatefulSet>(Selection::all()).untyped(),
        ]
    }

    /// What all controllers of the pods ask for together, and how many pods have none (upstream's `getExpectedScale`).
    pub(super) async fn sum(&self, pods: &[Arc<Pod>]) -> Result<(i32, usize), ScaleError> {
        let (mut seen, mut scales) = (Vec::<&str>::new(), HashMap::<String, i32, RandomState>::default());
        let mut unmanaged = 0;
        for pod in pods {
            let owners = pod.metadata.owner_references.iter().flatten();
            let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else {
                unmanaged += 1;
                continue;
            };
            if seen.contains(&owner.uid.as_str()) {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let found = match self.known(owner, namespace) {
                Some(scale) => Some(scale),
                None => self.ask(owner, namespace).await?,
            };
            let Some((uid, scale)) = found else {
                return Err(ScaleError::NoControllers(pod_state::name(pod).to_owned()));
            };
            scales.insert(uid, scale);
            seen.push(&owner.uid);
        }
        Ok((scales.values().fold(0, |sum: i32, scale| sum.saturating_add(*scale)), unmanaged))
    }

    /// A controller of a kind that every server has.
    fn known(&self, owner: &OwnerReference, namespace: &str) -> Option<Scale> {
        let (group, _) = kind::split_api_version(&owner.api_version);
        let one = |replicas: Option<i32>| replicas.unwrap_or(1);
        match (&*owner.kind, group) {
            ("ReplicationController", "") => {
                let found = self.replication_controllers.get(namespace, &owner.name)?;
                (found.metadata.uid.as_ref() == Some(&owner.uid)).then_some(())?;
                Some((owner.uid.clone(), one(found.spec.as_ref()?.replicas)))
            }
            ("StatefulSet", "apps") => {
                let found = self.stateful_sets.get(namespace, &owner.name)?;
                (found.metadata.uid.as_ref() == Some(&owner.uid)).then_some(())?;
                Some((owner.uid.clone(), one(found.spec.replicas)))
            }
            ("ReplicaSet", "apps" | "extensions") => self.of_replica_set(owner, namespace),
            _ => None,
        }
    }

    /// A ReplicaSet of a Deployment counts as the Deployment: during a rollout there are several.
    fn of_replica_set(&self, owner: &OwnerReference, namespace: &str) -> Option<Scale> {
        let set = self.replica_sets.get(namespace, &owner.name)?;
        (set.metadata.uid.as_ref() == Some(&owner.uid)).then_some(())?;
        let owners = set.metadata.owner_references.iter().flatten();
        let above =
            owners.into_iter().find(|above| above.controller == Some(true) && above.kind == "Deployment");
        let Some(above) = above else {
            return Some((owner.uid.clone(), set.spec.replicas.unwrap_or(1)));
        };
        let deployment = self.deployments.get(namespace, &above.name)?;
        let group = kind::split_api_version(&above.api_version).0;
        let same = deployment.metadata.uid.as_ref() == Some(&above.uid);
        (same && matches!(group, "apps" | "extensions")).then_some(())?;
        Some((above.uid.clone(), deployment.spec.replicas.unwrap_or(1)))
    }

    /// Any other controller, by its subresource `scale`.
    async fn ask(&self, owner: &OwnerReference, namespace: &str) -> Result<Option<Scale>, ScaleError> {
        let resource = self.kind(owner).await?;
        let path = format!("{}/scale", resource.path(namespace, &owner.name));
        match self.requests.get::<Value>(&path).await {
            Ok(scale) if scale["metadata"]["uid"] == *owner.uid => {
                let replicas = scale["spec"]["replicas"].as_i64().unwrap_or_default();
                Ok(Some((owner.uid.clone(), i32::try_from(replicas).unwrap_or(i32::MAX))))
            }
            Ok(_) => Ok(None),
            Err(error) if request::is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of the controller's kind, if it has a `scale`.
    async fn kind(&self, owner: &OwnerReference) -> Result<ResourceType, ScaleError> {
        let key = (owner.api_version.clone(), owner.kind.clone());
        if let Some(known) = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = kind::split_api_version(&owner.api_version);
        let path =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let list = match self.requests.get::<Value>(&path).await {
            Ok(list) => list,
            Err(error) if request::is_not_found(&error) => Value::Null,
            Err(error) => return Err(error.into()),
        };
        let all = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
        let name = |resource: &Value| resource["name"].as_str().unwrap_or_default().to_owned();
        let found = all.iter().find(|one| one["kind"] == *owner.kind && !name(one).contains('/'));
        let Some(found) = found else {
            return Err(ScaleError::NoKind { kind: key.1, version: key.0 });
        };
        let plural = name(found);
        let scale = format!("{plural}/scale");
        if !all.iter().any(|one| one["name"] == *scale && one["kind"] == "Scale") {
            let shown = if group.is_empty() { plural } else { format!("{plural}.{group}") };
            return Err(ScaleError::NoScale(shown));
        }
        let resource = ResourceType {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: owner.kind.clone(),
            plural,
            namespaced: found["namespaced"] == true,
        };
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() < KNOWN_KINDS_MAX {
            kinds.insert(key, resource.clone());
        }
        Ok(resource)
    }
}
