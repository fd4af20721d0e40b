//! What exists in every cluster from its first moment: the system's namespaces, the service `kubernetes`, the priority
//! classes of system pods, the priority levels and flow schemas of requests, the range of cluster IPs, and the roles and
//! bindings of the bootstrap policy, which are brought up to date at each start.
//!
//! Service accounts and the CA's ConfigMap come from controllers.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    authn::{MASTERS, UserInfo},
    authz::{
        self,
        bootstrap::{Item, Step, reconcile},
    },
    error::ApiResult,
    meta,
    registry::Resource,
    request::DeleteOptions,
    server::Inner,
    write::{Call, Written},
};

/// The user that the server writes as.
const USER: &str = "system:apiserver";
/// The group of roles and bindings.
const RBAC: &str = "rbac.authorization.k8s.io";

/// Creates what is missing.
pub(crate) async fn run(server: &Arc<Inner>) -> ApiResult<()> {
    for name in ["kube-system", "kube-public", "kube-node-lease", "default"] {
        create(
            server,
            "",
            "namespaces",
            "",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )
        .await?;
    }
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            "description": description,
        });
        create(server, "scheduling.k8s.io", "priorityclasses", "", class).await?;
    }
    let (levels, schemas) = crate::fairness::bootstrap_objects();
    for (plural, objects) in [("prioritylevelconfigurations", levels), ("flowschemas", schemas)] {
        for object in objects {
            create(server, "flowcontrol.apiserver.k8s.io", plural, "", object).await?;
        }
    }
    let addresses = &server.addresses;
    let second = addresses.second.map(|(network, prefix)| format!("{network}/{prefix}"));
    let cidrs: Vec<String> = [addresses.cidr()].into_iter().chain(second).collect();
    let range = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
    });
    create(server, "networking.k8s.io", "servicecidrs", "", range).await?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": addresses.first().to_string(), "type": "ClusterIP",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    });
    create(server, "", "services", "default", service).await?;
    // Who serves the API fills in where (in upstream the endpoint reconciler of the API servers).
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "endpoints": [], "ports": [],
    });
    create(server, "discovery.k8s.io", "endpointslices", "default", slice).await?;
    track_legacy_tokens(server).await?;
    for item in authz::bootstrap::policy() {
        ensure(server, item).await?;
    }
    Ok(())
}

/// Says since when the use of tokens in secrets is noted (KEP-2799): the controller that deletes unused ones goes by it.
async fn track_legacy_tokens(server: &Arc<Inner>) -> ApiResult<()> {
    let now = server.objects.clock().now();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"},
        "data": {"since": now.strftime("%Y-%m-%d").to_string()},
    });
    create(server, "", "configmaps", "kube-system", map).await
}

/// Makes an object of the bootstrap policy, or brings it up to date.
async fn ensure(server: &Arc<Inner>, item: Item) -> ApiResult<()> {
    let Some(resource) = server.objects.registry().find(RBAC, "v1", item.plural) else {
        return Ok(());
    };
    let name = item.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let user = UserInfo::new(USER, [MASTERS]);
    let mut call = call(server, &user, &resource, &item.namespace, &name);
    // The policy's objects are in canonical form, of which a test sees to.
    call.foreign_admission = server.foreign_admission;
    let Some(existing) = server.objects.get(&resource, &item.namespace, &name) else {
        return done(call.create(item.object).await);
    };
    match reconcile(&existing.value().map_err(kcore::Status::internal)?, &item.object) {
        Step::Keep => Ok(()),
        // Somebody may change the object at the same time, so that what is to be done is looked at again.
        Step::Update(_) => done(
            call.update(&|current| match reconcile(current, &item.object) {
                Step::Update(mut wanted) => {
                    meta::drop_revision(&mut wanted);
                    Ok(wanted)
                }
                _ => Ok(current.clone()),
            })
            .await,
        ),
        Step::Recreate => {
            let options =
                DeleteOptions { uid: Some(existing.header().uid.to_string()), ..Default::default() };
            match call.delete(&options).await {
                Err(error) if !error.0.is("NotFound") => Err(error),
                _ => done(call.create(item.object).await),
            }
        }
    }
}

/// Another server over the same store may have been faster.
fn done(result: ApiResult<Written>) -> ApiResult<()> {
    match result {
        Err(error) if error.0.is("AlreadyExists") || error.0.is("NotFound") => Ok(()),
        result => result.map(|_| ()),
    }
}

fn call<'a>(
    server: &'a Inner,
    user: &'a UserInfo,
    resource: &'a Resource,
    namespace: &'a str,
    name: &'a str,
) -> Call<'a> {
    Call {
        admission: &server.admission,
        // These objects have not been decoded from a body, so they are checked here.
        foreign_admission: true,
        ..Call::internal(server, user, resource, "", namespace, name)
    }
}

async fn create(
    server: &Arc<Inner>,
    group: &str,
    plural: &str,
    namespace: &str,
    object: Value,
) -> ApiResult<()> {
    let Some(resource) = server.objects.registry().find(group, "v1", plural) else {
        return Ok(());
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if server.objects.get(&resource, namespace, &name).is_some() {
        return Ok(());
    }
    let user = UserInfo::new(USER, [MASTERS]);
    done(call(server, &user, &resource, namespace, &name).create(object).await)
}
