//! File systems that grow with their volumes.

use std::path::Path;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kreconcile::EventType;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Csi,
    driver::text,
    failed,
    mount::{Mounting, credentials},
    proto::{Capability, NodeExpandVolumeRequest, Texts},
    rules::{self, Growth},
};
use crate::{runtime::RuntimeError, volumes::VolumeNote};

const EXPAND: &str = "MountVolume.Setup failed while expanding volume";
/// The conditions of a claim that are over when its volume has grown.
const OVER: [&str; 4] = ["Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError"];

impl Csi {
    /// Has the file system grow to the volume's size if that is due, and tells the claim. A volume that can't grow while it is used
    /// stays as it is.
    pub(super) async fn grow(
        &self,
        mounting: &Mounting<'_>,
        claim: &PersistentVolumeClaim,
        staging: Option<&Path>,
        target: &Path,
    ) -> Result<Vec<VolumeNote>, RuntimeError> {
        let spec = mounting.spec;
        let note = |kind, reason, words: &str| VolumeNote {
            kind,
            reason,
            message: format!("MountVolume.NodeExpandVolume {words} for volume {:?} {}", spec.name, self.node),
        };
        let bytes = match rules::growth(spec, claim) {
            Growth::None => return Ok(Vec::new()),
            Growth::ReadOnly => {
                let words = "failed, requested read-only file system,";
                return Ok(vec![note(EventType::Warning, "FileSystemResizeFailed", words)]);
            }
            Growth::To(bytes) => bytes,
        };
        let fail = |why: String| failed(EXPAND, &spec.name, why);
        let in_progress = json!({"allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}});
        patch(mounting, claim, &in_progress).await.map_err(fail)?;
        if !mounting.has(Capability::Expand) {
            let words = format!("NodeExpand is not supported by the CSI driver {}", spec.driver);
            self.mark_failed(mounting, claim, &words, false).await.map_err(fail)?;
            return Err(fail(words));
        }
        let secrets = match &spec.expand_secret {
            Some(secret) => {
                credentials(mounting.request.sources, "NodeExpandSecretRef", secret).await.map_err(fail)?
            }
            None => Texts::new(),
        };
        let asked = NodeExpandVolumeRequest {
            volume_id: spec.handle.clone(),
            volume_path: text(target),
            capacity_range: None,
            staging_target_path: staging.map(text).unwrap_or_default(),
            volume_capability: None,
            secrets,
        };
        let grown = mounting.driver.expand(asked, bytes, &mounting.used(), &mounting.capabilities).await;
        if let Err(error) = grown {
            let words = format!("Expander.NodeExpand failed to expand the volume : {error}");
            if error.is_final() {
                self.mark_failed(mounting, claim, &words, error.is_infeasible()).await.map_err(fail)?;
            }
            if error.is_in_use() {
                tracing::warn!(volume = spec.name, %error, "a volume can't grow while it is used");
                return Ok(Vec::new());
            }
            return Err(fail(words));
        }
        let conditions = conditions_without(claim, &OVER);
        let done = json!({
            "capacity": {"storage": spec.capacity}, "allocatedResourceStatuses": {"storage": null},
            "conditions": conditions,
        });
        patch(mounting, claim, &done).await.map_err(fail)?;
        Ok(vec![note(EventType::Normal, "FileSystemResizeSuccessful", "succeeded")])
    }

    async fn mark_failed(
        &self,
        mounting: &Mounting<'_>,
        claim: &PersistentVolumeClaim,
        words: &str,
        is_infeasible: bool,
    ) -> Result<(), String> {
        let mut conditions = conditions_without(claim, &["NodeResizeError"]);
        let now = kcore::clock::format_time(mounting.request.now);
        conditions.push(json!({
            "type": "NodeResizeError", "status": "True", "lastTransitionTime": now,
            "message": format!("failed to expand pvc with {words}"),
        }));
        let mut status = json!({"conditions": conditions});
        if is_infeasible {
            status["allocatedResourceStatuses"] = json!({"storage": "NodeResizeInfeasible"});
        }
        patch(mounting, claim, &status).await
    }
}

fn conditions_without(claim: &PersistentVolumeClaim, types: &[&str]) -> Vec<Value> {
    let all = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let kept = all.filter(|condition| !types.contains(&condition.type_.as_str()));
    kept.filter_map(|condition| serde_json::to_value(condition).ok()).collect()
}

async fn patch(mounting: &Mounting<'_>, claim: &PersistentVolumeClaim, status: &Value) -> Result<(), String> {
    let metadata = &claim.metadata;
    let client = mounting.request.sources.client().clone();
    let api =
        Api::<PersistentVolumeClaim>::namespaced(client, metadata.namespace.as_deref().unwrap_or("default"));
    let patch = Patch::Merge(json!({"metadata": {"uid": metadata.uid}, "status": status}));
    let name = metadata.name.as_deref().unwrap_or_default();
    let written = api.patch_status(name, &PatchParams::default(), &patch).await;
    written
        .map(drop)
        .map_err(|error| format!("mountVolume.NodeExpandVolume update pvc status failed: {error}"))
}
