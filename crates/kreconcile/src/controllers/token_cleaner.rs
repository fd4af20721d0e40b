//! Bootstrap tokens that have expired (KEP-130).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kcore::Clock;

use crate::{
    controller::Controller,
    controllers::Context,
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, Requests},
    resource::Selection,
    trigger::{MapTo, Trigger},
};

pub(crate) const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";

/// The controller `token-cleaner-controller`: deletes the bootstrap tokens in `kube-system` whose `expiration` has come, and
/// those whose `expiration` can't be read.
pub fn token_cleaner(context: &Context) -> Controller {
    const NAME: &str = "token-cleaner-controller";
    let tokens = Selection::all().namespace("kube-system").fields(format!("type={TOKEN_TYPE}"));
    let secrets = context.informers().of::<Secret>(tokens);
    let reconciler = TokenCleaner {
        secrets: secrets.clone(),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
    };
    Controller::new(NAME, reconciler).on(Trigger::new(&secrets, MapTo::Itself))
}

/// How long until a token has to go; `None` when it stays.
fn time_left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    if secret.type_.as_deref() != Some(TOKEN_TYPE) {
        return None;
    }
    let expiration = secret.data.as_ref()?.get("expiration").filter(|text| !text.0.is_empty())?;
    let at = std::str::from_utf8(&expiration.0).ok().and_then(|text| text.parse::<Timestamp>().ok());
    let left = at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    Some(left.unwrap_or_default())
}

struct TokenCleaner {
    secrets: Informer<Secret>,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for TokenCleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else { return Ok(Action::Done) };
        match time_left(&secret, self.clock.now()) {
            None => return Ok(Action::Done),
            Some(left) if !left.is_zero() => return Ok(Action::After(left)),
            Some(_) => {}
        }
        let path = self.secrets.resource().path(&key.namespace, &key.name);
        let how = DeleteHow { uid: secret.metadata.uid.clone(), ..DeleteHow::default() };
        match self.requests.delete(&path, &how).await {
            // It is another one by now.
            Err(error) if !request::is_not_found(&error) && !request::is_conflict(&error) => {
                Err(error.into())
            }
            _ => Ok(Action::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    /// The cases of upstream's `tokencleaner_test.go`.
    #[test]
    fn tokens_go_when_they_expire() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let cases = [
            (TOKEN_TYPE, None, None),
            (TOKEN_TYPE, Some(""), None),
            (TOKEN_TYPE, Some("2030-01-01T01:00:00Z"), Some(3600)),
            (TOKEN_TYPE, Some("2030-01-01T02:00:00+01:00"), Some(3600)),
            (TOKEN_TYPE, Some("2029-12-31T23:00:00Z"), Some(0)),
            (TOKEN_TYPE, Some("2030-01-01T00:00:00Z"), Some(0)),
            (TOKEN_TYPE, Some("tomorrow"), Some(0)),
            ("Opaque", Some("2029-12-31T23:00:00Z"), None),
        ];
        for (kind, expiration, expected) in cases {
            let bytes =
                expiration.map(|text| ("expiration".to_owned(), ByteString(text.as_bytes().to_vec())));
            let secret = Secret {
                type_: Some(kind.to_owned()),
                data: Some(bytes.into_iter().collect()),
                ..Secret::default()
            };
            let seen = time_left(&secret, now).map(|left| left.as_secs());
            assert_eq!(seen, expected, "{kind} {expiration:?}");
        }
    }
}
