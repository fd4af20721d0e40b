//! schemathesis reads the OpenAPI that is served and makes up requests from it, thousands of them, some as the schema says and
//! some not: whatever comes, the answer is never a server's error.

use std::{
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    api::core::v1::ServiceAccount,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kplane::{
    Cluster,
    kapi::authn::{MASTERS, StaticTokens, UserInfo},
};
use kube::Client;
use serde_json::{Value, json};

use crate::support::{PATIENCE, text, tool};

/// The documents, and which of their paths: together every mechanism, none twice.
const DOCUMENTS: &[(&str, &str)] = &[
    ("api/v1", "/(pods|configmaps)(/|$)"),
    ("api/v1", "/(services|namespaces/.name.|nodes)(/|$)"),
    ("apis/apps/v1", "/(deployments|statefulsets)(/|$)"),
    ("apis/batch/v1", "/(jobs|cronjobs)(/|$)"),
    ("apis/networking.k8s.io/v1", "/(ingresses|networkpolicies)(/|$)"),
    ("apis/lab.example/v1", "/widgets(/|$)"),
];
/// Comes after all others: it deletes definitions, and with them what another document is about.
const LAST: &[(&str, &str)] = &[("apis/apiextensions.k8s.io/v1", "/customresourcedefinitions(/|$)")];
/// Paths whose answer is rightly a server's error: a proxy answers 503 when there is nothing behind it
/// (`registry/core/{pod,service}/storage`).
const EXCLUDED: &str = "/proxy(/|$)";
/// What the whole run makes up at least, however busy the machine is, so that a run that tests nothing fails; on an idle one it is
/// several thousand.
const CASES_MIN: usize = 500;
const SEED: &str = "20250601";
/// Requests for each operation that are made up from the whole schema, which takes schemathesis long.
const EXAMPLES: &str = "1";
/// How long it goes through the values at the limits of each parameter and field, in seconds for each document.
const COVERAGE_SECONDS: &str = "4";

/// An object of each resource, named `sample`: the hooks lead most requests to it.
fn samples() -> Vec<(&'static str, Value)> {
    let labels = json!({"app": "sample"});
    let template =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let workload = json!({"selector": {"matchLabels": labels}, "template": template});
    let once = json!({"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    vec![
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition()),
        ("/api/v1/namespaces/default/pods", json!({"spec": template["spec"]})),
        ("/api/v1/namespaces/default/configmaps", json!({"data": {"a": "b"}})),
        ("/api/v1/namespaces/default/services", json!({"spec": {"ports": [{"port": 80}]}})),
        ("/api/v1/namespaces", json!({})),
        ("/api/v1/nodes", json!({})),
        ("/apis/apps/v1/namespaces/default/deployments", json!({"spec": workload})),
        ("/apis/apps/v1/namespaces/default/statefulsets", json!({"spec": workload})),
        ("/apis/batch/v1/namespaces/default/jobs", json!({"spec": {"template": once}})),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            json!({"spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": once}}}}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            json!({"spec": {"podSelector": {}}}),
        ),
        (
            "/apis/lab.example/v1/namespaces/default/widgets",
            json!({"spec": {"size": 1, "parts": [{"name": "a"}]}}),
        ),
    ]
}

/// A kind with most of what a structural schema may say.
fn definition() -> Value {
    let spec = json!({"type": "object", "required": ["size"], "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 1},
        "port": {"x-kubernetes-int-or-string": true},
        "colour": {"type": "string", "enum": ["red", "green"], "default": "red"},
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 20, "nullable": true},
        "when": {"type": "string", "format": "date-time"},
        "parts": {"type": "array", "maxItems": 10, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}, "count": {"type": "integer", "default": 1},
            }}},
        "tags": {"type": "array", "maxItems": 10, "x-kubernetes-list-type": "set", "items": {"type": "string", "maxLength": 20}},
        "extra": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "limits": {"type": "object", "maxProperties": 5, "additionalProperties": {"type": "number"}},
    }, "x-kubernetes-validations": [{"rule": "!has(self.tags) || self.tags.size() <= self.size"}]});
    let schema = json!({"type": "object", "properties": {
        "spec": spec, "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
    }});
    json!({"metadata": {"name": "widgets.lab.example"}, "spec": {
        "group": "lab.example", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.replicas"}}}],
    }})
}

async fn prepare(client: Client) {
    for (path, mut sample) in samples() {
        if sample["metadata"].is_null() {
            sample["metadata"] = json!({"name": "sample"});
        }
        let request = http::Request::post(path).header("content-type", "application/json");
        let made = client.request::<Value>(request.body(sample.to_string().into_bytes()).unwrap()).await;
        made.unwrap_or_else(|error| panic!("{path}: {error}"));
        if path.ends_with("customresourcedefinitions") {
            let established = kube::runtime::conditions::is_crd_established();
            let definitions = kube::Api::<CustomResourceDefinition>::all(client.clone());
            let wait = kube::runtime::wait::await_condition(definitions, "widgets.lab.example", established);
            tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
        }
    }
}

/// Runs schemathesis over one document; how many requests it made.
async fn explore(
    program: PathBuf,
    server: String,
    folder: PathBuf,
    document: &str,
    paths: &str,
    phase: &str,
) -> usize {
    let hooks: PathBuf = [env!("CARGO_MANIFEST_DIR"), "clients"].iter().collect();
    let mut command = Command::new(program);
    command.args([
        "run",
        &format!("{server}/openapi/v3/{document}"),
        "--url",
        &server,
        "--no-color",
        "--warnings",
        "off",
    ]);
    command.args([
        "--checks",
        "not_a_server_error",
        "--seed",
        SEED,
        "--no-shrink",
        "--request-timeout",
        "10",
    ]);
    command.args(["--phases", phase, "--suppress-health-check", "all", "--max-examples", EXAMPLES]);
    command.args(["--include-path-regex", paths, "--exclude-path-regex", EXCLUDED]);
    if phase == "coverage" {
        command.args(["--max-time", COVERAGE_SECONDS]);
    }
    command.args(["--header", "Authorization: Bearer s3cret", "--tls-verify"]).arg(folder.join("ca.pem"));
    command.env("SCHEMATHESIS_HOOKS", "schemathesis_hooks").env("PYTHONPATH", hooks);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    command.current_dir(&folder);
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::time::timeout(2 * PATIENCE, run).await.unwrap().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{document} {paths}, {phase}:\n{said}");
    // "34 generated, 30 passed", or "No test cases were generated".
    let counted = said.lines().find_map(|line| line.trim().split_once(" generated")?.0.parse().ok());
    // On a busy machine the time may be up before the first request; how many there were in all is checked at the end.
    if counted.is_none() && said.contains("Time limit reached") {
        return 0;
    }
    counted.unwrap_or_else(|| panic!("no count of cases in:\n{said}"))
}

/// How the threads of this test's runtime are called, so that a panic on one of them is known for its own.
const THREADS: &str = "explored-cluster";

#[test]
fn no_request_makes_the_server_fail() {
    let Some(program) = tool("st", "KPLANE_SCHEMATHESIS") else { return };
    // A task that panics takes nothing with it, so its panic is seen only here.
    let panics: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, before) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some(THREADS) {
            seen.lock().unwrap().push(panic.to_string());
        }
        before(panic);
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(THREADS)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(explore_all(program));
    assert_eq!(*panics.lock().unwrap(), Vec::<String>::new());
}

async fn explore_all(program: PathBuf) {
    let tokens = StaticTokens::new().with("s3cret", UserInfo::new("explorer", [MASTERS]));
    let cluster =
        Cluster::builder().nodes(0).api(|api| api.authenticator(Arc::new(tokens))).start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let account =
        cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some());
    account.await.unwrap();
    prepare(cluster.client()).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), cluster.ca_pem()).unwrap();
    let server = format!("https://{}", serving.address);
    let mut counts = Vec::new();
    for documents in [DOCUMENTS, LAST] {
        let runs = documents.iter().flat_map(|document| [(document, "fuzzing"), (document, "coverage")]);
        let made: Vec<usize> = futures::stream::iter(runs)
            .map(|((document, paths), phase)| {
                let (program, server, folder) = (program.clone(), server.clone(), folder.path().to_owned());
                tokio::spawn(explore(program, server, folder, document, paths, phase))
            })
            .buffer_unordered(2)
            .try_collect()
            .await
            .unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()));
        counts.extend(made);
    }
    let made: usize = counts.iter().sum();
    assert!(made >= CASES_MIN, "only {made} requests: {counts:?}");
    cluster.shutdown().await.unwrap();
}
