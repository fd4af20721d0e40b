//! Kubernetes' own controllers in the place of kplane's, to see whether both do the same: `KPLANE_PEER_CONTROLLER_MANAGER` names the
//! binary of a `kube-controller-manager`. It runs in real time, so nothing but what somebody asks for by that variable runs this way.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use kplane::Cluster;
use tempfile::TempDir;

/// The binary that is named, if one is.
pub(crate) fn program() -> Option<PathBuf> {
    std::env::var_os("KPLANE_PEER_CONTROLLER_MANAGER").map(PathBuf::from)
}

/// A `kube-controller-manager`, until it is dropped.
pub(crate) struct Peer {
    process: Child,
    _folder: TempDir,
}

impl Peer {
    /// Starts it for a cluster that has no controllers. Limits of requests are out of the way, as kplane's controllers have none, and so
    /// are those controllers that are off by default and on with kplane.
    pub(crate) async fn start(program: PathBuf, cluster: &Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(program);
        command.arg(format!("--kubeconfig={}", file("kubeconfig", &serving.kubeconfig)));
        command.arg(format!("--root-ca-file={}", file("ca.pem", cluster.ca_pem())));
        command.arg(format!("--cert-dir={}", folder.path().display()));
        command.args([
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
        ]);
        command.arg("--controllers=*,bootstrap-signer-controller,token-cleaner-controller");
        let process = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, _folder: folder }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
