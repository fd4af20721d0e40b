//! Turning a request into a WebSocket or a SPDY connection.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::{Failure, KubeletBody, text};

/// A WebSocket to the client.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;
/// Bytes to and from the client.
pub(super) type Connection = TokioIo<Upgraded>;

const SPDY: &str = "SPDY/3.1";
const SPDY_PROTOCOLS: &str = "x-stream-protocol-version";
const SPDY_ACCEPTED: &str = "x-accepted-stream-protocol-versions";

/// What is spoken here, the best first.
pub(super) struct Protocols {
    /// Subprotocols of WebSocket; a client that names none gets the empty one.
    pub(super) websocket: &'static [&'static str],
    /// What streams of SPDY are for.
    pub(super) spdy: &'static [&'static str],
}

/// A request that is going to be another kind of connection, and the protocol that was agreed on.
pub(super) struct Upgrade {
    request: Request<Incoming>,
    /// The key of a WebSocket; `None` for SPDY.
    key: Option<String>,
    protocol: &'static str,
}

/// What became of a connection.
pub(super) enum Switched {
    WebSocket(Box<Socket>),
    Spdy(Connection),
}

/// The values of a header that may be given several times, or once with commas.
fn values(headers: &HeaderMap, name: impl header::AsHeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty())
}

impl Upgrade {
    /// Checks the request.
    pub(super) fn check(request: Request<Incoming>, protocols: &Protocols) -> Result<Self, Failure> {
        let headers = request.headers();
        let wanted = |name: &str| {
            values(headers, header::UPGRADE).any(|value| value.eq_ignore_ascii_case(name))
                && values(headers, header::CONNECTION).any(|value| value.eq_ignore_ascii_case("upgrade"))
        };
        let (key, protocol) = if wanted("websocket") {
            let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
            let key = key.ok_or_else(|| Failure::bad("unable to upgrade: Sec-WebSocket-Key is missing"))?;
            (Some(key.to_owned()), subprotocol(headers, protocols.websocket)?)
        } else if wanted(SPDY) {
            (None, stream_protocol(headers, protocols.spdy)?)
        } else {
            return Err(Failure::bad("unable to upgrade: missing upgrade headers in request"));
        };
        Ok(Self { request, key, protocol })
    }

    pub(super) fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// The answer, and what becomes the new connection once it has been sent.
    pub(super) fn accept(
        self,
    ) -> Result<(Response<KubeletBody>, impl Future<Output = Option<Switched>>), Failure> {
        let mut response = text("");
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let protocol = HeaderValue::from_static(self.protocol);
        if let Some(key) = &self.key {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            if !self.protocol.is_empty() {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
            }
            let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
            let accept = accept.map_err(|_| Failure::bad("unable to upgrade"))?;
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        } else {
            headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
            headers.insert(SPDY_PROTOCOLS, protocol);
        }
        let Self { request, key, .. } = self;
        let upgraded = async move {
            let upgraded = TokioIo::new(hyper::upgrade::on(request).await.ok()?);
            if key.is_none() {
                return Some(Switched::Spdy(upgraded));
            }
            let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
            Some(Switched::WebSocket(Box::new(socket)))
        };
        Ok((response, upgraded))
    }
}

fn subprotocol(headers: &HeaderMap, spoken: &[&'static str]) -> Result<&'static str, Failure> {
    let offered: Vec<&str> = values(headers, header::SEC_WEBSOCKET_PROTOCOL).collect();
    let found = if offered.is_empty() {
        spoken.iter().find(|name| name.is_empty())
    } else {
        spoken.iter().find(|name| offered.contains(name))
    };
    found.copied().ok_or_else(|| {
        Failure::bad(format!(
            "unable to upgrade: none of the subprotocols {offered:?} is known; this server speaks {spoken:?}"
        ))
    })
}

/// Upstream's `httpstream.Handshake`: the first that the client names and the server knows.
fn stream_protocol(headers: &HeaderMap, spoken: &[&'static str]) -> Result<&'static str, Failure> {
    let name = "X-Stream-Protocol-Version";
    if !headers.contains_key(SPDY_PROTOCOLS) {
        return Err(Failure::bad(format!(
            "unable to upgrade: header {name} does not exist in request with {} headers",
            headers.len()
        )));
    }
    let offered: Vec<&str> = values(headers, SPDY_PROTOCOLS).collect();
    if offered.is_empty() {
        return Err(Failure::bad(format!(
            "unable to upgrade: header {name} contains [], but no valid protocols"
        )));
    }
    let found = offered.iter().find_map(|wanted| spoken.iter().find(|name| *name == wanted));
    found.copied().ok_or_else(|| Failure {
        status: StatusCode::FORBIDDEN,
        text: format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offered.join(" "),
            spoken.join(" ")
        ),
        headers: spoken.iter().map(|name| (SPDY_ACCEPTED, HeaderValue::from_static(name))).collect(),
    })
}
