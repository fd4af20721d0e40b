//! Follows the objects of the Gateway API and what they refer to, tells a proxy, and writes statuses.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Debug,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope,
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kcore::Clock;
use kreconcile::{Change, Informer, Informers, RunError, Runnable, Selection, conditions};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    CONTROLLER, Compiled, FEATURES, Input, compile,
    types::{
        BackendTLSPolicy, GRPCRoute, Gateway, GatewayClass, GatewayClassStatus, GatewayStatus, HTTPRoute,
        ListenerSet, ListenerSetStatus, ListenerStatus, PolicyAncestorStatus, PolicyStatus, ReferenceGrant,
        RouteParentStatus, RouteStatus, SupportedFeature, TLSRoute,
    },
};
use crate::{
    backends::{InformerObjects, Used, slice_owner},
    http_proxy::{Authorities, HttpProxy},
};

/// How long after a failure a status is written again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Keeps a proxy up to date with the Gateways of the classes of [`CONTROLLER`], and writes what became of them and of their routes.
///
/// Kinds of [`types`](super::types) that the server does not have are as if there were no objects of them; it follows them within
/// [`RETRY_MAX`](kreconcile::reflector::RETRY_MAX) of when they are there. The embedder serves the ports; Gateways that ask for others are told.
///
/// ```no_run
/// # async fn example(informers: &kreconcile::Informers) -> std::io::Result<()> {
/// use std::sync::Arc;
/// use kreconcile::{Manager, Start};
/// use knet::{gateway::GatewayAgent, http_proxy::{HttpProxy, ProxyOptions}};
/// let proxy = HttpProxy::new(ProxyOptions::default());
/// proxy.serve(80, tokio::net::TcpListener::bind("192.0.2.1:80").await?)?;
/// let agent = GatewayAgent::new(informers, proxy, Arc::new(kcore::TokioClock::new()), [80]);
/// let manager = Manager::new().add(Start::Always, agent.addresses(vec!["192.0.2.1".parse().unwrap()]));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct GatewayAgent {
    informers: Informers,
    classes: Informer<GatewayClass>,
    gateways: Informer<Gateway>,
    listener_sets: Informer<ListenerSet>,
    http_routes: Informer<HTTPRoute>,
    grpc_routes: Informer<GRPCRoute>,
    tls_routes: Informer<TLSRoute>,
    grants: Informer<ReferenceGrant>,
    policies: Informer<BackendTLSPolicy>,
    config_maps: Informer<ConfigMap>,
    namespaces: Informer<Namespace>,
    objects: InformerObjects,
    proxy: HttpProxy,
    clock: Arc<dyn Clock>,
    ports: BTreeSet<u16>,
    addresses: Vec<IpAddr>,
}

impl GatewayAgent {
    /// An agent that tells `proxy`, which serves these ports. Statuses are written by the informers' client.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(
        informers: &Informers,
        proxy: HttpProxy,
        clock: Arc<dyn Clock>,
        ports: impl IntoIterator<Item = u16>,
    ) -> Self {
        Self {
            informers: informers.clone(),
            classes: informers.of(Selection::all()),
            gateways: informers.of(Selection::all()),
            listener_sets: informers.of(Selection::all()),
            http_routes: informers.of(Selection::all()),
            grpc_routes: informers.of(Selection::all()),
            tls_routes: informers.of(Selection::all()),
            grants: informers.of(Selection::all()),
            policies: informers.of(Selection::all()),
            config_maps: informers.of(Selection::all()),
            namespaces: informers.of(Selection::all()),
            objects: InformerObjects::new(informers),
            proxy,
            clock,
            ports: ports.into_iter().collect(),
            addresses: Vec::new(),
        }
    }

    /// Where the proxy is reached, for the statuses of Gateways. Default: nowhere, so that no Gateway is programmed.
    #[must_use]
    pub fn addresses(mut self, addresses: Vec<IpAddr>) -> Self {
        self.addresses = addresses;
        self
    }

    fn compile(
        &self,
        certificates: &mut crate::backends::Certificates,
        system: &OnceCell<Result<Authorities, String>>,
    ) -> (Compiled, Used, HashSet<String>) {
        let view = self.objects.view(certificates);
        let bundles = RefCell::new(HashSet::new());
        let config_map = |namespace: &str, name: &str| {
            bundles.borrow_mut().insert(format!("{namespace}/{name}"));
            self.config_maps.get(namespace, name)
        };
        let system_authorities =
            || system.get_or_init(|| Authorities::of_system().map_err(|error| error.to_string())).clone();
        let labels = |namespace: &str| {
            let namespace = self.namespaces.get("", namespace);
            namespace.and_then(|namespace| namespace.metadata.labels.clone()).unwrap_or_default()
        };
        let compiled = compile(&Input {
            classes: &self.classes.list(),
            gateways: &self.gateways.list(),
            listener_sets: &self.listener_sets.list(),
            http_routes: &self.http_routes.list(),
            grpc_routes: &self.grpc_routes.list(),
            tls_routes: &self.tls_routes.list(),
            grants: &self.grants.list(),
            policies: &self.policies.list(),
            config_map: &config_map,
            system_authorities: &system_authorities,
            labels: &labels,
            ports: &self.ports,
            addresses: &self.addresses,
            objects: &view,
        });
        (compiled, view.finish(), bundles.into_inner())
    }

    /// Waits until all is known that counts. Kinds of the API need not be there.
    async fn ready(&self) {
        let objects = &self.objects;
        tokio::join!(
            self.classes.settled(),
            self.gateways.settled(),
            self.http_routes.settled(),
            self.grpc_routes.settled(),
            self.tls_routes.settled(),
            self.grants.settled(),
            self.policies.settled(),
            self.listener_sets.settled(),
            self.config_maps.synced(),
            self.namespaces.synced(),
            objects.services.synced(),
            objects.slices.synced(),
            objects.secrets.synced(),
        );
    }

    async fn follow(&self, told: &watch::Sender<Arc<Compiled>>) {
        let mut own = [
            self.classes.subscribe(),
            self.gateways.subscribe(),
            self.http_routes.subscribe(),
            self.grpc_routes.subscribe(),
            self.tls_routes.subscribe(),
            self.grants.subscribe(),
            self.namespaces.subscribe(),
            self.policies.subscribe(),
            self.listener_sets.subscribe(),
        ];
        let mut config_maps = self.config_maps.subscribe();
        let mut services = self.objects.services.subscribe();
        let mut slices = self.objects.slices.subscribe();
        let mut secrets = self.objects.secrets.subscribe();
        // The first table is told when it is whole, so that nothing is refused for want of its endpoints.
        self.ready().await;
        let (mut certificates, system) = (HashMap::new(), OnceCell::new());
        loop {
            let (compiled, used, bundles) = self.compile(&mut certificates, &system);
            self.proxy.set_table(compiled.table.clone());
            told.send_replace(Arc::new(compiled));
            loop {
                let [classes, gateways, http, grpc, tls, grants, namespaces, policies, sets] = &mut own;
                let object = |change: &Change| change.key().to_string();
                let concerned = tokio::select! {
                    batch = classes.next() => batch.map(|_| true),
                    batch = gateways.next() => batch.map(|_| true),
                    batch = http.next() => batch.map(|_| true),
                    batch = grpc.next() => batch.map(|_| true),
                    batch = tls.next() => batch.map(|_| true),
                    batch = grants.next() => batch.map(|_| true),
                    batch = namespaces.next() => batch.map(|_| true),
                    batch = policies.next() => batch.map(|_| true),
                    batch = sets.next() => batch.map(|_| true),
                    batch = config_maps.next() => batch.map(|batch| {
                        batch.iter().any(|change| bundles.contains(&object(change)))
                    }),
                    batch = services.next() => batch.map(|batch| {
                        batch.iter().any(|change| used.services.contains(&object(change)))
                    }),
                    batch = slices.next() => batch.map(|batch| {
                        batch.iter().filter_map(slice_owner).any(|service| used.services.contains(&service))
                    }),
                    batch = secrets.next() => batch.map(|batch| {
                        batch.iter().any(|change| used.secrets.contains(&object(change)))
                    }),
                };
                match concerned {
                    Some(true) => break,
                    Some(false) => {}
                    None => return,
                }
            }
        }
    }

    async fn write_statuses(&self, mut told: watch::Receiver<Arc<Compiled>>) {
        loop {
            let compiled = Arc::clone(&told.borrow_and_update());
            let failed = !self.write_all(&compiled).await;
            tokio::select! {
                changed = told.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
        }
    }

    /// Writes the statuses that are not as they should be. Whether all could be.
    async fn write_all(&self, compiled: &Compiled) -> bool {
        let client = || self.informers.client().clone();
        let now = self.clock.now();
        let mut good = true;
        for class in self.classes.list() {
            let name = class.metadata.name.as_deref().unwrap_or_default();
            let Some(wanted) = compiled.classes.get(name) else { continue };
            let known = class.status.clone().unwrap_or_default();
            let status = GatewayClassStatus {
                conditions: merged(&known.conditions, wanted, now),
                supported_features: FEATURES.map(|name| SupportedFeature { name: name.to_owned() }).to_vec(),
            };
            if status != known {
                good &= write_cluster(&Api::all(client()), &*class, &status).await;
            }
        }
        for gateway in self.gateways.list() {
            let Some(wanted) = compiled.gateways.get(&key(&*gateway)) else { continue };
            let known = gateway.status.clone().unwrap_or_default();
            let status = merged_gateway(&known, wanted, now);
            if status != known {
                good &= write(&Api::namespaced(client(), &key(&*gateway).0), &*gateway, &status).await;
            }
        }
        for set in self.listener_sets.list() {
            let Some(wanted) = compiled.listener_sets.get(&key(&*set)) else { continue };
            let known = set.status.clone().unwrap_or_default();
            let status = ListenerSetStatus {
                conditions: merged(&known.conditions, &wanted.conditions, now),
                listeners: merged_listeners(&known.listeners, &wanted.listeners, now),
            };
            if status != known {
                good &= write(&Api::namespaced(client(), &key(&*set).0), &*set, &status).await;
            }
        }
        for route in self.http_routes.list() {
            let known = route.status.clone().unwrap_or_default();
            let status = merged_route(&known, compiled.http_routes.get(&key(&*route)), now);
            if status != known {
                good &= write(&Api::namespaced(client(), &key(&*route).0), &*route, &status).await;
            }
        }
        for route in self.grpc_routes.list() {
            let known = route.status.clone().unwrap_or_default();
            let status = merged_route(&known, compiled.grpc_routes.get(&key(&*route)), now);
            if status != known {
                good &= write(&Api::namespaced(client(), &key(&*route).0), &*route, &status).await;
            }
        }
        for route in self.tls_routes.list() {
            let known = route.status.clone().unwrap_or_default();
            let status = merged_route(&known, compiled.tls_routes.get(&key(&*route)), now);
            if status != known {
                good &= write(&Api::namespaced(client(), &key(&*route).0), &*route, &status).await;
            }
        }
        for policy in self.policies.list() {
            let known = policy.status.clone().unwrap_or_default();
            let status = merged_policy(&known, compiled.policies.get(&key(&*policy)), now);
            if status != known {
                good &= write(&Api::namespaced(client(), &key(&*policy).0), &*policy, &status).await;
            }
        }
        good
    }
}

fn key<K: Resource>(object: &K) -> (String, String) {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

async fn write_cluster<K>(api: &Api<K>, object: &K, status: &impl Serialize) -> bool
where
    K: Resource<Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    patch(api, object, status).await
}

async fn write<K>(api: &Api<K>, object: &K, status: &impl Serialize) -> bool
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    patch(api, object, status).await
}

/// Writes a status, unless the object has changed since: others write to the same lists.
async fn patch<K>(api: &Api<K>, object: &K, status: &impl Serialize) -> bool
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let (namespace, name) = key(object);
    let version = &object.meta().resource_version;
    let change = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "status": status}));
    match api.patch_status(&name, &PatchParams::default(), &change).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(%namespace, %name, %error, "a status is not written yet");
            false
        }
    }
}

/// The conditions with those of this controller. Others stay; the times of transitions stay where nothing has changed.
fn merged(known: &[Condition], wanted: &[Condition], now: Timestamp) -> Vec<Condition> {
    let mut all = known.to_vec();
    for condition in wanted {
        conditions::set(&mut all, condition.clone(), now);
    }
    all
}

fn merged_gateway(known: &GatewayStatus, wanted: &GatewayStatus, now: Timestamp) -> GatewayStatus {
    let mut status = wanted.clone();
    status.conditions = merged(&known.conditions, &wanted.conditions, now);
    status.listeners = merged_listeners(&known.listeners, &wanted.listeners, now);
    status
}

fn merged_listeners(
    known: &[ListenerStatus],
    wanted: &[ListenerStatus],
    now: Timestamp,
) -> Vec<ListenerStatus> {
    let old: BTreeMap<_, _> = known.iter().map(|listener| (&listener.name, &listener.conditions)).collect();
    let listeners = wanted.iter().map(|listener| {
        let known = old.get(&listener.name).map(|conditions| conditions.as_slice()).unwrap_or_default();
        ListenerStatus { conditions: merged(known, &listener.conditions, now), ..listener.clone() }
    });
    listeners.collect()
}

/// The parents that others have written stay; those of this controller are the wanted ones.
fn merged_route(known: &RouteStatus, wanted: Option<&Vec<RouteParentStatus>>, now: Timestamp) -> RouteStatus {
    let is_own = |parent: &&RouteParentStatus| parent.controller_name == CONTROLLER;
    let mut parents: Vec<_> = known.parents.iter().filter(|parent| !is_own(parent)).cloned().collect();
    for parent in wanted.into_iter().flatten() {
        let old = known.parents.iter().filter(is_own).find(|old| old.parent_ref == parent.parent_ref);
        let old = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
        parents
            .push(RouteParentStatus { conditions: merged(old, &parent.conditions, now), ..parent.clone() });
    }
    RouteStatus { parents }
}

/// The ancestors that others have written stay; those of this controller are the wanted ones.
fn merged_policy(
    known: &PolicyStatus,
    wanted: Option<&Vec<PolicyAncestorStatus>>,
    now: Timestamp,
) -> PolicyStatus {
    let is_own = |ancestor: &&PolicyAncestorStatus| ancestor.controller_name == CONTROLLER;
    let mut ancestors: Vec<_> =
        known.ancestors.iter().filter(|ancestor| !is_own(ancestor)).cloned().collect();
    for ancestor in wanted.into_iter().flatten() {
        let old = known.ancestors.iter().filter(is_own).find(|old| old.ancestor_ref == ancestor.ancestor_ref);
        let old = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
        let conditions = merged(old, &ancestor.conditions, now);
        ancestors.push(PolicyAncestorStatus { conditions, ..ancestor.clone() });
    }
    PolicyStatus { ancestors }
}

#[async_trait]
impl Runnable for GatewayAgent {
    fn name(&self) -> &str {
        "gateway"
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        let told = watch::Sender::default();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow(&told) => {}
            () = self.write_statuses(told.subscribe()) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules for implementors in the description of `status.conditions` and `status.parents`.
    #[test]
    fn what_others_have_written_stays() {
        let (then, now): (Timestamp, Timestamp) =
            ("2030-01-01T00:00:00Z".parse().unwrap(), "2030-01-02T00:00:00Z".parse().unwrap());
        let accepted = conditions::condition("Accepted", true, "Accepted", "");
        let known = merged(&[], &[conditions::condition("Other", true, "R", ""), accepted.clone()], then);
        let same = merged(&known, std::slice::from_ref(&accepted), now);
        assert_eq!(same, known, "nothing has changed, so neither have the times");
        let changed = merged(&known, &[conditions::condition("Accepted", false, "Invalid", "")], now);
        assert_eq!((changed.len(), changed[0] == known[0]), (2, true));
        assert_eq!(changed[1].last_transition_time.0, now);

        let parent = |controller: &str, name: &str| RouteParentStatus {
            controller_name: controller.to_owned(),
            parent_ref: super::super::types::ParentReference { name: name.to_owned(), ..Default::default() },
            conditions: vec![accepted.clone()],
        };
        let known =
            RouteStatus { parents: vec![parent(CONTROLLER, "old"), parent("example.com/other", "other")] };
        let names = |status: &RouteStatus| {
            status.parents.iter().map(|parent| parent.parent_ref.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(
            names(&merged_route(&known, Some(&vec![parent(CONTROLLER, "new")]), now)),
            ["other", "new"]
        );
        assert_eq!(names(&merged_route(&known, None, now)), ["other"]);
    }
}
