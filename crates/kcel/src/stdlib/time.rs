//! Parts of moments and of lengths of time.

use jiff::civil::DateTime;

use crate::{
    error::EvalError,
    eval::Eval,
    functions::{Body, Functions},
    value::Value,
};

pub(super) fn add(functions: &mut Functions) {
    let parts: &[(&'static str, &str, Body)] = &[
        ("getFullYear", "year", |args| part(args, |time| i64::from(time.year()))),
        ("getMonth", "month", |args| part(args, |time| i64::from(time.month()) - 1)),
        ("getDayOfYear", "day_of_year", |args| part(args, |time| i64::from(time.day_of_year()) - 1)),
        ("getDayOfMonth", "day_of_month", |args| part(args, |time| i64::from(time.day()) - 1)),
        ("getDate", "day_of_month_1_based", |args| part(args, |time| i64::from(time.day()))),
        ("getDayOfWeek", "day_of_week", |args| {
            part(args, |time| i64::from(time.weekday().to_sunday_zero_offset()))
        }),
        ("getHours", "hours", |args| part_or(args, |time| i64::from(time.hour()), 3_600_000_000_000)),
        ("getMinutes", "minutes", |args| part_or(args, |time| i64::from(time.minute()), 60_000_000_000)),
        ("getSeconds", "seconds", |args| part_or(args, |time| i64::from(time.second()), 1_000_000_000)),
        ("getMilliseconds", "milliseconds", |args| {
            part_or(args, |time| i64::from(time.millisecond()), 1_000_000)
        }),
    ];
    for (name, word, body) in parts {
        functions.add(name, true, format!("timestamp_to_{word}").into(), "(timestamp) int", *body);
        let id = format!("timestamp_to_{word}_with_tz");
        functions.add(name, true, id.into(), "(timestamp, string) int", *body);
        if matches!(*word, "hours" | "minutes" | "seconds" | "milliseconds") {
            functions.add(name, true, format!("duration_to_{word}").into(), "(duration) int", *body);
        }
    }
}

fn part<'a>(args: &[Value<'a>], read: impl Fn(DateTime) -> i64) -> Eval<'a> {
    match args {
        [Value::Timestamp(moment)] => Ok(Value::Int(read(moment.civil(None)?))),
        [Value::Timestamp(moment), Value::String(zone)] => Ok(Value::Int(read(moment.civil(Some(zone))?))),
        _ => Err(EvalError::no_such_overload()),
    }
}

/// Of a length of time: how often `unit` (in nanoseconds) fits into it.
fn part_or<'a>(args: &[Value<'a>], read: impl Fn(DateTime) -> i64, unit: i64) -> Eval<'a> {
    match args {
        [Value::Duration(nanos)] => Ok(Value::Int(nanos / unit)),
        _ => part(args, read),
    }
}
