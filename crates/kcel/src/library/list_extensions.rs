//! cel-go's extension of lists, version 3 (`ext/lists.go`).

use super::lists::COMPARABLE;
use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    stdlib::for_types,
    value::{List, Value, compare, equal},
};

/// The longest list that `lists.range` makes; what it costs is known only when it is there.
const RANGE_MAX: i64 = 1_000_000;
/// The longest list that `flatten` makes, likewise.
const FLAT_MAX: usize = 10_000_000;

pub(super) fn add(functions: &mut Functions) {
    functions.member("slice", slice, &[("list_slice", "(list<E>, int, int) list<E>")]);
    functions.member(
        "flatten",
        flatten,
        &[("list_flatten", "(list<list<E>>) list<E>"), ("list_flatten_int", "(list<dyn>, int) list<dyn>")],
    );
    for_types(functions, "sort", true, sort, COMPARABLE, "list_{}_sort", "(list<T>) list<T>");
    let by = "list_{}_sortByAssociatedKeys";
    for_types(
        functions,
        "@sortByAssociatedKeys",
        true,
        sort_by,
        COMPARABLE,
        by,
        "(list<E>, list<T>) list<E>",
    );
    functions.global("lists.range", range, &[("lists_range", "(int) list<int>")]);
    functions.member("reverse", reverse, &[("list_reverse", "(list<E>) list<E>")]);
    functions.member("distinct", distinct, &[("list_distinct", "(list<E>) list<E>")]);
}

fn slice<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let refused = |why: String| Err(EvalError::new(format!("cannot slice({start}, {end}), {why}")));
    let (Ok(from), Ok(to)) = (usize::try_from(*start), usize::try_from(*end)) else {
        return refused("negative indexes not supported".to_owned());
    };
    if from > to {
        return refused("start index must be less than or equal to end index".to_owned());
    }
    if to > list.len() {
        return refused(format!("list is length {}", list.len()));
    }
    let values: Result<Vec<_>, _> = list.iter().skip(from).take(to - from).collect();
    Ok(Value::from(values?))
}

fn flatten<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => return Err(EvalError::no_such_overload()),
    };
    if depth < 0 {
        return Err(EvalError::new("level must be non-negative"));
    }
    let mut flat = Vec::new();
    flatten_into(list, depth, &mut flat)?;
    Ok(Value::from(flat))
}

/// The recursion ends at the depth of the data, which is written out or read from JSON.
fn flatten_into<'a>(list: &List<'a>, depth: i64, flat: &mut Vec<Value<'a>>) -> Result<(), EvalError> {
    for value in list.iter() {
        match value? {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, flat)?,
            _ if flat.len() >= FLAT_MAX => {
                return Err(EvalError::new(format!("flatten exceeds the limit of {FLAT_MAX} elements")));
            }
            value => flat.push(value),
        }
    }
    Ok(())
}

fn sorted<'a>(list: &List<'a>, keys: &List<'a>) -> Eval<'a> {
    if list.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} elements respectively",
            list.len(),
            keys.len()
        )));
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.values()?.into_iter().zip(list.values()?).collect();
    if let Some((first, _)) = pairs.first() {
        if compare(first, first).is_err() {
            return Err(EvalError::new("list elements must be comparable"));
        }
        if pairs.iter().any(|(key, _)| key.type_name() != first.type_name()) {
            return Err(EvalError::new("list elements must have the same type"));
        }
    }
    pairs.sort_by(|left, right| compare(&left.0, &right.0).unwrap_or(std::cmp::Ordering::Equal));
    Ok(Value::from(pairs.into_iter().map(|(_, value)| value).collect::<Vec<_>>()))
}

fn sort<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list)] => sorted(list, list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn sort_by<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list), Value::List(keys)] => sorted(list, keys),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn range<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Int(count)] if *count > RANGE_MAX => {
            Err(EvalError::new(format!("lists.range of {count} elements exceeds the limit of {RANGE_MAX}")))
        }
        [Value::Int(count)] => Ok(Value::from((0..*count).map(Value::Int).collect::<Vec<_>>())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn reverse<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::List(list)] => Ok(Value::from(list.iter().rev().collect::<Result<Vec<_>, _>>()?)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn distinct<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::List(list)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut unique: Vec<Value<'a>> = Vec::with_capacity(list.len());
    for value in list.iter() {
        let value = value?;
        if !unique.iter().any(|known| equal(&value, known).unwrap_or(false)) {
            unique.push(value);
        }
    }
    Ok(Value::from(unique))
}
