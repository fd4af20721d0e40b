//! Kubernetes' own functions of lists (`library/lists.go`).

use std::cmp::Ordering;

use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    stdlib::{for_types, plus},
    value::{List, Value, compare, equal},
};

/// Types whose values have an order.
pub(super) const COMPARABLE: &[(&str, &str)] = &[
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("bool", "bool"),
    ("duration", "duration"),
    ("timestamp", "timestamp"),
    ("string", "string"),
    ("bytes", "bytes"),
];

pub(super) fn add(functions: &mut Functions) {
    for_types(functions, "isSorted", true, is_sorted, COMPARABLE, "list_{}_is_sorted_bool", "(list<T>) bool");
    let sums: &[(&str, crate::functions::Body)] = &[
        ("int", |args| sum(args, Value::Int(0))),
        ("uint", |args| sum(args, Value::Uint(0))),
        ("double", |args| sum(args, Value::Double(0.0))),
        ("duration", |args| sum(args, Value::Duration(0))),
    ];
    for (of, body) in sums {
        let id = format!("list_{of}_sum_{of}");
        functions.add("sum", true, id.into(), &format!("(list<{of}>) {of}"), *body);
    }
    for_types(functions, "max", true, max, COMPARABLE, "list_{}_max_{}", "(list<T>) T");
    for_types(functions, "min", true, min, COMPARABLE, "list_{}_min_{}", "(list<T>) T");
    functions.member("indexOf", index_of, &[("list_a_index_of_int", "(list<A>, A) int")]);
    functions.member("lastIndexOf", last_index_of, &[("list_a_last_index_of_int", "(list<A>, A) int")]);
}

fn is_sorted<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut before: Option<Value<'a>> = None;
    for value in list.iter() {
        let value = value?;
        if let Some(before) = &before
            && compare(before, &value)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
        before = Some(value);
    }
    Ok(Value::Bool(true))
}

/// Elements of another type than `zero` are summed up from the first on: lists of dyn have any.
fn sum<'a>(args: &[Value<'a>], zero: Value<'a>) -> Eval<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut total = None;
    for value in list.iter() {
        let value = value?;
        total = Some(match total {
            None if matches!(
                value,
                Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_)
            ) =>
            {
                value
            }
            None => return Err(EvalError::no_such_overload()),
            Some(total) => plus(&[total, value])?,
        });
    }
    Ok(total.unwrap_or(zero))
}

fn extreme<'a>(args: &[Value<'a>], name: &str, wanted: Ordering) -> Eval<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut found: Option<Value<'a>> = None;
    for value in list.iter() {
        let value = value?;
        found = Some(match found {
            Some(found) if compare(&value, &found)? != wanted => found,
            _ => value,
        });
    }
    found.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

fn max<'a>(args: &[Value<'a>]) -> Eval<'a> {
    extreme(args, "max", Ordering::Greater)
}

fn min<'a>(args: &[Value<'a>]) -> Eval<'a> {
    extreme(args, "min", Ordering::Less)
}

fn position<'a>(list: &List<'a>, item: &Value<'a>, mut places: impl Iterator<Item = usize>) -> Eval<'a> {
    let found = places
        .find(|index| matches!(list.get(*index), Ok(Some(value)) if equal(&value, item).unwrap_or(false)));
    Ok(Value::Int(found.map_or(-1, |index| index as i64)))
}

fn index_of<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list), item] => position(list, item, 0..list.len()),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn last_index_of<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list), item] => position(list, item, (0..list.len()).rev()),
        _ => Err(EvalError::no_such_overload()),
    }
}
