//! What is checked beyond types: literals of times and patterns, and that written-out lists and maps are of one type
//! (`cel.ASTValidators` of upstream's environments).

use crate::{
    ast::{Call, Expr, ExprKind, Id, Literal},
    checker::Checked,
    error::CompileErrors,
    library::format_text,
    regex::Pattern,
    types::Type,
    value::{Moment, go_duration},
};

/// Reports what is wrong with a checked expression.
pub(crate) fn validate(checked: &Checked, errors: &mut CompileErrors) {
    Validator { checked, errors }.visit(&checked.root, false);
}

struct Validator<'c> {
    checked: &'c Checked,
    errors: &'c mut CompileErrors,
}

impl Validator<'_> {
    fn report(&mut self, id: Id, message: String) {
        self.errors.report(self.checked.offset(id), message);
    }

    /// `exempt`: inside the arguments of `format`, which may be of any types.
    fn visit(&mut self, expr: &Expr, exempt: bool) {
        let mut inner = exempt;
        match &expr.kind {
            ExprKind::Call(call) => {
                inner |= call.function == "format";
                self.literal_argument(call);
                if let Some((id, message)) = format_text::check(self.checked, expr.id, call) {
                    self.report(id, message);
                }
            }
            ExprKind::List(elements) if !exempt => {
                let values = elements.iter().map(|element| (&element.value, element.optional));
                self.same_type(values, true);
            }
            ExprKind::Map(entries) if !exempt => {
                self.same_type(entries.iter().map(|entry| (&entry.key, false)), false);
                self.same_type(entries.iter().map(|entry| (&entry.value, entry.optional)), false);
            }
            _ => {}
        }
        for child in expr.children() {
            self.visit(child, inner);
        }
    }

    fn literal_argument(&mut self, call: &Call) {
        let Some(argument) = call.args.first() else {
            return;
        };
        let ExprKind::Literal(literal) = &argument.kind else {
            return;
        };
        let valid = match (call.function.as_str(), literal) {
            ("duration", Literal::String(text)) => go_duration(text).is_some(),
            ("timestamp", Literal::String(text)) => Moment::parse(text).is_some_and(|moment| moment.is_ok()),
            ("timestamp", Literal::Int(seconds)) => Moment::from_unix(*seconds).is_ok(),
            // Of `matches(text, pattern)` upstream looks at the first argument too, which is the text.
            ("matches", Literal::String(text)) => Pattern::compile(text).is_ok(),
            _ => true,
        };
        if !valid {
            self.report(argument.id, format!("invalid {} argument", call.function));
        }
    }

    fn same_type<'e>(&mut self, values: impl Iterator<Item = (&'e Expr, bool)>, once: bool) {
        let checked = self.checked;
        let mut first: Option<Type> = None;
        for (value, optional) in values {
            let found = checked.type_of(value);
            let found = if optional { found.unwrapped().0 } else { found };
            match &first {
                None => first = Some(found.clone()),
                Some(first) if equivalent(first, found) => {}
                Some(first) => {
                    self.report(value.id, format!("expected type '{first}' but found '{found}'"));
                    if once {
                        break;
                    }
                }
            }
        }
    }
}

/// Whether two types are the same, whatever they are parameterised with where that is unknown.
fn equivalent(left: &Type, right: &Type) -> bool {
    match (left, right) {
        (Type::List(left), Type::List(right)) | (Type::Optional(left), Type::Optional(right)) => {
            equivalent(left, right)
        }
        (Type::Map(left), Type::Map(right)) => equivalent(&left.0, &right.0) && equivalent(&left.1, &right.1),
        (Type::Type(_), Type::Type(_)) => true,
        (left, right) => left == right,
    }
}
