//! The values of variables for one evaluation.

use std::fmt;

use crate::{decl::Decl, error::EvalError, value::Value};

/// Computes the value of a variable when an expression needs it; see [`Bindings::lazy`].
pub trait Compute {
    /// The value. Called each time the variable is read: remembering it, and counting what it cost, is up to the
    /// implementation.
    ///
    /// # Errors
    /// Whatever keeps the variable from having a value; the expression fails with it.
    fn compute(&self) -> Result<Value<'_>, EvalError>;
}

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

#[derive(Clone)]
enum Bound<'a> {
    /// JSON that is read as the variable was declared.
    Json(&'a serde_json::Value),
    Value(Value<'a>),
    Lazy(&'a dyn Compute),
}

impl fmt::Debug for Bound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(value) => f.debug_tuple("Json").field(value).finish(),
            Self::Value(value) => f.debug_tuple("Value").field(value).finish(),
            Self::Lazy(_) => f.write_str("Lazy"),
        }
    }
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

    /// Binds a value that is computed when the expression needs it, as the `variables.name` of policies are: each is
    /// declared as a variable with a dot in its name.
    ///
    /// ```
    /// use kcel::{Bindings, Compute, Decl, Env, EvalError, Program, Value};
    ///
    /// struct Variable<'p>(&'p Program, &'p Bindings<'p>);
    /// impl Compute for Variable<'_> {
    ///     fn compute(&self) -> Result<Value<'_>, EvalError> {
    ///         self.0.eval(self.1, 1000).result
    ///     }
    /// }
    ///
    /// let env = Env::builder().variable("n", Decl::int()).variable("variables.big", Decl::bool()).build();
    /// let big = env.compile("n > 100")?;
    /// let program = env.compile("n < 10 || variables.big")?;
    /// let n = serde_json::json!(50);
    /// let outer = Bindings::new().json("n", &n);
    /// let variable = Variable(&big, &outer);
    /// let bindings = outer.clone().lazy("variables.big", &variable);
    /// assert_eq!(program.eval(&bindings, 1000).result?.as_bool(), Some(false));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn lazy(mut self, name: &'a str, compute: &'a dyn Compute) -> Self {
        self.bound.push((name, Bound::Lazy(compute)));
        self
    }

    /// The value of a variable; of several bindings of one name the last one's.
    pub(crate) fn get(&self, name: &str, decl: Option<&'a Decl>) -> Result<Value<'a>, EvalError> {
        let found = self.bound.iter().rev().find(|(bound, _)| *bound == name);
        match (found, decl) {
            (Some((_, Bound::Value(value))), _) => Ok(value.clone()),
            (Some((_, Bound::Lazy(compute))), _) => compute.compute(),
            (Some((_, Bound::Json(value))), Some(decl)) => crate::value::read(value, decl),
            (Some((_, Bound::Json(value))), None) => Ok(Value::json(value)),
            (None, _) => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }
}
