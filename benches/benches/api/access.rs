//! What a decision by roles costs: 1,000 roles and 10,000 bindings, and how soon a new one counts.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use kplane::kapi::{
    ApiServer, admission,
    authn::UserInfo,
    authz::{AuthorizationMode, Rbac, Verdict},
    request::RequestInfo,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt as _;

const ROLES: usize = 1_000;
const BINDINGS: usize = 10_000;
const NAMESPACES: usize = 100;
const ROUNDS: u32 = 100_000;
const GROUP: &str = "rbac.authorization.k8s.io";

async fn create(server: &ApiServer, plural: &str, object: &Value) {
    let request =
        http::Request::post(format!("/apis/{GROUP}/v1/{plural}")).header("content-type", "application/json");
    let body = Full::new(Bytes::from(object.to_string()));
    let answer = server.as_user(crate::admin()).oneshot(request.body(body).expect("a request")).await;
    assert_eq!(answer.map(|answer| answer.status().as_u16()), Ok(201), "{object}");
}

fn role(number: usize) -> Value {
    let rule = |verb: &str, resource: &str| json!({"verbs": [verb, "get"], "apiGroups": ["", "apps"], "resources": [resource]});
    json!({"metadata": {"name": format!("role-{number}")}, "rules": [
        rule("list", "pods"), rule("watch", "deployments"), rule("update", "configmaps"), rule("create", "services"),
        rule("delete", &format!("thing-{number}")),
    ]})
}

/// Every tenth binds in the whole cluster, the others in a namespace; half are for users, half for groups.
fn binding(number: usize) -> (String, Value) {
    let subject = if number.is_multiple_of(2) { "User" } else { "Group" };
    let object = json!({
        "metadata": {"name": format!("binding-{number}")},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": format!("role-{}", number % ROLES)},
        "subjects": [{"kind": subject, "apiGroup": GROUP, "name": format!("{}-{}", subject.to_lowercase(), number / 2 % 500)}],
    });
    let plural = if number.is_multiple_of(10) {
        "clusterrolebindings".to_owned()
    } else {
        format!("namespaces/ns-{}/rolebindings", number % NAMESPACES)
    };
    (plural, object)
}

pub(crate) async fn run() {
    println!("\n## decisions by {ROLES} roles and {BINDINGS} bindings\n");
    let server = crate::server().await;
    for number in 0..NAMESPACES {
        let namespace = json!({"metadata": {"name": format!("ns-{number}")}}).to_string();
        let request = http::Request::post("/api/v1/namespaces").header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(namespace))).expect("a request");
        server.as_user(crate::admin()).oneshot(request).await.expect("an answer");
    }
    for number in 0..ROLES {
        create(&server, "clusterroles", &role(number)).await;
    }
    for number in 0..BINDINGS {
        let (plural, object) = binding(number);
        create(&server, &plural, &object).await;
    }
    let rbac = Rbac::new(server.shared_objects());
    let ask = |verb: &str, resource: &str, namespace: &str| RequestInfo {
        is_resource: true,
        verb: verb.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        ..RequestInfo::default()
    };
    let groups = ["group-7", "group-8", "system:authenticated"];
    let began = Instant::now();
    let _ = rbac.decide(&UserInfo::new("user-7", groups), &ask("list", "pods", "ns-14"));
    println!("| first decision, with everything read | {:.1?} |", began.elapsed());
    println!("|---|---|");
    for (what, user, request, allowed) in [
        ("allowed in a namespace", UserInfo::new("user-7", groups), ask("list", "pods", "ns-14"), true),
        ("refused in a namespace", UserInfo::new("user-7", groups), ask("delete", "secrets", "ns-14"), false),
        ("refused, in fifty groups", many_groups(), ask("delete", "secrets", "ns-14"), false),
        ("refused, unknown", UserInfo::new("nobody", [""; 0]), ask("delete", "secrets", "ns-14"), false),
    ] {
        let began = Instant::now();
        let mut count = 0;
        for _ in 0..ROUNDS {
            count += u32::from(matches!(rbac.decide(&user, &request), Verdict::Allow(_)));
        }
        assert_eq!(count, if allowed { ROUNDS } else { 0 }, "{what}");
        println!("| {what} | {:.0?} |", began.elapsed() / ROUNDS);
    }
    let began = Instant::now();
    for number in 0..100 {
        let (plural, object) = binding(BINDINGS + number);
        create(&server, &plural, &object).await;
        let _ = rbac.decide(&UserInfo::new("user-7", groups), &ask("list", "pods", "ns-14"));
    }
    println!("| a binding more, and the next decision | {:.0?} |", began.elapsed() / 100);
    chain(&server).await;
}

/// How many requests of each kind are made on either server, in turns of [`TURN`]; the middle turn counts.
const REQUESTS: u32 = 10_000;
const TURN: u32 = 100;

/// One request, whose answer must be this.
struct Ask<'a> {
    what: &'static str,
    method: &'static str,
    path: &'static str,
    body: &'a str,
    code: u16,
}

impl Ask<'_> {
    /// With the header read already, as that is HTTP's work.
    fn request(&self, token: Option<&http::HeaderValue>) -> http::Request<Full<Bytes>> {
        let mut request = http::Request::builder().method(self.method).uri(self.path);
        request = request.header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", token.clone());
        }
        request.body(Full::new(Bytes::copy_from_slice(self.body.as_bytes()))).expect("a request")
    }
}

/// What the way from the socket to the store costs a request: a service account's token, its roles among the others, priority and
/// fairness, all default admission; beside a server that lets the same through without asking.
async fn chain(full: &ApiServer) {
    let mut bare = ApiServer::builder().authorization([AuthorizationMode::AlwaysAllow]);
    for step in admission::defaults() {
        bare = bare.without_admission(step.name());
    }
    let bare = bare.build().expect("a server");
    bare.bootstrap().await.expect("a cluster's objects");
    for server in [full, &bare] {
        let map =
            json!({"metadata": {"name": "read", "namespace": "default"}, "data": {"a": "b"}}).to_string();
        let request = http::Request::post("/api/v1/namespaces/default/configmaps");
        let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(map)));
        server.as_user(crate::admin()).oneshot(request.expect("a request")).await.expect("an answer");
    }
    create(
        full,
        "clusterrolebindings",
        &json!({"metadata": {"name": "bench"},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]}),
    )
    .await;
    let token = format!("Bearer {}", token(full).await).parse().expect("a header");
    let (map, pod) = (
        json!({"metadata": {"name": "dry", "namespace": "default"}, "data": {"a": "b"}}).to_string(),
        crate::objects::pod("dry").to_string(),
    );
    let complete = self::complete(full, &pod).await;
    println!("\n## the way to the store, in CPU time of one request\n");
    println!("| request | with all checks | without | difference |\n|---|---|---|---|");
    for ask in [
        Ask {
            what: "get",
            method: "GET",
            path: "/api/v1/namespaces/default/configmaps/read",
            body: "",
            code: 200,
        },
        Ask {
            what: "create a ConfigMap, dry",
            method: "POST",
            path: "/api/v1/namespaces/default/configmaps?dryRun=All",
            body: &map,
            code: 201,
        },
        Ask {
            what: "create a pod, dry",
            method: "POST",
            path: "/api/v1/namespaces/default/pods?dryRun=All",
            body: &pod,
            code: 201,
        },
        // What admission adds is decoded, checked and encoded like the rest, which is no cost of asking.
        Ask {
            what: "create a pod that has all that admission adds, dry",
            method: "POST",
            path: "/api/v1/namespaces/default/pods?dryRun=All",
            body: &complete,
            code: 201,
        },
    ] {
        let mut took = [const { Vec::new() }; 2];
        for _ in 0..REQUESTS / TURN {
            for (index, took) in took.iter_mut().enumerate() {
                let began = kplane_benches::cpu_time();
                for _ in 0..TURN {
                    let answer = if index == 0 {
                        full.clone().oneshot(ask.request(Some(&token))).await
                    } else {
                        bare.as_user(crate::admin()).oneshot(ask.request(None)).await
                    };
                    assert_eq!(answer.map(|answer| answer.status().as_u16()), Ok(ask.code), "{}", ask.what);
                }
                took.push((kplane_benches::cpu_time() - began) / TURN);
            }
        }
        let [with, without] = took.map(middle);
        println!("| {} | {with:.1?} | {without:.1?} | {:.1?} |", ask.what, with.saturating_sub(without));
    }
    steps(&complete).await;
}

/// What each step of admission costs the create of a pod that has all that it adds.
async fn steps(pod: &str) {
    println!(
        "\n## the steps of admission for a pod that has all that they add, in CPU time of one request\n"
    );
    println!("| step | cost |\n|---|---|");
    let without = only(None).await;
    let names: Vec<String> = admission::defaults().iter().map(|step| step.name().to_owned()).collect();
    for name in &names {
        let with = only(Some(name)).await;
        let mut took = [const { Vec::new() }; 2];
        for _ in 0..REQUESTS / TURN {
            for (server, took) in [&with, &without].into_iter().zip(&mut took) {
                let began = kplane_benches::cpu_time();
                for _ in 0..TURN {
                    let request = http::Request::post("/api/v1/namespaces/default/pods?dryRun=All");
                    let request = request.header("content-type", "application/json");
                    let body = Full::new(Bytes::copy_from_slice(pod.as_bytes()));
                    let answer =
                        server.as_user(crate::admin()).oneshot(request.body(body).expect("a request"));
                    assert_eq!(answer.await.map(|answer| answer.status().as_u16()), Ok(201), "{name}");
                }
                took.push((kplane_benches::cpu_time() - began) / TURN);
            }
        }
        let [with, without] = took.map(middle);
        println!("| {name} | {:.1?} |", with.saturating_sub(without));
    }
}

/// The middle one, which a turn in which the machine did something else doesn't move.
fn middle(mut took: Vec<std::time::Duration>) -> std::time::Duration {
    took.sort();
    took[took.len() / 2]
}

/// A server that asks nobody but this step.
async fn only(kept: Option<&String>) -> ApiServer {
    let mut server = ApiServer::builder().authorization([AuthorizationMode::AlwaysAllow]);
    for step in admission::defaults().iter().filter(|step| Some(step.name()) != kept.map(String::as_str)) {
        server = server.without_admission(step.name());
    }
    let server = server.build().expect("a server");
    server.bootstrap().await.expect("a cluster's objects");
    let account = json!({"metadata": {"name": "default"}}).to_string();
    let request = http::Request::post("/api/v1/namespaces/default/serviceaccounts");
    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(account)));
    server.as_user(crate::admin()).oneshot(request.expect("a request")).await.expect("an answer");
    server
}

/// A pod as admission leaves it, to be created anew.
async fn complete(server: &ApiServer, pod: &str) -> String {
    let request = http::Request::post("/api/v1/namespaces/default/pods?dryRun=All");
    let request =
        request.header("content-type", "application/json").body(Full::new(Bytes::from(pod.to_owned())));
    let answer =
        server.as_user(crate::admin()).oneshot(request.expect("a request")).await.expect("an answer");
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    let mut pod: Value = serde_json::from_slice(&body).expect("JSON");
    let metadata = json!({"name": "dry", "labels": pod["metadata"]["labels"]});
    (pod["metadata"], pod["status"]) = (metadata, Value::Null);
    pod.to_string()
}

/// A token of the service account `default`.
async fn token(server: &ApiServer) -> String {
    let request = http::Request::post("/api/v1/namespaces/default/serviceaccounts/default/token");
    let body =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}).to_string();
    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body)));
    let answer =
        server.as_user(crate::admin()).oneshot(request.expect("a request")).await.expect("an answer");
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

fn many_groups() -> UserInfo {
    UserInfo::new("user-7", (0..50).map(|number| format!("group-{number}")))
}
