//! Storage that exists in memory only, so that it is known which disks are there.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeSpec};
use kreconcile::controllers::{Expanded, ProvisionError, ProvisionRequest, Provisioner};
use kube::ResourceExt as _;

use super::{lock, scenario::Dice};

/// The name of the class, and of what provisions it.
pub(super) const DISKS: &str = "disks.example.com";
/// How long it takes to make or delete one, at most, in milliseconds.
const DELAY_MS_MAX: u64 = 2_000;

/// The disks that are there, by the names of their volumes. It outlives the controllers.
#[derive(Clone, Debug)]
pub(super) struct Disks {
    there: Arc<Mutex<BTreeSet<String>>>,
    dice: Arc<Mutex<Dice>>,
}

impl Disks {
    pub(super) fn new(seed: u64) -> Self {
        Self { there: Arc::default(), dice: Arc::new(Mutex::new(Dice(seed))) }
    }

    pub(super) fn there(&self) -> BTreeSet<String> {
        lock(&self.there).clone()
    }

    async fn wait(&self) {
        let delay = lock(&self.dice).between(0, DELAY_MS_MAX);
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
}

#[async_trait]
impl Provisioner for Disks {
    fn name(&self) -> &str {
        DISKS
    }

    async fn provision(
        &self,
        request: &ProvisionRequest<'_>,
    ) -> Result<PersistentVolumeSpec, ProvisionError> {
        self.wait().await;
        lock(&self.there).insert(request.volume_name.to_owned());
        let source = HostPathVolumeSource { path: format!("/disks/{}", request.volume_name), type_: None };
        Ok(PersistentVolumeSpec { host_path: Some(source), ..PersistentVolumeSpec::default() })
    }

    async fn delete(&self, volume: &PersistentVolume) -> Result<(), ProvisionError> {
        self.wait().await;
        lock(&self.there).remove(&volume.name_any());
        Ok(())
    }

    async fn expand(&self, _: &PersistentVolume, _: i64) -> Result<Expanded, ProvisionError> {
        Ok(Expanded::Entirely)
    }
}
