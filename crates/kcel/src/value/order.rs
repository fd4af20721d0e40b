//! Order of values and conversions between numbers, without loss where numbers of different types meet.

use std::cmp::Ordering;

use super::Value;
use crate::error::EvalError;

/// 2^63 and 2^64 as doubles.
const TWO_63: f64 = 9_223_372_036_854_775_808.0;
const TWO_64: f64 = 18_446_744_073_709_551_616.0;

/// How two values are ordered.
pub(crate) fn compare(left: &Value<'_>, right: &Value<'_>) -> Result<Ordering, EvalError> {
    Ok(match (left, right) {
        (Value::Int(left), Value::Int(right)) => left.cmp(right),
        (Value::Uint(left), Value::Uint(right)) => left.cmp(right),
        (Value::Int(left), Value::Uint(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::Uint(left), Value::Int(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::Double(left), Value::Double(_) | Value::Int(_) | Value::Uint(_)) => {
            compare_double(*left, right)?
        }
        (Value::Int(_) | Value::Uint(_), Value::Double(right)) => compare_double(*right, left)?.reverse(),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::String(left), Value::String(right)) => left.as_bytes().cmp(right.as_bytes()),
        (Value::Bytes(left), Value::Bytes(right)) => left.cmp(right),
        (Value::Timestamp(left), Value::Timestamp(right)) => left.cmp(right),
        (Value::Duration(left), Value::Duration(right)) => left.cmp(right),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn compare_double(left: f64, right: &Value<'_>) -> Result<Ordering, EvalError> {
    if left.is_nan() || matches!(right, Value::Double(right) if right.is_nan()) {
        return Err(EvalError::new("NaN values cannot be ordered"));
    }
    Ok(order_double(left, right))
}

/// `left` is no NaN.
fn order_double(left: f64, right: &Value<'_>) -> Ordering {
    let (low, high, right) = match right {
        Value::Int(right) => (-TWO_63, TWO_63, *right as f64),
        Value::Uint(right) => (0.0, TWO_64, *right as f64),
        Value::Double(right) => (f64::NEG_INFINITY, f64::INFINITY, *right),
        _ => return Ordering::Less,
    };
    if left < low {
        Ordering::Less
    } else if left > high {
        Ordering::Greater
    } else {
        left.partial_cmp(&right).unwrap_or(Ordering::Equal)
    }
}

pub(super) fn equal_double(double: &Value<'_>, other: &Value<'_>) -> bool {
    match double {
        Value::Double(value) if !value.is_nan() => order_double(*value, other).is_eq(),
        _ => false,
    }
}

pub(super) fn equal_int_uint(int: i64, uint: u64) -> bool {
    u64::try_from(int).is_ok_and(|int| int == uint)
}

/// A double as an int, cut off towards zero.
pub(crate) fn int_of_double(value: f64) -> Result<i64, EvalError> {
    if value.is_finite() && value > -TWO_63 && value < TWO_63 {
        Ok(value as i64)
    } else {
        Err(EvalError::new("integer overflow"))
    }
}

/// A double as a uint, cut off.
pub(crate) fn uint_of_double(value: f64) -> Result<u64, EvalError> {
    if value.is_finite() && (0.0..TWO_64).contains(&value) {
        Ok(value as u64)
    } else {
        Err(EvalError::new("unsigned integer overflow"))
    }
}

/// A double as Go's `%g` writes it: the shortest digits that read back, with an exponent below 1e-4 and from 1e6 on.
pub(crate) fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    // Rust's `e` format has the shortest digits too.
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
