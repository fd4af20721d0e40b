//! An admission step of your own: every ConfigMap must say who owns it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::ConfigMap;
use kapi::{
    admission::{Admission, AdmissionRequest},
    error::ApiResult,
};
use kcore::Status;
use kplane::Cluster;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

#[derive(Debug)]
struct OwnerRequired;

#[async_trait]
impl Admission for OwnerRequired {
    fn name(&self) -> &str {
        "OwnerRequired"
    }

    /// Whoever creates an object in the namespace `default` owns it, unless it says otherwise.
    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        if request.resource.def.plural == "configmaps"
            && object["metadata"].get("labels").is_none()
            && request.namespace == "default"
        {
            object["metadata"]["labels"] = json!({"owner": request.user.name});
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let owned = object["metadata"]["labels"]["owner"].is_string();
        // The system's own objects are left alone.
        if request.resource.def.plural != "configmaps" || owned || request.user.name.starts_with("system:") {
            return Ok(());
        }
        Err(Status::forbidden("", "configmaps", request.name, "the label owner is missing").into())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = Cluster::builder().nodes(0).admission(Arc::new(OwnerRequired)).start().await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());

    let made = maps
        .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": "a"}}))?)
        .await?;
    println!("created with {:?}", made.metadata.labels);
    ensure!(made.metadata.labels.is_some_and(|labels| labels["owner"] == "kubernetes-admin"));

    let orphan = json!({"metadata": {"name": "b", "labels": {"x": "y"}}});
    let refused = maps.create(&PostParams::default(), &serde_json::from_value(orphan)?).await;
    let error = refused.err().map(|error| error.to_string()).unwrap_or_default();
    println!("refused: {error}");
    ensure!(error.contains("the label owner is missing"));
    cluster.shutdown().await?;
    Ok(())
}
