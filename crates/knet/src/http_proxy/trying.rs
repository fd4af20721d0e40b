//! One request that is tried on endpoint after endpoint.

use std::{io, net::SocketAddr, sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{sleep, timeout};

use super::{
    ENDPOINTS_WAIT_MAX, RETRY_BACKOFF_MAX, RETRY_BODY_BYTES_MAX, TRIES_MAX,
    balance::pick_endpoint,
    body::ProxyBody,
    listen::Shared,
    pool::{Failure, Lease},
    rule::{Action, Backend, Rule},
    table::RouteTable,
};

/// A time-out of the rule has passed.
#[derive(Debug, thiserror::Error)]
#[error("the time-out of the rule has passed")]
pub(super) struct TimedOut;

/// The error of a time-out of the rule.
pub(super) fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, TimedOut)
}

/// A request on its way to an endpoint that answers.
pub(super) struct Trying<'a> {
    shared: &'a Shared,
    rule: &'a Rule,
    backend: &'a Backend,
    tried: Vec<SocketAddr>,
    /// Whether it has waited for other endpoints.
    waited: bool,
    /// How often it may still be sent again because the rule says so, and how long it waits before.
    retries: u32,
    backoff: Duration,
}

impl<'a> Trying<'a> {
    pub(super) fn new(shared: &'a Shared, rule: &'a Rule, backend: &'a Backend) -> Self {
        let retry = rule.retry.as_ref();
        Self {
            shared,
            rule,
            backend,
            tried: Vec::new(),
            waited: false,
            retries: retry.map_or(0, |retry| retry.attempts),
            backoff: retry.map_or(Duration::ZERO, |retry| retry.backoff),
        }
    }

    /// Sends it until there is an answer, or nothing more to try.
    pub(super) async fn run(
        mut self,
        parts: Parts,
        mut body: ProxyBody,
    ) -> io::Result<(Response<Incoming>, Lease)> {
        // What is idempotent and has no body can be sent again, whatever became of it (RFC 9110, section 9.2.2).
        let idempotent =
            parts.method.is_idempotent() && parts.method != Method::TRACE && body.is_end_stream();
        let mut kept = idempotent.then(Bytes::new);
        if self.retries > 0 && kept.is_none() {
            kept = Box::pin(keep(&mut body)).await?;
        }
        let copy = kept.map(|kept| (parts.clone(), kept));
        let mut request = Request::from_parts(parts, body);
        let mut error = io::Error::other("there is no endpoint");
        let mut failures = 0;
        while failures < TRIES_MAX {
            let Some(endpoint) = self.next_endpoint().await else {
                if self.retries == 0 || self.tried.is_empty() {
                    break;
                }
                self.pause().await;
                continue;
            };
            let send = self.shared.pool.send(endpoint, self.backend, request);
            let sent = match self.rule.timeouts.backend_request {
                None => Ok(send.await),
                Some(limit) => timeout(limit, Box::pin(send)).await.map_err(|_| timed_out()),
            };
            let unsent = match sent {
                Ok(Ok((response, lease))) => {
                    if copy.is_none() || !self.asks_again(response.status()) {
                        return Ok((response, lease));
                    }
                    drop((response, lease));
                    self.tried.push(endpoint);
                    self.pause().await;
                    None
                }
                Ok(Err(Failure { request: unsent, reused, error: why })) => {
                    tracing::debug!(%endpoint, error = %why, "an endpoint failed");
                    self.shared.metrics.failures.fetch_add(1, Ordering::Relaxed);
                    // Who does not prove to be whom he should be won't be replaced by waiting.
                    self.waited |= why.kind() == io::ErrorKind::InvalidData;
                    error = why;
                    if !reused {
                        self.tried.push(endpoint);
                    }
                    // What never arrived, or was sent to a connection that had just been closed, costs no retry.
                    if reused || unsent.is_some() || self.rule.retry.is_none() {
                        failures += 1;
                    } else if self.retries == 0 || copy.is_none() {
                        break;
                    } else {
                        self.pause().await;
                    }
                    unsent
                }
                // The request may be what takes so long, so it is repeated only if the rule says so.
                Err(late) => {
                    if self.retries == 0 || copy.is_none() {
                        return Err(late);
                    }
                    error = late;
                    self.tried.push(endpoint);
                    self.pause().await;
                    None
                }
            };
            request = match (unsent, &copy) {
                (Some(unsent), _) => *unsent,
                (None, Some((parts, kept))) => {
                    Request::from_parts(parts.clone(), ProxyBody::own(kept.clone()))
                }
                (None, None) => break,
            };
        }
        Err(error)
    }

    /// Whether an answer with this status is no answer yet.
    fn asks_again(&self, status: StatusCode) -> bool {
        let codes = self.rule.retry.as_ref().map(|retry| retry.codes.as_slice()).unwrap_or_default();
        self.retries > 0 && codes.contains(&status)
    }

    /// Waits before it is sent again because the rule says so: to another endpoint if there is one.
    async fn pause(&mut self) {
        self.retries = self.retries.saturating_sub(1);
        sleep(self.backoff).await;
        self.backoff = self.backoff.max(self.backoff.saturating_mul(2).min(RETRY_BACKOFF_MAX));
        let endpoints = endpoints_now(&self.shared.table.borrow(), self.rule, self.backend);
        if self.pick(&endpoints).is_none() {
            self.tried.clear();
        }
    }

    fn pick(&self, endpoints: &[SocketAddr]) -> Option<SocketAddr> {
        let load = |endpoint| self.shared.pool.load(endpoint, self.backend);
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
        let others = tables.wait_for(|table| now(table).is_some());
        let table = Box::pin(timeout(ENDPOINTS_WAIT_MAX, others)).await;
        let found = table.ok().and_then(Result::ok).and_then(|table| now(&table));
        self.waited = true;
        found
    }
}

/// Reads a body that is known to be short, and leaves one that can be sent in its place. `None` when it is not short, or has trailers: then
/// it is as it was.
async fn keep(body: &mut ProxyBody) -> io::Result<Option<Bytes>> {
    if body.size_hint().upper().is_none_or(|bytes| bytes > RETRY_BODY_BYTES_MAX) {
        return Ok(None);
    }
    let collected = std::mem::replace(body, ProxyBody::empty()).collect().await?;
    if collected.trailers().is_some() {
        *body = ProxyBody::read(collected);
        return Ok(None);
    }
    let kept = collected.to_bytes();
    *body = ProxyBody::own(kept.clone());
    Ok(Some(kept))
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
