//! A real etcd beside the test: the program itself, for as long as a test holds it.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How long etcd may take to begin to serve.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// A cluster of real etcd servers on the loopback. Dropping it ends them and removes what they kept.
#[derive(Debug)]
pub struct RealEtcd {
    members: Vec<Option<Child>>,
    clients: Vec<SocketAddr>,
    folder: PathBuf,
}

impl RealEtcd {
    /// Starts a cluster of so many members, and waits until it serves. The program is that of `KPLANE_ETCD`, or `etcd` of the
    /// search path; none, after saying so, if it is not there.
    ///
    /// # Panics
    /// If it is not there and `KPLANE_REQUIRE_ALL` is set, or if it ends or takes too long before it serves.
    pub fn start(members: usize) -> Option<RealEtcd> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let program = std::env::var("KPLANE_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        if Command::new(&program).arg("--version").output().is_err() {
            assert!(
                std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"),
                "this run requires {program}"
            );
            println!("skipped: needs {program}");
            return None;
        }
        // In memory where there is such a folder: what etcd keeps is of no interest, and syncing it takes long.
        let shared = PathBuf::from("/dev/shm");
        let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("kstore-etcd-{}-{number}", std::process::id()));
        let ports = free_ports(2 * members);
        let (clients, peers) = ports.split_at(members);
        let cluster: Vec<String> =
            peers.iter().enumerate().map(|(member, peer)| format!("m{member}=http://{peer}")).collect();
        let mut etcd = RealEtcd { members: Vec::new(), clients: clients.to_vec(), folder };
        let (ready, served) = std::sync::mpsc::channel();
        for (member, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let mut process = Command::new(&program)
                .args(["--name", &format!("m{member}"), "--logger", "zap"])
                .arg("--data-dir")
                .arg(etcd.folder.join(member.to_string()))
                .args(["--listen-client-urls", &format!("http://{client}")])
                .args(["--advertise-client-urls", &format!("http://{client}")])
                .args(["--listen-peer-urls", &format!("http://{peer}")])
                .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--max-txn-ops", "10000", "--max-request-bytes", "67108864"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{program} starts: {error}"));
            let log = process.stderr.take().unwrap_or_else(|| panic!("the log is a pipe"));
            etcd.members.push(Some(process));
            let ready = ready.clone();
            // The log is read to its end, so that etcd never waits for a full pipe.
            std::thread::spawn(move || {
                let lines = BufReader::new(log).lines().map_while(Result::ok);
                for line in lines.filter(|line| line.contains("serving client traffic")) {
                    let _ = ready.send(line);
                }
            });
        }
        for _ in 0..members {
            let line = served.recv_timeout(START_TIME_MAX);
            line.unwrap_or_else(|_| panic!("{program} has not begun to serve after {START_TIME_MAX:?}"));
        }
        Some(etcd)
    }

    /// Where each member serves its clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.clients.iter().map(|client| format!("http://{client}")).collect()
    }

    /// Kills a member, without letting it say goodbye.
    ///
    /// # Panics
    /// If it can't be killed.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members.get_mut(member).and_then(Option::take) {
            process.kill().unwrap_or_else(|error| panic!("the member is killed: {error}"));
            let _ = process.wait();
        }
    }
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        for mut process in self.members.drain(..).flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("a port is free: {error}")))
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap_or_else(|error| panic!("it has an address: {error}")))
        .collect()
}
