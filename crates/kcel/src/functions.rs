//! Functions: what the checker needs to know of them, and the code behind them.

mod signature;

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use crate::{error::EvalError, types::Type, value::Value};

/// The code of a function: arguments (the target of a member call first) to a result.
pub(crate) type Body = for<'a> fn(&[Value<'a>]) -> Result<Value<'a>, EvalError>;

/// One signature of a function.
#[derive(Clone, Debug)]
pub(crate) struct Overload {
    /// cel-go's name of it, which costs depend on.
    pub(crate) id: Cow<'static, str>,
    /// Whether it is called as `target.function(..)`, the target being the first parameter.
    pub(crate) member: bool,
    pub(crate) params: Vec<Type>,
    pub(crate) result: Type,
    pub(crate) body: Body,
}

/// A function and its signatures, in the order in which they are tried.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) overloads: Vec<Overload>,
}

/// The functions of an environment, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Functions {
    by_name: HashMap<&'static str, Arc<Function>>,
}

impl Functions {
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Function>> {
        self.by_name.get(name)
    }

    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.by_name.values()
    }

    /// Adds signatures `(id, "(parameters) result")` of a function that is called by its name alone.
    pub(crate) fn global(&mut self, name: &'static str, body: Body, signatures: &[(&'static str, &str)]) {
        for (id, text) in signatures {
            self.add(name, false, Cow::Borrowed(id), text, body);
        }
    }

    /// Adds signatures of a function that is called on its first parameter.
    pub(crate) fn member(&mut self, name: &'static str, body: Body, signatures: &[(&'static str, &str)]) {
        for (id, text) in signatures {
            self.add(name, true, Cow::Borrowed(id), text, body);
        }
    }

    /// Adds one signature, whose name need not be constant.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        member: bool,
        id: Cow<'static, str>,
        text: &str,
        body: Body,
    ) {
        let (params, result) = signature::parse(text);
        let overload = Overload { id, member, params, result, body };
        let function =
            self.by_name.entry(name).or_insert_with(|| Arc::new(Function { name, overloads: Vec::new() }));
        // Environments share functions until one of them adds to it.
        Arc::make_mut(function).overloads.push(overload);
    }
}

/// Whether a value can be the argument of a parameter, as far as can be told when a function is called.
pub(crate) fn accepts(param: &Type, value: &Value<'_>) -> bool {
    match (param, value) {
        (Type::Dyn | Type::Param(_), _)
        | (Type::Null, Value::Null)
        | (Type::Bool, Value::Bool(_))
        | (Type::Int, Value::Int(_))
        | (Type::Uint, Value::Uint(_))
        | (Type::Double, Value::Double(_))
        | (Type::String, Value::String(_))
        | (Type::Bytes, Value::Bytes(_))
        | (Type::Timestamp, Value::Timestamp(_))
        | (Type::Duration, Value::Duration(_))
        | (Type::List(_), Value::List(_))
        | (Type::Map(_), Value::Map(_))
        | (Type::Optional(_), Value::Optional(_))
        | (Type::Type(_), Value::Type(_)) => true,
        (Type::Opaque(_) | Type::Object(_), value) => param.runtime_name() == value.type_name(),
        _ => false,
    }
}
