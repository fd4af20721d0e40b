//! Tokens of OpenID Connect providers, as the structured authentication configuration describes them (KEP-3331).

mod claims;
mod config;
mod keys;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use http::request::Parts;
use kcore::{Clock, Status};
use serde_json::Value;

use self::{
    config::Provider,
    keys::{JsonWebKey, Keys},
};
pub use self::{
    config::{Anonymous, AuthenticationConfig, ISSUERS_MAX},
    keys::{ALGORITHMS, KEYS_MAX, REFETCH_MIN},
};
use super::{Authenticated, Authenticator, bearer, cache::TokenCache, jwt::Token};
use crate::error::{ApiError, ApiResult};

/// How much earlier a token may come than it says it is good for (`go-oidc`'s leeway), in seconds.
const LEEWAY_SECONDS: f64 = 300.0;
/// How long a token that was found good is believed without looking at it again (upstream's `TokenSuccessCacheTTL`).
const BELIEVED: std::time::Duration = std::time::Duration::from_secs(10);

/// Believes the tokens of one provider. Its keys are fetched when the first token comes, and again when a token is signed with
/// one that is not known.
pub(crate) struct OidcTokens {
    provider: Arc<Provider>,
    keys: Keys,
    clock: Arc<dyn Clock>,
    cache: TokenCache,
}

impl fmt::Debug for OidcTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OidcTokens").field(&self.provider.url).finish()
    }
}

impl OidcTokens {
    pub(crate) fn new(provider: Arc<Provider>, clock: Arc<dyn Clock>) -> Self {
        let keys = Keys::new(&provider);
        Self { provider, keys, clock, cache: TokenCache::default() }
    }

    async fn check(&self, text: &str) -> ApiResult<Option<Authenticated>> {
        // A token of another issuer is another's.
        let Some(token) = Token::parse(text).filter(|token| token.claims["iss"] == *self.provider.url) else {
            return Ok(None);
        };
        let verify = |why: String| refused(format!("oidc: verify token: {why}"));
        let algorithm = token.algorithm();
        if !ALGORITHMS.contains(&algorithm) {
            let why = format!("oidc: malformed jwt: unexpected signature algorithm {algorithm:?}");
            return Err(verify(why));
        }
        self.check_claims(&token.claims).map_err(verify)?;
        if !self.is_signed(&token).await.map_err(refused)? {
            return Err(verify("failed to verify signature: failed to verify id token signature".to_owned()));
        }
        let user = self.provider.user(&token.claims).map_err(refused)?;
        Ok(Some(user.into()))
    }

    /// Whom the token is for, and when.
    fn check_claims(&self, claims: &Value) -> Result<(), String> {
        let audiences: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let wanted = &self.provider.audiences;
        if !wanted.iter().any(|wanted| audiences.contains(&wanted.as_str())) {
            return Err(format!("oidc: expected audience in {wanted:?} got {audiences:?}"));
        }
        let now = self.clock.now();
        let seconds = now.as_duration().as_secs_f64();
        // A token that never ends has ended.
        if claims["exp"].as_f64().unwrap_or(0.0) <= seconds {
            return Err("oidc: token is expired".to_owned());
        }
        match claims["nbf"].as_f64() {
            Some(from) if seconds + LEEWAY_SECONDS < from => {
                Err(format!("oidc: current time {now} before the nbf (not before) time"))
            }
            _ => Ok(()),
        }
    }

    /// Whether one of the provider's keys has signed it. Keys are fetched anew if none of those that are known has.
    async fn is_signed(&self, token: &Token<'_>) -> Result<bool, String> {
        let known = self.keys.known();
        let fits = |keys: &[JsonWebKey]| {
            keys.iter().any(|key| (token.key.is_empty() || token.key == key.id) && key.has_signed(token))
        };
        if known.as_deref().is_some_and(|keys| fits(keys)) {
            return Ok(true);
        }
        let fresh = self.keys.fetch(known.as_ref()).await;
        match (fresh, known) {
            (Ok(keys), _) => Ok(fits(&keys)),
            (Err(why), None) => Err(format!("oidc: authenticator not initialized: {why}")),
            (Err(why), Some(_)) => {
                tracing::warn!(issuer = self.provider.url, why, "the keys of an issuer could not be fetched");
                Ok(false)
            }
        }
    }
}

fn refused(why: impl Into<String>) -> ApiError {
    Status::failure(401, "Unauthorized", why.into()).into()
}

#[async_trait]
impl Authenticator for OidcTokens {
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
        let Some(text) = bearer(parts) else {
            return Ok(None);
        };
        if let Some(known) = self.cache.get(text, &[]) {
            return Ok(known);
        }
        let found = self.check(text).await?;
        if found.is_some() {
            self.cache.put(text, &[], found.clone(), BELIEVED);
        }
        Ok(found)
    }
}
