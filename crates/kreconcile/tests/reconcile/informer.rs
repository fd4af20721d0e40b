use std::sync::{Arc, atomic::Ordering};

use k8s_openapi::api::core::v1::ConfigMap;
use kcore::{TokioClock, selector::LabelSelector};
use kreconcile::{Index, Informer, Informers, ResourceType, Selection};
use serde_json::{Value, json};

use crate::fake::FakeApi;

fn api() -> Arc<FakeApi> {
    FakeApi::new(vec![ResourceType::of::<ConfigMap>()], Arc::new(TokioClock::new()))
}

fn map(name: &str, app: &str) -> Value {
    json!({"metadata": {"namespace": "n", "name": name, "labels": {"app": app}}, "data": {"k": "v"}})
}

fn names(informer: &Informer<ConfigMap>) -> String {
    let mut names: Vec<String> =
        informer.list().iter().map(|map| map.metadata.name.clone().unwrap()).collect();
    names.sort_unstable();
    names.join(" ")
}

/// What every way of listing and watching has to do.
async fn follows(api: Arc<FakeApi>) {
    for name in ["a", "b", "c"] {
        api.add("configmaps", map(name, "one"));
    }
    let informers = Informers::new(api.client());
    let maps = informers.of::<ConfigMap>(Selection::all());
    maps.add_index(Index::new("app", |map, emit| emit(map.header().labels.get("app").unwrap_or_default())));
    assert!(maps.synced().await);
    assert_eq!(names(&maps), "a b c");
    let mut changes = maps.subscribe();
    assert_eq!(changes.next().await.unwrap().len(), 3);

    api.add("configmaps", map("d", "two"));
    let batch = changes.next().await.unwrap();
    assert!(batch[0].old.is_none() && &*batch[0].header().name == "d");
    assert_eq!(maps.by_index("app", "two").len(), 1);
    let selector = LabelSelector::parse("app=one").unwrap();
    assert_eq!(maps.select("n", &selector).len(), 3);
    assert_eq!(maps.get("n", "d").unwrap().data.as_ref().unwrap()["k"], "v");

    // The watch ends and goes on from where it was.
    let lists = api.lists.load(Ordering::Relaxed);
    api.cut_watches(false);
    api.remove("configmaps", "n", "a");
    assert!(changes.next().await.unwrap()[0].new.is_none());
    assert_eq!(api.lists.load(Ordering::Relaxed), lists, "nothing is listed again");

    // The watch ends and what it would go on from is gone.
    api.cut_watches(true);
    api.remove("configmaps", "n", "b");
    api.add("configmaps", map("e", "two"));
    api.cut_watches(true);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(changes.next().await.unwrap());
    }
    let mut seen: Vec<_> =
        seen.iter().map(|change| (change.header().name.to_string(), change.new.is_some())).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("b".to_owned(), false), ("e".to_owned(), true)]);
    assert_eq!(names(&maps), "c d e");

    informers.stop().await;
    assert!(changes.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_informer_follows_within_the_process() {
    follows(api()).await;
}

#[tokio::test(start_paused = true)]
async fn an_informer_follows_json_lines() {
    let api = api();
    api.json_only.store(true, Ordering::Relaxed);
    follows(api).await;
}

#[tokio::test(start_paused = true)]
async fn an_informer_lists_in_pages_where_it_must() {
    let api = api();
    api.json_only.store(true, Ordering::Relaxed);
    api.no_streaming_list.store(true, Ordering::Relaxed);
    follows(api).await;
}

#[tokio::test(start_paused = true)]
async fn an_informer_waits_for_a_server_that_fails() {
    let api = api();
    api.add("configmaps", map("a", "one"));
    api.broken.store(true, Ordering::Relaxed);
    let informers = Informers::new(api.client());
    let maps = informers.of::<ConfigMap>(Selection::all());
    tokio::time::advance(std::time::Duration::from_secs(100)).await;
    assert!(!maps.has_synced());
    api.broken.store(false, Ordering::Relaxed);
    assert!(maps.synced().await);
    assert_eq!(names(&maps), "a");
}

/// Who can do without a kind need not wait for it, and has its objects when it is there; a server that fails says nothing of kinds.
#[tokio::test(start_paused = true)]
async fn an_informer_settles_without_its_kind_and_finds_it_later() {
    for streaming in [true, false] {
        let api = api();
        api.no_streaming_list.store(!streaming, Ordering::Relaxed);
        api.add("configmaps", map("a", "one"));
        api.broken.store(true, Ordering::Relaxed);
        let informers = Informers::new(api.client());
        let maps = informers.of::<ConfigMap>(Selection::all());
        let wait = tokio::time::timeout(std::time::Duration::from_secs(100), maps.settled());
        assert!(wait.await.is_err());
        api.empty.store(true, Ordering::Relaxed);
        api.broken.store(false, Ordering::Relaxed);
        assert!(!maps.settled().await && !maps.has_synced());
        let mut changes = maps.subscribe();
        api.empty.store(false, Ordering::Relaxed);
        assert_eq!(changes.next().await.unwrap().len(), 1);
        assert!(maps.settled().await);
        assert_eq!(names(&maps), "a");
    }
}

#[tokio::test(start_paused = true)]
async fn informers_are_shared_and_end_with_their_factory() {
    let api = api();
    let informers = Informers::new(api.client());
    let one = informers.of::<ConfigMap>(Selection::all());
    let two = informers.of::<ConfigMap>(Selection::all());
    one.synced().await;
    assert!(two.has_synced());
    let other = informers.of::<ConfigMap>(Selection::all().fields("metadata.name=x"));
    assert!(!other.has_synced());
    let mut changes = one.subscribe();
    drop(informers);
    assert!(changes.next().await.is_none());
    assert!(!other.synced().await);
}

#[tokio::test(start_paused = true)]
async fn a_writer_reads_its_own_writes() {
    let api = api();
    let informers = Informers::new(api.client());
    let maps = informers.of::<ConfigMap>(Selection::all());
    maps.synced().await;
    api.add("configmaps", map("a", "one"));
    let revision =
        api.get("configmaps", "n", "a").unwrap()["metadata"]["resourceVersion"].as_str().unwrap().parse();
    assert!(maps.reached(revision.unwrap()).await);
    assert_eq!(names(&maps), "a");
}
