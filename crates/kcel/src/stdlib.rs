//! The language's own functions and operators (cel-spec, "Standard Definitions").

mod arithmetic;
mod collections;
mod conversions;
mod optional;
mod text;
mod time;

use std::borrow::Cow;

pub(crate) use self::{arithmetic::plus, conversions::add_network_text};
use crate::{ast::op, error::EvalError, eval::Eval, functions::Functions, value::Value};

/// All of them.
pub(crate) fn add(functions: &mut Functions) {
    logic(functions);
    arithmetic::add(functions);
    collections::add(functions);
    conversions::add(functions);
    text::add(functions);
    time::add(functions);
    optional::add(functions);
}

/// Operators that are evaluated by steps of their own; declared for the checker.
fn logic(functions: &mut Functions) {
    functions.global(op::CONDITIONAL, unreachable, &[("conditional", "(bool, A, A) A")]);
    functions.global(op::AND, unreachable, &[("logical_and", "(bool, bool) bool")]);
    functions.global(op::OR, unreachable, &[("logical_or", "(bool, bool) bool")]);
    functions.global(op::NOT, not, &[("logical_not", "(bool) bool")]);
    functions.global(op::NOT_STRICTLY_FALSE, unreachable, &[("not_strictly_false", "(bool) bool")]);
    functions.global(op::EQUALS, unreachable, &[("equals", "(A, A) bool")]);
    functions.global(op::NOT_EQUALS, unreachable, &[("not_equals", "(A, A) bool")]);
    functions.global(
        "cel.@mapInsert",
        unreachable,
        &[
            ("@mapInsert_map_key_value", "(map<K, V>, K, V) map<K, V>"),
            ("@mapInsert_map_map", "(map<K, V>, map<K, V>) map<K, V>"),
        ],
    );
}

/// What is planned as a step of its own is never called.
fn unreachable<'a>(_: &[Value<'a>]) -> Eval<'a> {
    Err(EvalError::no_such_overload())
}

fn not<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Bool(value)] => Ok(Value::Bool(!value)),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// Adds a signature for each type in `types`: `T` stands for it in the text, `{}` for its name in the id.
pub(crate) fn for_types(
    functions: &mut Functions,
    name: &'static str,
    member: bool,
    body: crate::functions::Body,
    types: &[(&str, &str)],
    id: &str,
    text: &str,
) {
    for (of, named) in types {
        let text = text.replace('T', of);
        functions.add(name, member, Cow::Owned(id.replace("{}", named)), &text, body);
    }
}
