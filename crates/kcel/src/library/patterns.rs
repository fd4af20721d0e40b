//! Finding what a pattern matches (`library/regex.go`).

use crate::{error::EvalError, eval::Eval, functions::Functions, regex::Pattern, value::Value};

pub(super) fn add(functions: &mut Functions) {
    functions.member("find", find, &[("string_find_string", "(string, string) string")]);
    functions.member(
        "findAll",
        find_all,
        &[
            ("string_find_all_string", "(string, string) list<string>"),
            ("string_find_all_string_int", "(string, string, int) list<string>"),
        ],
    );
}

fn compile(pattern: &str) -> Result<Pattern, EvalError> {
    Pattern::compile(pattern).map_err(|error| EvalError::new(format!("Illegal regex: {error}")))
}

fn find<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text), Value::String(pattern)] => {
            Ok(Value::from(compile(pattern)?.find(text).to_owned()))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn find_all<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (text, pattern, count) = match args {
        [Value::String(text), Value::String(pattern)] => (text, pattern, -1),
        [Value::String(text), Value::String(pattern), Value::Int(count)] => (text, pattern, *count),
        _ => return Err(EvalError::no_such_overload()),
    };
    let pattern = compile(pattern)?;
    let found = pattern.find_all(text, count).into_iter();
    Ok(Value::from(found.map(|found| Value::from(found.to_owned())).collect::<Vec<_>>()))
}
