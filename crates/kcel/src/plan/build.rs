//! Plans every kind of node but calls.

use std::sync::Arc;

use super::{
    Attr, Base, By, FoldNode, ListElement, MapEntry, Node, ObjectField, ObjectNode, Plan, Qualifier,
};
use crate::{
    ast::{Expr, ExprKind, Fold, Literal, Select},
    checker::{Checked, Ref},
    error::EvalError,
    eval::constant,
    value::{Text, Value},
};

pub(super) struct Planner<'c> {
    pub(super) checked: &'c Checked,
    pub(super) variables: Vec<String>,
    /// The names of the comprehensions' variables; a place is a slot.
    pub(super) locals: Vec<String>,
}

/// Plans a checked expression.
///
/// # Errors
/// When a constant part of it can't be computed.
pub(crate) fn plan(checked: &Checked) -> Result<Plan, EvalError> {
    let mut planner = Planner { checked, variables: Vec::new(), locals: Vec::new() };
    let root = planner.node(&checked.root)?;
    Ok(Plan { root, variables: planner.variables })
}

/// A chain that is not yet longer than its beginning.
fn attr(base: Base) -> Attr {
    Attr { base, qualifiers: Vec::new() }
}

/// The chain that a node is, or begins.
pub(super) fn as_attr(node: Node) -> Attr {
    match node {
        Node::Attr(attr) => *attr,
        other => attr(Base::Operand(other)),
    }
}

impl Planner<'_> {
    pub(super) fn node(&mut self, expr: &Expr) -> Result<Node, EvalError> {
        match &expr.kind {
            ExprKind::Missing => Ok(Node::Const(Value::Null)),
            ExprKind::Literal(literal) => Ok(Node::Const(value_of(literal))),
            ExprKind::Ident(name) => Ok(self.ident(expr, name)),
            ExprKind::Select(select) => self.select(select),
            ExprKind::Call(call) => self.call(expr, call),
            ExprKind::List(elements) => {
                let mut planned = Vec::with_capacity(elements.len());
                for element in elements {
                    planned
                        .push(ListElement { value: self.node(&element.value)?, optional: element.optional });
                }
                let fixed = planned.iter().all(|element| is_const(&element.value));
                folded(Node::List(planned.into()), fixed)
            }
            ExprKind::Map(entries) => {
                let mut planned = Vec::with_capacity(entries.len());
                for entry in entries {
                    let (key, value) = (self.node(&entry.key)?, self.node(&entry.value)?);
                    planned.push(MapEntry { key, value, optional: entry.optional });
                }
                let fixed = planned.iter().all(|entry| is_const(&entry.key) && is_const(&entry.value));
                folded(Node::Map(planned.into()), fixed)
            }
            ExprKind::Struct(object) => {
                let mut fields = Vec::with_capacity(object.fields.len());
                for field in &object.fields {
                    fields.push(ObjectField {
                        name: Arc::from(field.name.as_str()),
                        value: self.node(&field.value)?,
                        optional: field.optional,
                    });
                }
                Ok(Node::Object(Box::new(ObjectNode { name: Arc::from(object.name.as_str()), fields })))
            }
            ExprKind::Fold(fold) => self.fold(fold),
        }
    }

    fn ident(&mut self, expr: &Expr, name: &str) -> Node {
        if let Some(Ref::TypeName(name)) = self.checked.reference(expr) {
            return Node::Const(Value::Type(Text::from(name.clone())));
        }
        if let Some(slot) = self.locals.iter().rposition(|local| local == name) {
            return Node::Attr(Box::new(attr(Base::Local(slot))));
        }
        let name = name.strip_prefix('.').unwrap_or(name);
        let place = self.variables.iter().position(|known| known == name).unwrap_or_else(|| {
            self.variables.push(name.to_owned());
            self.variables.len() - 1
        });
        Node::Attr(Box::new(attr(Base::Global(place))))
    }

    fn select(&mut self, select: &Select) -> Result<Node, EvalError> {
        let mut chain = as_attr(self.node(&select.operand)?);
        let by = if select.test { By::Test(select.field.clone()) } else { By::Field(select.field.clone()) };
        chain.qualifiers.push(Qualifier { by, optional: false });
        Ok(Node::Attr(Box::new(chain)))
    }

    fn fold(&mut self, fold: &Fold) -> Result<Node, EvalError> {
        let range = self.node(&fold.range)?;
        let slot = self.locals.len();
        // The initial value may be computed inside the loop, but sees only what is outside of it.
        let init = self.node(&fold.init)?;
        self.locals.push(fold.accu.clone());
        self.locals.push(fold.var.clone());
        if let Some(name) = &fold.var2 {
            self.locals.push(name.clone());
        }
        let condition = self.node(&fold.condition)?;
        let step = self.node(&fold.step)?;
        self.locals.truncate(slot + 1);
        let result = self.node(&fold.result)?;
        self.locals.truncate(slot);
        let two = fold.var2.is_some();
        Ok(Node::Fold(Box::new(FoldNode { slot, range, two, init, condition, step, result })))
    }
}

pub(super) const fn is_const(node: &Node) -> bool {
    matches!(node, Node::Const(_))
}

/// The node's value, if it consists of constants only.
pub(super) fn folded(node: Node, fixed: bool) -> Result<Node, EvalError> {
    if fixed { constant(&node).map(Node::Const) } else { Ok(node) }
}

fn value_of(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::String(Text::Shared(Arc::from(text.as_str()))),
        Literal::Bytes(bytes) => Value::Bytes(Arc::from(bytes.as_slice())),
    }
}
