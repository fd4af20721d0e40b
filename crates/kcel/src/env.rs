//! Environments: what an expression may mention.

use std::sync::{Arc, LazyLock};

use crate::{
    checker::{Declarations, check},
    decl::Decl,
    error::CompileErrors,
    functions::Functions,
    library, parser,
    parser::MacroSet,
    plan::plan,
    program::Program,
    stdlib, validate,
};

/// The functions of every environment. They never change, so all environments share them.
static FUNCTIONS: LazyLock<Functions> = LazyLock::new(|| {
    let mut functions = Functions::default();
    stdlib::add(&mut functions);
    library::add(&mut functions);
    functions
});

/// The variables, functions and types that expressions may use. Cheap to clone.
///
/// Every environment has the language itself and the libraries that Kubernetes 1.37 turns on for all its expressions
/// (`apiserver/pkg/cel/environment/base.go`); [`Feature`]s are those that it turns on for some.
///
/// ```
/// use kcel::{Bindings, Decl, Env};
/// let env = Env::builder().variable("name", Decl::string()).build();
/// let program = env.compile("name.startsWith('web-') && name.size() < 20")?;
/// let name = serde_json::json!("web-1");
/// let outcome = program.eval(&Bindings::new().json("name", &name), 1_000_000);
/// assert_eq!(outcome.result?.as_bool(), Some(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Env {
    declarations: Arc<Declarations>,
    macros: MacroSet,
}

/// What only some environments have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// `cel.bind(name, value, expression)`, as selectors of dynamic resource allocation have it.
    Bindings,
    /// `attribute.includes(value)`, as selectors of dynamic resource allocation have it.
    Includes,
    /// `Object{}`, `JSONPatch{}` and `jsonpatch.escapeKey`, as mutating policies have them.
    Mutation,
}

/// Collects what an environment has.
#[derive(Clone, Debug)]
pub struct EnvBuilder {
    declarations: Declarations,
    macros: MacroSet,
}

impl Env {
    /// An environment with the language and Kubernetes' libraries, and no variables.
    #[must_use]
    pub fn builder() -> EnvBuilder {
        let declarations = Declarations { functions: FUNCTIONS.clone(), ..Declarations::default() };
        EnvBuilder { declarations, macros: MacroSet::default() }
    }

    /// Parses, checks and plans an expression.
    ///
    /// # Errors
    /// Everything that is wrong with the expression, in cel-go's words.
    pub fn compile(&self, source: &str) -> Result<Program, CompileErrors> {
        let mut errors = CompileErrors::new(source);
        let Some(parsed) = parser::parse(source, self.macros, &mut errors) else {
            return Err(errors.sorted());
        };
        if !errors.is_empty() {
            return Err(errors.sorted());
        }
        let checked = check(parsed, &self.declarations, &mut errors);
        if errors.is_empty() {
            validate::validate(&checked, &mut errors);
        }
        if !errors.is_empty() {
            return Err(errors.sorted());
        }
        match plan(&checked) {
            Ok(plan) => Ok(Program::new(plan, checked, self.declarations.clone())),
            Err(error) => Err(errors.instantiation(error.to_string())),
        }
    }
}

impl EnvBuilder {
    /// Declares a variable. The name may have dots: `authorizer.requestResource`. A later declaration of the same name
    /// replaces an earlier one.
    #[must_use]
    pub fn variable(mut self, name: &str, decl: impl Into<Arc<Decl>>) -> Self {
        self.declarations.variables.insert(name.to_owned(), decl.into());
        self
    }

    /// Declares a variable that may be absent, as `oldSelf` is where `optionalOldSelf` is set. It is to be bound to
    /// [`Value::optional`](crate::Value::optional); estimates know the sizes of `decl`.
    #[must_use]
    pub fn optional_variable(self, name: &str, decl: &Decl) -> Self {
        self.variable(name, decl.clone().into_optional())
    }

    /// Turns a feature on.
    #[must_use]
    pub fn with(mut self, feature: Feature) -> Self {
        match feature {
            Feature::Bindings => self.macros.bindings = true,
            Feature::Includes => library::add_devices(&mut self.declarations.functions),
            Feature::Mutation => {
                self.declarations.mutation = true;
                library::add_mutation(&mut self.declarations.functions);
            }
        }
        self
    }

    /// The environment.
    #[must_use]
    pub fn build(self) -> Env {
        Env { declarations: Arc::new(self.declarations), macros: self.macros }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::types::Type;

    fn readable(of: &Type) -> bool {
        match of {
            Type::Error => false,
            Type::List(inner) | Type::Optional(inner) | Type::Type(inner) => readable(inner),
            Type::Map(entry) => readable(&entry.0) && readable(&entry.1),
            _ => true,
        }
    }

    /// Signatures are written as text, and costs are found by their names.
    #[test]
    fn every_signature_is_readable_and_has_a_name_of_its_own() {
        let mut functions = FUNCTIONS.clone();
        library::add_mutation(&mut functions);
        library::add_devices(&mut functions);
        let mut names = HashSet::new();
        for function in functions.all() {
            for overload in &function.overloads {
                let types = overload.params.iter().chain([&overload.result]);
                assert!(types.clone().all(readable), "{} {overload:?}", function.name);
                assert!(names.insert(overload.id.clone()), "{} is there twice", overload.id);
            }
        }
        assert!(names.len() > 300, "{}", names.len());
    }
}
