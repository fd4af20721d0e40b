//! Authorizers that look at nothing but who asks.

use async_trait::async_trait;

use super::{Authorizer, PolicyRule, Reason, Rules, Verdict};
use crate::{
    authn::{AUTHENTICATED, MASTERS, UserInfo},
    request::RequestInfo,
};

/// Lets `system:masters` do everything and has no opinion on others. Always the first of a server's chain, as upstream's
/// privileged group: whatever the roles say, somebody can repair them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Masters;

#[async_trait]
impl Authorizer for Masters {
    async fn authorize(&self, user: &UserInfo, _request: &RequestInfo) -> Verdict {
        if user.is_in(MASTERS) { Verdict::Allow(Reason::none()) } else { Verdict::NoOpinion(Reason::none()) }
    }

    /// None: what this group may do is said by the role `cluster-admin`, which is bound to it.
    async fn rules(&self, _user: &UserInfo, _namespace: &str) -> Rules {
        Rules::default()
    }
}

/// Lets everybody do everything (`--authorization-mode=AlwaysAllow`). For servers that nobody but their owner can reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysAllow;

fn everything() -> Rules {
    let any = || vec!["*".to_owned()];
    let resources = PolicyRule { verbs: any(), api_groups: any(), resources: any(), ..PolicyRule::default() };
    let paths = PolicyRule { verbs: any(), non_resource_urls: any(), ..PolicyRule::default() };
    Rules { rules: vec![resources, paths], ..Rules::default() }
}

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _user: &UserInfo, _request: &RequestInfo) -> Verdict {
        Verdict::Allow(Reason::none())
    }

    async fn rules(&self, _user: &UserInfo, _namespace: &str) -> Rules {
        everything()
    }
}

/// Lets everybody who said who they are do everything, and everybody else only what tells nothing: health and version.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthenticatedOnly;

/// Paths that upstream's bootstrap policy lets everybody read (`system:public-info-viewer`).
const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

#[async_trait]
impl Authorizer for AuthenticatedOnly {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        if user.is_in(MASTERS) || user.is_in(AUTHENTICATED) {
            return Verdict::Allow(Reason::none());
        }
        let path = request.path.trim_end_matches('/');
        let public = PUBLIC.iter().any(|public| {
            path == *public || path.strip_prefix(public).is_some_and(|rest| rest.starts_with('/'))
        });
        if !request.is_resource && request.verb == "get" && public {
            Verdict::Allow(Reason::none())
        } else {
            Verdict::NoOpinion(Reason::none())
        }
    }

    async fn rules(&self, user: &UserInfo, _namespace: &str) -> Rules {
        if user.is_in(MASTERS) || user.is_in(AUTHENTICATED) { everything() } else { Rules::default() }
    }
}
