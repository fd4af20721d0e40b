//! Which object: namespace and name.

use std::{fmt, sync::Arc};

use kcore::{Header, Stored};

/// The namespace and the name of an object: what a queue holds and a [`Reconciler`](crate::Reconciler) is called with.
///
/// Cloning shares the two strings.
///
/// ```
/// use kreconcile::ObjectKey;
/// assert_eq!(ObjectKey::new("shop", "web").to_string(), "shop/web");
/// assert_eq!(ObjectKey::cluster("node-1").to_string(), "node-1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of an object in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<Arc<str>>) -> Self {
        Self::new("", name)
    }

    /// The key of the object that has this header.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self::new(&*header.namespace, &*header.name)
    }
}

impl From<&Stored> for ObjectKey {
    fn from(stored: &Stored) -> Self {
        Self::of(stored.header())
    }
}

/// `namespace/name`, or `name` alone for cluster-scoped objects: client-go's `MetaNamespaceKeyFunc`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}
