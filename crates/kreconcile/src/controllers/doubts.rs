//! Writes that failed in a way that leaves open whether they were done.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ahash::RandomState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kcore::{Header, selector::LabelSelector};
use serde::Deserialize;

use crate::{
    controllers::{claim::Owner, replica_set::PODS_BY_OWNER},
    expectations::Expectations,
    informer::Lister,
    key::ObjectKey,
    request::{self, Query, Requests},
    resource::ResourceType,
};

/// Owners of whose objects a write may have been done although it failed. Nothing is decided for them by what an informer shows
/// before the server was asked: it may not show yet what was made, and one too many would be made. (Upstream takes a failure
/// for a refusal, makes one more and takes one away when it sees both.)
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<HashSet<ObjectKey, RandomState>>);

impl Doubts {
    fn keys(&self) -> MutexGuard<'_, HashSet<ObjectKey, RandomState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the owner if this failure leaves open whether the write was done; says whether it does.
    pub(crate) fn note(&self, key: &ObjectKey, error: &kube::Error) -> bool {
        let uncertain = request::is_uncertain(error);
        if uncertain {
            self.keys().insert(key.clone());
        }
        uncertain
    }

    pub(crate) fn has(&self, key: &ObjectKey) -> bool {
        self.keys().contains(key)
    }

    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.keys().remove(key);
    }

    /// Asks the server which pods an owner has, if there is a doubt about it, and puts into `expected` what `shown` has yet to show.
    ///
    /// # Errors
    /// Those of the request; the doubt stays.
    pub(crate) async fn settle(
        &self,
        key: &ObjectKey,
        owner: &Owner<'_>,
        pods: &ResourceType,
        requests: &Requests,
        (shown, expected): (&Lister, &Expectations),
    ) -> Result<(), kube::Error> {
        if !self.has(key) {
            return Ok(());
        }
        let live = live_objects(requests, pods, &key.namespace, owner.selector).await?;
        let own: Vec<&Live> = live.iter().filter(|pod| pod.is_of(&owner.header.uid)).collect();
        for pod in &own {
            if pod.metadata.deletion_timestamp.is_none() {
                expected.kept(key, pod.uid());
            }
        }
        let there: HashSet<&str> = own.iter().map(|pod| pod.uid()).collect();
        for known in shown.by_index(PODS_BY_OWNER, &owner.header.uid) {
            let Header { namespace, name, uid, labels, .. } = known.header();
            if owner.selector.matches(labels) && !there.contains(&**uid) {
                expected.deleted(key, ObjectKey::new(&**namespace, &**name), uid);
            }
        }
        expected.wrote(key, own.iter().map(|pod| pod.revision()).max().unwrap_or_default());
        self.forget(key);
        Ok(())
    }
}

/// What of an object of the server is read to compare it with what is known.
#[derive(Deserialize)]
pub(crate) struct Live {
    pub(crate) metadata: meta::ObjectMeta,
}

impl Live {
    pub(crate) fn revision(&self) -> u64 {
        let revision = self.metadata.resource_version.as_deref();
        revision.and_then(|revision| revision.parse().ok()).unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn is_of(&self, owner: &str) -> bool {
        let mut owners = self.metadata.owner_references.iter().flatten();
        owners.any(|one| one.controller == Some(true) && one.uid == owner)
    }
}

/// The objects of a kind in a namespace that a selector matches, as the server has them now.
pub(crate) async fn live_objects(
    requests: &Requests,
    resource: &ResourceType,
    namespace: &str,
    selector: &LabelSelector,
) -> Result<Vec<Live>, kube::Error> {
    #[derive(Deserialize)]
    struct List {
        items: Vec<Live>,
    }
    let mut query = Query::new(resource.path(namespace, ""));
    query.add_unless_empty("labelSelector", &selector.to_string());
    Ok(requests.get::<List>(&query.finish()).await?.items)
}
