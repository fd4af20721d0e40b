//! Calls: each signature that fits has an estimate, and the call's is the range that holds them all.

use super::{
    super::{CHARACTER, CHECK, FORMAT_NAME, FORMAT_PATTERN, LIST, PATTERN, Rule},
    EntrySize, Estimator, Path, Range,
};
use crate::{
    ast::{Call, Expr, ExprKind, Literal, op},
    checker::Ref,
    decl::PathStep,
    library::INCLUDES_MAX,
    types::Type,
};

/// A cost, and the size of the result where it is known.
type Estimate = (Range, Option<Range>);

impl Estimator<'_> {
    pub(super) fn call(&mut self, expr: &Expr, call: &Call) -> Range {
        if let ("dyn", [arg]) = (call.function.as_str(), call.args.as_slice()) {
            let cost = self.cost(arg);
            let (size, entries) = (self.size(arg), self.entry_size(arg));
            self.set_size(expr.id, size);
            self.set_entries(expr.id, entries);
            return cost.plus(Range::fixed(1));
        }
        let mut costs = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            costs.push(self.cost(arg));
        }
        if call.function == op::OPT_SELECT {
            // A selection that is a call: one signature, which no rule is listed for.
            let size = self.size(expr);
            self.set_size(expr.id, size);
            return total(&costs).plus(Range::fixed(1));
        }
        let Some(Ref::Call(function, fitting)) = self.checked.reference(expr) else {
            return Range::ZERO;
        };
        let target = call.target.as_ref().map_or(Range::ZERO, |target| self.cost(target));
        let mut cost: Option<Range> = None;
        let mut size: Option<Range> = None;
        for overload in fitting.iter().filter_map(|index| function.overloads.get(*index)) {
            let (found, found_size) = self.overload(expr, call, &overload.id, &costs);
            cost = Some(cost.map_or(found, |cost| cost.union(found)));
            size = match (size, found_size) {
                (Some(size), Some(found)) => Some(size.union(found)),
                (size, found) => size.or(found),
            };
            if let ("index_list" | "index_map", Some(operand)) = (&*overload.id, call.args.first()) {
                size = self.entry_size(operand).map(|entries| entries.value);
                let step = if overload.id == "index_list" { PathStep::Items } else { PathStep::Values };
                let path = Path::then(self.path(operand), step);
                self.set_path(expr.id, path);
            }
            if size.is_none() {
                size = self.size(expr);
            }
        }
        self.set_size(expr.id, size);
        target.plus(cost.unwrap_or(Range::ZERO))
    }

    fn overload(&mut self, expr: &Expr, call: &Call, overload: &str, costs: &[Range]) -> Estimate {
        match overload {
            "logical_or" | "logical_and" => {
                let (left, right) = (costs[0], costs[1]);
                // The second operand may not be evaluated at all.
                return (Range { min: left.min, max: left.plus(right).max }, None);
            }
            "conditional" => {
                let (truthy, falsy) = (&call.args[1], &call.args[2]);
                let size = self.size_or_unknown(truthy).union(self.size_or_unknown(falsy));
                let entries = union(self.entry_size(truthy), self.entry_size(falsy));
                self.set_entries(expr.id, entries);
                return (costs[0].plus(costs[1].union(costs[2])), Some(size));
            }
            _ => {}
        }
        let rule = Rule::of(&call.function, Some(overload));
        let (cost, size) = self.ruled(expr, call, overload, rule).unwrap_or((Range::fixed(1), None));
        (cost.plus(total(costs)), size)
    }

    /// The estimate of a rule, without the arguments' costs; none where the rule's form does not fit the call.
    fn ruled(&mut self, expr: &Expr, call: &Call, overload: &str, rule: Rule) -> Option<Estimate> {
        let target = call.target.as_ref();
        let arg = |index: usize| call.args.get(index);
        Some(match rule {
            Rule::One | Rule::Nominal => (Range::fixed(1), None),
            Rule::Check => (Range::fixed(CHECK), None),
            Rule::Includes => (Range { min: 0, max: INCLUDES_MAX as u64 }, None),
            Rule::Selector => (selector(self.size_or_unknown(arg(0)?)), None),
            Rule::Traverse => (self.traverse(target?), None),
            Rule::Scan(factor) => (self.size_or_unknown(arg(0)?).scaled(factor), None),
            Rule::ScanSame => {
                let size = self.size_or_unknown(target.or(arg(0))?);
                (size.scaled(CHARACTER), Some(size))
            }
            Rule::Replace => self.replace(target?, arg(0)?, arg(1)?),
            Rule::Split => {
                let size = self.size_or_unknown(target?);
                let most = match arg(1).map(|limit| &limit.kind) {
                    Some(ExprKind::Literal(Literal::Int(limit))) => *limit as u64,
                    _ => size.max,
                };
                (size.scaled(2.0 * CHARACTER), Some(Range { min: 0, max: most }))
            }
            Rule::Join => self.join(target?, arg(0)),
            Rule::Find | Rule::Matches => {
                let size = self.size_or_unknown(target?);
                let pattern = self.size_or_unknown(arg(0)?).scaled(PATTERN);
                let result = (rule == Rule::Find).then_some(Range { min: 0, max: size.max });
                (size.plus(Range::fixed(1)).scaled(CHARACTER).times(pattern), result)
            }
            Rule::ContainsIp { text } => (self.contains_address(text.then_some(arg(0)?)), None),
            Rule::ContainsCidr { text } => {
                let masking = ADDRESS.scaled(CHARACTER).plus(Range::fixed(1));
                (self.contains_address(text.then_some(arg(0)?)).plus(masking), None)
            }
            Rule::Validate => {
                let text = self.size_or_unknown(arg(0)?).scaled(CHARACTER);
                (text.scaled(FORMAT_PATTERN * PATTERN), None)
            }
            Rule::Sets(factor) => {
                let product = self.size_or_unknown(arg(0)?).times(self.size_or_unknown(arg(1)?));
                (product.scaled(factor).plus(Range::fixed(1)), None)
            }
            Rule::Format => (self.size_or_unknown(target?).scaled(CHARACTER), None),
            Rule::ToBytes | Rule::ToText | Rule::Quote => self.converted(arg(0)?, rule),
            Rule::Affix => (self.size_or_unknown(arg(0)?).scaled(CHARACTER), None),
            Rule::InList => (self.size_or_unknown(arg(1)?), None),
            Rule::Contains => {
                let text = self.size_or_unknown(target?).scaled(CHARACTER);
                (text.times(self.size_or_unknown(arg(0)?).scaled(CHARACTER)), None)
            }
            Rule::AddText | Rule::AddList => self.sum(expr, arg(0)?, arg(1)?, rule),
            Rule::Compare => (self.compare(overload, arg(0)?, arg(1)?), None),
            Rule::Slice
            | Rule::Range
            | Rule::Reverse
            | Rule::Flatten
            | Rule::Distinct
            | Rule::Sort { .. }
            | Rule::SortBy { .. } => self.new_list(rule, target, call)?,
        })
    }

    /// Text to bytes and back, and quoted text. Unknown sizes overflow as upstream's do.
    fn converted(&mut self, text: &Expr, rule: Rule) -> Estimate {
        let size = self.size_or_unknown(text);
        let (min, max) = match rule {
            Rule::ToBytes => (size.min, size.max.wrapping_mul(4)),
            Rule::ToText => (size.min / 4, size.max),
            _ => (size.min.wrapping_add(2), size.max.wrapping_mul(2).wrapping_add(2)),
        };
        (size.scaled(CHARACTER), Some(Range { min, max }))
    }

    /// All elements are looked at; of text and bytes all characters.
    fn traverse(&mut self, target: &Expr) -> Range {
        let size = self.size_or_unknown(target);
        match self.checked.type_of(target) {
            Type::List(element) => {
                let mut each = Range::fixed(1);
                if matches!(**element, Type::String | Type::Bytes) {
                    each = each.plus(self.element_size(target).scaled(CHARACTER));
                }
                size.times(each)
            }
            _ => size.scaled(CHARACTER),
        }
    }

    fn replace(&mut self, target: &Expr, old: &Expr, new: &Expr) -> Estimate {
        let size = self.size_or_unknown(target);
        let (old, new) = (self.size_or_unknown(old), self.size_or_unknown(new));
        let (mut count, mut kept) = (Range::ZERO, Range::ZERO);
        if old.min == 0 {
            // Nothing is found between all characters.
            count.max = size.max.saturating_add(1);
            kept.max = size.max;
        } else if new.max <= old.min {
            kept.max = size.max;
        } else {
            count.max = (size.max as f64 / old.min as f64).ceil() as u64;
        }
        if old.max == 0 {
            count.min = size.min.saturating_add(1);
            kept.min = size.min;
        } else if old.max <= new.min {
            kept.min = size.min;
        } else {
            count.min = (size.min as f64 / old.max as f64).ceil() as u64;
        }
        (size.scaled(2.0 * CHARACTER), Some(count.times(new).plus(kept)))
    }

    fn join(&mut self, list: &Expr, separator: Option<&Expr>) -> Estimate {
        let count = self.size_or_unknown(list);
        let mut size = match self.checked.type_of(list) {
            Type::List(_) => count.times(self.element_size(list)),
            _ => Range::ZERO,
        };
        if let Some(separator) = separator {
            let between = Range { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
            size = size.plus(self.size_or_unknown(separator).times(between));
        }
        (size.scaled(CHARACTER), Some(size))
    }

    fn contains_address(&mut self, text: Option<&Expr>) -> Range {
        let compared = ADDRESS.plus(ADDRESS).scaled(CHARACTER);
        match text {
            Some(text) => compared.plus(self.size_or_unknown(text).scaled(CHARACTER)),
            None => compared,
        }
    }

    fn sum(&mut self, expr: &Expr, left: &Expr, right: &Expr, rule: Rule) -> Estimate {
        let size = self.size_or_unknown(left).plus(self.size_or_unknown(right));
        let entries = union(self.entry_size(left), self.entry_size(right));
        self.set_entries(expr.id, entries);
        let cost = if rule == Rule::AddList { Range::fixed(1) } else { size.scaled(CHARACTER) };
        (cost, Some(size))
    }

    fn compare(&mut self, overload: &str, left: &Expr, right: &Expr) -> Range {
        let types = (self.checked.type_of(left), self.checked.type_of(right));
        if overload == "equals"
            && types.0 == types.1
            && let Some(cost) = library_equality(types.0)
        {
            // The second one's size stands for both.
            let url = matches!(types.0, Type::Object(object) if object.name() == "kubernetes.URL");
            let size = if url { self.size(right) } else { None };
            return size.map_or(cost, |size| Range { min: 1, max: size.max }.scaled(CHARACTER));
        }
        let (left, right) = (self.size_or_unknown(left), self.size_or_unknown(right));
        let max = left.max.min(right.max);
        Range { min: u64::from(max > 0), max }.scaled(CHARACTER)
    }

    /// Functions that make a new list.
    fn new_list(&mut self, rule: Rule, target: Option<&Expr>, call: &Call) -> Option<Estimate> {
        let arg = |index: usize| call.args.get(index);
        let (size, factor) = match rule {
            Rule::Slice => {
                let all = self.size_or_unknown(target?);
                let (start, end) = (int_or(arg(0)?, 0), int_or(arg(1)?, all.max));
                (Range::fixed(end.wrapping_sub(start)), 1.0)
            }
            Rule::Range => (Range::fixed(int_or(arg(0)?, u64::MAX)), 1.0),
            Rule::Flatten => {
                let depth = arg(0).map_or(1, |depth| int_or(depth, u64::MAX));
                (self.size_or_unknown(target?), depth as f64)
            }
            Rule::Distinct => (square(self.size_or_unknown(target?)), 2.0),
            Rule::Sort { text } => (square(self.size_or_unknown(target?)), sort_factor(text)),
            Rule::SortBy { text } => (square(self.size_or_unknown(arg(0)?)), sort_factor(text)),
            _ => (self.size_or_unknown(target?), 1.0),
        };
        Some((size.scaled(factor).plus(Range::fixed(1 + LIST)), Some(size)))
    }
}

/// The bytes of an address of either family.
const ADDRESS: Range = Range { min: 4, max: 16 };

fn total(costs: &[Range]) -> Range {
    costs.iter().fold(Range::ZERO, |sum, cost| sum.plus(*cost))
}

const fn square(size: Range) -> Range {
    size.times(size)
}

fn sort_factor(text: bool) -> f64 {
    if text { 2.0 + CHARACTER } else { 2.0 }
}

/// The value of an int that is written out; 0 for a negative one.
fn int_or(expr: &Expr, otherwise: u64) -> u64 {
    match &expr.kind {
        ExprKind::Literal(Literal::Int(value)) => u64::try_from(*value).unwrap_or(0),
        _ => otherwise,
    }
}

fn union(left: Option<EntrySize>, right: Option<EntrySize>) -> Option<EntrySize> {
    let (left, right) = (left?, right?);
    let (key, value) = (left.key.union(right.key), left.value.union(right.value));
    Some(EntrySize { list: left.list, key, value })
}

fn selector(size: Range) -> Range {
    let of = |size| super::super::selector(size);
    if size.max == u64::MAX {
        return Range { min: of(size.min), max: u64::MAX };
    }
    Range { min: of(size.min), max: of(size.max) }
}

/// What comparing two values of a library's type costs.
fn library_equality(of: &Type) -> Option<Range> {
    match of {
        Type::Opaque(_) => Some(Range::fixed(1)),
        Type::Object(object) => match object.name() {
            "kubernetes.NamedFormat" => Some(Range { min: 1, max: FORMAT_NAME }.scaled(CHARACTER)),
            "kubernetes.URL" => Some(Range::fixed(1).scaled(CHARACTER)),
            "kubernetes.Quantity" | "kubernetes.Semver" => Some(Range::fixed(1)),
            name if name.starts_with("kubernetes.authorization.") => Some(Range::fixed(1)),
            _ => None,
        },
        _ => None,
    }
}
