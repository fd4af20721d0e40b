//! Webhooks that change what is written: one after the other, each sees what those before it have made.

use std::sync::Arc;

use async_trait::async_trait;
use kcore::Status;
use kschema::patch::{OPERATIONS_MAX, Operation as PatchOperation, apply_json};
use serde_json::{Value, json};

use super::{Refusal, Shown, Webhook};
use crate::{
    admission::{
        Admission, AdmissionRequest, Operation, Phase,
        matching::Asked,
        registered::{Current, Registered},
        rounds::Rounds,
        versioned,
    },
    authz::Chain,
    error::ApiResult,
    registry::Resource,
};

/// Upstream's `MutatingAdmissionWebhook`.
#[derive(Debug)]
pub(crate) struct MutatingWebhooks {
    pub(crate) registered: Arc<Registered>,
    pub(crate) authorizers: Chain,
}

#[async_trait]
impl Admission for MutatingWebhooks {
    fn name(&self) -> &str {
        "MutatingAdmissionWebhook"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        (phase == Phase::Admit || request.operation == Operation::Delete)
            && self.registered.any(request.objects, |current| !current.mutating_webhooks.is_empty())
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let current = self.registered.current(request.objects);
        Box::pin(self.dispatch(&current, request, object)).await
    }

    /// Of deletions they are told too; there is nothing to change.
    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let current = self.registered.current(request.objects);
        Box::pin(self.dispatch(&current, request, &mut object.clone())).await
    }
}

impl MutatingWebhooks {
    async fn dispatch(
        &self,
        current: &Current,
        request: &AdmissionRequest<'_>,
        object: &mut Value,
    ) -> ApiResult<()> {
        if Asked::new(request, object).is_exempt() {
            return Ok(());
        }
        let fallback = Rounds::default();
        let rounds = request.rounds.unwrap_or(&fallback);
        if rounds.is_second() {
            rounds.webhooks.begin_second(object);
        }
        let mut called = false;
        for (index, hook) in current.mutating_webhooks.iter().enumerate() {
            let asked = Asked::new(request, object);
            let Some(resource) = hook.concerned(&asked, &self.authorizers).await? else {
                continue;
            };
            if rounds.is_second() && !rounds.webhooks.is_due(&hook.uid) {
                continue;
            }
            called = true;
            let place = format!("round_{}_index_{index}", usize::from(rounds.is_second()));
            let changed = match hook.mutated(&asked, &resource).await {
                Ok(changed) => changed,
                Err(Refusal::Request(error)) => return Err(error),
                Err(Refusal::Call(why)) if hook.ignores => {
                    tracing::warn!(webhook = hook.name, why, "a webhook that fails is passed over");
                    let key = format!("failed-open.mutation.webhook.admission.k8s.io/{place}");
                    request.annotate(key, hook.name.clone());
                    None
                }
                Err(Refusal::Call(why)) => return Err(hook.failed(&why)),
            };
            let value = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed.is_some()});
            request.annotate(format!("mutation.webhook.admission.k8s.io/{place}"), value.to_string());
            if let Some(changed) = changed {
                *object = changed;
                rounds.webhooks.changed();
                rounds.want_another();
            }
            if hook.is_reinvoked {
                rounds.webhooks.remember(hook.uid.clone());
            }
        }
        if called {
            rounds.webhooks.leave(object);
        }
        Ok(())
    }
}

impl Webhook {
    /// The object as the webhook wants it, if it wants it otherwise.
    async fn mutated(&self, asked: &Asked<'_>, resource: &Resource) -> Result<Option<Value>, Refusal> {
        let shown = Shown::of(asked, resource).await.map_err(Refusal::Request)?;
        let answer = self.call(asked, resource, &shown, true).await?;
        let Some(patch) = answer.patch else {
            return Ok(None);
        };
        let operations: Vec<PatchOperation> = serde_json::from_slice(&patch).map_err(|error| {
            Refusal::Call(format!("received undecodable patch in webhook response: {error}"))
        })?;
        if operations.is_empty() {
            return Ok(None);
        }
        let internal = |why: String| Refusal::Request(Status::internal(why).into());
        if operations.len() > OPERATIONS_MAX {
            return Err(internal(format!("the patch has more than {OPERATIONS_MAX} operations")));
        }
        let (Some(object), Some(before)) = (asked.object, shown.object.as_deref()) else {
            return Err(internal(format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                self.name
            )));
        };
        if answer.patch_type != "JSONPatch" {
            return Err(Refusal::Call(format!("unsupported patch type {:?}", answer.patch_type)));
        }
        let changed = apply_json(before, &operations).map_err(|error| internal(error.to_string()))?;
        if changed == *before {
            return Ok(None);
        }
        let back = if versioned::is_whole(asked.request) {
            versioned::taken_back(asked, changed, resource, false).await
        } else {
            versioned::scaled_back(asked, object, &changed)
        };
        back.map(|back| (back != *object).then_some(back)).map_err(Refusal::Request)
    }
}
