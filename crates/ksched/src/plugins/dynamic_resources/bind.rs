//! Writing what was booked (upstream's `bindClaim`), and waiting until devices are ready.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::{Pod, PodExtendedResourceClaimStatus},
        resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    metrics::{Family, Label},
    plugin::Binding,
    plugins::dynamic_resources::{
        claims,
        conditions::{self, Readiness},
        extended::{self, Mappings},
        repair::{deallocate, discard},
    },
    snapshot::Snapshot,
};

/// Stands on claims that a scheduler has allocated; who deallocates them removes it.
pub(super) const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a write is tried again when somebody else was faster (`retry.DefaultRetry`).
pub(super) const CONFLICTS_MAX: usize = 5;

/// The claims of a pod, with what is to be written into those that have no devices yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Booked {
    claims: Vec<(Arc<ResourceClaim>, Option<AllocationResult>)>,
    /// Which container gets what of the claim for extended resources, which is the last one then.
    mappings: Mappings,
}

impl Booked {
    /// Adds the claim for extended resources.
    pub(super) fn extend(
        &mut self,
        claim: &Arc<ResourceClaim>,
        allocation: AllocationResult,
        mappings: &Mappings,
    ) {
        self.push(Arc::clone(claim), Some(allocation));
        self.mappings.clone_from(mappings);
    }

    pub(super) fn push(&mut self, claim: Arc<ResourceClaim>, allocation: Option<AllocationResult>) {
        self.claims.push((claim, allocation));
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = &Arc<ResourceClaim>> {
        self.claims.iter().map(|(claim, _)| claim)
    }

    /// What is to be written.
    pub(super) fn allocations(&self) -> impl Iterator<Item = (&Arc<ResourceClaim>, &AllocationResult)> {
        self.claims.iter().filter_map(|(claim, allocation)| Some((claim, allocation.as_ref()?)))
    }
}

/// Why a pod does not get its devices; worded as upstream's.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    #[error("{what} claim {claim}: {source}")]
    Api { what: &'static str, claim: String, source: Box<kube::Error> },
    #[error("claim {0} got deleted in the meantime")]
    Deleted(String),
    #[error("claim {0} got allocated elsewhere in the meantime")]
    Allocated(String),
    #[error("claim {0} got deallocated elsewhere in the meantime")]
    Deallocated(String),
    #[error("the scheduler has stopped")]
    Stopped,
    #[error("device binding timeout: claim={0}")]
    Late(String),
    #[error("{0}")]
    Failed(String),
}

fn label(claim: &ResourceClaim) -> String {
    let (namespace, name) = claims::key(claim);
    format!("{namespace}/{name}")
}

/// Writes what was booked, and waits until the scheduler has seen it and the devices are ready.
pub(super) async fn bind(binding: Binding<'_>, booked: &Booked, timeout: Duration) -> Result<(), ClaimError> {
    let mut written = Vec::new();
    for (claim, allocation) in &booked.claims {
        if extended::is_in_memory(claim) {
            written.push(make(binding, claim, allocation.as_ref(), &booked.mappings).await?);
        } else if !claims::is_reserved(claim.status.as_ref(), &binding.pod.uid) {
            let claim = write_claim(binding, claim, allocation.as_ref()).await?;
            see(binding, &claim).await?;
            written.push(claim);
        } else {
            written.push(ResourceClaim::clone(claim));
        }
    }
    if !written.iter().any(conditions::has_any) {
        return Ok(());
    }
    let (since, mut waited) = (Instant::now(), Ok(()));
    for claim in written.iter().filter(|claim| conditions::has_any(claim)) {
        waited = waited.and(wait(binding, claim, timeout).await);
        if waited.is_err() {
            break;
        }
    }
    let status = match &waited {
        Ok(()) => "success",
        Err(ClaimError::Late(_)) => "timeout",
        Err(ClaimError::Failed(_)) => "failure",
        Err(_) => "error",
    };
    let labels = |driver: &str| -> [Label; 3] {
        [(&binding.pod.scheduler_name).into(), (&Arc::<str>::from(driver)).into(), status.into()]
    };
    for result in written.iter().flat_map(conditions::results) {
        let took = since.elapsed().as_secs_f64();
        binding.metrics.observe(Family::ConditionsWait, labels(&result.driver), took);
        if conditions::waits(result) {
            binding.metrics.add(Family::ConditionsAllocations, labels(&result.driver), 1);
        }
    }
    waited
}

/// Creates the claim for extended resources, and tells the pod what its containers have of it. What is not finished is
/// deleted again; what can't be is found by the pod's next try.
async fn make(
    binding: Binding<'_>,
    claim: &ResourceClaim,
    allocation: Option<&AllocationResult>,
    mappings: &Mappings,
) -> Result<ResourceClaim, ClaimError> {
    let (namespace, _) = claims::key(claim);
    let api = Api::<ResourceClaim>::namespaced(Client::clone(binding.client), namespace);
    let pod = format!("{namespace}/{}", binding.pod.name);
    let created = api.create(&PostParams::default(), &extended::to_create(claim)).await;
    let status = if created.is_ok() { "success" } else { "failure" };
    binding.metrics.add(Family::ClaimCreates, [status.into()], 1);
    let created =
        created.map_err(|error| failed("create", &format!("for extended resources {pod}"), error))?;
    let finish = async {
        let claim = write_claim(binding, &created, allocation).await?;
        see(binding, &claim).await?;
        let told = PodExtendedResourceClaimStatus {
            request_mappings: mappings.clone(),
            resource_claim_name: claims::key(&claim).1.to_owned(),
        };
        // The uid keeps the patch from hitting another pod of the same name.
        let patch = Patch::Merge(json!({
            "metadata": {"uid": &*binding.pod.uid},
            "status": {"extendedResourceClaimStatus": told},
        }));
        let pods = Api::<Pod>::namespaced(Client::clone(binding.client), namespace);
        let patched = pods.patch_status(&binding.pod.name, &PatchParams::default(), &patch).await;
        patched.map_err(|error| failed("tell the pod of", &label(&claim), error))?;
        Ok(claim)
    };
    match finish.await {
        Err(error) => {
            if let Err(left) = discard(binding.client, &created).await {
                tracing::warn!(error = %left, claim = label(&created), "a claim is left behind");
            }
            Err(error)
        }
        made => made,
    }
}

async fn write_claim(
    binding: Binding<'_>,
    claim: &ResourceClaim,
    allocation: Option<&AllocationResult>,
) -> Result<ResourceClaim, ClaimError> {
    let (namespace, name) = claims::key(claim);
    let api = Api::<ResourceClaim>::namespaced(Client::clone(binding.client), namespace);
    let mut claim = claim.clone();
    let mut conflicts = 0;
    loop {
        match write_once(binding, &api, claim, allocation).await {
            Err(ClaimError::Api { source, .. }) if is_conflict(&source) && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                let read = api.get(name).await;
                claim = read.map_err(|error| failed("get updated", &label_of(namespace, name), error))?;
            }
            done => return done,
        }
    }
}

fn label_of(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn failed(what: &'static str, claim: &str, error: kube::Error) -> ClaimError {
    ClaimError::Api { what, claim: claim.to_owned(), source: Box::new(error) }
}

pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

async fn write_once(
    binding: Binding<'_>,
    api: &Api<ResourceClaim>,
    mut claim: ResourceClaim,
    allocation: Option<&AllocationResult>,
) -> Result<ResourceClaim, ClaimError> {
    let (label, parameters) = (label(&claim), PostParams::default());
    let name = claims::key(&claim).1.to_owned();
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(ClaimError::Deleted(label));
    }
    let known = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    match (allocation, known) {
        (Some(_), None) => {
            let finalizers = claim.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|known| known == FINALIZER) {
                // A write of the status leaves it out.
                finalizers.push(FINALIZER.to_owned());
                let written = api.replace(&name, &parameters, &claim).await;
                claim = written.map_err(|error| failed("add finalizer to", &label, error))?;
            }
        }
        // Another pod of the gang has written it.
        (Some(allocation), Some(known)) if known.devices == allocation.devices => {}
        (Some(_), Some(_)) => return Err(ClaimError::Allocated(label)),
        (None, Some(_)) => {}
        (None, None) => return Err(ClaimError::Deallocated(label)),
    }
    let status = claim.status.get_or_insert_default();
    if let (None, Some(allocation)) = (&status.allocation, allocation) {
        status.allocation = Some(allocation.clone());
    }
    if let Some(allocation) = &mut status.allocation {
        allocation.allocation_timestamp.get_or_insert_with(|| Time(binding.clock.now()));
    }
    if !claims::is_reserved(Some(status), &binding.pod.uid) {
        status.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: binding.pod.name.to_string(),
            uid: binding.pod.uid.to_string(),
        });
    }
    let what = if allocation.is_some() { "add allocation and reservation to" } else { "add reservation to" };
    api.replace_status(&name, &parameters, &claim).await.map_err(|error| failed(what, &label, error))
}

fn revision(claim: &ResourceClaim) -> u64 {
    let text = claim.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Waits until the scheduler has seen what was written: from then on the claim itself says what it has.
async fn see(binding: Binding<'_>, claim: &ResourceClaim) -> Result<(), ClaimError> {
    let (namespace, name) = claims::key(claim);
    let (namespace, name, written) = (namespace.to_owned(), name.to_owned(), revision(claim));
    let seen = binding.observer.until(move |snapshot: &Snapshot| {
        match snapshot.catalog().shown::<ResourceClaim>(&namespace, &name) {
            Some(shown) => (revision(shown) >= written).then_some(()),
            None => Some(()),
        }
    });
    seen.await.ok_or(ClaimError::Stopped)
}

/// Waits until the devices of a claim are ready. When they are not in time, the claim is deallocated, so that the next try
/// finds others; upstream's next try does that.
async fn wait(binding: Binding<'_>, claim: &ResourceClaim, timeout: Duration) -> Result<(), ClaimError> {
    let (namespace, name) = claims::key(claim);
    let (in_namespace, named, label) = (namespace.to_owned(), name.to_owned(), label(claim));
    let ready = binding.observer.until(move |snapshot: &Snapshot| {
        let shown = snapshot.catalog().shown::<ResourceClaim>(&in_namespace, &named);
        let Some(shown) = shown else { return Some(Err(ClaimError::Deleted(label.clone()))) };
        if shown.status.as_ref().is_none_or(|status| status.allocation.is_none()) {
            return Some(Err(ClaimError::Deallocated(label.clone())));
        }
        match conditions::readiness(shown) {
            Readiness::Ready => Some(Ok(())),
            Readiness::NotYet => None,
            Readiness::Failed(why) => Some(Err(ClaimError::Failed(why))),
        }
    });
    match tokio::time::timeout(timeout, ready).await {
        Ok(Some(ready)) => ready,
        Ok(None) => Err(ClaimError::Stopped),
        Err(_) => {
            let api = Api::<ResourceClaim>::namespaced(Client::clone(binding.client), namespace);
            if let Ok(latest) = api.get(name).await {
                let status = latest.status.as_ref();
                let mut users = status.iter().flat_map(|status| status.reserved_for.iter().flatten());
                if users.all(|user| user.uid == *binding.pod.uid) {
                    // Somebody else's change of the claim shows up as an event, and is looked at then.
                    let _ = deallocate(binding.client, &latest).await;
                }
            }
            Err(ClaimError::Late(name.to_owned()))
        }
    }
}
