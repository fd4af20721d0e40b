//! Semantic versions (`library/semverlib.go`, version 1).

use std::sync::Arc;

use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    native::{Kind, Native, semver::Semver},
    value::Value,
};

pub(super) fn add(functions: &mut Functions) {
    functions.global(
        "semver",
        to_semver,
        &[
            ("string_to_semver", "(string) kubernetes.Semver"),
            ("string_bool_to_semver", "(string, bool) kubernetes.Semver"),
        ],
    );
    functions.global(
        "isSemver",
        is_semver,
        &[("is_semver_string", "(string) bool"), ("is_semver_string_bool", "(string, bool) bool")],
    );
    functions.member(
        "major",
        |args| part(args, |of| of.major),
        &[("semver_major", "(kubernetes.Semver) int")],
    );
    functions.member(
        "minor",
        |args| part(args, |of| of.minor),
        &[("semver_minor", "(kubernetes.Semver) int")],
    );
    functions.member(
        "patch",
        |args| part(args, |of| of.patch),
        &[("semver_patch", "(kubernetes.Semver) int")],
    );
}

/// Both values as versions.
pub(super) fn semver_pair<'v>(left: &'v Value<'_>, right: &'v Value<'_>) -> Option<(&'v Semver, &'v Semver)> {
    match (left, right) {
        (Value::Native(Native(Kind::Semver(left))), Value::Native(Native(Kind::Semver(right)))) => {
            Some((left, right))
        }
        _ => None,
    }
}

fn read(args: &[Value<'_>]) -> Result<Result<Semver, String>, EvalError> {
    match args {
        [Value::String(text)] | [Value::String(text), Value::Bool(false)] => Ok(Semver::parse(text)),
        [Value::String(text), Value::Bool(true)] => Ok(Semver::parse_lenient(text)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn to_semver<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let version = read(args)?.map_err(EvalError::new)?;
    Ok(Value::Native(Native(Kind::Semver(Arc::new(version)))))
}

fn is_semver<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Bool(read(args)?.is_ok()))
}

fn part<'a>(args: &[Value<'a>], read: impl Fn(&Semver) -> u64) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Semver(version)))] => Ok(Value::Int(read(version) as i64)),
        _ => Err(EvalError::no_such_overload()),
    }
}
