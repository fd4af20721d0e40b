//! Every part of a cluster may do what it has to, by the roles that upstream gives to it, and nothing else is asked for.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::Namespace,
    rbac::v1::ClusterRole,
};
use kplane::Cluster;
use kplane::kapi::audit::{AuditEvent, AuditPolicy, AuditSink};
use kube::{Api, Client, api::DeleteParams};
use serde_json::{Value, json};

use crate::support::PATIENCE;

/// Keeps what was refused for want of a right.
#[derive(Clone, Debug, Default)]
struct Refused {
    lines: Arc<Mutex<BTreeSet<String>>>,
    ending: Arc<AtomicBool>,
}

impl AuditSink for Refused {
    fn record(&self, event: &AuditEvent<'_>) {
        let ask = event.request;
        // In a namespace that is being deleted nothing can be created, whoever may do it.
        let too_late = ask.verb == "create" && self.ending.load(Ordering::Relaxed);
        if event.code == 403 && !too_late {
            let user = event.impersonated.or(event.user).map_or("nobody", |user| &user.name);
            let line = format!("{user}: {} {}/{}/{}", ask.verb, ask.group, ask.resource, ask.subresource);
            self.lines.lock().unwrap().insert(line);
        }
    }
}

async fn create(client: &Client, path: &str, object: &Value) {
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(serde_json::to_vec(object).unwrap()).unwrap();
    let answer = client.request::<Value>(request).await;
    assert!(answer.is_ok(), "{path}: {answer:?}");
}

fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn objects() -> Vec<(&'static str, Value)> {
    let selector = |app: &str| json!({"matchLabels": {"app": app}});
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let job = |app: &str| {
        let mut template = template(app);
        template["spec"]["restartPolicy"] = json!("Never");
        json!({"template": template, "ttlSecondsAfterFinished": 0})
    };
    let mut expired =
        json!({"type": "bootstrap.kubernetes.io/token", "metadata": {"name": "bootstrap-token-abcdef"}});
    expired["stringData"] = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef", "expiration": "2020-01-01T00:00:00Z"});
    vec![
        (
            "/apis/apps/v1/namespaces/busy/deployments",
            json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
            "selector": selector("web"), "template": template("web")}}),
        ),
        (
            "/apis/apps/v1/namespaces/busy/statefulsets",
            json!({"metadata": {"name": "db"}, "spec": {"replicas": 1,
            "serviceName": "db", "selector": selector("db"), "template": template("db")}}),
        ),
        (
            "/apis/apps/v1/namespaces/busy/statefulsets",
            json!({"metadata": {"name": "disk"}, "spec": {"replicas": 1,
            "serviceName": "db", "selector": selector("disk"), "template": template("disk"), "volumeClaimTemplates": [claim],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}}}),
        ),
        (
            "/apis/apps/v1/namespaces/busy/daemonsets",
            json!({"metadata": {"name": "agent"}, "spec": {
            "selector": selector("agent"), "template": template("agent")}}),
        ),
        (
            "/api/v1/namespaces/busy/replicationcontrollers",
            json!({"metadata": {"name": "old"}, "spec": {"replicas": 1,
            "selector": {"app": "old"}, "template": template("old")}}),
        ),
        ("/apis/batch/v1/namespaces/busy/jobs", json!({"metadata": {"name": "once"}, "spec": job("once")})),
        (
            "/apis/batch/v1/namespaces/busy/cronjobs",
            json!({"metadata": {"name": "often"}, "spec": {
            "schedule": "* * * * *", "jobTemplate": {"spec": job("often")}}}),
        ),
        (
            "/api/v1/namespaces/busy/services",
            json!({"metadata": {"name": "web"}, "spec": {
            "selector": {"app": "web"}, "ports": [{"port": 80}]}}),
        ),
        (
            "/api/v1/namespaces/busy/services",
            json!({"metadata": {"name": "plain"}, "spec": {"ports": [{"port": 80}]}}),
        ),
        (
            "/api/v1/namespaces/busy/endpoints",
            json!({"metadata": {"name": "plain"}, "subsets": [
            {"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80}]}]}),
        ),
        (
            "/apis/policy/v1/namespaces/busy/poddisruptionbudgets",
            json!({"metadata": {"name": "web"}, "spec": {
            "minAvailable": 1, "selector": selector("web")}}),
        ),
        (
            "/api/v1/namespaces/busy/resourcequotas",
            json!({"metadata": {"name": "all"}, "spec": {"hard": {"pods": "50"}}}),
        ),
        (
            "/api/v1/namespaces/busy/persistentvolumeclaims",
            json!({"metadata": {"name": "spare"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "/api/v1/persistentvolumes",
            json!({"metadata": {"name": "spare"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}}),
        ),
        ("/api/v1/namespaces/kube-system/secrets", expired),
    ]
}

#[tokio::test]
async fn every_part_of_a_cluster_may_do_what_it_has_to() {
    let refused = Refused::default();
    let sink = Arc::new(refused.clone());
    let cluster = Cluster::builder().nodes(2).audit(AuditPolicy::metadata(), sink).start().await.unwrap();
    let client = cluster.client();
    create(&client, "/api/v1/namespaces", &json!({"metadata": {"name": "busy"}})).await;
    cluster
        .wait_until::<k8s_openapi::api::core::v1::ServiceAccount>("busy", "default", PATIENCE, |found| {
            found.is_some()
        })
        .await
        .unwrap();
    for (path, object) in objects() {
        create(&client, path, &object).await;
    }
    let done = async {
        let wait = "what was wanted";
        let deployed = |found: Option<&Deployment>| {
            found.and_then(|found| found.status.as_ref()?.available_replicas) == Some(2)
        };
        cluster.wait_until("busy", "web", PATIENCE, deployed).await.expect(wait);
        let kept = |found: Option<&StatefulSet>| {
            found.and_then(|found| found.status.as_ref()?.ready_replicas) == Some(1)
        };
        cluster.wait_until("busy", "db", PATIENCE, kept).await.expect(wait);
        let everywhere = |found: Option<&DaemonSet>| {
            found.and_then(|found| found.status.as_ref()).is_some_and(|status| status.number_ready == 2)
        };
        cluster.wait_until("busy", "agent", PATIENCE, everywhere).await.expect(wait);
        let view = |found: Option<&ClusterRole>| {
            found.is_some_and(|found| found.rules.as_ref().is_some_and(|rules| rules.len() > 5))
        };
        cluster.wait_until("", "view", PATIENCE, view).await.expect(wait);
        let gone = |found: Option<&k8s_openapi::api::core::v1::Secret>| found.is_none();
        cluster.wait_until("kube-system", "bootstrap-token-abcdef", PATIENCE, gone).await.expect(wait);
        let deletion = DeleteParams::default();
        Api::<Deployment>::namespaced(client.clone(), "busy")
            .delete("web", &DeleteParams::foreground())
            .await
            .expect(wait);
        cluster
            .wait_until("busy", "web", PATIENCE, |found: Option<&Deployment>| found.is_none())
            .await
            .expect(wait);
        Api::<StatefulSet>::namespaced(client.clone(), "busy").delete("disk", &deletion).await.expect(wait);
        cluster
            .wait_until("busy", "disk", PATIENCE, |found: Option<&StatefulSet>| found.is_none())
            .await
            .expect(wait);
        Api::<DaemonSet>::namespaced(client.clone(), "busy")
            .delete(
                "agent",
                &DeleteParams {
                    propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
                    ..deletion.clone()
                },
            )
            .await
            .expect(wait);
        cluster
            .wait_until("busy", "agent", PATIENCE, |found: Option<&DaemonSet>| found.is_none())
            .await
            .expect(wait);
        Api::<CronJob>::namespaced(client.clone(), "busy").delete("often", &deletion).await.expect(wait);
        Api::<Job>::namespaced(client.clone(), "busy")
            .delete("once", &DeleteParams::background())
            .await
            .expect(wait);
        Api::<k8s_openapi::api::core::v1::Node>::all(client.clone())
            .delete("node-2", &deletion)
            .await
            .expect(wait);
        refused.ending.store(true, Ordering::Relaxed);
        Api::<Namespace>::all(client.clone()).delete("busy", &deletion).await.expect(wait);
        cluster
            .wait_until("", "busy", PATIENCE, |found: Option<&Namespace>| found.is_none())
            .await
            .expect(wait);
    };
    let ended = tokio::time::timeout(PATIENCE / 2, done).await;
    let refused = refused.lines.lock().unwrap().clone();
    assert!(refused.is_empty(), "{refused:#?}");
    ended.expect("in time");
    cluster.shutdown().await.unwrap();
}
