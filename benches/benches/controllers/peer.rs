//! A `kube-controller-manager` as a process, with its own folder for what it writes.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Runs until it is dropped.
pub(super) struct Peer {
    process: Child,
    folder: PathBuf,
}

impl Peer {
    /// Starts it for the server of a kubeconfig, with its defaults but two: nobody else wants to lead, and the limit of requests,
    /// 20 in a second by default, is out of the way.
    pub(super) fn start(program: &Path, kubeconfig: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("kplane-bench-peer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("kubeconfig");
        std::fs::write(&file, kubeconfig).expect("a file");
        let log = std::fs::File::create(folder.join("log")).expect("a file");
        let mut command = Command::new(program);
        command.arg(format!("--kubeconfig={}", file.display()));
        command.arg(format!("--cert-dir={}", folder.join("certs").display()));
        command.args(["--leader-elect=false", "--bind-address=127.0.0.1", "--secure-port=0"]);
        command.args(["--kube-api-qps=100000", "--kube-api-burst=100000"]);
        let process = command.stdout(Stdio::null()).stderr(log).spawn().expect("a process");
        Self { process, folder }
    }

    /// What it has said.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Processor time so far, of all threads.
    pub(super) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        // Linux counts in hundredths of a second, whatever the kernel's own clock does.
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory.
    pub(super) fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
