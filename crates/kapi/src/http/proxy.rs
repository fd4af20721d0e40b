//! The subresource `proxy`: HTTP to a pod, an endpoint of a service or a node's agent, through the server (API concepts,
//! "Accessing Services"). Links in what comes back lead through the server, too. A connection that both ends agree to speak something else
//! on, such as a WebSocket, is handed on as bytes.

mod links;

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, Method, Request as HttpRequest, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kcore::{Status, Stored};
use kstore::Range;
use rand::Rng as _;
use serde_json::Value;
use tokio::net::TcpStream;

use self::links::Links;
use super::{connect, resource::Request, tunnel};
use crate::{
    body::Body,
    error::{ApiError, ApiResult},
    node::{NodeConnection, NodeTarget},
    objects::stored,
    outbound,
    registry::Resource,
};

/// Whether a request goes through the server to somebody else.
pub(super) fn is_proxied(resource: &Resource, subresource: &str) -> bool {
    let def = &resource.def;
    subresource == "proxy"
        && def.group.is_empty()
        && ["nodes", "pods", "services"].contains(&def.plural.as_str())
}

/// What is asked for: `[scheme:]name[:port]`.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Asked<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let known = ["", "http", "https"].contains(&scheme);
        (known && !name.is_empty()).then_some(Self { https: scheme == "https", name, port })
    }
}

fn unavailable(why: impl std::fmt::Display) -> ApiError {
    Status::failure(503, "ServiceUnavailable", format!("error trying to reach service: {why}")).into()
}

impl Request<'_> {
    /// Hands the request on and the answer back.
    pub(super) async fn proxy<B>(&self, resource: &Resource, body: B) -> ApiResult<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let invalid = || {
            Status::bad_request(format!(
                "invalid {} request {:?}",
                resource.def.kind.to_lowercase(),
                self.info.name
            ))
        };
        let asked = Asked::parse(&self.info.name).ok_or_else(invalid)?;
        if let Some(moved) = self.moved_to_root() {
            return Ok(moved);
        }
        let (stream, backend) = self.dial(resource, &asked).await?;
        let query = self.parts.uri.query().map_or_else(String::new, |query| format!("?{query}"));
        let path = connect::path(self.info);
        let mut request = HttpRequest::builder().method(self.parts.method.clone()).uri(if path.is_empty() {
            format!("/{query}")
        } else {
            format!("{path}{query}")
        });
        if let Some(headers) = request.headers_mut() {
            let given = &self.parts.headers;
            let handed_on = |name: &HeaderName| !is_dropped(name) && !tunnel::is_for_neighbour(given, name);
            for (name, value) in given.iter().filter(|(name, _)| handed_on(name)) {
                headers.append(name.clone(), value.clone());
            }
            // The other server is told whom the caller asked, so that it can answer with links that lead there.
            if let Some(host) =
                given.get(header::HOST).cloned().or_else(|| HeaderValue::from_str(&backend).ok())
            {
                headers.insert(header::HOST, host);
            }
            if let Ok(path) = HeaderValue::from_str(self.parts.uri.path()) {
                headers.insert("x-forwarded-uri", path);
            }
            tunnel::ask(&self.parts.headers, headers);
        }
        let body = http_body_util::BodyExt::map_err(body, |error| std::io::Error::other(error.to_string()));
        let request = request.body(body.boxed_unsync()).map_err(unavailable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unavailable)?;
        // The task ends with the connection, which ends when the answer has been read or dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a proxied connection ended");
            }
        });
        let answer = sender.send_request(request).await.map_err(unavailable)?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return tunnel::open(self.parts, answer, ());
        }
        let (mut parts, body) = answer.into_parts();
        let chunks = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
        let body = Body::stream(chunks.filter_map(|chunk| async { chunk.ok() }));
        let host =
            self.parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let links = Links { prefix: self.proxy_path().to_owned(), backend, host: host.to_owned() };
        let mut response = Response::new(links.mend(&mut parts, body).await);
        *response.status_mut() = parts.status;
        for (name, value) in parts.headers.iter().filter(|(name, _)| !is_dropped(name)) {
            response.headers_mut().append(name.clone(), value.clone());
        }
        Ok(response)
    }

    /// The path up to the word `proxy`: `/api/v1/namespaces/N/pods/P/proxy` or `/api/v1/nodes/N/proxy`.
    fn proxy_path(&self) -> &str {
        let path = self.parts.uri.path();
        let segments = if self.info.namespace.is_empty() { 5 } else { 7 };
        let end = path.match_indices('/').nth(segments).map_or(path.len(), |(end, _)| end);
        &path[..end]
    }

    /// Where the other server's own root is: relative links of its page need the slash at the end.
    fn moved_to_root(&self) -> Option<Response<Body>> {
        let (path, reads) = (self.parts.uri.path(), [Method::GET, Method::HEAD].contains(&self.parts.method));
        if !reads || path.len() > self.proxy_path().len() || self.parts.headers.contains_key(header::UPGRADE)
        {
            return None;
        }
        let query = self.parts.uri.query().map_or_else(String::new, |query| format!("?{query}"));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let location = HeaderValue::from_str(&format!("{path}/{query}")).ok()?;
        response.headers_mut().insert(header::LOCATION, location);
        Some(response)
    }

    async fn dial(
        &self,
        resource: &Resource,
        asked: &Asked<'_>,
    ) -> ApiResult<(Box<dyn NodeConnection>, String)> {
        let def = &resource.def;
        let found = self.server.objects.get(resource, self.namespace(resource), asked.name);
        let object = found.ok_or_else(|| Status::not_found(&def.group, &def.plural, asked.name))?;
        if def.plural == "nodes" {
            let dialer =
                self.server.nodes.as_ref().ok_or_else(|| unavailable("nodes can't be reached from here"))?;
            let node = NodeTarget::of(asked.name, Some(&object.value().map_err(Status::internal)?));
            return Ok((dialer.dial(&node).await.map_err(unavailable)?, asked.name.to_owned()));
        }
        let value = object.value().map_err(Status::internal)?;
        let address = match def.plural.as_str() {
            "pods" => pod_address(&value, asked)?,
            _ => self.endpoint(&object, &value, asked)?,
        };
        let ip = address.ip();
        if !outbound::may_be_reached(ip, self.server.addresses.loopback) {
            return Err(Status::bad_request("address not allowed").into());
        }
        let stream = TcpStream::connect(address).await.map_err(unavailable)?;
        let stream: Box<dyn NodeConnection> = if asked.https {
            outbound::unverified(stream, ip).await.map_err(unavailable)?
        } else {
            Box::new(stream)
        };
        Ok((stream, address.to_string()))
    }

    /// One of the ready endpoints of a service.
    fn endpoint(&self, service: &Stored, value: &Value, asked: &Asked<'_>) -> ApiResult<SocketAddr> {
        let name = &*service.header().name;
        let ports: Vec<&Value> = value["spec"]["ports"].as_array().into_iter().flatten().collect();
        let wanted = |port: &&&Value| {
            asked.port.is_empty()
                || port["name"] == *asked.port
                || port["port"].as_u64() == asked.port.parse().ok()
        };
        let none = || unavailable_service(name);
        let port = ports.iter().find(wanted).ok_or_else(|| no_port(name, asked.port))?;
        let port_name = port["name"].as_str().unwrap_or_default();
        let registry = self.server.objects.registry();
        let slices = registry.find("discovery.k8s.io", "v1", "endpointslices").ok_or_else(none)?;
        let snapshot = self.server.objects.snapshot();
        let range = Range::prefix(Bytes::from(format!("{}/", service.header().namespace)));
        let mut addresses = Vec::new();
        for entry in snapshot.range(slices.table, range) {
            let slice = stored(&slices.def, &entry);
            if slice.header().labels.get("kubernetes.io/service-name") != Some(name) {
                continue;
            }
            let slice = slice.value().map_err(Status::internal)?;
            let ports = slice["ports"].as_array().into_iter().flatten();
            let numbers = ports.filter(|port| port["name"].as_str().unwrap_or_default() == port_name);
            let numbers: Vec<u16> =
                numbers.filter_map(|port| u16::try_from(port["port"].as_u64()?).ok()).collect();
            let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] != false;
            for endpoint in slice["endpoints"].as_array().into_iter().flatten().filter(ready) {
                let texts = endpoint["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let ips = texts.filter_map(|text| text.parse::<IpAddr>().ok()).take(1);
                addresses
                    .extend(ips.flat_map(|ip| numbers.iter().map(move |port| SocketAddr::new(ip, *port))));
            }
        }
        if addresses.is_empty() {
            return Err(none());
        }
        Ok(addresses[rand::rng().random_range(0..addresses.len())])
    }
}

fn unavailable_service(name: &str) -> ApiError {
    Status::failure(503, "ServiceUnavailable", format!("no endpoints available for service {name:?}")).into()
}

fn no_port(name: &str, port: &str) -> ApiError {
    Status::failure(503, "ServiceUnavailable", format!("no service port {port:?} found for service {name:?}"))
        .into()
}

/// Where a pod listens: on the port that is asked for, or else on the first that a container names.
fn pod_address(pod: &Value, asked: &Asked<'_>) -> ApiResult<SocketAddr> {
    let ip = pod["status"]["podIP"].as_str().and_then(|text| text.parse().ok());
    let ip: IpAddr = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let first = containers.into_iter().find_map(|container| container["ports"][0]["containerPort"].as_u64());
    let port = if asked.port.is_empty() {
        first.and_then(|port| u16::try_from(port).ok()).unwrap_or(80)
    } else {
        asked.port.parse().map_err(|_| Status::bad_request(format!("invalid port {:?}", asked.port)))?
    };
    Ok(SocketAddr::new(ip, port))
}

/// Headers that belong to one connection, the caller's credentials, which are the server's alone, and what the other server
/// would allow to pages of other places, which it can't say for this server.
fn is_dropped(name: &HeaderName) -> bool {
    ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "authorization", "host"]
        .contains(&name.as_str())
        || name.as_str().starts_with("access-control-allow-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_carry_a_scheme_and_a_port() {
        let asked = |https, name, port| Some(Asked { https, name, port });
        for (text, expected) in [
            ("web", asked(false, "web", "")),
            ("web:8080", asked(false, "web", "8080")),
            ("https:web:", asked(true, "web", "")),
            ("http:web:http", asked(false, "web", "http")),
            ("ftp:web:1", None),
            ("a:b:c:d", None),
            ("", None),
        ] {
            assert_eq!(Asked::parse(text), expected, "{text}");
        }
    }
}
