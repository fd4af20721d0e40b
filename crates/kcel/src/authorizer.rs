//! The seam through which expressions ask who may do what.

use std::{fmt, sync::Arc};

use crate::{
    native::{Kind, Native},
    types::Type,
    value::Value,
};

/// Answers the questions of `authorizer.group('apps').resource('deployments').check('create')`.
///
/// The embedder implements it for the requester of the request at hand; it is called once for each `check` that is
/// evaluated, on the evaluating thread, and should not block for long.
///
/// ```
/// use std::sync::Arc;
/// use kcel::{Authorizer, AuthorizerValue, Bindings, Check, Decision, Env};
///
/// struct OnlyReading;
/// impl Authorizer for OnlyReading {
///     fn authorize(&self, check: &Check<'_>) -> Decision {
///         Decision::new(check.verb == "get", "")
///     }
/// }
///
/// let env = Env::builder().variable("authorizer", AuthorizerValue::decl()).build();
/// let program = env.compile("authorizer.group('').resource('pods').check('get').allowed()")?;
/// let bindings = Bindings::new().with("authorizer", AuthorizerValue::new(Arc::new(OnlyReading)).value());
/// assert_eq!(program.eval(&bindings, 1_000_000).result?.as_bool(), Some(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Authorizer: Send + Sync {
    /// Whether the requester, or the service account that the check names, may do it.
    fn authorize(&self, check: &Check<'_>) -> Decision;
}

/// What an expression asks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Check<'c> {
    /// The verb.
    pub verb: &'c str,
    /// The service account (namespace, name) to ask for instead of the requester.
    pub service_account: Option<(&'c str, &'c str)>,
    /// What it is to be done to.
    pub target: CheckTarget<'c>,
}

/// What a check is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CheckTarget<'c> {
    /// A path that is no resource's.
    Path(&'c str),
    /// A resource, in any version.
    Resource(&'c ResourceCheck),
}

/// The answer to a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
    pub(crate) error: Option<String>,
}

impl Decision {
    /// An answer; "no opinion" is not allowed.
    #[must_use]
    pub fn new(allowed: bool, reason: impl Into<String>) -> Self {
        Self { allowed, reason: reason.into(), error: None }
    }

    /// The same with an error, which `errored()` and `error()` show.
    #[must_use]
    pub fn with_error(mut self, error: impl Into<String>) -> Self {
        self.error = Some(error.into());
        self
    }
}

/// The value of the variable `authorizer`.
#[derive(Clone)]
pub struct AuthorizerValue {
    authorizer: Arc<dyn Authorizer>,
    service_account: Option<(Arc<str>, Arc<str>)>,
}

impl fmt::Debug for AuthorizerValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizerValue").field("service_account", &self.service_account).finish()
    }
}

impl AuthorizerValue {
    /// For the requester.
    #[must_use]
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self { authorizer, service_account: None }
    }

    /// The declaration of the variable `authorizer`.
    #[must_use]
    pub fn decl() -> crate::Decl {
        crate::Decl::native(Type::hidden("kubernetes.authorization.Authorizer"))
    }

    /// The declaration of the variable `authorizer.requestResource`.
    #[must_use]
    pub fn resource_decl() -> crate::Decl {
        crate::Decl::native(Type::hidden("kubernetes.authorization.ResourceCheck"))
    }

    /// As a value to bind.
    #[must_use]
    pub fn value<'a>(self) -> Value<'a> {
        Value::Native(Native(Kind::Authorizer(self)))
    }

    /// A check of one resource, to bind as `authorizer.requestResource`.
    #[must_use]
    pub fn resource<'a>(&self, of: ResourceCheck) -> Value<'a> {
        let check = ResourceValue { authorizer: self.clone(), check: of };
        Value::Native(Native(Kind::ResourceCheck(Arc::new(check))))
    }

    pub(crate) fn for_service_account(&self, namespace: &str, name: &str) -> Self {
        Self {
            authorizer: self.authorizer.clone(),
            service_account: Some((Arc::from(namespace), Arc::from(name))),
        }
    }

    fn ask(&self, verb: &str, target: CheckTarget<'_>) -> Decision {
        let service_account = self.service_account.as_ref().map(|(namespace, name)| (&**namespace, &**name));
        self.authorizer.authorize(&Check { verb, service_account, target })
    }
}

/// `authorizer.path(..)`.
#[derive(Clone, Debug)]
pub(crate) struct PathCheck {
    pub(crate) authorizer: AuthorizerValue,
    pub(crate) path: String,
}

impl PathCheck {
    pub(crate) fn check(&self, verb: &str) -> Decision {
        self.authorizer.ask(verb, CheckTarget::Path(&self.path))
    }
}

/// `authorizer.group(..)`.
#[derive(Clone, Debug)]
pub(crate) struct GroupCheck {
    pub(crate) authorizer: AuthorizerValue,
    pub(crate) group: String,
}

/// A resource that a check is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceCheck {
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource, in the plural.
    pub resource: String,
    /// The subresource; empty for none.
    pub subresource: String,
    /// The namespace; empty for none or all.
    pub namespace: String,
    /// The object's name; empty for none.
    pub name: String,
    /// The field selector as it was written; empty for none.
    pub field_selector: String,
    /// The label selector as it was written; empty for none.
    pub label_selector: String,
}

/// `authorizer.group(..).resource(..)`.
#[derive(Clone, Debug)]
pub(crate) struct ResourceValue {
    pub(crate) authorizer: AuthorizerValue,
    pub(crate) check: ResourceCheck,
}

impl ResourceValue {
    pub(crate) fn check(&self, verb: &str) -> Decision {
        self.authorizer.ask(verb, CheckTarget::Resource(&self.check))
    }
}
