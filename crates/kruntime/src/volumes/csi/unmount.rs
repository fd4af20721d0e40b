//! And back: unpublished for the pod, unstaged after the last one.

use std::path::Path;

use super::{
    Csi, failed, locked,
    notes::{self, Note},
    proto::Capability,
    rules,
};
use crate::runtime::{PodUid, RuntimeError};

const TEAR_DOWN: &str = "UnmountVolume.TearDown failed";
const UNMOUNT_DEVICE: &str = "UnmountDevice failed";

impl Csi {
    /// Gives back all volumes of a pod; those that can't be are left, and said of the first.
    pub(super) async fn unmount_pod(&self, pod: &PodUid, dir: &Path) -> Result<(), RuntimeError> {
        let mut first_error = None;
        for place in notes::places_of_pod(dir) {
            if let Err(error) = self.unmount(&place).await {
                tracing::warn!(%pod, place = %place.display(), %error, "a volume is not given back yet");
                first_error.get_or_insert(error);
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        locked(&self.made).remove(pod);
        locked(&self.tokens).retain(|(of, _, _), _| of != pod);
        Ok(())
    }

    async fn unmount(&self, place: &Path) -> Result<(), RuntimeError> {
        let shown =
            place.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let fail =
            |step, what: &str, why: String| failed(step, &shown, format!("kubernetes.io/csi: {what}: {why}"));
        let read = Note::read(place)
            .map_err(|error| fail(TEAR_DOWN, "failed to load volume info data", error.to_string()))?;
        let Some(note) = read else {
            // Nothing was asked of a driver before the note was there.
            return notes::remove_all(place)
                .map_err(|error| fail(TEAR_DOWN, "failed to clean mount dir", error.to_string()));
        };
        let (name, handle) = (&note.driver_name, &note.volume_handle);
        let _turn = self.turn(name, handle).await;
        let driver = self
            .driver(name)
            .map_err(|why| fail(TEAR_DOWN, "Unmounter.TearDownAt failed to get CSI client", why))?;
        driver
            .unpublish(handle, place)
            .await
            .map_err(|error| fail(TEAR_DOWN, "Unmounter.TearDownAt failed", error.to_string()))?;
        notes::remove_place(place).map_err(|error| {
            fail(TEAR_DOWN, "Unmounter.TearDownAt failed to clean mount dir", error.to_string())
        })?;
        if note.is_persistent() {
            let is_used =
                |(other, note): &(std::path::PathBuf, Note)| other != place && note.is_of(name, handle);
            if !notes::all(&self.root).iter().any(is_used) {
                self.unstage(&driver, &note)
                    .await
                    .map_err(|why| fail(UNMOUNT_DEVICE, "attacher.UnmountDevice failed", why))?;
                self.no_longer_in_use(&rules::unique_name(name, handle));
            }
        }
        // Last of all: as long as the note is there, what it tells of is tried again.
        notes::remove_all(place)
            .map_err(|error| fail(TEAR_DOWN, "failed to clean mount dir", error.to_string()))
    }

    async fn unstage(&self, driver: &super::Driver, note: &Note) -> Result<(), String> {
        let staging = rules::staging_path(&self.root, &note.driver_name, &note.volume_handle);
        if Note::read(&staging).map_err(|error| error.to_string())?.is_none() {
            return Ok(());
        }
        let capabilities = driver.capabilities().await.map_err(|error| error.to_string())?;
        if capabilities.has(Capability::Stage) {
            driver.unstage(&note.volume_handle, &staging).await.map_err(|error| error.to_string())?;
        }
        notes::remove_all(&staging)
            .map_err(|error| format!("failed to clean up global mount {}: {error}", staging.display()))
    }
}
