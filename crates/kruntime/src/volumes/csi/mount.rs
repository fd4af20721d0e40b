//! From a claim to a directory: attached, staged, published.

use std::path::Path;

use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod, SecretReference},
    storage::v1::CSIDriver,
};
use serde_json::{Map, json};

use super::{
    Csi, Published,
    driver::{Capabilities, Driver, DriverError, Use, text},
    failed, locked,
    notes::{self, Note},
    proto::{Capability, NodePublishVolumeRequest, NodeStageVolumeRequest, Texts},
    rules::{self, Spec},
};
use crate::{
    runtime::{PodUid, RuntimeError},
    sources::{Sources, Token},
    volumes::{MadeVolume, VolumeRequest, ownership},
};

const WAIT_FOR_ATTACH: &str = "MountVolume.WaitForAttach failed";
const MOUNT_DEVICE: &str = "MountVolume.MountDevice failed";
const SET_UP: &str = "MountVolume.SetUp failed";

/// What the steps of one mount share.
pub(super) struct Mounting<'a> {
    pub(super) request: &'a VolumeRequest<'a>,
    pub(super) spec: &'a Spec,
    pub(super) driver: Driver,
    pub(super) capabilities: Capabilities,
    object: Option<CSIDriver>,
    publish_context: Texts,
    /// The pod's group, if the driver gives volumes to groups itself.
    group: Option<i64>,
}

impl Mounting<'_> {
    pub(super) fn used(&self) -> Use<'_> {
        Use {
            fs_type: &self.spec.fs_type,
            access_mode: self.spec.access_mode(),
            mount_options: &self.spec.mount_options,
            group: self.group,
        }
    }

    pub(super) fn has(&self, capability: Capability) -> bool {
        self.capabilities.has(capability)
    }
}

impl Csi {
    /// Makes the volume for the pod, or, if it is there, brings it up to date.
    pub(crate) async fn mount(
        &self,
        request: &VolumeRequest<'_>,
        spec: &Spec,
        claim: Option<&PersistentVolumeClaim>,
    ) -> Result<MadeVolume, RuntimeError> {
        let pod = request.facts.pod;
        let uid = PodUid::from(pod.metadata.uid.as_deref().unwrap_or_default());
        let target = rules::target_path(&request.pod_dir, &spec.name);
        let failed = |step, why: String| failed(step, &spec.name, why);
        let object = request
            .sources
            .csi_driver(&spec.driver)
            .await
            .map_err(|error| failed(SET_UP, error.to_string()))?;
        let _turn = self.turn(&spec.driver, &spec.handle).await;
        let is_made = locked(&self.made).get(&uid).is_some_and(|all| all.contains_key(&request.volume.name));
        let mut made =
            MadeVolume { read_only: spec.read_only, has_owner: true, ..MadeVolume::from(target.clone()) };
        let republishes = object.as_ref().is_some_and(|object| object.spec.requires_republish == Some(true));
        let grows = claim.is_some_and(|claim| rules::growth(spec, claim) != rules::Growth::None);
        if is_made && !republishes && !grows {
            return Ok(made);
        }
        let publish_context = if spec.is_ephemeral || is_made && !republishes {
            Texts::new()
        } else {
            self.wait_for_attach(request.sources, spec, object.as_ref())
                .await
                .map_err(|why| failed(WAIT_FOR_ATTACH, why))?
        };
        let not_there = |step: &'static str, what: &str, why: String| {
            failed(step, format!("kubernetes.io/csi: {what}: {why}"))
        };
        // The first that needs the driver complains of its absence.
        let driver = self.driver(&spec.driver).map_err(|why| {
            if spec.is_ephemeral {
                not_there(SET_UP, "mounter.SetUpAt failed to get CSI client", why)
            } else {
                not_there(MOUNT_DEVICE, "attacher.MountDevice failed to create newCsiDriverClient", why)
            }
        })?;
        let first_step = if spec.is_ephemeral { SET_UP } else { MOUNT_DEVICE };
        let capabilities =
            driver.capabilities().await.map_err(|error| failed(first_step, error.to_string()))?;
        let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let group = group.filter(|_| capabilities.has(Capability::MountGroup));
        let mounting = Mounting { request, spec, driver, capabilities, object, publish_context, group };
        let staging = rules::staging_path(&self.root, &spec.driver, &spec.handle);
        let staging = Some(staging).filter(|_| !spec.is_ephemeral && mounting.has(Capability::Stage));
        if !is_made || republishes {
            if let Some(staging) = staging.as_deref().filter(|_| !is_made) {
                stage(&mounting, staging).await.map_err(|why| failed(MOUNT_DEVICE, why))?;
            }
            self.publish(&mounting, staging.as_deref(), &target, is_made)
                .await
                .map_err(|why| failed(SET_UP, why))?;
            let published = Published {
                driver: spec.driver.clone(),
                handle: spec.handle.clone(),
                target: target.clone(),
                claim: claim.and_then(|claim| claim.metadata.name.clone()),
                stats: None,
            };
            let mut all = locked(&self.made);
            all.entry(uid).or_default().entry(request.volume.name.clone()).or_insert(published);
        }
        if let Some(claim) = claim {
            let notes = self.grow(&mounting, claim, staging.as_deref(), &target).await?;
            made.notes.extend(notes);
        }
        Ok(made)
    }

    /// Waits, by failing, until the volume is attached; gives what was said about the attachment.
    async fn wait_for_attach(
        &self,
        sources: &Sources,
        spec: &Spec,
        object: Option<&CSIDriver>,
    ) -> Result<Texts, String> {
        if !rules::must_attach(object) {
            return Ok(Texts::new());
        }
        let name = rules::attachment_name(&spec.handle, &spec.driver, &self.node);
        let asked = sources.volume_attachment(&name).await;
        let attachment = asked.map_err(|error| {
            format!("volume {} has GET error for volume attachment {name}: {error}", spec.handle)
        })?;
        rules::check_attached(&attachment, &spec.handle)?;
        self.report_in_use(&rules::unique_name(&spec.driver, &spec.handle)).await?;
        Ok(attachment.status.and_then(|status| status.attachment_metadata).unwrap_or_default())
    }

    /// Makes the volume ready for the pod. `is_again`: the pod uses it already.
    async fn publish(
        &self,
        mounting: &Mounting<'_>,
        staging: Option<&Path>,
        target: &Path,
        is_again: bool,
    ) -> Result<(), String> {
        let Mounting { request, spec, object, .. } = mounting;
        let pod = request.facts.pod;
        rules::check_mode(object.as_ref(), spec).map_err(|why| {
            format!("kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: {why}")
        })?;
        let mut secrets = match &spec.publish_secret {
            Some(secret) => credentials(request.sources, "NodePublishSecretRef", secret).await?,
            None => Texts::new(),
        };
        let mut volume_context = spec.attributes.clone();
        let wants = object.as_ref().map(|object| &object.spec);
        if wants.is_some_and(|wants| wants.pod_info_on_mount == Some(true)) {
            volume_context.extend(rules::pod_info(pod, spec));
        }
        if let Some(tokens) = self.tokens(mounting).await.map_err(|error| {
            format!(
                "kubernetes.io/csi: mounter.SetUpAt failed to get service accoount token attributes: {error}"
            )
        })? {
            let are_secret = wants.is_some_and(|wants| wants.service_account_token_in_secrets == Some(true));
            let list = if are_secret { &mut secrets } else { &mut volume_context };
            list.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens);
        }
        let known = Note::read(target).ok().flatten().is_some();
        Note::of_pod(spec, &self.node).write(target).map_err(|error| {
            format!("kubernetes.io/csi: mounter.SetUpAt failed to save volume info data: {error}")
        })?;
        let asked = NodePublishVolumeRequest {
            volume_id: spec.handle.clone(),
            publish_context: mounting.publish_context.clone(),
            staging_target_path: staging.map(text).unwrap_or_default(),
            target_path: text(target),
            volume_capability: None,
            readonly: spec.read_only,
            secrets,
            volume_context,
        };
        if let Err(error) = mounting.driver.publish(asked, &mounting.used(), &mounting.capabilities).await {
            // What the pod uses, or an earlier agent has made, stays as it is.
            if error.is_final() && !is_again && !known {
                clean(&error, target);
            }
            return Err(error.to_string());
        }
        if !mounting.has(Capability::MountGroup) {
            give_to_group(mounting, target)
                .await
                .map_err(|error| format!("applyFSGroup failed for vol {}: {error}", spec.handle))?;
        }
        Ok(())
    }

    /// Tokens of the pod's account for the audiences that the driver wants (KEP-2047), in its form.
    async fn tokens(&self, mounting: &Mounting<'_>) -> Result<Option<String>, RuntimeError> {
        let Mounting { request, spec, object, .. } = mounting;
        let wanted = object.as_ref().and_then(|object| object.spec.token_requests.as_deref());
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { return Ok(None) };
        let pod: &Pod = request.facts.pod;
        let uid = PodUid::from(pod.metadata.uid.as_deref().unwrap_or_default());
        let mut tokens = Map::new();
        for one in wanted {
            let key = (uid.clone(), spec.driver.clone(), one.audience.clone());
            let known = locked(&self.tokens).get(&key).cloned();
            let fresh = known.filter(|(issued, token)| {
                let life = token.expires_at.duration_since(*issued);
                request.now.duration_since(*issued) < life * 4 / 5
            });
            let token: Token = match fresh {
                Some((_, token)) => token,
                None => {
                    let audience = Some(one.audience.as_str()).filter(|audience| !audience.is_empty());
                    let seconds = one.expiration_seconds.unwrap_or(3600);
                    let token = request.sources.token(pod, audience, seconds).await?;
                    let mut all = locked(&self.tokens);
                    all.retain(|_, (_, token)| token.expires_at > request.now);
                    all.insert(key, (request.now, token.clone()));
                    token
                }
            };
            let expires = kcore::clock::format_time(token.expires_at);
            tokens
                .insert(one.audience.clone(), json!({"token": token.token, "expirationTimestamp": expires}));
        }
        Ok(Some(serde_json::Value::Object(tokens).to_string()))
    }
}

/// Makes the volume ready for all pods of the node. It may be so already: drivers take that as done.
async fn stage(mounting: &Mounting<'_>, staging: &Path) -> Result<(), String> {
    let Mounting { request, spec, .. } = mounting;
    let secrets = match &spec.stage_secret {
        Some(secret) => credentials(request.sources, "NodeStageSecretRef", secret).await?,
        None => Texts::new(),
    };
    let known = Note::read(staging).ok().flatten().is_some();
    std::fs::create_dir_all(staging).map_err(|error| {
        format!("kubernetes.io/csi: attacher.MountDevice failed to create dir {:?}:  {error}", text(staging))
    })?;
    Note::of_stage(spec)
        .write(staging)
        .map_err(|error| format!("kubernetes.io/csi: failed to save volume info data: {error}"))?;
    let asked = NodeStageVolumeRequest {
        volume_id: spec.handle.clone(),
        publish_context: mounting.publish_context.clone(),
        staging_target_path: text(staging),
        volume_capability: None,
        secrets,
        volume_context: spec.attributes.clone(),
    };
    mounting.driver.stage(asked, &mounting.used(), &mounting.capabilities).await.map_err(|error| {
        if error.is_final() && !known {
            clean(&error, staging);
        }
        error.to_string()
    })
}

/// Removes what was prepared for a call that came to nothing.
fn clean(error: &DriverError, place: &Path) {
    if let Err(left) = notes::remove_all(place) {
        tracing::warn!(place = %place.display(), %error, %left, "a place for a volume is left");
    }
}

/// A secret for the driver. Not for logs.
pub(super) async fn credentials(
    sources: &Sources,
    what: &str,
    secret: &SecretReference,
) -> Result<Texts, String> {
    let name = secret.name.as_deref().unwrap_or_default();
    let namespace = secret.namespace.as_deref().unwrap_or_default();
    let failed = |why: String| format!("fetching {what} {namespace}/{name} failed: {why}");
    let found = sources.secret(namespace, name, false).await.map_err(|error| failed(error.to_string()))?;
    let texts = found.unwrap_or_default().into_iter().map(|(key, value)| {
        // The wire knows texts alone.
        let value = String::from_utf8(value).map_err(|_| failed(format!("{key:?} is no text")))?;
        Ok((key, value))
    });
    texts.collect()
}

/// Gives the volume's files to the pod's group, if that is the node's to do.
async fn give_to_group(mounting: &Mounting<'_>, target: &Path) -> std::io::Result<()> {
    let context = mounting.request.facts.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let group = context.and_then(|context| u32::try_from(context.fs_group?).ok());
    let policy = mounting.object.as_ref().and_then(|object| object.spec.fs_group_policy.as_deref());
    let Some(group) = group.filter(|_| rules::gives_to_group(policy, mounting.spec)) else { return Ok(()) };
    let only_roots =
        context.and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
    let target = target.to_owned();
    let given = tokio::task::spawn_blocking(move || {
        if only_roots && ownership::is_of_group(&target, group)? {
            return Ok(());
        }
        ownership::give_to_group(&target, group, false)
    });
    given.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
