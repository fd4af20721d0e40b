//! Several authorizers as one (upstream's `authorization/union`).

use std::sync::Arc;

use kcore::Status;

use super::{Authorizer, Reason, Rules, Verdict};
use crate::{authn::UserInfo, error::ApiError, request::RequestInfo};

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

/// 403 in upstream's words (`responsewriters.ForbiddenStatusError`).
pub(crate) fn forbidden(user: &UserInfo, info: &RequestInfo, reason: &Reason) -> ApiError {
    let why = if info.is_resource {
        let resource = if info.subresource.is_empty() {
            info.resource.clone()
        } else {
            format!("{}/{}", info.resource, info.subresource)
        };
        let place = if info.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", info.namespace)
        };
        format!(
            "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
            user.name, info.verb, info.group
        )
    } else {
        format!("User {:?} cannot {} path {:?}", user.name, info.verb, info.path)
    };
    // A path or a name may come from a page that makes the browser ask, and the answer may be shown there.
    let why = why.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let why = if reason.is_none() { why } else { format!("{why}: {reason}") };
    Status::forbidden(&info.group, &info.resource, &info.name, &why).into()
}
