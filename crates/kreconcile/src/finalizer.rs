//! Holding an object until what belongs to it has been cleaned up.

use std::sync::Arc;

use kcore::{Header, Stored};
use kube::Client;
use serde_json::{Value, json};

use crate::{
    reconciler::{Action, ReconcileError},
    request::{self, PatchKind, Requests, Written},
    resource::ResourceType,
};

/// What the holder of a finalizer has to do about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalizerStep {
    /// The object is new to it: [`Finalizer::add`] before anything is made that outlives the object.
    Add,
    /// The object is held: do what it asks for.
    Work,
    /// The object is being deleted: clean up, then [`Finalizer::release`].
    CleanUp,
    /// The object is being deleted and not held: leave it alone.
    Nothing,
}

/// A finalizer: an entry in `metadata.finalizers` that keeps an object, once it is deleted, until the entry is taken off.
///
/// Use it in a reconciler whose object stands for something that nobody else deletes. Each change is for exactly the revision of
/// the object that was read, so that no other holder's entry is lost; a conflict is an error like any, and tried again.
///
/// ```
/// use kcore::Stored;
/// use kreconcile::{Action, Finalizer, FinalizerStep, ReconcileError};
///
/// async fn reconcile(finalizer: &Finalizer, object: &Stored) -> Result<Action, ReconcileError> {
///     match finalizer.step(object) {
///         FinalizerStep::Add => finalizer.add(object).await,
///         FinalizerStep::Work => Ok(Action::Done), // make what the object asks for
///         FinalizerStep::CleanUp => finalizer.release(object).await, // after deleting it
///         FinalizerStep::Nothing => Ok(Action::Done),
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Finalizer {
    name: Arc<str>,
    resource: ResourceType,
    requests: Requests,
}

impl std::fmt::Debug for Finalizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finalizer").field("name", &self.name).field("kind", &self.resource.kind).finish()
    }
}

/// What the holder of a finalizer has to do about the object with this header.
pub(crate) fn step(object: &Header, finalizer: &str) -> FinalizerStep {
    let has = object.finalizers.iter().any(|known| **known == *finalizer);
    match (object.deletion.is_some(), has) {
        (false, false) => FinalizerStep::Add,
        (false, true) => FinalizerStep::Work,
        (true, true) => FinalizerStep::CleanUp,
        (true, false) => FinalizerStep::Nothing,
    }
}

impl Finalizer {
    /// The finalizer `name`, such as `example.com/bucket`, of objects of this kind.
    #[must_use]
    pub fn new(client: Client, resource: ResourceType, name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), resource, requests: Requests::new(client) }
    }

    /// What is to be done about an object.
    #[must_use]
    pub fn step(&self, object: &Stored) -> FinalizerStep {
        step(object.header(), &self.name)
    }

    /// Puts the entry into an object. Gives [`Action::Done`]: the change makes the object come again.
    ///
    /// # Errors
    /// When the object has changed meanwhile, or the request fails. An object that is gone is no error.
    pub async fn add(&self, object: &Stored) -> Result<Action, ReconcileError> {
        self.write(object, |all| all.push((&*self.name).into())).await
    }

    /// Takes the entry off an object, which is then gone if nobody else holds it.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub async fn release(&self, object: &Stored) -> Result<Action, ReconcileError> {
        self.write(object, |all| all.retain(|known| *known != *self.name)).await
    }

    async fn write(
        &self,
        object: &Stored,
        change: impl FnOnce(&mut Vec<Value>),
    ) -> Result<Action, ReconcileError> {
        let header = object.header();
        let before: Vec<Value> = header.finalizers.iter().map(|known| (&**known).into()).collect();
        let mut finalizers = before.clone();
        change(&mut finalizers);
        if finalizers == before {
            return Ok(Action::Done);
        }
        let finalizers = if finalizers.is_empty() { Value::Null } else { finalizers.into() };
        let patch = json!({"metadata": {
            "uid": &*header.uid,
            "resourceVersion": object.revision().to_string(),
            "finalizers": finalizers,
        }});
        let path = self.resource.path(&header.namespace, &header.name);
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(Action::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(deleted: bool, finalizers: &[&str]) -> Stored {
        let deleted = deleted.then_some("2030-01-01T00:00:00Z");
        Stored::from_value(
            json!({"metadata": {"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "7",
            "deletionTimestamp": deleted, "finalizers": finalizers}}),
        )
        .unwrap()
    }

    /// The rules of finalizers (API conventions), and what is written for them.
    #[tokio::test]
    async fn objects_are_held_until_they_are_released() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&written);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let log = Arc::clone(&log);
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                let patch: Value = serde_json::from_slice(&body).unwrap();
                log.lock().unwrap().push(patch["metadata"]["finalizers"].to_string());
                Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(
                    body.to_vec(),
                )))
            }
        });
        let client = Client::new(service, "default");
        let finalizer = Finalizer::new(client, ResourceType::of::<ConfigMap>(), "a/b");
        let cases = [
            (false, vec![], FinalizerStep::Add, r#"["a/b"]"#),
            (false, vec!["other"], FinalizerStep::Add, r#"["other","a/b"]"#),
            (false, vec!["a/b"], FinalizerStep::Work, ""),
            (true, vec!["a/b"], FinalizerStep::CleanUp, "null"),
            (true, vec!["a/b", "other"], FinalizerStep::CleanUp, r#"["other"]"#),
            (true, vec!["other"], FinalizerStep::Nothing, ""),
        ];
        for (deleted, finalizers, expected, patch) in cases {
            let object = object(deleted, &finalizers);
            let step = finalizer.step(&object);
            assert_eq!(step, expected, "{deleted} {finalizers:?}");
            match step {
                FinalizerStep::Add => {
                    finalizer.add(&object).await.unwrap();
                }
                FinalizerStep::Work => {}
                FinalizerStep::CleanUp | FinalizerStep::Nothing => {
                    finalizer.release(&object).await.unwrap();
                }
            }
            assert_eq!(written.lock().unwrap().pop().unwrap_or_default(), patch, "{finalizers:?}");
        }
    }
}
