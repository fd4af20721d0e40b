//! Certificates that are asked for, approved and used (KEP-1513).

use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::SelfSubjectReview,
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
    },
};
use kplane::Cluster;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::await_condition,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

use crate::support::PATIENCE;

fn asked(name: &str, signer: &str, params: &CertificateParams, key: &KeyPair) -> CertificateSigningRequest {
    let pem = params.serialize_request(key).unwrap().pem().unwrap();
    CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(
                ["digital signature", "key encipherment", "client auth"].map(str::to_owned).to_vec(),
            ),
            expiration_seconds: Some(3600),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

fn named(name: &str, group: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, group);
    params
}

/// As `kubectl certificate approve` does it.
async fn approve(requests: &Api<CertificateSigningRequest>, name: &str) {
    let condition = json!({"type": "Approved", "status": "True", "reason": "KubectlApprove",
        "message": "This CSR was approved by kubectl certificate approve."});
    let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    requests.patch_approval(name, &PatchParams::default(), &patch).await.unwrap();
}

/// Waits until the request has a certificate.
async fn issued(requests: &Api<CertificateSigningRequest>, name: &str) -> String {
    let has = |found: Option<&CertificateSigningRequest>| {
        found.and_then(|found| found.status.as_ref()?.certificate.as_ref()).is_some()
    };
    let waited = tokio::time::timeout(PATIENCE, await_condition(requests.clone(), name, has)).await;
    let found = waited.expect("no certificate").unwrap().unwrap();
    String::from_utf8(found.status.unwrap().certificate.unwrap().0).unwrap()
}

/// A client of the server at `address` with this certificate.
async fn client(address: std::net::SocketAddr, authority: &str, certificate: &str, key: &str) -> Client {
    let base64 =
        |text: &str| serde_json::to_value(ByteString(text.into())).unwrap().as_str().unwrap().to_owned();
    let config: Kubeconfig = serde_json::from_value(json!({
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://{address}"), "certificate-authority-data": base64(authority)}}],
        "users": [{"name": "u", "user": {
            "client-certificate-data": base64(certificate), "client-key-data": base64(key)}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }))
    .unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approved_request_gives_a_certificate_that_works() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let key = KeyPair::generate().unwrap();
    let request = asked("jane", "kubernetes.io/kube-apiserver-client", &named("jane", "dev"), &key);
    requests.create(&PostParams::default(), &request).await.unwrap();

    approve(&requests, "jane").await;
    let certificate = issued(&requests, "jane").await;

    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::default_namespaced(cluster.client());
    let root = tokio::time::timeout(
        PATIENCE,
        await_condition(maps, "kube-root-ca.crt", |map: Option<&_>| map.is_some()),
    );
    let authority = root.await.unwrap().unwrap().unwrap().data.unwrap()["ca.crt"].clone();
    let jane = client(serving.address, &authority, &certificate, &key.serialize_pem()).await;
    let review: SelfSubjectReview =
        Api::all(jane).create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    let user = review.status.unwrap().user_info.unwrap();
    assert_eq!(user.username.as_deref(), Some("jane"));
    assert!(user.groups.unwrap().contains(&"dev".to_owned()));
    cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_its_certificate_by_itself_and_others_fail() {
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let key = KeyPair::generate().unwrap();
    // The asker may do everything, and so ask for a node, too.
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let request = asked("node", signer, &named("system:node:a", "system:nodes"), &key);
    requests.create(&PostParams::default(), &request).await.unwrap();
    issued(&requests, "node").await;
    let found = requests.get("node").await.unwrap();
    let conditions = found.status.unwrap().conditions.unwrap();
    assert_eq!(conditions[0].reason.as_deref(), Some("AutoApproved"));

    let mut request = asked("wrong", "kubernetes.io/kube-apiserver-client", &named("jane", "dev"), &key);
    request.spec.usages = Some(vec!["server auth".to_owned()]);
    requests.create(&PostParams::default(), &request).await.unwrap();
    approve(&requests, "wrong").await;
    let failed = |found: Option<&CertificateSigningRequest>| {
        let conditions = found.and_then(|found| found.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "Failed"
                && condition.message.as_deref() == Some("invalid usage for client certificate: server auth")
        })
    };
    let failed = tokio::time::timeout(PATIENCE, await_condition(requests, "wrong", failed)).await;
    failed.expect("it did not fail").unwrap();
    cluster.shutdown().await.unwrap();
}
