//! Binds pods through the API.

use async_trait::async_trait;
use kube::core::Request;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::plugin::{Bind, BindError, BindOutcome, Binding};

/// Creates the pod's `binding` subresource, which sets its `spec.nodeName`.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultBinder;

#[async_trait]
impl Bind for DefaultBinder {
    fn name(&self) -> &str {
        "DefaultBinder"
    }

    async fn bind(&self, binding: Binding<'_>) -> Result<BindOutcome, BindError> {
        let pod = binding.pod;
        let body = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": &*pod.name, "namespace": &*pod.namespace, "uid": &*pod.uid},
            "target": {"kind": "Node", "name": binding.node},
        });
        let api = |error: kube::Error| BindError::Api(Box::new(error));
        let body = serde_json::to_vec(&body).map_err(|error| api(kube::Error::SerdeError(error)))?;
        let request = Request::new(format!("/api/v1/namespaces/{}/pods", pod.namespace))
            .create_subresource("binding", &pod.name, &kube::api::PostParams::default(), body)
            .map_err(|error| api(kube::Error::BuildRequest(error)))?;
        binding.client.request::<IgnoredAny>(request).await.map_err(api)?;
        Ok(BindOutcome::Bound)
    }
}
