//! How expressions ask who may do what, while they are evaluated.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::FutureExt as _;
use kcel::{Authorizer, Check, CheckTarget, Decision};
use kcore::selector::{FieldSelector, LabelSelector};

use crate::{
    authn::UserInfo,
    authz::{Chain, Verdict},
    request::RequestInfo,
};

/// How often an evaluation is begun anew because an authorizer could not answer at once.
pub(crate) const ROUNDS_MAX: usize = 64;

/// Answers the checks of one request, each once. Those in the server answer at once; what an authorizer has to wait for is
/// noted, fetched by [`fetch`](Self::fetch), and the expression is evaluated again.
pub(crate) struct Answers {
    chain: Chain,
    user: UserInfo,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    answers: HashMap<Key, Decision>,
    open: Vec<(UserInfo, RequestInfo)>,
}

type Key = (String, String);

impl Answers {
    pub(crate) fn new(chain: &Chain, user: &UserInfo) -> Arc<Self> {
        Arc::new(Self { chain: chain.clone(), user: user.clone(), known: Mutex::default() })
    }

    fn known<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gets the answers that are still open; whether there were any, so that the evaluation did not count.
    pub(crate) async fn fetch(&self) -> bool {
        let open = self.known(|known| std::mem::take(&mut known.open));
        let were_open = !open.is_empty();
        for (user, request) in open {
            let decision = decision(self.chain.decide(&user, &request).await);
            self.known(|known| known.answers.insert(key(&user, &request), decision));
        }
        were_open
    }

    fn asker(&self, check: &Check<'_>) -> UserInfo {
        match check.service_account {
            None => self.user.clone(),
            Some((namespace, name)) => UserInfo::new(
                format!("system:serviceaccount:{namespace}:{name}"),
                ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
            ),
        }
    }
}

fn key(user: &UserInfo, request: &RequestInfo) -> Key {
    (user.name.clone(), format!("{request:?}"))
}

fn decision(verdict: Verdict) -> Decision {
    match verdict {
        Verdict::Allow(reason) => Decision::new(true, reason.to_string()),
        Verdict::Deny(reason) | Verdict::NoOpinion(reason) => Decision::new(false, reason.to_string()),
    }
}

fn wanted(check: &Check<'_>) -> RequestInfo {
    match check.target {
        CheckTarget::Resource(resource) => RequestInfo {
            is_resource: true,
            verb: check.verb.to_owned(),
            group: resource.group.clone(),
            version: "*".to_owned(),
            namespace: resource.namespace.clone(),
            resource: resource.resource.clone(),
            subresource: resource.subresource.clone(),
            name: resource.name.clone(),
            // What can't be read restricts nothing.
            fields: FieldSelector::parse(&resource.field_selector).unwrap_or_default(),
            labels: LabelSelector::parse(&resource.label_selector).unwrap_or_default(),
            ..RequestInfo::default()
        },
        CheckTarget::Path(path) => {
            RequestInfo { path: path.to_owned(), verb: check.verb.to_owned(), ..RequestInfo::default() }
        }
        _ => RequestInfo::default(),
    }
}

impl Authorizer for Answers {
    fn authorize(&self, check: &Check<'_>) -> Decision {
        let (user, request) = (self.asker(check), wanted(check));
        let key = key(&user, &request);
        if let Some(known) = self.known(|known| known.answers.get(&key).cloned()) {
            return known;
        }
        match self.chain.decide(&user, &request).now_or_never() {
            Some(verdict) => {
                let decision = decision(verdict);
                self.known(|known| known.answers.insert(key, decision.clone()));
                decision
            }
            None => {
                self.known(|known| known.open.push((user, request)));
                Decision::default().with_error("the answer is not there yet")
            }
        }
    }
}
