//! Comprehensions.

use std::sync::Arc;

use super::{Eval, Evaluator};
use crate::{
    cost,
    error::EvalError,
    plan::{AppendNode, FoldNode, InsertNode, Node},
    value::{Entries, Items, Key, Map, Value},
};

/// A variable of a comprehension.
pub(super) enum Local<'a> {
    /// Not computed before it is needed.
    Pending(&'a Node),
    Ready(Eval<'a>),
}

impl<'a> Evaluator<'a, '_> {
    pub(super) fn fold(&mut self, fold: &'a FoldNode) -> Eval<'a> {
        let range = self.node(&fold.range)?;
        let outside = self.locals.len();
        // Slots that belong to loops which are not running stay empty below this one's.
        self.locals.resize_with(fold.slot, || Local::Ready(Err(EvalError::no_such_overload())));
        self.locals.push(Local::Pending(&fold.init));
        let looped = self.run_loop(fold, &range);
        let result = match looped {
            Ok(()) => {
                self.locals.truncate(fold.slot + 1);
                self.node(&fold.result)
            }
            Err(error) => Err(error),
        };
        self.locals.truncate(outside);
        result
    }

    fn run_loop(&mut self, fold: &'a FoldNode, range: &Value<'a>) -> Result<(), EvalError> {
        match range {
            Value::List(list) => {
                for index in 0..list.len() {
                    let value = list.get(index).map(|value| value.unwrap_or(Value::Null));
                    let first = if fold.two { Ok(Value::Int(index as i64)) } else { value.clone() };
                    if !self.iterate(fold, first, fold.two.then_some(value))? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = fold.two.then(|| map.find(&key).map(|value| value.unwrap_or(Value::Null)));
                    if !self.iterate(fold, Ok(key), value)? {
                        break;
                    }
                }
            }
            other => {
                let of = go_type(other);
                return Err(EvalError::new(format!("got '{of}', expected iterable type")));
            }
        }
        Ok(())
    }

    /// One turn of the loop; false when the condition ends it. Errors of a turn are the accumulator's value.
    fn iterate(
        &mut self,
        fold: &'a FoldNode,
        first: Eval<'a>,
        second: Option<Eval<'a>>,
    ) -> Result<bool, EvalError> {
        self.locals.truncate(fold.slot + 1);
        self.locals.push(Local::Ready(first));
        self.locals.extend(second.map(Local::Ready));
        match self.node(&fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(EvalError::CostLimit) => return Err(EvalError::CostLimit),
            _ => {}
        }
        let accu = self.node(&fold.step);
        if matches!(accu, Err(EvalError::CostLimit)) {
            return Err(EvalError::CostLimit);
        }
        self.locals[fold.slot] = Local::Ready(accu);
        Ok(true)
    }

    /// Takes an accumulator out of its slot, so that it can be changed in place.
    fn take_accu(&mut self, slot: usize) -> Eval<'a> {
        let taken = match self.locals.get_mut(slot) {
            Some(local) => std::mem::replace(local, Local::Ready(Err(EvalError::no_such_overload()))),
            None => return Err(EvalError::no_such_overload()),
        };
        match taken {
            Local::Ready(value) => value,
            Local::Pending(init) => self.node(init),
        }
    }

    /// `accumulator + [element]`
    pub(super) fn append(&mut self, append: &'a AppendNode) -> Eval<'a> {
        let element = self.node(&append.element);
        if matches!(element, Err(EvalError::CostLimit)) {
            return Err(EvalError::CostLimit);
        }
        // The accumulator, the sum, and the list of one unless it is a constant.
        let made = if matches!(append.element, Node::Const(_)) { 0 } else { cost::LIST };
        self.charge(cost::SELECT + 1 + made)?;
        let accu = self.take_accu(append.slot)?;
        let element = element?;
        match accu {
            Value::List(mut list) => {
                match &mut list.items {
                    Items::Values(values) => Arc::make_mut(values).push(element),
                    Items::Json(..) | Items::Sum(_) => {
                        let mut values = list.values()?;
                        values.push(element);
                        list.items = Items::Values(Arc::new(values));
                    }
                }
                Ok(Value::List(list))
            }
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// `cel.@mapInsert(accumulator, ..)`
    pub(super) fn insert(&mut self, insert: &'a InsertNode) -> Eval<'a> {
        let mut added = Vec::new();
        let value = self.node(&insert.value);
        let failed = match (value, &insert.key) {
            (Ok(value), Some(key)) => {
                let key = self.node(key)?;
                added.push((key, value));
                None
            }
            (Ok(Value::Map(map)), None) => {
                added = map.entries()?;
                None
            }
            (Ok(_), None) => Some(EvalError::no_such_overload()),
            (Err(EvalError::CostLimit), _) => return Err(EvalError::CostLimit),
            (Err(error), _) => Some(error),
        };
        self.charge(cost::SELECT + 1)?;
        let accu = self.take_accu(insert.slot)?;
        if let Some(error) = failed {
            return Err(error);
        }
        let Value::Map(map) = accu else {
            return Err(EvalError::no_such_overload());
        };
        let mut entries = match map {
            Map::Values(entries) => entries,
            Map::Json(_) => Arc::new(Entries::default()),
        };
        for (key, value) in added {
            let place = Key::of(&key).ok_or_else(|| EvalError::new("unsupported key type"))?;
            if entries.contains(&place) {
                return Err(EvalError::new(format!("insert failed: key {} already exists", key.shown())));
            }
            Arc::make_mut(&mut entries).insert(place, key, value);
        }
        Ok(Value::Map(Map::Values(entries)))
    }
}

/// The type of a value as upstream's implementation calls it, which its message shows.
fn go_type(value: &Value<'_>) -> String {
    match value {
        Value::Null => "types.Null".to_owned(),
        Value::Bool(_) => "types.Bool".to_owned(),
        Value::Int(_) => "types.Int".to_owned(),
        Value::Uint(_) => "types.Uint".to_owned(),
        Value::Double(_) => "types.Double".to_owned(),
        Value::String(_) => "types.String".to_owned(),
        Value::Bytes(_) => "types.Bytes".to_owned(),
        Value::Timestamp(_) => "types.Timestamp".to_owned(),
        Value::Duration(_) => "types.Duration".to_owned(),
        Value::Optional(_) => "*types.Optional".to_owned(),
        other => other.type_name().replace("kubernetes.", "cel."),
    }
}
