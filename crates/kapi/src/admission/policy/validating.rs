//! Policies that refuse (`admission/plugin/policy/validating`).

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use kcel::{Value as CelValue, limits::REQUEST_COST_MAX};
use kcore::status::StatusCause;
use serde_json::{Value, json};

use super::{
    Binding, Matched, Policy, Validation,
    ask::{Answers, ROUNDS_MAX},
    scope::{Failure, Scope, Surroundings},
};
use crate::{
    admission::{
        Admission, AdmissionRequest, Phase,
        matching::Asked,
        registered::{Current, Registered},
        versioned,
    },
    authz::Chain,
    error::ApiResult,
};

/// The longest message that an expression may make, in bytes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// The longest value of an annotation, in bytes.
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;

/// Upstream's `ValidatingAdmissionPolicy`.
#[derive(Debug)]
pub(crate) struct ValidatingPolicies {
    pub(crate) registered: Arc<Registered>,
    pub(crate) authorizers: Chain,
}

/// Why a request is refused.
struct Denial {
    policy: String,
    binding: Option<String>,
    message: String,
    reason: String,
}

/// What one evaluation of a policy found.
#[derive(Default)]
struct Findings {
    /// The index of the validation, its message and reason.
    denied: Vec<(usize, String, String)>,
    annotations: Vec<(String, String)>,
    /// Annotations that could not be made.
    broken: Vec<String>,
}

#[async_trait]
impl Admission for ValidatingPolicies {
    fn name(&self) -> &str {
        "ValidatingAdmissionPolicy"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate
            && self.registered.any(request.objects, |current| !current.validating_policies.is_empty())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let current = self.registered.current(request.objects);
        Box::pin(self.ask_all(&current, request, object)).await
    }
}

impl ValidatingPolicies {
    async fn ask_all(
        &self,
        current: &Current,
        request: &AdmissionRequest<'_>,
        object: &Value,
    ) -> ApiResult<()> {
        let asked = Asked::new(request, object);
        if asked.is_exempt() {
            return Ok(());
        }
        let answers = Answers::new(&self.authorizers, request.user);
        let mut denials = Vec::new();
        for bound in &current.validating_policies {
            if let Err(why) = ask(&asked, &bound.policy, &bound.bindings, &answers, &mut denials).await
                && bound.policy.fails
            {
                let message = format!("failed to configure policy: {why}");
                denials.push(denial(&bound.policy, None, message, String::new()));
            }
        }
        match denials.first() {
            Some(first) => Err(first.status(&asked).into()),
            None => Ok(()),
        }
    }
}

impl Denial {
    fn status(&self, asked: &Asked<'_>) -> kcore::Status {
        let Self { policy, binding, message, reason } = self;
        let message = match binding {
            Some(binding) => format!(
                "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}"
            ),
            None => format!("ValidatingAdmissionPolicy '{policy}' denied request: {message}"),
        };
        let mut status = asked.forbidden(&message);
        status.reason = if reason.is_empty() { "Invalid".to_owned() } else { reason.clone() };
        status.code = match status.reason.as_str() {
            "Forbidden" => 403,
            "Unauthorized" => 401,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        if let Some(details) = &mut status.details {
            details.causes.push(StatusCause { message, ..StatusCause::default() });
        }
        status
    }
}

fn denial(policy: &Policy, binding: Option<&Binding>, message: String, reason: String) -> Denial {
    Denial {
        policy: policy.name.clone(),
        binding: binding.map(|binding| binding.name.clone()),
        message,
        reason,
    }
}

/// Asks one policy through all its bindings; what is wrong with the policy itself is the error.
async fn ask(
    asked: &Asked<'_>,
    policy: &Policy,
    bindings: &[Arc<Binding>],
    answers: &Arc<Answers>,
    denials: &mut Vec<Denial>,
) -> Result<(), String> {
    let Some(resource) = policy.constraints.find(asked).map_err(|error| error.0.message)? else {
        return Ok(());
    };
    let param_resource = policy.param_resource(asked)?;
    let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for binding in bindings {
        let configured = async {
            if let Some(constraints) = &binding.constraints
                && constraints.find(asked).map_err(|error| error.0.message)?.is_none()
            {
                return Ok(None);
            }
            let params = binding.params(asked, param_resource.as_deref()).await?;
            let mut shown = [None, None];
            for (place, object) in shown.iter_mut().zip([asked.object, asked.old]) {
                if let Some(object) = object.filter(|_| !params.is_empty()) {
                    let converted = versioned::shown(asked, object, &resource).await;
                    *place =
                        Some(converted.map_err(|error| {
                            format!("failed to convert object version: {}", error.0.message)
                        })?);
                }
            }
            Ok(Some((params, shown)))
        };
        let (params, [object, old]) = match configured.await {
            Ok(None) => continue,
            Ok(Some(found)) => found,
            Err(why) => {
                let why: String = why;
                if policy.fails {
                    let message = format!("failed to configure binding: {why}");
                    denials.push(denial(policy, Some(binding), message, String::new()));
                }
                continue;
            }
        };
        let namespace = super::namespace_object(asked);
        for param in &params {
            let mut surroundings =
                Surroundings::new(asked, &resource, object.as_deref(), old.as_deref(), answers);
            surroundings.params = param;
            let mut findings = policy.evaluate(&mut surroundings, namespace.as_ref());
            for _ in 0..ROUNDS_MAX {
                if !answers.fetch().await {
                    break;
                }
                findings = policy.evaluate(&mut surroundings, namespace.as_ref());
            }
            tell(asked, policy, binding, findings, &mut annotations, denials);
        }
    }
    for (key, values) in annotations {
        asked.request.annotate(format!("{}/{key}", policy.name), values.join(", "));
    }
    Ok(())
}

/// Does with the findings what the binding says.
fn tell(
    asked: &Asked<'_>,
    policy: &Policy,
    binding: &Binding,
    findings: Findings,
    annotations: &mut BTreeMap<String, Vec<String>>,
    denials: &mut Vec<Denial>,
) {
    for (index, message, reason) in findings.denied {
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => denials.push(denial(policy, Some(binding), message.clone(), reason.clone())),
                "Warn" => asked.request.warn(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                    policy.name, binding.name
                )),
                _ => {
                    let value = json!([{
                        "message": message, "policy": binding.policy, "binding": binding.name,
                        "expressionIndex": index, "validationActions": binding.actions,
                    }]);
                    let key = "validation.policy.admission.k8s.io/validation_failure";
                    asked.request.annotate(key, value.to_string());
                }
            }
        }
    }
    for (key, value) in findings.annotations {
        let values = annotations.entry(key).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }
    for why in findings.broken {
        denials.push(denial(policy, Some(binding), why, String::new()));
    }
}

impl Policy {
    /// What a failure comes to: it refuses the request, or nothing.
    fn failed(&self, why: &str) -> Findings {
        let denied = self.fails.then(|| (0, why.to_owned(), String::new()));
        Findings { denied: denied.into_iter().collect(), ..Findings::default() }
    }

    fn evaluate<'s>(&'s self, surroundings: &mut Surroundings<'s>, namespace: Option<&'s Value>) -> Findings {
        // Conditions don't see the namespace.
        surroundings.namespace = None;
        match self.conditions.evaluate(surroundings) {
            Matched::Yes => {}
            Matched::No => return Findings::default(),
            Matched::Failed(why) => return self.failed(&why),
        }
        surroundings.namespace = namespace;
        let surroundings = &*surroundings;
        let scope = Scope::new(surroundings, &self.variables, REQUEST_COST_MAX);
        let places = scope.places();
        scope.begin(&places);
        let mut results = Vec::with_capacity(self.validations.len());
        for validation in &self.validations {
            match scope.value(&validation.expression) {
                Err(Failure::Budget) => return self.failed(Failure::Budget.text()),
                other => results.push(other),
            }
        }
        let mut findings = Findings::default();
        for (index, (validation, result)) in self.validations.iter().zip(results).enumerate() {
            match result {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => {
                    let reason = validation.reason.clone().unwrap_or_else(|| "Invalid".to_owned());
                    match validation.message(&scope) {
                        Ok(message) => findings.denied.push((index, message, reason)),
                        Err(_) if !self.fails => {}
                        Err(failure) => {
                            let why = format!("failed messageExpression: {}", failure.text());
                            findings.denied.push((index, why, String::new()));
                        }
                    }
                }
                Err(failure) if self.fails => {
                    findings.denied.push((index, failure.text().to_owned(), String::new()));
                }
                Err(_) => {}
            }
        }
        self.annotate(surroundings, &mut findings);
        findings
    }

    fn annotate(&self, surroundings: &Surroundings<'_>, findings: &mut Findings) {
        if self.annotations.is_empty() {
            return;
        }
        let scope = Scope::new(surroundings, &self.variables, REQUEST_COST_MAX);
        let places = scope.places();
        scope.begin(&places);
        for annotation in &self.annotations {
            match scope.value(&annotation.value) {
                Ok(CelValue::String(text)) if !text.trim().is_empty() => {
                    let mut text = text.trim().to_owned();
                    let end = (0..=ANNOTATION_BYTES_MAX.min(text.len())).rev();
                    text.truncate(end.into_iter().find(|end| text.is_char_boundary(*end)).unwrap_or(0));
                    findings.annotations.push((annotation.key.clone(), text));
                }
                Ok(_) => {}
                Err(failure) if self.fails => findings.broken.push(failure.text().to_owned()),
                Err(_) => {}
            }
        }
    }
}

impl Validation {
    /// What is said of an object that is refused: what the expression makes, if it is one line, or else what stands there.
    fn message<'s>(&'s self, scope: &'s Scope<'s>) -> Result<String, Failure> {
        if let Some(expression) = &self.message_expression {
            match scope.value(expression) {
                Ok(CelValue::String(text)) => {
                    let text = text.trim();
                    if !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n') {
                        return Ok(text.to_owned());
                    }
                }
                Ok(_) | Err(Failure::Expression(_)) => {}
                Err(Failure::Budget) => return Err(Failure::Budget),
            }
        }
        if self.message.is_empty() {
            return Ok(format!("failed expression: {}", self.expression.text.trim()));
        }
        Ok(self.message.clone())
    }
}
