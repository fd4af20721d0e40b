//! The objects that a pod's containers and volumes refer to.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    node::v1::RuntimeClass,
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kreconcile::Informer;
use kube::{Api, Client, api::PostParams};

use crate::runtime::RuntimeError;

/// Reads ConfigMaps, Secrets and Services, and asks for tokens, with the node's own identity.
#[derive(Clone)]
pub struct Sources {
    client: Client,
    services: Option<Informer<Service>>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("services", &self.services.is_some()).finish_non_exhaustive()
    }
}

/// A claim with the volume that it is bound to.
#[derive(Clone, Debug)]
pub struct ClaimedVolume {
    /// The claim.
    pub claim: PersistentVolumeClaim,
    /// The volume.
    pub volume: PersistentVolume,
}

/// A token for a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

fn refused(what: &str, name: &str, error: &kube::Error) -> RuntimeError {
    RuntimeError::Config(format!("failed to read {what} {name:?}: {error}"))
}

impl Sources {
    /// Sources that read through `client`; Services come from `services`, when there is that informer.
    #[must_use]
    pub fn new(client: Client, services: Option<Informer<Service>>) -> Self {
        Self { client, services }
    }

    /// A ConfigMap's data, text and binary alike.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when it can't be read, or isn't there and isn't optional.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        optional: bool,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, RuntimeError> {
        let found = Api::<ConfigMap>::namespaced(self.client.clone(), namespace).get_opt(name).await;
        match found.map_err(|error| refused("configmap", name, &error))? {
            Some(map) => {
                let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
                Ok(Some(text.chain(binary).collect()))
            }
            None if optional => Ok(None),
            None => Err(RuntimeError::Config(format!("configmap {name:?} not found"))),
        }
    }

    /// A Secret's data.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub async fn secret(
        &self,
        namespace: &str,
        name: &str,
        optional: bool,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, RuntimeError> {
        let found = Api::<Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await;
        match found.map_err(|error| refused("secret", name, &error))? {
            Some(secret) => {
                Ok(Some(secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()))
            }
            None if optional => Ok(None),
            None => Err(RuntimeError::Config(format!("secret {name:?} not found"))),
        }
    }

    /// A claim with the volume that it is bound to. `owner`: the claim must be owned by the pod with this uid.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when either can't be read, or they are not bound to each other, or it is another's claim.
    pub async fn claimed_volume(
        &self,
        namespace: &str,
        name: &str,
        owner: Option<&str>,
    ) -> Result<ClaimedVolume, RuntimeError> {
        let wrong =
            |why: &str| RuntimeError::Config(format!("error processing PVC {namespace}/{name}: {why}"));
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        let claim = claims.get(name).await.map_err(|error| refused("persistentvolumeclaim", name, &error))?;
        let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
        if let Some(uid) = owner
            && !owners.iter().any(|known| known.controller == Some(true) && known.uid == uid)
        {
            return Err(wrong("PVC was not created for pod (pod is not owner)"));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(wrong("PVC is being deleted"));
        }
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        if phase != Some("Bound") || volume.is_empty() {
            return Err(wrong("PVC is not bound"));
        }
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let volume =
            volumes.get(volume).await.map_err(|error| refused("persistentvolume", volume, &error))?;
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if reference.is_none_or(|reference| reference.uid != claim.metadata.uid) {
            return Err(wrong("PV is bound to another claim"));
        }
        Ok(ClaimedVolume { claim, volume })
    }

    /// What the cluster knows of a CSI driver; `None` when it has no object.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when it can't be read.
    pub async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, RuntimeError> {
        let found = Api::<CSIDriver>::all(self.client.clone()).get_opt(name).await;
        found.map_err(|error| refused("csidriver", name, &error))
    }

    /// Whether a volume is attached to a node, and what was said about that.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when it can't be read, or isn't there.
    pub async fn volume_attachment(&self, name: &str) -> Result<VolumeAttachment, RuntimeError> {
        match Api::<VolumeAttachment>::all(self.client.clone()).get_opt(name).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => {
                let group = "volumeattachments.storage.k8s.io";
                Err(RuntimeError::Config(format!("{group} {name:?} not found")))
            }
            Err(error) => Err(refused("volumeattachment", name, &error)),
        }
    }

    /// What all of it is read with.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The handler that a RuntimeClass names.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when there is no such class, or it can't be read.
    pub async fn runtime_handler(&self, class: &str) -> Result<String, RuntimeError> {
        match Api::<RuntimeClass>::all(self.client.clone()).get_opt(class).await {
            Ok(Some(found)) => Ok(found.handler),
            Ok(None) => Err(RuntimeError::Config(format!("RuntimeClass {class:?} not found"))),
            Err(error) => Err(refused("runtimeclass", class, &error)),
        }
    }

    /// A token of the pod's service account, bound to the pod (TokenRequest).
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when the API gives none.
    pub async fn token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<Token, RuntimeError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.map(|audience| vec![audience.to_owned()]).unwrap_or_default()),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await.map_err(
            |error| RuntimeError::Config(format!("no token for service account {account:?}: {error}")),
        )?;
        answer
            .status
            .and_then(|status| {
                Some(Token { token: status.token?, expires_at: status.expiration_timestamp?.0 })
            })
            .ok_or_else(|| RuntimeError::Config(format!("empty token for service account {account:?}")))
    }

    /// The Services whose addresses a pod of `namespace` finds in its environment: `default/kubernetes`, and with
    /// `links` all of its own namespace.
    #[must_use]
    pub fn services(&self, namespace: &str, links: bool) -> Vec<Arc<Service>> {
        let Some(informer) = &self.services else { return Vec::new() };
        let mut services: Vec<_> = informer.get("default", "kubernetes").into_iter().collect();
        if links {
            let own = informer.in_namespace(namespace);
            services.extend(own.into_iter().filter(|service| {
                namespace != "default" || service.metadata.name.as_deref() != Some("kubernetes")
            }));
        }
        services.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        services
    }
}
