//! Two hundred clusters, started and dropped, some at the same time: nothing is left of them.

use std::fs;

use k8s_openapi::api::core::v1::ConfigMap;
use kplane::Cluster;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

const CLUSTERS: usize = 200;
const AT_A_TIME: usize = 10;

/// One cluster: it is used, over TLS too, and then dropped or shut down.
async fn one(number: usize) {
    let builder = Cluster::builder().nodes(2);
    // Every tenth one has real processes' nodes, with a proxy and DNS.
    let builder = if number.is_multiple_of(10) { builder.processes().unwrap() } else { builder };
    let cluster = builder.start().await.unwrap();
    let serving = cluster.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let client = crate::clients::tls(&serving.kubeconfig).await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let name = format!("only-{number}");
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    api.create(&PostParams::default(), &map).await.unwrap();
    let all =
        Api::<ConfigMap>::default_namespaced(cluster.client()).list(&ListParams::default()).await.unwrap();
    let mine: Vec<_> = all
        .items
        .iter()
        .filter_map(|map| map.metadata.name.as_deref())
        .filter(|name| name.starts_with("only-"))
        .collect();
    assert_eq!(mine, [name], "clusters don't meet");
    if number.is_multiple_of(2) {
        cluster.shutdown().await.unwrap();
    }
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Set in the process that this test has to itself.
const ALONE: &str = "KPLANE_TEST_ALONE";

/// Files and threads are counted for a whole process, so the test runs in one of its own.
#[test]
fn nothing_is_left_of_two_hundred_clusters() {
    if std::env::var_os(ALONE).is_some() {
        return count_what_is_left();
    }
    let name = "leaks::nothing_is_left_of_two_hundred_clusters";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output =
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn count_what_is_left() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let metrics = runtime.metrics();
    // The first one warms up what a process has once: the runtime's own threads and files.
    runtime.block_on(one(0));
    let (files, tasks) = (open_files(), threads());
    runtime.block_on(async {
        for batch in 0..CLUSTERS / AT_A_TIME {
            let clusters = (0..AT_A_TIME).map(|index| tokio::spawn(one(batch * AT_A_TIME + index)));
            for cluster in clusters.collect::<Vec<_>>() {
                cluster.await.unwrap();
            }
        }
        // What was dropped is told to end; let it.
        for _ in 0..10_000 {
            if metrics.num_alive_tasks() == 0 {
                break;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
    assert_eq!(metrics.num_alive_tasks(), 0, "tasks are left");
    assert!(threads() <= tasks + 2, "threads are left: {} of {tasks}", threads());
    assert!(open_files() <= files, "files are left: {} of {files}", open_files());
}
