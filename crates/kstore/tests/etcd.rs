//! What is spoken with etcd: the engine over the face, and over a real etcd.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener as StdListener},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use kstore::{EtcdServer, EtcdStore, MemoryStore, Store, testing};
use tokio::net::TcpListener;

/// A face over a store in memory, for as long as the runtime lives.
async fn serve(store: Arc<dyn Store>) -> SocketAddr {
    // The suite writes more in one transaction than etcd lets its clients by default.
    let server = EtcdServer::builder(store)
        .txn_ops_max(kstore::TXN_OPS_MAX)
        .request_bytes_max(64 << 20)
        .build()
        .await
        .unwrap_or_else(|error| panic!("the face is made: {error}"));
    let listener =
        TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|error| panic!("a port is there: {error}"));
    let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    address
}

async fn connect(address: SocketAddr, prefix: &str) -> Arc<dyn Store> {
    let store = EtcdStore::builder([format!("http://{address}")]).prefix(prefix).connect().await;
    Arc::new(store.unwrap_or_else(|error| panic!("the store connects: {error:?}")))
}

/// A real etcd, for as long as it is held.
struct Etcd {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts an etcd; none if there is none on this machine.
fn etcd() -> Option<Etcd> {
    let program = std::env::var("KPLANE_ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let port = || {
        let listener = StdListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("{error}"));
        listener.local_addr().unwrap_or_else(|error| panic!("{error}"))
    };
    let (clients, peers) = (port(), port());
    // In memory where there is such a folder: what etcd keeps is of no interest, and syncing it takes long.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let folder = folder.unwrap_or_else(|error| panic!("{error}"));
    let started = Command::new(&program)
        .arg("--data-dir")
        .arg(folder.path())
        .args(["--listen-client-urls", &format!("http://{clients}")])
        .args(["--advertise-client-urls", &format!("http://{clients}")])
        .args(["--listen-peer-urls", &format!("http://{peers}")])
        .args(["--initial-advertise-peer-urls", &format!("http://{peers}")])
        .args(["--initial-cluster", &format!("default=http://{peers}")])
        .args(["--max-txn-ops", "10000", "--max-request-bytes", "67108864", "--logger", "zap"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut process) = started else {
        assert!(std::env::var_os("KPLANE_REQUIRE_ALL").is_none(), "{program} is needed and is not there");
        eprintln!("skipped: needs etcd");
        return None;
    };
    let log = process.stderr.take().unwrap_or_else(|| panic!("the log is a pipe"));
    let mut lines = BufReader::new(log).lines();
    let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("serving client traffic"));
    assert!(ready, "etcd ended before it was ready");
    // The pipe is read on, so that etcd never waits for it.
    std::thread::spawn(move || lines.for_each(drop));
    Some(Etcd { process, address: clients, _folder: folder })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_over_the_face_keeps_what_stores_promise() {
    testing::replica_conformance(|| async {
        let address = serve(Arc::new(MemoryStore::new())).await;
        connect(address, "/registry").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_over_a_real_etcd_keeps_what_stores_promise() {
    let Some(etcd) = etcd() else { return };
    let (address, number) = (etcd.address, AtomicU32::new(0));
    testing::replica_conformance(|| {
        let prefix = format!("/{}", number.fetch_add(1, Ordering::Relaxed));
        async move { connect(address, &prefix).await }
    })
    .await;
}
