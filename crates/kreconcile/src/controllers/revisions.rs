//! The history of a controller's object as `ControllerRevision`s: upstream's `pkg/controller/history`.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Value, json};

use crate::{
    cache::Index,
    controllers::{
        Context,
        claim::{self, Owner, controller_reference},
        replica_set::orphans_of,
    },
    informer::Informer,
    reconciler::ReconcileError,
    request::{self, DeleteHow, PatchKind, Requests},
    resource::{ResourceType, Selection},
};

/// How often another name is tried when a revision's name is taken by other contents.
const COLLISIONS_MAX: i32 = 100;
/// The longest prefix of a revision's name, so that the hash has room.
const NAME_PREFIX_BYTES_MAX: usize = 223;
/// The label that holds the hash of a revision's contents, as StatefulSets have it.
pub(crate) const HASH_LABEL: &str = "controller.kubernetes.io/hash";
const REVISIONS_BY_OWNER: &str = "revisions-by-owner";

/// Digits as letters that make no words (apimachinery's `rand.SafeEncodeString`).
pub(crate) fn safe_encode(hash: u32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// The name of a revision with these contents: FNV-1 over the JSON and the number of collisions.
fn revision_hash(data: &Value, collisions: i32) -> String {
    let json = data.to_string();
    let salt = collisions.to_string();
    let hash = json
        .bytes()
        .chain(salt.bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte));
    safe_encode(hash)
}

fn revision_name(owner: &str, hash: &str) -> String {
    format!("{}-{hash}", owner.get(..NAME_PREFIX_BYTES_MAX).unwrap_or(owner))
}

/// What a new revision is made of.
pub(crate) struct Draft<'a> {
    /// A strategic merge patch that brings the state back.
    pub(crate) data: Value,
    /// The label that the hash of the data goes under.
    pub(crate) hash_label: &'static str,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

impl Draft<'_> {
    /// The patch that puts a whole pod template in place, as StatefulSets and DaemonSets keep it.
    pub(crate) fn template(template: &Value) -> Value {
        let mut template = template.clone();
        if template.is_object() {
            template["$patch"] = Value::from("replace");
        }
        json!({"spec": {"template": template}})
    }
}

/// The pod template in a revision.
pub(crate) fn template_of(revision: &ControllerRevision) -> Value {
    let mut template = revision.data.0["spec"]["template"].clone();
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    template
}

pub(crate) fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// The revisions of all objects of one kind.
pub(crate) struct Revisions {
    pub(crate) informer: Informer<ControllerRevision>,
    resource: ResourceType,
    requests: Requests,
}

/// The latest revision, and the ones before it.
pub(crate) struct History {
    /// Sorted, the oldest first; the latest is among them unless it was just made.
    pub(crate) known: Vec<Arc<ControllerRevision>>,
    pub(crate) latest: Arc<ControllerRevision>,
    pub(crate) collisions: i32,
    /// What the latest one's write gave, if there was one.
    pub(crate) written: Option<u64>,
}

impl Revisions {
    pub(crate) fn new(context: &Context, requests: Requests) -> Self {
        let informer = context.informers().of::<ControllerRevision>(Selection::all());
        informer.add_index(Index::new(REVISIONS_BY_OWNER, |object, emit| {
            match object.header().controller() {
                Some(owner) => emit(&owner.uid),
                None => emit(&orphans_of(&object.header().namespace)),
            }
        }));
        Self { informer, resource: ResourceType::of::<ControllerRevision>(), requests }
    }

    /// Those of one owner, the oldest first. Those that match and have no owner are adopted.
    async fn list(&self, owner: &Owner<'_>) -> Result<Vec<Arc<ControllerRevision>>, ReconcileError> {
        let candidates = claim::candidates(self.informer.lister(), REVISIONS_BY_OWNER, owner);
        let owned = claim::claim_all(&self.requests, owner, &self.resource, candidates).await?;
        let mut revisions =
            owned.iter().map(|stored| stored.typed::<ControllerRevision>()).collect::<Result<Vec<_>, _>>()?;
        revisions.sort_by(|one, two| {
            let key = |revision: &ControllerRevision| {
                (revision.revision, revision.metadata.creation_timestamp.as_ref().map(|time| time.0))
            };
            key(one).cmp(&key(two)).then_with(|| name(one).cmp(name(two)))
        });
        Ok(revisions)
    }

    /// Finds or makes the revision with the contents of the draft, and numbers it as the newest.
    pub(crate) async fn bring_up_to_date(
        &self,
        owner: &Owner<'_>,
        draft: &Draft<'_>,
        collisions: i32,
    ) -> Result<History, ReconcileError> {
        let known = self.list(owner).await?;
        let next = known.last().and_then(|last| last.revision).unwrap_or_default() + 1;
        let equal = known.iter().rev().find(|revision| revision.data.0 == draft.data).cloned();
        match equal {
            Some(equal) if known.last().is_some_and(|last| last.data.0 == draft.data) => {
                let latest = known.last().cloned().unwrap_or(equal);
                Ok(History { known, latest, collisions, written: None })
            }
            Some(equal) => {
                let latest = self.renumber(&equal, next).await?;
                let written = revision_of(&latest);
                Ok(History { known, latest: Arc::new(latest), collisions, written: Some(written) })
            }
            None => {
                let mut collisions = collisions;
                let latest = self.create(owner, draft, next, &mut collisions).await?;
                let written = revision_of(&latest);
                Ok(History { known, latest: Arc::new(latest), collisions, written: Some(written) })
            }
        }
    }

    async fn renumber(
        &self,
        known: &ControllerRevision,
        number: i64,
    ) -> Result<ControllerRevision, kube::Error> {
        let patch = json!({
            "metadata": {"uid": known.metadata.uid, "resourceVersion": known.metadata.resource_version},
            "revision": number,
        });
        self.requests.patch(&self.path(known), PatchKind::Merge, &patch).await
    }

    async fn create(
        &self,
        owner: &Owner<'_>,
        draft: &Draft<'_>,
        number: i64,
        collisions: &mut i32,
    ) -> Result<ControllerRevision, ReconcileError> {
        let header = owner.header;
        let collection = self.resource.path(&header.namespace, "");
        for _ in 0..COLLISIONS_MAX {
            let hash = revision_hash(&draft.data, *collisions);
            let name = revision_name(&header.name, &hash);
            let mut labels = json!(draft.labels);
            labels[draft.hash_label] = Value::from(hash);
            let body = json!({
                "apiVersion": self.resource.api_version(),
                "kind": self.resource.kind,
                "metadata": {
                    "name": name,
                    "namespace": &*header.namespace,
                    "labels": labels,
                    "annotations": draft.annotations,
                    "ownerReferences": [controller_reference(owner.resource, header)],
                },
                "data": draft.data,
                "revision": number,
            });
            match self.requests.create(&collection, serde_json::to_vec(&body)?).await {
                Err(error) if request::is_already_exists(&error) => {
                    let path = self.resource.path(&header.namespace, &name);
                    let known: ControllerRevision = self.requests.get(&path).await?;
                    if known.data.0 == draft.data {
                        return Ok(known);
                    }
                    *collisions = collisions.saturating_add(1);
                }
                result => return Ok(result?),
            }
        }
        Err(ReconcileError::other(format!("every name for a revision of {} is taken", header.name)))
    }

    /// Deletes the first `count` of these revisions.
    pub(crate) async fn delete_oldest(
        &self,
        sorted: &[&Arc<ControllerRevision>],
        count: usize,
    ) -> Result<(), kube::Error> {
        for revision in sorted.iter().take(count) {
            let how = DeleteHow { uid: revision.metadata.uid.clone(), ..DeleteHow::default() };
            match self.requests.delete(&self.path(revision), &how).await {
                Err(error) if !request::is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, revision: &ControllerRevision) -> String {
        self.resource.path(revision.metadata.namespace.as_deref().unwrap_or_default(), name(revision))
    }
}

fn revision_of(revision: &ControllerRevision) -> u64 {
    revision.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_the_owner_and_a_hash_of_the_contents() {
        let data = json!({"spec": {"template": {"$patch": "replace", "spec": {"containers": []}}}});
        let first = revision_hash(&data, 0);
        assert!(first.bytes().all(|letter| b"bcdfghjklmnpqrstvwxz2456789".contains(&letter)), "{first}");
        assert_ne!(first, revision_hash(&data, 1));
        assert_eq!(revision_name("web", &first), format!("web-{first}"));
        assert_eq!(revision_name(&"w".repeat(250), "x").len(), NAME_PREFIX_BYTES_MAX + 2);
        // FNV-1 of "a" with 32 bits is 0x050c5d7e (the function's published test vectors).
        let hash =
            b"a".iter().fold(0x811c_9dc5_u32, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte));
        assert_eq!((hash, safe_encode(hash).len()), (0x050c_5d7e, 8));
    }

    #[test]
    fn a_template_survives_being_kept() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let revision: ControllerRevision =
            serde_json::from_value(json!({"data": Draft::template(&template), "revision": 1})).unwrap();
        assert_eq!(template_of(&revision), template);
    }
}
