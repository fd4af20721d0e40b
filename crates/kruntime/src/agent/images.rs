//! Sees to it that a container's image is there, by its pull policy (upstream's `pkg/kubelet/images/image_manager.go`, whose
//! words the events are).

use k8s_openapi::api::core::v1::{Container, Pod};
use kreconcile::EventType;

use super::{Inner, PodEntry};
use crate::{
    runtime::{ImagePresence, RuntimeError},
    volumes,
};

/// How many pull secrets of a pod are read.
const SECRETS_MAX: usize = 64;
/// The keys of pull secrets, the newer form first.
const SECRET_KEYS: [&str; 2] = [".dockerconfigjson", ".dockercfg"];

/// What to do about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Use,
    Pull,
    Refuse,
}

fn plan(policy: Option<&str>, is_present: bool) -> Plan {
    match (policy, is_present) {
        (Some("Always"), _) => Plan::Pull,
        (_, true) => Plan::Use,
        (Some("Never"), false) => Plan::Refuse,
        (_, false) => Plan::Pull,
    }
}

impl Inner {
    /// Sees to it that the images are there that the container mounts (KEP-4639).
    pub(super) async fn ensure_image_volumes(
        &self,
        entry: &PodEntry,
        pod: &Pod,
        container: &Container,
    ) -> Result<(), RuntimeError> {
        for (_, source) in volumes::image::mounted_by(pod, container) {
            let image = source.reference.as_deref().unwrap_or_default();
            self.ensure(entry, pod, None, image, source.pull_policy.as_deref()).await?;
        }
        Ok(())
    }

    pub(super) async fn ensure_image(
        &self,
        entry: &PodEntry,
        pod: &Pod,
        container: &Container,
    ) -> Result<(), RuntimeError> {
        let image = container.image.as_deref().unwrap_or_default();
        self.ensure(entry, pod, Some(&container.name), image, container.image_pull_policy.as_deref()).await
    }

    /// `container`: whose image it is; `None`: a volume's.
    async fn ensure(
        &self,
        entry: &PodEntry,
        pod: &Pod,
        container: Option<&str>,
        image: &str,
        policy: Option<&str>,
    ) -> Result<(), RuntimeError> {
        let runtime = &entry.node.config.runtime;
        let is_present = match runtime.image(image).await {
            ImagePresence::Unneeded => return Ok(()),
            presence => presence == ImagePresence::Present,
        };
        let tell = |kind, reason, message| self.event(entry, container, kind, reason, message);
        match plan(policy, is_present) {
            Plan::Use => {
                let message = format!(
                    "Container image {image:?} already present on machine and can be accessed by the pod"
                );
                tell(EventType::Normal, "Pulled", message);
                Ok(())
            }
            Plan::Refuse => {
                let error = RuntimeError::ImageNever(image.to_owned());
                tell(EventType::Warning, "ErrImageNeverPull", error.to_string());
                Err(error)
            }
            Plan::Pull => {
                tell(EventType::Normal, "Pulling", format!("Pulling image {image:?}"));
                let secrets = self.pull_secrets(pod).await;
                let begun = tokio::time::Instant::now();
                match runtime.pull(image, &secrets).await {
                    Ok(size) => {
                        let took = begun.elapsed();
                        let message = format!(
                            "Successfully pulled image {image:?} in {took:.3?} ({took:.3?} including waiting). Image \
                             size: {size} bytes."
                        );
                        tell(EventType::Normal, "Pulled", message);
                        Ok(())
                    }
                    Err(error) => {
                        tell(
                            EventType::Warning,
                            "Failed",
                            format!("Failed to pull image {image:?}: {error}"),
                        );
                        Err(error)
                    }
                }
            }
        }
    }

    /// The pod's pull secrets. One that is missing is no reason not to try.
    async fn pull_secrets(&self, pod: &Pod) -> Vec<Vec<u8>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let mut found = Vec::new();
        for secret in named.take(SECRETS_MAX) {
            match self.sources.secret(namespace, &secret.name, true).await {
                Ok(Some(mut data)) => found.extend(SECRET_KEYS.iter().find_map(|key| data.remove(*key))),
                Ok(None) => tracing::debug!(secret = secret.name, "a pull secret is missing"),
                Err(error) => tracing::debug!(secret = secret.name, %error, "a pull secret can't be read"),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of "Image pull policy" in Kubernetes' documentation.
    #[test]
    fn policies_are_followed() {
        let cases = [
            (Some("Always"), true, Plan::Pull),
            (Some("Always"), false, Plan::Pull),
            (Some("IfNotPresent"), true, Plan::Use),
            (Some("IfNotPresent"), false, Plan::Pull),
            (Some("Never"), true, Plan::Use),
            (Some("Never"), false, Plan::Refuse),
            (None, true, Plan::Use),
            (None, false, Plan::Pull),
        ];
        for (policy, is_present, expected) in cases {
            assert_eq!(plan(policy, is_present), expected, "{policy:?} {is_present}");
        }
    }
}
