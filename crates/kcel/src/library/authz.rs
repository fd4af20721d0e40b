//! Authorization checks (`library/authz.go`): a builder, a check, and its decision.

use std::sync::Arc;

use super::format::{is_dns_label, is_dns_subdomain};
use crate::{
    authorizer::{Decision, GroupCheck, PathCheck, ResourceCheck, ResourceValue},
    error::EvalError,
    eval::Eval,
    functions::{Body, Functions},
    native::{Kind, Native},
    value::Value,
};

pub(super) fn add(functions: &mut Functions) {
    const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
    const PATH: &str = "kubernetes.authorization.PathCheck";
    const GROUP: &str = "kubernetes.authorization.GroupCheck";
    const RESOURCE: &str = "kubernetes.authorization.ResourceCheck";
    const DECISION: &str = "kubernetes.authorization.Decision";
    let members: &[(&'static str, &'static str, String, Body)] = &[
        ("path", "authorizer_path", format!("({AUTHORIZER}, string) {PATH}"), path),
        ("group", "authorizer_group", format!("({AUTHORIZER}, string) {GROUP}"), group),
        (
            "serviceAccount",
            "authorizer_serviceaccount",
            format!("({AUTHORIZER}, string, string) {AUTHORIZER}"),
            service_account,
        ),
        ("resource", "groupcheck_resource", format!("({GROUP}, string) {RESOURCE}"), resource),
        ("subresource", "resourcecheck_subresource", format!("({RESOURCE}, string) {RESOURCE}"), |args| {
            narrow(args, |check, text| check.subresource = text)
        }),
        ("namespace", "resourcecheck_namespace", format!("({RESOURCE}, string) {RESOURCE}"), |args| {
            narrow(args, |check, text| check.namespace = text)
        }),
        ("name", "resourcecheck_name", format!("({RESOURCE}, string) {RESOURCE}"), |args| {
            narrow(args, |check, text| check.name = text)
        }),
        ("fieldSelector", "authorizer_fieldselector", format!("({RESOURCE}, string) {RESOURCE}"), |args| {
            narrow(args, |check, text| check.field_selector = text)
        }),
        ("labelSelector", "authorizer_labelselector", format!("({RESOURCE}, string) {RESOURCE}"), |args| {
            narrow(args, |check, text| check.label_selector = text)
        }),
        ("check", "pathcheck_check", format!("({PATH}, string) {DECISION}"), check),
        ("check", "resourcecheck_check", format!("({RESOURCE}, string) {DECISION}"), check),
        ("errored", "decision_errored", format!("({DECISION}) bool"), |args| {
            decided(args, |decision| Value::Bool(decision.error.is_some()))
        }),
        ("error", "decision_error", format!("({DECISION}) string"), |args| {
            decided(args, |decision| Value::from(decision.error.clone().unwrap_or_default()))
        }),
        ("allowed", "decision_allowed", format!("({DECISION}) bool"), |args| {
            decided(args, |decision| Value::Bool(decision.allowed))
        }),
        ("reason", "decision_reason", format!("({DECISION}) string"), |args| {
            decided(args, |decision| Value::from(decision.reason.clone()))
        }),
    ];
    for (name, id, text, body) in members {
        functions.add(name, true, (*id).into(), text, *body);
    }
}

fn native<'a>(kind: Kind) -> Eval<'a> {
    Ok(Value::Native(Native(kind)))
}

fn path<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Authorizer(authorizer))), Value::String(path)] => {
            if path.trim().is_empty() {
                return Err(EvalError::new("path must not be empty"));
            }
            let check = PathCheck { authorizer: authorizer.clone(), path: (**path).to_owned() };
            native(Kind::PathCheck(Arc::new(check)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn group<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Authorizer(authorizer))), Value::String(group)] => {
            let check = GroupCheck { authorizer: authorizer.clone(), group: (**group).to_owned() };
            native(Kind::GroupCheck(Arc::new(check)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn service_account<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [
            Value::Native(Native(Kind::Authorizer(authorizer))),
            Value::String(namespace),
            Value::String(name),
        ] => {
            if !is_dns_subdomain(name) {
                return Err(EvalError::new("Invalid service account name"));
            }
            if !is_dns_label(namespace) {
                return Err(EvalError::new("Invalid service account namespace"));
            }
            native(Kind::Authorizer(authorizer.for_service_account(namespace, name)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn resource<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::GroupCheck(group))), Value::String(resource)] => {
            if resource.trim().is_empty() {
                return Err(EvalError::new("resource must not be empty"));
            }
            let check = ResourceCheck {
                group: group.group.clone(),
                resource: (**resource).to_owned(),
                ..ResourceCheck::default()
            };
            let value = ResourceValue { authorizer: group.authorizer.clone(), check };
            native(Kind::ResourceCheck(Arc::new(value)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn narrow<'a>(args: &[Value<'a>], set: impl Fn(&mut ResourceCheck, String)) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::ResourceCheck(check))), Value::String(text)] => {
            let mut value = (**check).clone();
            set(&mut value.check, (**text).to_owned());
            native(Kind::ResourceCheck(Arc::new(value)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn check<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let decision = match args {
        [Value::Native(Native(Kind::PathCheck(check))), Value::String(verb)] => check.check(verb),
        [Value::Native(Native(Kind::ResourceCheck(check))), Value::String(verb)] => check.check(verb),
        _ => return Err(EvalError::no_such_overload()),
    };
    native(Kind::Decision(Arc::new(decision)))
}

fn decided<'a>(args: &[Value<'a>], read: impl Fn(&Decision) -> Value<'static>) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Decision(decision)))] => Ok(read(decision)),
        _ => Err(EvalError::no_such_overload()),
    }
}
