//! Load balancers for services (`cloud-provider/controllers/service`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::RandomState;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, Service, ServiceSpec};
use kcore::Stored;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{CloudError, LoadBalancers};
use crate::{
    cache::Index,
    controller::Controller,
    controllers::Context,
    events::{EventRecorder, EventType, Regarding},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Predicate, Trigger},
};

/// The finalizer of services that may have a load balancer.
pub const LOAD_BALANCER_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// A node with this label gets no connections from load balancers.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// A node with this taint is about to be taken away by the cluster autoscaler.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// How many names of nodes an event tells.
const NODES_TOLD_MAX: usize = 20;
/// Services that want a load balancer, all under one term.
const BALANCED: &str = "load-balancers";

/// The controller `service-lb-controller`: gives each service of the type LoadBalancer a load balancer, unless it names a class, and
/// takes it away with the service. A load balancer is brought up to date when what it is made of changes, and when nodes
/// come and go.
pub fn service_lb(context: &Context, balancers: Arc<dyn LoadBalancers>) -> Controller {
    const NAME: &str = "service-lb-controller";
    let services = context.informers().of::<Service>(Selection::all());
    let nodes = context.informers().of::<Node>(Selection::all());
    services.add_index(Index::new(BALANCED, |object, emit| {
        if object.typed::<Service>().is_ok_and(|service| wants_balancer(&service)) {
            emit("");
        }
    }));
    let reconciler = Services {
        resource: ResourceType::of::<Service>(),
        services: services.clone(),
        nodes: nodes.clone(),
        requests: context.requests(NAME),
        recorder: context.recorder("service-controller"),
        balancers,
        adopted: OnceCell::new(),
        known: Mutex::default(),
    };
    let balanced = services.clone();
    let all = MapTo::Keys(Arc::new(move |_, keys| {
        let services = balanced.lister().by_index(BALANCED, "");
        keys.extend(services.iter().map(|service| ObjectKey::of(service.header())));
    }));
    let matters = Predicate::when(|change| {
        let seen = |side: &Option<Arc<Stored>>| {
            let node = side.as_ref()?.typed::<Node>().ok()?;
            let spec = node.spec.as_ref();
            Some((is_included(&node), spec.and_then(|spec| spec.provider_id.clone())))
        };
        seen(&change.old) != seen(&change.new)
    });
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&services, MapTo::Itself))
        .on(Trigger::new(&nodes, all).when(matters))
}

/// Whether a service is to have a load balancer of this controller.
fn wants_balancer(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
    })
}

/// Whether a service has a finalizer that it should no longer have.
fn needs_cleanup(service: &Service) -> bool {
    let has = service.metadata.finalizers.iter().flatten().any(|known| known == LOAD_BALANCER_FINALIZER);
    let is_balancer = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    has && (service.metadata.deletion_timestamp.is_some() || !is_balancer)
}

/// Whether a node is not labelled to be left out.
fn is_included(node: &Node) -> bool {
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(EXCLUDED));
    label.is_none_or(|value| matches!(&**value, "0" | "f" | "F" | "false" | "False" | "FALSE"))
}

/// Whether a load balancer is to use a node. Whether it is ready doesn't count: the load balancer finds out by itself.
fn serves(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none()
        && is_included(node)
        && !taints.into_iter().any(|taint| taint.key == TO_BE_DELETED)
}

/// Everything that a load balancer is made of: when it changes, the load balancer is brought up to date.
fn matter(service: &Service) -> Value {
    let empty = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    json!({
        "uid": service.metadata.uid,
        "annotations": service.metadata.annotations,
        "sources": spec.load_balancer_source_ranges,
        "ports": spec.ports,
        "affinity": [json!(spec.session_affinity), json!(spec.session_affinity_config)],
        "ip": spec.load_balancer_ip.as_deref().unwrap_or_default(),
        "external": spec.external_ips,
        "policy": spec.external_traffic_policy,
        "health": spec.health_check_node_port,
        "families": spec.ip_families.as_ref().map(Vec::len),
    })
}

/// What of the nodes matters to a load balancer.
fn hosts(nodes: &[Arc<Node>]) -> Vec<(String, String)> {
    let of = |node: &Arc<Node>| {
        let id = node.spec.as_ref().and_then(|spec| spec.provider_id.clone());
        (node.metadata.name.clone().unwrap_or_default(), id.unwrap_or_default())
    };
    let mut hosts: Vec<_> = nodes.iter().map(of).collect();
    hosts.sort_unstable();
    hosts
}

/// The nodes' names as Go prints them, not too many.
fn names(hosts: &[(String, String)]) -> String {
    let mut names: Vec<&str> = hosts.iter().take(NODES_TOLD_MAX).map(|(name, _)| &**name).collect();
    let more = format!("<{} more>", hosts.len().saturating_sub(NODES_TOLD_MAX));
    if hosts.len() > NODES_TOLD_MAX {
        names.push(&more);
    }
    format!("[{}]", names.join(" "))
}

/// What this controller did last for a service.
#[derive(Clone)]
struct Known {
    service: Arc<Service>,
    about: Regarding,
    matter: Value,
    hosts: Vec<(String, String)>,
    /// Whether it succeeded.
    done: bool,
}

struct Services {
    resource: ResourceType,
    services: Informer<Service>,
    nodes: Informer<Node>,
    requests: Requests,
    recorder: EventRecorder,
    balancers: Arc<dyn LoadBalancers>,
    adopted: OnceCell<()>,
    /// By service; forgotten with its load balancer.
    known: Mutex<HashMap<ObjectKey, Known, RandomState>>,
}

#[async_trait]
impl Reconciler for Services {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        self.adopted
            .get_or_init(|| async {
                let mut services = self.services.by_index(BALANCED, "");
                services.sort_by(|one, other| one.metadata.uid.cmp(&other.metadata.uid));
                self.balancers.adopt(&services).await;
            })
            .await;
        let before = self.known().get(key).cloned();
        let Some(stored) = self.services.lister().get(&key.namespace, &key.name) else {
            return match before {
                Some(known) => self.gone(key, &known).await,
                None => Ok(Action::Done),
            };
        };
        let service = stored.typed::<Service>()?;
        if let Some(known) = &before
            && known.service.metadata.uid != service.metadata.uid
        {
            self.gone(key, known).await?;
        }
        let about = Regarding::of(&stored, &self.resource);
        let done = if !wants_balancer(&service) || needs_cleanup(&service) {
            if before.is_none() && !needs_cleanup(&service) {
                return Ok(Action::Done);
            }
            self.release(key, &stored, &service, &about).await
        } else {
            self.ensure(key, &stored, &service, &about, before).await
        };
        match done {
            Ok(()) => Ok(Action::Done),
            Err(failure) => {
                let message = format!("Error syncing load balancer: {failure}");
                self.recorder.record(&about, EventType::Warning, "SyncLoadBalancerFailed", message);
                match failure.source {
                    Fault::Cloud(CloudError::Later { after, .. }) => Ok(Action::After(after)),
                    Fault::Cloud(error) => Err(ReconcileError::other(error)),
                    Fault::Api(error) => Err(error.into()),
                }
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Cloud(#[from] CloudError),
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// What failed, in upstream's words.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct Failure {
    what: &'static str,
    source: Fault,
}

fn failed<E: Into<Fault>>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |source| Failure { what, source: source.into() }
}

impl Services {
    fn known(&self) -> MutexGuard<'_, HashMap<ObjectKey, Known, RandomState>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, about: &Regarding, reason: &str, message: &str) {
        self.recorder.record(about, EventType::Normal, reason, message);
    }

    /// The service went away without waiting for its finalizer.
    async fn gone(&self, key: &ObjectKey, known: &Known) -> Result<Action, ReconcileError> {
        if wants_balancer(&known.service) {
            self.say(&known.about, "DeletingLoadBalancer", "Deleting load balancer");
            if let Err(error) = self.balancers.delete(&known.service).await {
                let message = format!("Error deleting load balancer: {error}");
                self.recorder.record(&known.about, EventType::Warning, "DeleteLoadBalancerFailed", message);
                return Err(ReconcileError::other(error));
            }
            self.say(&known.about, "DeletedLoadBalancer", "Deleted load balancer");
        }
        self.known().remove(key);
        Ok(Action::Done)
    }

    /// Takes the load balancer away from a service that no longer wants one, and then the finalizer.
    async fn release(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        service: &Service,
        about: &Regarding,
    ) -> Result<(), Failure> {
        let exists = self.balancers.exists(service).await;
        if exists.map_err(failed("failed to check if load balancer exists before cleanup"))? {
            self.say(about, "DeletingLoadBalancer", "Deleting load balancer");
            match self.balancers.delete(service).await {
                Ok(()) | Err(CloudError::Elsewhere) => {}
                Err(error) => return Err(failed("failed to delete load balancer")(error)),
            }
        }
        let finalizers = || {
            let all = service.metadata.finalizers.iter().flatten();
            all.filter(|known| *known != LOAD_BALANCER_FINALIZER).cloned().collect::<Vec<_>>()
        };
        let mut patch = json!({"metadata": {"uid": service.metadata.uid, "resourceVersion": stored.revision().to_string(),
            "finalizers": finalizers()}});
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        if status.is_some_and(|status| *status != LoadBalancerStatus::default()) {
            patch["status"] = json!({"loadBalancer": null});
        }
        self.patch(key, &patch).await.map_err(failed("failed to remove load balancer cleanup finalizer"))?;
        self.say(about, "DeletedLoadBalancer", "Deleted load balancer");
        self.known().remove(key);
        Ok(())
    }

    async fn patch(&self, key: &ObjectKey, patch: &Value) -> Result<u64, kube::Error> {
        let path = format!("{}/status", self.resource.path(&key.namespace, &key.name));
        match self.requests.patch::<Written>(&path, PatchKind::Merge, patch).await {
            Ok(written) => Ok(written.revision()),
            // It went as soon as its finalizer was gone.
            Err(error) if request::is_not_found(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn note(
        &self,
        key: &ObjectKey,
        about: &Regarding,
        service: &Arc<Service>,
        nodes: &[Arc<Node>],
        done: bool,
    ) {
        let known = Known {
            service: Arc::clone(service),
            about: about.clone(),
            matter: matter(service),
            hosts: hosts(nodes),
            done,
        };
        self.known().insert(key.clone(), known);
    }

    /// Brings a service's load balancer up to date, if anything of it has changed.
    async fn ensure(
        &self,
        key: &ObjectKey,
        stored: &Stored,
        service: &Arc<Service>,
        about: &Regarding,
        before: Option<Known>,
    ) -> Result<(), Failure> {
        let nodes: Vec<Arc<Node>> = self.nodes.list().into_iter().filter(|node| serves(node)).collect();
        if let Some(known) = before.filter(|known| known.done && known.matter == matter(service)) {
            if known.hosts == hosts(&nodes) {
                return Ok(());
            }
            return self.update(key, service, about, &nodes).await;
        }
        self.note(key, about, service, &nodes, false);
        self.say(about, "EnsuringLoadBalancer", "Ensuring load balancer");
        let mut revision = stored.revision();
        let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|known| known == LOAD_BALANCER_FINALIZER) {
            finalizers.push(LOAD_BALANCER_FINALIZER.to_owned());
            let patch = json!({"metadata": {"uid": service.metadata.uid, "resourceVersion": revision.to_string(),
                "finalizers": finalizers}});
            let added = self.patch(key, &patch).await;
            revision = added.map_err(failed("failed to add load balancer cleanup finalizer"))?;
        }
        if nodes.is_empty() {
            let message = "There are no available nodes for LoadBalancer";
            self.recorder.record(about, EventType::Warning, "UnAvailableLoadBalancer", message);
        }
        let status = match self.balancers.ensure(service, &nodes).await {
            Ok(status) => status,
            Err(CloudError::Elsewhere) => {
                self.note(key, about, service, &nodes, true);
                return Ok(());
            }
            Err(error) => return Err(failed("failed to ensure load balancer")(error)),
        };
        self.say(about, "EnsuredLoadBalancer", "Ensured load balancer");
        let old = service.status.as_ref().and_then(|status| status.load_balancer.clone()).unwrap_or_default();
        if old != status {
            let patch = json!({"metadata": {"resourceVersion": revision.to_string()}, "status": {"loadBalancer": status}});
            self.patch(key, &patch).await.map_err(failed("failed to update load balancer status"))?;
        }
        self.note(key, about, service, &nodes, true);
        Ok(())
    }

    /// Tells a load balancer which nodes there are.
    async fn update(
        &self,
        key: &ObjectKey,
        service: &Arc<Service>,
        about: &Regarding,
        nodes: &[Arc<Node>],
    ) -> Result<(), Failure> {
        let error = match self.balancers.update(service, nodes).await {
            Ok(()) => {
                if nodes.is_empty() {
                    let message = "There are no available nodes for LoadBalancer";
                    self.recorder.record(about, EventType::Warning, "UnAvailableLoadBalancer", message);
                } else {
                    self.say(about, "UpdatedLoadBalancer", "Updated load balancer with new hosts");
                }
                self.note(key, about, service, nodes, true);
                return Ok(());
            }
            Err(CloudError::Elsewhere) => {
                self.note(key, about, service, nodes, true);
                return Ok(());
            }
            Err(error) => error,
        };
        if matches!(self.balancers.exists(service).await, Ok(false)) {
            return Ok(());
        }
        let told = names(&hosts(nodes));
        let message = format!(
            "Error updating load balancer with new hosts {told} [node names limited, total number of nodes: {}], error: {error}",
            nodes.len()
        );
        self.recorder.record(about, EventType::Warning, "UpdateLoadBalancerFailed", message);
        // What failed is done again from the start.
        self.note(key, about, service, nodes, false);
        Err(failed("failed to update load balancer")(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(value: Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    /// Cases of upstream's `controller_test.go` (`TestNeedsCleanup`, and what wants a load balancer).
    #[test]
    fn who_wants_a_load_balancer_and_who_has_one_too_many() {
        let finalizer = json!([LOAD_BALANCER_FINALIZER]);
        let deleted = json!({"finalizers": finalizer, "deletionTimestamp": "2030-01-01T00:00:00Z"});
        let balancer = json!({"type": "LoadBalancer"});
        let classed = json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/x"});
        let plain = json!({"type": "NodePort"});
        for (meta, spec, wants, cleanup) in [
            (json!({}), &balancer, true, false),
            (json!({}), &classed, false, false),
            (json!({}), &plain, false, false),
            (json!({"deletionTimestamp": "2030-01-01T00:00:00Z"}), &plain, false, false),
            (json!({"finalizers": finalizer}), &balancer, true, false),
            (json!({"finalizers": finalizer}), &plain, false, true),
            (json!({"finalizers": finalizer}), &classed, false, false),
            (deleted, &balancer, true, true),
        ] {
            let service = service(json!({"metadata": meta, "spec": spec}));
            assert_eq!((wants_balancer(&service), needs_cleanup(&service)), (wants, cleanup), "{service:?}");
        }
    }

    /// Cases of `TestNeedsUpdate`.
    #[test]
    fn what_a_load_balancer_is_made_of() {
        let base = json!({"metadata": {"uid": "1", "annotations": {"a": "b"}}, "spec": {"type": "LoadBalancer",
            "ports": [{"port": 80}], "externalIPs": ["1.2.3.4"], "ipFamilies": ["IPv4"]}});
        let cases = [
            ("/metadata/uid", json!("2"), true),
            ("/metadata/annotations", json!({"a": "c"}), true),
            ("/metadata/labels", json!({"a": "c"}), false),
            ("/spec/ports/0/nodePort", json!(30000), true),
            ("/spec/ports/0/appProtocol", json!("http"), true),
            ("/spec/sessionAffinity", json!("ClientIP"), true),
            ("/spec/loadBalancerIP", json!("1.1.1.1"), true),
            ("/spec/externalIPs", json!(["1.2.3.5"]), true),
            ("/spec/externalTrafficPolicy", json!("Local"), true),
            ("/spec/healthCheckNodePort", json!(30001), true),
            ("/spec/ipFamilies", json!(["IPv6", "IPv4"]), true),
            ("/spec/selector", json!({"a": "b"}), false),
            ("/spec/clusterIP", json!("10.0.0.1"), false),
        ];
        for (path, value, expected) in cases {
            let mut changed = base.clone();
            let (parent, last) = path.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[last] = value;
            let differs = matter(&service(base.clone())) != matter(&service(changed));
            assert_eq!(differs, expected, "{path}");
        }
    }

    /// Cases of `Test_respectsPredicates`.
    #[test]
    fn which_nodes_serve() {
        let taint = json!([{"key": TO_BE_DELETED, "effect": "NoSchedule"}]);
        for (meta, spec, expected) in [
            (json!({}), json!({}), true),
            (json!({"labels": {EXCLUDED: ""}}), json!({}), false),
            (json!({"labels": {EXCLUDED: "true"}}), json!({}), false),
            (json!({"labels": {EXCLUDED: "false"}}), json!({}), true),
            (json!({}), json!({"taints": taint}), false),
            (json!({"deletionTimestamp": "2030-01-01T00:00:00Z"}), json!({}), false),
        ] {
            let node: Node = serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap();
            assert_eq!(serves(&node), expected, "{node:?}");
        }
        let many: Vec<_> = (0..22).map(|number| (format!("n{number}"), String::new())).collect();
        assert!(names(&many).ends_with(" n19 <2 more>]") && names(&many[..2]) == "[n0 n1]");
    }
}
