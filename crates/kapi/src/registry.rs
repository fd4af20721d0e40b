//! The resources that a server knows: one mechanism for built-in kinds, custom resources and an embedder's own.

pub mod builtin;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ahash::HashMap;
use arc_swap::ArcSwap;
use kcore::{Gvk, Gvr};
use kstore::TableId;
use serde_json::Value;

use crate::{
    custom::{Definition, Structure},
    encrypt::Seal,
    schema::{Catalog, Type},
    strategy::Strategy,
};

/// One resource: its names, its versions and what may be done with it.
///
/// All versions of a resource share one table of the store; the first is the storage version.
pub struct ResourceDef {
    /// The API group; empty for the core group.
    pub group: String,
    /// The versions served, the storage version first.
    pub versions: Vec<Version>,
    /// The plural name, as in paths.
    pub plural: String,
    /// The singular name.
    pub singular: String,
    /// The kind.
    pub kind: String,
    /// Short names for command lines.
    pub short_names: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// What may be done with the resource itself.
    pub verbs: Verbs,
    /// The subresources, by name.
    pub subresources: Vec<String>,
    /// Paths of fields that a field selector may name, beside `metadata.name` and `metadata.namespace`.
    pub selectable: Vec<Arc<str>>,
    /// The selectable fields that the store keeps an index for.
    pub indexed: Vec<Arc<str>>,
    /// Special rules.
    pub traits: Traits,
    /// What the schema can't say.
    pub strategy: Arc<dyn Strategy>,
    /// Where it comes from.
    pub origin: Origin,
    /// How its objects are encrypted in the store. The server fills it in when it takes the kind up.
    pub seal: Option<Seal>,
}

/// Where a resource comes from, which says how its objects are kept and converted.
#[derive(Clone, Debug, Default)]
pub enum Origin {
    /// Kubernetes itself. Objects are checked in the storage version.
    #[default]
    BuiltIn,
    /// A structural schema: a CustomResourceDefinition or a type of the embedder. Objects are checked in the version of the
    /// request.
    Structural(Arc<Definition>),
}

/// One version of a resource.
#[derive(Clone, Debug)]
pub struct Version {
    /// The name, such as `v1`.
    pub name: String,
    /// The structure of its objects.
    pub schema: Type,
    /// What only this version has, for resources with structural schemas.
    pub structure: Option<Arc<Structure>>,
}

/// The verbs of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    /// Everything.
    All,
    /// Everything but deleting a whole collection.
    NoDeleteCollection,
    /// Only creating: a review, which is answered and not kept.
    CreateOnly,
    /// Only reading.
    ReadOnly,
    /// Reading and deleting: the resource is being taken away.
    Terminating,
}

impl Verbs {
    /// The verbs' names in the order of discovery documents.
    #[must_use]
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::All => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            Self::NoDeleteCollection => &["create", "delete", "get", "list", "patch", "update", "watch"],
            Self::CreateOnly => &["create"],
            Self::ReadOnly => &["get", "list"],
            Self::Terminating => &["delete", "deletecollection", "get", "list", "watch"],
        }
    }
}

/// Rules that some kinds have and others not, as upstream's strategies say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traits {
    /// `metadata.generation` counts changes of the specification.
    pub generation: bool,
    /// A PUT without a resource version is refused.
    pub needs_revision: bool,
    /// A PUT of a missing object creates it.
    pub create_on_update: bool,
    /// A deletion answers with the object instead of a `Status`.
    pub returns_deleted: bool,
}

impl ResourceDef {
    /// `resource.group`, or the resource alone for the core group.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The storage version's name.
    #[must_use]
    pub fn storage_version(&self) -> &str {
        self.versions.first().map_or("", |version| &version.name)
    }

    /// What its origin says, if that is a structural schema.
    #[must_use]
    pub fn definition(&self) -> Option<&Arc<Definition>> {
        match &self.origin {
            Origin::BuiltIn => None,
            Origin::Structural(definition) => Some(definition),
        }
    }

    /// The version of this name.
    #[must_use]
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// The name of its table in the store.
    #[must_use]
    pub fn table_name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}/{}", self.group, self.plural) }
    }

    /// Whether a field selector may name this path.
    #[must_use]
    pub fn is_selectable(&self, path: &str) -> bool {
        path == "metadata.name"
            || (path == "metadata.namespace" && self.namespaced)
            || self.selectable.iter().any(|candidate| **candidate == *path)
    }
}

impl fmt::Debug for ResourceDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceDef").field("resource", &self.qualified()).finish_non_exhaustive()
    }
}

/// A resource in one version, ready to be served.
#[derive(Debug)]
pub struct Resource {
    /// The definition.
    pub def: Arc<ResourceDef>,
    /// The index of the version in the definition.
    pub version: usize,
    /// Where its objects are kept.
    pub table: TableId,
}

impl Resource {
    /// The version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.def.versions[self.version]
    }

    /// Its subresources in this version.
    #[must_use]
    pub fn subresources(&self) -> &[String] {
        match &self.version().structure {
            Some(structure) => &structure.subresources,
            None => &self.def.subresources,
        }
    }

    /// Whether it has this subresource in this version.
    #[must_use]
    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources().iter().any(|subresource| subresource == name)
    }

    /// What may be done with it now.
    #[must_use]
    pub fn verbs(&self) -> Verbs {
        match self.def.definition() {
            Some(definition) if definition.terminating => Verbs::Terminating,
            _ => self.def.verbs,
        }
    }

    /// Whether this is the storage version.
    #[must_use]
    pub fn is_storage_version(&self) -> bool {
        self.version == 0
    }

    /// The `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        self.gvr().api_version()
    }

    /// Group, version and kind.
    #[must_use]
    pub fn gvk(&self) -> Gvk {
        Gvk::new(&*self.def.group, &*self.version().name, &*self.def.kind)
    }

    /// Group, version and resource.
    #[must_use]
    pub fn gvr(&self) -> Gvr {
        Gvr::new(&*self.def.group, &*self.version().name, &*self.def.plural)
    }

    /// The store's key of an object.
    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> Vec<u8> {
        // Every look at an object makes one, which `format!` takes four times as long for.
        if self.def.namespaced {
            [namespace.as_bytes(), b"/", name.as_bytes()].concat()
        } else {
            name.as_bytes().to_vec()
        }
    }
}

type Versions = BTreeMap<String, HashMap<String, Arc<Resource>>>;

/// Everything that is served. Readers take the current table without a lock; a change publishes a new one.
#[derive(Debug)]
pub struct Registry {
    groups: ArcSwap<HashMap<String, Versions>>,
    revision: AtomicU64,
    catalog: Arc<Catalog>,
}

impl Registry {
    /// An empty registry over a catalog of definitions.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self { groups: ArcSwap::default(), revision: AtomicU64::new(0), catalog }
    }

    /// The definitions that the resources' schemas refer to.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Adds resources, each with its table; a resource of the same group and name is replaced.
    pub fn extend(&self, resources: impl IntoIterator<Item = (Arc<ResourceDef>, TableId)>) {
        let resources: Vec<_> = resources.into_iter().collect();
        self.groups.rcu(|groups| {
            let mut groups = HashMap::clone(groups);
            insert(&mut groups, &resources);
            groups
        });
        // After the change: who reads the revision first and then the table never takes an old table for a new one.
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// Puts all resources with structural schemas from definitions in place of those there were.
    pub fn replace_custom(&self, resources: &[(Arc<ResourceDef>, TableId)]) {
        self.groups.rcu(|groups| {
            let mut groups = HashMap::clone(groups);
            let is_custom = |resource: &Resource| {
                resource.def.definition().is_some_and(|definition| definition.from_object)
            };
            for versions in groups.values_mut() {
                for resources in versions.values_mut() {
                    resources.retain(|_, resource| !is_custom(resource));
                }
                versions.retain(|_, resources| !resources.is_empty());
            }
            groups.retain(|_, versions| !versions.is_empty());
            insert(&mut groups, resources);
            groups
        });
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// A number that grows with every change; documents made from the registry are kept under it.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The resource of this group, version and plural name.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.groups.load().get(group)?.get(version)?.get(plural).cloned()
    }

    /// The resource whose objects have this `apiVersion` and `kind`.
    #[must_use]
    pub fn find_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        let (group, version) = kcore::kind::split_api_version(api_version);
        let groups = self.groups.load();
        groups.get(group)?.get(version)?.values().find(|resource| resource.def.kind == kind).cloned()
    }

    /// Whether anything of this group and version is served.
    #[must_use]
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.groups.load().get(group).is_some_and(|versions| versions.contains_key(version))
    }

    /// All groups with their versions, each in the order of discovery documents.
    #[must_use]
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let groups = self.groups.load();
        let mut list: Vec<_> = groups
            .iter()
            .map(|(group, versions)| {
                let mut versions: Vec<_> = versions.keys().cloned().collect();
                versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
                (group.clone(), versions)
            })
            .collect();
        list.sort_by_cached_key(|(group, _)| (builtin::group_priority(group), group.clone()));
        list
    }

    /// The resources of one group and version in the order of their names.
    #[must_use]
    pub fn resources(&self, group: &str, version: &str) -> Vec<Arc<Resource>> {
        let groups = self.groups.load();
        let resources = groups.get(group).and_then(|versions| versions.get(version));
        let mut list: Vec<_> =
            resources.into_iter().flat_map(|resources| resources.values().cloned()).collect();
        list.sort_by(|a, b| a.def.plural.cmp(&b.def.plural));
        list
    }

    /// Every resource once, in its storage version.
    #[must_use]
    pub fn storage_resources(&self) -> Vec<Arc<Resource>> {
        let groups = self.groups.load();
        let all = groups.values().flat_map(BTreeMap::values).flat_map(|resources| resources.values());
        let mut seen = std::collections::HashSet::new();
        let mut list: Vec<_> = all.cloned().collect();
        // A storage version need not be served; then another version stands for the resource.
        list.sort_by_key(|resource| resource.version);
        list.retain(|resource| seen.insert(resource.table));
        list
    }
}

/// Adds every served version; what a group serves already under a name is kept when a definition wants that name.
fn insert(groups: &mut HashMap<String, Versions>, resources: &[(Arc<ResourceDef>, TableId)]) {
    for (def, table) in resources {
        let versions = groups.entry(def.group.clone()).or_default();
        let from_object = def.definition().is_some_and(|definition| definition.from_object);
        for (version, Version { name, structure, .. }) in def.versions.iter().enumerate() {
            if structure.as_ref().is_some_and(|structure| !structure.served) {
                continue;
            }
            let plurals = versions.entry(name.clone()).or_default();
            if from_object && plurals.contains_key(&def.plural) {
                continue;
            }
            let resource = Resource { def: Arc::clone(def), version, table: *table };
            plurals.insert(def.plural.clone(), Arc::new(resource));
        }
    }
}

/// Orders versions as Kubernetes does: stable before beta before alpha, then by number (API versioning, "version
/// priority"). Greater is preferred.
#[must_use]
pub fn version_priority(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let (stage, minor) = match &rest[digits..] {
            "" => (3, 0),
            stage => match (stage.strip_prefix("beta"), stage.strip_prefix("alpha")) {
                (Some(minor), _) => (2, minor.parse().ok()?),
                (_, Some(minor)) => (1, minor.parse().ok()?),
                _ => return None,
            },
        };
        Some((stage, major, minor))
    };
    parse().unwrap_or((0, 0, 0))
}

/// The value at a dotted path as a field selector compares it: text as it is, numbers and booleans written out.
#[must_use]
pub fn selectable_value(object: &Value, path: &str) -> String {
    let value = path.split('.').try_fold(object, |value, key| value.get(key));
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_upstream() {
        let mut versions = vec!["v1beta1", "v2", "v1", "v1alpha1", "v2beta1", "v10", "foo", "v1beta2"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
