//! The values of variables for one evaluation.

use crate::{decl::Decl, error::EvalError, value::Value};

/// What the variables of an expression stand for in one evaluation.
///
/// ```
/// use kcel::{Bindings, Decl, Env};
/// let spec = Decl::object("object").field("replicas", Decl::int(), false).named("spec");
/// let env = Env::builder().variable("self", spec).build();
/// let program = env.compile("self.replicas <= 5")?;
/// let data = serde_json::json!({"replicas": 3});
/// let outcome = program.eval(&Bindings::new().json("self", &data), 1_000_000);
/// assert_eq!(outcome.result?.as_bool(), Some(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Bindings<'a> {
    bound: Vec<(&'a str, Bound<'a>)>,
}

#[derive(Clone, Debug)]
enum Bound<'a> {
    /// JSON that is read as the variable was declared.
    Json(&'a serde_json::Value),
    Value(Value<'a>),
}

impl<'a> Bindings<'a> {
    /// No variables.
    #[must_use]
    pub const fn new() -> Self {
        Self::none()
    }

    pub(crate) const fn none() -> Self {
        Self { bound: Vec::new() }
    }

    /// Binds JSON, read as the variable was declared when the program was compiled.
    #[must_use]
    pub fn json(mut self, name: &'a str, value: &'a serde_json::Value) -> Self {
        self.bound.push((name, Bound::Json(value)));
        self
    }

    /// Binds a value.
    #[must_use]
    pub fn with(mut self, name: &'a str, value: Value<'a>) -> Self {
        self.bound.push((name, Bound::Value(value)));
        self
    }

    /// The value of a variable; of several bindings of one name the last one's.
    pub(crate) fn get(&self, name: &str, decl: Option<&'a Decl>) -> Result<Value<'a>, EvalError> {
        let found = self.bound.iter().rev().find(|(bound, _)| *bound == name);
        match (found, decl) {
            (Some((_, Bound::Value(value))), _) => Ok(value.clone()),
            (Some((_, Bound::Json(value))), Some(decl)) => crate::value::read(value, decl),
            (Some((_, Bound::Json(value))), None) => Ok(Value::json(value)),
            (None, _) => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }
}
