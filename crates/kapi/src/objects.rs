//! Objects in the store: how they are kept, indexed, read and committed.

mod fading;

use std::sync::Arc;

use bytes::Bytes;
use kcore::{Clock, Header, Status, Stored, object::encode};
use kschema::strategy::Held;
use kstore::{
    CommitError, Compare, Entry, IndexFn, Interest, Op, Range, Revision, Snapshot, Store, StoreError,
    TableId, TableSpec, Term, Txn,
};
use serde_json::Value;

use self::fading::Fading;
use crate::{
    admission::Charge,
    convert, custom,
    encrypt::{self, Encryption, Seal},
    error::{ApiError, ApiResult},
    outbound::Outbound,
    registry::{Registry, Resource, ResourceDef},
};

/// The table of things that only one object may hold: cluster IPs, node ports. Its keys are claims, its values the holders.
const CLAIMS: &str = "kplane/claims";

/// The objects of a server: its store seen through its registry.
#[derive(Debug)]
pub struct Objects {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    claims: TableId,
    outbound: Outbound,
    fading: Fading,
    encryption: Option<Encryption>,
}

impl Objects {
    /// Opens the tables of `defs` and registers them.
    ///
    /// # Errors
    /// When the store can't open a table.
    pub fn new(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        clock: Arc<dyn Clock>,
        defs: Vec<ResourceDef>,
    ) -> Result<Self, StoreError> {
        Self::encrypted(store, registry, clock, defs, None)
    }

    /// The same, with objects that are stored encrypted.
    pub(crate) fn encrypted(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        clock: Arc<dyn Clock>,
        defs: Vec<ResourceDef>,
        encryption: Option<Encryption>,
    ) -> Result<Self, StoreError> {
        let claims = store.open_table(TableSpec::new(CLAIMS))?;
        let (outbound, fading) = (Outbound::default(), Fading::default());
        let objects = Self { store, registry, clock, claims, outbound, fading, encryption };
        objects.register(defs)?;
        Ok(objects)
    }

    /// Opens the tables of further kinds and serves them from now on.
    ///
    /// # Errors
    /// When the store can't open a table.
    pub fn register(&self, defs: Vec<ResourceDef>) -> Result<(), StoreError> {
        let mut resources = Vec::with_capacity(defs.len());
        for mut def in defs {
            def.seal = self.seal(&def);
            let def = Arc::new(def);
            let spec = TableSpec::new(convert::table_name(&def));
            let spec = if def.indexed.is_empty() {
                spec
            } else {
                spec.index(Arc::new(FieldIndex(Arc::clone(&def))))
            };
            let table = self.store.open_table(spec)?;
            resources.push((def, table));
        }
        self.registry.extend(resources);
        Ok(())
    }

    /// How objects of a kind are encrypted, if any are.
    pub(crate) fn seal(&self, def: &ResourceDef) -> Option<Seal> {
        self.encryption.as_ref().map(|encryption| encryption.of(&def.group, &def.plural))
    }

    /// Gets the key that an object is encrypted with, should it be far away.
    pub(crate) async fn settle(&self, resource: &Resource, namespace: &str, name: &str) {
        if let Some(seal) = &resource.def.seal
            && let Some(entry) = self.snapshot().get(resource.table, &resource.key(namespace, name))
        {
            seal.settle(&entry).await;
        }
    }

    /// The key management services, if some objects are encrypted by them.
    pub(crate) fn kms(&self) -> Option<&Encryption> {
        self.encryption.as_ref().filter(|encryption| encryption.has_kms())
    }

    /// Whether an object would be stored otherwise if it were written now: it is to be written even if nothing changes.
    pub(crate) fn is_stale(&self, resource: &Resource, object: &Stored) -> bool {
        let Some(seal) = &resource.def.seal else {
            return false;
        };
        let key = resource.key(&object.header().namespace, &object.header().name);
        self.snapshot().get(resource.table, &key).is_some_and(|entry| seal.is_stale(entry.value()))
    }

    /// Opens the table of a kind without an index.
    pub(crate) fn open(&self, def: &ResourceDef) -> Result<TableId, StoreError> {
        self.store.open_table(TableSpec::new(convert::table_name(def)))
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// What is published now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.store.snapshot()
    }

    /// One object, if it is there.
    #[must_use]
    pub fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        let entry = self.snapshot().get(resource.table, &resource.key(namespace, name))?;
        Some(stored(&resource.def, &entry))
    }

    /// One object of a built-in kind, for admission and authorization.
    #[must_use]
    pub fn find(
        &self,
        group: &str,
        version: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Stored>> {
        self.get(&*self.registry.find(group, version, plural)?, namespace, name)
    }

    /// The way to the services that the server itself calls.
    pub(crate) fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// Takes this way out.
    pub(crate) fn set_outbound(&mut self, outbound: Outbound) {
        self.outbound = outbound;
    }

    /// The cluster IP of a service, if it is there and has one.
    pub(crate) fn cluster_ip(&self, namespace: &str, name: &str) -> Option<String> {
        let service = self.find("", "v1", "services", namespace, name)?;
        let address = service.value().ok()?["spec"]["clusterIP"].as_str()?.to_owned();
        Some(address).filter(|address| !address.is_empty() && address != "None")
    }

    /// Whether a claim is held.
    #[must_use]
    pub fn is_claimed(&self, claim: &str) -> bool {
        self.snapshot().get(self.claims, claim.as_bytes()).is_some()
    }

    /// Writes or deletes one object together with its claims.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn commit(&self, write: Write<'_>) -> Result<Arc<Stored>, WriteError> {
        let Write { resource, namespace, name, replaced, object, claims, old_claims, charges } = write;
        let expected = replaced.map(|replaced| replaced.revision());
        let key = Bytes::from(resource.key(namespace, name));
        let table = resource.table;
        let mut txn = Txn::new().compare(match expected {
            Some(revision) => {
                Compare::ModifiedAt { table, key: key.clone(), revision: Revision::from(revision) }
            }
            None => Compare::Absent { table, key: key.clone() },
        });
        txn = match object {
            Some(object) => {
                let mut header = Header::of(object);
                header.fields = selectable_fields(&resource.def, object);
                let hint: Arc<dyn std::any::Any + Send + Sync> = Arc::new(header);
                // It is kept for long: room for more would be kept, too.
                let value = sealed(resource, &key, object)?.into_boxed_slice();
                txn.op(Op::Put {
                    table,
                    key: key.clone(),
                    value: value.into(),
                    lease: None,
                    hint: Some(hint),
                })
            }
            None => txn.op(Op::Delete { table, key: key.clone() }),
        };
        let added: Vec<&String> = claims.iter().filter(|claim| !old_claims.contains(claim)).collect();
        for claim in &added {
            let claim = Bytes::copy_from_slice(claim.as_bytes());
            txn = txn.compare(Compare::Absent { table: self.claims, key: claim.clone() }).op(Op::Put {
                table: self.claims,
                key: claim,
                value: key.clone(),
                lease: None,
                hint: None,
            });
        }
        for claim in old_claims.iter().filter(|claim| !claims.contains(claim)) {
            txn = txn.op(Op::Delete { table: self.claims, key: Bytes::copy_from_slice(claim.as_bytes()) });
        }
        for charge in charges {
            let header = charge.replaced.header();
            let key = Bytes::from(charge.resource.key(&header.namespace, &header.name));
            txn = txn.compare(charged_at(charge, &key)).op(put_charge(charge, key)?);
        }
        match self.store.commit(txn).await {
            Ok(committed) => {
                if let Some(replaced) = replaced {
                    self.fading.put(replaced, self.clock.now());
                }
                let outcome = committed.outcomes.into_iter().next();
                let entry = outcome.and_then(|outcome| outcome.entry).ok_or(WriteError::Conflict)?;
                Ok(stored(&resource.def, &entry))
            }
            Err(CommitError::Conflict { index: 0, .. }) => Err(WriteError::Conflict),
            Err(CommitError::Conflict { index, .. }) => Err(added
                .get(index - 1)
                .map_or(WriteError::Charged, |claim| WriteError::Claimed((*claim).clone()))),
            Err(error) => Err(WriteError::Store(store_error(&error))),
        }
    }
}

/// The quota is still as it was when the charge was made.
fn charged_at(charge: &Charge, key: &Bytes) -> Compare {
    let revision = Revision::from(charge.replaced.revision());
    Compare::ModifiedAt { table: charge.resource.table, key: key.clone(), revision }
}

/// The bytes of an object as they are stored.
fn sealed(resource: &Resource, key: &[u8], object: &Value) -> Result<Vec<u8>, WriteError> {
    let plain = encode(object);
    match &resource.def.seal {
        None => Ok(plain),
        Some(seal) => seal.seal(key, plain).map_err(|why| WriteError::Store(store_error(&why))),
    }
}

fn put_charge(charge: &Charge, key: Bytes) -> Result<Op, WriteError> {
    let mut header = Header::of(&charge.object);
    header.fields = selectable_fields(&charge.resource.def, &charge.object);
    let hint: Arc<dyn std::any::Any + Send + Sync> = Arc::new(header);
    let value = sealed(&charge.resource, &key, &charge.object)?.into();
    Ok(Op::Put { table: charge.resource.table, key, value, lease: None, hint: Some(hint) })
}

/// One write of one object.
pub struct Write<'a> {
    /// The kind.
    pub resource: &'a Resource,
    /// The namespace.
    pub namespace: &'a str,
    /// The name.
    pub name: &'a str,
    /// The state that is replaced, which must still be the present one; `None`: the object must not be there.
    pub replaced: Option<&'a Arc<Stored>>,
    /// The new state in the storage version, without a resource version; `None` deletes.
    pub object: Option<&'a Value>,
    /// What the new state holds.
    pub claims: &'a [String],
    /// What the old state held.
    pub old_claims: &'a [String],
    /// The quotas that change with it.
    pub(crate) charges: &'a [Charge],
}

/// Why a write did not happen.
#[derive(Debug)]
pub enum WriteError {
    /// The object is not in the expected state any more.
    Conflict,
    /// Another object holds this claim.
    Claimed(String),
    /// A quota is not in the expected state any more.
    Charged,
    /// The store refused or failed.
    Store(ApiError),
}

impl Held for Objects {
    fn is_taken(&self, claim: &str) -> bool {
        self.is_claimed(claim)
    }

    /// As upstream: a network counts from its creation on, until its condition says otherwise or it is deleted.
    fn networks(&self) -> Option<Vec<String>> {
        let resource = self.registry.find("networking.k8s.io", "v1", "servicecidrs")?;
        let entries: Vec<_> = self.snapshot().range(resource.table, Range::all()).collect();
        if entries.is_empty() {
            return None;
        }
        let mut networks = Vec::new();
        for object in entries.iter().map(|entry| stored(&resource.def, entry)) {
            let Ok(value) = object.value() else { continue };
            let mut conditions = value["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.find(|condition| condition["type"] == "Ready");
            if object.header().deletion.is_none() && ready.is_none_or(|ready| ready["status"] == "True") {
                let texts = value["spec"]["cidrs"].as_array().into_iter().flatten();
                networks.extend(texts.filter_map(Value::as_str).map(str::to_owned));
            }
        }
        Some(networks)
    }
}

/// A store's error as clients see it.
pub(crate) fn store_error(error: &dyn std::fmt::Display) -> ApiError {
    Status::internal(error).into()
}

/// The object that an entry holds; its header is parsed at most once. One that can't be decrypted has no bytes, and its header
/// says why: see [`readable`].
pub(crate) fn stored(def: &ResourceDef, entry: &Arc<Entry>) -> Arc<Stored> {
    let object = entry.derived(|entry| Arc::new(read(def, entry)));
    if object.raw().is_empty() {
        // The key may have come since.
        return Arc::new(read(def, entry));
    }
    match def.definition() {
        Some(definition) if object.revision() <= definition.since => custom::renewed(def, &object),
        _ => object,
    }
}

/// The field of a header that says why an object can't be read.
const UNREADABLE: &str = "kplane/unreadable";

/// Refuses an object that can't be decrypted.
///
/// # Errors
/// 500: which object it is, and why, in upstream's words.
pub(crate) fn readable(object: &Stored) -> ApiResult<()> {
    if !object.raw().is_empty() {
        return Ok(());
    }
    Err(store_error(&object.header().field(UNREADABLE).unwrap_or("the object has no content")))
}

fn read(def: &ResourceDef, entry: &Entry) -> Stored {
    let revision = entry.modified().get();
    match opened(def, entry) {
        Ok(raw) => Stored::new(header_of(def, entry, &raw), revision, raw),
        Err(why) => Stored::new(unreadable(entry, why), revision, Bytes::new()),
    }
}

/// The bytes of an entry as the object was encoded.
fn opened(def: &ResourceDef, entry: &Entry) -> Result<Bytes, String> {
    match &def.seal {
        None => encrypt::plain(entry.key(), entry.value()).cloned(),
        Some(seal) => seal.open(entry.key(), entry.value()).map(Bytes::from),
    }
}

fn unreadable(entry: &Entry, why: String) -> Header {
    let key = String::from_utf8_lossy(entry.key()).into_owned();
    let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
    let fields = Box::new([(Arc::from(UNREADABLE), why.into())]);
    Header { namespace: namespace.into(), name: name.into(), fields, ..Header::default() }
}

/// The header that the writer left.
fn left(entry: &Entry) -> Option<Arc<Header>> {
    Arc::clone(entry.hint()?).downcast::<Header>().ok()
}

/// The header: what the writer left, or else read from the bytes.
fn header_of(def: &ResourceDef, entry: &Entry, raw: &[u8]) -> Arc<Header> {
    if let Some(header) = left(entry) {
        return header;
    }
    let object: Value = serde_json::from_slice(raw).unwrap_or(Value::Null);
    let mut header = Header::of(&object);
    header.fields = selectable_fields(def, &object);
    Arc::new(header)
}

fn selectable_fields(def: &ResourceDef, object: &Value) -> Box<[(Arc<str>, Box<str>)]> {
    def.selectable.iter().map(|path| (Arc::clone(path), convert::field(def, object, path).into())).collect()
}

/// The term under which objects with this value of an indexed field are found.
pub(crate) fn field_term(path: &str, value: &str) -> Term {
    Term::from(format!("{path}={value}").as_str())
}

/// Finds objects by the values of their indexed fields.
struct FieldIndex(Arc<ResourceDef>);

impl IndexFn for FieldIndex {
    fn terms(&self, entry: &Entry, terms: &mut Vec<Term>) {
        // What the writer left saves decrypting it.
        let header = match left(entry) {
            Some(header) => header,
            None => match opened(&self.0, entry) {
                Ok(raw) => header_of(&self.0, entry, &raw),
                Err(_) => return,
            },
        };
        for path in &self.0.indexed {
            let value = header.field(path).unwrap_or_default();
            if !value.is_empty() {
                terms.push(field_term(path, value));
            }
        }
    }
}

/// What a list or watch is restricted to before its selectors are looked at.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// The whole table.
    All,
    /// One namespace.
    Namespace(String),
    /// One object.
    Name { namespace: String, name: String },
    /// The objects with one value of an indexed field, in one namespace or all.
    Term { term: Term, namespace: String },
}

impl Scope {
    /// The narrowest scope that holds everything the selectors allow.
    pub(crate) fn new(resource: &Resource, namespace: &str, fields: &kcore::selector::FieldSelector) -> Self {
        let single = fields.required("metadata.name");
        if let Some(name) = single.filter(|_| !namespace.is_empty() || !resource.def.namespaced) {
            return Self::Name { namespace: namespace.to_owned(), name: name.to_owned() };
        }
        let indexed = resource.def.indexed.iter().find_map(|path| Some((path, fields.required(path)?)));
        if let Some((path, value)) = indexed.filter(|(_, value)| !value.is_empty()) {
            return Self::Term { term: field_term(path, value), namespace: namespace.to_owned() };
        }
        if namespace.is_empty() { Self::All } else { Self::Namespace(namespace.to_owned()) }
    }

    /// What a watch of this scope is woken by.
    pub(crate) fn interest(&self, resource: &Resource) -> Interest {
        match self {
            Self::All => Interest::All,
            Self::Namespace(namespace) => Interest::Prefix(format!("{namespace}/").into()),
            Self::Name { namespace, name } => Interest::Key(resource.key(namespace, name).into()),
            Self::Term { term, .. } => Interest::Term(term.clone()),
        }
    }

    /// Whether an object lies in the namespace of the scope; terms are not bound to one.
    pub(crate) fn admits(&self, header: &Header) -> bool {
        match self {
            Self::Term { namespace, .. } => namespace.is_empty() || *header.namespace == **namespace,
            _ => true,
        }
    }

    /// The entries of this scope in key order, from after `start`.
    pub(crate) fn entries(
        &self,
        snapshot: &Snapshot,
        resource: &Resource,
        start: Option<&[u8]>,
    ) -> Box<dyn Iterator<Item = Arc<Entry>> + Send> {
        let table = resource.table;
        let after = start.map(Bytes::copy_from_slice);
        match self {
            Self::Name { namespace, name } => {
                let entry = snapshot.get(table, &resource.key(namespace, name));
                Box::new(
                    entry
                        .into_iter()
                        .filter(move |entry| after.as_ref().is_none_or(|after| entry.key() > after)),
                )
            }
            Self::Term { term, .. } => {
                let entries = snapshot.by_term(table, term);
                Box::new(entries.filter(move |entry| after.as_ref().is_none_or(|after| entry.key() > after)))
            }
            Self::All => {
                let range = after.map_or_else(Range::all, |after| Range::all().after(after));
                Box::new(snapshot.range(table, range))
            }
            Self::Namespace(namespace) => {
                let prefix = Bytes::from(format!("{namespace}/"));
                let range = Range::prefix(prefix);
                let range = after.map_or(range.clone(), |after| range.after(after));
                Box::new(snapshot.range(table, range))
            }
        }
    }
}
