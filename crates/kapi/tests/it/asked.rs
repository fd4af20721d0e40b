//! Services that are asked who somebody is and what they may do. Expected results: upstream's
//! `plugin/pkg/authenticator/token/webhook/webhook_v1_test.go`, `plugin/pkg/authorizer/webhook/webhook_v1_test.go`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header::AUTHORIZATION, request::Parts};
use kapi::{
    authn::{Authenticator as _, RequestedAudiences, TokenWebhook, UserInfo},
    authz::{AccessWebhook, Authorizer as _, FailurePolicy, Verdict},
    outbound::Remote,
    request::{Query, RequestInfo},
};
use serde_json::{Value, json};

use crate::loopback::Service;

fn with_token(token: &str, audiences: &[&str]) -> Parts {
    let request = Request::get("/").header(AUTHORIZATION, format!("Bearer {token}"));
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    if !audiences.is_empty() {
        let audiences: Arc<[String]> = audiences.iter().map(|one| (*one).to_owned()).collect();
        parts.extensions.insert(RequestedAudiences(audiences));
    }
    parts
}

#[tokio::test]
async fn tokens_are_what_the_service_says() {
    let service = Service::start(|_, review| {
        let status = match review["spec"]["token"].as_str().unwrap() {
            "ann" => json!({"authenticated": true, "user": {"username": "ann", "uid": "7", "groups": ["dev"], "extra": {"foo": ["a", "b"]}}}),
            "bob" => json!({"authenticated": true, "user": {"username": "bob"}, "audiences": ["other"]}),
            "bad" => json!({"authenticated": false, "error": "it is stolen"}),
            "down" => return (403, Value::Null),
            _ => json!({"authenticated": false}),
        };
        (200, json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}))
    })
    .await;
    let webhook = TokenWebhook::new(service.remote());
    for (token, audiences, expected) in [
        ("ann", &[][..], Ok(Some(("ann", None)))),
        // What the service says nothing of is for the server, and the server has no name here.
        ("ann", &["other"], Ok(None)),
        ("bob", &["other", "third"], Ok(Some(("bob", Some(vec!["other"]))))),
        ("bob", &["third"], Ok(None)),
        ("carl", &[], Ok(None)),
        ("bad", &[], Err("it is stolen")),
        ("down", &[], Err("the server answered 403 Forbidden")),
    ] {
        let found = webhook.authenticate(&with_token(token, audiences)).await;
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let found =
                    found.map(|found| (found.user.name.clone(), found.audiences.map(|all| all.to_vec())));
                let expected = expected.map(|(name, audiences)| {
                    (
                        name.to_owned(),
                        audiences
                            .map(|all: Vec<&str>| all.into_iter().map(str::to_owned).collect::<Vec<_>>()),
                    )
                });
                assert_eq!(found, expected, "{token} {audiences:?}");
            }
            (Err(error), Err(why)) => assert_eq!(error.0.message, why),
            (found, _) => panic!("{token}: {found:?}"),
        }
    }
    let user = webhook.authenticate(&with_token("ann", &[])).await.unwrap().unwrap().user;
    assert_eq!((user.uid.as_str(), user.extra["foo"].len(), user.is_in("dev")), ("7", 2, true));
    let asked = service.asked();
    assert_eq!(asked[0].1["spec"], json!({"token": "ann"}));
    assert_eq!(asked[2].1["spec"]["audiences"], json!(["other", "third"]));
    assert!(!format!("{webhook:?}").contains("sesame"));
}

#[tokio::test]
async fn answers_are_kept_for_a_while_and_connections_are_used_again() {
    let service =
        Service::start(|_, _| (200, json!({"status": {"authenticated": true, "user": {"username": "ann"}}})))
            .await;
    let webhook = TokenWebhook::new(service.remote()).ttl(Duration::from_secs(60));
    for (wait, expected) in [(0, 1), (30, 1), (31, 2), (59, 2)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(wait)).await;
        tokio::time::resume();
        webhook.authenticate(&with_token("ann", &[])).await.unwrap();
        assert_eq!(service.asked().len(), expected, "{wait}");
    }
    assert_eq!(service.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_service_that_is_busy_is_asked_again() {
    let count = AtomicUsize::new(0);
    let service = Service::start(move |_, _| match count.fetch_add(1, Ordering::Relaxed) {
        0 => (429, Value::Null),
        1 => (500, Value::Null),
        _ => (200, json!({"status": {"authenticated": true, "user": {"username": "ann"}}})),
    })
    .await;
    let webhook = TokenWebhook::new(service.remote());
    let found = webhook.authenticate(&with_token("ann", &[])).await.unwrap().unwrap();
    assert_eq!((found.user.name.as_str(), service.asked().len()), ("ann", 3));
}

fn asks(method: http::Method, uri: &str) -> RequestInfo {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    RequestInfo::new(&method, path, &Query::parse(query))
}

async fn allowing() -> Service {
    Service::start(|_, review| {
        let status = match review["spec"]["user"].as_str().unwrap_or_default() {
            "ann" => json!({"allowed": true, "reason": "she may"}),
            "eve" => json!({"allowed": false, "denied": true, "reason": "never"}),
            "mad" => json!({"allowed": true, "denied": true}),
            "down" => return (400, Value::Null),
            _ => json!({"allowed": false}),
        };
        (
            200,
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}),
        )
    })
    .await
}

#[tokio::test]
async fn access_is_what_the_service_says() {
    let service = allowing().await;
    let webhook = AccessWebhook::new(service.remote());
    let open = AccessWebhook::new(service.remote()).on_failure(FailurePolicy::NoOpinion);
    let get = asks(http::Method::GET, "/apis/apps/v1/namespaces/ns/deployments/web/status");
    for (name, expected) in [
        ("ann", Verdict::Allow("she may".into())),
        ("eve", Verdict::Deny("never".into())),
        ("mad", Verdict::Deny("".into())),
        ("bob", Verdict::NoOpinion("".into())),
        ("down", Verdict::Deny("".into())),
    ] {
        assert_eq!(webhook.authorize(&UserInfo::new(name, ["dev"]), &get).await, expected, "{name}");
    }
    let down = UserInfo::new("down", [""; 0]);
    assert_eq!(open.authorize(&down, &get).await, Verdict::NoOpinion("".into()));
    let spec = &service.asked()[0].1["spec"];
    assert_eq!(
        *spec,
        json!({"user": "ann", "groups": ["dev"], "resourceAttributes": {"namespace": "ns", "verb": "get", "group": "apps",
        "version": "v1", "resource": "deployments", "subresource": "status", "name": "web"}})
    );
    let count = service.asked().len();
    let ann = UserInfo::new("ann", [""; 0]);
    for (uri, key, expected) in [
        ("/healthz", "nonResourceAttributes", json!({"path": "/healthz", "verb": "get"})),
        (
            "/api/v1/pods?fieldSelector=a!%3Db&labelSelector=c+in+(d),e",
            "resourceAttributes",
            json!({"verb": "list", "version": "v1", "resource": "pods",
            "fieldSelector": {"requirements": [{"key": "a", "operator": "NotIn", "values": ["b"]}]},
            "labelSelector": {"requirements": [{"key": "c", "operator": "In", "values": ["d"]}, {"key": "e", "operator": "Exists"}]}}),
        ),
    ] {
        webhook.authorize(&ann, &asks(http::Method::GET, uri)).await;
        assert_eq!(service.asked().last().unwrap().1["spec"][key], expected, "{uri}");
    }
    assert_eq!(service.asked().len(), count + 2);
}

#[tokio::test]
async fn yes_and_no_are_believed_for_their_times() {
    let service = allowing().await;
    let webhook = AccessWebhook::new(service.remote()).ttl(Duration::from_secs(100), Duration::from_secs(10));
    let get = asks(http::Method::GET, "/api/v1/pods");
    for (wait, expected) in [(0, 2), (9, 2), (2, 3), (88, 4), (2, 5)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(wait)).await;
        tokio::time::resume();
        for name in ["ann", "bob"] {
            webhook.authorize(&UserInfo::new(name, [""; 0]), &get).await;
        }
        assert_eq!(service.asked().len(), expected, "{wait}");
    }
    // What is long is not kept.
    let long = asks(http::Method::GET, &format!("/{}", "a".repeat(10_000)));
    for _ in 0..2 {
        webhook.authorize(&UserInfo::new("ann", [""; 0]), &long).await;
    }
    assert_eq!(service.asked().len(), 7);
}

#[tokio::test]
async fn conditions_say_when_the_service_is_asked() {
    let get = asks(http::Method::GET, "/api/v1/namespaces/ns/pods/p");
    let path = asks(http::Method::GET, "/version");
    for (conditions, request, expected) in [
        (vec!["request.user == 'ann'"], &get, Some(true)),
        (vec!["request.user == 'bob'"], &get, Some(false)),
        (vec!["'dev' in request.groups", "request.resourceAttributes.namespace == 'ns'"], &get, Some(true)),
        (vec!["has(request.nonResourceAttributes)"], &get, Some(false)),
        (vec!["has(request.nonResourceAttributes)"], &path, Some(true)),
        (vec!["request.resourceAttributes.name == 'p'"], &path, None),
        (vec!["request.resourceAttributes.name == 'p'", "request.user == 'bob'"], &path, Some(false)),
        (vec!["request.resourceAttributes.subresource == ''"], &get, Some(true)),
    ] {
        let service = allowing().await;
        let webhook = AccessWebhook::new(service.remote()).conditions(&conditions).unwrap();
        let verdict = webhook.authorize(&UserInfo::new("ann", ["dev"]), request).await;
        let found = match verdict {
            Verdict::Allow(_) => Some(true),
            Verdict::NoOpinion(_) => Some(false),
            Verdict::Deny(_) => None,
        };
        assert_eq!(
            (found, service.asked().len()),
            (expected, usize::from(expected == Some(true))),
            "{conditions:?}"
        );
    }
    for (text, why) in [
        ("request.", "compilation failed"),
        ("request.user", "must evaluate to bool but got string"),
        ("request.nothing == 1", "compilation failed"),
    ] {
        let service = allowing().await;
        let error = AccessWebhook::new(service.remote()).conditions(["true", text]).unwrap_err();
        assert_eq!(error.field, "matchConditions[1].expression");
        assert!(error.why.contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_costs_no_answer() {
    // Answers one request on each connection and closes it without a word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let body = json!({"status": {"authenticated": true, "user": {"username": "ann"}}}).to_string();
        let answer = Bytes::from(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    let text = format!(
        "{{apiVersion: v1, kind: Config, contexts: [{{name: a, context: {{cluster: b}}}}], clusters: [{{name: b, cluster: {{server: '{url}'}}}}]}}"
    );
    let webhook =
        TokenWebhook::new(Remote::from_kubeconfig(&text, ".".as_ref()).unwrap()).ttl(Duration::ZERO);
    for _ in 0..3 {
        assert!(webhook.authenticate(&with_token("ann", &[])).await.unwrap().is_some());
    }
    server.abort();
}

#[test]
fn faults_of_a_kubeconfig_are_named() {
    let with = |server: &str, user: &str| {
        format!("{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: b, user: c}}}}],
            clusters: [{{name: b, cluster: {{{server}}}}}], users: [{{name: c, user: {{{user}}}}}]}}")
    };
    let https = "server: 'https://a.example.com'";
    for (text, field) in [
        (with("server: 'ftp://a'", ""), "clusters[0].cluster.server"),
        (with("", ""), "clusters[0].cluster.server"),
        (
            with(&format!("{https}, certificate-authority-data: '!'"), ""),
            "clusters[0].cluster.certificate-authority-data",
        ),
        (
            with(&format!("{https}, certificate-authority: /nowhere/ca.pem"), ""),
            "clusters[0].cluster.certificate-authority",
        ),
        (with(https, "client-certificate-data: YQ=="), "users[0].user.client-key"),
        (with(https, "token: \"a\\nb\""), "users[0].user.token"),
        (with(https, "").replace("current-context: a", "current-context: z"), "contexts"),
        (with(https, "").replace("name: c,", "name: d,"), "users"),
    ] {
        let error = Remote::from_kubeconfig(&text, ".".as_ref()).unwrap_err();
        assert_eq!(error.field, field, "{text}: {error}");
    }
}
