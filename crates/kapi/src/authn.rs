//! Who asks: authentication.

mod front_proxy;
mod tokens;
mod x509;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use http::request::Parts;

pub use self::{
    front_proxy::FrontProxy,
    tokens::StaticTokens,
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

/// Finds out who asks.
///
/// Called once per request, in the order of the chain, until one knows the caller. `None` means "not one of mine"; an error
/// means that the caller presented something that is wrong, which ends the request as 401 unless a later one accepts it.
#[async_trait]
pub trait Authenticator: Debug + Send + Sync + 'static {
    /// Looks at the request's head.
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<UserInfo>>;
}
