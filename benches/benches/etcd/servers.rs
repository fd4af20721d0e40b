//! The two servers, each a process of its own.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use kstore::{DiskStore, EtcdServer, SyncPolicy};
use tokio::time::Instant;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The real one.
    Etcd = 0,
    /// kplane's.
    Face = 1,
}

/// A server that runs.
pub(crate) struct Server {
    kind: Kind,
    synced: bool,
    process: Child,
    port: u16,
    folder: PathBuf,
}

/// Serves the store in a folder until it is killed. The port is that of the environment.
pub(crate) fn serve(folder: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let Ok(runtime) = runtime else { return eprintln!("no threads can be started") };
    let done: Result<(), Box<dyn std::error::Error>> = runtime.block_on(async {
        let sync = match std::env::var_os("SYNCED") {
            Some(_) => SyncPolicy::EveryCommit,
            None => SyncPolicy::Never,
        };
        let store = DiskStore::builder(folder).sync(sync).open()?;
        let server = EtcdServer::new(Arc::new(store)).await?;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", std::env::var("PORT")?.parse()?)).await?;
        eprintln!("serving client traffic");
        Ok(server.serve(listener, std::future::pending()).await?)
    });
    if let Err(error) = done {
        eprintln!("{error:?}");
    }
}

fn free_port() -> u16 {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    port.map_or(0, |address| address.port())
}

impl Server {
    /// Starts one with nothing in it; none if it is not on this machine. One that isn't to sync its writes has its folder in
    /// memory, since etcd 3.4 can't be told so.
    pub(crate) fn start(kind: Kind, synced: bool) -> Option<Self> {
        let shared = PathBuf::from("/dev/shm");
        let base = if !synced && shared.is_dir() { shared } else { std::env::temp_dir() };
        let port = free_port();
        let folder = base.join(format!("kplane-bench-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).ok()?;
        let process = spawn(kind, synced, port, &folder)?;
        Some(Server { kind, synced, process, port, folder })
    }

    /// Ends it as a crash would, and starts it again; how long until it says that it serves.
    pub(crate) fn restart(&mut self) -> Duration {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let begin = Instant::now();
        if let Some(process) = spawn(self.kind, self.synced, self.port, &self.folder) {
            self.process = process;
        }
        begin.elapsed()
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// CPU time so far, of all its threads.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        // Linux counts in hundredths of a second, whatever the kernel's own clock does.
        Duration::from_millis(ticks * 10)
    }

    pub(crate) fn resident_mib(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default();
        kib / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn spawn(kind: Kind, synced: bool, port: u16, folder: &std::path::Path) -> Option<Child> {
    let mut command = match kind {
        Kind::Etcd => {
            let peer = free_port();
            let program = std::env::var("KPLANE_ETCD").unwrap_or_else(|_| "etcd".to_owned());
            let mut command = Command::new(program);
            command
                .args(["--logger", "zap", "--quota-backend-bytes", "8589934592"])
                .arg("--data-dir")
                .arg(folder)
                .args(["--listen-client-urls", &format!("http://127.0.0.1:{port}")])
                .args(["--advertise-client-urls", &format!("http://127.0.0.1:{port}")])
                .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
                .args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{peer}")])
                .args(["--initial-cluster", &format!("default=http://127.0.0.1:{peer}")]);
            command
        }
        Kind::Face => {
            let mut command = Command::new(std::env::current_exe().ok()?);
            command.arg("--serve").arg(folder).env("PORT", port.to_string());
            if synced {
                command.env("SYNCED", "1");
            }
            command
        }
    };
    let mut process =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
    let mut lines = BufReader::new(process.stderr.take()?).lines();
    let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("serving client traffic"));
    if !ready {
        eprintln!("{kind:?} ended before it served");
        return None;
    }
    std::thread::spawn(move || lines.for_each(drop));
    Some(process)
}
