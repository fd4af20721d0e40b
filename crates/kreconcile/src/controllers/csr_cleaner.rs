//! Certificate signing requests that nobody needs any more.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::{
    api::certificates::v1::CertificateSigningRequest, apimachinery::pkg::apis::meta::v1::Time,
};
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

/// How long a request is kept after it was approved and its certificate issued, was denied, or has failed.
pub const ANSWERED_REQUEST_AGE_MAX: Duration = Duration::from_secs(3600);
/// How long a request is kept that waits: for an answer from its creation on, for its certificate since it was approved.
pub const WAITING_REQUEST_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The controller `certificatesigningrequest-cleaner-controller`: deletes CertificateSigningRequests
/// [`ANSWERED_REQUEST_AGE_MAX`] after their end, and those that nobody answers after [`WAITING_REQUEST_AGE_MAX`].
///
/// Each goes when its time has come, where upstream looks once an hour; certificates are not read, so one that expires
/// within its first hour is kept for the rest of that hour.
pub fn csr_cleaner(context: &Context) -> Controller {
    const NAME: &str = "certificatesigningrequest-cleaner-controller";
    let signing_requests = context.informers().of::<CertificateSigningRequest>(Selection::all());
    let reconciler = CsrCleaner {
        signing_requests: signing_requests.clone(),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
    };
    Controller::new(NAME, reconciler).on(Trigger::new(&signing_requests, MapTo::Itself))
}

/// How long until a request has to go; `None` when nothing says so.
fn time_left(request: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let status = request.status.as_ref();
    let issued =
        status.and_then(|status| status.certificate.as_ref()).is_some_and(|bytes| !bytes.0.is_empty());
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let left = |since: Option<&Time>, age: Duration| {
        let passed = Duration::try_from(now.duration_since(since?.0)).unwrap_or_default();
        // Older than that, not just as old.
        Some((age + Duration::from_millis(1)).saturating_sub(passed))
    };
    if conditions.is_empty() {
        return left(request.metadata.creation_timestamp.as_ref(), WAITING_REQUEST_AGE_MAX);
    }
    let each = conditions.iter().filter_map(|condition| {
        let age = match &*condition.type_ {
            "Approved" if !issued => WAITING_REQUEST_AGE_MAX,
            "Approved" | "Denied" | "Failed" => ANSWERED_REQUEST_AGE_MAX,
            _ => return None,
        };
        left(condition.last_update_time.as_ref(), age)
    });
    each.min()
}

struct CsrCleaner {
    signing_requests: Informer<CertificateSigningRequest>,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for CsrCleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(found) = self.signing_requests.get("", &key.name) else { return Ok(Action::Done) };
        match time_left(&found, self.clock.now()) {
            None => return Ok(Action::Done),
            Some(left) if !left.is_zero() => return Ok(Action::After(left)),
            Some(_) => {}
        }
        let path = self.signing_requests.resource().path("", &key.name);
        let how = DeleteHow { uid: found.metadata.uid.clone(), ..DeleteHow::default() };
        match self.requests.delete(&path, &how).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(Action::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The cases of upstream's `TestCleanerWithApprovedExpiredCSR`, but for those that read a certificate.
    #[test]
    fn requests_go_when_they_are_old() {
        let now: Timestamp = "2030-01-10T00:00:00Z".parse().unwrap();
        let ago = |minutes: i64| (now - jiff::SignedDuration::from_mins(minutes)).to_string();
        let condition = |kind: &str, minutes: i64| json!([{"type": kind, "status": "True", "lastUpdateTime": ago(minutes)}]);
        let (day, hour) = (24 * 60, 60);
        let cases: [(i64, Value, &str, Option<u64>); 10] = [
            (1, json!(null), "", Some(day - 1)),
            (day as i64 + 1, json!(null), "", Some(0)),
            (1, condition("Approved", 59), "cert", Some(1)),
            (1, condition("Approved", 61), "cert", Some(0)),
            (1, condition("Approved", 61), "", Some(day - 61)),
            (1, condition("Approved", day as i64 + 1), "", Some(0)),
            (1, condition("Denied", 61), "", Some(0)),
            (1, condition("Denied", 30), "", Some(hour - 30)),
            (1, condition("Failed", 61), "", Some(0)),
            (9999, condition("Other", 9999), "", None),
        ];
        for (age, conditions, certificate, minutes) in cases {
            let certificate = (!certificate.is_empty()).then_some("Y2VydA==");
            let request = json!({"metadata": {"creationTimestamp": ago(age)}, "spec": {"request": "", "signerName": ""},
                "status": {"conditions": conditions, "certificate": certificate}});
            let typed: CertificateSigningRequest = serde_json::from_value(request.clone()).unwrap();
            let seen = time_left(&typed, now).map(|left| left.as_secs() / 60);
            assert_eq!(seen, minutes, "{request}");
        }
    }
}
