//! Deleting objects: preconditions, grace, finalizers, and what happens to dependents.

use std::sync::Arc;

use jiff::SignedDuration;
use kcore::{Status, Stored, clock::format_time};
use serde_json::{Value, json};

use crate::{
    admission::Operation,
    convert, custom,
    error::ApiResult,
    meta,
    objects::{Write, WriteError, readable},
    request::{DeleteOptions, Given, Propagation},
    schema::fields::keep,
    write::{Call, RETRIES_MAX, Written},
};

/// What a deletion did.
pub(crate) enum Deleted {
    /// The object is gone; its last state.
    Gone(Written),
    /// The object is still there and will go later; its present state.
    Later(Written),
}

/// What is looked at of every object that is deleted.
const MARKS: [&str; 4] = [
    "metadata.finalizers",
    "metadata.deletionTimestamp",
    "metadata.deletionGracePeriodSeconds",
    "spec.finalizers",
];

impl Call<'_> {
    /// Deletes one object (`registry/generic/registry.Store.Delete`).
    pub(crate) async fn delete(&self, options: &DeleteOptions) -> ApiResult<Deleted> {
        let asked = Call { given: Given::Delete(options), ..*self };
        for _ in 0..RETRIES_MAX {
            let stored =
                self.objects.get(self.resource, self.namespace, self.name).ok_or_else(|| self.not_found())?;
            readable(&stored)?;
            self.check_preconditions(options, &stored)?;
            let (old, is_whole) = match self.part(&stored) {
                Some(part) => (part, false),
                None => (self.whole(&stored).await?, true),
            };
            asked.validate(Operation::Delete, self.name, &old, Some(&old), None).await?;
            let written = if self.ends(&old, options) {
                self.remove(&stored, old, is_whole).await?
            } else {
                let old = if is_whole { old } else { self.whole(&stored).await? };
                let mut object = old.clone();
                self.mark(&mut object, options);
                if object == old {
                    return Ok(Deleted::Later(Written::Stored(stored)));
                }
                self.replace(&stored, &old, object).await?
            };
            if let Some(deleted) = written {
                return Ok(deleted);
            }
            if options.revision.is_some() {
                return Err(self.conflict());
            }
        }
        Err(self.conflict())
    }

    async fn whole(&self, stored: &Stored) -> ApiResult<Value> {
        convert::hub(self.objects, self.resource, stored).await
    }

    /// As much of the object as decides whether it goes at once, if that is known and nobody else wants to see it: the
    /// server's own admission steps don't look at what is deleted.
    fn part(&self, stored: &Stored) -> Option<Value> {
        if self.foreign_admission || self.dry_run || self.resource.def.definition().is_some() {
            return None;
        }
        let own = self.resource.def.strategy.deletion_fields()?;
        let fields: Vec<&str> = MARKS.iter().chain(own).copied().collect();
        // What can't be read so is read as a whole, which tells what is wrong.
        kcore::json::part(stored.raw(), &fields).ok()
    }

    fn check_preconditions(&self, options: &DeleteOptions, stored: &Stored) -> ApiResult<()> {
        let def = &self.resource.def;
        let fail = |what: &str, wanted: &str, found: &str| {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            Status::conflict(&def.group, &def.plural, self.name, &why)
        };
        if let Some(uid) = options.uid.as_deref().filter(|uid| **uid != *stored.header().uid) {
            return Err(fail("UID", uid, &stored.header().uid).into());
        }
        if let Some(revision) = options.revision.filter(|revision| *revision != stored.revision()) {
            return Err(fail("ResourceVersion", &revision.to_string(), &stored.revision().to_string()).into());
        }
        Ok(())
    }

    /// Whether the object may go at once: found out on the few fields that matter, as most deletions are this.
    fn ends(&self, old: &Value, options: &DeleteOptions) -> bool {
        let mut probe = json!({"metadata": {}, "spec": {}});
        for key in ["finalizers", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            keep(&mut probe["metadata"], &old["metadata"], key);
        }
        keep(&mut probe["spec"], &old["spec"], "finalizers");
        let grace = self.grace(old, options);
        self.mark_with(&mut probe, options, grace);
        meta::is_finished(&self.resource.def, &probe)
    }

    /// How long the object may take to end, in seconds.
    fn grace(&self, old: &Value, options: &DeleteOptions) -> i64 {
        let grace = self.resource.def.strategy.grace_seconds(old, options.grace_seconds);
        let marked = old["metadata"]["deletionTimestamp"].is_string();
        let old_grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
        match (grace, old_grace.filter(|_| marked)) {
            // A grace that runs can only be shortened.
            (Some(asked), Some(running)) => {
                let explicit = options.grace_seconds.is_some() || asked == 0;
                if explicit { asked.min(running) } else { running }
            }
            (asked, _) => asked.unwrap_or(0),
        }
    }

    /// Marks the object as one that is being deleted.
    fn mark(&self, object: &mut Value, options: &DeleteOptions) {
        let grace = self.grace(object, options);
        self.mark_with(object, options, grace);
        let def = &self.resource.def;
        if def.group.is_empty() && def.plural == "namespaces" {
            object["status"]["phase"] = json!("Terminating");
        }
    }

    fn mark_with(&self, object: &mut Value, options: &DeleteOptions, grace: i64) {
        let def = &self.resource.def;
        let now = self.objects.clock().now();
        set_propagation(object, options.propagation);
        let marked = object["metadata"]["deletionTimestamp"].is_string();
        let old_grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
        let meta = &mut object["metadata"];
        if !marked || old_grace.is_some_and(|running| grace < running) {
            let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
            meta["deletionTimestamp"] = json!(format_time(at));
            meta["deletionGracePeriodSeconds"] = json!(grace);
            if def.traits.generation && !marked {
                let generation = meta["generation"].as_i64().unwrap_or(0);
                meta["generation"] = json!(generation + 1);
            }
        }
        if !marked && def.group == custom::GROUP && def.plural == custom::PLURAL {
            custom::mark(object, &format_time(now));
        }
    }

    async fn replace(
        &self,
        stored: &Arc<Stored>,
        old: &Value,
        mut object: Value,
    ) -> ApiResult<Option<Deleted>> {
        if self.dry_run {
            return Ok(Some(Deleted::Later(Written::DryRun(object))));
        }
        meta::drop_revision(&mut object);
        let claims = self.resource.def.strategy.claims(old);
        let converted = self.to_store(&object).await?;
        let write = self.write(stored, Some(&converted), &claims, &claims);
        match self.objects.commit(write).await {
            Ok(written) => Ok(Some(Deleted::Later(Written::Stored(written)))),
            Err(WriteError::Store(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Removes the object. `last`: as much of it as has been read, all of it if it `is_whole`.
    async fn remove(
        &self,
        stored: &Arc<Stored>,
        mut last: Value,
        is_whole: bool,
    ) -> ApiResult<Option<Deleted>> {
        if self.dry_run {
            return Ok(Some(Deleted::Gone(Written::DryRun(last))));
        }
        let claims = self.resource.def.strategy.claims(&last);
        match self.objects.commit(self.write(stored, None, &[], &claims)).await {
            // What is stored is handed on as it is; only what had to be converted already stays converted.
            Ok(written) if !is_whole || convert::is_as_served(self.resource, stored) => {
                let last = Arc::new(stored.at_revision(written.revision()));
                Ok(Some(Deleted::Gone(Written::Stored(last))))
            }
            Ok(written) => {
                last["metadata"]["resourceVersion"] = json!(written.revision().to_string());
                Ok(Some(Deleted::Gone(Written::DryRun(last))))
            }
            Err(WriteError::Store(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn write<'b>(
        &'b self,
        stored: &'b Arc<Stored>,
        object: Option<&'b Value>,
        claims: &'b [String],
        old_claims: &'b [String],
    ) -> Write<'b> {
        Write {
            resource: self.resource,
            namespace: self.namespace,
            name: self.name,
            replaced: Some(stored),
            object,
            claims,
            old_claims,
            charges: &[],
        }
    }
}

/// Sets the finalizers that make the garbage collector orphan the dependents or delete them first. Without a wish the
/// finalizers stay as they are.
fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut kept: Vec<Value> =
        list.into_iter().filter(|item| *item != "orphan" && *item != "foregroundDeletion").collect();
    match propagation {
        Propagation::Orphan => kept.push(json!("orphan")),
        Propagation::Foreground => kept.push(json!("foregroundDeletion")),
        Propagation::Background => {}
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        if kept.is_empty() {
            meta.remove("finalizers");
        } else {
            meta.insert("finalizers".to_owned(), Value::Array(kept));
        }
    }
}
