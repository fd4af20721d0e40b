//! Evaluates a plan. Errors are values to `&&`, `||` and comprehensions; only the cost limit ends everything.

mod attr;
mod calls;
mod fold;

use std::sync::Arc;

use self::fold::Local;
use crate::{
    bindings::Bindings,
    cost,
    decl::Decl,
    error::EvalError,
    plan::{ListElement, MapEntry, Node, ObjectNode, OrNode, Plan},
    value::{Entries, Key, List, Map, Object, Text, Value},
};

/// The result of a step.
pub(crate) type Eval<'a> = Result<Value<'a>, EvalError>;

/// One evaluation.
pub(crate) struct Evaluator<'a, 'b> {
    plan: &'a Plan,
    /// The declarations of the plan's variables.
    decls: &'a [Option<Arc<Decl>>],
    bindings: &'b Bindings<'a>,
    locals: Vec<Local<'a>>,
    pub(crate) cost: u64,
    cost_max: u64,
}

/// The value of a node that consists of constants.
pub(crate) fn constant(node: &Node) -> Eval<'static> {
    let nothing = Bindings::none();
    static PLAN: Plan = Plan { root: Node::Const(Value::Null), variables: Vec::new() };
    let mut evaluator = Evaluator::new(&PLAN, &[], &nothing, u64::MAX);
    detached(evaluator.node(node)?)
}

/// A value that borrows from nothing, of one that was made from constants.
fn detached(value: Value<'_>) -> Eval<'static> {
    let text = |text: Text<'_>| Text::Shared(Arc::from(&*text));
    Ok(match value {
        Value::Null => Value::Null,
        Value::Bool(value) => Value::Bool(value),
        Value::Int(value) => Value::Int(value),
        Value::Uint(value) => Value::Uint(value),
        Value::Double(value) => Value::Double(value),
        Value::String(value) => Value::String(text(value)),
        Value::Bytes(value) => Value::Bytes(value),
        Value::Timestamp(value) => Value::Timestamp(value),
        Value::Duration(value) => Value::Duration(value),
        Value::Type(name) => Value::Type(text(name)),
        Value::List(list) => {
            let values: Result<Vec<_>, _> = list.iter().map(|value| detached(value?)).collect();
            Value::List(List::of(values?))
        }
        Value::Map(map) => {
            let mut entries = Entries::default();
            for (key, value) in map.entries()? {
                let place = Key::of(&key).ok_or_else(|| EvalError::new("unsupported key type"))?;
                entries.insert(place, detached(key)?, detached(value)?);
            }
            Value::Map(Map::Values(Arc::new(entries)))
        }
        Value::Optional(None) => Value::Optional(None),
        Value::Optional(Some(value)) => Value::Optional(Some(Arc::new(detached((*value).clone())?))),
        Value::Native(native) => Value::Native(native),
        Value::Object(_) | Value::Preserved(_) => return Err(EvalError::no_such_overload()),
    })
}

impl<'a, 'b> Evaluator<'a, 'b> {
    pub(crate) const fn new(
        plan: &'a Plan,
        decls: &'a [Option<Arc<Decl>>],
        bindings: &'b Bindings<'a>,
        cost_max: u64,
    ) -> Self {
        Self { plan, decls, bindings, locals: Vec::new(), cost: 0, cost_max }
    }

    /// Evaluates the plan.
    pub(crate) fn run(&mut self) -> Eval<'a> {
        let plan = self.plan;
        self.node(&plan.root)
    }

    fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.cost_max { Err(EvalError::CostLimit) } else { Ok(()) }
    }

    fn node(&mut self, node: &'a Node) -> Eval<'a> {
        match node {
            Node::Const(value) => Ok(value.clone()),
            Node::Attr(attr) => self.attr(attr),
            Node::And(sides) => self.logic(sides, false),
            Node::Or(sides) => self.logic(sides, true),
            Node::Equal(equal) => {
                let (left, right) = self.both(&equal.sides[0], &equal.sides[1])?;
                let (left, right) = self.charged_pair(left, right)?;
                self.charge(cost::equality(&left, &right, equal.negate))?;
                Ok(Value::Bool(crate::value::equal(&left, &right)? != equal.negate))
            }
            Node::Call(call) => self.call(call),
            Node::InSet(set) => {
                let value = self.node(&set.arg)?;
                Ok(Value::Bool(Key::of(&value).is_some_and(|key| set.keys.contains(&key))))
            }
            Node::NotStrictlyFalse(arg) => {
                let value = self.node(arg);
                self.charge(1)?;
                match value {
                    Ok(Value::Bool(value)) => Ok(Value::Bool(value)),
                    Err(EvalError::CostLimit) => Err(EvalError::CostLimit),
                    _ => Ok(Value::Bool(true)),
                }
            }
            Node::List(elements) => self.list(elements),
            Node::Map(entries) => self.map(entries),
            Node::Object(object) => self.object(object),
            Node::Fold(fold) => self.fold(fold),
            Node::Append(append) => self.append(append),
            Node::Insert(insert) => self.insert(insert),
            Node::OptionalOr(or) => self.optional_or(or),
        }
    }

    /// Evaluates two arguments; only the cost limit keeps the second from being evaluated.
    fn both(&mut self, left: &'a Node, right: &'a Node) -> Result<(Eval<'a>, Eval<'a>), EvalError> {
        let left = self.node(left);
        if matches!(left, Err(EvalError::CostLimit)) {
            return Err(EvalError::CostLimit);
        }
        let right = self.node(right);
        if matches!(right, Err(EvalError::CostLimit)) {
            return Err(EvalError::CostLimit);
        }
        Ok((left, right))
    }

    /// The two values; a call one of whose arguments failed costs 1.
    fn charged_pair(&mut self, left: Eval<'a>, right: Eval<'a>) -> Result<(Value<'a>, Value<'a>), EvalError> {
        match (left, right) {
            (Ok(left), Ok(right)) => Ok((left, right)),
            (Err(error), _) | (_, Err(error)) => {
                self.charge(1)?;
                Err(error)
            }
        }
    }

    /// `&&` and `||`: an operand that decides hides the other's error.
    fn logic(&mut self, sides: &'a [Node; 2], decides: bool) -> Eval<'a> {
        let mut failed = None;
        for side in sides {
            match self.node(side) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => {
                    failed.get_or_insert(EvalError::no_such_overload());
                }
                Err(EvalError::CostLimit) => return Err(EvalError::CostLimit),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn list(&mut self, elements: &'a [ListElement]) -> Eval<'a> {
        let mut values = Vec::with_capacity(elements.len());
        for element in elements {
            let value = self.node(&element.value)?;
            if !element.optional {
                values.push(value);
                continue;
            }
            match value {
                Value::Optional(Some(value)) => values.push((*value).clone()),
                Value::Optional(None) => {}
                other => {
                    return Err(EvalError::new(format!(
                        "cannot initialize optional list element from non-optional value {}",
                        other.shown()
                    )));
                }
            }
        }
        self.charge(cost::LIST)?;
        Ok(Value::List(List::of(values)))
    }

    fn map(&mut self, entries: &'a [MapEntry]) -> Eval<'a> {
        let mut made = Entries::default();
        for entry in entries {
            let key = self.node(&entry.key)?;
            let value = self.node(&entry.value)?;
            let place = Key::of(&key).ok_or_else(|| EvalError::new("unsupported key type"))?;
            match optional_entry(entry.optional, &key.shown(), value)? {
                Some(value) => made.insert(place, key, value),
                None => made.remove(&place),
            }
        }
        self.charge(cost::MAP)?;
        Ok(Value::Map(Map::Values(Arc::new(made))))
    }

    fn object(&mut self, object: &'a ObjectNode) -> Eval<'a> {
        let mut fields: Vec<(Text<'a>, Value<'a>)> = Vec::with_capacity(object.fields.len());
        for field in &object.fields {
            let value = self.node(&field.value)?;
            if let Some(value) = optional_entry(field.optional, &field.name, value)? {
                fields.retain(|(name, _)| **name != *field.name);
                fields.push((Text::Shared(field.name.clone()), value));
            }
        }
        self.charge(cost::OBJECT)?;
        Ok(Value::Object(Arc::new(Object { name: Text::Shared(object.name.clone()), fields })))
    }

    fn optional_or(&mut self, or: &'a OrNode) -> Eval<'a> {
        match self.node(&or.optional)? {
            Value::Optional(Some(value)) if or.unwrap => Ok((*value).clone()),
            Value::Optional(Some(value)) => Ok(Value::Optional(Some(value))),
            Value::Optional(None) => self.node(&or.other),
            other => Ok(other),
        }
    }
}

/// The value of an entry or a field; of an optional one that is absent, none.
fn optional_entry<'a>(optional: bool, name: &str, value: Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
    match value {
        value if !optional => Ok(Some(value)),
        Value::Optional(value) => Ok(value.map(|value| (*value).clone())),
        other => Err(EvalError::new(format!(
            "cannot initialize optional entry '{name}' from non-optional value {}",
            other.shown()
        ))),
    }
}
