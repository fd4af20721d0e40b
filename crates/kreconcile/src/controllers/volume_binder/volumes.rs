//! The half that looks at volumes.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kcore::Stored;
use serde_json::json;

use super::{
    Shared, claim_key,
    decide::{VolumeStep, can_not_reclaim, unbind_volume, volume_step},
};
use crate::{
    events::{EventType, Regarding},
    expectations::EXPECTATION_RECHECK,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Written},
};

pub(super) struct VolumePhases(pub(super) Arc<Shared>);

#[async_trait]
impl Reconciler for VolumePhases {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.0.volumes.lister().get("", &key.name) else {
            self.0.volumes_written.forget(key);
            return Ok(Action::Done);
        };
        if !self.0.volumes_written.met(key) {
            return Ok(Action::After(EXPECTATION_RECHECK));
        }
        let volume = stored.typed::<PersistentVolume>()?;
        let claim = self.claim_of(&volume).await?;
        let (revision, phase) = (stored.revision(), phase(&volume));
        match volume_step(&volume, claim.as_deref()) {
            VolumeStep::Wait => {}
            VolumeStep::Phase(wanted) if phase == wanted => {}
            VolumeStep::Phase(wanted) => {
                self.write_phase(key, revision, wanted, None).await?;
            }
            VolumeStep::Mismatch => self.tell_mismatch(&stored, &volume),
            VolumeStep::Release => self.release(key, &stored, &volume).await?,
            VolumeStep::Unbind => {
                let mut patch = unbind_volume(&volume);
                patch["metadata"]["resourceVersion"] = revision.to_string().into();
                let path = self.0.volume_resource.path("", &key.name);
                let written: Written = self.0.requests.patch(&path, PatchKind::Merge, &patch).await?;
                self.0.volumes_written.wrote(key, written.revision());
                self.write_phase(key, written.revision(), "Available", None).await?;
            }
        }
        Ok(Action::Done)
    }
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

impl VolumePhases {
    /// The claim that the volume is bound to, uid and all. Before a volume counts as released the server is asked: the
    /// informer of claims may be behind.
    async fn claim_of(
        &self,
        volume: &PersistentVolume,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, ReconcileError> {
        let Some(key) = claim_key(volume) else { return Ok(None) };
        let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
        let Some(uid) = uid.filter(|uid| !uid.is_empty()) else { return Ok(None) };
        let same = |claim: &PersistentVolumeClaim| claim.metadata.uid.as_deref() == Some(uid);
        let known = self.0.claims.get(&key.namespace, &key.name);
        let released = matches!(phase(volume), "Released" | "Failed");
        match known {
            Some(claim) if same(&claim) => return Ok(Some(claim)),
            None if released => return Ok(None),
            _ => {}
        }
        let path = self.0.claim_resource.path(&key.namespace, &key.name);
        match self.0.requests.get::<PersistentVolumeClaim>(&path).await {
            Ok(claim) => Ok(same(&claim).then(|| Arc::new(claim))),
            Err(error) if request::is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn write_phase(
        &self,
        key: &ObjectKey,
        revision: u64,
        phase: &str,
        message: Option<&str>,
    ) -> Result<u64, ReconcileError> {
        let status = json!({"phase": phase, "message": message});
        let patch = json!({"metadata": {"resourceVersion": revision.to_string()}, "status": status});
        let path = format!("{}/status", self.0.volume_resource.path("", &key.name));
        match self.0.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Ok(written) => {
                self.0.volumes_written.wrote(key, written.revision());
                Ok(written.revision())
            }
            Err(error) if request::is_not_found(&error) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Nobody has the volume any more: whoever made it deletes it, if its policy says so.
    async fn release(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        volume: &PersistentVolume,
    ) -> Result<(), ReconcileError> {
        let mut revision = stored.revision();
        if !matches!(phase(volume), "Released" | "Failed") {
            revision = self.write_phase(key, revision, "Released", None).await?;
        }
        if revision == 0 || phase(volume) == "Failed" {
            return Ok(());
        }
        if let Some((reason, message)) = can_not_reclaim(volume) {
            self.write_phase(key, revision, "Failed", Some(&message)).await?;
            let about = Regarding::of(stored, &self.0.volume_resource);
            self.0.recorder.record(&about, EventType::Warning, reason, message);
        }
        Ok(())
    }

    fn tell_mismatch(&self, stored: &Stored, volume: &PersistentVolume) {
        let Some(claim) = claim_key(volume) else { return };
        let message = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
            claim.name
        );
        let about = Regarding::of(stored, &self.0.volume_resource);
        self.0.recorder.record(&about, EventType::Warning, "VolumeMismatch", message);
        if let Some(claim) = self.0.claims.lister().get(&claim.namespace, &claim.name) {
            let message = format!(
                "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim due to incompatible volumeMode.",
                stored.header().name
            );
            let about = Regarding::of(&claim, &self.0.claim_resource);
            self.0.recorder.record(&about, EventType::Warning, "VolumeMismatch", message);
        }
    }
}
