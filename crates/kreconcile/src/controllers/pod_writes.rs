//! Making and deleting pods for those who own them.

use std::sync::Arc;

use bytes::Bytes;
use kcore::Header;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    controllers::{claim::controller_reference, doubts::Doubts},
    events::{EventRecorder, EventType, Regarding},
    expectations::Expectations,
    key::ObjectKey,
    request::{self, DeleteHow, Requests, Written},
    resource::ResourceType,
};

/// How many pods the first batch of a slow start has (upstream's `SlowStartInitialBatchSize`).
pub(crate) const SLOW_START_INITIAL: usize = 1;
/// How many requests of one batch are under way at once.
const CONCURRENT_REQUESTS_MAX: usize = 64;

/// A pod that a template asks for, as the body of a create request: encoded once, sent as often as needed.
pub(crate) fn pod_from_template(template: &Value, resource: &ResourceType, owner: &Header) -> Value {
    let prefix = format!("{}-", owner.name);
    // The server cuts a name that it generates; a prefix of a full name must leave the dash out.
    let prefix = if prefix.len() > 253 { owner.name.to_string() } else { prefix };
    let mut metadata = json!({
        "generateName": prefix,
        "namespace": &*owner.namespace,
        "ownerReferences": [controller_reference(resource, owner)],
    });
    for key in ["labels", "annotations", "finalizers"] {
        if !template["metadata"][key].is_null() {
            metadata[key] = template["metadata"][key].clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Writes pods on behalf of an owner, and tells about it.
#[derive(Clone)]
pub(crate) struct PodWriter {
    pub(crate) requests: Requests,
    pub(crate) recorder: EventRecorder,
    pub(crate) about: Arc<Regarding>,
}

impl PodWriter {
    /// Makes one pod and gives its revision. 0 when it was refused because the namespace is on its way out: any further
    /// one would be, too.
    pub(crate) async fn create(&self, body: Bytes) -> Result<u64, kube::Error> {
        let path = format!("/api/v1/namespaces/{}/pods", self.about.namespace);
        match self.requests.create::<Written>(&path, body).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.metadata.name);
                self.recorder.record(&self.about, EventType::Normal, "SuccessfulCreate", message);
                Ok(pod.revision())
            }
            Err(error) if request::is_namespace_terminating(&error) => Ok(0),
            Err(error) => {
                let message = format!("Error creating: {}", error_message(&error));
                self.recorder.record(&self.about, EventType::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    /// Makes pods in batches that double in size as long as they succeed, so that what fails fails a few times only
    /// (upstream's `slowStartBatch`). What was made is expected, what may have been made is a doubt. Gives how many succeeded,
    /// and the first failure.
    pub(crate) async fn create_slowly(
        &self,
        bodies: Vec<Bytes>,
        (key, expected, doubts): (&ObjectKey, &Expectations, &Doubts),
    ) -> (usize, Result<(), kube::Error>) {
        let (mut made, mut batch) = (0, SLOW_START_INITIAL);
        let mut bodies = bodies.into_iter();
        while bodies.len() > 0 {
            let results = in_parallel(bodies.by_ref().take(batch).collect(), |body| {
                let writer = self.clone();
                async move { writer.create(body).await }
            });
            let mut failure = None;
            for result in results.await {
                match result {
                    Ok(revision) => {
                        expected.wrote(key, revision);
                        made += 1;
                    }
                    Err(error) => {
                        doubts.note(key, &error);
                        failure = failure.or(Some(error));
                    }
                }
            }
            if let Some(error) = failure {
                return (made, Err(error));
            }
            batch *= 2;
        }
        (made, Ok(()))
    }

    /// Deletes one pod, if it is still the one with this uid. One that is gone already counts as deleted.
    pub(crate) async fn delete(&self, name: &str, uid: &str) -> Result<(), kube::Error> {
        let path = format!("/api/v1/namespaces/{}/pods/{name}", self.about.namespace);
        let how = DeleteHow { uid: Some(uid.to_owned()), ..DeleteHow::default() };
        match self.requests.delete(&path, &how).await {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.record(&self.about, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) if request::is_not_found(&error) => Ok(()),
            Err(error) => {
                let message = format!("Error deleting: {}", error_message(&error));
                self.recorder.record(&self.about, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// Deletes pods, all at once, by name and uid. They are expected to go; one whose deletion was refused is not, and one
    /// whose deletion may have been done is a doubt. Gives the first failure.
    pub(crate) async fn delete_expected(
        &self,
        pods: Vec<(String, String)>,
        (key, expected, doubts): (&ObjectKey, &Expectations, &Doubts),
    ) -> Result<(), kube::Error> {
        for (name, uid) in &pods {
            expected.deleted(key, ObjectKey::new(&*key.namespace, &**name), uid);
        }
        let results = in_parallel(pods, |(name, uid)| {
            let writer = self.clone();
            async move { writer.delete(&name, &uid).await.map_err(|error| (uid, error)) }
        });
        let mut failed = Ok(());
        for (uid, error) in results.await.into_iter().filter_map(Result::err) {
            if !doubts.note(key, &error) {
                expected.kept(key, &uid);
            }
            failed = failed.and(Err(error));
        }
        failed
    }
}

/// Runs the work for all items, on all cores, at most [`CONCURRENT_REQUESTS_MAX`] at a time. The results come in no
/// particular order. Dropping the future drops the work.
pub(crate) async fn in_parallel<T, R, F>(items: Vec<T>, mut work: impl FnMut(T) -> F) -> Vec<R>
where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let mut results = Vec::with_capacity(items.len());
    if items.len() == 1 {
        for item in items {
            results.push(work(item).await);
        }
        return results;
    }
    let mut tasks = JoinSet::new();
    for item in items {
        if tasks.len() >= CONCURRENT_REQUESTS_MAX
            && let Some(Ok(result)) = tasks.join_next().await
        {
            results.push(result);
        }
        tasks.spawn(work(item));
    }
    while let Some(result) = tasks.join_next().await {
        // A task fails only when it panics, which the client's own code would have to do.
        results.extend(result);
    }
    results
}

/// What the server said, in its own words.
pub(crate) fn error_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}
