//! Taking a claim's devices back, so that it can be allocated elsewhere.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};

use crate::{
    plugin::{BindError, Repair},
    plugins::dynamic_resources::{
        bind::{CONFLICTS_MAX, FINALIZER, is_conflict},
        claims,
    },
};

/// Deallocates a claim, unless it has changed in the meantime.
#[derive(Debug)]
pub(super) struct Deallocate {
    claim: Arc<ResourceClaim>,
}

impl Deallocate {
    pub(super) fn new(claim: Arc<ResourceClaim>) -> Self {
        Self { claim }
    }
}

#[async_trait]
impl Repair for Deallocate {
    async fn repair(&self, client: &Client) -> Result<(), BindError> {
        let written = deallocate(client, &self.claim).await;
        written.map_err(|error| BindError::Api(Box::new(error)))
    }
}

/// Deletes the claim for extended resources that an earlier try left behind.
#[derive(Debug)]
pub(super) struct Discard {
    claim: Arc<ResourceClaim>,
}

impl Discard {
    pub(super) fn new(claim: Arc<ResourceClaim>) -> Self {
        Self { claim }
    }
}

#[async_trait]
impl Repair for Discard {
    async fn repair(&self, client: &Client) -> Result<(), BindError> {
        discard(client, &self.claim).await.map_err(|error| BindError::Api(Box::new(error)))
    }
}

/// Deletes a claim, with what keeps it from that.
pub(super) async fn discard(client: &Client, claim: &ResourceClaim) -> Result<(), kube::Error> {
    let (namespace, name) = claims::key(claim);
    let api = Api::<ResourceClaim>::namespaced(client.clone(), namespace);
    let mut new = claim.clone();
    for attempt in 0..=CONFLICTS_MAX {
        let finalizers = new.metadata.finalizers.get_or_insert_default();
        let before = finalizers.len();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if finalizers.len() == before {
            break;
        }
        match api.replace(name, &PostParams::default(), &new).await {
            Err(error) if is_conflict(&error) && attempt < CONFLICTS_MAX => new = api.get(name).await?,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            written => {
                written?;
                break;
            }
        }
    }
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(drop),
    }
}

/// Writes that a claim has no devices, and that nobody uses it.
pub(super) async fn deallocate(client: &Client, claim: &ResourceClaim) -> Result<(), kube::Error> {
    let (namespace, name) = claims::key(claim);
    let api = Api::<ResourceClaim>::namespaced(client.clone(), namespace);
    let mut new = claim.clone();
    let status = new.status.get_or_insert_default();
    (status.reserved_for, status.allocation, status.devices) = (None, None, None);
    api.replace_status(name, &PostParams::default(), &new).await.map(drop)
}
