//! Admission webhooks that are a program in another language, reached by their URL (`tests/clients/webhook.py`).

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kplane::Cluster;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::support::{Kubectl, tool};

/// The program, which ends with the test.
struct Webhook(Child);

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An authority, and a certificate and a key for the loopback address, in PEM.
fn certificates() -> [String; 3] {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    [authority, made.pem(), key.serialize_pem()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_in_python_decides_and_changes() {
    let Some(python) = tool("python3", "KPLANE_PYTHON") else { return };
    let cluster = Cluster::builder().nodes(0).start().await.unwrap();
    let Some(kubectl) = Kubectl::new(cluster).await else { return };
    let [authority, certificate, key] = certificates();
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "clients", "webhook.py"].iter().collect();
    let mut command = Command::new(python);
    command.arg(script).arg(kubectl.file("tls.crt", &certificate)).arg(kubectl.file("tls.key", &key));
    let mut webhook = Webhook(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(webhook.0.stdout.take().unwrap()).lines();
    let port: u16 = lines.next().unwrap().unwrap().parse().unwrap();

    let configuration = |kind: &str, path: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "python"},
            "webhooks": [{"name": "python.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"url": format!("https://127.0.0.1:{port}{path}"), "caBundle": STANDARD.encode(&authority)},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]}]})
    };
    for (kind, path) in
        [("MutatingWebhookConfiguration", "/team"), ("ValidatingWebhookConfiguration", "/images")]
    {
        let file = kubectl.file("webhook.json", &configuration(kind, path).to_string());
        kubectl.run(&format!("create -f {file}")).await;
    }
    let account = "create serviceaccount default";
    let _ = kubectl.run_env(account, &[]).await;
    let (well, said) = kubectl.run_env("run good --image=own/server:1", &[]).await;
    assert!(well && said.contains("Warning: a label was added"), "{said}");
    let labels = kubectl.run("get pod good -o jsonpath={.metadata.labels}").await;
    assert_eq!(labels, r#"{"run":"good","team":"default"}"#);
    let said = kubectl.fail("run bad --image=elsewhere/server:1").await;
    let expected =
        "admission webhook \"python.example.com\" denied the request: not from here: elsewhere/server:1";
    assert!(said.contains(expected), "{said}");
    kubectl.fail("get pod bad").await;

    let told: Vec<String> = lines.by_ref().take(4).map(Result::unwrap).collect();
    let by = "CREATE kubectl-run kubernetes-admin";
    assert_eq!(told, ["/team", "/images", "/team", "/images"].map(|path| format!("{path} {by}")));

    // Nobody is asked any more: what fails is refused, as the policy says.
    drop(webhook);
    let said = kubectl.fail("run late --image=own/server:1").await;
    assert!(said.contains("failed calling webhook \"python.example.com\""), "{said}");
}
