//! Sizes: of literals, of declared data, and of what has been computed from them.

use super::{EntrySize, Estimator, Path, ROOT, Range};
use crate::{
    ast::{Expr, ExprKind, Id, Literal},
    decl::PathStep,
    types::Type,
};

impl Estimator<'_> {
    pub(super) fn set_size(&mut self, id: Id, size: Option<Range>) {
        if let Some(size) = size {
            self.sizes.insert(id, size);
        }
    }

    pub(super) fn set_entries(&mut self, id: Id, entries: Option<EntrySize>) {
        if let Some(entries) = entries {
            self.entries.insert(id, entries);
        }
    }

    pub(super) fn size_or_unknown(&mut self, expr: &Expr) -> Range {
        self.size(expr).unwrap_or(Range::UNKNOWN)
    }

    /// What is known of an expression's size.
    pub(super) fn size(&mut self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        if let Some(size) = written_size(expr) {
            return Some(size);
        }
        if let Some(size) = self.declared_size(expr) {
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if self.checked.type_of(expr).is_scalar() {
            return Some(Range::fixed(1));
        }
        match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    /// The size that an expression's path is declared with.
    fn declared_size(&self, expr: &Expr) -> Option<Range> {
        self.size_at(&self.path(expr)?)
    }

    fn size_at(&self, path: &Path) -> Option<Range> {
        let variables = &self.env.variables;
        let decl = variables.get(&path.root).or_else(|| variables.get(ROOT))?;
        Some(Range { min: 0, max: decl.size_at(&path.steps)? })
    }

    /// The size of a list's elements as they are declared.
    pub(super) fn element_size(&self, list: &Expr) -> Range {
        let path = self.path(list).and_then(|path| Path::then(Some(path), PathStep::Items));
        path.and_then(|path| self.size_at(&path)).unwrap_or(Range::UNKNOWN)
    }

    pub(super) fn entry_size(&self, expr: &Expr) -> Option<EntrySize> {
        if let Some(entries) = self.entries.get(&expr.id) {
            return Some(*entries);
        }
        match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|local| local.entries),
            _ => None,
        }
    }

    pub(super) fn is_list(&self, range: &Expr) -> bool {
        match self.entry_size(range) {
            Some(entries) => entries.list,
            None => matches!(self.checked.type_of(range), Type::List(_)),
        }
    }
}

/// The size of what is written out.
fn written_size(expr: &Expr) -> Option<Range> {
    let size = match &expr.kind {
        ExprKind::Literal(Literal::String(text)) => text.chars().count(),
        ExprKind::Literal(Literal::Bytes(bytes)) => bytes.len(),
        ExprKind::Literal(_) => 1,
        ExprKind::List(elements) => elements.len(),
        ExprKind::Map(entries) => entries.len(),
        _ => return None,
    };
    Some(Range::fixed(size as u64))
}
