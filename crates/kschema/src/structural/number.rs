//! What numbers must fulfil, in the words of kube-openapi's validator.

use std::fmt;

use serde_json::Value;

use super::{
    JsonType, Structural,
    prune::Place,
    validate::{Fault, Outcome, format_of, limits},
};

/// A floating-point number as Go's `%v` prints it.
pub(crate) struct GoFloat(pub(crate) f64);

impl fmt::Display for GoFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        let size = number.abs();
        if number == 0.0 || (1e-4..1e21).contains(&size) {
            return write!(f, "{number}");
        }
        // Rust writes 1e-7, Go 1e-07.
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        write!(f, "{digits}e{sign}{exponent:0>2}")
    }
}

/// Whether a number is an integer, but for what is lost in arithmetic.
pub(super) fn is_integral(number: f64) -> bool {
    const LIMIT: f64 = 9_007_199_254_740_991.0;
    let whole = number.trunc();
    let difference = (number - whole).abs();
    number.is_finite()
        && number.abs() <= LIMIT
        && (difference == 0.0 || whole != 0.0 && difference / (number.abs() + whole.abs()) < 1e-9)
}

/// Checks a number against the range of its type and format, and against the schema's limits.
pub(super) fn number_faults(schema: &Structural, value: &Value, at: &Place<'_>, outcome: &mut Outcome) {
    let kind = if schema.int_or_string { JsonType::Any } else { schema.kind };
    let format = format_of(schema).filter(|_| matches!(kind, JsonType::Integer | JsonType::Number));
    let range_fault = |number: Number, what: &str| {
        let fits = number.fits(kind, format);
        let wanted = if kind == JsonType::Integer { "integer" } else { "number" };
        (!fits).then(|| match format {
            Some(format) => Fault::placeless(format!(
                "{what} value must be of type {wanted} with format {format} in {at}"
            )),
            None => {
                Fault::placeless(format!("{what} value must be of type {wanted} (default format) in {at}"))
            }
        })
    };
    let Some(number) = Number::of(value) else { return };
    if let Some(fault) = range_fault(number, "Checked") {
        outcome.fault(fault);
    }
    let Some(limits) = limits(schema) else { return };
    if let Some(factor) = limits.multiple_of {
        let fault = range_fault(Number::Float(factor), "MultipleOf");
        let is_native = fault.is_none();
        fault.into_iter().for_each(|fault| outcome.fault(fault));
        if !number.is_multiple(factor, is_native) {
            outcome.fault(Fault::number(at, value, &format!("should be a multiple of {}", GoFloat(factor))));
        }
    }
    let mut bound = |limit: Option<f64>, exclusive: bool, what: &str, words: [&str; 2], is_minimum: bool| {
        let Some(limit) = limit else { return };
        let fault = range_fault(Number::Float(limit), what);
        let breaks = match number.compare(limit, fault.is_none()) {
            Some(std::cmp::Ordering::Equal) => exclusive,
            Some(order) => order.is_lt() == is_minimum,
            None => false,
        };
        fault.into_iter().for_each(|fault| outcome.fault(fault));
        if breaks {
            let words = words[usize::from(exclusive)];
            outcome.fault(Fault::number(at, value, &format!("should be {words} {}", GoFloat(limit))));
        }
    };
    let least = ["greater than or equal to", "greater than"];
    bound(limits.minimum, limits.exclusive_minimum, "Minimum boundary", least, true);
    let most = ["less than or equal to", "less than"];
    bound(limits.maximum, limits.exclusive_maximum, "Maximum boundary", most, false);
}

#[derive(Clone, Copy)]
enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        value.as_i64().map(Self::Int).or_else(|| value.as_f64().map(Self::Float))
    }

    fn fits(self, kind: JsonType, format: Option<&str>) -> bool {
        match (kind, self) {
            (JsonType::Integer, Self::Int(number)) => {
                format != Some("int32") || i32::try_from(number).is_ok()
            }
            (JsonType::Integer, Self::Float(number)) => {
                let limit =
                    if format == Some("int32") { 2_147_483_648.0 } else { 9_223_372_036_854_775_808.0 };
                number.fract() == 0.0 && number >= -limit && number < limit
            }
            (_, Self::Float(number)) => format != Some("float") || number.abs() <= f64::from(f32::MAX),
            (_, Self::Int(_)) => true,
        }
    }

    /// Integers are compared as such where the limit is of their type, too.
    #[allow(clippy::cast_possible_truncation, reason = "Go converts the limit so")]
    fn compare(self, limit: f64, is_native: bool) -> Option<std::cmp::Ordering> {
        match self {
            Self::Int(number) if is_native => Some(number.cmp(&(limit as i64))),
            _ => self.float().partial_cmp(&limit),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "Go converts the factor so")]
    fn is_multiple(self, factor: f64, is_native: bool) -> bool {
        match self {
            Self::Int(number) if is_native => {
                let factor = factor as i64;
                factor > 0 && number % factor == 0
            }
            _ if factor <= 0.0 => false,
            _ if factor < 1.0 => is_integral(1.0 / factor * self.float()),
            _ => is_integral(self.float() / factor),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "as Go does")]
    fn float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_printed_as_go_prints_them() {
        for (number, text) in [
            (1.0, "1"),
            (1.5, "1.5"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
        ] {
            assert_eq!(GoFloat(number).to_string(), text);
        }
    }

    #[test]
    fn what_is_lost_in_arithmetic_makes_no_fraction() {
        assert!(is_integral(3.0) && is_integral(3.000_000_000_1) && is_integral(0.0));
        assert!(!is_integral(0.5) && !is_integral(1e-12) && !is_integral(f64::NAN));
    }
}
