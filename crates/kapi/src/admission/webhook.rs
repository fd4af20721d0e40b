//! Admission webhooks: servers elsewhere that change or refuse what is written (`admission/plugin/webhook`).

mod mutating;
mod review;
mod validating;

use std::{sync::Arc, time::Duration};

use kcel::PolicyEnv;
use kcore::Status;
use serde_json::Value;

pub(crate) use self::{mutating::MutatingWebhooks, validating::ValidatingWebhooks};
use super::{
    matching::{Asked, Constraints},
    policy::{Answers, Conditions, Matched, Surroundings},
    versioned,
};
use crate::{
    authz::Chain,
    error::{ApiError, ApiResult},
    outbound::{CALL_MAX, Target},
    registry::Resource,
};

/// How long a webhook may take that doesn't say how long (`timeoutSeconds`).
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// One webhook of a configuration.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(super) name: String,
    configuration: String,
    /// The same for the same webhook, and for no other of its kind.
    uid: String,
    pub(crate) constraints: Constraints,
    conditions: Conditions,
    target: Result<Target, String>,
    /// The version of reviews that it is sent; `None`: it knows none of ours.
    version: Option<String>,
    /// Whether a call that fails is passed over.
    ignores: bool,
    timeout: Duration,
    /// Whether it may be called although nothing is kept.
    is_harmless: bool,
    is_reinvoked: bool,
}

/// Why a webhook does not let a request pass.
#[derive(Debug)]
enum Refusal {
    /// It could not be asked; its failure policy says what comes of it.
    Call(String),
    /// The request is answered with this.
    Request(ApiError),
}

impl Webhook {
    /// All of a configuration of either kind.
    pub(crate) fn all(object: &Value) -> Vec<Arc<Self>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let configuration = text(&object["metadata"]["name"]);
        let env = PolicyEnv::new(false);
        let hooks = object["webhooks"].as_array().into_iter().flatten().enumerate();
        let made = hooks.map(|(index, hook)| {
            let name = text(&hook["name"]);
            let versions = hook["admissionReviewVersions"].as_array().into_iter().flatten();
            let mut versions = versions.filter_map(Value::as_str);
            let effects = hook["sideEffects"].as_str().unwrap_or_default();
            let timeout = hook["timeoutSeconds"].as_u64().map_or(TIMEOUT_DEFAULT, Duration::from_secs);
            Arc::new(Self {
                uid: format!("{configuration}/{name}/{index}"),
                configuration: configuration.clone(),
                constraints: Constraints::new(hook, false),
                conditions: Conditions::new(hook, &env),
                target: Target::of_webhook(&hook["clientConfig"]),
                version: versions.find(|version| ["v1", "v1beta1"].contains(version)).map(str::to_owned),
                ignores: hook["failurePolicy"] == "Ignore",
                timeout: timeout.min(CALL_MAX),
                is_harmless: ["None", "NoneOnDryRun"].contains(&effects),
                is_reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
                name,
            })
        });
        made.collect()
    }

    /// The resource, in the version that the webhook asks for, if it is to be called.
    async fn concerned(&self, asked: &Asked<'_>, authorizers: &Chain) -> ApiResult<Option<Arc<Resource>>> {
        let Some(resource) = self.constraints.find(asked)? else {
            return Ok(None);
        };
        if self.conditions.is_empty() {
            return Ok(Some(resource));
        }
        let shown = Shown::of(asked, &resource).await?;
        let answers = Answers::new(authorizers, asked.request.user);
        let surroundings =
            Surroundings::new(asked, &resource, shown.object.as_deref(), shown.old.as_deref(), &answers);
        match self.conditions.decide(&surroundings).await {
            Matched::Yes => Ok(Some(resource)),
            Matched::No => Ok(None),
            Matched::Failed(why) => {
                let def = &asked.request.resource.def;
                Err(Status::forbidden(&def.group, &def.plural, asked.name(), &why).into())
            }
        }
    }

    /// 500 for a webhook that could not be asked and must be.
    fn failed(&self, why: &str) -> ApiError {
        Status::internal(format!("failed calling webhook {:?}: {why}", self.name)).into()
    }
}

/// The two states of an object as a webhook sees them.
struct Shown<'a> {
    object: Option<std::borrow::Cow<'a, Value>>,
    old: Option<std::borrow::Cow<'a, Value>>,
}

impl<'a> Shown<'a> {
    async fn of(asked: &Asked<'a>, resource: &Resource) -> ApiResult<Self> {
        let object = match asked.object {
            Some(object) => Some(versioned::shown(asked, object, resource).await?),
            None => None,
        };
        let old = match asked.old {
            Some(old) => Some(versioned::shown(asked, old, resource).await?),
            None => None,
        };
        Ok(Self { object, old })
    }
}
