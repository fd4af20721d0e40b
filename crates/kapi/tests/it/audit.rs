//! What is told of requests, by the policy. Expected results: upstream's `endpoints/filters/audit_test.go`,
//! `authn_audit_test.go`, `test/integration/controlplane/audit` and the Kubernetes documentation, "Auditing".

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use kapi::{
    ApiServer,
    audit::{
        AuditEvent, AuditLog, AuditPolicy, AuditSink, AuditWebhook, BatchConfig, LogConfig, PeerAddress,
    },
    authn::{Identity, MASTERS, UserInfo},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::loopback::Service;

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<Value>>);

impl AuditSink for Kept {
    fn record(&self, event: &AuditEvent<'_>) {
        self.0.lock().unwrap().push(serde_json::from_slice(&event.to_json()).unwrap());
    }
}

impl Kept {
    fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn policy(rest: &str) -> AuditPolicy {
    AuditPolicy::parse(&format!("{{apiVersion: audit.k8s.io/v1, kind: Policy, {rest}}}")).unwrap()
}

async fn audited(rest: &str) -> (ApiServer, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let server = ApiServer::builder().audit(policy(rest), Arc::clone(&kept) as _).build().unwrap();
    server.bootstrap().await.unwrap();
    (server, kept)
}

/// One request; `headers` are `name: value`.
async fn ask(
    server: &ApiServer,
    user: Option<&str>,
    method: &str,
    uri: &str,
    body: &Value,
    headers: &[(&str, &str)],
) -> u16 {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let mut request = Request::builder().method(method).uri(uri).header("content-type", kind);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request = request.extension(PeerAddress("192.0.2.7".parse().unwrap()));
    if let Some(user) = user {
        let groups = if user == "admin" { vec![MASTERS] } else { vec![] };
        request = request.extension(Identity(Arc::new(UserInfo::new(user, groups))));
    }
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    let response = server.clone().oneshot(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    code
}

fn stages(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["stage"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_event_says_who_asked_for_what_and_what_came_of_it() {
    let (server, kept) = audited("rules: [{level: Metadata}]").await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    let path = "/api/v1/namespaces/default/secrets?fieldManager=me";
    let headers = [
        ("user-agent", "test/1"),
        ("audit-id", "my-own"),
        ("x-forwarded-for", "10.1.1.1"),
        ("impersonate-user", "ann"),
        ("impersonate-group", MASTERS),
    ];
    assert_eq!(ask(&server, Some("admin"), "POST", path, &secret, &headers).await, 201);
    let events = kept.take();
    assert_eq!(stages(&events), ["RequestReceived", "ResponseComplete"]);
    assert!(events[0].get("responseStatus").is_none() && events[0].get("annotations").is_none());
    let mut event = events[1].clone();
    for time in ["requestReceivedTimestamp", "stageTimestamp"] {
        let text = event.as_object_mut().unwrap().remove(time).unwrap();
        assert_eq!(text.as_str().unwrap().len(), "2026-01-01T00:00:00.000000Z".len());
    }
    assert!(
        event.as_object_mut().unwrap()["annotations"]
            .as_object_mut()
            .unwrap()
            .remove("authorization.k8s.io/reason")
            .is_some()
    );
    let expected = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "my-own",
        "stage": "ResponseComplete", "requestURI": path, "verb": "create",
        "user": {"username": "admin", "groups": [MASTERS]},
        "impersonatedUser": {"username": "ann", "groups": [MASTERS, "system:authenticated"]},
        "sourceIPs": ["10.1.1.1", "192.0.2.7"], "userAgent": "test/1",
        "objectRef": {"resource": "secrets", "namespace": "default", "name": "s", "apiVersion": "v1"},
        "responseStatus": {"metadata": {}, "code": 201},
        "annotations": {"authorization.k8s.io/decision": "allow"},
    });
    assert_eq!(event, expected);
    assert!(!format!("{events:?}").contains("hunter2"));
}

#[tokio::test]
async fn levels_say_how_much_is_kept() {
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    for (level, request, response) in [
        ("None", None, None),
        ("Metadata", Some(false), Some(false)),
        ("Request", Some(true), Some(false)),
        ("RequestResponse", Some(true), Some(true)),
    ] {
        let rest =
            format!("omitStages: [RequestReceived], omitManagedFields: true, rules: [{{level: {level}}}]");
        let (server, kept) = audited(&rest).await;
        let admin = Some("admin");
        kept.take();
        let cases = [
            ("POST", maps.to_owned(), map.clone(), 201),
            ("PATCH", format!("{maps}/m"), json!({"data": {"b": "2"}}), 200),
            ("PUT", format!("{maps}/m"), json!({"metadata": {"name": "m"}, "data": {"c": "3"}}), 200),
            ("DELETE", format!("{maps}/m"), json!({"propagationPolicy": "Background"}), 200),
        ];
        for (method, uri, body, code) in cases {
            assert_eq!(ask(&server, admin, method, &uri, &body, &[]).await, code, "{method}");
            let events = kept.take();
            assert_eq!(events.len(), usize::from(request.is_some()), "{level} {method}");
            for event in events {
                assert_eq!(event["level"], level);
                assert_eq!(Some(event.get("requestObject").is_some()), request, "{level} {method}");
                assert_eq!(Some(event.get("responseObject").is_some()), response, "{level} {method}");
                if let Some(told) = event.get("requestObject") {
                    for (key, value) in body.as_object().unwrap() {
                        assert_eq!(&told[key], value, "{method}");
                    }
                }
                assert!(!event.to_string().contains("managedFields"), "{event}");
            }
        }
        // What is refused says why, whatever the level.
        assert_eq!(ask(&server, admin, "GET", &format!("{maps}/none"), &Value::Null, &[]).await, 404);
        for event in kept.take() {
            assert_eq!(event["responseStatus"]["reason"], "NotFound");
            assert_eq!(event["responseStatus"]["details"]["name"], "none");
        }
        assert_eq!(ask(&server, admin, "GET", maps, &Value::Null, &[]).await, 200);
        for event in kept.take().iter().filter(|_| response == Some(true)) {
            assert_eq!(event["responseObject"]["kind"], "ConfigMapList");
        }
    }
}

#[tokio::test]
async fn strangers_and_refusals_are_told() {
    let (server, kept) = audited("rules: [{level: Metadata}]").await;
    let path = "/api/v1/namespaces/default/secrets/s";
    let login = [("authorization", "Bearer wrong")];
    assert_eq!(ask(&server, None, "GET", path, &Value::Null, &login).await, 401);
    let events = kept.take();
    assert_eq!(stages(&events), ["ResponseStarted"]);
    assert_eq!(events[0]["user"], json!({}));
    assert_eq!(events[0]["responseStatus"]["message"], "Authentication failed, attempted: bearer");
    assert_eq!(events[0]["responseStatus"]["code"], 401);
    assert!(!events[0].to_string().contains("wrong"));
    assert_eq!(ask(&server, Some("ann"), "GET", path, &Value::Null, &[]).await, 403);
    let events = kept.take();
    assert_eq!(events[1]["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(events[1]["responseStatus"]["code"], 403);
}

#[tokio::test]
async fn a_watch_is_told_when_it_begins_and_when_it_ends() {
    let (server, kept) = audited("rules: [{level: RequestResponse}]").await;
    let uri = "/api/v1/namespaces?watch=true&timeoutSeconds=1";
    tokio::time::pause();
    assert_eq!(ask(&server, Some("admin"), "GET", uri, &Value::Null, &[]).await, 200);
    let events = kept.take();
    assert_eq!(stages(&events), ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert_eq!(events[0]["auditID"], events[2]["auditID"]);
}

#[tokio::test]
async fn admission_has_its_say() {
    let (server, kept) = audited("omitStages: [RequestReceived], rules: [{level: Metadata}]").await;
    let admin = Some("admin");
    let space =
        json!({"metadata": {"name": "safe", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    assert_eq!(ask(&server, admin, "POST", "/api/v1/namespaces", &space, &[]).await, 201);
    let account = json!({"metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/safe/serviceaccounts";
    assert_eq!(ask(&server, admin, "POST", accounts, &account, &[]).await, 201);
    kept.take();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(ask(&server, admin, "POST", "/api/v1/namespaces/safe/pods", &pod, &[]).await, 403);
    let annotations = &kept.take()[0]["annotations"];
    assert_eq!(annotations["pod-security.kubernetes.io/enforce-policy"], "restricted:latest");
    assert_eq!(annotations["authorization.k8s.io/decision"], "allow");
}

#[tokio::test]
async fn a_log_has_a_line_for_each_event() {
    let place = std::env::temp_dir().join(format!("kapi-audit-it-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&place).unwrap();
    let path = place.join("audit.log");
    let mut config = LogConfig::new(&path);
    config.event_bytes_max = 4096;
    let log = Arc::new(AuditLog::open(config).unwrap());
    let rules = "omitStages: [RequestReceived], rules: [{level: Request}]";
    let server = ApiServer::builder().audit(policy(rules), log).build().unwrap();
    for size in [10, 10_000] {
        let map = json!({"metadata": {"name": format!("m{size}"), "namespace": "default"}, "data": {"a": "x".repeat(size)}});
        ask(&server, Some("admin"), "POST", "/api/v1/namespaces/default/configmaps", &map, &[]).await;
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].get("requestObject").is_some() && lines[1].get("requestObject").is_none());
    assert_eq!(lines[1]["annotations"]["audit.k8s.io/truncated"], "true");
    std::fs::remove_dir_all(place).unwrap();
}

#[tokio::test]
async fn a_webhook_gets_batches_and_is_asked_again() {
    let failed = AtomicUsize::new(0);
    let service = Service::start(move |_, _| {
        let first = failed.fetch_add(1, Ordering::Relaxed) == 0;
        (if first { 500 } else { 200 }, Value::Null)
    })
    .await;
    let mut config = BatchConfig::default();
    (config.batch_max, config.backoff) = (3, Duration::from_millis(1));
    let webhook = Arc::new(AuditWebhook::start(service.remote(), config));
    let rules = "omitStages: [RequestReceived], rules: [{level: Metadata}]";
    let server = ApiServer::builder().audit(policy(rules), Arc::clone(&webhook) as _).build().unwrap();
    for _ in 0..5 {
        assert_eq!(ask(&server, Some("admin"), "GET", "/version", &Value::Null, &[]).await, 200);
    }
    drop(server);
    let webhook = Arc::into_inner(webhook).unwrap();
    assert_eq!(webhook.lost(), 0);
    webhook.close().await;
    let asked = service.asked();
    let mut sizes: Vec<usize> =
        asked.iter().map(|(_, list)| list["items"].as_array().unwrap().len()).collect();
    sizes.sort_unstable();
    assert!(sizes == [2, 2, 3] || sizes == [2, 3, 3], "{sizes:?}");
    for (path, list) in &asked {
        assert_eq!((path.as_str(), &list["kind"]), ("/hook Bearer sesame", &json!("EventList")));
        assert_eq!(list["items"][0]["requestURI"], "/version");
    }
}

/// `blocking-strict`: what can't be written down does not happen, and reading neither; `blocking`: it happens all the same.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_strict_log_lets_nothing_happen_that_it_does_not_have() {
    for (strict, codes) in [(true, [500, 500, 404]), (false, [201, 200, 200])] {
        // Nothing fits on this device.
        let mut config = LogConfig::new("/dev/full");
        config.strict = strict;
        let log = Arc::new(AuditLog::open(config).unwrap());
        let audit: Vec<Arc<dyn AuditSink>> = vec![Arc::new(Kept::default()), Arc::clone(&log) as _];
        let rules = "rules: [{level: Metadata, verbs: [create, list]}]";
        let server = ApiServer::builder().audit(policy(rules), Arc::new(audit)).build().unwrap();
        server.bootstrap().await.unwrap();
        let map = json!({"metadata": {"name": "m", "namespace": "default"}});
        let maps = "/api/v1/namespaces/default/configmaps";
        let found = [
            ask(&server, Some("admin"), "POST", maps, &map, &[]).await,
            ask(&server, Some("admin"), "GET", maps, &Value::Null, &[]).await,
            ask(&server, Some("admin"), "GET", &format!("{maps}/m"), &Value::Null, &[]).await,
        ];
        assert_eq!(found, codes, "strict: {strict}");
        assert!(log.lost() >= 2);
    }
}

/// What waits for others to be sent with is sent at the end.
#[tokio::test]
async fn the_end_leaves_nothing_behind() {
    let service = Service::start(|_, _| (200, Value::Null)).await;
    let config = BatchConfig { wait_max: Duration::from_secs(3600), ..BatchConfig::default() };
    let webhook = Arc::new(AuditWebhook::start(service.remote(), config));
    let server = ApiServer::builder();
    let server =
        server.audit(policy("rules: [{level: Metadata}]"), Arc::clone(&webhook) as _).build().unwrap();
    assert_eq!(ask(&server, Some("admin"), "GET", "/version", &Value::Null, &[]).await, 200);
    assert!(service.asked().is_empty());
    server.flush_audit().await;
    let events: usize = service.asked().iter().map(|(_, list)| list["items"].as_array().unwrap().len()).sum();
    assert_eq!((events, webhook.lost()), (2, 0));
    // It goes on afterwards.
    ask(&server, Some("admin"), "GET", "/version", &Value::Null, &[]).await;
    server.flush_audit().await;
    assert_eq!(service.asked().len(), 2);
}
