//! Who owns what: adopting what a selector matches and releasing what it no longer does.

use std::sync::Arc;

use kcore::{Header, Stored, selector::LabelSelector};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    controllers::replica_set::orphans_of,
    informer::{Informer, Lister},
    key::ObjectKey,
    reconciler::ReconcileError,
    request::{self, PatchKind, Requests, Written},
    resource::ResourceType,
    trigger::MapTo,
};

/// The controlling object, as far as claiming goes.
pub(crate) struct Owner<'a> {
    pub(crate) resource: &'a ResourceType,
    pub(crate) header: &'a Header,
    pub(crate) selector: &'a LabelSelector,
}

/// What to do with an object that may belong to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It belongs to the owner.
    Owned,
    /// It belongs to nobody and matches: take it.
    Adopt,
    /// It belongs to the owner but does not match: let it go.
    Release,
    /// It is none of the owner's business.
    Ignore,
}

/// The rule of upstream's `BaseControllerRefManager.ClaimObject`.
pub(crate) fn claim(owner: &Owner<'_>, object: &Header) -> Claim {
    let matches = owner.selector.matches(&object.labels);
    let owner_goes = owner.header.deletion.is_some();
    match object.controller() {
        Some(controller) if controller.uid != owner.header.uid => Claim::Ignore,
        Some(_) if matches => Claim::Owned,
        Some(_) if owner_goes => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_goes || !matches || object.deletion.is_some() => Claim::Ignore,
        None if owner.header.namespace != object.namespace => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Names the controller of an object that has changed; of one that has none and is new, or new to having none, or has new
/// labels, those that want it by their selector.
pub(crate) fn owners<K>(informer: &Informer<K>, selector: fn(&K) -> Option<LabelSelector>) -> MapTo
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    K::Scope: 'static,
{
    let (informer, resource) = (informer.clone(), ResourceType::of::<K>());
    MapTo::Keys(Arc::new(move |change, keys| {
        MapTo::Controller(resource.clone()).keys(change, keys);
        let Some(object) = change.new.as_deref().map(Stored::header) else { return };
        let known = change.old.as_deref().map(Stored::header);
        let same = known.is_some_and(|old| old.controller().is_none() && old.labels == object.labels);
        if object.controller().is_some() || object.deletion.is_some() || same {
            return;
        }
        for owner in informer.lister().in_namespace(&object.namespace) {
            let wants = owner.typed::<K>().ok().and_then(|typed| selector(&typed));
            if wants.is_some_and(|selector| !selector.is_empty() && selector.matches(&object.labels)) {
                keys.push(ObjectKey::of(owner.header()));
            }
        }
    }))
}

/// The entry of `ownerReferences` that makes `owner` the managing controller.
pub(crate) fn controller_reference(resource: &ResourceType, owner: &Header) -> Value {
    json!({
        "apiVersion": resource.api_version(),
        "kind": resource.kind,
        "name": &*owner.name,
        "uid": &*owner.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// What an owner may claim, by an index over the controllers' uids that has objects without one under [`orphans_of`]: what
/// is its own, and what matches and is nobody's.
pub(crate) fn candidates(lister: &Lister, index: &str, owner: &Owner<'_>) -> Vec<Arc<Stored>> {
    let mut candidates = lister.by_index(index, &owner.header.uid);
    let orphans = lister.by_index(index, &orphans_of(&owner.header.namespace));
    candidates.extend(orphans.into_iter().filter(|object| owner.selector.matches(&object.header().labels)));
    candidates
}

/// Claims the objects and gives those that belong to the owner. What is adopted counts; its stale state is given.
pub(crate) async fn claim_all(
    requests: &Requests,
    owner: &Owner<'_>,
    objects: &ResourceType,
    candidates: Vec<Arc<Stored>>,
) -> Result<Vec<Arc<Stored>>, ReconcileError> {
    let (mut owned, mut may_adopt, mut failure) = (Vec::with_capacity(candidates.len()), None, None);
    for object in candidates {
        let result = match claim(owner, object.header()) {
            Claim::Owned => {
                owned.push(object);
                continue;
            }
            Claim::Ignore => continue,
            Claim::Release => release(requests, owner, objects, &object).await,
            Claim::Adopt => {
                if may_adopt.is_none() {
                    may_adopt = Some(is_alive(requests, owner).await?);
                }
                if may_adopt != Some(true) {
                    continue;
                }
                adopt(requests, owner, objects, &object).await
            }
        };
        match result {
            Ok(true) => owned.push(object),
            Ok(false) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(owned), |error| Err(error.into()))
}

/// Asks the server itself: an owner that is being deleted must not adopt (kubernetes#42639).
async fn is_alive(requests: &Requests, owner: &Owner<'_>) -> Result<bool, kube::Error> {
    let path = owner.resource.path(&owner.header.namespace, &owner.header.name);
    match requests.get::<Value>(&path).await {
        Ok(fresh) => {
            let metadata = &fresh["metadata"];
            Ok(metadata["uid"] == *owner.header.uid && metadata["deletionTimestamp"].is_null())
        }
        Err(error) if request::is_not_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn adopt(
    requests: &Requests,
    owner: &Owner<'_>,
    objects: &ResourceType,
    object: &Stored,
) -> Result<bool, kube::Error> {
    let mut owners = references(object);
    owners.push(controller_reference(owner.resource, owner.header));
    write_references(requests, objects, object, owners).await
}

async fn release(
    requests: &Requests,
    owner: &Owner<'_>,
    objects: &ResourceType,
    object: &Stored,
) -> Result<bool, kube::Error> {
    let mut owners = references(object);
    owners.retain(|reference| reference["uid"] != *owner.header.uid);
    write_references(requests, objects, object, owners).await?;
    Ok(false)
}

fn references(object: &Stored) -> Vec<Value> {
    let reference = |owner: &kcore::OwnerRef| {
        let mut value = json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid});
        if let Some(controller) = owner.controller {
            value["controller"] = controller.into();
        }
        if let Some(block) = owner.block_owner_deletion {
            value["blockOwnerDeletion"] = block.into();
        }
        value
    };
    object.header().owners.iter().map(reference).collect()
}

/// Writes the owners of exactly this revision of the object; `false` when it is gone.
async fn write_references(
    requests: &Requests,
    objects: &ResourceType,
    object: &Stored,
    owners: Vec<Value>,
) -> Result<bool, kube::Error> {
    let header = object.header();
    let owners = if owners.is_empty() { Value::Null } else { Value::Array(owners) };
    let patch = json!({"metadata": {
        "uid": &*header.uid,
        "resourceVersion": object.revision().to_string(),
        "ownerReferences": owners,
    }});
    let path = objects.path(&header.namespace, &header.name);
    match requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
        Ok(_) => Ok(true),
        Err(error) if request::is_not_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use kcore::OwnerRef;

    use super::*;

    fn header(uid: &str, labels: &[(&str, &str)], controller: Option<&str>, deleted: bool) -> Header {
        let owner = |uid: &str| OwnerRef {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        Header {
            namespace: "n".into(),
            uid: uid.into(),
            labels: labels.iter().map(|(key, value)| (*key, *value)).collect(),
            owners: controller.map(owner).into_iter().collect(),
            deletion: deleted.then(|| "t".into()),
            ..Header::default()
        }
    }

    #[test]
    fn objects_are_claimed_by_selector_and_reference() {
        let selector = LabelSelector::parse("app=web").unwrap();
        let resource = ResourceType::of::<k8s_openapi::api::apps::v1::ReplicaSet>();
        let (web, other): (&[_], &[_]) = (&[("app", "web")], &[("app", "other")]);
        let cases = [
            (web, Some("me"), false, false, Claim::Owned),
            (web, Some("me"), true, false, Claim::Owned),
            (other, Some("me"), false, false, Claim::Release),
            (other, Some("me"), false, true, Claim::Ignore),
            (web, Some("you"), false, false, Claim::Ignore),
            (web, None, false, false, Claim::Adopt),
            (web, None, true, false, Claim::Ignore),
            (web, None, false, true, Claim::Ignore),
            (other, None, false, false, Claim::Ignore),
        ];
        for (labels, controller, object_goes, owner_goes, expected) in cases {
            let owner = header("me", &[], None, owner_goes);
            let owner = Owner { resource: &resource, header: &owner, selector: &selector };
            let object = header("object", labels, controller, object_goes);
            let seen = claim(&owner, &object);
            assert_eq!(seen, expected, "{labels:?} {controller:?} {object_goes} {owner_goes}");
        }
    }
}
