//! OpenAPI documents: what clients learn the kinds' structure from, and `kubectl explain` its words.
//!
//! A document is made when it is first asked for and kept as bytes until the registry changes. Its hash, by which clients keep
//! their copies, is made of what the document is made of, so the index needs no document.

mod binary;
#[cfg(feature = "openapi-docs")]
mod docs;
mod merge;
mod paths;
mod schemas;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use kcore::Status;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use self::{paths::Paths, schemas::Schemas};
use super::{bytes_response, negotiate};
use crate::{
    body::Body,
    error::ApiResult,
    registry::{Registry, Resource},
    schema::Type,
    server::Inner,
};

/// Counts changes of what this module makes of a registry; a client's copy of an older form must not pass for current.
const FORM: &str = "1";

/// The version of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// Swagger 2.0: one document of everything.
    V2,
    /// OpenAPI 3.0: one document per group version.
    V3,
}

impl Spec {
    /// The protobuf form of a document, under its old name and the one that answers carry (kube-openapi `pkg/handler` and
    /// `pkg/handler3`).
    const fn protobuf(self) -> [&'static str; 2] {
        match self {
            Self::V2 => [
                "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            ],
            Self::V3 => [
                "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
                "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
            ],
        }
    }
}

/// Answers `/openapi/v2`, `/openapi/v3` and `/openapi/v3/...`. Documents are JSON or protobuf; the list of the v3 documents is
/// JSON, whatever the caller takes, as upstream's.
///
/// An address of a v3 document may carry the hash that the list gave it: the answer may then be kept for ever, and one that
/// carries the hash of an older document is sent to the new one's (KEP-2896).
pub(super) async fn serve(
    server: &Arc<Inner>,
    rest: &[&str],
    asked_hash: Option<&str>,
    headers: &HeaderMap,
) -> ApiResult<Response<Body>> {
    let registry = server.objects.registry();
    // Read first: what is made from a registry that changes meanwhile is then kept under the older revision, and dropped.
    let revision = registry.revision();
    let all = || {
        registry
            .groups()
            .into_iter()
            .flat_map(|(group, versions)| versions.into_iter().map(move |version| (group.clone(), version)))
    };
    let document = |name: &str, members: &[(String, String)], spec: Spec| {
        let make = || serde_json::to_vec(&document(registry, members, spec)).unwrap_or_default();
        server.documents.bytes(name, revision, make)
    };
    let member = match rest {
        ["v2"] => {
            let protobuf = takes_protobuf(headers, Spec::V2)?;
            let members: Vec<_> = all().collect();
            let (own, own_hash) = (document("openapi/v2", &members, Spec::V2), hash(registry, &members));
            let (bytes, hash) = merge::documents(server, own, own_hash.clone()).await;
            let bytes = match protobuf {
                false => bytes,
                true if hash == own_hash => {
                    let make = || binary::document(Spec::V2, &bytes);
                    server.documents.bytes("openapi/v2.protobuf", revision, make)
                }
                true => Bytes::from(binary::document(Spec::V2, &bytes)),
            };
            return Ok(tagged(headers, bytes, &hash, protobuf.then_some(Spec::V2)));
        }
        ["v3"] => {
            let everything: Vec<_> = all().collect();
            let mut index = index(registry, &everything);
            let others = merge::add_indexes(server, &mut index).await;
            let hash = self::hash(registry, &everything);
            let hash = if others { merge::hash_with(&hash, [index.to_string().as_bytes()]) } else { hash };
            return Ok(tagged(headers, Bytes::from(index.to_string()), &hash, None));
        }
        ["v3", "api", version] if registry.has_version("", version) => (String::new(), (*version).to_owned()),
        ["v3", "apis", group, version] if registry.has_version(group, version) => {
            ((*group).to_owned(), (*version).to_owned())
        }
        _ => return Err(Status::no_such_path().into()),
    };
    let protobuf = takes_protobuf(headers, Spec::V3)?;
    let members = std::slice::from_ref(&member);
    let hash = hash(registry, members);
    if let Some(asked) = asked_hash.filter(|asked| !asked.is_empty() && *asked != hash) {
        tracing::debug!(asked, hash, "a caller asks for an older document");
        return Ok(moved(&member, &hash));
    }
    let name = format!("openapi/v3/{}", root(&member.0, &member.1));
    let mut bytes = document(&name, members, Spec::V3);
    if protobuf {
        let json = bytes;
        bytes = server
            .documents
            .bytes(&format!("{name}.protobuf"), revision, || binary::document(Spec::V3, &json));
    }
    let mut response = tagged(headers, bytes, &hash, protobuf.then_some(Spec::V3));
    if asked_hash.is_some_and(|asked| !asked.is_empty()) {
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
        let in_a_year = server.objects.clock().now() + jiff::SignedDuration::from_hours(365 * 24);
        let in_a_year = in_a_year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(in_a_year) = HeaderValue::from_str(&in_a_year) {
            response.headers_mut().insert(header::EXPIRES, in_a_year);
        }
    }
    Ok(response)
}

/// Sends a caller to the address that a document has now.
fn moved(member: &(String, String), hash: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(address) = HeaderValue::from_str(&address(member, hash)) {
        response.headers_mut().insert(header::LOCATION, address);
    }
    response
}

/// Whether the answer is protobuf: the form that the caller likes best of those that there are, the first of equals.
///
/// # Errors
/// 406 when the caller takes none of them.
fn takes_protobuf(headers: &HeaderMap, spec: Spec) -> ApiResult<bool> {
    let mut ranges = negotiate::ranges(headers);
    if ranges.is_empty() {
        return Ok(false);
    }
    let weight = |range: &negotiate::MediaRange<'_>| range.parameter("q").parse::<f32>().unwrap_or(1.0);
    ranges.retain(|range| weight(range) > 0.0);
    // The sort keeps the order of equals.
    ranges.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    let form = ranges.iter().find_map(|range| match range.essence {
        "application/json" | "application/*" | "*/*" => Some(false),
        name if spec.protobuf().contains(&name) => Some(true),
        _ => None,
    });
    let message =
        format!("only the following media types are accepted: application/json, {}", spec.protobuf()[1]);
    form.ok_or_else(|| Status::failure(406, "NotAcceptable", message).into())
}

/// A document of JSON, or "not modified" if the caller has it already.
pub(super) fn tagged_json(headers: &HeaderMap, bytes: Bytes, hash: &str) -> Response<Body> {
    tagged(headers, bytes, hash, None)
}

/// The answer, in protobuf's form of a version or as JSON, or "not modified" if the caller has it already.
fn tagged(headers: &HeaderMap, bytes: Bytes, hash: &str, protobuf: Option<Spec>) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut response = if known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag) {
        let mut response = Response::new(Body::from(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        bytes_response(StatusCode::OK, bytes)
    };
    if let (Some(spec), StatusCode::OK) = (protobuf, response.status()) {
        let form = HeaderValue::from_static(spec.protobuf()[1]);
        response.headers_mut().insert(header::CONTENT_TYPE, form);
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// Where the documents are: `api/v1`, `apis/apps/v1`, each with the hash that its address carries.
fn index(registry: &Registry, members: &[(String, String)]) -> Value {
    let paths: Map<String, Value> = members
        .iter()
        .map(|member| {
            let url = address(member, &hash(registry, std::slice::from_ref(member)));
            (root(&member.0, &member.1), json!({ "serverRelativeURL": url }))
        })
        .collect();
    json!({ "paths": paths })
}

/// Where a document of the third version is, with its hash.
fn address(member: &(String, String), hash: &str) -> String {
    format!("/openapi/v3/{}?hash={hash}", root(&member.0, &member.1))
}

/// The path of a group version, without the first slash.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A hash of everything that a document of these group versions is made of. Built-in definitions are fixed for a version of
/// the server, so their names stand for them.
fn hash(registry: &Registry, members: &[(String, String)]) -> String {
    let mut digest = Sha256::new();
    digest.update(format!(
        "{FORM} {} {:?} {}\n",
        env!("CARGO_PKG_VERSION"),
        super::VERSION,
        cfg!(feature = "openapi-docs")
    ));
    for resource in members.iter().flat_map(|(group, version)| registry.resources(group, version)) {
        let def = &resource.def;
        digest.update(format!(
            "{} {} {} {:?} {:?} {} ",
            resource.api_version(),
            def.plural,
            def.kind,
            def.verbs,
            resource.subresources(),
            def.namespaced
        ));
        if !matches!(resource.version().schema, Type::Named(_)) {
            match &resource.version().structure {
                Some(structure) => digest.update(structure.source.to_string()),
                None => digest.update(format!("{:?}", resource.version().schema)),
            }
        }
    }
    super::discovery::hex(&digest.finalize())
}

/// The document of some group versions.
fn document(registry: &Registry, members: &[(String, String)], spec: Spec) -> Value {
    let mut schemas = Schemas::new(registry.catalog(), spec);
    let mut paths = Paths::new(spec);
    for (group, version) in members {
        schemas.begin(group, version);
        for resource in registry.resources(group, version) {
            paths.add(&resource, &mut schemas);
        }
    }
    let (major, minor) = super::VERSION;
    let info = json!({"title": "Kubernetes", "version": format!("v{major}.{minor}.0")});
    match spec {
        Spec::V2 => {
            json!({"swagger": "2.0", "info": info, "paths": paths.finish(), "definitions": schemas.finish()})
        }
        Spec::V3 => {
            let scheme = json!({"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}});
            json!({"openapi": "3.0.0", "info": info, "paths": paths.finish(), "components": {"schemas": schemas.finish(), "securitySchemes": scheme}})
        }
    }
}

/// The definition's name for a kind that brings no name of its own: the group's parts turned round, the version, the kind.
fn definition_name(resource: &Resource) -> String {
    let mut parts: Vec<&str> = resource.def.group.split('.').rev().collect();
    parts.extend([resource.version().name.as_str(), &resource.def.kind]);
    parts.join(".")
}
