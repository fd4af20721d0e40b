//! HTTP: the only place that knows paths, media types and the bytes of answers.

mod binary;
pub(crate) mod connect;
mod derived;
mod discovery;
mod gzip;
mod negotiate;
mod openapi;
mod proxy;
mod resource;
mod stream;
mod table;
mod touched;
pub(crate) mod tunnel;
mod upgrade;
mod watch;
mod write;
pub(crate) mod yaml;

use std::{fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use kcore::Status;
use serde_json::{Value, json};

pub(crate) use self::{discovery::Documents, gzip::compress};
use crate::{
    authn::UserInfo,
    body::Body,
    error::{ApiError, ApiResult},
    ownership,
    request::{Query, RequestInfo},
    schema::{Catalog, json as reader, protobuf},
    server::{BODY_BYTES_MAX, Inner},
    write::Warnings,
};

/// The Kubernetes version that the server says it is.
pub(crate) const VERSION: (&str, &str) = ("1", "37");

/// Finds what answers a request.
pub(crate) async fn route<B>(
    server: &Arc<Inner>,
    parts: &Parts,
    info: &RequestInfo,
    query: &Query,
    user: &Arc<UserInfo>,
    body: B,
) -> ApiResult<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: fmt::Display + Send,
{
    if let Some(remote) = server.aggregation.find(&server.objects, &info.path) {
        return remote.forward(server, parts, user, body).await;
    }
    if info.is_resource {
        let text = |name| {
            parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default()
        };
        let manager =
            ownership::manager(query.get("fieldManager").unwrap_or_default(), text(header::USER_AGENT));
        let request =
            resource::Request { server, parts, info, query, user, manager, warnings: Warnings::default() };
        return request.serve(body).await;
    }
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Err(Status::no_such_path().into());
    }
    server.customs.sync(&server.objects);
    let segments: Vec<&str> = info.path.split('/').filter(|part| !part.is_empty()).collect();
    match segments.as_slice() {
        [] => Ok(discovery::paths(&server.objects)),
        ["healthz" | "livez" | "readyz", rest @ ..] => {
            let kms = match server.objects.kms() {
                Some(encryption) => Some(encryption.check().await.is_ok()),
                None => None,
            };
            health(segments[0], rest, query, kms, *server.draining.borrow())
        }
        ["metrics"] => Ok(metrics(server)),
        ["version"] => Ok(json_response(StatusCode::OK, &version())),
        ["api" | "apis", ..] => discovery::serve(server, &segments, &parts.headers).await,
        [".well-known", "openid-configuration"] => {
            Ok(published(&server.issuer.configuration(), "application/json"))
        }
        ["openid", "v1", "jwks"] => Ok(published(&server.issuer.key_set(), "application/jwk-set+json")),
        ["openapi", rest @ ..] => openapi::serve(server, rest, query.get("hash"), &parts.headers).await,
        _ => Err(Status::no_such_path().into()),
    }
}

/// The server is healthy as soon as it answers, its store is opened before, unless a key management service is not well. It is
/// ready until it is about to end.
fn health(
    endpoint: &str,
    rest: &[&str],
    query: &Query,
    kms: Option<bool>,
    draining: bool,
) -> ApiResult<Response<Body>> {
    let mut checks = vec![("ping", true), ("etcd", true)];
    checks.extend(kms.map(|well| ("kms-providers", well)));
    if endpoint == "readyz" {
        checks.push(("shutdown", !draining));
    }
    if let [one] = rest {
        checks.retain(|(check, _)| check == one);
    }
    if checks.is_empty() || rest.len() > 1 {
        return Err(Status::no_such_path().into());
    }
    let well = checks.iter().all(|(_, well)| *well);
    let body = if well && !query.flag("verbose") {
        "ok".to_owned()
    } else {
        let line = |(check, well): &(&str, bool)| match well {
            true => format!("[+]{check} ok\n"),
            false => format!("[-]{check} failed: reason withheld\n"),
        };
        let lines: String = checks.iter().map(line).collect();
        format!("{lines}{endpoint} check {}\n", if well { "passed" } else { "failed" })
    };
    let mut response = Response::new(Body::from(body));
    if !well {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// What the issuer of service accounts' tokens says of itself, for everybody to keep for an hour (RFC 7517, section 8.5.1).
fn published(value: &Value, kind: &'static str) -> Response<Body> {
    let mut response = json_response(StatusCode::OK, value);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

/// The server's counters, for Prometheus.
fn metrics(server: &Arc<Inner>) -> Response<Body> {
    let snapshot = server.objects.snapshot();
    let resources = server.objects.registry().storage_resources();
    let mut counts: Vec<_> = resources
        .iter()
        .filter(|resource| resource.def.verbs != crate::registry::Verbs::CreateOnly)
        .map(|resource| {
            let count = snapshot.count(resource.table, kstore::Range::all());
            (resource.def.group.clone(), resource.def.plural.clone(), count)
        })
        .collect();
    counts.sort();
    let version = version()["gitVersion"].as_str().unwrap_or_default().to_owned();
    let mut text = server.metrics.text(&counts, &version);
    server.fairness.write_metrics(&mut text);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn version() -> Value {
    let (major, minor) = VERSION;
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0+kplane-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, platform_arch()),
        "emulationMajor": major, "emulationMinor": minor, "minCompatibilityMajor": major, "minCompatibilityMinor": "36",
    })
}

fn platform_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An answer with a JSON body.
pub(crate) fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    bytes_response(code, kcore::json::to_vec(value))
}

/// What is answered to a path that nothing serves: plain text, from which clients make their own words, as upstream.
pub(crate) fn unknown_path() -> Response<Body> {
    let mut response = Response::new(Body::from("404 page not found\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// An answer in YAML.
pub(crate) fn yaml_response(code: StatusCode, value: &Value) -> ApiResult<Response<Body>> {
    let text = serde_saphyr::to_string(value).map_err(Status::internal)?;
    let mut response = bytes_response(code, text);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
    Ok(response)
}

/// An answer with JSON that is encoded already.
pub(crate) fn bytes_response(code: StatusCode, json: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer that is a `Status`.
pub(crate) fn status_response(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = bytes_response(code, serde_json::to_vec(status).unwrap_or_default());
    let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if wait > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait));
    }
    response
}

/// Adds a `Warning` header (RFC 7234, code 299) for each text.
pub(crate) fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Reads a whole body, up to [`BODY_BYTES_MAX`].
pub(crate) async fn read_body<B>(body: B) -> ApiResult<Bytes>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: fmt::Display + Send,
{
    let too_large =
        || ApiError::from(Status::too_large(format!("Request entity too large: limit is {BODY_BYTES_MAX}")));
    let mut body = std::pin::pin!(body);
    let mut first: Option<Bytes> = None;
    let mut all = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Status::bad_request(format!("unable to read the request's body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length > BODY_BYTES_MAX {
            return Err(too_large());
        }
        // Most bodies come in one piece, which needs no copy.
        match first.take() {
            None if all.is_empty() => first = Some(data),
            None => all.extend_from_slice(&data),
            Some(before) => {
                all.extend_from_slice(&before);
                all.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| all.freeze()))
}

/// The media type of a body, without parameters; JSON if it is not said.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_lowercase();
    if essence.is_empty() { "application/json".to_owned() } else { essence }
}

/// The fields that stand twice in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// The paths of those of a JSON document.
    Paths(Vec<String>),
    /// What is told of those of a YAML document, line by line.
    Lines(Vec<String>),
}

impl Duplicates {
    /// None.
    pub(crate) const NONE: Self = Self::Paths(Vec::new());

    /// What is told of them: each by itself as a warning; those of YAML together where the request is refused.
    pub(crate) fn told(&self, refused: bool) -> Vec<String> {
        match self {
            Self::Paths(paths) => paths.iter().map(|path| format!("duplicate field {path:?}")).collect(),
            Self::Lines(lines) if refused && !lines.is_empty() => vec![yaml::faults(lines)],
            Self::Lines(lines) => lines.clone(),
        }
    }
}

/// Decodes a body of JSON, YAML or protobuf.
pub(crate) fn decode(catalog: &Catalog, media_type: &str, bytes: &[u8]) -> ApiResult<(Value, Duplicates)> {
    match media_type {
        "application/json" | "*/*" => {
            let read = reader::parse(bytes).map_err(|error| {
                Status::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
            })?;
            Ok((read.0, Duplicates::Paths(read.1)))
        }
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let document = yaml::parse(bytes)
                .map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))?;
            Ok((document.value, Duplicates::Lines(document.twice)))
        }
        "application/vnd.kubernetes.protobuf" => {
            let object = protobuf::decode(catalog, bytes).map_err(|error| match error {
                protobuf::ProtobufError::Unknown(_) => Status::unsupported_media_type(error.to_string()),
                error => Status::bad_request(error.to_string()),
            })?;
            Ok((object, Duplicates::NONE))
        }
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format ({other}) - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        ))
        .into()),
    }
}
