//! Watches on the wire: a JSON object a line, or a local hand-over.

use std::sync::Arc;

use super::{binary, negotiate::Form, table};
use crate::{body::Body, convert, registry::Resource, schema::protobuf, server::Inner, watch::Session};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, Response, header};
use kcore::{
    Stored,
    local::{LocalEvent, LocalEvents, WantLocal},
};
use serde_json::{Value, json};

/// The answer to a watch.
pub(super) fn respond(
    session: Session,
    resource: &Arc<Resource>,
    form: Form,
    include: table::Include,
    server: &Arc<Inner>,
    wants_local: Option<&WantLocal>,
) -> Response<Body> {
    if wants_local.is_some() && form == Form::Object && convert::is_identity(resource) {
        let mut response = Response::new(Body::empty());
        response
            .extensions_mut()
            .insert(LocalEvents::new(session.into_stream().take_until(Box::pin(end(server, resource)))));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return response;
    }
    let mut response = Response::new(Body::stream(lines(
        session,
        Writer {
            resource: Arc::clone(resource),
            form,
            columns_sent: false,
            include,
            server: Arc::clone(server),
        },
    )));
    let headers = response.headers_mut();
    let kind = match form {
        Form::Protobuf | Form::MetadataProtobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Waits until a watch must end: with the server, or with the resource.
fn end(server: &Inner, resource: &Arc<Resource>) -> impl Future<Output = ()> + Send + use<> {
    let (drained, gone) = (server.drained(), server.customs.gone(server.objects.registry(), resource));
    async move {
        tokio::select! {
            () = drained => {}
            () = gone => {}
        }
    }
}

fn lines(session: Session, writer: Writer) -> impl Stream<Item = Bytes> + Send {
    let events = session.into_stream().take_until(Box::pin(end(&writer.server, &writer.resource)));
    let state = (Box::pin(events), writer);
    futures::stream::unfold(state, |(mut session, mut writer)| async move {
        let batch = session.next().await?;
        writer.server.metrics.sent(batch.len());
        let mut out = Vec::with_capacity(batch.iter().map(room).sum());
        for event in &batch {
            writer.write(event, &mut out).await;
        }
        Some((Bytes::from(out), (session, writer)))
    })
}

/// How many bytes an event takes as a line of JSON, about.
fn room(event: &LocalEvent) -> usize {
    match event {
        LocalEvent::Added(object) | LocalEvent::Modified(object) | LocalEvent::Deleted(object) => {
            object.raw().len() + 96
        }
        _ => 512,
    }
}

struct Writer {
    resource: Arc<Resource>,
    form: Form,
    columns_sent: bool,
    include: table::Include,
    server: Arc<Inner>,
}

impl Writer {
    async fn write(&mut self, event: &LocalEvent, out: &mut Vec<u8>) {
        let (kind, object) = match event {
            LocalEvent::Added(object) => ("ADDED", object),
            LocalEvent::Modified(object) => ("MODIFIED", object),
            LocalEvent::Deleted(object) => ("DELETED", object),
            LocalEvent::Bookmark { revision, initial_events_end } => {
                return self.write_value("BOOKMARK", &self.bookmark(*revision, *initial_events_end), out);
            }
            LocalEvent::Error(status) => {
                return self.write_value("ERROR", &serde_json::to_value(status).unwrap_or_default(), out);
            }
        };
        if self.form == Form::Protobuf {
            let message = binary::message(&self.server.objects, &self.resource, object).await;
            if let Ok(message) = message {
                let object = binary::object(&self.resource, &message);
                out.extend_from_slice(&protobuf::watch_frame(kind, &object));
            }
            return;
        }
        if self.form == Form::MetadataProtobuf {
            let value =
                convert::served(&self.server.objects, &self.resource, object).await.unwrap_or_default();
            return self.write_value(kind, &super::resource::metadata_of(&value), out);
        }
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        self.write_object(object, out).await;
        out.extend_from_slice(b"}\n");
    }

    async fn write_object(&mut self, object: &Stored, out: &mut Vec<u8>) {
        if self.form == Form::Object && convert::is_as_served(&self.resource, object) {
            object.write_json(out);
            return;
        }
        let value = match convert::served(&self.server.objects, &self.resource, object).await {
            Ok(value) => value,
            Err(error) => serde_json::to_value(&error.0).unwrap_or_default(),
        };
        let shown = match self.form {
            Form::Object | Form::Yaml | Form::Protobuf | Form::MetadataProtobuf => value,
            Form::Metadata => super::resource::metadata_of(&value),
            Form::Table => {
                let first = !std::mem::replace(&mut self.columns_sent, true);
                table::of(
                    &self.resource,
                    std::slice::from_ref(&value),
                    &Value::Null,
                    first,
                    self.include,
                    self.server.objects.clock().now(),
                )
            }
        };
        // Writing a `Value` into a `Vec` cannot fail.
        let _ = serde_json::to_writer(out, &shown);
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.form {
            Form::Object | Form::Yaml | Form::Protobuf => {
                json!({"kind": self.resource.def.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
            Form::Metadata | Form::MetadataProtobuf => super::resource::partial(&metadata),
            Form::Table => {
                let mut bookmark = table::of(
                    &self.resource,
                    &[],
                    &metadata,
                    false,
                    self.include,
                    self.server.objects.clock().now(),
                );
                let partial = super::resource::partial(&metadata);
                bookmark["rows"] = json!([{"cells": [], "object": partial}]);
                bookmark
            }
        }
    }

    /// An event whose object is not a stored one.
    fn write_value(&self, kind: &str, object: &Value, out: &mut Vec<u8>) {
        if matches!(self.form, Form::Protobuf | Form::MetadataProtobuf) {
            let catalog = self.server.objects.registry().catalog();
            if let Ok(object) = protobuf::encode(catalog, object) {
                out.extend_from_slice(&protobuf::watch_frame(kind, &object));
            }
            return;
        }
        // Writing a `Value` into a `Vec` cannot fail.
        let _ = serde_json::to_writer(&mut *out, &json!({"type": kind, "object": object}));
        out.push(b'\n');
    }
}
