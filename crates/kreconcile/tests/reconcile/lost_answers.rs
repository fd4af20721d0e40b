//! Writes of which nobody knows whether they were done.

use std::{sync::atomic::Ordering, time::Duration};

use kcore::TokioClock;
use serde_json::json;

use crate::controllers::start_some;

/// A create whose answer is lost may have been done: while the informer shows nothing yet, the server is asked, and no second pod is made
/// and taken away again.
#[tokio::test(start_paused = true)]
async fn a_pod_whose_create_has_no_answer_is_not_made_twice() {
    let template =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    let spec = json!({"replicas": 1, "selector": selector, "template": template});
    for (name, plural) in [
        ("replicaset-controller", "replicasets"),
        ("daemonset-controller", "daemonsets"),
        ("job-controller", "jobs"),
    ] {
        let mut spec = spec.clone();
        if plural == "jobs" {
            spec = json!({"parallelism": 1, "completions": 1, "selector": selector, "template": template});
        }
        let (api, running) = start_some(TokioClock::new(), |known| known == name);
        api.add("nodes", json!({"metadata": {"name": "n"}}));
        api.held.store(true, Ordering::Relaxed);
        api.lost_answers.store(1, Ordering::Relaxed);
        api.add(plural, json!({"metadata": {"namespace": "shop", "name": "one"}, "spec": spec}));
        api.until("a pod", |api| api.count("pods") == 1).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((api.count("pods"), api.lost_answers.load(Ordering::Relaxed)), (1, 0), "{name}");
        api.held.store(false, Ordering::Relaxed);
        api.edit("nodes", "", "n", |node| node["metadata"]["labels"] = json!({"seen": "now"}));
        let (field, number) = match plural {
            "replicasets" => ("replicas", 1),
            "daemonsets" => ("currentNumberScheduled", 1),
            _ => ("active", 1),
        };
        api.until(name, |api| api.list(plural)[0]["status"][field] == number).await;
        assert_eq!(api.count("pods"), 1, "{name}");
        running.stop().await;
    }
}
