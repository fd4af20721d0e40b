//! Webhooks that refuse: all at once, as none changes anything.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::Value;

use super::{Refusal, Shown};
use crate::{
    admission::{
        Admission, AdmissionRequest, Phase,
        matching::Asked,
        registered::{Current, Registered},
    },
    authz::Chain,
    error::ApiResult,
};

/// Upstream's `ValidatingAdmissionWebhook`.
#[derive(Debug)]
pub(crate) struct ValidatingWebhooks {
    pub(crate) registered: Arc<Registered>,
    pub(crate) authorizers: Chain,
}

#[async_trait]
impl Admission for ValidatingWebhooks {
    fn name(&self) -> &str {
        "ValidatingAdmissionWebhook"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate
            && self.registered.any(request.objects, |current| !current.validating_webhooks.is_empty())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let current = self.registered.current(request.objects);
        Box::pin(self.dispatch(&current, request, object)).await
    }
}

impl ValidatingWebhooks {
    async fn dispatch(
        &self,
        current: &Current,
        request: &AdmissionRequest<'_>,
        object: &Value,
    ) -> ApiResult<()> {
        let asked = Asked::new(request, object);
        if asked.is_exempt() {
            return Ok(());
        }
        let mut concerned = Vec::new();
        for hook in &current.validating_webhooks {
            if let Some(resource) = hook.concerned(&asked, &self.authorizers).await? {
                let shown = Shown::of(&asked, &resource).await?;
                concerned.push((hook, resource, shown));
            }
        }
        let calls = concerned.iter().map(|(hook, resource, shown)| hook.call(&asked, resource, shown, false));
        for (index, (answer, (hook, ..))) in join_all(calls).await.into_iter().zip(&concerned).enumerate() {
            match answer {
                Ok(_) => {}
                Err(Refusal::Request(error)) => return Err(error),
                Err(Refusal::Call(why)) if hook.ignores => {
                    tracing::warn!(webhook = hook.name, why, "a webhook that fails is passed over");
                    let key =
                        format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
                    request.annotate(key, hook.name.clone());
                }
                Err(Refusal::Call(why)) => return Err(hook.failed(&why)),
            }
        }
        Ok(())
    }
}
