//! A real helm with a chart of the usual shape: hooks, tests, definitions and their objects (helm's command reference).

use std::process::{Command, Stdio};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ServiceAccount};
use kplane::Cluster;
use kube::Api;

use crate::support::{PATIENCE, text, tool};

/// helm, pointed at a cluster.
struct Helm {
    cluster: Cluster,
    program: std::path::PathBuf,
    folder: tempfile::TempDir,
}

impl Helm {
    async fn new() -> Option<Self> {
        let program = tool("helm", "KPLANE_HELM")?;
        let cluster = Cluster::builder().nodes(2).start().await.unwrap();
        let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config"), &serving.kubeconfig).unwrap();
        let account =
            cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some());
        account.await.unwrap();
        Some(Self { cluster, program, folder })
    }

    /// Runs helm; whether it succeeded and what it said.
    async fn try_run(&self, line: &str) -> (bool, String) {
        let mut command = Command::new(&self.program);
        command
            .args(line.split_whitespace())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("KUBECONFIG", self.folder.path().join("config")).env("HOME", self.folder.path());
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/charts")).stdin(Stdio::null());
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    async fn run(&self, line: &str) -> String {
        let (good, said) = self.try_run(line).await;
        assert!(good, "helm {line}\n{said}");
        said
    }

    async fn replicas(&self) -> Option<i32> {
        let api: Api<Deployment> = Api::default_namespaced(self.cluster.client());
        api.get_opt("one-web").await.unwrap().and_then(|found| found.status?.ready_replicas)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chart_from_install_to_uninstall() {
    let Some(helm) = Helm::new().await else { return };
    let installed = helm.run("install one web --wait --timeout 30s").await;
    assert!(
        installed.contains("STATUS: deployed") && installed.contains("one greets with hello."),
        "{installed}"
    );
    assert_eq!(helm.replicas().await, Some(2), "--wait waits for the pods");
    assert!(helm.run("list").await.contains("web-0.1.0"));
    helm.run("upgrade one web --set replicaCount=3,greeting=salut --wait --timeout 30s").await;
    assert_eq!(helm.replicas().await, Some(3));
    let history = helm.run("history one").await;
    assert!(history.contains("superseded") && history.contains("Upgrade complete"), "{history}");
    assert!(helm.run("rollback one 1 --wait --timeout 30s").await.contains("Rollback was a success"));
    assert_eq!(helm.replicas().await, Some(2));
    let tested = helm.run("test one --timeout 30s").await;
    assert!(tested.contains("Phase:          Succeeded"), "{tested}");
    helm.run("upgrade one web --set autoscaling.enabled=true --wait --timeout 30s").await;
    // The definition stays, what it defined goes with the release.
    assert!(helm.run("uninstall one --wait --timeout 30s").await.contains("release \"one\" uninstalled"));
    assert_eq!(helm.replicas().await, None);
    let (good, said) = helm.try_run("status one").await;
    assert!(!good && said.contains("release: not found"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_refuses_fails_the_release() {
    let Some(helm) = Helm::new().await else { return };
    let (good, said) = helm.try_run("install one web --set service.type=Sideways --timeout 10s").await;
    assert!(!good && said.contains("spec.type: Unsupported value: \"Sideways\""), "{said}");
    let (good, said) = helm.try_run("install two web --dry-run=server --set service.port=0").await;
    assert!(!good || said.contains("port: 0"), "a server-side dry run only renders: {said}");
}
