//! Who makes tokens: the keys, and what the server says of itself in them.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use super::claims::{Claims, username};
use crate::authn::jwt::{self, KeyError, SigningKey, VerifyingKey};

/// The issuer unless another one is set.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The issuer of tokens that are kept in secrets.
pub(super) const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// The shortest time that a token may be asked for, in seconds (`MinTokenAgeSec`).
pub const EXPIRATION_MIN_SECONDS: i64 = 600;
/// The longest time that a token may be asked for, in seconds.
pub const EXPIRATION_MAX_SECONDS: i64 = 1 << 32;
/// The time of a token that asks for none, in seconds.
pub(crate) const EXPIRATION_DEFAULT_SECONDS: i64 = 3_600;
/// The time that admission asks for: tokens of pods with it live longer than they say, for clients that don't read theirs
/// anew (`WarnOnlyBoundTokenExpirationSeconds`).
const WARN_ONLY_SECONDS: i64 = 3_607;
/// How long they live then, in seconds (`ExpirationExtensionSeconds`).
const EXTENDED_SECONDS: i64 = 365 * 24 * 3_600;

/// Makes the tokens of service accounts.
///
/// | setting | flag of kube-apiserver | default |
/// |---|---|---|
/// | signing key | `--service-account-signing-key-file` | a new key on P-256, so tokens end with the server |
/// | verifying keys | `--service-account-key-file` | the signing key's |
/// | issuers | `--service-account-issuer` | `https://kubernetes.default.svc.cluster.local` |
/// | audiences | `--api-audiences` | the issuers |
/// | longest expiration | `--service-account-max-token-expiration` | 2^32 seconds |
/// | extension | `--service-account-extend-token-expiration` | on |
/// | where the keys are | `--service-account-jwks-uri` | `/openid/v1/jwks` of the first issuer |
///
/// ```
/// use kapi::{ApiServer, authn::ServiceAccountIssuer};
///
/// let issuer = ServiceAccountIssuer::generate()?.issuer("https://cluster.example");
/// let server = ApiServer::builder().service_accounts(issuer).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct ServiceAccountIssuer {
    key: SigningKey,
    /// The signing key's first.
    verifying: Vec<VerifyingKey>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    expiration_max: Option<i64>,
    extends: bool,
    jwks_uri: String,
}

impl ServiceAccountIssuer {
    /// Signs with this key.
    pub fn new(key: SigningKey) -> Self {
        Self {
            verifying: vec![key.public().clone()],
            key,
            issuers: Vec::new(),
            audiences: Vec::new(),
            expiration_max: None,
            extends: true,
            jwks_uri: String::new(),
        }
    }

    /// Signs with a new key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        SigningKey::generate().map(Self::new)
    }

    /// Also believes tokens that these keys have signed.
    pub fn also_verify(mut self, keys: impl IntoIterator<Item = VerifyingKey>) -> Self {
        for key in keys {
            if !self.verifying.iter().any(|known| known.id() == key.id()) {
                self.verifying.push(key);
            }
        }
        self
    }

    /// Makes tokens in this name. The first call says the name, further ones add names that are believed.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuers.push(issuer.into());
        self
    }

    /// Adds a name that the API server goes by as an audience.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Shortens what is asked for to this; at least an hour makes sense.
    pub fn expiration_max(mut self, time: Duration) -> Self {
        self.expiration_max = Some(i64::try_from(time.as_secs()).unwrap_or(EXPIRATION_MAX_SECONDS));
        self
    }

    /// Whether tokens that admission puts into pods live for a year, with a warning after the time they were asked for.
    pub fn extend(mut self, extends: bool) -> Self {
        self.extends = extends;
        self
    }

    /// Tells that the keys are found here.
    pub fn jwks_uri(mut self, uri: impl Into<String>) -> Self {
        self.jwks_uri = uri.into();
        self
    }

    pub(crate) fn issuers(&self) -> &[String] {
        &self.issuers
    }

    /// What the API server itself goes by.
    pub(crate) fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub(super) fn keys(&self) -> &[VerifyingKey] {
        &self.verifying
    }

    /// The settings with what has not been said.
    pub(crate) fn complete(mut self) -> Self {
        if self.issuers.is_empty() {
            self.issuers.push(ISSUER.to_owned());
        }
        if self.audiences.is_empty() {
            self.audiences.clone_from(&self.issuers);
        }
        if self.jwks_uri.is_empty() {
            self.jwks_uri = format!("{}/openid/v1/jwks", self.name().trim_end_matches('/'));
        }
        self
    }

    fn name(&self) -> &str {
        self.issuers.first().map_or(ISSUER, String::as_str)
    }

    /// The expiration that a token gets which asks for `seconds`, if that is too long.
    pub(crate) fn shortened(&self, seconds: i64) -> Option<i64> {
        self.expiration_max.filter(|longest| *longest > 0 && seconds > *longest)
    }

    /// How long a token lives, and after how many seconds its user is warned, in seconds.
    pub(crate) fn times(&self, seconds: i64, of_pod: bool, audiences: &[String]) -> (i64, Option<i64>) {
        let own = audiences.iter().all(|audience| self.audiences.contains(audience));
        if self.extends && of_pod && seconds == WARN_ONLY_SECONDS && own {
            (EXTENDED_SECONDS, Some(seconds))
        } else {
            (seconds, None)
        }
    }

    /// A token.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        jwt::sign(&self.key, &claims.show(self.name()))
    }

    /// A token that does not expire and is kept in a secret, of the type `kubernetes.io/service-account-token`. The controller
    /// that fills such secrets makes it; the server believes it as long as the secret holds it.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn secret_token(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<String, KeyError> {
        let claims = json!({
            "iss": LEGACY_ISSUER,
            "sub": username(namespace, account),
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": account_uid,
            "kubernetes.io/serviceaccount/secret.name": secret,
        });
        jwt::sign(&self.key, &claims)
    }

    /// `/.well-known/openid-configuration`.
    pub(crate) fn configuration(&self) -> Value {
        let mut algorithms: Vec<&str> = self.verifying.iter().map(VerifyingKey::algorithm).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.name(),
            "jwks_uri": self.jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// `/openid/v1/jwks`.
    pub(crate) fn key_set(&self) -> Value {
        json!({"keys": self.verifying.iter().map(VerifyingKey::jwk).collect::<Vec<_>>()})
    }
}

impl fmt::Debug for ServiceAccountIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountIssuer")
            .field("issuers", &self.issuers)
            .field("audiences", &self.audiences)
            .field("verifying", &self.verifying)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_that_admission_asks_for_are_extended() {
        let issuer = ServiceAccountIssuer::generate().unwrap().issuer("https://a").complete();
        let own = ["https://a".to_owned()];
        let other = ["https://a".to_owned(), "vault".to_owned()];
        for (seconds, of_pod, audiences, expected) in [
            (3_607, true, &own[..], (EXTENDED_SECONDS, Some(3_607))),
            (3_607, true, &other[..], (3_607, None)),
            (3_607, false, &own[..], (3_607, None)),
            (3_600, true, &own[..], (3_600, None)),
        ] {
            assert_eq!(
                issuer.times(seconds, of_pod, audiences),
                expected,
                "{seconds} {of_pod} {audiences:?}"
            );
        }
        assert_eq!(issuer.extend(false).times(3_607, true, &own), (3_607, None));
    }

    #[test]
    fn what_is_told_of_the_issuer_names_its_keys() {
        let old = SigningKey::generate().unwrap();
        let issuer = ServiceAccountIssuer::generate().unwrap().issuer("https://a/");
        let issuer = issuer.issuer("https://old").also_verify([old.public().clone()]).complete();
        let told = issuer.configuration();
        assert_eq!(told["issuer"], "https://a/");
        assert_eq!(told["jwks_uri"], "https://a/openid/v1/jwks");
        assert_eq!(told["id_token_signing_alg_values_supported"], json!(["ES256"]));
        assert_eq!(issuer.key_set()["keys"].as_array().map(Vec::len), Some(2));
        assert_eq!(issuer.audiences(), ["https://a/", "https://old"]);
    }
}
