//! What a plain scalar stands for: the rules of YAML 1.1 as `go.yaml.in/yaml/v2` keeps them, and the JSON that
//! `sigs.k8s.io/yaml` makes of it.

use std::fmt;

use serde_json::{Number, Value};

/// A scalar, or the key of a map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// What is too large for the others.
    Unsigned(u64),
    /// The bits of a float.
    Float(u64),
    Text(String),
}

/// What a scalar stands for. `plain`: it is not quoted; `tag`: the short name of a core tag, such as `str`.
///
/// # Errors
/// When the text is not what its tag says.
pub(super) fn resolve(text: &str, plain: bool, tag: Option<&str>) -> Result<Scalar, String> {
    let told = || Scalar::Text(text.to_owned());
    match tag {
        None if !plain => Ok(told()),
        None => Ok(guess(text)),
        Some("str") => Ok(told()),
        Some(tag @ ("bool" | "int" | "float" | "null")) => {
            let found = guess(text);
            match (tag, &found) {
                ("bool", Scalar::Bool(_))
                | ("null", Scalar::Null)
                | ("int", Scalar::Int(_) | Scalar::Unsigned(_))
                | ("float", Scalar::Float(_)) => Ok(found),
                #[allow(clippy::cast_precision_loss, reason = "that is what the tag asks for")]
                ("float", Scalar::Int(number)) => Ok(Scalar::float(*number as f64)),
                _ => Err(format!("yaml: cannot decode !!{} `{text}` as a !!{tag}", found.tag())),
            }
        }
        // Other tags say nothing that JSON knows.
        Some(_) => Ok(told()),
    }
}

fn guess(text: &str) -> Scalar {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Scalar::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Bool(false);
        }
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        ".nan" | ".NaN" | ".NAN" => return Scalar::float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Scalar::float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Scalar::float(f64::NEG_INFINITY),
        _ => {}
    }
    match text.as_bytes()[0] {
        b'.' => float(text).map_or_else(|| Scalar::Text(text.to_owned()), Scalar::float),
        b'0'..=b'9' | b'+' | b'-' => number(text).unwrap_or_else(|| Scalar::Text(text.to_owned())),
        _ => Scalar::Text(text.to_owned()),
    }
}

fn number(text: &str) -> Option<Scalar> {
    let plain: String = text.chars().filter(|letter| *letter != '_').collect();
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, &*plain),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    let whole = digits.bytes().all(|digit| char::from(digit).is_digit(base));
    let size = if whole { u64::from_str_radix(digits, base).ok() } else { None };
    match size {
        Some(size) if negative => {
            if let Some(number) = 0_i64.checked_sub_unsigned(size) {
                return Some(Scalar::Int(number));
            }
        }
        Some(size) => {
            let signed = plain.starts_with('+');
            match i64::try_from(size) {
                Ok(number) => return Some(Scalar::Int(number)),
                Err(_) if !signed => return Some(Scalar::Unsigned(size)),
                Err(_) => {}
            }
        }
        None => {}
    }
    float(&plain).map(Scalar::float)
}

/// A number with a point or an exponent; what is too large for one is text.
fn float(text: &str) -> Option<f64> {
    let known = text.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    text.parse::<f64>().ok().filter(|number| known && number.is_finite())
}

impl Scalar {
    fn float(number: f64) -> Self {
        Self::Float(number.to_bits())
    }

    fn tag(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Unsigned(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
        }
    }

    /// The scalar as JSON.
    ///
    /// # Errors
    /// When JSON has no such number.
    pub(super) fn into_value(self) -> Result<Value, String> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(number) => number.into(),
            Self::Unsigned(number) => number.into(),
            Self::Text(text) => Value::String(text),
            Self::Float(bits) => {
                let number = f64::from_bits(bits);
                // Go writes whole numbers without a point.
                #[allow(clippy::cast_possible_truncation, reason = "it is in the range")]
                if number.fract() == 0.0 && number.abs() < 1e18 {
                    return Ok((number as i64).into());
                }
                let found = Number::from_f64(number).map(Value::Number);
                found.ok_or_else(|| format!("json: unsupported value: {}", go_float(number)))?
            }
        })
    }

    /// The scalar as the key of a JSON object.
    ///
    /// # Errors
    /// When it can't be one.
    pub(super) fn into_key(self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Bool(value) => Ok(value.to_string()),
            Self::Int(number) => Ok(number.to_string()),
            Self::Float(bits) => Ok(match f64::from_bits(bits) {
                number if number.is_nan() => ".nan".to_owned(),
                number if number.is_infinite() => if number > 0.0 { ".inf" } else { "-.inf" }.to_owned(),
                #[allow(clippy::cast_possible_truncation, reason = "as upstream writes floats that are keys")]
                number => (number as f32).to_string(),
            }),
            Self::Null => Err("unsupported map key of type: %!s(<nil>), key: <nil>".to_owned()),
            Self::Unsigned(number) => Err(format!("unsupported map key of type: uint64, key: {number:#x}")),
        }
    }
}

fn go_float(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".to_owned(),
        number if number.is_infinite() => if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned(),
        number => number.to_string(),
    }
}

/// As Go's `%#v`.
impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("interface {}(nil)"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Unsigned(number) => write!(f, "{number:#x}"),
            Self::Float(bits) => f.write_str(&go_float(f64::from_bits(*bits))),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}
