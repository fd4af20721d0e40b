use std::{
    fs::FileType,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{HostPathVolumeSource, Volume};

use super::{MadeVolume, VolumePlugin, VolumeRequest};
use crate::runtime::RuntimeError;

/// `hostPath`: a path of the node, checked or made as its type says.
#[derive(Clone, Copy, Debug)]
pub struct HostPath;

#[async_trait]
impl VolumePlugin for HostPath {
    fn claims(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    async fn set_up(&self, request: &VolumeRequest<'_>) -> Result<MadeVolume, RuntimeError> {
        let Some(source) = &request.volume.host_path else {
            return Err(RuntimeError::Config("no hostPath".to_owned()));
        };
        resolve(source).map(MadeVolume::from)
    }
}

/// The path that a source names, checked or made as its type says.
pub(super) fn resolve(source: &HostPathVolumeSource) -> Result<PathBuf, RuntimeError> {
    let path = PathBuf::from(&source.path);
    let type_ = source.type_.as_deref().unwrap_or_default();
    if type_ == "DirectoryOrCreate" && !path.exists() {
        std::fs::create_dir_all(&path).map_err(RuntimeError::io("making a hostPath"))?;
    }
    if type_ == "FileOrCreate" && !path.exists() {
        std::fs::File::create(&path).map_err(RuntimeError::io("making a hostPath"))?;
    }
    check(&path, type_)?;
    Ok(path)
}

fn check(path: &Path, type_: &str) -> Result<(), RuntimeError> {
    let is: fn(&FileType) -> bool = match type_ {
        "" => return Ok(()),
        "Directory" | "DirectoryOrCreate" => FileType::is_dir,
        "File" | "FileOrCreate" => FileType::is_file,
        "Socket" => FileTypeExt::is_socket,
        "CharDevice" => FileTypeExt::is_char_device,
        "BlockDevice" => FileTypeExt::is_block_device,
        other => return Err(RuntimeError::Config(format!("unknown hostPath type {other:?}"))),
    };
    match std::fs::metadata(path) {
        Ok(meta) if is(&meta.file_type()) => Ok(()),
        _ => Err(RuntimeError::Config(format!(
            "hostPath type check failed: {} is not a {type_}",
            path.display()
        ))),
    }
}
