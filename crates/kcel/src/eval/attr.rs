//! Variables and what is selected from them.

use std::sync::Arc;

use super::{Eval, Evaluator, fold::Local};
use crate::{
    cost,
    error::EvalError,
    plan::{Attr, Base, By, Node, Qualifier},
    value::{Value, int_of_double},
};

/// What a selection found.
enum Found<'a> {
    Value(Value<'a>),
    /// Nothing, where that is no error.
    Absent,
}

impl<'a> Evaluator<'a, '_> {
    /// A chain of selections with its own cost.
    pub(super) fn attr(&mut self, attr: &'a Attr) -> Eval<'a> {
        let value = self.resolve(attr);
        let tests = matches!(attr.qualifiers.last(), Some(Qualifier { by: By::Test(_), .. }));
        // A condition costs what its parts do, and whether something is there costs nothing by itself.
        if !tests && !matches!(attr.base, Base::Conditional(..)) {
            self.charge(cost::SELECT)?;
        }
        value
    }

    /// A chain of selections without its own cost, as it is needed where it is part of something else.
    fn resolve(&mut self, attr: &'a Attr) -> Eval<'a> {
        let base = match &attr.base {
            Base::Global(place) => self.global(*place)?,
            Base::Local(slot) => self.local(*slot)?,
            Base::Operand(node) => self.node(node)?,
            Base::Conditional(condition, truthy, falsy) => match self.node(condition)? {
                Value::Bool(true) => self.resolve(truthy)?,
                Value::Bool(false) => self.resolve(falsy)?,
                _ => return Err(EvalError::no_such_overload()),
            },
        };
        if attr.qualifiers.is_empty() {
            return Ok(base);
        }
        self.qualified(base, &attr.qualifiers)
    }

    fn global(&mut self, place: usize) -> Eval<'a> {
        let plan = self.plan;
        let name = plan.variables.get(place).map_or("", String::as_str);
        let decl = self.decls.get(place).and_then(Option::as_deref);
        self.bindings.get(name, decl)
    }

    fn local(&mut self, slot: usize) -> Eval<'a> {
        let init: &'a Node = match self.locals.get(slot) {
            Some(Local::Ready(value)) => return value.clone(),
            Some(Local::Pending(init)) => init,
            None => return Err(EvalError::no_such_overload()),
        };
        let value = self.node(init);
        if matches!(value, Err(EvalError::CostLimit)) {
            return value;
        }
        self.locals[slot] = Local::Ready(value.clone());
        value
    }

    fn qualified(&mut self, base: Value<'a>, qualifiers: &'a [Qualifier]) -> Eval<'a> {
        let (mut value, mut optional) = match base {
            Value::Optional(None) if tests(qualifiers) => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => ((*value).clone(), true),
            other => (other, false),
        };
        for qualifier in qualifiers {
            optional |= qualifier.optional;
            if let By::Test(name) = &qualifier.by {
                let found = select_field(&value, name);
                let absent = matches!(found, Ok(Found::Absent));
                if !(optional && absent) {
                    self.charge(cost::SELECT)?;
                }
                return found.map(|_| Value::Bool(!absent));
            }
            let found = self.select(&value, qualifier);
            if matches!(found, Err(EvalError::CostLimit)) {
                return Err(EvalError::CostLimit);
            }
            match found {
                Ok(Found::Absent) if optional && tests(qualifiers) => return Ok(Value::Bool(false)),
                Ok(Found::Absent) if optional => return Ok(Value::Optional(None)),
                found => {
                    self.charge(cost::SELECT)?;
                    value = match found? {
                        Found::Value(value) => value,
                        Found::Absent => return Err(self.missing(&value, qualifier)),
                    };
                }
            }
        }
        Ok(if optional { Value::Optional(Some(Arc::new(value))) } else { value })
    }

    fn select(&mut self, value: &Value<'a>, qualifier: &'a Qualifier) -> Result<Found<'a>, EvalError> {
        match &qualifier.by {
            By::Field(name) | By::Test(name) => select_field(value, name),
            By::Const(key) => select_index(value, key),
            By::Attr(attr) => {
                let key = self.resolve(attr)?;
                select_index(value, &key)
            }
            By::Node(node) => {
                let key = self.node(node)?;
                select_index(value, &key)
            }
        }
    }

    /// The error for what is not there.
    fn missing(&mut self, value: &Value<'a>, qualifier: &'a Qualifier) -> EvalError {
        let key = match &qualifier.by {
            By::Field(name) | By::Test(name) => name.clone(),
            By::Const(key) => key.shown(),
            // The key has been computed without an error before, and is not charged for again.
            By::Attr(_) | By::Node(_) => {
                let cost = self.cost;
                let key = match &qualifier.by {
                    By::Attr(attr) => self.resolve(attr),
                    By::Node(node) => self.node(node),
                    By::Field(_) | By::Test(_) | By::Const(_) => Err(EvalError::no_such_overload()),
                };
                self.cost = cost;
                match key {
                    Ok(key) => key.shown(),
                    Err(error) => return error,
                }
            }
        };
        match value {
            Value::List(_) => EvalError::new(format!("index out of bounds: {key}")),
            _ => EvalError::new(format!("no such key: {key}")),
        }
    }
}

fn tests(qualifiers: &[Qualifier]) -> bool {
    matches!(qualifiers.last(), Some(Qualifier { by: By::Test(_), .. }))
}

fn select_field<'a>(value: &Value<'a>, name: &str) -> Result<Found<'a>, EvalError> {
    match value {
        Value::Map(map) => Ok(map.field(name)?.map_or(Found::Absent, Found::Value)),
        Value::Object(object) if object.type_name() == "JSONPatch" => Ok(match (object.field(name), name) {
            (Some(value), _) => Found::Value(value.clone()),
            (None, _) => Found::Absent,
        }),
        Value::List(_) => Err(EvalError::new("unsupported index type 'string' in list")),
        _ => Ok(Found::Absent),
    }
}

fn select_index<'a>(value: &Value<'a>, key: &Value<'a>) -> Result<Found<'a>, EvalError> {
    match (value, key) {
        (value, Value::String(name)) => select_field(value, name),
        (Value::Map(map), key) => Ok(map.find(key)?.map_or(Found::Absent, Found::Value)),
        (Value::List(list), key) => {
            let index = match key {
                Value::Int(index) => *index,
                Value::Uint(index) => i64::try_from(*index).unwrap_or(i64::MAX),
                Value::Double(index) if index.fract() == 0.0 => int_of_double(*index)?,
                other => {
                    let of = other.type_name();
                    return Err(EvalError::new(format!("unsupported index type '{of}' in list")));
                }
            };
            let found = usize::try_from(index).ok().map(|index| list.get(index)).transpose()?.flatten();
            Ok(found.map_or(Found::Absent, Found::Value))
        }
        _ => Ok(Found::Absent),
    }
}
