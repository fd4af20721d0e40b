//! Writing what was chosen, and waiting for the volume controller (upstream's `BindPodVolumes`).

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Client,
    api::{Patch, PatchParams},
    core::Request,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    plugin::Binding,
    plugins::volume_binding::{
        assume::{Assumed, AssumedVolume, BOUND_BY_CONTROLLER, SELECTED_NODE},
        claims::Reach,
    },
    snapshot::Snapshot,
    volumes,
};

/// Why a pod's volumes are not bound; worded as upstream's, but for the texts of objects that are not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    #[error("{0}")]
    Api(#[source] Box<kube::Error>),
    #[error("binding volumes: context deadline exceeded")]
    Late,
    #[error("binding volumes: the scheduler has stopped")]
    Stopped,
    #[error("binding volumes: pod does not exist any more: pod {0:?} not found")]
    PodGone(String),
    #[error("binding volumes: failed to get node {0:?}: node {0:?} not found")]
    NodeGone(String),
    #[error("binding volumes: failed to check binding: {0}")]
    Check(String),
    #[error("binding volumes: failed to check provisioning pvc: {0}")]
    CheckProvisioning(String),
    #[error(
        "binding volumes: pv {volume:?} node affinity doesn't match node {node:?}: no matching NodeSelectorTerms"
    )]
    Affinity { volume: String, node: String },
    #[error("binding volumes: ClaimRef got reset for pv {0:?}")]
    Reset(String),
    #[error("binding volumes: selectedNode annotation reset for PVC {0:?}")]
    Deselected(String),
    #[error("binding volumes: provisioning failed for PVC {0:?}")]
    Provisioning(String),
}

/// An object that was written: it counts once this revision is seen.
#[derive(Debug)]
struct Written {
    namespace: String,
    name: String,
    revision: u64,
}

impl Written {
    fn of(meta: &ObjectMeta) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self { namespace: text(&meta.namespace), name: text(&meta.name), revision: revision(meta) }
    }
}

/// What must become so.
#[derive(Debug)]
struct Expected {
    pod: (Arc<str>, Arc<str>),
    node: String,
    /// Each with its claim.
    volumes: Vec<(Written, Written)>,
    claims: Vec<Written>,
}

#[derive(Deserialize)]
struct Answer {
    metadata: ObjectMeta,
}

fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Writes what was assumed, and waits until all claims are bound.
pub(super) async fn bind(
    binding: Binding<'_>,
    assumed: &Assumed,
    timeout: Duration,
) -> Result<(), VolumeError> {
    let mut expected = Expected {
        pod: (Arc::clone(&binding.pod.uid), Arc::clone(&binding.pod.name)),
        node: binding.node.to_owned(),
        volumes: Vec::new(),
        claims: Vec::new(),
    };
    for AssumedVolume { volume, claim, changed } in &assumed.volumes {
        let written = if *changed {
            write_volume(binding.client, volume).await?
        } else {
            Written::of(&volume.metadata)
        };
        expected.volumes.push((written, Written::of(&claim.metadata)));
    }
    for claim in &assumed.claims {
        expected.claims.push(write_claim(binding.client, claim, binding.node).await?);
    }
    let bound = binding.observer.until(move |snapshot| expected.met(snapshot));
    match tokio::time::timeout(timeout, bound).await {
        Ok(Some(bound)) => bound,
        Ok(None) => Err(VolumeError::Stopped),
        Err(_) => Err(VolumeError::Late),
    }
}

async fn write_volume(client: &Client, volume: &PersistentVolume) -> Result<Written, VolumeError> {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let annotations = volume.metadata.annotations.as_ref();
    let mut patch = json!({"spec": {"claimRef": reference}});
    if annotations.is_some_and(|all| all.contains_key(BOUND_BY_CONTROLLER)) {
        patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
    }
    write(client, "/api/v1/persistentvolumes".to_owned(), &volume.metadata, patch).await
}

async fn write_claim(
    client: &Client,
    claim: &PersistentVolumeClaim,
    node: &str,
) -> Result<Written, VolumeError> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims");
    write(client, path, &claim.metadata, patch).await
}

/// The revision keeps the patch from hitting what somebody else has changed.
async fn write(
    client: &Client,
    path: String,
    meta: &ObjectMeta,
    mut patch: Value,
) -> Result<Written, VolumeError> {
    let api = |error| VolumeError::Api(Box::new(error));
    patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
    patch["metadata"]["uid"] = json!(meta.uid);
    let name = meta.name.as_deref().unwrap_or_default();
    let request = Request::new(path).patch(name, &PatchParams::default(), &Patch::Merge(&patch));
    let request = request.map_err(|error| api(kube::Error::BuildRequest(error)))?;
    let answer: Answer = client.request(request).await.map_err(api)?;
    Ok(Written::of(&answer.metadata))
}

impl Expected {
    /// Whether all is bound, `None` while it is not yet; an error when it will not be (upstream's `checkBindings`). Looks at what
    /// the API server shows, as other pods may have assumed something else by now.
    fn met(&self, snapshot: &Snapshot) -> Option<Result<(), VolumeError>> {
        self.check(snapshot).transpose()
    }

    fn check(&self, snapshot: &Snapshot) -> Result<Option<()>, VolumeError> {
        let (uid, name) = &self.pod;
        if snapshot.pod(uid).is_none() {
            return Err(VolumeError::PodGone(name.to_string()));
        }
        for (volume, claim) in &self.volumes {
            if !self.check_binding(snapshot, volume, claim)? {
                return Ok(None);
            }
        }
        for claim in &self.claims {
            if !self.check_provision(snapshot, claim)? {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    fn check_binding(
        &self,
        snapshot: &Snapshot,
        volume: &Written,
        claim: &Written,
    ) -> Result<bool, VolumeError> {
        let catalog = snapshot.catalog();
        let gone = |kind: &str, name: &str| VolumeError::Check(volumes::not_found(kind, name));
        let shown = catalog.shown::<PersistentVolume>("", &volume.name);
        let shown = shown.ok_or_else(|| gone("persistentvolume", &volume.name))?;
        let bound = catalog.shown::<PersistentVolumeClaim>(&claim.namespace, &claim.name);
        let bound = bound.ok_or_else(|| gone("persistentvolumeclaim", &claim.name))?;
        if revision(&shown.metadata) < volume.revision {
            return Ok(false);
        }
        self.check_reach(snapshot, shown)?;
        let reference = shown.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if reference.and_then(|reference| reference.uid.as_deref()).is_none_or(str::is_empty) {
            return Err(VolumeError::Reset(volume.name.clone()));
        }
        Ok(volumes::is_bound(bound))
    }

    fn check_provision(&self, snapshot: &Snapshot, claim: &Written) -> Result<bool, VolumeError> {
        let catalog = snapshot.catalog();
        let shown = catalog.shown::<PersistentVolumeClaim>(&claim.namespace, &claim.name);
        let shown = shown.ok_or_else(|| {
            VolumeError::CheckProvisioning(volumes::not_found("persistentvolumeclaim", &claim.name))
        })?;
        if revision(&shown.metadata) < claim.revision {
            return Ok(false);
        }
        let Some(annotations) = &shown.metadata.annotations else {
            return Err(VolumeError::Deselected(claim.name.clone()));
        };
        // A provisioner that fails takes the annotation away.
        if annotations.get(SELECTED_NODE) != Some(&self.node) {
            return Err(VolumeError::Provisioning(claim.name.clone()));
        }
        let volume = volumes::volume_name(shown);
        if !volume.is_empty() {
            let Some(volume) = catalog.shown::<PersistentVolume>("", volume) else { return Ok(false) };
            self.check_reach(snapshot, volume)?;
        }
        Ok(volumes::is_bound(shown))
    }

    fn check_reach(&self, snapshot: &Snapshot, volume: &PersistentVolume) -> Result<(), VolumeError> {
        let node = snapshot.find(&self.node).ok_or_else(|| VolumeError::NodeGone(self.node.clone()))?;
        if Reach::of(volume).includes(&snapshot.node(node).info().labels) {
            return Ok(());
        }
        let volume = volume.metadata.name.clone().unwrap_or_default();
        Err(VolumeError::Affinity { volume, node: self.node.clone() })
    }
}
