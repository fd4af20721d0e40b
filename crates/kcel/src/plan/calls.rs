//! Plans calls: operators that are no functions, patterns that are constant, and everything else.

use std::collections::HashSet;

use super::{
    AppendNode, Base, By, CallNode, Code, EqualNode, InSet, InsertNode, Node, OrNode, PatternUse, Qualifier,
    build::{Planner, as_attr, folded, is_const},
};
use crate::{
    ast::{ACCU, Call, Expr, ExprKind, op},
    checker::Ref,
    cost::Rule,
    error::EvalError,
    regex::Pattern,
    value::{Key, Value},
};

/// Functions of one argument that are computed at once when it is a constant.
const CONVERSIONS: &[&str] =
    &["bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint"];

impl Planner<'_> {
    pub(super) fn call(&mut self, expr: &Expr, call: &Call) -> Result<Node, EvalError> {
        if let Some(in_place) = self.in_place(call)? {
            return Ok(in_place);
        }
        let mut args = Vec::with_capacity(call.args.len() + 1);
        for arg in call.target.iter().chain(&call.args) {
            args.push(self.node(arg)?);
        }
        match <[Node; 2]>::try_from(args) {
            Ok(pair) => self.binary(expr, call, pair),
            Err(args) => self.other(expr, call, args),
        }
    }

    fn binary(&mut self, expr: &Expr, call: &Call, sides: [Node; 2]) -> Result<Node, EvalError> {
        match call.function.as_str() {
            op::AND => Ok(Node::And(Box::new(sides))),
            op::OR => Ok(Node::Or(Box::new(sides))),
            op::EQUALS | op::NOT_EQUALS => {
                let negate = call.function == op::NOT_EQUALS;
                Ok(Node::Equal(Box::new(EqualNode { sides, negate })))
            }
            op::INDEX => Ok(index(sides, false)),
            op::OPT_INDEX | op::OPT_SELECT => Ok(index(sides, true)),
            "or" | "orValue" if call.target.is_some() => {
                let [optional, other] = sides;
                let unwrap = call.function == "orValue";
                Ok(Node::OptionalOr(Box::new(OrNode { optional, other, unwrap })))
            }
            op::IN => {
                let [arg, list] = sides;
                match self.one_signature(expr).as_deref() {
                    Some("in_list") => self.membership(expr, call, arg, list),
                    _ => self.other(expr, call, vec![arg, list]),
                }
            }
            _ => self.other(expr, call, sides.into()),
        }
    }

    /// cel-go's name of the only signature that fits.
    fn one_signature(&self, expr: &Expr) -> Option<String> {
        match self.checked.reference(expr) {
            Some(Ref::Call(function, fitting)) => match fitting.as_slice() {
                [one] => Some(function.overloads.get(*one)?.id.clone().into_owned()),
                _ => None,
            },
            _ => None,
        }
    }

    /// `arg in list`, for a list of constants by their keys.
    fn membership(&mut self, expr: &Expr, call: &Call, arg: Node, list: Node) -> Result<Node, EvalError> {
        if let Node::Const(Value::List(values)) = &list {
            if values.is_empty() {
                return Ok(Node::Const(Value::Bool(false)));
            }
            let keys: Option<HashSet<Key>> = values.values()?.iter().map(Key::of).collect();
            if let Some(keys) = keys {
                return Ok(Node::InSet(Box::new(InSet { arg, keys })));
            }
        }
        self.other(expr, call, vec![arg, list])
    }

    fn other(&mut self, expr: &Expr, call: &Call, args: Vec<Node>) -> Result<Node, EvalError> {
        let mut args = match <[Node; 3]>::try_from(args) {
            Ok([condition, truthy, falsy]) if call.function == op::CONDITIONAL => {
                let base = Base::Conditional(condition, as_attr(truthy).into(), as_attr(falsy).into());
                return Ok(Node::Attr(Box::new(super::Attr { base, qualifiers: Vec::new() })));
            }
            Ok(three) => three.into(),
            Err(args) => args,
        };
        if call.function == op::NOT_STRICTLY_FALSE
            && let Some(arg) = args.pop()
        {
            return Ok(Node::NotStrictlyFalse(Box::new(arg)));
        }
        let Some(Ref::Call(function, fitting)) = self.checked.reference(expr) else {
            return Err(EvalError::no_such_overload());
        };
        let one = match fitting.as_slice() {
            [one] => function.overloads.get(*one),
            _ => None,
        };
        let rule = Rule::of(function.name, one.map(|overload| &*overload.id));
        let code = match (pattern(function.name, &args)?, one) {
            (Some((pattern, used)), _) => Code::Pattern(pattern, used),
            (None, Some(overload)) => Code::One(overload.body),
            (None, None) => Code::Several(function.clone(), fitting.clone()),
        };
        let fixed = CONVERSIONS.contains(&function.name) && args.len() == 1 && args.iter().all(is_const);
        let node = CallNode { function: function.name, code, args: args.into(), rule };
        folded(Node::Call(Box::new(node)), fixed)
    }

    /// The steps of comprehensions that build a list or a map.
    fn in_place(&mut self, call: &Call) -> Result<Option<Node>, EvalError> {
        let is_accu = |arg: Option<&Expr>| matches!(arg.map(|arg| &arg.kind), Some(ExprKind::Ident(name)) if name == ACCU);
        if !is_accu(call.args.first()) {
            return Ok(None);
        }
        let Some(slot) = self.locals.iter().rposition(|local| local == ACCU) else {
            return Ok(None);
        };
        match (call.function.as_str(), call.args.as_slice()) {
            (op::ADD, [_, list]) => {
                let ExprKind::List(elements) = &list.kind else {
                    return Ok(None);
                };
                let [element] = elements.as_slice() else {
                    return Ok(None);
                };
                let element = self.node(&element.value)?;
                Ok(Some(Node::Append(Box::new(AppendNode { slot, element }))))
            }
            ("cel.@mapInsert", [_, key, value]) => {
                let (key, value) = (Some(self.node(key)?), self.node(value)?);
                Ok(Some(Node::Insert(Box::new(InsertNode { slot, key, value }))))
            }
            ("cel.@mapInsert", [_, map]) => {
                let value = self.node(map)?;
                Ok(Some(Node::Insert(Box::new(InsertNode { slot, key: None, value }))))
            }
            _ => Ok(None),
        }
    }
}

/// `operand[index]`
fn index([operand, by]: [Node; 2], optional: bool) -> Node {
    let mut chain = as_attr(operand);
    let by = match by {
        Node::Const(Value::String(text)) => By::Field((*text).to_owned()),
        Node::Const(value) => By::Const(value),
        Node::Attr(attr) => By::Attr(*attr),
        other => By::Node(other),
    };
    chain.qualifiers.push(Qualifier { by, optional });
    Node::Attr(Box::new(chain))
}

/// The compiled pattern of a function that takes one, if it is a constant.
fn pattern(function: &str, args: &[Node]) -> Result<Option<(Pattern, PatternUse)>, EvalError> {
    let used = match function {
        "matches" => PatternUse::Matches,
        "find" => PatternUse::Find,
        "findAll" => PatternUse::FindAll,
        _ => return Ok(None),
    };
    match args.get(1) {
        Some(Node::Const(Value::String(text))) => Ok(Some((Pattern::compile(text)?, used))),
        _ => Ok(None),
    }
}
