//! Comprehensions: the cost of a turn times the size of the range.

use super::{Estimator, LocalVar, Path, Range};
use crate::{
    ast::{Expr, ExprKind, Fold, Id},
    decl::PathStep,
};

impl Estimator<'_> {
    pub(super) fn fold(&mut self, id: Id, fold: &Fold) -> Range {
        let mut sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push_value(&fold.accu, &fold.init);
        if let Some(second) = &fold.var2 {
            self.push_key(&fold.var, &fold.range);
            self.push_element(second, &fold.range);
        } else if self.is_list(&fold.range) {
            self.push_element(&fold.var, &fold.range);
        } else {
            self.push_key(&fold.var, &fold.range);
        }
        let turn = self.cost(&fold.condition).plus(self.cost(&fold.step));
        self.locals.pop();
        if fold.var2.is_some() {
            self.locals.pop();
        }
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        sum = sum.plus(count.times(turn));
        match &fold.init.kind {
            ExprKind::Literal(_) => {
                let size = self.size(&fold.init);
                self.set_size(id, size);
            }
            ExprKind::List(_) | ExprKind::Map(_) => {
                self.set_size(id, Some(count));
                let entries = self.entry_size(&fold.step);
                self.set_entries(id, entries);
            }
            _ => {}
        }
        sum
    }

    /// A name for a value: `cel.bind`.
    pub(super) fn bind(&mut self, id: Id, fold: &Fold) -> Range {
        let mut sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push_value(&fold.accu, &fold.init);
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let (size, entries) = (self.size(&fold.result), self.entry_size(&fold.result));
        self.set_size(id, size);
        self.set_entries(id, entries);
        sum
    }

    fn push_value(&mut self, name: &str, value: &Expr) {
        let (path, size, entries) = (self.path(value), self.size(value), self.entry_size(value));
        self.locals.push(LocalVar { name: name.to_owned(), path, size, entries });
    }

    fn push_key(&mut self, name: &str, range: &Expr) {
        let step = if self.is_list(range) { PathStep::Indices } else { PathStep::Keys };
        let size = self.entry_size(range).map(|entries| entries.key);
        self.push_step(name, range, step, size);
    }

    fn push_element(&mut self, name: &str, range: &Expr) {
        let step = if self.is_list(range) { PathStep::Items } else { PathStep::Values };
        let size = self.entry_size(range).map(|entries| entries.value);
        self.push_step(name, range, step, size);
    }

    fn push_step(&mut self, name: &str, range: &Expr, step: PathStep, size: Option<Range>) {
        let path = Path::then(self.path(range), step);
        self.locals.push(LocalVar { name: name.to_owned(), path, size, entries: None });
    }
}
