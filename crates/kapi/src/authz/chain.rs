//! Several authorizers as one (upstream's `authorization/union`).

use std::sync::Arc;

use super::{Authorizer, Reason, Rules, Verdict};
use crate::{authn::UserInfo, request::RequestInfo};

/// The authorizers of a server in their order. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Chain(Arc<[Arc<dyn Authorizer>]>);

impl Chain {
    pub(crate) fn new(authorizers: Vec<Arc<dyn Authorizer>>) -> Self {
        Self(authorizers.into())
    }

    /// The first opinion; if there is none, the reasons of all.
    pub(crate) async fn decide(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        let mut reason = Reason::none();
        for authorizer in &*self.0 {
            match authorizer.authorize(user, request).await {
                Verdict::NoOpinion(other) if other.is_none() => {}
                Verdict::NoOpinion(other) if reason.is_none() => reason = other,
                Verdict::NoOpinion(other) => reason = format!("{reason}\n{other}").into(),
                opinion => return opinion,
            }
        }
        Verdict::NoOpinion(reason)
    }

    pub(crate) async fn allows(&self, user: &UserInfo, request: &RequestInfo) -> bool {
        matches!(self.decide(user, request).await, Verdict::Allow(_))
    }

    /// The rules of all.
    pub(crate) async fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut all = Rules::default();
        let mut errors = Vec::new();
        for authorizer in &*self.0 {
            let Rules { rules, incomplete, error } = authorizer.rules(user, namespace).await;
            all.rules.extend(rules);
            all.incomplete |= incomplete;
            errors.extend(error);
        }
        all.error = (!errors.is_empty()).then(|| super::rbac::aggregate(&errors));
        all
    }
}
