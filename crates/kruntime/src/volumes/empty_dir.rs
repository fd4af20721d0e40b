use std::os::unix::fs::PermissionsExt;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{MadeVolume, VolumePlugin, VolumeRequest};
use crate::runtime::RuntimeError;

/// `emptyDir`: a directory that lives as long as the pod. The medium `Memory` gets a directory as well: a file system in
/// memory needs privileges.
#[derive(Clone, Copy, Debug)]
pub struct EmptyDir;

#[async_trait]
impl VolumePlugin for EmptyDir {
    fn claims(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    async fn set_up(&self, request: &VolumeRequest<'_>) -> Result<MadeVolume, RuntimeError> {
        let made = RuntimeError::io("making an emptyDir");
        if !request.dir.exists() {
            let dir = &request.dir;
            std::fs::create_dir_all(dir)
                .and_then(|()| std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)))
                .map_err(made)?;
        }
        Ok(request.dir.clone().into())
    }
}
