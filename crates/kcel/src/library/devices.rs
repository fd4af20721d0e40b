//! What selectors of devices have of their own (`dynamic-resource-allocation/cel/compile.go`).

use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    value::{Value, equal},
};

/// The longest list that `includes` looks through (`ResourceSliceMaxAttributeValuesPerDevice`).
pub(crate) const INCLUDES_MAX: usize = 48;

pub(super) fn add(functions: &mut Functions) {
    functions.member("includes", includes, &[("dra_includes_dyn_dyn", "(dyn, dyn) bool")]);
}

/// Whether a list has a value, or a value is the other one.
fn includes<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [target, wanted] = args else {
        return Err(EvalError::no_such_overload());
    };
    let Value::List(list) = target else {
        return Ok(Value::Bool(equal(target, wanted).unwrap_or(false)));
    };
    for (index, value) in list.iter().enumerate() {
        if index >= INCLUDES_MAX {
            return Err(EvalError::new(format!(
                "'includes' function cannot be applied to lists longer than {INCLUDES_MAX} values"
            )));
        }
        if equal(&value?, wanted).unwrap_or(false) {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
