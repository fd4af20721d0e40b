//! Calls of functions.

use super::{Eval, Evaluator};
use crate::{
    error::EvalError,
    functions::{Function, accepts},
    plan::{CallNode, Code, PatternUse},
    regex::Pattern,
    value::Value,
};

impl<'a> Evaluator<'a, '_> {
    pub(super) fn call(&mut self, call: &'a CallNode) -> Eval<'a> {
        match &*call.args {
            [one] => match self.node(one) {
                Ok(value) => self.apply(call, &[value]),
                Err(EvalError::CostLimit) => Err(EvalError::CostLimit),
                Err(error) => {
                    self.charge(1)?;
                    Err(error)
                }
            },
            [left, right] => {
                let (left, right) = self.both(left, right)?;
                let (left, right) = self.charged_pair(left, right)?;
                self.apply(call, &[left, right])
            }
            nodes => {
                let mut args = Vec::with_capacity(nodes.len());
                for node in nodes {
                    args.push(self.node(node)?);
                }
                self.apply(call, &args)
            }
        }
    }

    fn apply(&mut self, call: &'a CallNode, args: &[Value<'a>]) -> Eval<'a> {
        let result = match &call.code {
            Code::One(body) => body(args),
            Code::Several(function, fitting) => several(function, fitting, args),
            Code::Pattern(pattern, used) => apply_pattern(pattern, *used, args),
        };
        let cost = match &result {
            Ok(value) => call.rule.actual(args, value),
            Err(_) => call.rule.actual(args, &Value::Null),
        };
        self.charge(cost)?;
        result.map_err(|error| named(error, call.function, args))
    }
}

/// The first signature whose parameters the arguments match.
fn several<'a>(function: &Function, fitting: &[usize], args: &[Value<'a>]) -> Eval<'a> {
    for overload in fitting.iter().filter_map(|index| function.overloads.get(*index)) {
        let matches = overload.params.iter().zip(args).all(|(param, value)| accepts(param, value));
        if matches && overload.params.len() == args.len() {
            return (overload.body)(args);
        }
    }
    Err(EvalError::no_such_overload())
}

/// For functions that are no operators, the error says which function was called with what.
fn named(error: EvalError, function: &str, args: &[Value<'_>]) -> EvalError {
    let operator = !function.starts_with(|letter: char| letter.is_ascii_alphabetic());
    if operator || error != EvalError::no_such_overload() {
        return error;
    }
    let types: Vec<&str> = args.iter().map(Value::type_name).collect();
    EvalError::new(format!("no such overload: {function}({})", types.join(", ")))
}

fn apply_pattern<'a>(pattern: &Pattern, used: PatternUse, args: &[Value<'a>]) -> Eval<'a> {
    let Some(Value::String(text)) = args.first() else {
        return Err(EvalError::no_such_overload());
    };
    Ok(match used {
        PatternUse::Matches => Value::Bool(pattern.is_match(text)),
        PatternUse::Find => Value::from(pattern.find(text).to_owned()),
        PatternUse::FindAll => {
            let count = match args.get(2) {
                None => -1,
                Some(Value::Int(count)) => *count,
                Some(_) => return Err(EvalError::no_such_overload()),
            };
            let found = pattern.find_all(text, count);
            Value::from(found.into_iter().map(|found| Value::from(found.to_owned())).collect::<Vec<_>>())
        }
    })
}
