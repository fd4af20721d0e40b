//! The type checker: gives every node a type, resolves names and picks the signatures that calls may have, by the
//! rules of cel-go's checker.

mod calls;
mod literals;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    ast::{Expr, ExprKind, Fold, Id, Literal, Select},
    decl::Decl,
    error::CompileErrors,
    functions::{Function, Functions},
    parser::Parsed,
    types::{Fields, ObjectType, Type},
    unify::Substitutions,
};

/// What expressions are checked against.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declarations {
    pub(crate) variables: HashMap<String, Arc<Decl>>,
    pub(crate) functions: Functions,
    /// Whether `Object{}` and `JSONPatch{}` can be made.
    pub(crate) mutation: bool,
}

/// What a name or a call refers to.
#[derive(Clone, Debug)]
pub(crate) enum Ref {
    /// A type's name: a constant.
    TypeName(String),
    /// A function and the indices of the signatures that fit.
    Call(Arc<Function>, Vec<usize>),
}

/// A checked expression.
pub(crate) struct Checked {
    pub(crate) root: Expr,
    pub(crate) offsets: Vec<u32>,
    types: Vec<Type>,
    refs: Vec<Option<Ref>>,
    /// The declared variables that are mentioned.
    pub(crate) used: HashSet<String>,
}

impl Checked {
    pub(crate) fn type_of(&self, expr: &Expr) -> &Type {
        self.types.get(expr.id as usize).unwrap_or(&Type::Error)
    }

    pub(crate) fn reference(&self, expr: &Expr) -> Option<&Ref> {
        self.refs.get(expr.id as usize)?.as_ref()
    }

    pub(crate) fn offset(&self, id: Id) -> u32 {
        self.offsets.get(id as usize).copied().unwrap_or(0)
    }
}

struct Checker<'e> {
    env: &'e Declarations,
    errors: &'e mut CompileErrors,
    offsets: &'e [u32],
    types: Vec<Type>,
    refs: Vec<Option<Ref>>,
    used: HashSet<String>,
    /// The variables of comprehensions, innermost last.
    locals: Vec<(String, Type)>,
    subs: Substitutions,
}

/// Checks a parsed expression; what is wrong is reported to `errors`.
pub(crate) fn check(parsed: Parsed, env: &Declarations, errors: &mut CompileErrors) -> Checked {
    let Parsed { mut root, offsets } = parsed;
    let mut checker = Checker {
        env,
        errors,
        offsets: &offsets,
        types: vec![Type::Error; offsets.len()],
        refs: vec![None; offsets.len()],
        used: HashSet::new(),
        locals: Vec::new(),
        subs: Substitutions::default(),
    };
    checker.check(&mut root);
    let types = checker.types.iter().map(|found| checker.subs.substitute(found, true)).collect();
    let (refs, used) = (checker.refs, checker.used);
    Checked { root, offsets, types, refs, used }
}

impl Checker<'_> {
    fn report(&mut self, id: Id, message: impl Into<String>) {
        let offset = self.offsets.get(id as usize).copied().unwrap_or(0);
        self.errors.report(offset, message);
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        self.report(id, format!("expected type '{expected}' but found '{found}'"));
    }

    fn undeclared(&mut self, id: Id, name: &str) {
        self.report(id, format!("undeclared reference to '{name}' (in container '')"));
    }

    fn type_of(&self, expr: &Expr) -> Type {
        self.types.get(expr.id as usize).cloned().unwrap_or(Type::Error)
    }

    fn set(&mut self, id: Id, found: Type) {
        if let Some(slot) = self.types.get_mut(id as usize) {
            *slot = found;
        }
    }

    fn refer(&mut self, id: Id, to: Ref) {
        if let Some(slot) = self.refs.get_mut(id as usize) {
            *slot = Some(to);
        }
    }

    fn check(&mut self, expr: &mut Expr) {
        let id = expr.id;
        match &mut expr.kind {
            ExprKind::Missing => {}
            ExprKind::Literal(literal) => {
                let found = literal_type(literal);
                self.set(id, found);
            }
            ExprKind::Ident(name) => {
                let name = name.clone();
                match self.resolve(id, &name) {
                    Some(found) => self.set(id, found),
                    None => self.undeclared(id, &name),
                }
            }
            ExprKind::Select(_) => self.check_select(expr),
            ExprKind::Call(_) => self.check_call(expr),
            ExprKind::List(elements) => self.check_list(id, elements),
            ExprKind::Map(entries) => self.check_map(id, entries),
            ExprKind::Struct(object) => self.check_struct(id, object),
            ExprKind::Fold(fold) => self.check_fold(id, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Type> {
        self.locals.iter().rev().find(|(local, _)| local == name).map(|(_, found)| found)
    }

    /// The type of a variable or of a type's name, which is noted as what `id` refers to.
    fn resolve(&mut self, id: Id, name: &str) -> Option<Type> {
        if let Some(found) = self.local(name) {
            return Some(found.clone());
        }
        self.resolve_global(id, name.strip_prefix('.').unwrap_or(name))
    }

    fn resolve_global(&mut self, id: Id, name: &str) -> Option<Type> {
        if let Some(decl) = self.env.variables.get(name) {
            self.used.insert(name.to_owned());
            return Some(decl.cel_type());
        }
        let named = self.type_named(name)?;
        self.refer(id, Ref::TypeName(named.runtime_name().to_owned()));
        Some(Type::Type(named.into()))
    }

    fn type_named(&mut self, name: &str) -> Option<Type> {
        Some(match name {
            "bool" => Type::Bool,
            "bytes" => Type::Bytes,
            "double" => Type::Double,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "string" => Type::String,
            "null_type" => Type::Null,
            "google.protobuf.Duration" => Type::Duration,
            "google.protobuf.Timestamp" => Type::Timestamp,
            "net.IP" => Type::Opaque("net.IP"),
            "net.CIDR" => Type::Opaque("net.CIDR"),
            "list" => Type::list(self.subs.fresh()),
            "map" => Type::map(self.subs.fresh(), self.subs.fresh()),
            "optional_type" => Type::optional(self.subs.fresh()),
            "type" => Type::Type(self.subs.fresh().into()),
            _ => return self.object_type(name).map(Type::Object),
        })
    }

    /// The type that an object literal of that name makes.
    fn object_type(&self, name: &str) -> Option<ObjectType> {
        let fields = match name {
            _ if !self.env.mutation => return None,
            "JSONPatch" => Fields::Patch,
            _ if name == "Object" || name.starts_with("Object.") => Fields::Any,
            _ => return None,
        };
        Some(ObjectType { name: Arc::from(name), fields })
    }

    fn check_select(&mut self, expr: &mut Expr) {
        let id = expr.id;
        if let Some(name) = qualified_name(expr)
            && self.local(name.split('.').next().unwrap_or_default()).is_none()
            && let Some(found) = self.resolve_global(id, name.strip_prefix('.').unwrap_or(&name))
        {
            self.set(id, found);
            expr.kind = ExprKind::Ident(name);
            return;
        }
        let ExprKind::Select(select) = &mut expr.kind else {
            return;
        };
        let Select { operand, field, test } = &mut **select;
        let found = self.check_field(id, operand, field, false);
        let found = if *test { Type::Bool } else { found };
        let found = self.subs.substitute(&found, false);
        self.set(id, found);
    }

    /// The type of `operand.field`.
    fn check_field(&mut self, id: Id, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand_type = self.subs.substitute(&self.type_of(operand), false);
        let (target, was_optional) = operand_type.unwrapped();
        let found = match target {
            Type::Map(entry) => entry.1.clone(),
            Type::Object(object) => object.field(field).unwrap_or_else(|| {
                self.report(id, format!("undefined field '{field}'"));
                Type::Error
            }),
            Type::Param(_) => {
                self.subs.assignable(&Type::Dyn, target);
                Type::Dyn
            }
            other => {
                if !other.is_dyn_or_error() {
                    self.report(id, format!("type '{other}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if was_optional || optional { Type::optional(found) } else { found }
    }

    fn check_fold(&mut self, id: Id, fold: &mut Fold) {
        self.check(&mut fold.range);
        self.check(&mut fold.init);
        let range = self.subs.substitute(&self.type_of(&fold.range), false);
        let accu = self.type_of(&fold.init);
        let outside = self.locals.len();
        self.locals.push((fold.accu.clone(), accu.clone()));
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(element) if two => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Error),
            Type::Map(entry) => (entry.0.clone(), entry.1.clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.subs.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.report(fold.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        self.locals.push((fold.var.clone(), first));
        if let Some(name) = &fold.var2 {
            self.locals.push((name.clone(), second));
        }
        self.check(&mut fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.check(&mut fold.step);
        self.assert(&fold.step, &accu);
        self.locals.truncate(outside + 1);
        self.check(&mut fold.result);
        self.locals.truncate(outside);
        let found = self.subs.substitute(&self.type_of(&fold.result), false);
        self.set(id, found);
    }

    fn assert(&mut self, expr: &Expr, wanted: &Type) {
        let found = self.type_of(expr);
        if !self.subs.assignable(wanted, &found) {
            self.mismatch(expr.id, wanted, &found);
        }
    }
}

const fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

/// `a.b.c` as one name, if it is nothing but identifiers.
fn qualified_name(expr: &Expr) -> Option<String> {
    match &expr.kind {
        ExprKind::Ident(name) => Some(name.clone()),
        ExprKind::Select(select) if !select.test => {
            let mut name = qualified_name(&select.operand)?;
            name.push('.');
            name.push_str(&select.field);
            Some(name)
        }
        _ => None,
    }
}
