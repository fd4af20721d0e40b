//! What the expressions of a policy or webhook see in one request, and what they may cost.

use std::{
    cell::{Cell, OnceCell},
    sync::Arc,
};

use kcel::{
    AuthorizerValue, Bindings, Compute, EvalError, Program, ResourceCheck, Value as CelValue,
    limits::PER_CALL_COST_MAX,
};
use serde_json::{Map, Value, json};

use super::{Expression, Variable, ask::Answers};
use crate::{
    admission::{matching::Asked, versioned::Kind},
    registry::Resource,
};

/// How deep variables may use each other.
const VARIABLE_DEPTH_MAX: usize = 32;
/// What is said when expressions cost too much together.
const BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What is the same for all expressions about one request and one resource.
pub(crate) struct Surroundings<'s> {
    pub(crate) object: &'s Value,
    pub(crate) old: &'s Value,
    /// As `request` shows it.
    pub(crate) request: Value,
    /// `None` for what is in no namespace, and for conditions.
    pub(crate) namespace: Option<&'s Value>,
    pub(crate) params: &'s Value,
    pub(crate) answers: Arc<Answers>,
    pub(crate) check: ResourceCheck,
}

pub(crate) static NULL: Value = Value::Null;

impl<'s> Surroundings<'s> {
    pub(crate) fn new(
        asked: &Asked<'_>,
        resource: &Resource,
        object: Option<&'s Value>,
        old: Option<&'s Value>,
        answers: &Arc<Answers>,
    ) -> Self {
        let own = asked.request.resource;
        let check = ResourceCheck {
            group: own.def.group.clone(),
            resource: own.def.plural.clone(),
            subresource: asked.request.subresource.to_owned(),
            namespace: asked.namespace().to_owned(),
            name: asked.name().to_owned(),
            ..ResourceCheck::default()
        };
        Self {
            object: object.unwrap_or(&NULL),
            old: old.unwrap_or(&NULL),
            request: request_of(asked, resource),
            namespace: None,
            params: &NULL,
            answers: Arc::clone(answers),
            check,
        }
    }

    fn bindings(&self) -> Bindings<'_> {
        let authorizer = AuthorizerValue::new(Arc::clone(&self.answers) as _);
        let check = authorizer.resource(self.check.clone());
        let bindings = Bindings::new()
            .json("object", self.object)
            .json("oldObject", self.old)
            .json("request", &self.request)
            .json("params", self.params)
            .with("authorizer", authorizer.value())
            .with("authorizer.requestResource", check);
        match self.namespace {
            Some(namespace) => bindings.json("namespaceObject", namespace),
            None => bindings.with("namespaceObject", CelValue::Null),
        }
    }
}

/// Group, version and resource as reviews show them.
pub(crate) fn resource_of(resource: &Resource) -> Value {
    json!({"group": resource.def.group, "version": resource.version().name, "resource": resource.def.plural})
}

/// The request as expressions and webhooks see it, without its uid and objects.
pub(crate) fn request_of(asked: &Asked<'_>, resource: &Resource) -> Value {
    let request = asked.request;
    let user = request.user;
    let mut shown = json!({
        "kind": Kind::of(asked, resource).json(),
        "resource": resource_of(resource),
        "requestKind": Kind::of(asked, request.resource).json(),
        "requestResource": resource_of(request.resource),
        "operation": request.operation.name(),
        "dryRun": request.dry_run,
    });
    if let Some(options) = request.options() {
        shown["options"] = options;
    }
    for (key, text) in [
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
        ("name", asked.name()),
        ("namespace", asked.namespace()),
    ] {
        if !text.is_empty() {
            shown[key] = json!(text);
        }
    }
    let mut who = Map::new();
    for (key, text) in [("username", &user.name), ("uid", &user.uid)] {
        if !text.is_empty() {
            who.insert(key.to_owned(), json!(text));
        }
    }
    if !user.groups.is_empty() {
        who.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        who.insert("extra".to_owned(), json!(user.extra));
    }
    shown["userInfo"] = Value::Object(who);
    shown
}

/// Why an expression came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// This one has no value; others may have.
    Expression(String),
    /// Nothing is evaluated any more.
    Budget,
}

impl Failure {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Expression(text) => text,
            Self::Budget => BUDGET,
        }
    }
}

/// A place where expressions are evaluated: the variables, each computed once and when it is needed, and the budget.
pub(crate) struct Scope<'s> {
    bindings: Bindings<'s>,
    variables: &'s [Variable],
    lazy: OnceCell<&'s [Lazy<'s>]>,
    budget: Cell<u64>,
    /// What variables have cost since it was last taken from the budget.
    composed: Cell<u64>,
    depth: Cell<usize>,
}

/// One variable of a scope.
pub(crate) struct Lazy<'s> {
    scope: &'s Scope<'s>,
    index: usize,
    value: OnceCell<Result<CelValue<'s>, EvalError>>,
}

impl<'s> Scope<'s> {
    pub(crate) fn new(surroundings: &'s Surroundings<'_>, variables: &'s [Variable], budget: u64) -> Self {
        Self {
            bindings: surroundings.bindings(),
            variables,
            lazy: OnceCell::new(),
            budget: Cell::new(budget),
            composed: Cell::new(0),
            depth: Cell::new(0),
        }
    }

    /// The variables' places, to be given to [`begin`](Self::begin).
    pub(crate) fn places(&'s self) -> Vec<Lazy<'s>> {
        (0..self.variables.len()).map(|index| Lazy { scope: self, index, value: OnceCell::new() }).collect()
    }

    /// Makes the variables known.
    pub(crate) fn begin(&'s self, places: &'s [Lazy<'s>]) {
        // A scope is begun once: a second time would change nothing.
        let _ = self.lazy.set(places);
    }

    fn seen_by(&'s self, count: usize) -> Bindings<'s> {
        let places = self.lazy.get().copied().unwrap_or_default();
        let visible = places.iter().take(count).zip(self.variables);
        visible.fold(self.bindings.clone(), |bindings, (lazy, variable)| bindings.lazy(&variable.path, lazy))
    }

    /// The value of an expression.
    ///
    /// # Errors
    /// In upstream's words.
    pub(crate) fn value(&'s self, expression: &'s Expression) -> Result<CelValue<'s>, Failure> {
        let program = expression.program.as_ref().map_err(|why| Failure::Expression(why.clone()))?;
        let outcome = program.eval(&self.seen_by(self.variables.len()), PER_CALL_COST_MAX);
        let cost = outcome.cost.saturating_add(self.composed.take());
        let left = self.budget.get().checked_sub(cost).ok_or(Failure::Budget)?;
        self.budget.set(left);
        outcome.result.map_err(|error| {
            Failure::Expression(format!("expression '{}' resulted in error: {error}", expression.text))
        })
    }

    fn variable(&'s self, index: usize) -> Result<CelValue<'s>, EvalError> {
        let fail = |why: String| EvalError::Failed(why.into());
        let variable = &self.variables[index];
        let program: &Program = variable.program.as_ref().map_err(|why| {
            fail(format!("composited variable {:?} fails to compile: {why}", variable.name))
        })?;
        if self.depth.get() >= VARIABLE_DEPTH_MAX {
            return Err(fail(format!("variables use each other more than {VARIABLE_DEPTH_MAX} deep")));
        }
        self.depth.set(self.depth.get() + 1);
        let outcome = program.eval(&self.seen_by(index), PER_CALL_COST_MAX);
        self.depth.set(self.depth.get() - 1);
        self.composed.set(self.composed.get().saturating_add(outcome.cost));
        outcome.result.map_err(|error| {
            fail(format!("composited variable {:?} fails to evaluate: {error}", variable.name))
        })
    }
}

impl<'s> Compute for Lazy<'s> {
    fn compute(&self) -> Result<CelValue<'_>, EvalError> {
        self.value.get_or_init(|| self.scope.variable(self.index)).clone()
    }
}
