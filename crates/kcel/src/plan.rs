//! From a checked tree to the form that is evaluated: names are slots, signatures are function pointers, constants are
//! computed, chains of selections are one step.

mod build;
mod calls;

use std::{collections::HashSet, sync::Arc};

pub(crate) use self::build::plan;
use crate::{
    cost::Rule,
    functions::{Body, Function},
    regex::Pattern,
    value::{Key, Value},
};

/// A step of an evaluation.
#[derive(Debug)]
pub(crate) enum Node {
    Const(Value<'static>),
    Attr(Box<Attr>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    Equal(Box<EqualNode>),
    Call(Box<CallNode>),
    /// `x in [constants]`.
    InSet(Box<InSet>),
    NotStrictlyFalse(Box<Node>),
    List(Box<[ListElement]>),
    Map(Box<[MapEntry]>),
    Object(Box<ObjectNode>),
    Fold(Box<FoldNode>),
    /// `accumulator + [element]`, which changes the accumulator in place.
    Append(Box<AppendNode>),
    /// `cel.@mapInsert(accumulator, ..)`, in place.
    Insert(Box<InsertNode>),
    /// `optional.or(optional)` and `optional.orValue(value)`.
    OptionalOr(Box<OrNode>),
}

/// A variable or a value, and what is selected from it.
#[derive(Debug)]
pub(crate) struct Attr {
    pub(crate) base: Base,
    pub(crate) qualifiers: Vec<Qualifier>,
}

/// What a chain of selections begins with.
#[derive(Debug)]
pub(crate) enum Base {
    /// A bound variable, by its place in [`Plan::variables`].
    Global(usize),
    /// A variable of a comprehension.
    Local(usize),
    Operand(Node),
    /// `condition ? a : b`
    Conditional(Node, Box<Attr>, Box<Attr>),
}

/// A selection: `.field`, `[index]`, with `?` optional.
#[derive(Debug)]
pub(crate) struct Qualifier {
    pub(crate) by: By,
    pub(crate) optional: bool,
}

/// What is selected.
#[derive(Debug)]
pub(crate) enum By {
    Field(String),
    /// The field of `has(x.field)`: whether it is there.
    Test(String),
    Const(Value<'static>),
    /// An index that is itself a chain of selections.
    Attr(Attr),
    Node(Node),
}

#[derive(Debug)]
pub(crate) struct EqualNode {
    pub(crate) sides: [Node; 2],
    pub(crate) negate: bool,
}

/// A call of a function.
#[derive(Debug)]
pub(crate) struct CallNode {
    pub(crate) function: &'static str,
    pub(crate) code: Code,
    pub(crate) args: Box<[Node]>,
    pub(crate) rule: Rule,
}

/// What is called.
#[derive(Debug)]
pub(crate) enum Code {
    /// The one signature that fits.
    One(Body),
    /// Several fit: the first whose parameters the arguments match.
    Several(Arc<Function>, Vec<usize>),
    /// A function of a text and a constant pattern.
    Pattern(Pattern, PatternUse),
}

/// What a pattern is used for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PatternUse {
    Matches,
    Find,
    FindAll,
}

#[derive(Debug)]
pub(crate) struct InSet {
    pub(crate) arg: Node,
    pub(crate) keys: HashSet<Key>,
}

#[derive(Debug)]
pub(crate) struct ListElement {
    pub(crate) value: Node,
    pub(crate) optional: bool,
}

#[derive(Debug)]
pub(crate) struct MapEntry {
    pub(crate) key: Node,
    pub(crate) value: Node,
    pub(crate) optional: bool,
}

#[derive(Debug)]
pub(crate) struct ObjectNode {
    pub(crate) name: Arc<str>,
    pub(crate) fields: Vec<ObjectField>,
}

#[derive(Debug)]
pub(crate) struct ObjectField {
    pub(crate) name: Arc<str>,
    pub(crate) value: Node,
    pub(crate) optional: bool,
}

/// A comprehension; its variables are in the slots from `slot` on: accumulator, variable, second variable.
#[derive(Debug)]
pub(crate) struct FoldNode {
    pub(crate) slot: usize,
    pub(crate) range: Node,
    pub(crate) two: bool,
    pub(crate) init: Node,
    pub(crate) condition: Node,
    pub(crate) step: Node,
    pub(crate) result: Node,
}

#[derive(Debug)]
pub(crate) struct AppendNode {
    pub(crate) slot: usize,
    pub(crate) element: Node,
}

#[derive(Debug)]
pub(crate) struct InsertNode {
    pub(crate) slot: usize,
    /// The key; without one, `value` is a map whose entries are inserted.
    pub(crate) key: Option<Node>,
    pub(crate) value: Node,
}

#[derive(Debug)]
pub(crate) struct OrNode {
    pub(crate) optional: Node,
    pub(crate) other: Node,
    /// Whether the result is the optional's value rather than the optional.
    pub(crate) unwrap: bool,
}

/// An expression ready to be evaluated.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) root: Node,
    /// The bound variables that are used.
    pub(crate) variables: Vec<String>,
}
