//! Networks that services get addresses from (KEP-1880).

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kcore::{Clock, Stored, clock::format_time};
use serde_json::{Value, json};

use crate::{
    address_range::AddressRange,
    controller::Controller,
    controllers::Context,
    events::{EventRecorder, EventType, Regarding},
    finalizer::{Finalizer, FinalizerStep},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

/// How long a network that is being deleted is kept at least, so that every API server has seen that it goes and hands out
/// nothing more from it (upstream's `deletionGracePeriod`).
pub const SERVICE_CIDR_GRACE: Duration = Duration::from_secs(10);

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Who looks after the addresses of services, in this label.
pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "ipallocator.k8s.io";
const NAME: &str = "service-cidr-controller";
const READY: &str = "Kubernetes Service CIDR is ready";
const IN_USE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// The controller `service-cidr-controller`: gives each ServiceCIDR its finalizer and the condition Ready, and lets one that is being
/// deleted go when no address of a service is in it alone.
pub fn service_cidr(context: &Context) -> Controller {
    let networks = context.informers().of::<ServiceCIDR>(Selection::all());
    let addresses = context.informers().of::<IPAddress>(Selection::all());
    let requests = context.requests(NAME);
    let reconciler = ServiceCidrs {
        resource: ResourceType::of::<ServiceCIDR>(),
        finalizer: requests.finalizer(networks.resource(), FINALIZER),
        requests,
        recorder: context.recorder(NAME),
        clock: Arc::clone(context.clock()),
        networks: networks.clone(),
        addresses: addresses.clone(),
    };
    let all = networks.clone();
    // One that comes or goes decides about those that it shares addresses with, too.
    let overlapping = MapTo::each(move |object, keys| {
        let ranges = ranges_of(object);
        let others = all.lister().list();
        let shares = others.iter().filter(|other| {
            ranges_of(other).iter().any(|one| ranges.iter().any(|range| one.overlaps(range)))
        });
        keys.extend(shares.map(|other| ObjectKey::cluster(&*other.header().name)));
    });
    let all = networks.clone();
    let around = MapTo::each(move |object, keys| {
        let Some(address) = managed_address(object) else { return };
        let has = |network: &&Arc<Stored>| contains(network, address);
        keys.extend(
            all.lister().list().iter().filter(has).map(|one| ObjectKey::cluster(&*one.header().name)),
        );
    });
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&networks, MapTo::Itself))
        .on(Trigger::new(&networks, overlapping).when(Predicate::Membership))
        .on(Trigger::new(&addresses, around).when(Predicate::Membership))
}

/// The networks of a ServiceCIDR; what can't be read is left out.
fn ranges_of(network: &Stored) -> Vec<AddressRange> {
    let typed = network.typed::<ServiceCIDR>().ok();
    let texts = typed.and_then(|typed| typed.spec.as_ref()?.cidrs.clone()).unwrap_or_default();
    texts.iter().filter_map(|text| AddressRange::parse(text)).collect()
}

/// Whether services can have this address from a network: not its first, nor with IPv4 its last.
pub(super) fn contains(network: &Stored, address: IpAddr) -> bool {
    ranges_of(network).iter().any(|range| range.hands_out(address))
}

/// The address that an object stands for, if a service is to have it.
fn managed_address(object: &Stored) -> Option<IpAddr> {
    let header = object.header();
    let ours = header.labels.get(MANAGED_BY).is_some_and(|manager| *manager == *MANAGER);
    ours.then(|| header.name.parse().ok()).flatten()
}

/// Whether a network may go: every part of it is also in another one, or no address of a service is in it alone.
fn may_go(network: &Stored, networks: &[Arc<Stored>], addresses: &[Arc<Stored>]) -> bool {
    let own = &network.header().name;
    let others: Vec<&Arc<Stored>> = networks.iter().filter(|other| other.header().name != *own).collect();
    let covered = |range: &AddressRange| {
        others.iter().any(|other| ranges_of(other).iter().any(|one| one.covers(range)))
    };
    if ranges_of(network).iter().all(covered) {
        return true;
    }
    let mut used = addresses.iter().filter_map(|object| managed_address(object));
    !used.any(|address| contains(network, address) && !others.iter().any(|other| contains(other, address)))
}

struct ServiceCidrs {
    resource: ResourceType,
    networks: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    requests: Requests,
    finalizer: Finalizer,
    recorder: EventRecorder,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for ServiceCidrs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(network) = self.networks.lister().get("", &key.name) else { return Ok(Action::Done) };
        if network.header().deletion.is_some() {
            if !may_go(&network, &self.networks.lister().list(), &self.addresses.lister().list()) {
                self.write_condition(&network, "False", "Terminating", IN_USE).await?;
                return Ok(Action::Done);
            }
            let since =
                network.typed::<ServiceCIDR>()?.metadata.deletion_timestamp.as_ref().map(|time| time.0);
            let left = SERVICE_CIDR_GRACE.saturating_sub(age(since, self.clock.now()));
            if !left.is_zero() {
                return Ok(Action::After(left));
            }
            return self.finalizer.release(&network).await;
        }
        if self.finalizer.step(&network) == FinalizerStep::Add {
            // The condition follows when the new revision is seen.
            return self.finalizer.add(&network).await;
        }
        if let Err(error) = self.write_condition(&network, "True", "", READY).await {
            let about = Regarding::of(&network, &self.resource);
            let message = "The ServiceCIDR Status can not be set to Ready=True";
            self.recorder.record(&about, EventType::Warning, "KubernetesServiceCIDRError", message);
            return Err(error);
        }
        Ok(Action::Done)
    }
}

/// How long ago it was; nothing when it is not known.
fn age(since: Option<Timestamp>, now: Timestamp) -> Duration {
    since.map_or(Duration::ZERO, |since| Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

impl ServiceCidrs {
    /// Writes the condition Ready, unless it says so already.
    async fn write_condition(
        &self,
        network: &Stored,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), ReconcileError> {
        let typed = network.typed::<ServiceCIDR>()?;
        let conditions = typed.status.as_ref().and_then(|status| status.conditions.as_deref());
        let known = conditions.unwrap_or_default().iter().find(|condition| condition.type_ == "Ready");
        let same = known.is_some_and(|known| {
            (&*known.status, &*known.reason, &*known.message) == (status, reason, message)
        });
        if same {
            return Ok(());
        }
        let name = &*network.header().name;
        let apply = json!({
            "apiVersion": self.resource.api_version(), "kind": self.resource.kind, "metadata": {"name": name},
            "status": {"conditions": [{
                "type": "Ready", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": Value::from(format_time(self.clock.now())),
            }]},
        });
        let path = format!("{}/status?fieldManager={NAME}&force=true", self.resource.path("", name));
        match self.requests.patch::<Written>(&path, PatchKind::Apply, &apply).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, cidrs: &[&str]) -> Arc<Stored> {
        let metadata = json!({"name": name, "resourceVersion": "1"});
        Arc::new(Stored::from_value(json!({"metadata": metadata, "spec": {"cidrs": cidrs}})).unwrap())
    }

    /// The cases of `TestController_canDeleteCIDR` of `servicecidrs_controller_test.go`.
    #[test]
    fn networks_go_when_no_service_needs_them() {
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a [&'a str])], &'a [&'a str], bool);
        let both: &[&str] = &["192.168.0.0/24", "2001:db2::/64"];
        let cases: &[Case<'_>] = &[
            (both, &[], &[], true),
            (both, &[], &["192.168.0.24"], false),
            (both, &[], &["2001:db2::3"], false),
            (both, &[], &["192.168.1.24"], true),
            // Only IPv4 is in another one, too.
            (both, &[("other", &["192.168.0.0/23"])], &["2001:db2::3"], false),
            (both, &[("other", &["192.168.0.0/23"])], &["192.168.0.24"], true),
            (
                both,
                &[("other", &["192.168.0.0/23", "2001:db2::/63"])],
                &["2001:db2::3", "192.168.0.24"],
                true,
            ),
            (both, &[("other", &["192.168.0.0/28"])], &["192.168.0.24"], false),
            (both, &[("other", &["192.168.0.0/28"])], &["192.168.0.2"], true),
            (both, &[("one", &["192.168.0.0/28"]), ("two", &["192.168.0.0/26"])], &["192.168.0.24"], true),
            // The first address of a network and the last one with IPv4 are no service's.
            (both, &[("other", &["192.168.0.24/29"])], &["192.168.0.24"], false),
            (both, &[("other", &["192.168.0.24/29"])], &["192.168.0.31"], false),
        ];
        for (cidrs, others, used, expected) in cases {
            let mut networks = vec![network("kubernetes", cidrs)];
            networks.extend(others.iter().map(|(name, cidrs)| network(name, cidrs)));
            let address = |name: &&str| {
                let labels = json!({MANAGED_BY: MANAGER});
                let metadata = json!({"name": name, "resourceVersion": "1", "labels": labels});
                Arc::new(Stored::from_value(json!({"metadata": metadata})).unwrap())
            };
            let addresses: Vec<_> = used.iter().map(address).collect();
            assert_eq!(may_go(&networks[0], &networks, &addresses), *expected, "{others:?} {used:?}");
        }
    }
}
