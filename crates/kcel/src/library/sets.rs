//! Lists as sets (cel-go's `ext/sets.go`).

use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    value::{List, Value},
};

pub(super) fn add(functions: &mut Functions) {
    functions.global("sets.contains", contains, &[("list_sets_contains_list", "(list<E>, list<E>) bool")]);
    functions.global(
        "sets.equivalent",
        equivalent,
        &[("list_sets_equivalent_list", "(list<E>, list<E>) bool")],
    );
    functions.global(
        "sets.intersects",
        intersects,
        &[("list_sets_intersects_list", "(list<E>, list<E>) bool")],
    );
}

fn contains_all<'a>(list: &List<'a>, part: &List<'a>) -> Result<bool, EvalError> {
    for value in part.iter() {
        if !list.contains(&value?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn contains<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list), Value::List(part)] => Ok(Value::Bool(contains_all(list, part)?)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn equivalent<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(left), Value::List(right)] => {
            Ok(Value::Bool(contains_all(left, right)? && contains_all(right, left)?))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn intersects<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::List(left), Value::List(right)] = args else {
        return Err(EvalError::no_such_overload());
    };
    for value in left.iter() {
        if right.contains(&value?)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
