//! Taking a claim's devices back, so that it can be allocated elsewhere.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, Client, api::PostParams};

use crate::{
    plugin::{BindError, Repair},
    plugins::dynamic_resources::claims,
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

/// Writes that a claim has no devices, and that nobody uses it.
pub(super) async fn deallocate(client: &Client, claim: &ResourceClaim) -> Result<(), kube::Error> {
    let (namespace, name) = claims::key(claim);
    let api = Api::<ResourceClaim>::namespaced(client.clone(), namespace);
    let mut new = claim.clone();
    let status = new.status.get_or_insert_default();
    (status.reserved_for, status.allocation, status.devices) = (None, None, None);
    api.replace_status(name, &PostParams::default(), &new).await.map(drop)
}
