//! Requests to the API server, and what its answers mean.

#![cfg_attr(not(feature = "controllers"), allow(dead_code, reason = "some of it only the controllers use"))]

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use kube::{Client, client::Body, core::Status};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{finalizer::Finalizer, resource::ResourceType};

/// The largest answer that is read, but for watches: a page of 500 objects of the largest size that is usual.
pub(crate) const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

/// A path with its query.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    text: String,
    separator: char,
}

impl Query {
    pub(crate) fn new(path: String) -> Self {
        Self { text: path, separator: '?' }
    }

    pub(crate) fn add(&mut self, key: &str, value: &str) {
        self.text.push(std::mem::replace(&mut self.separator, '&'));
        self.text.push_str(key);
        self.text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                self.text.push(char::from(byte));
            } else {
                self.text.push('%');
                for digit in [byte >> 4, byte & 15] {
                    self.text.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
                }
            }
        }
    }

    pub(crate) fn add_unless_empty(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.add(key, value);
        }
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// How a patch is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PatchKind {
    /// RFC 7386: every server takes it for every kind.
    Merge,
    /// Server-side apply (KEP-555); the path's query names the field manager.
    Apply,
}

/// What a writer wants to know of the object it has written.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Written {
    #[serde(default)]
    pub(crate) metadata: WrittenMeta,
}

/// The metadata of a [`Written`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WrittenMeta {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
}

impl Written {
    /// The revision of the write; 0 when the server gave none, as after a deletion.
    pub(crate) fn revision(&self) -> u64 {
        self.metadata.resource_version.parse().unwrap_or_default()
    }
}

/// What a deletion asks for beside the object's name.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteHow {
    pub(crate) uid: Option<String>,
    pub(crate) revision: Option<u64>,
    pub(crate) propagation: Option<&'static str>,
    pub(crate) grace_seconds: Option<i64>,
}

/// Writes through a client: bytes out, the part of the answer that matters in.
#[derive(Clone)]
pub(crate) struct Requests {
    client: Client,
}

impl Requests {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// A finalizer that is written by the same client.
    pub(crate) fn finalizer(&self, resource: &ResourceType, name: &'static str) -> Finalizer {
        Finalizer::new(self.client.clone(), resource.clone(), name)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, kube::Error> {
        self.send(Method::GET, path, "", Bytes::new()).await
    }

    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<T, kube::Error> {
        self.send(Method::POST, path, "application/json", body.into()).await
    }

    pub(crate) async fn replace<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, kube::Error> {
        self.send(Method::PUT, path, "application/json", encode(body)?).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: PatchKind,
        body: &Value,
    ) -> Result<T, kube::Error> {
        let media_type = match kind {
            PatchKind::Merge => "application/merge-patch+json",
            PatchKind::Apply => "application/apply-patch+yaml",
        };
        self.send(Method::PATCH, path, media_type, encode(body)?).await
    }

    /// Writes the status of exactly this revision of the object at `path`, if it has changed. Gives the new revision; 0 when
    /// nothing was written, also because the object has gone.
    pub(crate) async fn write_status<S: PartialEq + Serialize>(
        &self,
        path: &str,
        revision: u64,
        old: Option<&S>,
        new: &S,
    ) -> Result<u64, kube::Error> {
        if old == Some(new) {
            return Ok(0);
        }
        let value = |status| serde_json::to_value(status).map_err(kube::Error::SerdeError);
        let old = old.map_or(Ok(Value::Null), value)?;
        let patch = status_patch(revision, &old, &value(new)?);
        match self.patch::<Written>(&format!("{path}/status"), PatchKind::Merge, &patch).await {
            Ok(written) => Ok(written.revision()),
            Err(error) if is_not_found(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn delete(&self, path: &str, how: &DeleteHow) -> Result<Written, kube::Error> {
        let mut options = serde_json::json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(uid) = &how.uid {
            options["preconditions"]["uid"] = Value::from(uid.as_str());
        }
        if let Some(revision) = how.revision {
            options["preconditions"]["resourceVersion"] = Value::from(revision.to_string());
        }
        if let Some(propagation) = how.propagation {
            options["propagationPolicy"] = Value::from(propagation);
        }
        if let Some(seconds) = how.grace_seconds {
            options["gracePeriodSeconds"] = Value::from(seconds);
        }
        self.send(Method::DELETE, path, "application/json", encode(&options)?).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Bytes,
    ) -> Result<T, kube::Error> {
        let mut request =
            Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
        if !media_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        let request = request.body(Body::from(body)).map_err(kube::Error::HttpError)?;
        let bytes = body_of(self.client.send(request).await?).await?;
        serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)
    }
}

fn encode(body: &Value) -> Result<Bytes, kube::Error> {
    serde_json::to_vec(body).map(Bytes::from).map_err(kube::Error::SerdeError)
}

/// The merge patch that makes the status `new` of `old`, for exactly this revision of the object.
pub(crate) fn status_patch(revision: u64, old: &Value, new: &Value) -> Value {
    serde_json::json!({
        "metadata": {"resourceVersion": revision.to_string()},
        "status": merge_difference(old, new),
    })
}

/// The merge patch that makes `new` of `old`: what is only in `old` becomes null, at any depth.
pub(crate) fn merge_difference(old: &Value, new: &Value) -> Value {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return new.clone() };
    let mut patch = serde_json::Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(known) if known == value => {}
            Some(known) => {
                patch.insert(key.clone(), merge_difference(known, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

async fn read(body: Body) -> Result<Bytes, kube::Error> {
    let read = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok(read.map_err(kube::Error::Service)?.to_bytes())
}

/// The body of a good answer.
pub(crate) async fn body_of(response: Response<Body>) -> Result<Bytes, kube::Error> {
    if response.status().is_success() {
        read(response.into_body()).await
    } else {
        Err(error_of(response).await)
    }
}

/// What an answer that is not a success says.
pub(crate) async fn error_of(response: Response<Body>) -> kube::Error {
    let code = response.status().as_u16();
    let bytes = match read(response.into_body()).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    let status = serde_json::from_slice::<Status>(&bytes).unwrap_or_else(|_| {
        Status::failure(&String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]), "Unknown")
    });
    kube::Error::Api(Status { code: if status.code == 0 { code } else { status.code }, ..status }.boxed())
}

/// Whether the server said that the object is not there.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    code_of(error) == 404
}

/// Whether the server said that the object has changed since, or is there already.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    code_of(error) == 409
}

/// Whether a write that failed like this may have been done all the same: the server gave up, or no answer came.
pub(crate) fn is_uncertain(error: &kube::Error) -> bool {
    !matches!(error, kube::Error::Api(status) if status.code < 500)
}

/// Whether the server said that an object of this name is there already.
pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// Whether the server refused because the namespace is being deleted.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn code_of(error: &kube::Error) -> u16 {
    if let kube::Error::Api(status) = error { status.code } else { 0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn queries_are_escaped() {
        let mut query = Query::new("/api/v1/pods".into());
        query.add("labelSelector", "a in (b,c)");
        query.add_unless_empty("fieldSelector", "");
        query.add("limit", "5");
        assert_eq!(query.finish(), "/api/v1/pods?labelSelector=a%20in%20%28b%2Cc%29&limit=5");
    }

    #[test]
    fn a_difference_says_what_goes() {
        let (old, new) =
            (json!({"a": 1, "b": {"x": 1, "y": 2}, "c": 3}), json!({"a": 1, "b": {"x": 5}, "d": [1]}));
        assert_eq!(merge_difference(&old, &new), json!({"b": {"x": 5, "y": null}, "c": null, "d": [1]}));
    }
}
