//! Who may do what: authorization.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::{
    authn::{AUTHENTICATED, MASTERS, UserInfo},
    request::RequestInfo,
};

/// What an authorizer thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes; nobody else is asked.
    Allow,
    /// No; nobody else is asked.
    Deny(String),
    /// Somebody else may know. If nobody allows it, it is refused.
    NoOpinion,
}

/// Decides whether a caller may do what the request asks for.
///
/// Called once per request, after authentication, in the order of the chain.
#[async_trait]
pub trait Authorizer: Debug + Send + Sync + 'static {
    /// Looks at the caller and at what is asked for.
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict;
}

/// Lets `system:masters` and everybody who said who they are do everything, and everybody else only what tells nothing:
/// health and version. Role-based access control takes its place.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthenticatedOnly;

/// Paths that upstream's bootstrap policy lets everybody read (`system:public-info-viewer`).
const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

#[async_trait]
impl Authorizer for AuthenticatedOnly {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        if user.is_in(MASTERS) || user.is_in(AUTHENTICATED) {
            return Verdict::Allow;
        }
        let path = request.path.trim_end_matches('/');
        let public = PUBLIC.iter().any(|public| {
            path == *public || path.strip_prefix(public).is_some_and(|rest| rest.starts_with('/'))
        });
        if !request.is_resource && request.verb == "get" && public {
            Verdict::Allow
        } else {
            Verdict::NoOpinion
        }
    }
}
