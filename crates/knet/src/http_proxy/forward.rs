//! One request, from its head to the head of its answer.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
    uri::PathAndQuery,
};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use tokio::time::timeout;

use super::{
    ENDPOINTS_WAIT_MAX, TRIES_MAX, URI_BYTES_MAX,
    balance::{pick_backend, pick_endpoint},
    body::ProxyBody,
    filter::{self, Filter},
    headers::{self, Forwarded},
    listen::Shared,
    metrics::OfRule,
    mirror,
    pace::Pace,
    path::{self, BadPath, NormalPath},
    pool::{Failure, Lease},
    rule::{Action, Backend, BackendProtocol, Backends, Rule},
    table::{Asked, RouteTable},
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

/// An answer of the proxy itself.
fn reply(status: StatusCode) -> Response<ProxyBody> {
    let text = format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(ProxyBody::own(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
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
    if parts.uri.path_and_query().map_or(0, |target| target.as_str().len()) > URI_BYTES_MAX {
        return reply(StatusCode::URI_TOO_LONG);
    }
    let Some((host, name)) = host(&parts).and_then(|host| host_name(&host).map(|name| (host, name))) else {
        return reply(StatusCode::BAD_REQUEST);
    };
    if let Some(asked) = &arrival.name
        && !shared.table.borrow().same_listener(arrival.port, asked, &name)
    {
        return reply(StatusCode::MISDIRECTED_REQUEST);
    }
    let decoded = if shared.options.keeps_paths {
        None
    } else {
        match normalize(&mut parts) {
            Ok(decoded) => decoded,
            Err(error) => {
                tracing::debug!(%error, client = %arrival.client, "a path is refused");
                return reply(StatusCode::BAD_REQUEST);
            }
        }
    };
    let (rule, is_same) = {
        let table = shared.table.borrow();
        let asked = Asked::of(&parts, &name);
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
        (rule.cloned(), is_same)
    };
    if !is_same {
        return reply(StatusCode::BAD_REQUEST);
    }
    let Some(rule) = rule else { return reply(StatusCode::NOT_FOUND) };
    let of_rule = OfRule(Arc::clone(&rule.name));
    let mut response = act(shared, arrival, &rule, host, &name, parts, body).await;
    response.extensions_mut().insert(of_rule);
    response
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

/// Does what a rule says.
async fn act(
    shared: &Shared,
    arrival: &Arrival,
    rule: &Rule,
    host: HeaderValue,
    name: &str,
    parts: Parts,
    body: Incoming,
) -> Response<ProxyBody> {
    match &rule.action {
        Action::Redirect(redirect) => {
            let location =
                redirect.location(&parts.uri, &rule.matches.path, arrival.scheme(), name, arrival.port);
            let Ok(location) = HeaderValue::from_str(&location) else {
                return reply(StatusCode::INTERNAL_SERVER_ERROR);
            };
            let mut response = reply(redirect.status);
            response.headers_mut().insert(header::LOCATION, location);
            filter::change_response(&rule.filters, response.headers_mut());
            response
        }
        Action::Forward(backends) => forward(shared, arrival, rule, backends, host, parts, body).await,
    }
}

fn is_grpc(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
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
    if !address(&mut parts, backend.protocol) {
        return reply(StatusCode::BAD_REQUEST);
    }
    let trying = Trying { shared, rule, backend, tried: Vec::new(), waited: false };
    let sent = limited(rule.timeouts.request, trying.run(parts, body)).await;
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
pub(super) fn address(parts: &mut Parts, protocol: BackendProtocol) -> bool {
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.extensions.clear();
    match protocol {
        BackendProtocol::Http1 => {
            parts.version = Version::HTTP_11;
            parts.uri = Uri::from(target);
            true
        }
        BackendProtocol::Http2 => {
            parts.version = Version::HTTP_2;
            let Some(host) = parts.headers.remove(header::HOST) else { return false };
            let uri = Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(target).build();
            uri.is_ok_and(|uri| {
                parts.uri = uri;
                true
            })
        }
    }
}

/// A time-out of the rule has passed.
#[derive(Debug, thiserror::Error)]
#[error("the time-out of the rule has passed")]
struct TimedOut;

async fn limited<T>(limit: Option<Duration>, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match limit {
        Some(limit) => {
            let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, TimedOut);
            timeout(limit, work).await.map_err(timed_out)?
        }
        None => work.await,
    }
}

/// One request that is tried on endpoint after endpoint.
struct Trying<'a> {
    shared: &'a Shared,
    rule: &'a Rule,
    backend: &'a Backend,
    tried: Vec<SocketAddr>,
    /// Whether it has waited for other endpoints.
    waited: bool,
}

impl Trying<'_> {
    async fn run(mut self, parts: Parts, body: ProxyBody) -> io::Result<(Response<Incoming>, Lease)> {
        // What is idempotent and has no body can be sent again, whatever became of it (RFC 9110, section 9.2.2).
        let idempotent =
            parts.method.is_idempotent() && parts.method != Method::TRACE && body.is_end_stream();
        let copy = idempotent.then(|| parts.clone());
        let mut request = Request::from_parts(parts, body);
        let mut error = io::Error::other("there is no endpoint");
        for _ in 0..TRIES_MAX {
            let Some(endpoint) = self.next_endpoint().await else { break };
            let send = async { Ok(self.shared.pool.send(endpoint, self.backend.protocol, request).await) };
            // A try that has timed out is not repeated: the request may be what takes so long.
            let failure = match limited(self.rule.timeouts.backend_request, send).await? {
                Ok(answered) => return Ok(answered),
                Err(failure) => failure,
            };
            let Failure { request: unsent, reused, error: why } = failure;
            tracing::debug!(%endpoint, error = %why, "an endpoint failed");
            self.shared.metrics.failures.fetch_add(1, Ordering::Relaxed);
            error = why;
            if !reused {
                self.tried.push(endpoint);
            }
            request = match (unsent, &copy) {
                (Some(unsent), _) => *unsent,
                (None, Some(parts)) => Request::from_parts(parts.clone(), ProxyBody::empty()),
                (None, None) => break,
            };
        }
        Err(error)
    }

    fn pick(&self, endpoints: &[SocketAddr]) -> Option<SocketAddr> {
        let load = |endpoint| self.shared.pool.load(endpoint, self.backend.protocol);
        pick_endpoint(endpoints, &self.tried, load, rand::random())
    }

    /// An endpoint that was not tried: of those of the moment, since some that the rule had may be gone, and others have come.
    async fn next_endpoint(&mut self) -> Option<SocketAddr> {
        if self.tried.is_empty() {
            return self.pick(self.backend.endpoints.as_deref().unwrap_or_default());
        }
        let now = |table: &RouteTable| self.pick(&endpoints_now(table, self.rule, self.backend));
        let mut tables = self.shared.table.subscribe();
        let found = now(&tables.borrow_and_update());
        if found.is_some() || self.waited {
            return found;
        }
        let table = timeout(ENDPOINTS_WAIT_MAX, tables.wait_for(|table| now(table).is_some())).await;
        let found = table.ok().and_then(Result::ok).and_then(|table| now(&table));
        self.waited = true;
        found
    }
}

/// The endpoints that the same backend of the same rule has in a table.
fn endpoints_now(table: &RouteTable, rule: &Rule, backend: &Backend) -> Arc<[SocketAddr]> {
    let rules = table.rules().filter(|other| other.name == rule.name);
    let backends = rules.flat_map(|rule| match &rule.action {
        Action::Forward(backends) => backends.as_slice(),
        Action::Redirect(_) => &[],
    });
    let mut same = backends.filter(|other| other.name == backend.name);
    same.find_map(|backend| backend.endpoints.clone()).unwrap_or_else(|| Arc::from([]))
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
