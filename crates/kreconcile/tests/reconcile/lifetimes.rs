//! What stays because it is used, and what goes because its time has come.

use std::time::Duration;

use kcore::TokioClock;
use serde_json::{Value, json};

use crate::{
    controllers::{at_rest, start_some},
    fake::FakeApi,
};

fn finalizers(api: &FakeApi, plural: &str, namespace: &str, name: &str) -> Value {
    api.get(plural, namespace, name).unwrap_or_default()["metadata"]["finalizers"].clone()
}

#[tokio::test(start_paused = true)]
async fn claims_and_volumes_stay_while_they_are_used() {
    let (api, running) = start_some(TokioClock::new(), |name| name.ends_with("-protection-controller"));
    api.add("persistentvolumeclaims", json!({"metadata": {"name": "data", "namespace": "shop"}}));
    api.add("persistentvolumes", json!({"metadata": {"name": "pv"}, "status": {"phase": "Bound"}}));
    api.until("the finalizers", |api| {
        finalizers(api, "persistentvolumeclaims", "shop", "data") == json!(["kubernetes.io/pvc-protection"])
            && finalizers(api, "persistentvolumes", "", "pv") == json!(["kubernetes.io/pv-protection"])
    })
    .await;
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    let spec = json!({"containers": [], "nodeName": "n", "volumes": volumes});
    for name in ["a", "b", "c"] {
        api.add("pods", json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}));
    }
    let deleted =
        |object: &mut Value| object["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    api.edit("persistentvolumeclaims", "shop", "data", deleted);
    api.edit("persistentvolumes", "", "pv", deleted);
    at_rest(&api).await;
    for name in ["a", "b"] {
        api.remove("pods", "shop", name);
    }
    at_rest(&api).await;
    assert!(api.get("persistentvolumeclaims", "shop", "data").is_some(), "one pod is left");
    assert!(api.get("persistentvolumes", "", "pv").is_some(), "it is bound");
    api.remove("pods", "shop", "c");
    api.edit("persistentvolumes", "", "pv", |pv| pv["status"]["phase"] = "Released".into());
    api.until("both to go", |api| {
        api.count("persistentvolumeclaims") == 0 && api.count("persistentvolumes") == 0
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ephemeral_volumes_have_a_claim_of_their_own() {
    let (api, running) = start_some(TokioClock::new(), |name| name == "ephemeral-volume-controller");
    let template =
        json!({"metadata": {"labels": {"kind": "scratch"}}, "spec": {"accessModes": ["ReadWriteOnce"]}});
    let volumes = json!([{"name": "tmp", "ephemeral": {"volumeClaimTemplate": template}}]);
    let pod = |name: &str| json!({"metadata": {"name": name, "namespace": "shop", "uid": name}, "spec": {"containers": [], "volumes": volumes}});
    api.add("persistentvolumeclaims", json!({"metadata": {"name": "late-tmp", "namespace": "shop"}}));
    api.add("pods", pod("p"));
    api.until("the claim", |api| api.get("persistentvolumeclaims", "shop", "p-tmp").is_some()).await;
    let claim = api.get("persistentvolumeclaims", "shop", "p-tmp").unwrap();
    assert_eq!(claim["metadata"]["labels"], json!({"kind": "scratch"}));
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "p");
    assert_eq!(claim["spec"], json!({"accessModes": ["ReadWriteOnce"]}));
    at_rest(&api).await;
    api.remove("persistentvolumeclaims", "shop", "p-tmp");
    api.until("the claim again", |api| api.get("persistentvolumeclaims", "shop", "p-tmp").is_some()).await;
    // What belongs to somebody else is not taken.
    api.add("pods", pod("late"));
    let told = "ephemeral volume tmp: PVC shop/late-tmp was not created for pod shop/late (pod is not owner)";
    api.until("the refusal", |api| api.list("events").iter().any(|event| event["message"] == told)).await;
    running.stop().await;
}

/// The cases of `pkg/controller/resourceclaim/controller_test.go` that make claims and that clean up after pods.
#[tokio::test(start_paused = true)]
async fn resource_claims_are_made_for_pods_and_given_back() {
    let (api, running) = start_some(TokioClock::new(), |name| name == "resourceclaim-controller");
    let claims = json!([{"name": "gpu", "resourceClaimTemplateName": "one"}]);
    let pod = |name: &str| {
        json!({"metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": {"containers": [], "nodeName": "n", "resourceClaims": claims}})
    };
    api.add("pods", pod("p"));
    let told = "PodResourceClaim gpu: resource claim template \"one\": resourceclaimtemplate.resource.k8s.io \"one\" not found";
    api.until("the refusal", |api| api.list("events").iter().any(|event| event["message"] == told)).await;
    let requests = json!({"devices": {"requests": [{"name": "r"}]}});
    let template = json!({"metadata": {"labels": {"kind": "gpu"}}, "spec": requests});
    api.add(
        "resourceclaimtemplates",
        json!({"metadata": {"name": "one", "namespace": "shop"}, "spec": template}),
    );
    let statuses = |api: &FakeApi, name: &str| {
        api.get("pods", "shop", name).unwrap_or_default()["status"]["resourceClaimStatuses"].clone()
    };
    api.until("the name", |api| !statuses(api, "p").is_null()).await;
    api.add("pods", pod("q"));
    api.until("the second name", |api| !statuses(api, "q").is_null()).await;
    at_rest(&api).await;
    assert_eq!(api.count("resourceclaims"), 2, "one for each");
    let name = statuses(&api, "p")[0]["resourceClaimName"].as_str().unwrap().to_owned();
    assert!(name.starts_with("p-gpu-"), "{name}");
    let claim = api.get("resourceclaims", "shop", &name).unwrap();
    assert_eq!((&claim["metadata"]["labels"], &claim["spec"]), (&json!({"kind": "gpu"}), &requests));
    assert_eq!(claim["metadata"]["annotations"]["resource.kubernetes.io/pod-claim-name"], "gpu");

    // What is allocated is reserved for a pod that is on its node; a claim that was deleted is made again.
    api.edit("resourceclaims", "shop", &name, |claim| {
        claim["metadata"]["finalizers"] = json!(["resource.kubernetes.io/delete-protection"]);
        claim["status"]["allocation"] = json!({"devices": {"results": []}});
    });
    let users = |api: &FakeApi| {
        let claim = api.get("resourceclaims", "shop", &name).unwrap_or_default();
        let users = claim["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
        users.iter().map(|user| user["uid"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    api.until("the reservation", |api| users(api) == ["p"]).await;
    let other = statuses(&api, "q")[0]["resourceClaimName"].as_str().unwrap().to_owned();
    api.remove("resourceclaims", "shop", &other);
    api.until("another claim", |api| {
        api.count("resourceclaims") == 2 && statuses(api, "q")[0]["resourceClaimName"] != *other
    })
    .await;

    // A pod that has ended gives everything back.
    api.edit("pods", "shop", "p", |pod| pod["status"]["phase"] = "Succeeded".into());
    api.until("the claim to go", |api| api.get("resourceclaims", "shop", &name).is_none()).await;
    at_rest(&api).await;
    assert_eq!(api.count("resourceclaims"), 1, "the other pod runs");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn requests_and_tokens_go_when_their_time_has_come() {
    let start = TokioClock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let (api, running) = start_some(start, |name| name.ends_with("-cleaner-controller"));
    let spec = json!({"request": "", "signerName": "example.com/signer"});
    api.add("certificatesigningrequests", json!({"metadata": {"name": "waits"}, "spec": spec}));
    let denied = json!([{"type": "Denied", "status": "True", "lastUpdateTime": "2030-01-01T00:00:00Z"}]);
    api.add(
        "certificatesigningrequests",
        json!({"metadata": {"name": "denied"}, "spec": spec, "status": {"conditions": denied}}),
    );
    // 2030-01-01T00:30:00Z
    let token = json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token", "data": {"expiration": "MjAzMC0wMS0wMVQwMDozMDowMFo="}});
    api.add("secrets", token);
    tokio::time::sleep(Duration::from_secs(29 * 60)).await;
    assert_eq!((api.count("secrets"), api.count("certificatesigningrequests")), (1, 2));
    api.until("the token to go", |api| api.count("secrets") == 0).await;
    tokio::time::sleep(Duration::from_secs(29 * 60)).await;
    assert_eq!(api.count("certificatesigningrequests"), 2);
    api.until("the denied one to go", |api| api.get("certificatesigningrequests", "", "denied").is_none())
        .await;
    tokio::time::sleep(Duration::from_secs(22 * 3600)).await;
    assert_eq!(api.count("certificatesigningrequests"), 1);
    api.until("the other to go", |api| api.count("certificatesigningrequests") == 0).await;
    running.stop().await;
}
