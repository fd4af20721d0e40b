//! What a decision by roles costs: 1,000 roles and 10,000 bindings, and how soon a new one counts.

use bytes::Bytes;
use http_body_util::Full;
use kplane::kapi::{
    ApiServer,
    authn::UserInfo,
    authz::{Rbac, Verdict},
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
}

fn many_groups() -> UserInfo {
    UserInfo::new("user-7", (0..50).map(|number| format!("group-{number}")))
}
