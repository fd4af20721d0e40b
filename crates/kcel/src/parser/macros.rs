//! Macros: calls that stand for another expression, most of them for a [`Fold`].

use super::Parser;
use crate::ast::{ACCU, Call, Element, Expr, ExprKind, Fold, Id, Literal, Select, UNUSED, op};

/// The accumulator's name in old versions, which no iteration variable may have either.
const OLD_ACCU: &str = "__result__";
/// What `sortBy` binds its list to.
const SORT_INPUT: &str = "@__sortBy_input__";

/// The parts of a fold that are the macro's own.
struct Steps {
    init: Expr,
    condition: Expr,
    step: Expr,
    result: Expr,
}

/// A message and where it belongs.
type Refused = (Id, String);

impl Parser<'_> {
    /// Expands `call` if it is a macro's; else gives it back.
    pub(super) fn expand(&mut self, at: u32, mut call: Call) -> Result<Expr, Box<Call>> {
        let args = std::mem::take(&mut call.args);
        let name = call.function.as_str();
        let expanded = match (name, args.len(), call.target.is_some()) {
            ("has", 1, false) => self.has(at, &args),
            ("all" | "exists" | "exists_one" | "existsOne", 2 | 3, true) => self.quantifier(at, &call, args),
            ("map", 2 | 3, true) | ("filter", 2, true) => self.map_or_filter(at, &call, args),
            ("transformList" | "transformMap" | "transformMapEntry", 3 | 4, true) => {
                self.transform(at, &call, args)
            }
            ("optMap" | "optFlatMap", 2, true) => self.opt_map(at, &call, args),
            ("sortBy", 2, true) => self.sort_by(at, &call, args),
            ("bind", 3, true) if self.macros.bindings && is_ident(call.target.as_ref(), "cel") => {
                self.bind_macro(at, args)
            }
            _ => {
                call.args = args;
                return Err(Box::new(call));
            }
        };
        Ok(expanded.unwrap_or_else(|(id, message)| {
            let offset = self.offsets.get(id as usize).copied().unwrap_or(at);
            self.error(offset, message)
        }))
    }

    fn has(&mut self, at: u32, args: &[Expr]) -> Result<Expr, Refused> {
        match &args[0].kind {
            ExprKind::Select(select) => {
                let select = Select { test: true, ..(**select).clone() };
                Ok(self.node(at, ExprKind::Select(Box::new(select))))
            }
            _ => Err((args[0].id, "invalid argument to has() macro".to_owned())),
        }
    }

    fn quantifier(&mut self, at: u32, call: &Call, mut args: Vec<Expr>) -> Result<Expr, Refused> {
        let (predicate, vars) = split_last(&mut args);
        let vars = variables(&vars, "argument must be a simple name")?;
        let steps = match call.function.as_str() {
            "all" => {
                let accu = self.accu(at);
                let condition = self.call(at, op::NOT_STRICTLY_FALSE, vec![accu]);
                let accu = self.accu(at);
                Steps {
                    init: self.literal(at, Literal::Bool(true)),
                    condition,
                    step: self.call(at, op::AND, vec![accu, predicate]),
                    result: self.accu(at),
                }
            }
            "exists" => {
                let accu = self.accu(at);
                let not = self.call(at, op::NOT, vec![accu]);
                let condition = self.call(at, op::NOT_STRICTLY_FALSE, vec![not]);
                let accu = self.accu(at);
                Steps {
                    init: self.literal(at, Literal::Bool(false)),
                    condition,
                    step: self.call(at, op::OR, vec![accu, predicate]),
                    result: self.accu(at),
                }
            }
            _ => {
                let (accu, one) = (self.accu(at), self.literal(at, Literal::Int(1)));
                let more = self.call(at, op::ADD, vec![accu, one]);
                let same = self.accu(at);
                let (accu, one) = (self.accu(at), self.literal(at, Literal::Int(1)));
                Steps {
                    init: self.literal(at, Literal::Int(0)),
                    condition: self.literal(at, Literal::Bool(true)),
                    step: self.call(at, op::CONDITIONAL, vec![predicate, more, same]),
                    result: self.call(at, op::EQUALS, vec![accu, one]),
                }
            }
        };
        Ok(self.fold(at, call.target.clone(), vars, steps))
    }

    fn map_or_filter(&mut self, at: u32, call: &Call, mut args: Vec<Expr>) -> Result<Expr, Refused> {
        let vars = variables(&args[..1], "argument is not an identifier")?;
        let first = args.remove(0);
        let filter = (call.function == "filter" || args.len() == 2).then(|| args.remove(0));
        let element = if call.function == "filter" { first } else { args.remove(0) };
        Ok(self.collecting(at, call, vars, filter, element))
    }

    /// A fold that appends `element` to a list for what passes the filter.
    fn collecting(
        &mut self,
        at: u32,
        call: &Call,
        vars: (String, Option<String>),
        filter: Option<Expr>,
        element: Expr,
    ) -> Expr {
        let single = self.node(at, ExprKind::List(vec![Element { value: element, optional: false }]));
        let accu = self.accu(at);
        let step = self.call(at, op::ADD, vec![accu, single]);
        let steps = Steps {
            init: self.node(at, ExprKind::List(Vec::new())),
            condition: self.literal(at, Literal::Bool(true)),
            step: self.filtered(at, filter, step),
            result: self.accu(at),
        };
        self.fold(at, call.target.clone(), vars, steps)
    }

    fn filtered(&mut self, at: u32, filter: Option<Expr>, step: Expr) -> Expr {
        match filter {
            None => step,
            Some(filter) => {
                let accu = self.accu(at);
                self.call(at, op::CONDITIONAL, vec![filter, step, accu])
            }
        }
    }

    fn transform(&mut self, at: u32, call: &Call, mut args: Vec<Expr>) -> Result<Expr, Refused> {
        let vars = variables(&args[..2], "argument must be a simple name")?;
        args.drain(..2);
        let filter = (args.len() == 2).then(|| args.remove(0));
        let transform = args.remove(0);
        if call.function == "transformList" {
            return Ok(self.collecting(at, call, vars, filter, transform));
        }
        let mut inserted = vec![self.accu(at)];
        if call.function == "transformMap" {
            inserted.push(self.node(at, ExprKind::Ident(vars.0.clone())));
        }
        inserted.push(transform);
        let step = self.call(at, "cel.@mapInsert", inserted);
        let steps = Steps {
            init: self.node(at, ExprKind::Map(Vec::new())),
            condition: self.literal(at, Literal::Bool(true)),
            step: self.filtered(at, filter, step),
            result: self.accu(at),
        };
        Ok(self.fold(at, call.target.clone(), vars, steps))
    }

    /// `target.optMap(v, e)` is `target.hasValue() ? optional.of(cel.bind(v, target.value(), e)) : optional.none()`.
    fn opt_map(&mut self, at: u32, call: &Call, mut args: Vec<Expr>) -> Result<Expr, Refused> {
        let name = match &args[0].kind {
            ExprKind::Ident(name) => name.clone(),
            _ => {
                let message = format!("{}() variable name must be a simple identifier", call.function);
                return Err((args[0].id, message));
            }
        };
        let Some(target) = call.target.clone() else {
            return Err((args[0].id, "argument must be a simple name".to_owned()));
        };
        let copy = self.copy(&target);
        let condition = self.member_call(at, target, "hasValue", Vec::new());
        let value = self.member_call(at, copy, "value", Vec::new());
        let mut mapped = self.bind(at, name, value, args.remove(1));
        if call.function == "optMap" {
            mapped = self.call(at, "optional.of", vec![mapped]);
        }
        let none = self.call(at, "optional.none", Vec::new());
        Ok(self.call(at, op::CONDITIONAL, vec![condition, mapped, none]))
    }

    /// `list.sortBy(e, key)` binds the list and sorts it by the list of its keys.
    fn sort_by(&mut self, at: u32, call: &Call, args: Vec<Expr>) -> Result<Expr, Refused> {
        let Some(target) = call.target.clone() else {
            return Err((args[0].id, "argument is not an identifier".to_owned()));
        };
        let named = self.node(at, ExprKind::Ident(SORT_INPUT.to_owned()));
        let map = Call { target: Some(named), function: "map".to_owned(), args: Vec::new() };
        let keys = self.map_or_filter(at, &map, args)?;
        let named = self.node(at, ExprKind::Ident(SORT_INPUT.to_owned()));
        let sorted = self.member_call(at, named, "@sortByAssociatedKeys", vec![keys]);
        Ok(self.bind(at, SORT_INPUT.to_owned(), target, sorted))
    }

    fn bind_macro(&mut self, at: u32, mut args: Vec<Expr>) -> Result<Expr, Refused> {
        let (result, mut rest) = split_last(&mut args);
        match (&rest[0].kind, rest.len()) {
            (ExprKind::Ident(name), 2) => {
                let name = name.clone();
                Ok(self.bind(at, name, rest.remove(1), result))
            }
            _ => Err((rest[0].id, "cel.bind() variable names must be simple identifiers".to_owned())),
        }
    }

    /// A fold over nothing, whose result sees `name`.
    fn bind(&mut self, at: u32, name: String, init: Expr, result: Expr) -> Expr {
        let fold = Fold {
            range: self.node(at, ExprKind::List(Vec::new())),
            var: UNUSED.to_owned(),
            var2: None,
            init,
            condition: self.literal(at, Literal::Bool(false)),
            step: self.node(at, ExprKind::Ident(name.clone())),
            accu: name,
            result,
        };
        self.node(at, ExprKind::Fold(Box::new(fold)))
    }

    fn fold(&mut self, at: u32, range: Option<Expr>, vars: (String, Option<String>), steps: Steps) -> Expr {
        let range = range.unwrap_or(Expr { id: 0, kind: ExprKind::Missing });
        let fold = Fold {
            range,
            var: vars.0,
            var2: vars.1,
            accu: ACCU.to_owned(),
            init: steps.init,
            condition: steps.condition,
            step: steps.step,
            result: steps.result,
        };
        self.node(at, ExprKind::Fold(Box::new(fold)))
    }

    fn accu(&mut self, at: u32) -> Expr {
        self.node(at, ExprKind::Ident(ACCU.to_owned()))
    }

    fn member_call(&mut self, at: u32, target: Expr, function: &str, args: Vec<Expr>) -> Expr {
        let call = Call { target: Some(target), function: function.to_owned(), args };
        self.node(at, ExprKind::Call(Box::new(call)))
    }

    /// The same expression with numbers of its own.
    fn copy(&mut self, expr: &Expr) -> Expr {
        let mut copy = expr.clone();
        self.renumber(&mut copy);
        copy
    }

    fn renumber(&mut self, expr: &mut Expr) {
        let offset = self.offsets.get(expr.id as usize).copied().unwrap_or(0);
        expr.id = self.new_id(offset);
        if let ExprKind::Struct(object) = &mut expr.kind {
            for field in &mut object.fields {
                let offset = self.offsets.get(field.id as usize).copied().unwrap_or(0);
                field.id = self.new_id(offset);
            }
        }
        for child in expr.children_mut() {
            self.renumber(child);
        }
    }
}

fn is_ident(expr: Option<&Expr>, name: &str) -> bool {
    matches!(expr.map(|expr| &expr.kind), Some(ExprKind::Ident(found)) if found == name)
}

/// The last argument and those before it; macros are only expanded with arguments.
fn split_last(args: &mut Vec<Expr>) -> (Expr, Vec<Expr>) {
    let last = args.pop().unwrap_or(Expr { id: 0, kind: ExprKind::Missing });
    (last, std::mem::take(args))
}

/// The iteration variables that `args` name: one or two.
fn variables(args: &[Expr], refusal: &str) -> Result<(String, Option<String>), Refused> {
    let mut names = Vec::with_capacity(2);
    for arg in args {
        match &arg.kind {
            ExprKind::Ident(name) => names.push((arg.id, name.clone())),
            _ => return Err((arg.id, refusal.to_owned())),
        }
    }
    if let [(_, first), (id, second)] = names.as_slice()
        && first == second
    {
        return Err((*id, format!("duplicate variable name: {first}")));
    }
    for (id, name) in &names {
        if name == ACCU || name == OLD_ACCU {
            return Err((*id, "iteration variable overwrites accumulator variable".to_owned()));
        }
    }
    let mut names = names.into_iter().map(|(_, name)| name);
    Ok((names.next().unwrap_or_default(), names.next()))
}
