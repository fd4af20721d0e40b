//! Server-side apply for one field manager (KEP-555).

use std::{fmt, sync::Arc};

use kube::Client;
use serde_json::{Value, json};

use crate::{
    key::ObjectKey,
    reconciler::ReconcileError,
    request::{PatchKind, Query, Requests, Written},
    resource::ResourceType,
};

/// Writes the fields that a controller cares for, and leaves all others to others.
///
/// What is applied is all that this manager wants: a field that was applied before and is not any more is taken off, unless
/// somebody else wants it, too. So each look applies the whole wish, and nothing has to be read first. An object that is not there
/// is made. Fields that another manager has are taken over, as is usual for controllers; see [`yielding`](Self::yielding).
///
/// ```no_run
/// # async fn example(client: kube::Client) -> Result<(), kreconcile::ReconcileError> {
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kreconcile::{Applier, ObjectKey, ResourceType};
/// use serde_json::json;
///
/// let maps = ResourceType::of::<ConfigMap>();
/// let applier = Applier::new(client, "greeter");
/// let revision = applier.apply(&maps, &ObjectKey::new("shop", "greeting"), json!({"data": {"hello": "world"}})).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Applier {
    requests: Requests,
    manager: Arc<str>,
    force: bool,
}

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier").field("manager", &self.manager).field("force", &self.force).finish()
    }
}

impl Applier {
    /// An applier with this name as field manager.
    #[must_use]
    pub fn new(client: Client, manager: impl Into<Arc<str>>) -> Self {
        Self { requests: Requests::new(client), manager: manager.into(), force: true }
    }

    /// Fields that another manager has stay as they are: applying other values fails with a conflict.
    #[must_use]
    pub fn yielding(mut self) -> Self {
        self.force = false;
        self
    }

    /// Applies `fields` to an object, and gives its revision, for [`Informer::reached`](crate::Informer::reached). `apiVersion`,
    /// `kind` and the name are filled in.
    ///
    /// # Errors
    /// When the request fails; with [`yielding`](Self::yielding) also by a conflict.
    pub async fn apply(
        &self,
        resource: &ResourceType,
        key: &ObjectKey,
        fields: Value,
    ) -> Result<u64, ReconcileError> {
        self.send(resource, key, "", fields).await
    }

    /// The same for the object's status; `fields` is the whole object with its `status`.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply), and when the object is not there.
    pub async fn apply_status(
        &self,
        resource: &ResourceType,
        key: &ObjectKey,
        fields: Value,
    ) -> Result<u64, ReconcileError> {
        self.send(resource, key, "/status", fields).await
    }

    async fn send(
        &self,
        resource: &ResourceType,
        key: &ObjectKey,
        subresource: &str,
        mut fields: Value,
    ) -> Result<u64, ReconcileError> {
        if !fields.is_object() {
            fields = json!({});
        }
        fields["apiVersion"] = resource.api_version().into();
        fields["kind"] = resource.kind.as_str().into();
        if !fields["metadata"].is_object() {
            fields["metadata"] = json!({});
        }
        fields["metadata"]["name"] = (&*key.name).into();
        let mut query = Query::new(resource.path(&key.namespace, &key.name) + subresource);
        query.add("fieldManager", &self.manager);
        if self.force {
            query.add("force", "true");
        }
        Ok(self.requests.patch::<Written>(&query.finish(), PatchKind::Apply, &fields).await?.revision())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    /// The request of KEP-555.
    #[tokio::test]
    async fn a_wish_is_one_request() {
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let sender = sender.clone();
            async move {
                let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
                let asked = format!("{} {} {kind}", request.method(), request.uri());
                let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                let _ = sender.send((asked, serde_json::from_slice::<Value>(&body).unwrap()));
                let answer = json!({"metadata": {"resourceVersion": "7"}}).to_string();
                Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(
                    answer.into_bytes(),
                )))
            }
        });
        let (maps, key) = (ResourceType::of::<ConfigMap>(), ObjectKey::new("n", "x"));
        let applier = Applier::new(Client::new(service, "default"), "me & you");
        let path = "PATCH /api/v1/namespaces/n/configmaps/x";
        let end = "application/apply-patch+yaml";
        for (yielding, fields, asked, body) in [
            (
                false,
                json!({"data": {"a": "b"}}),
                format!("{path}?fieldManager=me%20%26%20you&force=true {end}"),
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"}}),
            ),
            (
                true,
                json!({"metadata": {"labels": {"a": "b"}}}),
                format!("{path}?fieldManager=me%20%26%20you {end}"),
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "labels": {"a": "b"}}}),
            ),
        ] {
            let applier = if yielding { applier.clone().yielding() } else { applier.clone() };
            assert_eq!(applier.apply(&maps, &key, fields).await.unwrap(), 7);
            assert_eq!(seen.recv().await.unwrap(), (asked, body));
        }
        applier.apply_status(&maps, &key, Value::Null).await.unwrap();
        assert!(seen.recv().await.unwrap().0.contains("/configmaps/x/status?"));
    }
}
