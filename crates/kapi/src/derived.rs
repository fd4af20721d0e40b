//! Kinds whose objects are not kept, but made of others when they are asked for: what a pod uses is told under the pod's name.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use kcore::{Gvr, Stored};
use serde_json::Value;

/// Makes the objects of a kind of objects of another one. Each is called as the one that it is made of, and has its labels; so
/// names, namespaces, selectors and pages work as they do there. Such a kind can be read and listed, and nothing else. Given to
/// [`OwnKind::derived`](crate::custom::OwnKind::derived).
///
/// ```
/// use std::sync::Arc;
/// use kapi::{ApiServer, derived::Derive, registry::ResourceDef};
/// use kcore::{Gvr, Stored};
/// use kube::CustomResource;
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
/// use serde_json::{Value, json};
///
/// #[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
/// #[kube(group = "example.com", version = "v1", kind = "NameLength")]
/// struct NameLengthSpec { length: usize }
///
/// /// How long the names of namespaces are.
/// #[derive(Debug)]
/// struct Lengths;
///
/// #[async_trait::async_trait]
/// impl Derive for Lengths {
///     fn from(&self) -> Gvr { Gvr::new("", "v1", "namespaces") }
///     async fn derive(&self, objects: &[Arc<Stored>]) -> Vec<Option<Value>> {
///         objects.iter().map(|object| Some(json!({"spec": {"length": object.header().name.len()}}))).collect()
///     }
/// }
///
/// let lengths = ResourceDef::of::<NameLength>().derived(Arc::new(Lengths)).build()?;
/// let server = ApiServer::builder().kind(lengths).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[async_trait]
pub trait Derive: fmt::Debug + Send + Sync + 'static {
    /// The resource that the objects are made of. It must have the same scope, namespaced or not. Called for each request.
    fn from(&self) -> Gvr;

    /// The fields of each object beside `apiVersion`, `kind` and `metadata`, in the order of `objects`; `None` where nothing is
    /// to be shown: that one is missing in lists, and not found. Called once for each request, at the same time for several; it
    /// may be dropped when the caller goes away.
    async fn derive(&self, objects: &[Arc<Stored>]) -> Vec<Option<Value>>;
}

const _: Option<&dyn Derive> = None;
