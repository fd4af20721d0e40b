use std::path::PathBuf;
#[cfg(all(feature = "plugins", target_os = "linux"))]
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, Volume};

#[cfg(all(feature = "plugins", target_os = "linux"))]
use super::csi::{Csi, Spec};
use super::{MadeVolume, VolumePlugin, VolumeRequest, host_path};
use crate::runtime::RuntimeError;

/// `persistentVolumeClaim` and `ephemeral`: the volume that the claim is bound to, if it is one of this machine (`hostPath`, `local`), or
/// of a CSI driver of a node that takes plug-ins. The pod waits until the claim is bound.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    csi: Option<Arc<Csi>>,
}

impl Claim {
    /// With the volumes of CSI drivers.
    #[cfg(all(feature = "plugins", target_os = "linux"))]
    pub(crate) fn with_csi(csi: &Arc<Csi>) -> Self {
        Self { csi: Some(Arc::clone(csi)) }
    }
}

#[async_trait]
impl VolumePlugin for Claim {
    fn claims(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    #[cfg(all(feature = "plugins", target_os = "linux"))]
    fn is_live(&self, _: &Volume) -> bool {
        self.csi.is_some()
    }

    async fn set_up(&self, request: &VolumeRequest<'_>) -> Result<MadeVolume, RuntimeError> {
        let metadata = &request.facts.pod.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let named = request.volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        let name = named.unwrap_or_else(|| {
            format!("{}-{}", metadata.name.as_deref().unwrap_or_default(), request.volume.name)
        });
        // The claim of an ephemeral volume must have been made for this pod, not just bear the name.
        let owner = request.volume.ephemeral.as_ref().and(metadata.uid.as_deref());
        let claimed = request.sources.claimed_volume(namespace, &name, owner).await?;
        #[cfg(all(feature = "plugins", target_os = "linux"))]
        if let Some(csi) = &self.csi {
            let source = request.volume.persistent_volume_claim.as_ref();
            let read_only = source.is_some_and(|source| source.read_only == Some(true));
            if let Some(spec) = Spec::of_claim(&claimed.volume, read_only).map_err(RuntimeError::Config)? {
                return csi.mount(request, &spec, Some(&claimed.claim)).await;
            }
        }
        path_of(&claimed.volume).map(MadeVolume::from)
    }
}

/// Where a volume is on this machine.
fn path_of(volume: &PersistentVolume) -> Result<PathBuf, RuntimeError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.as_ref();
    if let Some(source) = spec.and_then(|spec| spec.host_path.as_ref()) {
        return host_path::resolve(source);
    }
    if let Some(source) = spec.and_then(|spec| spec.local.as_ref()) {
        let path = PathBuf::from(&source.path);
        if path.exists() {
            return Ok(path);
        }
        return Err(RuntimeError::Config(format!(
            "local volume {name:?}: path {:?} does not exist",
            source.path
        )));
    }
    Err(RuntimeError::Config(format!("volume {name:?} is of a kind that this node does not have")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_volumes_of_this_machine_have_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let (here, made) = (dir.path().to_str().unwrap(), dir.path().join("made"));
        let cases = [
            (json!({"hostPath": {"path": here}}), Some(dir.path().to_owned())),
            (json!({"hostPath": {"path": made, "type": "Directory"}}), None),
            (json!({"hostPath": {"path": made, "type": "DirectoryOrCreate"}}), Some(made.clone())),
            (json!({"local": {"path": here}}), Some(dir.path().to_owned())),
            (json!({"local": {"path": "/does/not/exist"}}), None),
            (json!({"csi": {"driver": "d", "volumeHandle": "h"}}), None),
        ];
        for (spec, expected) in cases {
            let volume = json!({"metadata": {"name": "v"}, "spec": spec});
            let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
            assert_eq!(path_of(&volume).ok(), expected, "{spec}");
        }
    }
}
