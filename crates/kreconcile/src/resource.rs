//! What to watch: a kind, and which of its objects.

use std::any::TypeId;

use k8s_openapi::NamespaceResourceScope;
use kcore::{Gvk, Gvr};

/// One kind that an API server serves: its names and its scope.
///
/// ```
/// use k8s_openapi::api::apps::v1::Deployment;
/// use kreconcile::ResourceType;
/// let deployments = ResourceType::of::<Deployment>();
/// assert_eq!(deployments.path("shop", "web"), "/apis/apps/v1/namespaces/shop/deployments/web");
/// assert_eq!(deployments.path("", ""), "/apis/apps/v1/deployments");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceType {
    /// The API group; empty for the core group.
    pub group: String,
    /// The version in the group.
    pub version: String,
    /// The kind, in CamelCase.
    pub kind: String,
    /// The resource's plural name, in lower case.
    pub plural: String,
    /// Whether the objects live in namespaces.
    pub namespaced: bool,
}

impl ResourceType {
    /// The type that a Rust type stands for.
    #[must_use]
    pub fn of<K>() -> Self
    where
        K: kube::Resource<DynamicType = ()>,
        K::Scope: 'static,
    {
        Self {
            group: K::group(&()).into_owned(),
            version: K::version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
            namespaced: TypeId::of::<K::Scope>() == TypeId::of::<NamespaceResourceScope>(),
        }
    }

    /// Group, version and kind.
    #[must_use]
    pub fn gvk(&self) -> Gvk {
        Gvk::new(&*self.group, &*self.version, &*self.kind)
    }

    /// Group, version and resource.
    #[must_use]
    pub fn gvr(&self) -> Gvr {
        Gvr::new(&*self.group, &*self.version, &*self.plural)
    }

    /// The value of the objects' `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> String {
        self.gvk().api_version()
    }

    /// The URL path of a collection (empty `name`) or an object. An empty `namespace` means all of them.
    #[must_use]
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = String::with_capacity(64 + namespace.len() + name.len());
        if self.group.is_empty() {
            path.push_str("/api/");
        } else {
            path.push_str("/apis/");
            path.push_str(&self.group);
            path.push('/');
        }
        path.push_str(&self.version);
        if self.namespaced && !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        path.push('/');
        path.push_str(&self.plural);
        if !name.is_empty() {
            path.push('/');
            path.push_str(name);
        }
        path
    }
}

/// Which objects of a kind an informer holds. Two informers with the same kind and selection are the same one.
///
/// ```
/// use kreconcile::Selection;
/// let mine = Selection::all().fields("spec.nodeName=node-1");
/// assert_ne!(mine, Selection::all());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    pub(crate) namespace: String,
    pub(crate) labels: String,
    pub(crate) fields: String,
    pub(crate) metadata_only: bool,
}

impl Selection {
    /// Every object of the kind, in all namespaces.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only objects in this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Only objects that match this label selector, in the syntax of the `labelSelector` query parameter.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = selector.into();
        self
    }

    /// Only objects that match this field selector, in the syntax of the `fieldSelector` query parameter.
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = selector.into();
        self
    }

    /// Only the metadata is needed: a remote server is asked for `PartialObjectMetadata`, which saves memory. Where the
    /// whole object costs nothing more (in the server's own process, or when another informer has it already) the
    /// cache may hold it.
    #[must_use]
    pub fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }
}
