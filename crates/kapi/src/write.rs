//! Creating and changing objects: what happens between a decoded body and a commit.

mod chain;
mod unchanged;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
};

use kcore::{Status, Stored, clock::format_time};
use serde_json::{Value, json};

use self::unchanged::{keep_all_but_status, same_specification};
use crate::{
    admission::{Admission, Bill, Charges, Notes, Operation},
    authn::UserInfo,
    convert,
    error::{ApiError, ApiResult, FieldError, invalid},
    meta,
    objects::{self, Objects, Write, WriteError},
    registry::Resource,
    request::Given,
    requester,
    server::Inner,
};

/// How often a write that lost a race is tried again, unless the caller named the revision it replaces.
pub(crate) const RETRIES_MAX: usize = 16;

/// One request that writes.
pub(crate) struct Call<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) admission: &'a [Arc<dyn Admission>],
    /// Whether the chain has steps beside the server's own.
    pub(crate) foreign_admission: bool,
    pub(crate) user: &'a UserInfo,
    pub(crate) resource: &'a Resource,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) dry_run: bool,
    pub(crate) given: Given<'a>,
    /// Who comes to own the fields that are written; `None` leaves `managedFields` as they are.
    pub(crate) manager: Option<&'a str>,
    /// What the caller is told beside the answer.
    pub(crate) warnings: Option<&'a Warnings>,
}

/// Collects what a caller should know although the request succeeds. A write that is tried again says it again: the last
/// attempt counts.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    own: Mutex<Vec<String>>,
    /// What the steps of admission say.
    pub(crate) notes: Notes,
}

impl Warnings {
    /// Puts these in place of what was said before.
    pub(crate) fn set(&self, warnings: Vec<String>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = warnings;
    }

    /// What has been said.
    pub(crate) fn take(&self) -> Vec<String> {
        let mut all = std::mem::take(&mut *self.own.lock().unwrap_or_else(PoisonError::into_inner));
        all.extend(self.notes.take_warnings());
        all
    }
}

/// What came of a new object.
enum New {
    Is(Written),
    /// The name is taken.
    Taken,
    /// Another object holds this claim.
    Claimed(String),
}

/// What a write answers with.
#[derive(Debug)]
pub(crate) enum Written {
    /// The object as it is stored now.
    Stored(Arc<Stored>),
    /// The object as it would be stored, in the form that it is checked in.
    DryRun(Value),
}

impl Written {
    /// What is not stored, or not any more.
    fn unstored(mut object: Value) -> Self {
        kcore::object::open(&mut object);
        Self::DryRun(object)
    }

    /// The object's uid.
    pub(crate) fn uid(&self) -> &str {
        match self {
            Self::Stored(stored) => &stored.header().uid,
            Self::DryRun(value) => meta::text(value, "uid"),
        }
    }

    /// The object in the version of the request.
    pub(crate) async fn served(&self, objects: &Objects, resource: &Resource) -> ApiResult<Value> {
        match self {
            Self::Stored(stored) => convert::served(objects, resource, stored).await,
            Self::DryRun(value) => Ok(in_version(resource, value.clone())),
        }
    }

    /// The object in the form that it is checked in, with its resource version.
    pub(crate) async fn value(&self, call: &Call<'_>) -> ApiResult<Value> {
        match self {
            Self::Stored(stored) => convert::hub(call.objects, call.resource, stored).await,
            Self::DryRun(value) => Ok(value.clone()),
        }
    }
}

impl<'a> Call<'a> {
    /// A write of the server itself, past admission.
    pub(crate) fn internal(
        server: &'a Inner,
        user: &'a UserInfo,
        resource: &'a Resource,
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> Self {
        Self {
            objects: &server.objects,
            admission: &[],
            foreign_admission: false,
            user,
            resource,
            subresource,
            namespace,
            name,
            dry_run: false,
            given: Given::Nothing,
            manager: None,
            warnings: None,
        }
    }

    pub(crate) fn warn(&self, make: impl FnOnce() -> Vec<String>) {
        if let Some(warnings) = self.warnings {
            warnings.set(make());
        }
    }

    /// Brings an object that admission or a patch may have changed back into canonical form, with all defaults.
    pub(crate) fn normalize(&self, object: &mut Value) -> ApiResult<()> {
        let def = &self.resource.def;
        convert::canonical(self.objects, self.resource, object).map(drop).map_err(|error| {
            let (kind, version) = (&def.kind, def.storage_version());
            Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
            ))
            .into()
        })
    }

    /// [`normalize`](Self::normalize) after admission, if it had a step that the server doesn't bring itself: those leave
    /// objects in canonical form.
    fn recheck(&self, object: &mut Value) -> ApiResult<()> {
        let converted = !convert::is_identity(self.resource);
        if self.foreign_admission || converted { self.normalize(object) } else { Ok(()) }
    }

    fn refuse(&self, name: &str, errors: &[FieldError]) -> ApiResult<()> {
        if errors.is_empty() {
            return Ok(());
        }
        Err(invalid(&self.resource.def.group, &self.resource.def.kind, name, errors))
    }

    /// Creates an object that has been decoded and converted to the storage version.
    pub(crate) async fn create(&self, mut object: Value) -> ApiResult<Written> {
        let def = &self.resource.def;
        let strategy = &def.strategy;
        meta::prepare_namespace(def, self.namespace, &mut object)?;
        let given = meta::text(&object, "name").to_owned();
        // The body has been checked when it was decoded; what is left are defaults that depend on other fields.
        strategy.default(&mut object);
        self.track(&Value::Null, &mut object);
        self.admit(Operation::Create, &given, &mut object, None).await?;
        self.recheck(&mut object)?;
        let prefix = meta::text(&object, "generateName").to_owned();
        // What preparing changes is changed once: a generated name that is taken starts over from here.
        let admitted = if given.is_empty() && !prefix.is_empty() { object.clone() } else { Value::Null };
        for attempt in 0..RETRIES_MAX {
            meta::prepare_create(def, &mut object, &**self.objects.clock());
            let name = meta::text(&object, "name").to_owned();
            strategy.prepare_create(&mut object);
            let asked = strategy.claims(&object);
            // Only kinds that are given something can lose a race for it.
            let allocated_anew = if strategy.allocates() { object.clone() } else { Value::Null };
            requester::stamp(def, &mut object, self.user);
            if let Err(error) = strategy.allocate(&mut object, None, self.objects) {
                // What can't be allocated is told alone.
                self.refuse(&name, &[error])?;
            }
            let mut errors = meta::validate(def, &object);
            strategy.validate_create(&object, &mut errors);
            self.refuse(&name, &errors)?;
            self.warn(|| strategy.warnings(&object, None));
            convert::omit_empty(self.objects, self.resource, &mut object);
            let claims = strategy.claims(&object);
            match self.commit_new(&name, &object, &claims).await? {
                New::Is(written) => return Ok(written),
                // KEP-4420: a generated name that is taken is generated anew, up to eight times.
                New::Taken if given.is_empty() && !prefix.is_empty() && attempt < 8 => {
                    object.clone_from(&admitted);
                }
                New::Taken => return Err(Status::already_exists(&def.group, &def.plural, &name).into()),
                New::Claimed(claim) => {
                    // Somebody was faster. What the caller asked for by name stays taken, what we picked is picked anew.
                    if asked.contains(&claim) {
                        return Err(self.claimed(&name, &claim));
                    }
                    object = allocated_anew;
                }
            }
        }
        Err(Status::conflict(
            &def.group,
            &def.plural,
            &given,
            "the server could not find a free name in time; please try again",
        )
        .into())
    }

    /// The last look of admission at a new object, and its commit; both again when somebody else has changed a quota that the
    /// object is charged to.
    async fn commit_new(&self, name: &str, object: &Value, claims: &[String]) -> ApiResult<New> {
        let bill = Bill::default();
        for _ in 0..RETRIES_MAX {
            self.validate(Operation::Create, name, object, None, Some(&bill)).await?;
            if self.dry_run {
                let is_there = self.objects.get(self.resource, self.namespace, name).is_some();
                return Ok(if is_there { New::Taken } else { New::Is(Written::DryRun(object.clone())) });
            }
            let converted = self.to_store(object).await?;
            let charges = bill.take();
            let write = Write {
                resource: self.resource,
                namespace: self.namespace,
                name,
                replaced: None,
                object: Some(&converted),
                claims,
                old_claims: &[],
                charges: &charges.all,
            };
            match self.objects.commit(write).await {
                Ok(stored) => return Ok(New::Is(Written::Stored(stored))),
                Err(WriteError::Conflict) => return Ok(New::Taken),
                Err(WriteError::Claimed(claim)) => return Ok(New::Claimed(claim)),
                Err(WriteError::Charged) => {}
                Err(WriteError::Store(error)) => return Err(error),
            }
        }
        Err(self.conflict())
    }

    /// The object in the form that is stored; most are in it.
    pub(crate) async fn to_store<'b>(&self, object: &'b Value) -> ApiResult<Cow<'b, Value>> {
        if self.resource.def.definition().is_none() {
            return Ok(Cow::Borrowed(object));
        }
        convert::to_store(self.objects, self.resource, object.clone()).await.map(Cow::Owned)
    }

    fn claimed(&self, name: &str, claim: &str) -> ApiError {
        let error = match claim.split_once('/') {
            Some(("clusterip", address)) => {
                let why = format!("failed to allocate IP {address}: provided IP is already allocated");
                FieldError::invalid("spec.clusterIPs", json!([address]), why)
            }
            Some(("nodeport", port)) => {
                FieldError::invalid("spec.ports[0].nodePort", port, "provided port is already allocated")
            }
            _ => FieldError::invalid_text("spec", claim, "is already allocated"),
        };
        invalid(&self.resource.def.group, &self.resource.def.kind, name, &[error])
    }

    pub(crate) fn not_found(&self) -> ApiError {
        let def = &self.resource.def;
        Status::not_found(&def.group, &def.plural, self.name).into()
    }

    pub(crate) fn conflict(&self) -> ApiError {
        let def = &self.resource.def;
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Status::conflict(&def.group, &def.plural, self.name, why).into()
    }

    /// Changes an object: reads it, lets `change` make the new state (both in the storage version; sets of owned fields may be
    /// texts, see [`Stored::sealed`]), and commits; again if somebody was faster, unless the new state names its revision.
    pub(crate) async fn update(
        &self,
        change: &(dyn Fn(&Value) -> ApiResult<Value> + Sync),
    ) -> ApiResult<Written> {
        self.update_as(None, change).await
    }

    /// The object as it is, stored and in the form that it is changed in.
    pub(crate) async fn read(&self) -> ApiResult<(Arc<Stored>, Value)> {
        let stored =
            self.objects.get(self.resource, self.namespace, self.name).ok_or_else(|| self.not_found())?;
        objects::readable(&stored)?;
        let object = convert::hub(self.objects, self.resource, &stored).await?;
        Ok((stored, object))
    }

    /// The object as it is, its sets of owned fields as texts where nothing looks into them.
    async fn read_sealed(&self) -> ApiResult<(Arc<Stored>, Value)> {
        if self.foreign_admission || self.subresource == "scale" || !convert::is_identity(self.resource) {
            return self.read().await;
        }
        let stored =
            self.objects.get(self.resource, self.namespace, self.name).ok_or_else(|| self.not_found())?;
        objects::readable(&stored)?;
        let object = stored.sealed().map_err(Status::internal)?;
        Ok((stored, object))
    }

    /// [`update`](Self::update) of an object that has been read already, with all of it open.
    pub(crate) async fn update_from(
        &self,
        read: (Arc<Stored>, Value),
        change: &(dyn Fn(&Value) -> ApiResult<Value> + Sync),
    ) -> ApiResult<Written> {
        self.update_as(Some(read), change).await
    }

    async fn update_as(
        &self,
        mut read: Option<(Arc<Stored>, Value)>,
        change: &(dyn Fn(&Value) -> ApiResult<Value> + Sync),
    ) -> ApiResult<Written> {
        let is_open = read.is_some();
        let mut asked_revision = None;
        for _ in 0..RETRIES_MAX {
            let (stored, old) = match read.take() {
                Some(read) => read,
                None if is_open => self.read().await?,
                None => self.read_sealed().await?,
            };
            let mut object = change(&old)?;
            // As for creation: defaults are owned, too, and have an owner before and after.
            self.resource.def.strategy.default(&mut object);
            self.track(&old, &mut object);
            let wanted = meta::text(&object, "resourceVersion").to_owned();
            let current = stored.revision().to_string();
            match asked_revision.as_ref() {
                // What the change says about the revision must hold for the state it was first computed from.
                None if !wanted.is_empty() && wanted != current => return Err(self.conflict()),
                None => asked_revision = Some(wanted.clone()),
                Some(asked) if !asked.is_empty() && wanted == *asked && wanted != current => {
                    return Err(self.conflict());
                }
                Some(_) => {}
            }
            if wanted.is_empty() && self.resource.def.traits.needs_revision {
                let error =
                    FieldError::invalid("metadata.resourceVersion", "0x0", "must be specified for an update");
                return Err(invalid(&self.resource.def.group, &self.resource.def.kind, self.name, &[error]));
            }
            let charges = self.finish_update(&old, &mut object).await?;
            if let Some(written) = self.commit_update(&stored, &old, object, charges).await? {
                return Ok(written);
            }
        }
        Err(self.conflict())
    }

    /// Everything between the caller's new state and the commit.
    async fn finish_update(&self, old: &Value, object: &mut Value) -> ApiResult<Charges> {
        let def = &self.resource.def;
        let strategy = &def.strategy;
        meta::prepare_namespace(def, self.namespace, object)?;
        meta::keep_system_fields(def, self.name, object, old)?;
        self.admit(Operation::Update, self.name, object, Some(old)).await?;
        self.recheck(object)?;
        if self.foreign_admission {
            meta::keep_system_fields(def, self.name, object, old)?;
        }
        if self.subresource == "status" {
            keep_all_but_status(object, old);
        } else if def.definition().is_none()
            && self.resource.has_subresource("status")
            && self.subresource.is_empty()
        {
            crate::schema::fields::keep(object, old, "status");
        }
        let mut errors = meta::validate_update(def, object, old);
        match self.subresource {
            "" => {
                strategy.prepare_update(object, old);
                if let Err(error) = strategy.allocate(object, Some(old), self.objects) {
                    self.refuse(self.name, &[error])?;
                }
            }
            "status" => strategy.prepare_status(object, old),
            "scale" | "binding" => {}
            other => strategy.prepare_subresource(other, object, old),
        }
        requester::time(def, object, old, &timestamp(self.objects));
        errors.extend(meta::validate(def, object));
        match self.subresource {
            "" | "scale" => strategy.validate_change(object, old, &mut errors),
            "status" => strategy.validate_status(object, old, &mut errors),
            other if strategy.validate_subresource(other, object, old, &mut errors) => {}
            _ => strategy.validate_change(object, old, &mut errors),
        }
        self.refuse(self.name, &errors)?;
        self.warn(|| match self.subresource {
            "" | "scale" => strategy.warnings(object, Some(old)),
            other => strategy.subresource_warnings(other, object, old),
        });
        convert::omit_empty(self.objects, self.resource, object);
        let counts_status = def.definition().is_some() && !self.resource.has_subresource("status");
        if def.traits.generation
            && self.subresource != "status"
            && !same_specification(object, old, counts_status)
        {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
        let bill = Bill::default();
        self.validate(Operation::Update, self.name, object, Some(old), Some(&bill)).await?;
        Ok(bill.take())
    }

    /// Commits a changed object, or deletes it when this change lifted its last finalizer. `None`: somebody was faster.
    async fn commit_update(
        &self,
        stored: &Arc<Stored>,
        old: &Value,
        mut object: Value,
        charges: Charges,
    ) -> ApiResult<Option<Written>> {
        let old_version = old["metadata"]["resourceVersion"].clone();
        object["metadata"]["resourceVersion"] = old_version;
        kschema::apply::keep_times(old, &mut object);
        let ends =
            meta::is_finished(&self.resource.def, &object) && !meta::is_finished(&self.resource.def, old);
        if object == *old && !ends && !self.objects.is_stale(self.resource, stored) {
            return Ok(Some(Written::Stored(Arc::clone(stored))));
        }
        if self.dry_run {
            return Ok(Some(Written::unstored(object)));
        }
        meta::drop_revision(&mut object);
        let strategy = &self.resource.def.strategy;
        let (claims, old_claims) = (strategy.claims(&object), strategy.claims(old));
        let converted = if ends { Cow::Borrowed(&object) } else { self.to_store(&object).await? };
        let write = Write {
            resource: self.resource,
            namespace: self.namespace,
            name: self.name,
            replaced: Some(stored),
            object: if ends { None } else { Some(&converted) },
            claims: if ends { &[] } else { &claims },
            old_claims: &old_claims,
            charges: &charges.all,
        };
        match self.objects.commit(write).await {
            Ok(written) if ends => {
                drop(converted);
                // The answer is the object in its last state, with the revision of its end.
                object["metadata"]["resourceVersion"] = json!(written.revision().to_string());
                Ok(Some(Written::unstored(object)))
            }
            Ok(written) => Ok(Some(Written::Stored(written))),
            Err(WriteError::Conflict | WriteError::Charged) => Ok(None),
            Err(WriteError::Claimed(claim)) => Err(self.claimed(self.name, &claim)),
            Err(WriteError::Store(error)) => Err(error),
        }
    }
}

/// An object in the form that it is checked in, in the version that was asked for.
pub(crate) fn in_version(resource: &Resource, mut value: Value) -> Value {
    convert::from_hub(resource, &mut value);
    value
}

/// Now, as a timestamp.
pub(crate) fn timestamp(objects: &Objects) -> String {
    format_time(objects.clock().now())
}
