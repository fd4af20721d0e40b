//! One request, from its head to the head of its answer.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version, header, request::Parts, uri::PathAndQuery,
};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use tokio::time::timeout;

use super::{
    URI_BYTES_MAX,
    balance::pick_backend,
    body::ProxyBody,
    filter::{self, Filter, Redirect},
    headers::{self, Forwarded},
    listen::Shared,
    metrics::OfRule,
    mirror,
    pace::Pace,
    path::{self, BadPath, NormalPath},
    pool::Lease,
    rule::{Action, Backend, BackendProtocol, Backends, Rule},
    table::Asked,
    trying::{TimedOut, Trying, timed_out},
    upgrade,
};

/// How a request came.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) port: u16,
    pub(super) client: SocketAddr,
    pub(super) secure: bool,
    /// The name that the client asked for when it made the connection, in lower case.
    pub(super) name: Option<Arc<str>>,
}

impl Arrival {
    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Marks an answer of the proxy itself.
#[derive(Clone, Copy)]
struct Own;

/// Marks an error of the proxy itself that is told in gRPC: what it is in HTTP, and the `grpc-status`.
#[derive(Clone, Copy, Debug)]
pub(super) struct InGrpc(pub(super) StatusCode, pub(super) u8);

/// An answer of the proxy itself.
fn reply(status: StatusCode) -> Response<ProxyBody> {
    let text = format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(ProxyBody::own(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.extensions_mut().insert(Own);
    response
}

/// What a client of gRPC is told instead of an HTTP status that is an error: trailers alone, in place of the head ("gRPC over HTTP2",
/// Responses). The codes are those of gRPC's "HTTP to gRPC Status Code Mapping", so no route is `UNIMPLEMENTED`; what has no
/// valid backend is `UNAVAILABLE` (the Gateway API's `GRPCRouteRule.backendRefs`).
fn in_grpc(mut response: Response<ProxyBody>) -> Response<ProxyBody> {
    let status = response.status();
    if response.extensions_mut().remove::<Own>().is_none() || status.as_u16() < 400 {
        return response;
    }
    let code: u8 = match status.as_u16() {
        400 | 414 => 13,
        404 => 12,
        429 | 500 | 502..=504 => 14,
        _ => 2,
    };
    *response.body_mut() = ProxyBody::empty();
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.remove(header::CONNECTION);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    let why = HeaderValue::from_static(status.canonical_reason().unwrap_or_default());
    headers.insert("grpc-message", why);
    response.extensions_mut().insert(InGrpc(status, code));
    response
}

/// The host that is asked for: of the target if it has one, else of the one `Host` header (RFC 9112, section 3.2).
fn host(parts: &Parts) -> Option<HeaderValue> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let named = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => named.cloned(),
    }
}

/// The name in a `Host` header, in lower case, without the port.
fn host_name(host: &HeaderValue) -> Option<String> {
    let text = host.to_str().ok()?;
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => text,
    };
    (!name.is_empty() && !name.contains(['@', '/', '?', '#'])).then(|| name.to_ascii_lowercase())
}

/// Answers a request.
pub(super) async fn answer(
    shared: &Shared,
    arrival: &Arrival,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let (mut parts, body) = request.into_parts();
    let is_grpc = is_grpc(&parts);
    let response = match find(shared, arrival, &mut parts) {
        Err(status) => reply(status),
        Ok(Found { rule, host, name }) => {
            let mut response = match &rule.action {
                Action::Redirect(to) => redirect(to, &rule, arrival, &name, &parts),
                Action::Forward(backends) => {
                    forward(shared, arrival, &rule, backends, host, parts, body).await
                }
            };
            response.extensions_mut().insert(OfRule(Arc::clone(&rule.name)));
            response
        }
    };
    if is_grpc { in_grpc(response) } else { response }
}

/// What a request is for.
struct Found {
    rule: Arc<Rule>,
    host: HeaderValue,
    /// The host's name, in lower case.
    name: String,
}

/// Finds the rule for a request, whose path is brought into its one form; or the status of the answer that there is none.
fn find(shared: &Shared, arrival: &Arrival, parts: &mut Parts) -> Result<Found, StatusCode> {
    if parts.uri.path_and_query().map_or(0, |target| target.as_str().len()) > URI_BYTES_MAX {
        return Err(StatusCode::URI_TOO_LONG);
    }
    let Some((host, name)) = host(parts).and_then(|host| host_name(&host).map(|name| (host, name))) else {
        return Err(StatusCode::BAD_REQUEST);
    };
    if let Some(asked) = &arrival.name
        && !shared.table.borrow().same_listener(arrival.port, asked, &name)
    {
        return Err(StatusCode::MISDIRECTED_REQUEST);
    }
    let decoded = if shared.options.keeps_paths {
        None
    } else {
        normalize(parts).map_err(|error| {
            tracing::debug!(%error, client = %arrival.client, "a path is refused");
            StatusCode::BAD_REQUEST
        })?
    };
    let table = shared.table.borrow();
    let asked = Asked::of(parts, &name);
    let rule = table.select(arrival.port, &asked);
    // With its slashes decoded it could be for a rule that it is to pass by.
    let is_same = decoded.as_deref().is_none_or(|path| {
        let other = table.select(arrival.port, &Asked { path, ..asked });
        match (rule, other) {
            (Some(rule), Some(other)) => Arc::ptr_eq(rule, other),
            (None, None) => true,
            _ => false,
        }
    });
    if !is_same {
        return Err(StatusCode::BAD_REQUEST);
    }
    let rule = Arc::clone(rule.ok_or(StatusCode::NOT_FOUND)?);
    drop(table);
    Ok(Found { rule, host, name })
}

/// Brings the path into its one form; gives the one that it has when slashes are decoded, where that is another one.
fn normalize(parts: &mut Parts) -> Result<Option<String>, BadPath> {
    let NormalPath { path, decoded } = path::normal(parts.uri.path())?;
    if let Cow::Owned(path) = path {
        let target = match parts.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(target.parse().map_err(|_| BadPath::Encoding)?);
        parts.uri = Uri::from_parts(uri).map_err(|_| BadPath::Encoding)?;
    }
    Ok(decoded)
}

/// Tells the client where to ask instead.
fn redirect(
    redirect: &Redirect,
    rule: &Rule,
    arrival: &Arrival,
    name: &str,
    parts: &Parts,
) -> Response<ProxyBody> {
    let location = redirect.location(&parts.uri, &rule.matches.path, arrival.scheme(), name, arrival.port);
    let Ok(location) = HeaderValue::from_str(&location) else {
        return reply(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = reply(redirect.status);
    response.headers_mut().insert(header::LOCATION, location);
    filter::change_response(&rule.filters, response.headers_mut());
    response
}

fn is_grpc(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    // What browsers speak is "application/grpc-web".
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    parts.version == Version::HTTP_2
        && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

async fn forward(
    shared: &Shared,
    arrival: &Arrival,
    rule: &Rule,
    backends: &Backends,
    host: HeaderValue,
    mut parts: Parts,
    body: Incoming,
) -> Response<ProxyBody> {
    let Some(backend) = pick_backend(backends, rand::random()) else {
        return reply(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let Some(endpoints) = &backend.endpoints else { return reply(StatusCode::INTERNAL_SERVER_ERROR) };
    if endpoints.is_empty() {
        return reply(StatusCode::SERVICE_UNAVAILABLE);
    }
    let client = parts.extensions.remove::<OnUpgrade>();
    let upgrade = headers::upgrade(&parts.headers)
        .filter(|_| backend.protocol == BackendProtocol::Http1 && parts.version == Version::HTTP_11);
    headers::remove_for_neighbours(&mut parts.headers);
    headers::join_cookies(&mut parts.headers);
    let forwarded =
        Forwarded { client: arrival.client.ip(), host: &host, scheme: arrival.scheme(), port: arrival.port };
    forwarded.tell(&mut parts.headers, shared.options.trusts_forwarded);
    parts.headers.insert(header::HOST, host);
    filter::change_request(&rule.filters, &mut parts, &rule.matches.path);
    filter::change_request(&backend.filters, &mut parts, &rule.matches.path);
    if let Some(protocol) = &upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
    }
    let late = Arc::new(AtomicBool::new(false));
    let mut body = ProxyBody::passing(body);
    // A stream of gRPC may be silent for as long as it likes; whether its client is there is found by pings.
    if !is_grpc(&parts) && !body.is_end_stream() {
        body = body.paced(Pace::new(Arc::clone(&late)));
    }
    if upgrade.is_none() {
        for filter in rule.filters.iter().chain(&backend.filters) {
            if let Filter::Mirror(mirror) = filter {
                mirror::send(shared, mirror, &parts, &mut body);
            }
        }
    }
    if !address(&mut parts, backend) {
        return reply(StatusCode::BAD_REQUEST);
    }
    let sent = Trying::new(shared, rule, backend).run(parts, body);
    let sent = match rule.timeouts.request {
        None => sent.await,
        Some(limit) => timeout(limit, Box::pin(sent)).await.unwrap_or_else(|_| Err(timed_out())),
    };
    let (response, lease) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            tracing::debug!(rule = %rule.name, backend = %backend.name, %error, "a backend failed");
            let timed_out = error.kind() == io::ErrorKind::TimedOut
                && error.get_ref().is_some_and(|e| e.is::<TimedOut>());
            if late.load(Ordering::Relaxed) {
                let mut response = reply(StatusCode::REQUEST_TIMEOUT);
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                return response;
            }
            return reply(if timed_out { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY });
        }
    };
    finish(shared, rule, backend, response, lease, upgrade.and(client))
}

/// The answer of a backend as the client gets it.
fn finish(
    shared: &Shared,
    rule: &Rule,
    backend: &Backend,
    response: Response<Incoming>,
    lease: Lease,
    client: Option<OnUpgrade>,
) -> Response<ProxyBody> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else { return reply(StatusCode::BAD_GATEWAY) };
        return match Arc::clone(&shared.tunnels).try_acquire_owned() {
            Ok(permit) => upgrade::join(client, response, lease, permit, shared.stop.clone()),
            Err(_) => reply(StatusCode::SERVICE_UNAVAILABLE),
        };
    }
    let (mut parts, body) = response.into_parts();
    headers::remove_for_neighbours(&mut parts.headers);
    filter::change_response(&backend.filters, &mut parts.headers);
    filter::change_response(&rule.filters, &mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Response::from_parts(parts, ProxyBody::passing(body).keeping(Box::new(lease)))
}

/// Writes the target as the backend's protocol has it. `false` when it can't be written.
pub(super) fn address(parts: &mut Parts, backend: &Backend) -> bool {
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.extensions.clear();
    match backend.protocol {
        BackendProtocol::Http1 => {
            parts.version = Version::HTTP_11;
            parts.uri = Uri::from(target);
            true
        }
        BackendProtocol::Http2 => {
            parts.version = Version::HTTP_2;
            let Some(host) = parts.headers.remove(header::HOST) else { return false };
            let scheme = if backend.tls.is_some() { "https" } else { "http" };
            let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(target).build();
            uri.is_ok_and(|uri| {
                parts.uri = uri;
                true
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read() {
        for (text, name) in [
            ("Example.com", Some("example.com")),
            ("example.com:8080", Some("example.com")),
            ("[::1]:80", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("a@b", None),
            (":80", None),
            ("", None),
        ] {
            assert_eq!(host_name(&HeaderValue::from_str(text).unwrap()).as_deref(), name, "{text}");
        }
    }
}
