//! What nodes may do (upstream's `plugin/pkg/auth/authorizer/node`): the agent of a node reads only what its pods use.

mod graph;
mod references;

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use kstore::{Entry, EventKind, Range, Revision};
use serde_json::Value;

use self::{graph::Graph, references::Kind};
use super::{Authorizer, PolicyRule, Reason, Rules, Verdict, bootstrap};
use crate::{
    authn::UserInfo,
    objects::{Objects, stored},
    registry::Resource,
    request::RequestInfo,
};

/// The group of all nodes.
pub(crate) const NODES: &str = "system:nodes";
/// How the names of nodes' users begin.
pub(crate) const NODE_USER: &str = "system:node:";
/// The namespace of nodes' leases.
const LEASES: &str = "kube-node-lease";
/// The role of the bootstrap policy that says what all nodes may do alike.
const ROLE: &str = "system:node";

/// The name of the node that a user is; `None` for everybody else, empty for a node without a name.
pub(crate) fn node_of(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix(NODE_USER).filter(|_| user.is_in(NODES))
}

/// Whether a pod refers to secrets, and to ConfigMaps.
pub(crate) fn secrets_and_config_maps(pod: &Value) -> (bool, bool) {
    let mut plain = pod.clone();
    // Those of mirrors count, too, when it is asked whether one may be made.
    plain["metadata"] = Value::Null;
    let all = references::of_pod(&plain);
    let has = |kind| all.iter().any(|(found, _)| *found == kind);
    (has(Kind::Secret), has(Kind::ConfigMap))
}

/// Decides about users in `system:nodes` called `system:node:<name>`; has no opinion on others.
///
/// Which pods are on a node, and what they refer to, is kept from the events of the pods' table. They are looked at only when a
/// node asks for something that depends on it, and a pod is parsed only when it comes to its node.
pub struct Node {
    objects: Arc<Objects>,
    pods: Option<Arc<Resource>>,
    rules: Vec<PolicyRule>,
    /// The revision of the pods' table that has been taken over.
    seen: AtomicU64,
    graph: RwLock<Graph>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

type Opinion = Result<(), Reason>;

const NOTHING: Opinion = Err(Reason::none());

impl Node {
    /// An authorizer by the pods among these objects.
    #[must_use]
    pub fn new(objects: Arc<Objects>) -> Self {
        Self {
            pods: objects.registry().find("", "v1", "pods"),
            rules: bootstrap::rules_of(ROLE),
            seen: AtomicU64::new(0),
            graph: RwLock::default(),
            objects,
        }
    }

    /// What is thought of a request of this node.
    fn decide(&self, node: &str, ask: &RequestInfo) -> Opinion {
        if !ask.is_resource {
            return self.uniform(ask);
        }
        match (ask.group.as_str(), ask.resource.as_str()) {
            ("", "secrets" | "configmaps") => self.namespaced(node, ask),
            ("", "persistentvolumeclaims") if ask.subresource == "status" => {
                one_of(&ask.verb, &["update", "patch"], "can only get/update/patch this type")?;
                self.related(node, ask)
            }
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims")
            | ("storage.k8s.io", "volumeattachments") => self.get(node, ask),
            ("", "serviceaccounts") => self.service_account(node, ask),
            ("", "nodes") => own_node(node, ask),
            ("", "pods") => self.pod(node, ask),
            ("coordination.k8s.io", "leases") => lease(node, ask),
            ("storage.k8s.io", "csinodes") => csi_node(node, ask),
            ("resource.k8s.io", "resourceslices") => self.slice(node, ask),
            ("certificates.k8s.io", "podcertificaterequests") => self.certificate(node, ask),
            _ => self.uniform(ask),
        }
    }

    /// By the rules that hold for all nodes alike.
    fn uniform(&self, ask: &RequestInfo) -> Opinion {
        if self.rules.iter().any(|rule| rule.allows(ask)) { Ok(()) } else { NOTHING }
    }

    fn get(&self, node: &str, ask: &RequestInfo) -> Opinion {
        one_of(&ask.verb, &["get"], "can only get individual resources of this type")?;
        whole(ask, "cannot get subresource")?;
        self.related(node, ask)
    }

    fn namespaced(&self, node: &str, ask: &RequestInfo) -> Opinion {
        one_of(&ask.verb, &["get", "list", "watch"], "can only read resources of this type")?;
        whole(ask, "cannot read subresource")?;
        if ask.namespace.is_empty() {
            return Err("can only read namespaced object of this type".into());
        }
        self.related(node, ask)
    }

    /// Whether a pod of the node leads to the object.
    fn related(&self, node: &str, ask: &RequestInfo) -> Opinion {
        if ask.name.is_empty() {
            return Err("No Object name found".into());
        }
        let (namespace, name) = (ask.namespace.as_str(), ask.name.as_str());
        let found = match ask.resource.as_str() {
            "secrets" => {
                self.graph().uses(node, Kind::Secret, namespace, name)
                    || self.secret_of_a_volume(node, namespace, name)
            }
            "configmaps" => self.graph().uses(node, Kind::ConfigMap, namespace, name),
            "persistentvolumeclaims" => self.graph().uses(node, Kind::Claim, namespace, name),
            "resourceclaims" => self.graph().uses(node, Kind::ResourceClaim, namespace, name),
            "serviceaccounts" => self.graph().uses(node, Kind::ServiceAccount, namespace, name),
            "pods" => self.graph().runs(node, namespace, name),
            "persistentvolumes" => {
                self.value("", "v1", "persistentvolumes", "", name).is_some_and(|volume| {
                    let claim = &volume["spec"]["claimRef"];
                    let text = |key: &str| claim[key].as_str().unwrap_or_default();
                    self.graph().uses(node, Kind::Claim, text("namespace"), text("name"))
                })
            }
            "volumeattachments" => self.names_node(node, "storage.k8s.io", "v1", ask),
            "resourceslices" => self.names_node(node, "resource.k8s.io", "v1", ask),
            "podcertificaterequests" => self.names_node(node, "certificates.k8s.io", "v1beta1", ask),
            _ => false,
        };
        if found {
            return Ok(());
        }
        Err(format!("no relationship found between node '{node}' and this object").into())
    }

    fn value(&self, group: &str, version: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.objects.find(group, version, plural, namespace, name)?.value().ok()
    }

    fn names_node(&self, node: &str, group: &str, version: &str, ask: &RequestInfo) -> bool {
        let object = self.value(group, version, &ask.resource, &ask.namespace, &ask.name);
        object.is_some_and(|object| object["spec"]["nodeName"] == node)
    }

    /// Whether a volume that a pod of the node has claimed needs this secret.
    fn secret_of_a_volume(&self, node: &str, namespace: &str, name: &str) -> bool {
        let claims = self.graph().claims(node);
        claims.into_iter().any(|(claim_namespace, claim)| {
            let object = self.value("", "v1", "persistentvolumeclaims", &claim_namespace, &claim);
            let volume = object.as_ref().and_then(|claim| claim["spec"]["volumeName"].as_str());
            volume.and_then(|volume| self.value("", "v1", "persistentvolumes", "", volume)).is_some_and(
                |volume| {
                    references::is_of_claim(&volume, &claim_namespace, &claim)
                        && references::volume_names_secret(&volume, namespace, name)
                },
            )
        })
    }

    fn service_account(&self, node: &str, ask: &RequestInfo) -> Opinion {
        if ask.verb == "get" && ask.subresource.is_empty() {
            return self.namespaced(node, ask);
        }
        if ask.verb != "create" || ask.name.is_empty() {
            return Err("can only create tokens for individual service accounts".into());
        }
        if ask.subresource != "token" {
            return Err("can only create token subresource of serviceaccount".into());
        }
        self.related(node, ask)
    }

    fn pod(&self, node: &str, ask: &RequestInfo) -> Opinion {
        match (ask.subresource.as_str(), ask.verb.as_str()) {
            ("", "get") => self.get(node, ask),
            ("", "list" | "watch") if ask.fields.required("spec.nodeName") == Some(node) => Ok(()),
            ("", "list" | "watch") if !ask.name.is_empty() => self.related(node, ask),
            ("", "list" | "watch") => {
                Err("can only list/watch pods with spec.nodeName field selector".into())
            }
            // Admission sees to it that it is the node's own pod.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => NOTHING,
        }
    }

    fn slice(&self, node: &str, ask: &RequestInfo) -> Opinion {
        whole(ask, "cannot authorize ResourceSlice subresources")?;
        match ask.verb.as_str() {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(node, ask),
            "watch" | "list" | "deletecollection" if ask.fields.required("spec.nodeName") == Some(node) => Ok(()),
            "watch" | "list" | "deletecollection" => {
                Err("can only list/watch/deletecollection resourceslices with nodeName field selector".into())
            }
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                      delete, deletecollection".into()),
        }
    }

    fn certificate(&self, node: &str, ask: &RequestInfo) -> Opinion {
        whole(ask, "nodes may not access the status subresource of PodCertificateRequests")?;
        match ask.verb.as_str() {
            "create" => Ok(()),
            "get" => self.related(node, ask),
            "list" | "watch" if ask.fields.required("spec.nodeName") == Some(node) => Ok(()),
            "list" | "watch" => {
                Err("can only list/watch podcertificaterequests with nodeName field selector".into())
            }
            verb => Err(format!("nodes may not {verb} podcertificaterequests").into()),
        }
    }

    /// The graph at the state of the store.
    fn graph(&self) -> RwLockReadGuard<'_, Graph> {
        if let Some(pods) = &self.pods {
            self.sync(pods);
        }
        self.graph.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self, pods: &Arc<Resource>) {
        let snapshot = self.objects.snapshot();
        let newest = snapshot.table_revision(pods.table);
        if self.seen.load(Ordering::Acquire) >= newest.get() {
            return;
        }
        let graph = &mut *self.graph.write().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen.load(Ordering::Acquire);
        if seen >= newest.get() {
            return;
        }
        let events = if seen == 0 { None } else { snapshot.events(pods.table, Revision::from(seen)).ok() };
        if let Some(events) = events {
            for event in events {
                match event.kind {
                    EventKind::Put => put(graph, pods, &event.entry),
                    EventKind::Delete => graph.remove(key(&event.entry)),
                }
            }
        } else {
            graph.clear();
            snapshot.range(pods.table, Range::all()).for_each(|entry| put(graph, pods, &entry));
        }
        self.seen.store(newest.get(), Ordering::Release);
    }
}

fn key(entry: &Entry) -> &str {
    std::str::from_utf8(entry.key()).unwrap_or_default()
}

fn put(graph: &mut Graph, pods: &Resource, entry: &Arc<Entry>) {
    let pod = stored(&pods.def, entry);
    let (node, uid) = (pod.header().field("spec.nodeName").unwrap_or_default(), &*pod.header().uid);
    if node.is_empty() {
        graph.remove(key(entry));
    } else if !graph.knows(key(entry), node, uid) {
        graph.set(key(entry), node, uid, &pod.value().unwrap_or_default());
    }
}

fn one_of(verb: &str, allowed: &[&str], why: &'static str) -> Opinion {
    if allowed.contains(&verb) { Ok(()) } else { Err(why.into()) }
}

fn whole(ask: &RequestInfo, why: &'static str) -> Opinion {
    if ask.subresource.is_empty() { Ok(()) } else { Err(why.into()) }
}

fn own_node(node: &str, ask: &RequestInfo) -> Opinion {
    match (ask.subresource.as_str(), ask.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") => match ask.name.as_str() {
            name if name == node => Ok(()),
            "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object").into()),
            other => Err(format!("node '{node}' cannot read '{other}', only its own Node object").into()),
        },
        _ => NOTHING,
    }
}

const WRITING: [&str; 5] = ["get", "create", "update", "patch", "delete"];

fn lease(node: &str, ask: &RequestInfo) -> Opinion {
    one_of(&ask.verb, &WRITING, "can only get, create, update, patch, or delete a node lease")?;
    if ask.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace").into());
    }
    // Of what is created the name is not known here; admission looks at it.
    if ask.verb != "create" && ask.name != node {
        return Err("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

fn csi_node(node: &str, ask: &RequestInfo) -> Opinion {
    one_of(&ask.verb, &WRITING, "can only get, create, update, patch, or delete a CSINode")?;
    whole(ask, "cannot authorize CSINode subresources")?;
    if ask.verb != "create" && ask.name != node {
        return Err("can only access CSINode with the same name as the requesting node".into());
    }
    Ok(())
}

#[async_trait]
impl Authorizer for Node {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        match node_of(user) {
            None => Verdict::NoOpinion(Reason::none()),
            Some("") => Verdict::NoOpinion(format!("unknown node for user {:?}", user.name).into()),
            Some(node) => match self.decide(node, request) {
                Ok(()) => Verdict::Allow(Reason::none()),
                Err(reason) => Verdict::NoOpinion(reason),
            },
        }
    }

    async fn rules(&self, user: &UserInfo, _namespace: &str) -> Rules {
        let Some(_) = node_of(user) else { return Rules::default() };
        let error = "node authorizer does not support user rule resolution".to_owned();
        Rules { rules: Vec::new(), incomplete: true, error: Some(error) }
    }
}
