//! The static estimate: the least and the most that an evaluation can cost, by the sizes that data is declared with
//! (cel-go's `checker/cost.go`). CRDs are refused by it, so every difference from upstream is one of the API.

mod calls;
mod folds;
mod sizes;

use std::collections::HashMap;

use super::{LIST, MAP, OBJECT, Range};
use crate::{
    ast::{Expr, ExprKind, Fold, Id, Literal, Select},
    checker::{Checked, Declarations},
    decl::PathStep,
    types::Type,
};

/// Where data comes from: a variable, and the steps from it. Like upstream's, a path that begins with a step (of a
/// value that comes from no variable) counts as one from the root of the declared data, the step not taken.
#[derive(Clone, Debug, PartialEq)]
struct Path {
    root: String,
    steps: Vec<PathStep>,
}

/// The variable whose declaration paths without one are looked up in.
const ROOT: &str = "self";

/// The sizes of a collection's keys and values.
#[derive(Clone, Copy, Debug)]
struct EntrySize {
    list: bool,
    key: Range,
    value: Range,
}

/// A variable of a comprehension.
#[derive(Clone, Debug)]
struct LocalVar {
    name: String,
    path: Option<Path>,
    size: Option<Range>,
    entries: Option<EntrySize>,
}

struct Estimator<'c> {
    checked: &'c Checked,
    env: &'c Declarations,
    paths: HashMap<Id, Path>,
    sizes: HashMap<Id, Range>,
    entries: HashMap<Id, EntrySize>,
    locals: Vec<LocalVar>,
}

/// The estimate of a checked expression.
pub(crate) fn estimate(checked: &Checked, env: &Declarations) -> Range {
    let mut estimator = Estimator {
        checked,
        env,
        paths: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: Vec::new(),
    };
    estimator.cost(&checked.root)
}

impl Path {
    fn then(path: Option<Self>, step: PathStep) -> Option<Self> {
        match path {
            None => Some(Self { root: ROOT.to_owned(), steps: Vec::new() }),
            Some(mut path) => {
                path.steps.push(step);
                Some(path)
            }
        }
    }
}

impl Estimator<'_> {
    fn cost(&mut self, expr: &Expr) -> Range {
        match &expr.kind {
            ExprKind::Missing | ExprKind::Literal(_) => Range::ZERO,
            ExprKind::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => Some(Path { root: name.clone(), steps: Vec::new() }),
                };
                self.set_path(expr.id, path);
                Range::fixed(super::SELECT)
            }
            ExprKind::Select(select) => self.select(expr.id, select),
            ExprKind::Call(call) => self.call(expr, call),
            ExprKind::List(elements) => {
                let mut sum = Range::ZERO;
                let mut values = None;
                for element in elements {
                    sum = sum.plus(self.cost(&element.value));
                    let size = self.size_or_unknown(&element.value);
                    values = Some(values.map_or(size, |values: Range| values.union(size)));
                }
                let value = values.unwrap_or(Range::ZERO);
                self.entries.insert(expr.id, EntrySize { list: true, key: Range::fixed(1), value });
                sum.plus(Range::fixed(LIST))
            }
            ExprKind::Map(entries) => {
                let mut sum = Range::ZERO;
                let mut sizes: Option<(Range, Range)> = None;
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    let found = (self.size_or_unknown(&entry.key), self.size_or_unknown(&entry.value));
                    sizes =
                        Some(sizes.map_or(found, |(key, value)| (key.union(found.0), value.union(found.1))));
                }
                let (key, value) = sizes.unwrap_or((Range::ZERO, Range::ZERO));
                self.entries.insert(expr.id, EntrySize { list: false, key, value });
                sum.plus(Range::fixed(MAP))
            }
            ExprKind::Struct(object) => {
                let mut sum = Range::fixed(OBJECT);
                for field in &object.fields {
                    sum = sum.plus(self.cost(&field.value));
                }
                sum
            }
            ExprKind::Fold(fold) if is_bind(fold) => self.bind(expr.id, fold),
            ExprKind::Fold(fold) => self.fold(expr.id, fold),
        }
    }

    fn select(&mut self, id: Id, select: &Select) -> Range {
        let sum = self.cost(&select.operand);
        if select.test {
            return sum;
        }
        let path = Path::then(self.path(&select.operand), PathStep::Field(select.field.clone()));
        self.set_path(id, path);
        match self.checked.type_of(&select.operand) {
            Type::Map(_) | Type::Object(_) => sum.plus(Range::fixed(super::SELECT)),
            _ => sum,
        }
    }

    fn local(&self, name: &str) -> Option<&LocalVar> {
        self.locals.iter().rev().find(|local| local.name == name)
    }

    fn set_path(&mut self, id: Id, path: Option<Path>) {
        if let Some(path) = path {
            self.paths.insert(id, path);
        }
    }

    fn path(&self, expr: &Expr) -> Option<Path> {
        if let ExprKind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned()
    }
}

/// Whether a comprehension only binds a name.
fn is_bind(fold: &Fold) -> bool {
    let empty = matches!(&fold.range.kind, ExprKind::List(elements) if elements.is_empty());
    let never = matches!(&fold.condition.kind, ExprKind::Literal(Literal::Bool(false)));
    empty && never && fold.accu != "__result__"
}
