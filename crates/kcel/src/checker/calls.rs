//! Calls: which signatures of a function fit the arguments.

use std::sync::Arc;

use super::{Checker, Ref, qualified_name};
use crate::{
    ast::{Call, Expr, ExprKind, Id, Literal, op},
    functions::{Function, Overload},
    types::Type,
    unify::instantiate,
};

impl Checker<'_> {
    pub(super) fn check_call(&mut self, expr: &mut Expr) {
        let id = expr.id;
        let ExprKind::Call(call) = &mut expr.kind else {
            return;
        };
        if call.function == op::OPT_SELECT {
            self.check_opt_select(id, call);
            return;
        }
        for arg in &mut call.args {
            self.check(arg);
        }
        // A target may be the first part of a function's name: `ip.isCanonical(..)`.
        if let Some(prefix) = call.target.as_ref().and_then(qualified_name) {
            let name = format!("{prefix}.{}", call.function);
            if self.env.functions.get(&name).is_some() {
                call.target = None;
                call.function = name;
            }
        }
        if let Some(target) = &mut call.target {
            self.check(target);
        } else if let Some(name) = call.function.strip_prefix('.') {
            call.function = name.to_owned();
        }
        let Some(function) = self.env.functions.get(&call.function).cloned() else {
            let name = call.function.clone();
            self.undeclared(id, &name);
            return;
        };
        if let Some((found, overloads)) = self.resolve_overloads(id, &function, call) {
            self.set(id, found);
            self.refer(id, Ref::Call(function, overloads));
        }
    }

    fn check_opt_select(&mut self, id: Id, call: &mut Call) {
        let [operand, field] = call.args.as_mut_slice() else {
            return;
        };
        let ExprKind::Literal(Literal::String(name)) = &field.kind else {
            return;
        };
        let name = name.clone();
        let found = self.check_field(id, operand, &name, true);
        let found = self.subs.substitute(&found, false);
        self.set(field.id, Type::String);
        self.set(id, found);
    }

    /// The type of the call, and the signatures that fit; reports when none does.
    fn resolve_overloads(
        &mut self,
        id: Id,
        function: &Arc<Function>,
        call: &Call,
    ) -> Option<(Type, Vec<usize>)> {
        let args: Vec<Type> = call.target.iter().chain(&call.args).map(|arg| self.type_of(arg)).collect();
        if matches!(function.name, op::AND | op::OR) {
            return self.logical(call, &args);
        }
        let mut result: Option<Type> = None;
        let mut fitting = Vec::new();
        for (index, overload) in function.overloads.iter().enumerate() {
            if overload.member != call.target.is_some() || overload.params.len() != args.len() {
                continue;
            }
            let Some(found) = self.try_overload(overload, &args) else {
                continue;
            };
            fitting.push(index);
            result = Some(match result {
                None => found,
                Some(before) if before.is_dyn() || before == found => before,
                Some(_) => Type::Dyn,
            });
        }
        if result.is_none() {
            let args: Vec<Type> = args.iter().map(|arg| self.subs.substitute(arg, true)).collect();
            let shown = signature(&args, call.target.is_some());
            self.report(
                id,
                format!("found no matching overload for '{}' applied to '{shown}'", function.name),
            );
        }
        result.map(|found| (found, fitting))
    }

    /// `&&` and `||` report each operand that is no bool by itself.
    fn logical(&mut self, call: &Call, args: &[Type]) -> Option<(Type, Vec<usize>)> {
        let mut fine = true;
        for (arg, found) in call.args.iter().zip(args) {
            if !self.subs.assignable(found, &Type::Bool) {
                self.mismatch(arg.id, &Type::Bool, found);
                fine = false;
            }
        }
        fine.then(|| (Type::Bool, vec![0]))
    }

    fn try_overload(&mut self, overload: &Overload, args: &[Type]) -> Option<Type> {
        let mut letters: Vec<(char, Type)> = Vec::new();
        let subs = &mut self.subs;
        let mut fresh = |letter| match letters.iter().find(|(known, _)| *known == letter) {
            Some((_, found)) => found.clone(),
            None => {
                let found = subs.fresh();
                letters.push((letter, found.clone()));
                found
            }
        };
        let result = instantiate(&overload.result, &mut fresh);
        let params: Vec<Type> = overload.params.iter().map(|param| instantiate(param, &mut fresh)).collect();
        self.subs.assignable_lists(args, &params).then(|| self.subs.substitute(&result, false))
    }
}

/// The types of a call's arguments as messages show them.
fn signature(args: &[Type], member: bool) -> String {
    let mut shown = String::new();
    let mut args = args.iter();
    if member && let Some(target) = args.next() {
        shown = format!("{target}.");
    }
    let rest: Vec<String> = args.map(ToString::to_string).collect();
    shown + "(" + &rest.join(", ") + ")"
}
