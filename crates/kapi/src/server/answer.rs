//! How one request is answered: who asks, whom they act as, whether they may, and then what they ask for.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, Response, request::Parts};
use kcore::Status;
use tracing::{Instrument as _, debug, debug_span, error, field, info};

use super::{Inner, REQUEST_MAX};
use crate::{
    audit::Trail,
    authn::{self, Anonymous, Authenticated, Identity, UserInfo, websocket},
    authz::{self, Verdict},
    body::Body,
    error::{ApiError, ApiResult},
    http as transport, impersonate,
    request::{Query, RequestInfo},
};

/// A request that takes so long, and is not one that lasts, is told of at the level `INFO` (upstream traces requests from here on, too).
pub const SLOW_REQUEST: Duration = Duration::from_millis(500);

impl Inner {
    /// Answers a request; whatever goes wrong becomes a `Status`. Everything that is logged on the way is in a span, which says whose
    /// request it is.
    pub(super) async fn answer<B>(self: Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display + Send,
    {
        let (mut parts, body) = request.into_parts();
        if let Err(malformed) = websocket::take_token(&mut parts.headers) {
            parts.extensions.insert(malformed);
        }
        let trail = self.audit.as_ref().map(|audit| {
            let trail = Arc::new(Trail::new(audit, &parts, self.objects.clock()));
            parts.extensions.insert(Arc::clone(&trail));
            trail
        });
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::new(&parts.method, parts.uri.path(), &query);
        let began = tokio::time::Instant::now();
        let _flying = self.metrics.begin(&info);
        let agent = || parts.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let span = debug_span!(
            "request",
            verb = %info.verb,
            path = %info.path,
            user_agent = agent(),
            user = field::Empty
        );
        let handled = AssertUnwindSafe(self.handle(&parts, &info, &query, body)).catch_unwind();
        let handled = handled.instrument(span.clone()).await;
        let _entered = span.enter();
        let (user, result) = handled.unwrap_or_else(|_| {
            error!(path = %info.path, verb = %info.verb, "a request panicked");
            self.metrics.panicked();
            if let Some(trail) = &trail {
                trail.panicked();
            }
            let status =
                Status::internal("this request caused apiserver to panic; look in the log for details");
            (None, Err(status.into()))
        });
        let mut response = result.unwrap_or_else(|ApiError(status)| {
            debug!(%status, "refused");
            transport::status_response(&status)
        });
        if let Some(trail) = &trail {
            trail.answered(&mut response, lasts(&info), self.objects.registry().catalog());
        }
        let response = transport::compress(&info, &parts.headers, response);
        let known = self.objects.registry().find(&info.group, &info.version, &info.resource).is_some();
        let took = began.elapsed();
        let code = response.status().as_u16();
        let sized = self.metrics.end(&info, known, query.get("dryRun").is_some(), code, took);
        let response = match sized {
            Some(sized) => response.map(|body| body.measured(sized)),
            None => response,
        };
        if let Some(user) = &user {
            span.record("user", &*user.name);
        }
        debug!(code, ?took, "HTTP");
        if took >= SLOW_REQUEST && !lasts(&info) {
            info!(verb = %info.verb, path = %info.path, user_agent = agent(), code, ?took, "a slow request");
        }
        response
    }

    async fn handle<B>(
        self: &Arc<Self>,
        parts: &Parts,
        info: &RequestInfo,
        query: &Query,
        body: B,
    ) -> (Option<Arc<UserInfo>>, ApiResult<Response<Body>>)
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display + Send,
    {
        let trail = parts.extensions.get::<Arc<Trail>>();
        let user = self.authenticate(parts).await;
        if let Some(trail) = trail {
            // Upstream's `blocking-strict`: what is not kept does not happen.
            if let Err(why) = trail.begin(user.as_ref().ok(), info, parts) {
                error!(why, "an audit event is missing, and the request is refused");
                return (user.ok(), Err(Status::internal("failed to store audit event").into()));
            }
        }
        let user = match user {
            Ok(user) => user,
            Err(error) => return (None, Err(error)),
        };
        let user = match self.impersonate(Arc::clone(&user), parts).await {
            Ok(None) => user,
            Ok(Some(other)) => {
                if let Some(trail) = trail {
                    trail.impersonated(&other);
                }
                other
            }
            Err(error) => return (Some(user), Err(error)),
        };
        let turn = match self.fairness.admit(&self.objects, &user, info, query.get("limit")).await {
            Ok(turn) => turn,
            Err(error) => return (Some(user), Err(error)),
        };
        let verdict = self.authorizers.decide(&user, &info.with_selected_name()).await;
        if let Some(trail) = trail {
            trail.decided(&verdict);
        }
        if let Err(error) = judged(&user, info, verdict) {
            return (Some(user), Err(error));
        }
        let routed = transport::route(self, parts, info, query, &user, body);
        let mut result = if lasts(info) {
            routed.await
        } else {
            // What has been begun is dropped; a write that has been committed stays so.
            tokio::time::timeout(REQUEST_MAX, routed).await.unwrap_or_else(|_| Err(timed_out()))
        };
        if let (Ok(response), Some((schema, level))) = (&mut result, &turn.uids) {
            response.headers_mut().insert("x-kubernetes-pf-flowschema-uid", schema.clone());
            response.headers_mut().insert("x-kubernetes-pf-prioritylevel-uid", level.clone());
        }
        (Some(user), result)
    }

    async fn authenticate(&self, parts: &Parts) -> ApiResult<Arc<UserInfo>> {
        if let Some(Identity(user)) = parts.extensions.get::<Identity>() {
            return Ok(Arc::clone(user));
        }
        let mut refused = parts.extensions.get::<websocket::Malformed>().is_some();
        for authenticator in &self.authenticators {
            match authenticator.authenticate(parts).await {
                Ok(Some(Authenticated { user, .. })) => return Ok(authn::in_their_group(user)),
                Ok(None) => {}
                Err(_) => refused = true,
            }
        }
        let Anonymous { enabled, paths } = &self.anonymous;
        let open = *enabled && (paths.is_empty() || paths.iter().any(|path| path == parts.uri.path()));
        if refused || !open || parts.headers.contains_key(http::header::AUTHORIZATION) {
            return Err(Status::unauthorized().into());
        }
        Ok(Arc::new(UserInfo::anonymous()))
    }

    /// Whom the caller acts as, if it is not themselves: somebody whom they may impersonate.
    async fn impersonate(&self, user: Arc<UserInfo>, parts: &Parts) -> ApiResult<Option<Arc<UserInfo>>> {
        let Some((other, asked)) = impersonate::wanted(&parts.headers)? else {
            return Ok(None);
        };
        for ask in &asked {
            self.authorize(&user, ask).await?;
        }
        Ok(Some(Arc::new(other)))
    }

    /// Whether the caller may do this; the error says that he may not.
    pub(crate) async fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> ApiResult<()> {
        let info = &*info.with_selected_name();
        judged(user, info, self.authorizers.decide(user, info).await)
    }
}

/// What the authorizers think, as an answer.
fn judged(user: &UserInfo, info: &RequestInfo, verdict: Verdict) -> ApiResult<()> {
    match verdict {
        Verdict::Allow(_) => Ok(()),
        Verdict::Deny(reason) | Verdict::NoOpinion(reason) => {
            Err(authz::forbidden(user, &info.with_selected_name(), &reason))
        }
    }
}

/// Whether a request may last, as watches and streams do (upstream's `BasicLongRunningRequestCheck`).
pub(crate) fn lasts(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || ["log", "exec", "attach", "portforward", "proxy"].contains(&info.subresource.as_str())
}

/// 504 in upstream's words.
fn timed_out() -> ApiError {
    let why = "Timeout: request did not complete within the allotted timeout";
    Status::failure(504, "Timeout", why).into()
}
