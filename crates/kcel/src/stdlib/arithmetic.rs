//! Sums, products and comparisons.

use std::{cmp::Ordering, sync::Arc};

use super::for_types;
use crate::{
    ast::op,
    error::EvalError,
    eval::Eval,
    functions::{Body, Functions},
    value::{Value, check_text, compare},
};

const NUMBERS: &[(&str, &str)] = &[("int", "int64"), ("uint", "uint64"), ("double", "double")];

pub(super) fn add(functions: &mut Functions) {
    functions.global(
        op::ADD,
        plus,
        &[
            ("add_bytes", "(bytes, bytes) bytes"),
            ("add_double", "(double, double) double"),
            ("add_duration_duration", "(duration, duration) duration"),
            ("add_duration_timestamp", "(duration, timestamp) timestamp"),
            ("add_timestamp_duration", "(timestamp, duration) timestamp"),
            ("add_int64", "(int, int) int"),
            ("add_list", "(list<A>, list<A>) list<A>"),
            ("add_string", "(string, string) string"),
            ("add_uint64", "(uint, uint) uint"),
        ],
    );
    functions.global(
        "_-_",
        minus,
        &[
            ("subtract_double", "(double, double) double"),
            ("subtract_duration_duration", "(duration, duration) duration"),
            ("subtract_int64", "(int, int) int"),
            ("subtract_timestamp_duration", "(timestamp, duration) timestamp"),
            ("subtract_timestamp_timestamp", "(timestamp, timestamp) duration"),
            ("subtract_uint64", "(uint, uint) uint"),
        ],
    );
    for_types(functions, "_*_", false, times, NUMBERS, "multiply_{}", "(T, T) T");
    for_types(functions, "_/_", false, divided, NUMBERS, "divide_{}", "(T, T) T");
    for_types(functions, "_%_", false, modulo, &NUMBERS[..2], "modulo_{}", "(T, T) T");
    functions.global(
        op::NEGATE,
        negate,
        &[("negate_double", "(double) double"), ("negate_int64", "(int) int")],
    );
    for (name, word, body) in [
        ("_<_", "less", less as Body),
        ("_<=_", "less_equals", less_equals),
        ("_>_", "greater", greater),
        ("_>=_", "greater_equals", greater_equals),
    ] {
        comparison(functions, name, word, body);
    }
}

/// The signatures of one comparison, also across numeric types.
fn comparison(functions: &mut Functions, name: &'static str, word: &str, body: Body) {
    const SAME: &[(&str, &str)] = &[
        ("bool", "bool"),
        ("int", "int64"),
        ("uint", "uint64"),
        ("double", "double"),
        ("string", "string"),
        ("bytes", "bytes"),
        ("timestamp", "timestamp"),
        ("duration", "duration"),
    ];
    for_types(functions, name, false, body, SAME, &format!("{word}_{{}}"), "(T, T) bool");
    for (left, left_id) in NUMBERS {
        for (right, right_id) in NUMBERS {
            if left != right {
                let id = format!("{word}_{left_id}_{right_id}");
                functions.add(name, false, id.into(), &format!("({left}, {right}) bool"), body);
            }
        }
    }
}

fn overflow() -> EvalError {
    EvalError::new("integer overflow")
}

fn uint_overflow() -> EvalError {
    EvalError::new("unsigned integer overflow")
}

fn duration_overflow() -> EvalError {
    EvalError::new("duration overflow")
}

pub(crate) fn plus<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(match args {
        [Value::Int(left), Value::Int(right)] => Value::Int(left.checked_add(*right).ok_or_else(overflow)?),
        [Value::Uint(left), Value::Uint(right)] => {
            Value::Uint(left.checked_add(*right).ok_or_else(uint_overflow)?)
        }
        [Value::Double(left), Value::Double(right)] => Value::Double(left + right),
        [Value::String(left), Value::String(right)] => {
            check_text(left.len().saturating_add(right.len()))?;
            Value::from([&**left, &**right].concat())
        }
        [Value::Bytes(left), Value::Bytes(right)] => Value::Bytes(Arc::from([&**left, &**right].concat())),
        [Value::List(left), Value::List(right)] => Value::List(left.plus(right)?),
        [Value::Duration(left), Value::Duration(right)] => {
            Value::Duration(left.checked_add(*right).ok_or_else(duration_overflow)?)
        }
        [Value::Timestamp(moment), Value::Duration(nanos)]
        | [Value::Duration(nanos), Value::Timestamp(moment)] => {
            Value::Timestamp(moment.plus(i128::from(*nanos))?)
        }
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn minus<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(match args {
        [Value::Int(left), Value::Int(right)] => Value::Int(left.checked_sub(*right).ok_or_else(overflow)?),
        [Value::Uint(left), Value::Uint(right)] => {
            Value::Uint(left.checked_sub(*right).ok_or_else(uint_overflow)?)
        }
        [Value::Double(left), Value::Double(right)] => Value::Double(left - right),
        [Value::Duration(left), Value::Duration(right)] => {
            Value::Duration(left.checked_sub(*right).ok_or_else(duration_overflow)?)
        }
        [Value::Timestamp(moment), Value::Duration(nanos)] => {
            Value::Timestamp(moment.plus(-i128::from(*nanos))?)
        }
        [Value::Timestamp(left), Value::Timestamp(right)] => Value::Duration(left.since(right)?),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn times<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(match args {
        [Value::Int(left), Value::Int(right)] => Value::Int(left.checked_mul(*right).ok_or_else(overflow)?),
        [Value::Uint(left), Value::Uint(right)] => {
            Value::Uint(left.checked_mul(*right).ok_or_else(uint_overflow)?)
        }
        [Value::Double(left), Value::Double(right)] => Value::Double(left * right),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn divided<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(EvalError::new("division by zero"));
        }
        [Value::Int(left), Value::Int(right)] => Value::Int(left.checked_div(*right).ok_or_else(overflow)?),
        [Value::Uint(left), Value::Uint(right)] => Value::Uint(left / right),
        [Value::Double(left), Value::Double(right)] => Value::Double(left / right),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn modulo<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(EvalError::new("modulus by zero"));
        }
        [Value::Int(left), Value::Int(right)] => Value::Int(left.checked_rem(*right).ok_or_else(overflow)?),
        [Value::Uint(left), Value::Uint(right)] => Value::Uint(left % right),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn negate<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(match args {
        [Value::Int(value)] => Value::Int(value.checked_neg().ok_or_else(overflow)?),
        [Value::Double(value)] => Value::Double(-value),
        [Value::Duration(nanos)] => Value::Duration(nanos.checked_neg().ok_or_else(duration_overflow)?),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn ordered<'a>(args: &[Value<'a>], holds: impl Fn(Ordering) -> bool) -> Eval<'a> {
    match args {
        [left, right] => Ok(Value::Bool(holds(compare(left, right)?))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn less<'a>(args: &[Value<'a>]) -> Eval<'a> {
    ordered(args, Ordering::is_lt)
}

fn less_equals<'a>(args: &[Value<'a>]) -> Eval<'a> {
    ordered(args, Ordering::is_le)
}

fn greater<'a>(args: &[Value<'a>]) -> Eval<'a> {
    ordered(args, Ordering::is_gt)
}

fn greater_equals<'a>(args: &[Value<'a>]) -> Eval<'a> {
    ordered(args, Ordering::is_ge)
}
