//! Keys of JSON patches (`library/jsonpatch.go`).

use crate::{error::EvalError, eval::Eval, functions::Functions, value::Value};

pub(super) fn add(functions: &mut Functions) {
    functions.global(
        "jsonpatch.escapeKey",
        escape_key,
        &[("string_jsonpatch_escapeKey_string", "(string) string")],
    );
}

fn escape_key<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(key)] => Ok(Value::from(key.replace('~', "~0").replace('/', "~1"))),
        _ => Err(EvalError::no_such_overload()),
    }
}
