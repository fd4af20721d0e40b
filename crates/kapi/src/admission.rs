//! What may be written: the chain that every create, update and delete passes through.

mod certificates;
mod declared_features;
mod ingress_class;
mod limits;
mod matching;
mod namespace;
mod node_restriction;
mod notes;
mod pod_groups;
mod pod_resize;
mod pod_security;
pub(crate) mod policy;
mod priority;
mod quota;
mod registered;
mod rounds;
mod runtime_class;
mod service_account;
mod storage;
mod taints;
mod tolerations;
mod topology_labels;
mod versioned;
mod webhook;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use kstore::Range;
use serde_json::Value;

pub(crate) use self::service_account::references::VOLUME_SECRETS;
pub use self::{
    certificates::SubjectRestriction,
    declared_features::DeclaredFeatures,
    ingress_class::DefaultIngressClass,
    limits::LimitRanger,
    namespace::NamespaceLifecycle,
    node_restriction::NodeRestriction,
    notes::{ANNOTATIONS_MAX, Notes, WARNING_BYTES_MAX, WARNINGS_MAX},
    pod_groups::{PodGroupProtection, PodGroupWorkload},
    pod_resize::PodResize,
    pod_security::{PODS_CHECKED_MAX, PodSecurity},
    priority::Priority,
    quota::ResourceQuota,
    runtime_class::RuntimeClass,
    service_account::ServiceAccount,
    storage::{ClaimResize, DefaultStorageClass, StorageProtection},
    taints::TaintNewNodes,
    tolerations::DefaultTolerations,
    topology_labels::PodTopologyLabels,
};
pub(crate) use self::{
    quota::{Bill, Charge, Charges},
    registered::Registered,
    rounds::Rounds,
};
use crate::{
    authn::UserInfo,
    authz::Chain,
    error::ApiResult,
    objects::Objects,
    registry::{Resource, ResourceDef},
    request::Given,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object.
    Update,
    /// The end of an object.
    Delete,
    /// A connection: exec, attach, port forwarding, a proxy. The object is what the caller gave as options, such as
    /// `PodExecOptions`. Only steps that say that it [concerns](Admission::concerns) them are asked.
    Connect,
}

/// A half of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// [`Admission::admit`].
    Admit,
    /// [`Admission::validate`].
    Validate,
}

/// A request on its way through the chain.
#[derive(Debug)]
pub struct AdmissionRequest<'a> {
    /// What is asked for.
    pub operation: Operation,
    /// The kind.
    pub resource: &'a Resource,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: &'a str,
    /// The object's name; empty while it is still to be generated.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The state before, for updates and deletions.
    pub old: Option<&'a Value>,
    /// Whether nothing will be kept.
    pub dry_run: bool,
    /// What the caller gave along.
    pub(crate) given: Given<'a>,
    /// What is in the server, to look things up.
    pub objects: &'a Objects,
    /// Where steps say what the caller or the audit log should know; `None` for writes of the server itself.
    pub notes: Option<&'a Notes>,
    /// Whether somebody has to be asked again.
    pub(crate) rounds: Option<&'a Rounds>,
    /// Where what the write is charged is left, to be committed with it.
    pub(crate) bill: Option<&'a Bill>,
}

impl AdmissionRequest<'_> {
    /// The request's `CreateOptions`, `UpdateOptions` or `DeleteOptions`, with what the caller gave; `None` for connections, whose
    /// options are the object.
    #[must_use]
    pub fn options(&self) -> Option<Value> {
        let mut options = self.given.json(self.dry_run);
        options.insert("kind".to_owned(), self.operation.options()?.into());
        options.insert("apiVersion".to_owned(), "meta.k8s.io/v1".into());
        Some(options.into())
    }

    /// Tells the caller, in a `Warning` header.
    pub fn warn(&self, text: impl Into<String>) {
        if let Some(notes) = self.notes {
            notes.warn(text);
        }
    }

    /// Tells the audit log.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        if let Some(notes) = self.notes {
            notes.annotate(key, value);
        }
    }
}

impl Operation {
    /// The word of reviews and rules.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }

    /// The kind of the request's options, if it has any.
    pub(crate) const fn options(self) -> Option<&'static str> {
        match self {
            Self::Create => Some("CreateOptions"),
            Self::Update => Some("UpdateOptions"),
            Self::Delete => Some("DeleteOptions"),
            Self::Connect => None,
        }
    }
}

/// The objects of a kind in the namespace of a request.
fn in_namespace(request: &AdmissionRequest<'_>) -> Range {
    Range::prefix([request.namespace, "/"].concat())
}

/// Whether it is this kind.
fn is_kind(kind: &ResourceDef, group: &str, plural: &str) -> bool {
    kind.plural == plural && kind.group == group
}

/// A step of the admission chain.
///
/// The server calls [`admit`](Self::admit) of every step in the order of the chain, then checks the object, then calls
/// [`validate`](Self::validate) of every step. Both may be called several times for one request, because a write that lost a
/// race is tried again; so a step must not act outside of the object. An error ends the request and is shown to the caller
/// as it is. A dropped future means that the caller went away.
///
/// ```
/// use kapi::admission::{Admission, AdmissionRequest};
/// use kapi::error::ApiResult;
/// use serde_json::Value;
///
/// /// Every object carries the name of who made it.
/// #[derive(Debug)]
/// struct Stamp;
///
/// #[async_trait::async_trait]
/// impl Admission for Stamp {
///     fn name(&self) -> &str { "Stamp" }
///
///     async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
///         object["metadata"]["annotations"]["made-by"] = request.user.name.clone().into();
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait Admission: Debug + Send + Sync + 'static {
    /// The step's name, for messages and for taking it out of the chain.
    fn name(&self) -> &str;

    /// Whether the step may have something to say to such a request in this half of the chain. A step that says no is passed over,
    /// which is cheaper than asking it. Default is yes to all but connections, which most steps have nothing to say to.
    fn concerns(&self, request: &AdmissionRequest<'_>, _phase: Phase) -> bool {
        request.operation != Operation::Connect
    }

    /// Changes the object, or refuses it. Not called for deletions.
    async fn admit(&self, _request: &AdmissionRequest<'_>, _object: &mut Value) -> ApiResult<()> {
        Ok(())
    }

    /// Refuses the object, or lets it pass. For deletions `object` is the object that would go.
    async fn validate(&self, _request: &AdmissionRequest<'_>, _object: &Value) -> ApiResult<()> {
        Ok(())
    }
}

/// The steps that upstream turns on by default and that are built so far, in upstream's order.
#[must_use]
pub fn defaults() -> Vec<Arc<dyn Admission>> {
    vec![
        Arc::new(NamespaceLifecycle),
        Arc::new(LimitRanger),
        Arc::new(ServiceAccount),
        Arc::new(NodeRestriction),
        Arc::new(TaintNewNodes),
        Arc::new(PodSecurity::new()),
        Arc::new(Priority),
        Arc::new(DefaultTolerations),
        Arc::new(DefaultStorageClass),
        Arc::new(StorageProtection),
        Arc::new(PodGroupProtection),
        Arc::new(ClaimResize),
        Arc::new(RuntimeClass),
        Arc::new(SubjectRestriction),
        Arc::new(DefaultIngressClass),
        Arc::new(PodTopologyLabels),
        Arc::new(PodGroupWorkload),
        Arc::new(DeclaredFeatures),
        Arc::new(PodResize),
    ]
}

/// The steps that ask who may do what, and then those that ask what is registered in the cluster, in upstream's order. They
/// come after all others.
pub(crate) fn registered(registered: &Arc<Registered>, authorizers: &Chain) -> Vec<Arc<dyn Admission>> {
    let (registered, authorizers) = (|| Arc::clone(registered), || authorizers.clone());
    vec![
        Arc::new(node_restriction::TokenAudience(authorizers())),
        Arc::new(certificates::CertificateApproval(authorizers())),
        Arc::new(certificates::CertificateSigning(authorizers())),
        Arc::new(certificates::TrustBundleAttest(authorizers())),
        Arc::new(policy::MutatingPolicies { registered: registered(), authorizers: authorizers() }),
        Arc::new(webhook::MutatingWebhooks { registered: registered(), authorizers: authorizers() }),
        Arc::new(policy::ValidatingPolicies { registered: registered(), authorizers: authorizers() }),
        Arc::new(webhook::ValidatingWebhooks { registered: registered(), authorizers: authorizers() }),
        Arc::new(ResourceQuota::default()),
    ]
}
