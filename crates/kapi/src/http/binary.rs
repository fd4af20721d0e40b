//! Answers in Kubernetes' protobuf: of built-in kinds, encoded once for all who ask.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use kcore::{Status, Stored};
use serde_json::Value;

use super::{negotiate::PROTOBUF, resource::list_kind};
use crate::{
    body::Body,
    convert,
    error::{ApiError, ApiResult},
    objects::Objects,
    registry::Resource,
    schema::{Catalog, protobuf},
};

fn fault(error: &protobuf::ProtobufError) -> ApiError {
    Status::internal(error).into()
}

/// An answer that is protobuf.
pub(super) fn response(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = super::bytes_response(code, bytes);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    response
}

/// Any object in its envelope.
pub(super) fn encode(catalog: &Catalog, value: &Value) -> ApiResult<Vec<u8>> {
    protobuf::encode(catalog, value).map_err(|error| fault(&error))
}

/// The message of a stored object in the resource's version; kept with the object where that is the version it is stored in.
pub(super) async fn message(
    objects: &Objects,
    resource: &Resource,
    object: &Arc<Stored>,
) -> ApiResult<Bytes> {
    let catalog = objects.registry().catalog();
    let encode = |value: &Value| {
        protobuf::encode_message(catalog, value).map(Bytes::from).map_err(|error| fault(&error))
    };
    if convert::is_identity(resource) {
        let make = || encode(&object.value().map_err(Status::internal)?);
        return object.other(make);
    }
    encode(&convert::served(objects, resource, object).await?)
}

/// A message in the envelope of the resource's kind.
pub(super) fn object(resource: &Resource, message: &[u8]) -> Vec<u8> {
    protobuf::envelope(&resource.api_version(), &resource.def.kind, message)
}

/// A list.
pub(super) async fn list(
    objects: &Objects,
    resource: &Resource,
    meta: &Value,
    items: &[Arc<Stored>],
) -> ApiResult<Vec<u8>> {
    let mut messages = Vec::with_capacity(items.len());
    for item in items {
        messages.push(message(objects, resource, item).await?);
    }
    let (catalog, kind) = (objects.registry().catalog(), list_kind(resource));
    let items = messages.iter().map(|message| &message[..]);
    protobuf::encode_list(catalog, &resource.api_version(), &kind, meta, items).map_err(|error| fault(&error))
}
