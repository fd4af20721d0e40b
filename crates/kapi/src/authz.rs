//! Who may do what: authorization.

pub(crate) mod bootstrap;
mod chain;
mod config;
pub(crate) mod escalation;
mod known;
pub(crate) mod node;
mod rbac;
mod webhook;

use std::{
    borrow::Cow,
    fmt::{self, Debug, Display},
    sync::Arc,
};

use async_trait::async_trait;

pub(crate) use self::{
    chain::{Chain, forbidden},
    config::Way,
    rbac::aggregate,
};
pub use self::{
    config::{AUTHORIZERS_MAX, AuthorizationConfig},
    known::{AlwaysAllow, AuthenticatedOnly, Masters},
    node::Node,
    rbac::{PERMISSIONS_MAX, PolicyRule, Rbac, missing},
    webhook::{ALLOWED_TTL, AccessWebhook, CONDITIONS_MAX, DECISIONS_MAX, FailurePolicy, REFUSED_TTL},
};
use crate::{authn::UserInfo, objects::Objects, request::RequestInfo};

/// Why somebody may do something or not. Put into words only when somebody wants to read it.
///
/// ```
/// use kapi::authz::Reason;
///
/// assert_eq!(Reason::from("closed on Sundays").to_string(), "closed on Sundays");
/// assert!(Reason::none().is_none());
/// ```
#[derive(Clone, Default)]
pub struct Reason(Words);

#[derive(Clone, Default)]
enum Words {
    #[default]
    None,
    Text(Cow<'static, str>),
    Shown(Arc<dyn Display + Send + Sync>),
}

impl Reason {
    /// No reason is given.
    #[must_use]
    pub const fn none() -> Self {
        Self(Words::None)
    }

    /// A reason that is written when it is read.
    #[must_use]
    pub fn shown(words: Arc<dyn Display + Send + Sync>) -> Self {
        Self(Words::Shown(words))
    }

    /// Whether no reason is given.
    #[must_use]
    pub fn is_none(&self) -> bool {
        match &self.0 {
            Words::None => true,
            Words::Text(text) => text.is_empty(),
            Words::Shown(_) => false,
        }
    }
}

impl From<&'static str> for Reason {
    fn from(text: &'static str) -> Self {
        Self(Words::Text(text.into()))
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self(Words::Text(text.into()))
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Words::None => Ok(()),
            Words::Text(text) => f.write_str(text),
            Words::Shown(words) => words.fmt(f),
        }
    }
}

impl Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Reason {}

/// What an authorizer thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes; nobody else is asked.
    Allow(Reason),
    /// No; nobody else is asked.
    Deny(Reason),
    /// Somebody else may know. If nobody allows it, it is refused, and the reasons of all are told.
    NoOpinion(Reason),
}

/// What an authorizer allows to somebody, as far as it can list it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What is allowed.
    pub rules: Vec<PolicyRule>,
    /// Whether there may be more.
    pub incomplete: bool,
    /// What went wrong while the rules were put together.
    pub error: Option<String>,
}

/// A built-in way to decide (`--authorization-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuthorizationMode {
    /// What nodes may do: [`Node`].
    Node,
    /// By roles and bindings: [`Rbac`].
    Rbac,
    /// Everybody may do everything: [`AlwaysAllow`].
    AlwaysAllow,
    /// Everybody who is known may do everything: [`AuthenticatedOnly`].
    AuthenticatedOnly,
}

impl AuthorizationMode {
    /// What a server has unless told otherwise.
    pub const DEFAULT: &[Self] = &[Self::Node, Self::Rbac];
}

/// A way to decide that a configuration names.
pub(crate) fn of_way(way: Way, objects: &Arc<Objects>, rbac: &Arc<Rbac>) -> Arc<dyn Authorizer> {
    match way {
        Way::BuiltIn(mode) => built_in(mode, objects, rbac),
        Way::Other(authorizer) => authorizer,
    }
}

fn built_in(mode: AuthorizationMode, objects: &Arc<Objects>, rbac: &Arc<Rbac>) -> Arc<dyn Authorizer> {
    match mode {
        AuthorizationMode::Node => Arc::new(Node::new(Arc::clone(objects))),
        AuthorizationMode::Rbac => Arc::clone(rbac) as _,
        AuthorizationMode::AlwaysAllow => Arc::new(AlwaysAllow),
        AuthorizationMode::AuthenticatedOnly => Arc::new(AuthenticatedOnly),
    }
}

/// Decides whether a caller may do what the request asks for.
///
/// Called once per request, after authentication, in the order of the chain; and for what a request implies: each name that
/// is impersonated, a review, the rights that a role gives away.
///
/// ```
/// use kapi::{authn::UserInfo, authz::{Authorizer, Reason, Verdict}, request::RequestInfo};
///
/// /// Nobody deletes namespaces.
/// #[derive(Debug)]
/// struct Keep;
///
/// #[async_trait::async_trait]
/// impl Authorizer for Keep {
///     async fn authorize(&self, _user: &UserInfo, request: &RequestInfo) -> Verdict {
///         if request.verb == "delete" && request.resource == "namespaces" {
///             return Verdict::Deny("namespaces stay".into());
///         }
///         Verdict::NoOpinion(Reason::none())
///     }
/// }
/// ```
#[async_trait]
pub trait Authorizer: Debug + Send + Sync + 'static {
    /// Looks at the caller and at what is asked for.
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict;

    /// What it allows to this caller in a namespace, for `SelfSubjectRulesReview`. Unless told otherwise, an authorizer can't
    /// list that.
    async fn rules(&self, _user: &UserInfo, _namespace: &str) -> Rules {
        Rules {
            incomplete: true,
            error: Some("an authorizer of this server can't list its rules".to_owned()),
            ..Rules::default()
        }
    }
}
