//! Directories of this machine as volumes.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PersistentVolume, PersistentVolumeSpec, VolumeNodeAffinity,
};

use super::{Expanded, ProvisionError, ProvisionRequest, Provisioner};

/// The name of [`LocalProvisioner`] in storage classes.
pub const LOCAL_PROVISIONER: &str = "kplane.dev/local";

/// Makes a directory below a given one for each volume: for clusters whose nodes are all on this machine.
///
/// With a class that waits for the first consumer, a volume is `local` to the node that was chosen; else it is a `hostPath`
/// that every node reaches, made when it is first used. How much is in a directory is not limited. The directory goes with
/// the volume, if the policy is `Delete`. Only file systems are made, no block devices.
///
/// ```
/// use kreconcile::controllers::{LOCAL_PROVISIONER, LocalProvisioner, Provisioner};
/// let volumes = LocalProvisioner::new("/var/lib/volumes");
/// assert_eq!(volumes.name(), LOCAL_PROVISIONER);
/// ```
#[derive(Clone, Debug)]
pub struct LocalProvisioner {
    dir: PathBuf,
}

impl LocalProvisioner {
    /// Volumes below `dir`, which is made when it isn't there.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

#[async_trait]
impl Provisioner for LocalProvisioner {
    fn name(&self) -> &str {
        LOCAL_PROVISIONER
    }

    async fn provision(
        &self,
        request: &ProvisionRequest<'_>,
    ) -> Result<PersistentVolumeSpec, ProvisionError> {
        let mode = request.claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
        if mode == Some("Block") {
            return Err(ProvisionError::failed("directories are no block devices"));
        }
        let path = self.dir.join(request.volume_name);
        let text =
            path.to_str().ok_or_else(|| ProvisionError::failed("the directory's name is not UTF-8"))?;
        let Some(node) = request.node else {
            let source =
                HostPathVolumeSource { path: text.to_owned(), type_: Some("DirectoryOrCreate".to_owned()) };
            return Ok(PersistentVolumeSpec { host_path: Some(source), ..PersistentVolumeSpec::default() });
        };
        tokio::fs::create_dir_all(&path).await.map_err(ProvisionError::failed)?;
        let source = LocalVolumeSource { path: text.to_owned(), fs_type: None };
        Ok(PersistentVolumeSpec {
            local: Some(source),
            node_affinity: Some(only_on(node)),
            ..PersistentVolumeSpec::default()
        })
    }

    async fn delete(&self, volume: &PersistentVolume) -> Result<(), ProvisionError> {
        let spec = volume.spec.as_ref();
        let host_path = spec.and_then(|spec| spec.host_path.as_ref()).map(|source| &source.path);
        let local = || spec.and_then(|spec| spec.local.as_ref()).map(|source| &source.path);
        let path = host_path.or_else(local).map(Path::new);
        // Whoever may write volumes must not have just any directory deleted.
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let own = self.dir.join(name);
        let Some(path) = path.filter(|path| !name.is_empty() && *path == own && !name.contains('/')) else {
            return Err(ProvisionError::failed("the volume's directory was not made here"));
        };
        match tokio::fs::remove_dir_all(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ProvisionError::failed(error)),
            _ => Ok(()),
        }
    }

    async fn expand(&self, _volume: &PersistentVolume, _bytes: i64) -> Result<Expanded, ProvisionError> {
        // A directory has no size of its own.
        Ok(Expanded::Entirely)
    }
}

fn only_on(node: &str) -> VolumeNodeAffinity {
    let requirement = NodeSelectorRequirement {
        key: "kubernetes.io/hostname".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: vec![term] }) }
}
