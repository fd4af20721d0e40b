//! Answers in Kubernetes' protobuf: of built-in kinds, encoded once for all who ask.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use kcore::{Status, Stored};
use serde_json::Value;

use super::{
    negotiate::PROTOBUF,
    resource::{METADATA_LIST, METADATA_VERSION, list_kind, partial},
    stream::chunked,
};
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

/// A list of objects. Its messages are kept with the objects, so that a list of any size costs no second copy of itself.
pub(super) async fn list(
    objects: &Objects,
    resource: &Resource,
    meta: &Value,
    items: &[Arc<Stored>],
) -> ApiResult<Response<Body>> {
    let mut messages = Vec::with_capacity(items.len());
    for item in items {
        messages.push(message(objects, resource, item).await?);
    }
    let catalog = objects.registry().catalog();
    framed(catalog, &resource.api_version(), &list_kind(resource), meta, messages)
}

/// A list of the metadata of objects alone.
pub(super) fn metadata_list(
    catalog: &Catalog,
    meta: &Value,
    items: &[Arc<Stored>],
) -> ApiResult<Response<Body>> {
    let mut messages = Vec::with_capacity(items.len());
    let mut text = Vec::new();
    for item in items {
        text.clear();
        item.write_metadata(&mut text);
        let metadata: Value = serde_json::from_slice(&text).map_err(Status::internal)?;
        let partial = partial(&metadata);
        messages.push(protobuf::encode_message(catalog, &partial).map_err(|error| fault(&error))?.into());
    }
    framed(catalog, METADATA_VERSION, METADATA_LIST, meta, messages)
}

fn framed(
    catalog: &Catalog,
    api_version: &str,
    kind: &str,
    meta: &Value,
    messages: Vec<Bytes>,
) -> ApiResult<Response<Body>> {
    let lengths = messages.iter().map(Bytes::len);
    let frame =
        protobuf::list_frame(catalog, api_version, kind, meta, lengths).map_err(|error| fault(&error))?;
    let mut response = chunked(frame.head, messages, frame.tail, |message, _, out| {
        protobuf::put_item(out, message);
    });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    Ok(response)
}
