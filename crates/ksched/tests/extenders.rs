//! Extenders that are reached by HTTP, on a server of the test's own.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use ksched::{
    Decision, Extender, PodInfo, Profile, Snapshot,
    build::{PodBuilder, node, pod},
    config::SchedulerConfiguration,
    extender::{HttpExtender, HttpExtenderOptions, decide_extended},
    registry::Registry,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// Answers each verb with what stands for it in `answers`; 404 when nothing does. `null` never answers.
async fn serve(answers: Value) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/scheduler/", listener.local_addr().unwrap());
    let asked = Asked::default();
    let (noted, answers) = (Arc::clone(&asked), Arc::new(answers));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (noted, answers) = (Arc::clone(&noted), Arc::clone(&answers));
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (noted, answers) = (Arc::clone(&noted), Arc::clone(&answers));
                async move {
                    let verb = request.uri().path().trim_start_matches("/scheduler/").to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    noted.lock().unwrap().push((verb.clone(), serde_json::from_slice(&body).unwrap()));
                    let answer = answers.get(&verb);
                    if answer.is_some_and(Value::is_null) {
                        std::future::pending::<()>().await;
                    }
                    let status = if answer.is_some() { 200 } else { 404 };
                    let body = answer.map(ToString::to_string).unwrap_or_default();
                    Ok::<_, Infallible>(
                        Response::builder().status(status).body(Full::<Bytes>::from(body)).unwrap(),
                    )
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, asked)
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::new();
    for name in ["a", "b", "c"] {
        snapshot.set_node(node(name).resource("cpu", "2").info());
    }
    snapshot
}

fn options(url: &str) -> HttpExtenderOptions {
    HttpExtenderOptions {
        url_prefix: url.to_owned(),
        filter_verb: "filter".to_owned(),
        node_cache_capable: true,
        ..HttpExtenderOptions::default()
    }
}

async fn decide(
    all: &[HttpExtenderOptions],
    snapshot: &Snapshot,
    pod: PodBuilder,
) -> Result<Decision, String> {
    let extenders: Vec<Arc<dyn Extender>> = all
        .iter()
        .map(|options| Arc::new(HttpExtender::new(options.clone()).unwrap()) as Arc<dyn Extender>)
        .collect();
    let pod = pod.info();
    let decided = decide_extended(&Profile::default(), &extenders, snapshot, &pod, &[]).await;
    decided.map_err(|error| error.to_string())
}

/// After upstream's `TestSchedulerWithExtenders` (`extender_test.go`).
#[tokio::test]
async fn what_an_extender_rejects_is_no_place() {
    let cases = [
        (json!({"NodeNames": ["b"]}), Ok("b")),
        (json!({"nodeNames": ["c"]}), Ok("c")),
        (
            json!({"NodeNames": null, "FailedNodes": {"a": "full", "b": "full"}, "FailedAndUnresolvableNodes": {"c": "broken"}}),
            Err(
                "0/3 nodes are available: 1 broken, 2 full. no new claims to deallocate, preemption: 0/3 nodes are \
                 available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod.",
            ),
        ),
    ];
    for (answer, expected) in cases {
        let (url, asked) = serve(json!({"filter": answer})).await;
        let decision = decide(&[options(&url)], &cluster(), pod("p")).await.unwrap();
        let failure = decision.failure();
        assert_eq!(decision.node().ok_or(failure.as_deref().unwrap_or_default()), expected);
        let (verb, question) = asked.lock().unwrap()[0].clone();
        assert_eq!(verb, "filter");
        assert_eq!(question["Pod"]["metadata"]["name"], "p");
        assert_eq!((&question["NodeNames"], &question["Nodes"]), (&json!(["a", "b", "c"]), &Value::Null));
    }
}

#[tokio::test]
async fn an_extender_that_knows_no_nodes_is_told_them() {
    let (url, asked) = serve(json!({"filter": {"Nodes": {"items": [{"metadata": {"name": "c"}}]}}})).await;
    let options = HttpExtenderOptions { node_cache_capable: false, ..options(&url) };
    let decision = decide(&[options], &cluster(), pod("p")).await.unwrap();
    assert_eq!(decision.node(), Some("c"));
    let question = asked.lock().unwrap()[0].1.clone();
    assert_eq!(question["NodeNames"], Value::Null);
    assert_eq!(question["Nodes"]["items"][1]["metadata"]["name"], "b");
    assert_eq!(question["Nodes"]["items"][1]["status"]["allocatable"]["cpu"], "2");
}

#[tokio::test]
async fn what_goes_wrong_ends_the_try_unless_it_is_ignored() {
    let strange = "claims a filtered node \"z\" which is not found in the input node list";
    for (answer, expected) in [
        (json!({"filter": {"Error": "no licence"}}), "no licence"),
        (json!({}), "failed filter with extender at URL"),
        (json!({}), ", code 404"),
        (json!({"filter": {"NodeNames": ["z"]}}), strange),
        (json!({"filter": "text"}), "invalid type"),
        (json!({"filter": null}), "context deadline exceeded"),
    ] {
        let (url, _) = serve(answer.clone()).await;
        let timeout = if answer["filter"].is_null() && answer.get("filter").is_some() {
            Duration::from_millis(50)
        } else {
            Duration::from_secs(60)
        };
        let options = HttpExtenderOptions { timeout, ..options(&url) };
        let why = decide(std::slice::from_ref(&options), &cluster(), pod("p")).await.unwrap_err();
        assert!(why.contains(expected), "{answer}: {why}");
        let ignored = HttpExtenderOptions { ignorable: true, ..options };
        assert!(decide(&[ignored], &cluster(), pod("p")).await.unwrap().node().is_some(), "{answer}");
    }
    let nobody = options("http://127.0.0.1:1/");
    assert!(
        decide(&[nobody], &cluster(), pod("p"))
            .await
            .unwrap_err()
            .starts_with("Post \"http://127.0.0.1:1/filter\": ")
    );
}

#[tokio::test]
async fn scores_are_weighted_and_added() {
    let scores = json!([{"Host": "a", "Score": 1}, {"Host": "c", "Score": 10}, {"Host": "b", "Score": 99}, {"Host": "z", "Score": 9}]);
    let (url, asked) = serve(json!({"prioritize": scores})).await;
    let options = HttpExtenderOptions {
        filter_verb: String::new(),
        prioritize_verb: "prioritize".to_owned(),
        weight: 7,
        ..options(&url)
    };
    let mut snapshot = cluster();
    snapshot.remove_node("b");
    let decision = decide(&[options], &snapshot, pod("p")).await.unwrap();
    assert_eq!(decision.node(), Some("c"));
    let given = decision
        .scores("a")
        .find(|score| score.plugin == url)
        .map(|score| (score.raw, score.normalized, score.weighted));
    assert_eq!(given, Some((1, 10, 70)));
    assert_eq!(asked.lock().unwrap()[0].1["NodeNames"], json!(["a", "c"]));
}

/// After upstream's `TestPreempt` and `extender_test.go`'s conversions of victims.
#[tokio::test]
async fn an_extender_chooses_where_room_is_made() {
    let full = |names: &[&str]| {
        let mut snapshot = cluster();
        for name in names {
            snapshot.place(&Arc::new(pod(&format!("on-{name}")).request("cpu", "2").info()), name);
        }
        snapshot
    };
    let snapshot = full(&["a", "b", "c"]);
    let high = || pod("high").priority(10).request("cpu", "1");
    let only_b = json!({"preempt": {"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "uid-on-b"}], "NumPDBViolations": 0}}}});
    for cached in [true, false] {
        let (url, asked) = serve(only_b.clone()).await;
        let options = HttpExtenderOptions {
            filter_verb: String::new(),
            preempt_verb: "preempt".to_owned(),
            node_cache_capable: cached,
            ..options(&url)
        };
        let decision = decide(&[options], &snapshot, high()).await.unwrap();
        assert_eq!(decision.nominated(), Some("b"));
        let victims: Vec<_> = decision.victims().iter().map(|victim| &*victim.name).collect();
        assert_eq!(victims, ["on-b"]);
        let question = asked.lock().unwrap()[0].1.clone();
        if cached {
            assert_eq!(question["NodeNameToMetaVictims"]["c"]["Pods"], json!([{"UID": "uid-on-c"}]));
        } else {
            assert_eq!(question["NodeNameToVictims"]["c"]["Pods"][0]["metadata"]["uid"], "uid-on-c");
        }
    }
    let none = "no candidate node for preemption";
    for (answer, expected) in [
        (json!({"NodeNameToMetaVictims": null}), none),
        (
            json!({"NodeNameToMetaVictims": {"b": {"Pods": []}}}),
            "expected at least one victim pod on node \"b\"",
        ),
        (
            json!({"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "uid-on-a"}]}}}),
            "is not found on that node",
        ),
    ] {
        let (url, _) = serve(json!({"preempt": answer})).await;
        let options = HttpExtenderOptions {
            filter_verb: String::new(),
            preempt_verb: "preempt".to_owned(),
            ..options(&url)
        };
        let decision = decide(&[options], &snapshot, high()).await.unwrap();
        let failure = decision.failure().unwrap();
        assert!(
            decision.nominated().is_none() && failure.ends_with(expected) || failure.contains(expected),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn an_extender_binds_on_one_connection() {
    let (url, asked) = serve(json!({"bind": {"Error": ""}})).await;
    let extender =
        HttpExtender::new(HttpExtenderOptions { bind_verb: "bind".to_owned(), ..options(&url) }).unwrap();
    for name in ["p", "q"] {
        assert_eq!(extender.bind(&pod(name).info(), "a").await, Ok(true));
    }
    let expected = json!({"PodName": "p", "PodNamespace": "default", "PodUID": "uid-p", "Node": "a"});
    assert_eq!(asked.lock().unwrap()[0], ("bind".to_owned(), expected));
    assert_eq!(asked.lock().unwrap().len(), 2);
    let (url, _) = serve(json!({"bind": {"Error": "no"}})).await;
    let extender =
        HttpExtender::new(HttpExtenderOptions { bind_verb: "bind".to_owned(), ..options(&url) }).unwrap();
    assert_eq!(extender.bind(&pod("p").info(), "a").await.unwrap_err().to_string(), "no");
}

/// After upstream's `TestIsInterested`.
#[test]
fn pods_without_the_extenders_resources_are_left_alone() {
    let managing = HttpExtenderOptions {
        managed_resources: vec!["example.com/card".to_owned()],
        ..options("http://127.0.0.1:1")
    };
    let of = |options: &HttpExtenderOptions, pod: &PodInfo| {
        HttpExtender::new(options.clone()).unwrap().is_interested(pod)
    };
    let plain = pod("p").request("cpu", "1").info();
    let user = pod("p").request("example.com/card", "1").info();
    assert!(of(&options("http://127.0.0.1:1"), &plain));
    assert!(!of(&managing, &plain));
    assert!(of(&managing, &user));
}

#[tokio::test]
async fn a_configuration_names_its_extenders() {
    let (url, asked) = serve(json!({"filter": {"NodeNames": ["a"]}})).await;
    let read = SchedulerConfiguration::from_value(json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "extenders": [{"urlPrefix": url, "filterVerb": "filter", "nodeCacheCapable": true, "httpTimeout": "30s",
            "managedResources": [{"name": "example.com/card", "ignoredByScheduler": true}]}],
    }))
    .unwrap();
    let (profiles, extenders) = (read.profiles(&Registry::default()).unwrap(), read.extenders().unwrap());
    // No node has cards as far as the scheduler knows, but that is the extender's matter.
    let pod = pod("p").request("example.com/card", "1").info();
    let decision = decide_extended(&profiles[0], &extenders, &cluster(), &pod, &[]).await.unwrap();
    assert_eq!(decision.node(), Some("a"));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[test]
fn what_can_not_be_reached_is_refused_at_once() {
    let refused = HttpExtender::new(options("ftp://host/")).unwrap_err().to_string();
    assert_eq!(refused, "\"ftp://host/\": is no URL of http or https");
    for enable_https in [false, true] {
        let options = HttpExtenderOptions { enable_https, ..options("https://host/") };
        assert!(HttpExtender::new(options).is_ok());
    }
}
