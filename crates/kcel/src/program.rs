//! Compiled expressions.

use std::{collections::HashSet, sync::Arc};

use crate::{
    bindings::Bindings,
    checker::{Checked, Declarations},
    cost::{Cost, estimate::estimate},
    decl::Decl,
    error::EvalError,
    eval::Evaluator,
    plan::Plan,
    types::Type,
    value::Value,
};

/// A compiled expression. Evaluations share it freely: it never changes.
///
/// ```
/// use kcel::{Bindings, Decl, Env};
/// let root = Decl::object("object").field("a", Decl::int(), true).named("selfType");
/// let env = Env::builder().variable("self", root.clone()).variable("oldSelf", root).build();
/// let program = env.compile("self.a >= oldSelf.a")?;
/// assert_eq!(program.output_type().to_string(), "bool");
/// assert!(program.uses("oldSelf"));
/// assert_eq!(program.estimate().max, 5);
/// # Ok::<(), kcel::CompileErrors>(())
/// ```
#[derive(Debug)]
pub struct Program {
    plan: Plan,
    decls: Vec<Option<Arc<Decl>>>,
    output: Type,
    used: HashSet<String>,
    estimate: Cost,
}

/// What an evaluation came to.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// The value, or why there is none.
    pub result: Result<Value<'a>, EvalError>,
    /// What it cost, also when it failed.
    pub cost: u64,
}

impl Program {
    pub(crate) fn new(plan: Plan, checked: Checked, declarations: Arc<Declarations>) -> Self {
        let decls = plan.variables.iter().map(|name| declarations.variables.get(name).cloned()).collect();
        let estimate = estimate(&checked, &declarations);
        let output = checked.type_of(&checked.root).clone();
        Self { plan, decls, output, used: checked.used, estimate }
    }

    /// The type of the result.
    #[must_use]
    pub const fn output_type(&self) -> &Type {
        &self.output
    }

    /// Whether the expression mentions a variable: rules that use `oldSelf` are transition rules.
    #[must_use]
    pub fn uses(&self, variable: &str) -> bool {
        self.used.contains(variable)
    }

    /// What an evaluation costs at least and at most, by the sizes that the variables are declared with.
    #[must_use]
    pub const fn estimate(&self) -> Cost {
        self.estimate
    }

    /// Evaluates the expression; it is given up with [`EvalError::CostLimit`] as soon as it costs more than
    /// `cost_max`. The result borrows from the program and from what is bound.
    #[must_use]
    pub fn eval<'a>(&'a self, bindings: &Bindings<'a>, cost_max: u64) -> Outcome<'a> {
        let mut evaluator = Evaluator::new(&self.plan, &self.decls, bindings, cost_max);
        let result = evaluator.run();
        Outcome { result, cost: evaluator.cost }
    }
}
