//! What pods get from the account that they run as (upstream's admission plug-in `ServiceAccount`,
//! `plugin/pkg/admission/serviceaccount/admission.go`; Kubernetes, "Configure Service Accounts for Pods").

use kapi::ApiServer;
use serde_json::{Value, json};

use crate::harness::{json as send, server};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn account(server: &ApiServer, account: &Value) {
    let (code, made) = send(server, "POST", ACCOUNTS, account).await;
    assert_eq!(code, 201, "{made}");
}

async fn create(server: &ApiServer, name: &str, spec: &Value) -> (u16, Value) {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    send(server, "POST", PODS, &pod).await
}

#[tokio::test]
async fn pods_get_what_their_account_brings() {
    let server = server().await;
    account(&server, &json!({"metadata": {"name": "default"}})).await;
    let pulls = json!([{"name": "one"}, {"name": "two"}]);
    account(&server, &json!({"metadata": {"name": "pulls"}, "imagePullSecrets": pulls})).await;
    account(&server, &json!({"metadata": {"name": "quiet"}, "automountServiceAccountToken": false})).await;
    let own = json!([{"name": "own"}]);
    for (index, (spec, runs_as, secrets, has_token)) in [
        (json!({}), "default", Value::Null, true),
        (json!({"serviceAccountName": "pulls"}), "pulls", pulls.clone(), true),
        // What the pod says itself counts.
        (json!({"serviceAccountName": "pulls", "imagePullSecrets": own}), "pulls", own.clone(), true),
        (json!({"serviceAccountName": "pulls", "imagePullSecrets": []}), "pulls", pulls.clone(), true),
        (json!({"serviceAccountName": "quiet"}), "quiet", Value::Null, false),
        (
            json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true}),
            "quiet",
            Value::Null,
            true,
        ),
        (json!({"automountServiceAccountToken": false}), "default", Value::Null, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (code, made) = create(&server, &format!("p{index}"), &spec).await;
        assert_eq!(code, 201, "{spec}: {made}");
        let made = &made["spec"];
        assert_eq!(
            (&made["serviceAccountName"], &made["serviceAccount"]),
            (&json!(runs_as), &json!(runs_as))
        );
        assert_eq!(made["imagePullSecrets"], secrets, "{spec}");
        let mounts = made["containers"][0]["volumeMounts"].as_array().into_iter().flatten();
        let token =
            mounts.filter(|mount| mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!(token.count(), usize::from(has_token), "{spec}: {made}");
        let volumes = made["volumes"].as_array().into_iter().flatten();
        let projected =
            volumes.filter(|volume| volume["projected"]["sources"][0].get("serviceAccountToken").is_some());
        assert_eq!(projected.count(), usize::from(has_token), "{spec}: {made}");
    }
    let (code, refused) = create(&server, "none", &json!({"serviceAccountName": "none"})).await;
    let why = "pods \"none\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found";
    assert_eq!((code, refused["message"].as_str()), (403, Some(why)));
}

/// A controller makes the account right after the namespace; a pod that is a little faster waits for it.
#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_account_of_a_new_namespace() {
    let server = server().await;
    let spec = json!({});
    let mut waiting = Box::pin(create(&server, "early", &spec));
    assert!(futures::poll!(&mut waiting).is_pending(), "there is no account yet");
    account(&server, &json!({"metadata": {"name": "default"}})).await;
    let (code, made) = waiting.await;
    assert_eq!((code, &made["spec"]["serviceAccountName"]), (201, &json!("default")), "{made}");
    // Nobody makes this one: the pod is refused after a second at most.
    let (code, gone) = send(&server, "DELETE", &format!("{ACCOUNTS}/default"), &Value::Null).await;
    assert_eq!(code, 200, "{gone}");
    let began = tokio::time::Instant::now();
    let (code, refused) = create(&server, "late", &spec).await;
    let why = "pods \"late\" is forbidden: error looking up service account default/default: serviceaccount \"default\" not found";
    assert_eq!((code, refused["message"].as_str()), (403, Some(why)));
    let waited = began.elapsed();
    assert!(waited.as_millis() > 900 && waited.as_millis() < 1_100, "{waited:?}");
}
