//! The server's images, and those that containers see as files (KEP-4639).

use tonic::Status;

use super::{Shared, convert, pb, refused, spec};
use crate::runtime::{ContainerConfig, RuntimeError};

impl Shared {
    pub(super) async fn find_image(&self, image: &str) -> Result<Option<pb::Image>, Status> {
        let request = pb::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        let answer: pb::ImageStatusResponse = self.client.call("ImageService/ImageStatus", request).await?;
        Ok(answer.image)
    }

    /// The mounts for a container's image volumes.
    pub(super) async fn image_mounts(
        &self,
        config: &ContainerConfig,
    ) -> Result<Vec<pb::Mount>, RuntimeError> {
        let mut mounts = Vec::with_capacity(config.images.len());
        for wanted in &config.images {
            let found = self.find_image(&wanted.image).await.map_err(refused)?;
            let found = found.ok_or_else(|| RuntimeError::Image(format!("{}: not found", wanted.image)))?;
            mounts.push(convert::image_mount(wanted, &found.id));
        }
        Ok(mounts)
    }
}
