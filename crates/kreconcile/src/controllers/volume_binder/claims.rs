//! The half that looks at claims.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kcore::Stored;
use serde_json::{Value, json};

use super::{
    FREE_CLASS, POD_CLAIMS, Shared, VOLUME_CLAIM,
    decide::{
        ClaimStep, Unmatched, bind_claim, bind_volume, bound, claim_status, default_class, is_delayed, named,
        unmatched, volume_name,
    },
    matching::{
        BETA_STORAGE_PROVISIONER, BIND_COMPLETED, STORAGE_PROVISIONER, annotation, best_match, claim_class,
    },
};
use crate::{
    controllers::pod_state,
    events::{EventType, Regarding},
    expectations::EXPECTATION_RECHECK,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Written},
};

/// How long the claim that is next waits until the informer shows the volume that was bound last. What it then takes
/// nevertheless, the server refuses.
const SHOWN_WAIT_MAX: Duration = Duration::from_secs(1);

/// Looks at one claim after the other, so that no two take the same volume.
pub(super) struct Claims(pub(super) Arc<Shared>);

#[async_trait]
impl Reconciler for Claims {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.0.claims.lister().get(&key.namespace, &key.name) else {
            self.0.claims_written.forget(key);
            return Ok(Action::Done);
        };
        if !self.0.claims_written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let claim = stored.typed::<PersistentVolumeClaim>()?;
        let about = Regarding::of(&stored, &self.0.claim_resource);
        let one = One { all: &self.0, key, stored: &stored, claim: &claim, about };
        one.look().await?;
        Ok(Action::Done)
    }
}

/// A look at one claim.
struct One<'a> {
    all: &'a Shared,
    key: &'a ObjectKey,
    stored: &'a Stored,
    claim: &'a PersistentVolumeClaim,
    about: Regarding,
}

impl One<'_> {
    fn tell(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.all.recorder.record(&self.about, kind, reason, message);
    }

    async fn look(&self) -> Result<(), ReconcileError> {
        let name = volume_name(self.claim);
        let completed = annotation(&self.claim.metadata, BIND_COMPLETED).is_some();
        if name.is_empty() && !completed {
            return self.look_for_volume().await;
        }
        let decide = if completed { bound } else { named };
        let mut step = decide(self.claim, self.all.volumes.get("", name).as_ref());
        if matches!(step, ClaimStep::Lost(..)) && !name.is_empty() {
            // The informer of volumes may be behind that of claims, and being lost is for good.
            step = decide(self.claim, self.read_volume(name).await?.as_ref());
        }
        match step {
            ClaimStep::Bind(volume) => self.bind(&volume).await,
            ClaimStep::Pending(why) => {
                if let Some((reason, message)) = why {
                    self.tell(EventType::Warning, reason, message);
                }
                self.write_status("Pending", None).await
            }
            ClaimStep::Retry(reason, message) => {
                self.tell(EventType::Warning, reason, message);
                Err(ReconcileError::other(format!(
                    "invalid binding of claim {:?} to volume {name:?}: volume already claimed",
                    self.key.to_string()
                )))
            }
            ClaimStep::Lost(reason, message) => {
                let known = self.claim.status.as_ref().and_then(|status| status.phase.as_deref());
                if known != Some("Lost") {
                    self.write_status("Lost", None).await?;
                    self.tell(EventType::Warning, reason, message);
                }
                Ok(())
            }
        }
    }

    async fn read_volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, ReconcileError> {
        let path = self.all.volume_resource.path("", name);
        match self.all.requests.get::<PersistentVolume>(&path).await {
            Ok(volume) => Ok(Some(Arc::new(volume))),
            Err(error) if request::is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A claim that names no volume.
    async fn look_for_volume(&self) -> Result<(), ReconcileError> {
        let class_name = claim_class(self.claim);
        let class = self.all.classes.get("", class_name);
        let delayed = class.as_deref().is_some_and(is_delayed);
        let mut volumes = self.all.volumes.by_index(VOLUME_CLAIM, &self.key.to_string());
        if !delayed {
            volumes.extend(self.all.volumes.by_index(FREE_CLASS, class_name));
        }
        if let Some(volume) = best_match(self.claim, &volumes, delayed) {
            return self.bind(volume).await;
        }
        let classes = self.all.classes.list();
        let waiting = if delayed { self.waiting_pods() } else { Vec::new() };
        match unmatched(self.claim, class.as_deref(), default_class(&classes), &waiting) {
            Unmatched::AssignClass(name) => {
                let patch = json!({"spec": {"storageClassName": name}});
                self.patch(self.stored.revision(), patch).await?;
                Ok(())
            }
            Unmatched::Wait(reason, message) => {
                self.tell(EventType::Normal, reason, message);
                self.write_status("Pending", None).await
            }
            Unmatched::CanNotProvision(why) => {
                self.tell(EventType::Warning, "ProvisioningFailed", why);
                Ok(())
            }
            Unmatched::Provision(name) => self.ask_for_volume(&name).await,
        }
    }

    /// The pods that use the claim and are on no node.
    fn waiting_pods(&self) -> Vec<String> {
        let pods = self.all.pods.by_index(POD_CLAIMS, &self.key.to_string());
        let waiting = pods
            .iter()
            .filter(|pod| !pod_state::is_terminal(pod) && pod_state::node_name(pod).is_empty())
            .map(|pod| pod_state::name(pod).to_owned());
        let mut names: Vec<String> = waiting.collect();
        names.sort_unstable();
        names
    }

    /// Says who is to make a volume, and waits for it.
    async fn ask_for_volume(&self, provisioner: &str) -> Result<(), ReconcileError> {
        if annotation(&self.claim.metadata, STORAGE_PROVISIONER) != Some(provisioner) {
            let annotations =
                json!({STORAGE_PROVISIONER: provisioner, BETA_STORAGE_PROVISIONER: provisioner});
            let patch = json!({"metadata": {"annotations": annotations}});
            if let Err(error) = self.patch(self.stored.revision(), patch).await {
                if !error.is_conflict() {
                    let message = format!("Error saving claim: {error}");
                    self.tell(EventType::Warning, "ProvisioningFailed", message);
                }
                return Err(error);
            }
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.tell(EventType::Normal, "ExternalProvisioning", message);
        Ok(())
    }

    /// Binds the two to each other: first the volume, so that nobody else takes it; then the claim.
    async fn bind(&self, volume: &PersistentVolume) -> Result<(), ReconcileError> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let path = self.all.volume_resource.path("", name);
        let mut revision = volume.metadata.resource_version.clone().unwrap_or_default();
        let mut shown = 0;
        if let Some(mut patch) = bind_volume(volume, self.claim) {
            patch["metadata"]["resourceVersion"] = revision.into();
            let written: Written = self.all.requests.patch(&path, PatchKind::Merge, &patch).await?;
            shown = written.revision();
            revision = written.metadata.resource_version;
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase != Some("Bound") {
            let status = json!({"phase": "Bound", "message": null});
            let patch = json!({"metadata": {"resourceVersion": revision}, "status": status});
            let written: Written =
                self.all.requests.patch(&format!("{path}/status"), PatchKind::Merge, &patch).await?;
            shown = written.revision();
        }
        if shown > 0 {
            self.all.volumes_written.wrote(&ObjectKey::new("", name), shown);
            let seen = tokio::time::timeout(SHOWN_WAIT_MAX, self.all.volumes.reached(shown));
            if seen.await.is_err() {
                tracing::debug!(volume = name, "the informer does not show a volume that was bound");
            }
        }
        let mut revision = self.stored.revision();
        if let Some(patch) = bind_claim(self.claim, volume) {
            revision = self.patch(revision, patch).await?;
        }
        self.write_status_at(revision, "Bound", Some(volume)).await
    }

    /// Changes the claim, if it is of this revision.
    async fn patch(&self, revision: u64, mut patch: Value) -> Result<u64, ReconcileError> {
        patch["metadata"]["resourceVersion"] = revision.to_string().into();
        let path = self.all.claim_resource.path(&self.key.namespace, &self.key.name);
        let written: Written = self.all.requests.patch(&path, PatchKind::Merge, &patch).await?;
        self.all.claims_written.wrote(self.key, written.revision());
        Ok(written.revision())
    }

    async fn write_status(
        &self,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), ReconcileError> {
        self.write_status_at(self.stored.revision(), phase, volume).await
    }

    async fn write_status_at(
        &self,
        revision: u64,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), ReconcileError> {
        let status = claim_status(self.claim, phase, volume);
        let path = self.all.claim_resource.path(&self.key.namespace, &self.key.name);
        let old = self.claim.status.as_ref();
        let written = self.all.requests.write_status(&path, revision, old, &status).await?;
        self.all.claims_written.wrote(self.key, written);
        Ok(())
    }
}
