//! Connections on which both ends speak something else than HTTP from now on: their bytes are only copied.
//!
//! Upgrades are between neighbours (RFC 9110, section 7.8), so the headers that ask for one are not handed on but made anew.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use kcore::Status;
use tracing::debug;

use crate::{body::Body, error::ApiResult};

/// The words of the `Connection` headers: options, and names of headers that are for the neighbour alone.
fn connection_words(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).map(str::trim)
}

/// Whether a header is for the neighbour alone because the caller said so.
pub(crate) fn is_for_neighbour(headers: &HeaderMap, name: &HeaderName) -> bool {
    connection_words(headers).any(|word| word.eq_ignore_ascii_case(name.as_str()))
}

/// What the caller wants to speak instead of HTTP, if they do.
fn asked_protocol(headers: &HeaderMap) -> Option<&HeaderValue> {
    let asked = connection_words(headers).any(|word| word.eq_ignore_ascii_case("upgrade"));
    asked.then(|| headers.get(header::UPGRADE))?
}

/// Asks the next server for what the caller asks for.
pub(crate) fn ask(from: &HeaderMap, onward: &mut HeaderMap) {
    if let Some(protocol) = asked_protocol(from) {
        onward.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        onward.insert(header::UPGRADE, protocol.clone());
    }
}

/// Answers the caller as the other server has answered, and copies bytes both ways until one of them ends. `keep` lives as
/// long.
///
/// # Errors
/// 400 when the caller's connection can't speak anything else, as HTTP/2 or a call within the process.
pub(crate) fn open<K: Send + 'static>(
    caller: &Parts,
    answer: Response<Incoming>,
    keep: K,
) -> ApiResult<Response<Body>> {
    let Some(upgrade) = caller.extensions.get::<OnUpgrade>().cloned() else {
        let why = "this connection can't be upgraded; connect to the server by HTTP/1.1";
        return Err(Status::bad_request(why).into());
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().clone_from(answer.headers());
    tokio::spawn(async move {
        let _keep = keep;
        let (Ok(caller), Ok(other)) = futures::join!(upgrade, hyper::upgrade::on(answer)) else {
            return;
        };
        let (mut caller, mut other) = (TokioIo::new(caller), TokioIo::new(other));
        if let Err(error) = tokio::io::copy_bidirectional(&mut caller, &mut other).await {
            debug!(%error, "a tunnel ended");
        }
    });
    Ok(response)
}
