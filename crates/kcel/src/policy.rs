//! The environments of admission: policies, their variables, and the conditions of webhooks.

use std::{fmt, sync::OnceLock};

use crate::{
    authorizer::AuthorizerValue,
    decl::Decl,
    env::{Env, Feature},
    error::CompileErrors,
    program::Program,
    types::{ObjectType, Type},
};

/// What an expression of an admission policy or webhook is for. It says what the expression may mention and what it
/// must evaluate to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// `matchConditions` of policies and webhooks: a bool, without the policy's variables.
    Condition,
    /// `validations[*].expression`: a bool.
    Validation,
    /// `validations[*].messageExpression`: a string, without the authorizer.
    Message,
    /// `auditAnnotations[*].valueExpression`: a string or null.
    AuditAnnotation,
    /// `mutations[*].applyConfiguration.expression`: an `Object`.
    ApplyConfiguration,
    /// `mutations[*].jsonPatch.expression`: a list of `JSONPatch`.
    JsonPatch,
}

/// Why an expression may not stand where it stands. Displayed as upstream says it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpressionError {
    /// It can't be compiled.
    #[error("{}: {_0}", _0.phase())]
    Compile(#[source] CompileErrors),
    /// It evaluates to something else than is needed.
    #[error("must evaluate to {expected}{link} {found}")]
    Type {
        /// What is needed.
        expected: &'static str,
        /// What stands between both.
        link: &'static str,
        /// The type that it has.
        found: String,
    },
    /// It could cost too much.
    #[error("too complex, exceeds cost limit")]
    Cost,
}

/// The environment of the expressions of one admission policy, or of one webhook's conditions
/// (`apiserver/pkg/admission/plugin/cel/{compile,composition}.go`).
///
/// All expressions see `object`, `oldObject`, `namespaceObject` and `request`; most see `authorizer` and
/// `authorizer.requestResource`; those of a policy with a kind of parameters see `params`. To evaluate what
/// [`compile`](Self::compile) gives, bind these names, and each variable of the policy as `variables.<name>`.
///
/// ```
/// use kcel::{PolicyEnv, Purpose};
///
/// let mut env = PolicyEnv::new(true).with_variables();
/// let replicas = env.declare("replicas", "object.spec.replicas")?;
/// assert!(replicas.uses("object"));
/// assert!(env.compile(Purpose::Validation, "variables.replicas <= params.maxReplicas").is_ok());
/// assert_eq!(
///     env.compile(Purpose::Message, "1 + 1").unwrap_err().to_string(),
///     "must evaluate to string but got int"
/// );
/// # Ok::<(), kcel::ExpressionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PolicyEnv {
    params: bool,
    /// What is known of `object` and `oldObject`, and of `params`.
    types: [Option<Decl>; 2],
    /// The type of `variables`, if there is such a variable, and the single ones with their types.
    variables: Option<(Decl, Vec<(String, Decl)>)>,
    /// Made when they are first needed, and anew after each declaration.
    envs: [OnceLock<Env>; Sight::COUNT],
}

/// What expressions with a purpose can see.
#[derive(Clone, Copy)]
enum Sight {
    Everything,
    NoVariables,
    NoAuthorizer,
    Patches,
}

impl Sight {
    const COUNT: usize = 4;
}

impl Purpose {
    const fn sight(self) -> Sight {
        match self {
            Self::Condition => Sight::NoVariables,
            Self::Validation | Self::AuditAnnotation => Sight::Everything,
            Self::Message => Sight::NoAuthorizer,
            Self::ApplyConfiguration | Self::JsonPatch => Sight::Patches,
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::Condition | Self::Validation => "bool",
            Self::Message => "string",
            Self::AuditAnnotation => "one of [string null_type]",
            Self::ApplyConfiguration => "Object",
            Self::JsonPatch => "list(JSONPatch)",
        }
    }

    fn accepts(self, found: &Type) -> bool {
        let is = |found: &Type, name: &str| matches!(found, Type::Object(object) if object.name() == name);
        match self {
            Self::Condition | Self::Validation => *found == Type::Bool,
            Self::Message => *found == Type::String,
            Self::AuditAnnotation => matches!(found, Type::String | Type::Null),
            Self::ApplyConfiguration => is(found, "Object"),
            Self::JsonPatch => matches!(found, Type::List(items) if is(items, "JSONPatch")),
        }
    }
}

impl ExpressionError {
    /// Whether upstream calls it an internal error: the expression was compiled and could not be made ready.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Compile(errors) if errors.phase() == crate::error::Phase::Instantiation)
    }
}

impl PolicyEnv {
    /// Without variables. `params`: whether there are parameters.
    #[must_use]
    pub const fn new(params: bool) -> Self {
        Self { params, types: [None, None], variables: None, envs: [const { OnceLock::new() }; Sight::COUNT] }
    }

    /// The same, where it is known of what types `object` and `oldObject` are, and `params`. For [`check`](Self::check): at run time
    /// they are of any type, as upstream.
    #[must_use]
    pub fn with_types(self, object: Option<Decl>, params: Option<Decl>) -> Self {
        Self { types: [object, params], ..self }
    }

    /// The same, with `variables`: none yet, and more by [`declare`](Self::declare).
    #[must_use]
    pub fn with_variables(self) -> Self {
        let variables = Some((Decl::object("kubernetes.variables"), Vec::new()));
        Self { variables, types: self.types, ..Self::new(self.params) }
    }

    /// Compiles a variable of the policy and declares it for what is compiled after it. A variable that can't be
    /// compiled is declared nevertheless, with an unknown type, so that its own fault is the only one.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn declare(&mut self, name: &str, expression: &str) -> Result<Program, ExpressionError> {
        let compiled = self.env(Sight::Everything).compile(expression).map_err(ExpressionError::Compile);
        let found = compiled.as_ref().map_or(Type::Dyn, |program| program.output_type().clone());
        if let Some((fields, single)) = &mut self.variables {
            let decl = composed(&found);
            *fields = fields.clone().field(name, decl.clone(), true);
            single.push((format!("variables.{name}"), decl));
            self.envs = Default::default();
        }
        compiled
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with the expression, or that it evaluates to what is of no use here.
    pub fn compile(&self, purpose: Purpose, expression: &str) -> Result<Program, ExpressionError> {
        let program = self.env(purpose.sight()).compile(expression).map_err(ExpressionError::Compile)?;
        let found = program.output_type();
        if purpose.accepts(found) {
            return Ok(program);
        }
        let found = Declared(found).to_string();
        Err(ExpressionError::Type { expected: purpose.expected(), link: " but got", found })
    }

    /// Whether an expression makes sense for the types that are known, whatever it evaluates to.
    ///
    /// # Errors
    /// What it gets wrong.
    pub fn check(&self, expression: &str) -> Result<(), CompileErrors> {
        self.env(Sight::Everything).compile(expression).map(drop)
    }

    fn env(&self, sight: Sight) -> &Env {
        self.envs[sight as usize].get_or_init(|| self.build(sight))
    }

    fn build(&self, sight: Sight) -> Env {
        let known = |which: usize| self.types[which].clone().unwrap_or_else(Decl::dynamic);
        let object = std::sync::Arc::new(known(0));
        let mut env = Env::builder()
            .variable("object", std::sync::Arc::clone(&object))
            .variable("oldObject", object)
            .variable("namespaceObject", namespace())
            .variable("request", request());
        if self.params {
            env = env.variable("params", known(1));
        }
        if !matches!(sight, Sight::NoAuthorizer) {
            env = env
                .variable("authorizer", AuthorizerValue::decl())
                .variable("authorizer.requestResource", AuthorizerValue::resource_decl());
        }
        if let Some((fields, single)) =
            self.variables.as_ref().filter(|_| !matches!(sight, Sight::NoVariables))
        {
            env = env.variable("variables", fields.clone());
            for (name, decl) in single {
                env = env.variable(name, decl.clone());
            }
        }
        if matches!(sight, Sight::Patches) {
            env = env.with(Feature::Mutation);
        }
        env.build()
    }
}

/// The declaration of a variable of this type: what is neither simple nor made of what is simple is of an unknown type
/// to those who use it (`convertCelTypeToDeclType`).
fn composed(of: &Type) -> Decl {
    match of {
        Type::Bool => Decl::bool(),
        Type::Int => Decl::int(),
        Type::Double => Decl::double(),
        Type::String => Decl::string(),
        Type::Bytes | Type::Uint | Type::Null | Type::Duration | Type::Timestamp => Decl::native(of.clone()),
        Type::List(items) => Decl::list(composed(items)),
        Type::Map(entry) if entry.0 == Type::String => Decl::map(composed(&entry.1)),
        Type::Map(_) => Decl::native(of.clone()),
        _ => Decl::dynamic(),
    }
}

fn texts() -> Decl {
    Decl::list(Decl::string())
}

/// An object whose fields are texts that are always there.
fn of_texts(name: &str, fields: &[&str]) -> Decl {
    fields.iter().fold(Decl::object(name), |object, field| object.field(field, Decl::string(), true))
}

/// The declaration of `request`.
fn request() -> Decl {
    let kind = of_texts("kubernetes.GroupVersionKind", &["group", "version", "kind"]);
    let resource = of_texts("kubernetes.GroupVersionResource", &["group", "version", "resource"]);
    let user = Decl::object("kubernetes.UserInfo")
        .field("username", Decl::string(), false)
        .field("uid", Decl::string(), false)
        .field("groups", texts(), false)
        .field("extra", Decl::map(texts()), false);
    Decl::object("kubernetes.AdmissionRequest")
        .field("kind", kind.clone(), true)
        .field("resource", resource.clone(), true)
        .field("subResource", Decl::string(), false)
        .field("requestKind", kind, true)
        .field("requestResource", resource, true)
        .field("requestSubResource", Decl::string(), false)
        .field("name", Decl::string(), true)
        .field("namespace", Decl::string(), false)
        .field("operation", Decl::string(), true)
        .field("userInfo", user, true)
        .field("dryRun", Decl::bool(), false)
        .field("options", Decl::dynamic(), false)
}

/// The declaration of `namespaceObject`.
fn namespace() -> Decl {
    let condition = of_texts("kubernetes.NamespaceCondition", &["status", "type", "message", "reason"])
        .field("lastTransitionTime", Decl::date_time(), true);
    let status = Decl::object("kubernetes.NamespaceStatus")
        .field("conditions", Decl::list(condition), true)
        .field("phase", Decl::string(), true);
    let named = ["name", "generateName", "namespace", "UID", "resourceVersion"];
    let metadata = of_texts("kubernetes.NamespaceMetadata", &named)
        .field("labels", Decl::map(Decl::string()), true)
        .field("annotations", Decl::map(Decl::string()), true)
        .field("creationTimestamp", Decl::date_time(), true)
        .field("deletionGracePeriodSeconds", Decl::int(), true)
        .field("deletionTimestamp", Decl::date_time(), true)
        .field("generation", Decl::int(), true)
        .field("finalizers", texts(), true);
    Decl::object("kubernetes.Namespace")
        .field("metadata", metadata, true)
        .field("spec", Decl::object("kubernetes.NamespaceSpec").field("finalizers", texts(), true), true)
        .field("status", status, true)
}

/// A type as cel-go's `Type.String` writes it, which is not how its messages write types.
pub(crate) struct Declared<'t>(pub(crate) &'t Type);

impl fmt::Display for Declared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Type::List(inner) => write!(f, "list({})", Declared(inner)),
            Type::Optional(inner) => write!(f, "optional_type({})", Declared(inner)),
            Type::Type(inner) => write!(f, "type({})", Declared(inner)),
            Type::Map(entry) => write!(f, "map({}, {})", Declared(&entry.0), Declared(&entry.1)),
            Type::Param(_) => write!(f, "{}", self.0),
            Type::Object(ObjectType { name, .. }) => f.write_str(name),
            other => f.write_str(other.runtime_name()),
        }
    }
}
