//! Copies of requests that go to another backend, too.

use std::sync::Arc;

use http::{Request, request::Parts};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::{
    MIRROR_WAIT_MAX, balance::pick_endpoint, body::ProxyBody, filter::Mirror, forward::address,
    listen::Shared,
};

/// Sends a copy of a request, if it is the request's turn and there is a place that can be reached. The body goes there as it passes.
pub(super) fn send(shared: &Shared, mirror: &Mirror, parts: &Parts, body: &mut ProxyBody) {
    let backend = &mirror.backend;
    if mirror.of == 0 || rand::random_range(0..mirror.of) >= mirror.share {
        return;
    }
    let endpoints = backend.endpoints.as_deref().unwrap_or_default();
    let load = |endpoint| shared.pool.load(endpoint, backend);
    let Some(endpoint) = pick_endpoint(endpoints, &[], load, rand::random()) else { return };
    let Ok(permit) = Arc::clone(&shared.mirrors).try_acquire_owned() else { return };
    let mut parts = parts.clone();
    if !address(&mut parts, backend) {
        return;
    }
    let request = Request::from_parts(parts, body.mirror());
    let (pool, backend, stop) = (Arc::clone(&shared.pool), backend.clone(), shared.stop.clone());
    tokio::spawn(async move {
        let _permit = permit;
        let exchange = async {
            match pool.send(endpoint, &backend, request).await {
                // The answer is read, so that the connection can be used again.
                Ok((response, lease)) => {
                    drop(ProxyBody::passing(response.into_body()).keeping(Box::new(lease)).collect().await)
                }
                Err(failure) => {
                    tracing::debug!(%endpoint, error = %failure.error, "a mirrored request failed")
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = timeout(MIRROR_WAIT_MAX, exchange) => {}
        }
    });
}
