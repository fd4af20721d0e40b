use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::{
    MadeVolume, VolumePlugin, VolumeRequest,
    atomic::{self, Payload},
    stays_below,
};
use crate::{downward, runtime::RuntimeError, sources::Token};

/// The mode of files that name none.
const MODE_DEFAULT: i32 = 0o644;
/// The life of a service account token that names none.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// `configMap`, `secret`, `downwardAPI` and `projected`: files made from other objects, replaced all at once when those
/// change.
#[derive(Debug, Default)]
pub struct Files {
    /// Tokens by the volume's directory and path, with the time of their issue: they are asked for again only when four
    /// fifths of their life are over.
    tokens: Mutex<HashMap<PathBuf, (Timestamp, Token)>>,
}

pub(super) fn is_files(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

#[async_trait]
impl VolumePlugin for Files {
    fn claims(&self, volume: &Volume) -> bool {
        is_files(volume)
    }

    fn is_live(&self, _: &Volume) -> bool {
        true
    }

    async fn set_up(&self, request: &VolumeRequest<'_>) -> Result<MadeVolume, RuntimeError> {
        let payload = self.payload(request).await?;
        let version = request.now.strftime("%Y_%m_%d_%H_%M_%S.%f").to_string();
        atomic::write(&request.dir, &payload, &version).map_err(RuntimeError::io("writing a volume"))?;
        Ok(request.dir.clone().into())
    }
}

impl Files {
    async fn payload(&self, request: &VolumeRequest<'_>) -> Result<Payload, RuntimeError> {
        let namespace = request.facts.pod.metadata.namespace.as_deref().unwrap_or_default();
        let volume = request.volume;
        let mut payload = Payload::new();
        if let Some(source) = &volume.config_map {
            let optional = source.optional.unwrap_or(false);
            let data = request.sources.config_map(namespace, &source.name, optional).await?;
            add_keys(&mut payload, data, source.items.as_deref(), source.default_mode, optional)?;
        } else if let Some(source) = &volume.secret {
            let optional = source.optional.unwrap_or(false);
            let name = source.secret_name.as_deref().unwrap_or_default();
            let data = request.sources.secret(namespace, name, optional).await?;
            add_keys(&mut payload, data, source.items.as_deref(), source.default_mode, optional)?;
        } else if let Some(source) = &volume.downward_api {
            add_downward(&mut payload, request, source.items.as_deref(), source.default_mode)?;
        } else if let Some(source) = &volume.projected {
            for projection in source.sources.iter().flatten() {
                self.project(&mut payload, request, projection, source.default_mode).await?;
            }
        }
        Ok(payload)
    }

    async fn project(
        &self,
        payload: &mut Payload,
        request: &VolumeRequest<'_>,
        projection: &VolumeProjection,
        mode: Option<i32>,
    ) -> Result<(), RuntimeError> {
        let namespace = request.facts.pod.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(source) = &projection.config_map {
            let optional = source.optional.unwrap_or(false);
            let data = request.sources.config_map(namespace, &source.name, optional).await?;
            add_keys(payload, data, source.items.as_deref(), mode, optional)
        } else if let Some(source) = &projection.secret {
            let optional = source.optional.unwrap_or(false);
            let data = request.sources.secret(namespace, &source.name, optional).await?;
            add_keys(payload, data, source.items.as_deref(), mode, optional)
        } else if let Some(source) = &projection.downward_api {
            add_downward(payload, request, source.items.as_deref(), mode)
        } else if let Some(source) = &projection.service_account_token {
            let token = self.token(request, source).await?;
            add(payload, &source.path, token.into_bytes(), mode)
        } else {
            Err(RuntimeError::Config(
                "a projected source is of a kind that this node does not have".to_owned(),
            ))
        }
    }

    async fn token(
        &self,
        request: &VolumeRequest<'_>,
        source: &ServiceAccountTokenProjection,
    ) -> Result<String, RuntimeError> {
        let key = request.dir.join(&source.path);
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((issued, token)) = known {
            let life = token.expires_at.duration_since(issued);
            if request.now.duration_since(issued) < life * 4 / 5 {
                return Ok(token.token);
            }
        }
        let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
        let token = request.sources.token(request.facts.pod, source.audience.as_deref(), seconds).await?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, token)| token.expires_at > request.now);
        tokens.insert(key, (request.now, token.clone()));
        Ok(token.token)
    }
}

fn add(payload: &mut Payload, path: &str, bytes: Vec<u8>, mode: Option<i32>) -> Result<(), RuntimeError> {
    let path = Path::new(path);
    if path.as_os_str().is_empty() || !stays_below(path) {
        return Err(RuntimeError::Config(format!("path {} leads out of the volume", path.display())));
    }
    let mode = mode.unwrap_or(MODE_DEFAULT).unsigned_abs() & 0o777;
    payload.insert(path.to_owned(), (bytes, mode));
    Ok(())
}

fn add_keys(
    payload: &mut Payload,
    data: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
) -> Result<(), RuntimeError> {
    let mut data = data.unwrap_or_default();
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return data.into_iter().try_for_each(|(key, value)| add(payload, &key, value, mode));
    };
    for item in items {
        match data.remove(&item.key) {
            Some(value) => {
                // The same key may be wanted at two paths.
                data.insert(item.key.clone(), value.clone());
                add(payload, &item.path, value, item.mode.or(mode))?;
            }
            None if optional => {}
            None => {
                return Err(RuntimeError::Config(format!(
                    "references non-existent config key: {}",
                    item.key
                )));
            }
        }
    }
    Ok(())
}

fn add_downward(
    payload: &mut Payload,
    request: &VolumeRequest<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: Option<i32>,
) -> Result<(), RuntimeError> {
    for item in items.into_iter().flatten() {
        let value = if let Some(reference) = &item.field_ref {
            downward::field(&request.facts, &reference.field_path)?
        } else if let Some(reference) = &item.resource_field_ref {
            downward::resource(&request.facts, None, reference)?
        } else {
            String::new()
        };
        add(payload, &item.path, value.into_bytes(), item.mode.or(mode))?;
    }
    Ok(())
}
