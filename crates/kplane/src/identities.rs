//! Who the parts of a cluster are to its API server: each is a user of its own, and may do what the roles allow to it.
//!
//! The users are upstream's, so that the bootstrap policy already says what they may do; a controller is the service account
//! of upstream's controller of the same task. The agent of all nodes together and the cluster's DNS have no counterpart
//! there: the one is bound to upstream's role for a node, the other to the role that kubeadm makes for it; the
//! controllers of Ingresses and Gateways and what enforces network policies have roles of their own. Controllers of
//! the embedder's own, and a scheduler with profiles of theirs, are administrators, since nobody else knows what they need.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// The user that all controllers read as.
pub(crate) const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// The user of the scheduler.
pub(crate) const SCHEDULER: &str = "system:kube-scheduler";
/// The user of the service proxy.
pub(crate) const PROXY: &str = "system:kube-proxy";
/// The user of the agent of all nodes.
pub(crate) const NODES: &str = "kplane:nodes";
/// The user that the API server is to nodes elsewhere, as kubeadm names it.
pub(crate) const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
/// The user of the DNS server, as kubeadm names it.
pub(crate) const DNS: &str = "system:serviceaccount:kube-system:coredns";
/// The user of the ingress controller.
pub(crate) const INGRESS: &str = "system:serviceaccount:kube-system:ingress-controller";
/// The user of what enforces network policies.
pub(crate) const POLICIES: &str = "system:serviceaccount:kube-system:network-policy";
/// The user of the controller of Gateways.
pub(crate) const GATEWAY: &str = "system:serviceaccount:kube-system:gateway-controller";
/// The group of the controllers within the process, which no token has; and its role.
const CONTROLLERS: &str = "kplane:controllers";
/// The role of the controller that makes the objects of services' addresses.
const ADDRESSES: &str = "kplane:service-addresses";
/// The user of controllers that are not built in.
const RECONCILERS: &str = "kplane:reconcilers";

/// Controllers whose service account has another name than they have.
const ACCOUNTS: &[(&str, &str)] = &[
    ("serviceaccount-controller", "service-account-controller"),
    ("root-ca-certificate-publisher-controller", "root-ca-cert-publisher"),
    ("replicationcontroller-controller", "replication-controller"),
    ("daemonset-controller", "daemon-set-controller"),
    ("endpointslice-mirroring-controller", "endpointslicemirroring-controller"),
    ("endpoints-controller", "endpoint-controller"),
    ("garbage-collector-controller", "generic-garbage-collector"),
    ("node-ipam-controller", "node-controller"),
    ("node-lifecycle-controller", "node-controller"),
    ("taint-eviction-controller", "node-controller"),
    ("pod-garbage-collector-controller", "pod-garbage-collector"),
    ("persistentvolumeclaim-protection-controller", "pvc-protection-controller"),
    ("persistentvolume-protection-controller", "pv-protection-controller"),
    ("certificatesigningrequest-approving-controller", "certificate-controller"),
    ("certificatesigningrequest-cleaner-controller", "certificate-controller"),
    ("certificatesigningrequest-signing-controller", "certificate-controller"),
    ("token-cleaner-controller", "token-cleaner"),
    ("bootstrap-signer-controller", "bootstrap-signer"),
    ("persistentvolume-binder-controller", "persistent-volume-binder"),
    ("local-volume-provisioner", "persistent-volume-binder"),
    ("persistentvolume-attach-detach-controller", "attachdetach-controller"),
    ("legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner"),
    ("service-cidr-controller", "service-cidrs-controller"),
    ("horizontal-pod-autoscaler-controller", "horizontal-pod-autoscaler"),
    ("resourceclaim-controller", "resource-claim-controller"),
    ("cloud-node-controller", "node-controller"),
    ("cloud-node-lifecycle-controller", "node-controller"),
    ("service-lb-controller", "service-controller"),
    ("node-route-controller", "route-controller"),
];

/// The user that stands for whoever holds the cluster.
pub(crate) fn admin() -> UserInfo {
    UserInfo::new("kubernetes-admin", [MASTERS])
}

/// A client of a part of the cluster.
pub(crate) fn client(server: &ApiServer, name: &str) -> Client {
    Client::new(server.as_user(UserInfo::new(name, [] as [&str; 0])), "default")
}

/// The client that a controller writes with.
pub(crate) fn controller(server: &ApiServer, name: &str) -> Client {
    let known = ACCOUNTS.iter().find(|(controller, _)| *controller == name);
    let account = known.map_or(name, |(_, account)| account);
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", CONTROLLERS];
    let user = UserInfo::new(format!("system:serviceaccount:kube-system:{account}"), groups);
    Client::new(server.as_user(user), "default")
}

/// A client for controllers that are not built in.
pub(crate) fn reconcilers(server: &ApiServer) -> Client {
    Client::new(server.as_user(UserInfo::new(RECONCILERS, [MASTERS])), "default")
}

/// A client for a scheduler whose plug-ins are not all built in: they may ask for any kind.
pub(crate) fn own_scheduler(server: &ApiServer) -> Client {
    Client::new(server.as_user(UserInfo::new(SCHEDULER, [MASTERS])), "default")
}

const GROUP: &str = "rbac.authorization.k8s.io";

/// Lets the controllers patch what upstream's replace: their roles there have the verb `update` alone.
///
/// # Errors
/// When role or binding can't be made.
pub(crate) async fn admit_controllers(admin: &Client) -> Result<(), kube::Error> {
    let patch = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["patch"]});
    let role = json!({
        "metadata": {"name": CONTROLLERS},
        "rules": [
            patch(
                "",
                &[
                    "endpoints",
                    "namespaces/status",
                    "persistentvolumeclaims",
                    "persistentvolumeclaims/status",
                    "persistentvolumes",
                    "persistentvolumes/status",
                    "replicationcontrollers/status",
                    "resourcequotas/status",
                ],
            ),
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info", "kube-root-ca.crt"], "verbs": ["patch"]},
            patch("*", &["*/scale"]),
            patch("autoscaling", &["horizontalpodautoscalers/status"]),
            patch("certificates.k8s.io", &["certificatesigningrequests/approval", "certificatesigningrequests/status"]),
            patch(
                "apps",
                &[
                    "daemonsets/status",
                    "deployments",
                    "deployments/status",
                    "replicasets/status",
                    "statefulsets/status",
                ],
            ),
            patch("batch", &["cronjobs/status", "jobs/status"]),
            patch("discovery.k8s.io", &["endpointslices"]),
            patch("policy", &["poddisruptionbudgets/status"]),
            patch("scheduling.k8s.io", &["podgroups"]),
            patch("storage.k8s.io", &["volumeattributesclasses"]),
            patch("storagemigration.k8s.io", &["storageversionmigrations/status"]),
        ],
    });
    make::<ClusterRole>(admin, role).await?;
    let group = json!({"apiGroup": GROUP, "kind": "Group", "name": CONTROLLERS});
    bind(admin, CONTROLLERS, CONTROLLERS, group).await?;
    // In upstream the API server itself makes these objects.
    let role = json!({
        "metadata": {"name": ADDRESSES},
        "rules": [
            {"apiGroups": [""], "resources": ["services"], "verbs": ["get"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ipaddresses"], "verbs": ["create", "delete"]},
        ],
    });
    make::<ClusterRole>(admin, role).await?;
    let account = json!({"kind": "ServiceAccount", "name": "ipallocator-repair-controller", "namespace": "kube-system"});
    bind(admin, ADDRESSES, ADDRESSES, account).await
}

/// Lets the API server ask nodes elsewhere for everything that their agents serve, by upstream's role for that and no more: the
/// certificate has no group, where kubeadm's has one that may do anything in the cluster.
///
/// # Errors
/// When the binding can't be made.
pub(crate) async fn admit_kubelet_client(admin: &Client) -> Result<(), kube::Error> {
    let user = json!({"apiGroup": GROUP, "kind": "User", "name": KUBELET_CLIENT});
    bind(admin, "kplane:kubelet-client", "system:kubelet-api-admin", user).await
}

/// Lets the agent of the nodes do what a node may.
///
/// # Errors
/// When the binding can't be made.
pub(crate) async fn admit_nodes(admin: &Client) -> Result<(), kube::Error> {
    // Who may look at objects may see what pods and nodes use: the role that comes with metrics-server.
    let labels = ["admin", "edit", "view"];
    let labels = labels.map(|role| (format!("rbac.authorization.k8s.io/aggregate-to-{role}"), json!("true")));
    let role = json!({
        "metadata": {"name": "system:aggregated-metrics-reader", "labels": labels.into_iter().collect::<Map<_, _>>()},
        "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    });
    make::<ClusterRole>(admin, role).await?;
    bind(admin, NODES, "system:node", json!({"apiGroup": GROUP, "kind": "User", "name": NODES})).await
}

/// Lets the DNS server read what it answers from.
///
/// # Errors
/// When role or binding can't be made.
pub(crate) async fn admit_dns(admin: &Client) -> Result<(), kube::Error> {
    let role = json!({
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    });
    make::<ClusterRole>(admin, role).await?;
    let account = json!({"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"});
    bind(admin, "system:coredns", "system:coredns", account).await
}

/// Lets the ingress controller read what it serves by, and say where that is.
///
/// # Errors
/// When role or binding can't be made.
pub(crate) async fn admit_ingress(admin: &Client) -> Result<(), kube::Error> {
    let role = json!({
        "metadata": {"name": "kplane:ingress"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "secrets"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"], "verbs": ["list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["patch"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
        ],
    });
    make::<ClusterRole>(admin, role).await?;
    let account = json!({"kind": "ServiceAccount", "name": "ingress-controller", "namespace": "kube-system"});
    bind(admin, "kplane:ingress", "kplane:ingress", account).await
}

/// Lets what enforces network policies read them, and whom they are about.
///
/// # Errors
/// When role or binding can't be made.
pub(crate) async fn admit_policies(admin: &Client) -> Result<(), kube::Error> {
    let role = json!({
        "metadata": {"name": "kplane:network-policy"},
        "rules": [
            {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
        ],
    });
    make::<ClusterRole>(admin, role).await?;
    let account = json!({"kind": "ServiceAccount", "name": "network-policy", "namespace": "kube-system"});
    bind(admin, "kplane:network-policy", "kplane:network-policy", account).await
}

/// Lets the controller of Gateways read what it serves by, and say what became of it.
///
/// # Errors
/// When role or binding can't be made.
pub(crate) async fn admit_gateway(admin: &Client) -> Result<(), kube::Error> {
    let statuses = [
        "gatewayclasses/status",
        "gateways/status",
        "listenersets/status",
        "httproutes/status",
        "grpcroutes/status",
        "tlsroutes/status",
        "backendtlspolicies/status",
    ];
    let role = json!({
        "metadata": {"name": "kplane:gateway"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "secrets", "namespaces", "configmaps"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            {"apiGroups": ["gateway.networking.k8s.io"], "resources": ["*"], "verbs": ["list", "watch"]},
            {"apiGroups": ["gateway.networking.k8s.io"], "resources": statuses, "verbs": ["patch"]},
        ],
    });
    make::<ClusterRole>(admin, role).await?;
    let account = json!({"kind": "ServiceAccount", "name": "gateway-controller", "namespace": "kube-system"});
    bind(admin, "kplane:gateway", "kplane:gateway", account).await
}

async fn bind(admin: &Client, name: &str, role: &str, subject: Value) -> Result<(), kube::Error> {
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    });
    make::<ClusterRoleBinding>(admin, binding).await
}

/// Makes an object unless it is there.
async fn make<K>(admin: &Client, object: Value) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    let object: K = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    match Api::<K>::all(admin.clone()).create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        result => result.map(|_| ()),
    }
}

/// A function that gives each controller its client.
pub(crate) fn controllers(server: &ApiServer) -> Arc<dyn Fn(&str) -> Client + Send + Sync> {
    let server = server.clone();
    Arc::new(move |name: &str| controller(&server, name))
}
