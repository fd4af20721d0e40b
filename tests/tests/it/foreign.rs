//! Clients in other languages, unmodified: each runs a scenario of its own from `tests/clients`.

use std::{path::PathBuf, process::Command};

use k8s_openapi::api::core::v1::ServiceAccount;
use kplane::Cluster;

use crate::support::{PATIENCE, text, tool};

/// Whether a library is there; says so when it isn't, and fails where everything is required.
fn library(path: &std::path::Path, what: &str) -> bool {
    let found = path.exists();
    if !found {
        assert!(
            std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "this run requires {what}"
        );
        println!("skipped: needs {what}");
    }
    found
}

/// Runs a scenario against a cluster of its own; it must end well.
async fn scenario(mut command: Command) {
    let cluster = Cluster::builder().nodes(2).start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    std::fs::write(&config, &serving.kubeconfig).unwrap();
    let account =
        cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some());
    account.await.unwrap();
    command.env("KUBECONFIG", &config).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && said.contains("all good"), "{said}");
}

fn script(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "clients", name].iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python() {
    let Some(python) = tool("python3", "KPLANE_PYTHON") else { return };
    let asked =
        Command::new(&python).args(["-c", "import kubernetes; print(kubernetes.__file__)"]).output().unwrap();
    let module = PathBuf::from(text(&asked.stdout).trim());
    if !library(&module, "the Python package kubernetes") {
        return;
    }
    let mut command = Command::new(python);
    command.arg(script("python.py"));
    scenario(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node() {
    let Some(node) = tool("node", "KPLANE_NODE") else { return };
    let root = PathBuf::from(std::env::var_os("KPLANE_NODE_CLIENT").unwrap_or_default());
    if !library(&root.join("node_modules/@kubernetes/client-node"), "the npm package @kubernetes/client-node")
    {
        return;
    }
    let mut command = Command::new(node);
    command.arg(script("node.mjs")).env("CLIENT_ROOT", root);
    scenario(command).await;
}
