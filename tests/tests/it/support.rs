//! Finding tools, running them, and waiting for what they bring about.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use kplane::Cluster;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where a tool is; `None` after saying so when it isn't there and may be missing.
pub(crate) fn tool(name: &str, variable: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named
        .into_iter()
        .chain(std::env::split_paths(&path).map(|folder| folder.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "this run requires {name}"
        );
        println!("skipped: needs {name}");
    }
    found
}

/// A real kubectl and the cluster it talks to.
pub(crate) struct Kubectl {
    pub(crate) cluster: Arc<Cluster>,
    program: PathBuf,
    folder: TempDir,
}

/// Every kubectl that is there, the newest and the oldest that are tried; one when both are the same.
pub(crate) fn kubectls() -> Vec<PathBuf> {
    let named = ["KPLANE_KUBECTL", "KPLANE_KUBECTL_OLD"].into_iter().filter_map(|name| tool("kubectl", name));
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for program in named {
        let asked = Command::new(&program).args(["version", "--client"]).output().unwrap();
        let version = text(&asked.stdout);
        if !found.iter().any(|(other, _)| *other == version) {
            found.push((version, program));
        }
    }
    found.into_iter().map(|(_, program)| program).collect()
}

impl Kubectl {
    /// Serves the cluster and points kubectl at it; `None` when there is no kubectl.
    pub(crate) async fn new(cluster: Cluster) -> Option<Self> {
        Some(Self::of(cluster, tool("kubectl", "KPLANE_KUBECTL")?).await)
    }

    /// Serves the cluster and points this kubectl at it.
    pub(crate) async fn of(cluster: Cluster, program: PathBuf) -> Self {
        Self::at(cluster, program, ([127, 0, 0, 1], 0).into()).await.unwrap()
    }

    /// The same at an address; `None` when it can't be had.
    pub(crate) async fn at(cluster: Cluster, program: PathBuf, address: SocketAddr) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let serving = cluster.serve(address).await.ok()?;
        std::fs::write(folder.path().join("config"), &serving.kubeconfig).unwrap();
        Some(Self { cluster: Arc::new(cluster), program, folder })
    }

    /// Where a file of this name is, or would be.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("KUBECONFIG", self.folder.path().join("config")).env("HOME", self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// A file for `-f`.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// A file that can be run.
    pub(crate) fn script(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.file(name, text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn output(&self, mut command: Command) -> Output {
        tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || command.output().unwrap()))
            .await
            .unwrap()
            .unwrap()
    }

    /// Runs kubectl, which must succeed; its output.
    pub(crate) async fn run(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.run_args(&arguments).await
    }

    pub(crate) async fn run_args(&self, arguments: &[&str]) -> String {
        let output = self.output(self.command(arguments)).await;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments:?}\n{out}{err}");
        out
    }

    /// Runs kubectl, which must fail; what it says.
    pub(crate) async fn fail(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.output(self.command(&arguments)).await;
        assert!(!output.status.success(), "kubectl {line} succeeded: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Runs kubectl with further environment.
    pub(crate) async fn run_env(&self, line: &str, environment: &[(&str, &str)]) -> (bool, String) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let mut command = self.command(&arguments);
        command.envs(environment.iter().copied());
        let output = self.output(command).await;
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Removes the columns that differ from run to run: ages and times.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
