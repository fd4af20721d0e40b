//! Who asks: authentication.

mod bootstrap_tokens;
mod cache;
mod front_proxy;
pub mod jwt;
mod oidc;
mod service_account;
mod tokens;
mod webhook;
pub(crate) mod websocket;
mod x509;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use http::{header::AUTHORIZATION, request::Parts};

pub(crate) use self::bootstrap_tokens::BootstrapTokens;
pub(crate) use self::oidc::OidcTokens;
pub(crate) use self::service_account::{Claims, EXPIRATION_DEFAULT_SECONDS, Reference, ServiceAccountTokens};
pub use self::{
    front_proxy::FrontProxy,
    oidc::{ALGORITHMS, Anonymous, AuthenticationConfig, ISSUERS_MAX, KEYS_MAX, REFETCH_MIN},
    service_account::{EXPIRATION_MAX_SECONDS, EXPIRATION_MIN_SECONDS, ServiceAccountIssuer},
    tokens::StaticTokens,
    webhook::{TOKEN_TTL, TokenWebhook},
    x509::{ClientCertificates, PeerCertificates},
};
use crate::error::ApiResult;

/// The group of everybody who said who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user that stands for everybody who did not say who they are.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// A caller (`authentication.k8s.io` `UserInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// The name.
    pub name: String,
    /// The uid, if the authenticator knows one.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of this name in these groups.
    pub fn new<G: Into<String>>(name: impl Into<String>, groups: impl IntoIterator<Item = G>) -> Self {
        Self { name: name.into(), groups: groups.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Somebody who did not say who they are.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, [UNAUTHENTICATED])
    }

    /// Whether the user is in a group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|candidate| candidate == group)
    }
}

/// Request extension: the caller is known already. Only code in this process can set an extension, so it is believed;
/// this is how in-process clients and components say who they are.
#[derive(Clone, Debug)]
pub struct Identity(pub Arc<UserInfo>);

/// Request extension: whom a credential must be meant for, when that is not the API server itself. `TokenReview` sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedAudiences(pub Arc<[String]>);

/// A caller who is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Who it is. Shared, so that an authenticator that remembers its callers copies nothing for a request.
    pub user: Arc<UserInfo>,
    /// Those of the [`RequestedAudiences`] that the credential is meant for. `None`: credentials of this kind are for the API
    /// server alone, and say nothing of audiences.
    pub audiences: Option<Arc<[String]>>,
}

impl From<UserInfo> for Authenticated {
    fn from(user: UserInfo) -> Self {
        Self { user: Arc::new(user), audiences: None }
    }
}

/// Puts whoever is known into the group of all who are (upstream's `AuthenticatedGroupAdder`).
pub(crate) fn in_their_group(mut user: Arc<UserInfo>) -> Arc<UserInfo> {
    if !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
        Arc::make_mut(&mut user).groups.push(AUTHENTICATED.to_owned());
    }
    user
}

/// Finds out who asks.
///
/// Called once per request, in the order of the chain, until one knows the caller. `None` means "not one of mine"; an error
/// means that the caller presented something that is wrong, which ends the request as 401 unless a later one accepts it. What
/// the error says is shown by `TokenReview` alone. An authenticator that knows of audiences must refuse a credential that is
/// for none of the [`RequestedAudiences`], if there is that extension.
///
/// ```
/// use http::request::Parts;
/// use kapi::authn::{Authenticated, Authenticator, UserInfo};
/// use kapi::error::ApiResult;
///
/// /// Who comes with the word is the operator.
/// #[derive(Debug)]
/// struct Word;
///
/// #[async_trait::async_trait]
/// impl Authenticator for Word {
///     async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
///         let knows = kapi::authn::bearer(parts) == Some("sesame");
///         Ok(knows.then(|| UserInfo::new("operator", ["system:masters"]).into()))
///     }
/// }
/// ```
#[async_trait]
pub trait Authenticator: Debug + Send + Sync + 'static {
    /// Looks at the request's head.
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>>;
}

/// The bearer token of a request, if it has one (RFC 6750).
#[must_use]
pub fn bearer(parts: &Parts) -> Option<&str> {
    let mut words = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split(' ');
    let scheme = words.next()?;
    let token = words.next()?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_are_read() {
        for (header, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("Bearer abc more", Some("abc")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Basic abc", None),
        ] {
            let (parts, ()) =
                http::Request::builder().header(AUTHORIZATION, header).body(()).unwrap().into_parts();
            assert_eq!(bearer(&parts), expected, "{header}");
        }
    }
}
