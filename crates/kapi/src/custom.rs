//! Kinds with structural schemas: CustomResourceDefinitions, and types of an embedder's own.
//!
//! What is served is a function of the definitions in the store: before a request that is not for a built-in kind, the
//! registry is brought to the state of their table (an atomic load when nothing changed). So a definition
//! that was written through another server of the same store is served here too, without a task that watches. What upstream's
//! controllers in the API server do about names, conditions and the end of a definition is done after each write of one
//! (`custom/settle.rs`).

mod definition;
mod names;
mod own;
mod rules;
mod schemas;
mod settle;
mod strategy;
mod webhook;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use ahash::HashMap;
use kcore::Stored;
use kschema::{Catalog, Type, error::FieldError, structural::Structural};
use kstore::{Range, Revision, TableId};
use serde_json::Value;
use tokio::sync::watch;

pub use self::own::{KindError, OwnKind};
use self::rules::Rules;
pub(crate) use self::{
    definition::Column, names::set_condition, schemas::Definitions, settle::settle, strategy::at,
    webhook::convert,
};
use crate::{
    derived::Derive,
    objects::{Objects, stored},
    registry::{Registry, Resource, ResourceDef},
};

/// What expressions see of whole objects of this schema.
pub(crate) fn declared(schema: &Structural) -> Option<kcel::Decl> {
    rules::declared(schema)
}

/// The group of CustomResourceDefinitions.
pub(crate) const GROUP: &str = "apiextensions.k8s.io";
/// Their plural name.
pub(crate) const PLURAL: &str = "customresourcedefinitions";
/// The finalizer that holds a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What is true of a resource with structural schemas in all its versions.
#[derive(Debug, Default)]
pub struct Definition {
    /// Whether it comes from a CustomResourceDefinition in the store, and goes with it.
    pub from_object: bool,
    /// Whether it is being taken away: nothing can be created any more.
    pub terminating: bool,
    /// How objects get from one version to another.
    pub conversion: Conversion,
    /// The kind of its lists.
    pub list_kind: String,
    /// Objects written up to this revision may have been written under another schema, and are brought into the form of this
    /// one when they are read.
    pub since: u64,
    /// Who makes the objects, if they are not kept but made of others when they are asked for.
    pub derived: Option<Arc<dyn Derive>>,
}

/// How objects get from one version to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Conversion {
    /// Only `apiVersion` changes; fields that the new version doesn't have are dropped.
    #[default]
    None,
    /// A webhook converts them; the client configuration and the review versions as the definition has them.
    Webhook(Arc<Value>),
}

/// What a version with a structural schema has of its own.
#[derive(Debug)]
pub struct Structure {
    /// The schema.
    pub schema: Arc<Structural>,
    /// Its rules in CEL, if it has any.
    pub(crate) rules: Option<Rules>,
    /// The schema as it was written, for the OpenAPI documents.
    pub source: Value,
    /// Whether the version is served.
    pub served: bool,
    /// The subresources: `status`, `scale`.
    pub subresources: Vec<String>,
    /// Where the numbers of the `scale` subresource are.
    pub scale: Option<ScalePaths>,
    /// What tables show besides names.
    pub(crate) columns: Vec<Column>,
    /// What callers of this version are warned of.
    pub warning: Option<String>,
}

impl Structure {
    /// The schema as a type, for apply and patches.
    #[must_use]
    pub fn as_type(&self) -> Type {
        Type::Structural(Arc::clone(&self.schema))
    }

    /// Checks an object with all that the schema says.
    fn validate(&self, catalog: &Catalog, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        self.schema.validate(object, old, errors);
        self.schema.validate_metadata(catalog, object, errors);
        // What was there twice before may be.
        let mut before = Vec::new();
        if let Some(old) = old {
            self.schema.validate_lists(old, &mut before);
        }
        if before.is_empty() {
            self.schema.validate_lists(object, errors);
        }
        if let Some(rules) = &self.rules {
            rules.validate(object, old, errors);
        }
    }
}

/// Where a custom object keeps what its `scale` shows; paths without the leading dot.
#[derive(Clone, Debug, Default)]
pub struct ScalePaths {
    /// The number wanted.
    pub spec_replicas: String,
    /// The number that is.
    pub status_replicas: String,
    /// The label selector as text.
    pub selector: Option<String>,
}

/// Keeps the registry at the state of the definitions in the store.
#[derive(Debug)]
pub(crate) struct Customs {
    table: Option<Arc<Resource>>,
    synced: AtomicU64,
    known: Mutex<HashMap<String, Known>>,
    /// One settles at a time.
    turn: tokio::sync::Mutex<()>,
    /// Counts the changes of what is served.
    changes: watch::Sender<u64>,
}

/// A definition that has been compiled.
#[derive(Debug)]
struct Known {
    modified: Revision,
    def: Arc<ResourceDef>,
    table: TableId,
}

impl Customs {
    pub(crate) fn new(objects: &Objects) -> Self {
        Self {
            table: objects.registry().find(GROUP, "v1", PLURAL),
            synced: AtomicU64::new(0),
            known: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Brings the registry to the state of the definitions.
    pub(crate) fn sync(&self, objects: &Objects) {
        let Some(definitions) = &self.table else {
            return;
        };
        let snapshot = objects.snapshot();
        let revision = snapshot.table_revision(definitions.table);
        if self.synced.load(Ordering::Acquire) >= revision.get() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if self.synced.load(Ordering::Acquire) >= revision.get() {
            return;
        }
        let mut next = HashMap::default();
        for entry in snapshot.range(definitions.table, Range::all()) {
            let object: Arc<Stored> = stored(&definitions.def, &entry);
            let name = object.header().name.to_string();
            let before = known.remove(&name);
            if let Some(now) = before.filter(|known| known.modified == entry.modified()) {
                next.insert(name, now);
                continue;
            }
            let made = object
                .value()
                .ok()
                .and_then(|value| definition::served(objects.registry().catalog(), &value));
            if let Some(now) = made.and_then(|def| open(objects, def, entry.modified())) {
                next.insert(name, now);
            }
        }
        let mut all: Vec<_> = next.values().map(|known| (Arc::clone(&known.def), known.table)).collect();
        all.sort_by(|(one, _), (other, _)| one.plural.cmp(&other.plural));
        objects.registry().replace_custom(&all);
        *known = next;
        self.synced.store(revision.get(), Ordering::Release);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Waits until a resource is not served any more; never for those that no definition brings.
    pub(crate) fn gone(
        &self,
        registry: &Arc<Registry>,
        resource: &Arc<Resource>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut changes = self.changes.subscribe();
        let (registry, resource) = (Arc::clone(registry), Arc::clone(resource));
        async move {
            if !resource.def.definition().is_some_and(|definition| definition.from_object) {
                return std::future::pending().await;
            }
            let (group, version) = (&resource.def.group, &resource.version().name);
            while registry.find(group, version, &resource.def.plural).is_some() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Opens the table of a definition's objects. What is in it already was written under an earlier schema.
fn open(objects: &Objects, mut def: ResourceDef, modified: Revision) -> Option<Known> {
    def.seal = objects.seal(&def);
    let table = objects.open(&def).ok()?;
    if let crate::registry::Origin::Structural(definition) = &mut def.origin
        && let Some(definition) = Arc::get_mut(definition)
    {
        definition.since = objects.snapshot().table_revision(table).get();
    }
    Some(Known { modified, def: Arc::new(def), table })
}

/// Marks a definition that is deleted: it goes when its objects are gone.
pub(crate) fn mark(crd: &mut Value, now: &str) {
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    names::set_condition(crd, "Terminating", "True", "InstanceDeletionPending", message, now);
    let list = &mut crd["metadata"]["finalizers"];
    match list.as_array_mut() {
        Some(list) if list.iter().any(|item| item == CLEANUP) => {}
        Some(list) => list.push(CLEANUP.into()),
        None => *list = serde_json::json!([CLEANUP]),
    }
}

/// An object in the form of the present schema of the version it was stored in.
pub(crate) fn renewed(def: &ResourceDef, object: &Arc<Stored>) -> Arc<Stored> {
    let Ok(mut value) = object.value() else {
        return Arc::clone(object);
    };
    let before = value.clone();
    let version =
        kcore::kind::split_api_version(value["apiVersion"].as_str().unwrap_or_default()).1.to_owned();
    let Some(structure) = def.version(&version).and_then(|version| version.structure.as_ref()) else {
        return Arc::clone(object);
    };
    structure.schema.prune(&mut value);
    structure.schema.default_in(&mut value);
    if value == before {
        return Arc::clone(object);
    }
    Stored::from_value(value).map_or_else(|_| Arc::clone(object), Arc::new)
}
