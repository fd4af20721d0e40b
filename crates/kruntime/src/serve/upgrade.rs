//! Turning a request into a WebSocket.

use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::{Failure, KubeletBody, text};

/// A WebSocket to the client.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A request that is going to be a WebSocket, and the subprotocol that was agreed on.
pub(super) struct Upgrade {
    request: Request<Incoming>,
    key: String,
    protocol: &'static str,
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

impl Upgrade {
    /// Checks the request; `protocols` are those that the server speaks, the best first.
    pub(super) fn check(request: Request<Incoming>, protocols: &[&'static str]) -> Result<Self, Failure> {
        let headers = request.headers();
        if !has_token(headers, header::UPGRADE, "websocket") {
            let wanted =
                headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            return Err(if wanted.is_empty() {
                Failure::bad("unable to upgrade: missing upgrade headers in request")
            } else {
                Failure(
                    StatusCode::NOT_IMPLEMENTED,
                    format!("the protocol {wanted} is not supported; use WebSocket"),
                )
            });
        }
        let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
        let key =
            key.ok_or_else(|| Failure::bad("unable to upgrade: Sec-WebSocket-Key is missing"))?.to_owned();
        let offered = |name: &str| has_token(headers, header::SEC_WEBSOCKET_PROTOCOL, name);
        let protocol = protocols.iter().find(|name| offered(name)).copied().ok_or_else(|| {
            Failure::bad(format!(
                "unable to upgrade: none of the subprotocols is known; this server speaks {protocols:?}"
            ))
        })?;
        Ok(Self { request, key, protocol })
    }

    pub(super) fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// The answer, and what becomes the WebSocket once it has been sent.
    pub(super) fn accept(
        self,
    ) -> Result<(Response<KubeletBody>, impl Future<Output = Option<Socket>>), Failure> {
        let mut response = text("");
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(self.protocol));
        let accept = header::HeaderValue::from_str(&derive_accept_key(self.key.as_bytes()));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.map_err(|_| Failure::bad("unable to upgrade"))?);
        let request = self.request;
        let socket = async move {
            let upgraded = hyper::upgrade::on(request).await.ok()?;
            Some(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await)
        };
        Ok((response, socket))
    }
}
