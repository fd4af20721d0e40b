//! What the API server costs: each verb for a small and a usual object, lists in every form, custom resources, memory, and
//! the ways to reach it. Everything runs on one thread.
//!
//! Where a real `kube-apiserver` is on the machine (`KPLANE_PEER_APISERVER`, `KPLANE_PEER_ETCD`), the part `peer` does the same
//! work with both and prints ratios. The ratios of the other parts are between the paths to this server.
//!
//! `cargo bench -p kplane-benches --bench api -- PART...` runs only these parts: `verbs`, `lists`, `custom`, `paths`,
//! `access`, `peer`.

mod access;
mod custom;
mod lists;
mod objects;
mod paths;
mod peer;
mod verbs;

use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use kplane_benches::CountingAllocator;
use kube::Client;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PARTS: [&str; 6] = ["verbs", "lists", "custom", "paths", "access", "peer"];

fn main() {
    if peer::is_face() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run());
}

async fn run() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for part in PARTS {
        if !asked.is_empty() && !asked.iter().any(|word| word == part) {
            continue;
        }
        match part {
            "verbs" => verbs::run().await,
            "lists" => lists::run().await,
            "custom" => custom::run().await,
            "paths" => paths::run().await,
            "access" => access::run().await,
            _ => peer::run().await,
        }
    }
}

/// A server with what a fresh cluster has, and the service account that pods run as.
async fn server() -> ApiServer {
    let server = ApiServer::builder().build().expect("a server");
    server.bootstrap().await.expect("a cluster's objects");
    objects::create_account(&client(&server)).await;
    server
}

fn admin() -> UserInfo {
    UserInfo::new("bench", [MASTERS])
}

fn client(server: &ApiServer) -> Client {
    Client::new(server.as_user(admin()), "default")
}
