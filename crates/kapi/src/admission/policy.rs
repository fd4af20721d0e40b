//! Admission policies: rules written in CEL (KEP-3488, KEP-3962).
//!
//! A policy is compiled once per revision ([`Policy`]); a request that it is about is evaluated in a [`Scope`](scope::Scope).

mod ask;
mod condition;
mod mutating;
mod params;
mod scope;
mod types;
mod validating;

use kcel::{PolicyEnv, Program, Purpose};
use serde_json::Value;

pub(crate) use self::{
    ask::Answers,
    condition::{Conditions, Matched},
    mutating::MutatingPolicies,
    scope::{Surroundings, request_of},
    types::{is_checked, settle},
    validating::ValidatingPolicies,
};
use super::matching::{Asked, Constraints};

/// An expression, compiled or not.
#[derive(Debug)]
pub(crate) struct Expression {
    text: String,
    program: Result<Program, String>,
}

impl Expression {
    pub(crate) fn new(env: &PolicyEnv, purpose: Purpose, text: &str) -> Self {
        let program = env.compile(purpose, text).map_err(|error| format!("compilation error: {error}"));
        Self { text: text.to_owned(), program }
    }
}

/// A named expression that others may use.
#[derive(Debug)]
pub(crate) struct Variable {
    name: String,
    /// As expressions name it.
    path: String,
    program: Result<Program, String>,
}

#[derive(Debug)]
struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: Option<String>,
}

#[derive(Debug)]
struct Annotation {
    key: String,
    value: Expression,
}

#[derive(Debug)]
enum Mutation {
    Configuration(Expression),
    Patch(Expression),
}

/// A policy of either kind.
#[derive(Debug)]
pub(crate) struct Policy {
    name: String,
    /// Whether what goes wrong refuses the request.
    fails: bool,
    pub(crate) constraints: Constraints,
    /// `apiVersion` and `kind` of the parameters.
    params: Option<(String, String)>,
    conditions: Conditions,
    variables: Vec<Variable>,
    validations: Vec<Validation>,
    annotations: Vec<Annotation>,
    mutations: Vec<Mutation>,
    is_reinvoked: bool,
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

impl Policy {
    /// Compiles a policy of either kind.
    pub(crate) fn new(object: &Value) -> Self {
        let spec = &object["spec"];
        let kind = &spec["paramKind"];
        let params = kind.is_object().then(|| (text(kind, "apiVersion"), text(kind, "kind")));
        let mut env = PolicyEnv::new(params.is_some()).with_variables();
        let conditions = Conditions::new(spec, &env);
        let variables = list(spec, "variables").map(|variable| {
            let name = text(variable, "name");
            let program = env.declare(&name, &text(variable, "expression"));
            let program = program.map_err(|error| format!("compilation error: {error}"));
            Variable { path: format!("variables.{name}"), name, program }
        });
        let variables = variables.collect();
        let validations = list(spec, "validations").map(|one| Validation {
            expression: Expression::new(&env, Purpose::Validation, &text(one, "expression")),
            message: text(one, "message").trim().to_owned(),
            message_expression: one["messageExpression"]
                .as_str()
                .filter(|text| !text.is_empty())
                .map(|text| Expression::new(&env, Purpose::Message, text)),
            reason: one["reason"].as_str().map(str::to_owned),
        });
        let validations = validations.collect();
        let annotations = list(spec, "auditAnnotations").map(|one| Annotation {
            key: text(one, "key"),
            value: Expression::new(&env, Purpose::AuditAnnotation, &text(one, "valueExpression")),
        });
        let annotations = annotations.collect();
        let mutations = list(spec, "mutations").filter_map(|one| {
            let expression =
                |key: &str, purpose| Some(Expression::new(&env, purpose, one[key]["expression"].as_str()?));
            match one["patchType"].as_str()? {
                "JSONPatch" => expression("jsonPatch", Purpose::JsonPatch).map(Mutation::Patch),
                _ => {
                    expression("applyConfiguration", Purpose::ApplyConfiguration).map(Mutation::Configuration)
                }
            }
        });
        let mutations = mutations.collect();
        Self {
            name: text(&object["metadata"], "name"),
            fails: spec["failurePolicy"] != "Ignore",
            constraints: Constraints::new(&spec["matchConstraints"], false),
            params,
            conditions,
            variables,
            validations,
            annotations,
            mutations,
            is_reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
        }
    }
}

/// A binding of a policy of either kind.
#[derive(Debug)]
pub(crate) struct Binding {
    name: String,
    pub(crate) policy: String,
    /// `None`: whatever the policy is about.
    constraints: Option<Constraints>,
    params: Option<Value>,
    actions: Vec<String>,
}

impl Binding {
    pub(crate) fn new(object: &Value) -> Self {
        let spec = &object["spec"];
        Self {
            name: text(&object["metadata"], "name"),
            policy: text(spec, "policyName"),
            constraints: spec["matchResources"]
                .is_object()
                .then(|| Constraints::new(&spec["matchResources"], true)),
            params: spec["paramRef"].is_object().then(|| spec["paramRef"].clone()),
            actions: list(spec, "validationActions").filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }
}

/// The namespace of a request as expressions see it: without what only the server and its tools need.
fn namespace_object(asked: &Asked<'_>) -> Option<Value> {
    if asked.is_namespace() || asked.namespace().is_empty() {
        return None;
    }
    let found = asked.request.objects.find("", "v1", "namespaces", "", asked.namespace())?;
    let mut namespace = found.value().ok()?;
    if let Some(meta) = namespace["metadata"].as_object_mut() {
        meta.remove("managedFields");
        meta.remove("ownerReferences");
    }
    Some(namespace)
}
