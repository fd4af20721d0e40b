//! Conversions between types.

use std::sync::Arc;

use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    native::Kind,
    value::{Moment, Text, Value, double_text, duration_text, go_duration, int_of_double, uint_of_double},
};

pub(super) fn add(functions: &mut Functions) {
    functions.global("type", type_of, &[("type", "(A) type<A>")]);
    functions.global("dyn", same, &[("to_dyn", "(A) dyn")]);
    functions.global(
        "bool",
        to_bool,
        &[("bool_to_bool", "(bool) bool"), ("string_to_bool", "(string) bool")],
    );
    functions.global(
        "bytes",
        to_bytes,
        &[("bytes_to_bytes", "(bytes) bytes"), ("string_to_bytes", "(string) bytes")],
    );
    functions.global(
        "duration",
        to_duration,
        &[
            ("duration_to_duration", "(duration) duration"),
            ("int64_to_duration", "(int) duration"),
            ("string_to_duration", "(string) duration"),
        ],
    );
    numbers(functions);
    functions.global(
        "string",
        to_string,
        &[
            ("string_to_string", "(string) string"),
            ("bool_to_string", "(bool) string"),
            ("bytes_to_string", "(bytes) string"),
            ("double_to_string", "(double) string"),
            ("duration_to_string", "(duration) string"),
            ("int64_to_string", "(int) string"),
            ("timestamp_to_string", "(timestamp) string"),
            ("uint64_to_string", "(uint) string"),
        ],
    );
    functions.global(
        "timestamp",
        to_timestamp,
        &[
            ("timestamp_to_timestamp", "(timestamp) timestamp"),
            ("int64_to_timestamp", "(int) timestamp"),
            ("string_to_timestamp", "(string) timestamp"),
        ],
    );
}

fn numbers(functions: &mut Functions) {
    functions.global(
        "double",
        to_double,
        &[
            ("double_to_double", "(double) double"),
            ("int64_to_double", "(int) double"),
            ("string_to_double", "(string) double"),
            ("uint64_to_double", "(uint) double"),
        ],
    );
    functions.global(
        "int",
        to_int,
        &[
            ("int64_to_int64", "(int) int"),
            ("double_to_int64", "(double) int"),
            ("duration_to_int64", "(duration) int"),
            ("string_to_int64", "(string) int"),
            ("timestamp_to_int64", "(timestamp) int"),
            ("uint64_to_int64", "(uint) int"),
        ],
    );
    functions.global(
        "uint",
        to_uint,
        &[
            ("uint64_to_uint64", "(uint) uint"),
            ("double_to_uint64", "(double) uint"),
            ("int64_to_uint64", "(int) uint"),
            ("string_to_uint64", "(string) uint"),
        ],
    );
}

fn refused<'a>(value: &Value<'_>, to: &str) -> Eval<'a> {
    Err(EvalError::new(format!("type conversion error from '{}' to '{to}'", value.type_name())))
}

fn one<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v Value<'a>, EvalError> {
    match args {
        [value] => Ok(value),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn type_of<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Type(Text::from(one(args)?.type_name().to_owned())))
}

fn same<'a>(args: &[Value<'a>]) -> Eval<'a> {
    one(args).cloned()
}

fn to_bool<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::Bool(value) => Ok(Value::Bool(*value)),
        // The words that Go's `strconv.ParseBool` takes.
        value @ Value::String(text) => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            _ => refused(value, "bool"),
        },
        value => refused(value, "bool"),
    }
}

fn to_bytes<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::Bytes(bytes) => Ok(Value::Bytes(bytes.clone())),
        Value::String(text) => Ok(Value::Bytes(Arc::from(text.as_bytes()))),
        value => refused(value, "bytes"),
    }
}

fn to_double<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::Double(value) => Ok(Value::Double(*value)),
        Value::Int(value) => Ok(Value::Double(*value as f64)),
        Value::Uint(value) => Ok(Value::Double(*value as f64)),
        value @ Value::String(text) => match text.parse::<f64>() {
            Ok(number) if number.is_finite() || !text.contains(|digit: char| digit.is_ascii_digit()) => {
                Ok(Value::Double(number))
            }
            _ => refused(value, "double"),
        },
        value => refused(value, "double"),
    }
}

fn to_duration<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::Duration(nanos) | Value::Int(nanos) => Ok(Value::Duration(*nanos)),
        value @ Value::String(text) => match go_duration(text) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => refused(value, "google.protobuf.Duration"),
        },
        value => refused(value, "google.protobuf.Duration"),
    }
}

fn to_int<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::Int(value) => Ok(Value::Int(*value)),
        Value::Uint(value) => {
            i64::try_from(*value).map(Value::Int).map_err(|_| EvalError::new("integer overflow"))
        }
        Value::Double(value) => int_of_double(*value).map(Value::Int),
        Value::Duration(nanos) => Ok(Value::Int(*nanos)),
        Value::Timestamp(moment) => Ok(Value::Int(moment.unix_seconds())),
        value @ Value::String(text) => {
            text.parse().map_or_else(|_| refused(value, "int"), |value| Ok(Value::Int(value)))
        }
        value => refused(value, "int"),
    }
}

fn to_string<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::String(text) => Ok(Value::String(text.clone())),
        Value::Bool(value) => Ok(Value::from(value.to_string())),
        Value::Int(value) => Ok(Value::from(value.to_string())),
        Value::Uint(value) => Ok(Value::from(value.to_string())),
        Value::Double(value) => Ok(Value::from(double_text(*value))),
        Value::Duration(nanos) => Ok(Value::from(duration_text(*nanos))),
        Value::Timestamp(moment) => Ok(Value::from(moment.to_string())),
        Value::Bytes(bytes) => std::str::from_utf8(bytes)
            .map(|text| Value::from(text.to_owned()))
            .map_err(|_| EvalError::new("invalid UTF-8 in bytes, cannot convert to string")),
        Value::Native(native) if matches!(native.0, Kind::Ip(_) | Kind::Cidr(_)) => {
            native.text().map(Value::from)
        }
        value => refused(value, "string"),
    }
}

fn to_timestamp<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::Timestamp(moment) => Ok(Value::Timestamp(*moment)),
        Value::Int(seconds) => Moment::from_unix(*seconds).map(Value::Timestamp),
        value @ Value::String(text) => match Moment::parse(text) {
            Some(moment) => moment.map(Value::Timestamp),
            None => refused(value, "google.protobuf.Timestamp"),
        },
        value => refused(value, "google.protobuf.Timestamp"),
    }
}

fn to_uint<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match one(args)? {
        Value::Uint(value) => Ok(Value::Uint(*value)),
        Value::Int(value) => {
            u64::try_from(*value).map(Value::Uint).map_err(|_| EvalError::new("unsigned integer overflow"))
        }
        Value::Double(value) => uint_of_double(*value).map(Value::Uint),
        value @ Value::String(text) => {
            text.parse().map_or_else(|_| refused(value, "uint"), |value| Ok(Value::Uint(value)))
        }
        value => refused(value, "uint"),
    }
}

/// `string(..)` of the network libraries' types.
pub(crate) fn add_network_text(functions: &mut Functions) {
    functions.global(
        "string",
        to_string,
        &[("ip_to_string", "(net.IP) string"), ("cidr_to_string", "(net.CIDR) string")],
    );
}
