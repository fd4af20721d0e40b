//! Optional values.

use std::sync::Arc;

use crate::{error::EvalError, eval::Eval, functions::Functions, value::Value};

pub(super) fn add(functions: &mut Functions) {
    functions.global("optional.of", of, &[("optional_of", "(V) optional<V>")]);
    functions.global(
        "optional.ofNonZeroValue",
        of_non_zero,
        &[("optional_ofNonZeroValue", "(V) optional<V>")],
    );
    functions.global("optional.none", |_| Ok(Value::Optional(None)), &[("optional_none", "() optional<V>")]);
    functions.member("value", value, &[("optional_value", "(optional<V>) V")]);
    functions.member("hasValue", has_value, &[("optional_hasValue", "(optional<V>) bool")]);
    functions.member(
        "or",
        super::unreachable,
        &[("optional_or_optional", "(optional<V>, optional<V>) optional<V>")],
    );
    functions.member("orValue", super::unreachable, &[("optional_orValue_value", "(optional<V>, V) V")]);
    functions.global("optional.unwrap", unwrap, &[("optional_unwrap", "(list<optional<V>>) list<V>")]);
    functions.member("unwrapOpt", unwrap, &[("optional_unwrapOpt", "(list<optional<V>>) list<V>")]);
    functions.member("first", first, &[("list_first", "(list<V>) optional<V>")]);
    functions.member("last", last, &[("list_last", "(list<V>) optional<V>")]);
}

fn of<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [value] => Ok(Value::Optional(Some(Arc::new(value.clone())))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn of_non_zero<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [value] if value.is_zero() => Ok(Value::Optional(None)),
        _ => of(args),
    }
}

fn value<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Optional(Some(value))] => Ok((**value).clone()),
        [Value::Optional(None)] => Err(EvalError::new("optional.none() dereference")),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn has_value<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn unwrap<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut values = Vec::with_capacity(list.len());
    for value in list.iter() {
        match value? {
            Value::Optional(Some(value)) => values.push((*value).clone()),
            Value::Optional(None) => {}
            other => return Err(EvalError::new(format!("value {} is not optional", other.shown()))),
        }
    }
    Ok(Value::from(values))
}

fn first<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list)] => Ok(Value::optional(list.get(0)?)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn last<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list)] if list.is_empty() => Ok(Value::Optional(None)),
        [Value::List(list)] => Ok(Value::optional(list.get(list.len() - 1)?)),
        _ => Err(EvalError::no_such_overload()),
    }
}
