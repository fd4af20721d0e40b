//! Connections on which both ends speak something else than HTTP from now on: their bytes are only copied.

use http::{HeaderValue, Response, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{body::ProxyBody, headers, pool::Lease};

/// Answers the client as the backend has answered, and copies bytes both ways until both have ended, or `stop`.
pub(super) fn join(
    client: OnUpgrade,
    mut answer: Response<Incoming>,
    lease: Lease,
    permit: OwnedSemaphorePermit,
    stop: CancellationToken,
) -> Response<ProxyBody> {
    let backend = hyper::upgrade::on(&mut answer);
    let (mut parts, _) = answer.into_parts();
    let protocol = parts.headers.get(header::UPGRADE).cloned();
    headers::remove_for_neighbours(&mut parts.headers);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(protocol) = protocol {
        parts.headers.insert(header::UPGRADE, protocol);
    }
    parts.extensions.clear();
    tokio::spawn(async move {
        // It counts as a request that runs, and is none that another may follow.
        let _held = (lease, permit);
        let copy = async {
            let (Ok(client), Ok(backend)) = tokio::join!(client, backend) else { return };
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
                tracing::debug!(%error, "an upgraded connection ended");
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = copy => {}
        }
    });
    Response::from_parts(parts, ProxyBody::empty())
}
