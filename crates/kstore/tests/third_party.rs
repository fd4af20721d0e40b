//! The engine of docs/guide/write-a-store.md keeps what stores promise.

use std::sync::Arc;

use kstore::{Replica, Store, testing};

#[path = "../examples/write_a_store.rs"]
mod write_a_store;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_partys_engine_keeps_what_stores_promise() {
    testing::replica_conformance(|| async {
        let store = Replica::new(write_a_store::Database::default()).await;
        Arc::new(store.unwrap_or_else(|error| panic!("the store is made: {error}"))) as Arc<dyn Store>
    })
    .await;
}

#[test]
fn it_is_as_short_as_the_guide_says() {
    let text = include_str!("../examples/write_a_store.rs");
    let engine = text.split("#[tokio::main").next().unwrap_or_default();
    let lines = engine.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"));
    assert!(lines.count() < 150);
}
