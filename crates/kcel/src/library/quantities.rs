//! Kubernetes' quantities (`library/quantity.go`).

use std::cmp::Ordering;

use kcore::{Quantity, quantity::Format};

use super::versions::semver_pair;
use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    native::{Kind, Native},
    value::Value,
};

const QUANTITY: &str = "kubernetes.Quantity";
const SEMVER: &str = "kubernetes.Semver";

pub(super) fn add(functions: &mut Functions) {
    functions.global("quantity", to_quantity, &[("string_to_quantity", "(string) kubernetes.Quantity")]);
    functions.global("isQuantity", is_quantity, &[("is_quantity_string", "(string) bool")]);
    functions.global("sign", sign, &[("quantity_sign", "(kubernetes.Quantity) int")]);
    // Versions are compared by functions of the same names.
    for (of, prefix) in [(QUANTITY, "quantity"), (SEMVER, "semver")] {
        let pair = format!("({of}, {of}) ");
        functions.add(
            "isGreaterThan",
            true,
            format!("{prefix}_is_greater_than").into(),
            &format!("{pair}bool"),
            is_greater,
        );
        functions.add(
            "isLessThan",
            true,
            format!("{prefix}_is_less_than").into(),
            &format!("{pair}bool"),
            is_less,
        );
        functions.add(
            "compareTo",
            true,
            format!("{prefix}_compare_to").into(),
            &format!("{pair}int"),
            compare_to,
        );
    }
    functions.member(
        "asApproximateFloat",
        as_float,
        &[("quantity_get_float", "(kubernetes.Quantity) double")],
    );
    functions.member("asInteger", as_integer, &[("quantity_get_int", "(kubernetes.Quantity) int")]);
    functions.member("isInteger", is_integer, &[("quantity_is_integer", "(kubernetes.Quantity) bool")]);
    for (name, body, id, id_int) in [
        ("add", add_quantities as crate::functions::Body, "quantity_add", "quantity_add_int"),
        ("sub", subtract, "quantity_sub", "quantity_sub_int"),
    ] {
        functions.add(name, true, id.into(), &format!("({QUANTITY}, {QUANTITY}) {QUANTITY}"), body);
        functions.add(name, true, id_int.into(), &format!("({QUANTITY}, int) {QUANTITY}"), body);
    }
}

fn quantity(value: &Value<'_>) -> Option<Quantity> {
    match value {
        Value::Native(Native(Kind::Quantity(quantity))) => Some(*quantity),
        _ => None,
    }
}

fn one(args: &[Value<'_>]) -> Result<Quantity, EvalError> {
    args.first().and_then(quantity).ok_or_else(EvalError::no_such_overload)
}

fn to_quantity<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let quantity = Quantity::parse(text).map_err(|error| EvalError::new(error.to_string()))?;
    Ok(Value::Native(Native(Kind::Quantity(quantity))))
}

fn is_quantity<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(Quantity::parse(text).is_ok())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn sign<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let quantity = one(args)?;
    Ok(Value::Int(if quantity.is_zero() {
        0
    } else if quantity.is_negative() {
        -1
    } else {
        1
    }))
}

/// The order of two quantities or of two versions.
fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    let [left, right] = args else {
        return Err(EvalError::no_such_overload());
    };
    match (quantity(left), quantity(right)) {
        (Some(left), Some(right)) => Ok(left.cmp(&right)),
        _ => semver_pair(left, right)
            .map(|(left, right)| left.precedence(right))
            .ok_or_else(EvalError::no_such_overload),
    }
}

fn is_greater<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Bool(order(args)?.is_gt()))
}

fn is_less<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Bool(order(args)?.is_lt()))
}

fn compare_to<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Int(order(args)? as i64))
}

/// The number of its canonical text times its suffix.
fn as_float<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let text = one(args)?.to_string();
    let digits_end =
        text.find(|letter: char| letter != '-' && !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    let base: f64 = digits.parse().unwrap_or(0.0);
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => suffix
            .strip_prefix('e')
            .and_then(|exponent| exponent.parse().ok())
            .map_or(1.0, |power| 10f64.powi(power)),
    };
    Ok(Value::Double(base * factor))
}

/// The whole number that a quantity is, if it is one.
fn integer(quantity: Quantity) -> Option<i64> {
    let value = quantity.value();
    (Quantity::from_value(value) == quantity).then_some(value)
}

fn as_integer<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let value = integer(one(args)?).ok_or_else(|| EvalError::new("cannot convert value to integer"))?;
    Ok(Value::Int(value))
}

fn is_integer<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Bool(integer(one(args)?).is_some()))
}

/// The second operand: a quantity, or an int as one.
fn operand(args: &[Value<'_>]) -> Result<Quantity, EvalError> {
    match args.get(1) {
        Some(Value::Int(value)) => Ok(Quantity::with_format(*value, Format::DecimalExponent)),
        Some(value) => quantity(value).ok_or_else(EvalError::no_such_overload),
        None => Err(EvalError::no_such_overload()),
    }
}

fn add_quantities<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Native(Native(Kind::Quantity(one(args)? + operand(args)?))))
}

fn subtract<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Native(Native(Kind::Quantity(one(args)? - operand(args)?))))
}
