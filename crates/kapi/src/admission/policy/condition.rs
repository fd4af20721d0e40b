//! The conditions under which a webhook or policy is asked (KEP-3716).

use kcel::{PolicyEnv, Purpose, limits::MATCH_CONDITIONS_COST_MAX};
use serde_json::Value;

use super::{
    Expression,
    ask::ROUNDS_MAX,
    list,
    scope::{Failure, Scope, Surroundings},
    text,
};

/// One condition.
#[derive(Debug)]
pub(crate) struct Condition(Expression);

/// All conditions of a webhook or policy.
#[derive(Debug)]
pub(crate) struct Conditions {
    all: Vec<Condition>,
    fails: bool,
}

/// What conditions come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Matched {
    Yes,
    No,
    /// They can't be evaluated, and that refuses the request.
    Failed(String),
}

impl Conditions {
    pub(crate) fn new(spec: &Value, env: &PolicyEnv) -> Self {
        let all = list(spec, "matchConditions");
        let all =
            all.map(|one| Condition(Expression::new(env, Purpose::Condition, &text(one, "expression"))));
        Self { all: all.collect(), fails: spec["failurePolicy"] != "Ignore" }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// [`evaluate`](Self::evaluate), with the answers that authorizers have to wait for.
    pub(crate) async fn decide(&self, surroundings: &Surroundings<'_>) -> Matched {
        let mut matched = self.evaluate(surroundings);
        for _ in 0..ROUNDS_MAX {
            if !surroundings.answers.fetch().await {
                break;
            }
            matched = self.evaluate(surroundings);
        }
        matched
    }

    /// One that is false excludes the request, whatever is wrong with the others.
    pub(crate) fn evaluate(&self, surroundings: &Surroundings<'_>) -> Matched {
        if self.all.is_empty() {
            return Matched::Yes;
        }
        let scope = Scope::new(surroundings, &[], MATCH_CONDITIONS_COST_MAX);
        let mut errors = Vec::new();
        for Condition(expression) in &self.all {
            match scope.value(expression) {
                Ok(value) if value.as_bool() == Some(false) => return Matched::No,
                Ok(_) => {}
                Err(Failure::Expression(text)) => errors.push(text),
                Err(Failure::Budget) => {
                    errors = vec![Failure::Budget.text().to_owned()];
                    break;
                }
            }
        }
        match errors.is_empty() {
            true => Matched::Yes,
            false if self.fails => Matched::Failed(crate::authz::aggregate(&errors)),
            false => Matched::No,
        }
    }
}
