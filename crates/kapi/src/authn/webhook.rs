//! Bearer tokens that another service knows: `TokenReview` (`--authentication-token-webhook-config-file`).

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::request::Parts;
use kcore::Status;
use serde_json::{Value, json};

use super::{Authenticated, Authenticator, RequestedAudiences, UserInfo, bearer, cache::TokenCache};
use crate::{
    error::{ApiError, ApiResult},
    outbound::{CALL_MAX, Remote},
};

/// How long an answer is believed unless told otherwise (`--authentication-token-webhook-cache-ttl`).
pub const TOKEN_TTL: Duration = Duration::from_secs(120);

/// Asks a service about tokens that nobody before it in the chain knows.
///
/// ```no_run
/// use std::sync::Arc;
/// use kapi::{ApiServer, authn::TokenWebhook, outbound::Remote};
///
/// let remote = Remote::from_file("/etc/kplane/token-webhook.kubeconfig".as_ref())?;
/// let server = ApiServer::builder().authenticator(Arc::new(TokenWebhook::new(remote))).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TokenWebhook {
    remote: Remote,
    ttl: Duration,
    audiences: Vec<String>,
    cache: TokenCache,
}

impl fmt::Debug for TokenWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenWebhook").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl TokenWebhook {
    /// Asks this service, and believes its answers for [`TOKEN_TTL`].
    #[must_use]
    pub fn new(remote: Remote) -> Self {
        Self { remote, ttl: TOKEN_TTL, audiences: Vec::new(), cache: TokenCache::default() }
    }

    /// Believes answers, good and bad, for this long; errors are never kept. Zero: asks each time.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The names of this server: tokens must be for one of these, and are when the service says nothing of it
    /// (`--api-audiences`). Default: none, and whom a token is for is the service's matter.
    #[must_use]
    pub fn audiences<S: Into<String>>(mut self, audiences: impl IntoIterator<Item = S>) -> Self {
        self.audiences = audiences.into_iter().map(Into::into).collect();
        self
    }

    async fn ask(&self, token: &str, wanted: &[String]) -> ApiResult<Option<Authenticated>> {
        let mut review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {"creationTimestamp": null},
            "spec": {"token": token}});
        if !wanted.is_empty() {
            review["spec"]["audiences"] = json!(wanted);
        }
        let answer = self.remote.review(&review, CALL_MAX).await.map_err(|why| {
            tracing::error!(why, "a webhook was to be asked about a token");
            refused(why)
        })?;
        let status = &answer["status"];
        let audiences = if wanted.is_empty() {
            None
        } else {
            let given = texts(&status["audiences"]);
            let given = if given.is_empty() { &self.audiences } else { &given };
            let shared: Arc<[String]> = wanted.iter().filter(|one| given.contains(one)).cloned().collect();
            if shared.is_empty() {
                return Ok(None);
            }
            Some(shared)
        };
        if status["authenticated"] != true {
            return match status["error"].as_str().filter(|why| !why.is_empty()) {
                Some(why) => Err(refused(why.to_owned())),
                None => Ok(None),
            };
        }
        let user = &status["user"];
        let text = |key: &str| user[key].as_str().unwrap_or_default().to_owned();
        let extra = user["extra"].as_object().into_iter().flatten();
        let user = UserInfo {
            name: text("username"),
            uid: text("uid"),
            groups: texts(&user["groups"]),
            extra: extra.map(|(key, values)| (key.clone(), texts(values))).collect(),
        };
        Ok(Some(Authenticated { user: Arc::new(user), audiences }))
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn refused(why: String) -> ApiError {
    Status::failure(401, "Unauthorized", why).into()
}

#[async_trait]
impl Authenticator for TokenWebhook {
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
        let Some(token) = bearer(parts) else {
            return Ok(None);
        };
        let wanted = parts.extensions.get::<RequestedAudiences>().map_or(&*self.audiences, |asked| &asked.0);
        if let Some(known) = self.cache.get(token, wanted) {
            return Ok(known);
        }
        let found = self.ask(token, wanted).await?;
        self.cache.put(token, wanted, found.clone(), self.ttl);
        Ok(found)
    }
}
