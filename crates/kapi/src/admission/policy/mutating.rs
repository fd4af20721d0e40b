//! Policies that change what is written (`admission/plugin/policy/mutating`).

use std::sync::Arc;

use async_trait::async_trait;
use kcel::{Object, Value as CelValue, limits::REQUEST_COST_MAX};
use kcore::status::StatusCause;
use kschema::{
    apply::merge_configuration,
    patch::{JsonPatchError, Operation as PatchOperation, apply_json},
};
use serde_json::{Map, Value, json};

use super::{
    Binding, Matched, Mutation, Policy,
    ask::{Answers, ROUNDS_MAX},
    scope::{Scope, Surroundings},
};
use crate::{
    admission::{
        Admission, AdmissionRequest, Operation, Phase,
        matching::Asked,
        registered::{Current, Registered},
        rounds::Rounds,
        versioned,
    },
    authz::Chain,
    error::{ApiError, ApiResult},
    registry::Resource,
};

/// Upstream's `MutatingAdmissionPolicy`.
#[derive(Debug)]
pub(crate) struct MutatingPolicies {
    pub(crate) registered: Arc<Registered>,
    pub(crate) authorizers: Chain,
}

/// What goes wrong with a mutation.
enum Trouble {
    /// The policy is at fault.
    Policy(String),
    /// The request is answered with this.
    Request(ApiError),
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self::Request(error)
    }
}

/// What a policy is refused for, and whether the answer says so as a fault of the object.
struct Fault {
    message: String,
    is_invalid: bool,
}

/// A policy that is asked, through a binding, with parameters.
struct Invocation<'i> {
    policy: &'i Policy,
    binding: &'i Binding,
    resource: Arc<Resource>,
    params: Value,
}

#[async_trait]
impl Admission for MutatingPolicies {
    fn name(&self) -> &str {
        "MutatingAdmissionPolicy"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Admit
            && request.operation != Operation::Delete
            && self.registered.any(request.objects, |current| !current.mutating_policies.is_empty())
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let current = self.registered.current(request.objects);
        Box::pin(self.ask_all(&current, request, object)).await
    }
}

impl MutatingPolicies {
    async fn ask_all(
        &self,
        current: &Current,
        request: &AdmissionRequest<'_>,
        object: &mut Value,
    ) -> ApiResult<()> {
        if Asked::new(request, object).is_exempt() {
            return Ok(());
        }
        let mut faults = Vec::new();
        let mut invocations = Vec::new();
        for bound in &current.mutating_policies {
            let asked = Asked::new(request, object);
            collect(&asked, &bound.policy, &bound.bindings, &mut invocations, &mut faults).await;
        }
        if !invocations.is_empty() {
            let fallback = Rounds::default();
            let rounds = request.rounds.unwrap_or(&fallback);
            if rounds.is_second() {
                rounds.policies.begin_second(object);
            }
            let answers = Answers::new(&self.authorizers, request.user);
            for invocation in &invocations {
                invocation.run(request, object, rounds, &answers, &mut faults).await?;
            }
            rounds.policies.leave(object);
        }
        match refusal(&Asked::new(request, object), faults) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Finds out through which bindings and with which parameters a policy is asked.
async fn collect<'i>(
    asked: &Asked<'_>,
    policy: &'i Policy,
    bindings: &'i [Arc<Binding>],
    invocations: &mut Vec<Invocation<'i>>,
    faults: &mut Vec<Fault>,
) {
    let mut fault = |binding: Option<&Binding>, why: &str| {
        let what = if binding.is_some() { "binding" } else { "policy" };
        faults.extend(policy.fault(binding, &format!("failed to configure {what}: {why}"), false));
    };
    let resource = match policy.constraints.find(asked) {
        Ok(Some(resource)) => resource,
        Ok(None) => return,
        Err(error) => return fault(None, &error.0.message),
    };
    let param_resource = match policy.param_resource(asked) {
        Ok(found) => found,
        Err(why) => return fault(None, &why),
    };
    for binding in bindings {
        match binding.constraints.as_ref().map(|constraints| constraints.find(asked)) {
            Some(Ok(None)) => continue,
            Some(Err(error)) => {
                fault(Some(binding), &error.0.message);
                continue;
            }
            _ => {}
        }
        match binding.params(asked, param_resource.as_deref()).await {
            Ok(params) => invocations.extend(params.into_iter().map(|params| Invocation {
                policy,
                binding,
                resource: Arc::clone(&resource),
                params,
            })),
            Err(why) => fault(Some(binding), &why),
        }
    }
}

impl Policy {
    fn fault(&self, binding: Option<&Binding>, why: &str, is_invalid: bool) -> Option<Fault> {
        let message = match binding {
            Some(binding) => {
                format!("policy '{}' with binding '{}' denied request: {why}", self.name, binding.name)
            }
            None => format!("policy {:?} denied request: {why}", self.name),
        };
        self.fails.then_some(Fault { message, is_invalid })
    }
}

fn refusal(asked: &Asked<'_>, faults: Vec<Fault>) -> Option<ApiError> {
    let first = faults.first()?;
    let mut status = asked.forbidden("");
    status.message.clone_from(&first.message);
    if first.is_invalid {
        "Invalid".clone_into(&mut status.reason);
    }
    if let Some(details) = &mut status.details {
        let causes =
            faults.into_iter().map(|fault| StatusCause { message: fault.message, ..StatusCause::default() });
        details.causes.extend(causes);
    }
    Some(status.into())
}

impl Invocation<'_> {
    fn key(&self) -> String {
        let meta = &self.params["metadata"];
        let text = |key: &str| meta[key].as_str().unwrap_or_default();
        format!("{}\n{}\n{}\n{}", self.policy.name, self.binding.name, text("namespace"), text("name"))
    }

    async fn run(
        &self,
        request: &AdmissionRequest<'_>,
        object: &mut Value,
        rounds: &Rounds,
        answers: &Arc<Answers>,
        faults: &mut Vec<Fault>,
    ) -> ApiResult<()> {
        let refused = |why: &str| self.policy.fault(Some(self.binding), why, true);
        match self.matches(request, object, answers).await? {
            Matched::Yes => {}
            Matched::No => return Ok(()),
            Matched::Failed(why) => {
                faults.extend(refused(&why));
                return Ok(());
            }
        }
        let key = self.key();
        if rounds.is_second() && !rounds.policies.is_due(&key) {
            return Ok(());
        }
        let before = object.clone();
        for mutation in &self.policy.mutations {
            match self.mutated(request, object, mutation, answers).await {
                Ok(changed) => *object = changed,
                Err(Trouble::Policy(why)) => faults.extend(refused(&why)),
                Err(Trouble::Request(error)) => return Err(error),
            }
        }
        if *object != before {
            rounds.policies.changed();
            rounds.want_another();
        }
        if self.policy.is_reinvoked {
            rounds.policies.remember(key);
        }
        Ok(())
    }

    async fn matches(
        &self,
        request: &AdmissionRequest<'_>,
        object: &Value,
        answers: &Arc<Answers>,
    ) -> ApiResult<Matched> {
        if self.policy.conditions.is_empty() {
            return Ok(Matched::Yes);
        }
        let asked = Asked::new(request, object);
        let shown = versioned::shown(&asked, object, &self.resource).await?;
        let old = match asked.old {
            Some(old) => Some(versioned::shown(&asked, old, &self.resource).await?),
            None => None,
        };
        let mut surroundings =
            Surroundings::new(&asked, &self.resource, Some(&shown), old.as_deref(), answers);
        surroundings.params = &self.params;
        Ok(self.policy.conditions.decide(&surroundings).await)
    }

    /// The object after one mutation, in the form that the chain works on.
    async fn mutated(
        &self,
        request: &AdmissionRequest<'_>,
        object: &Value,
        mutation: &Mutation,
        answers: &Arc<Answers>,
    ) -> Result<Value, Trouble> {
        let asked = Asked::new(request, object);
        let shown = versioned::shown(&asked, object, &self.resource).await?;
        let old = match asked.old {
            Some(old) => Some(versioned::shown(&asked, old, &self.resource).await?),
            None => None,
        };
        let namespace = super::namespace_object(&asked);
        let mut surroundings =
            Surroundings::new(&asked, &self.resource, Some(&shown), old.as_deref(), answers);
        surroundings.params = &self.params;
        surroundings.namespace = namespace.as_ref();
        let mut made = self.policy.made(&surroundings, mutation);
        for _ in 0..ROUNDS_MAX {
            if !answers.fetch().await {
                break;
            }
            made = self.policy.made(&surroundings, mutation);
        }
        let made = made.map_err(Trouble::Policy)?;
        let (changed, strict) = match mutation {
            Mutation::Patch(_) => (patched(&shown, &made)?, true),
            Mutation::Configuration(_) => (self.configured(request, &shown, made)?, false),
        };
        if changed == *shown {
            return Ok(object.clone());
        }
        if !versioned::is_whole(request) {
            return versioned::scaled_back(&asked, object, &changed).map_err(Trouble::from);
        }
        versioned::taken_back(&asked, changed, &self.resource, strict).await.map_err(Trouble::from)
    }

    fn configured(
        &self,
        request: &AdmissionRequest<'_>,
        shown: &Value,
        mut made: Value,
    ) -> Result<Value, Trouble> {
        for key in ["apiVersion", "kind"] {
            made[key] = shown[key].clone();
        }
        let catalog = request.objects.registry().catalog();
        let scale = catalog.find("~autoscaling.v1.Scale").map(crate::schema::Type::Named);
        let schema = match scale.as_ref().filter(|_| request.subresource == "scale") {
            Some(scale) => scale,
            None => &self.resource.version().schema,
        };
        let merged = merge_configuration(catalog, schema, shown, &made);
        merged.map_err(|error| Trouble::Policy(format!("error applying patch: {error}")))
    }
}

fn patched(shown: &Value, operations: &Value) -> Result<Value, Trouble> {
    let operations: Vec<PatchOperation> = serde_json::from_value(operations.clone())
        .map_err(|error| Trouble::Policy(format!("JSON Patch: {error}")))?;
    match apply_json(shown, &operations) {
        Ok(patched) => Ok(patched),
        // A test that fails says that there is nothing to do.
        Err(JsonPatchError::Test(_)) => Ok(shown.clone()),
        Err(error) => Err(Trouble::Policy(format!("JSON Patch: {error}"))),
    }
}

impl Policy {
    /// What the expression of a mutation makes: a configuration, or operations.
    fn made(&self, surroundings: &Surroundings<'_>, mutation: &Mutation) -> Result<Value, String> {
        let scope = Scope::new(surroundings, &self.variables, REQUEST_COST_MAX);
        let places = scope.places();
        scope.begin(&places);
        match mutation {
            Mutation::Configuration(expression) => {
                let value = scope.value(expression).map_err(|failure| failure.text().to_owned())?;
                let CelValue::Object(object) = &value else {
                    return Err("unsupported return type from ApplyConfiguration expression".to_owned());
                };
                check_names(object)?;
                value.to_json().map_err(|error| error.to_string())
            }
            Mutation::Patch(expression) => {
                let value = scope.value(expression).map_err(|failure| failure.text().to_owned())?;
                let CelValue::List(list) = &value else {
                    return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
                };
                let operations = list.iter().map(|item| operation(&item.map_err(|error| error.to_string())?));
                operations.collect::<Result<Vec<_>, String>>().map(Value::Array)
            }
        }
    }
}

fn operation(value: &CelValue<'_>) -> Result<Value, String> {
    const WHY: &str = "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch";
    let CelValue::Object(object) = value else {
        return Err(WHY.to_owned());
    };
    let mut operation = Map::new();
    for (name, value) in object.fields() {
        if let ("value", CelValue::Object(object)) = (name, value) {
            check_names(object)?;
        }
        let json = value.to_json().map_err(|error| {
            format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {error}")
        })?;
        if name != "from" || json != "" {
            operation.insert(name.to_owned(), json);
        }
    }
    Ok(json!(operation))
}

/// Checks that the type of each object that an expression made says where it stands (`CheckTypeNamesMatchFieldPathNames`). As
/// deep as the expression, whose depth is limited.
fn check_names(object: &Object<'_>) -> Result<(), String> {
    let mut faults = Vec::new();
    names(object, "Object", &mut faults);
    if faults.is_empty() { Ok(()) } else { Err(format!("type mismatch: {}", faults.join("\n"))) }
}

fn names(object: &Object<'_>, expected: &str, faults: &mut Vec<String>) {
    let name = object.type_name();
    if name != expected {
        faults.push(format!(
            "unexpected type name {name:?}, expected {expected:?}, which matches field name path from root Object type"
        ));
        return;
    }
    for (field, value) in object.fields() {
        names_in(value, &format!("{expected}.{field}"), faults);
    }
}

fn names_in(value: &CelValue<'_>, expected: &str, faults: &mut Vec<String>) {
    match value {
        CelValue::Object(object) => names(object, expected, faults),
        CelValue::List(list) => {
            for item in list.iter().flatten() {
                names_in(&item, expected, faults);
            }
        }
        CelValue::Optional(Some(inner)) => names_in(inner, expected, faults),
        _ => {}
    }
}
