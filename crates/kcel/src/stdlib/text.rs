//! Functions of text.

use crate::{error::EvalError, eval::Eval, functions::Functions, regex::Pattern, value::Value};

pub(super) fn add(functions: &mut Functions) {
    functions.member("contains", contains, &[("contains_string", "(string, string) bool")]);
    functions.member("endsWith", ends_with, &[("ends_with_string", "(string, string) bool")]);
    functions.member("startsWith", starts_with, &[("starts_with_string", "(string, string) bool")]);
    functions.global("matches", matches, &[("matches", "(string, string) bool")]);
    functions.member("matches", matches, &[("matches_string", "(string, string) bool")]);
}

fn contains<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.contains(&**part))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn ends_with<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.ends_with(&**part))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn starts_with<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.starts_with(&**part))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn matches<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text), Value::String(pattern)] => {
            Ok(Value::Bool(Pattern::compile(pattern)?.is_match(text)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}
