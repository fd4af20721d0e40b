//! Attempts at what nobody may do. What is expected is upstream's: 401 for who claims to be somebody and is not, 403 for who may
//! not, whether there is something or not (`docs/security.md`, "What was tried").

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use kapi::{ApiServer, authn::UserInfo, authz::AuthorizationMode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{get, json as send, json_as, server};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"];
/// Whoever is known may ask about themselves (`system:basic-user`).
const ABOUT_ONESELF: [&str; 3] =
    ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];

/// The paths of every resource and subresource that is served: of one object and of the collection, in a namespace and in all.
async fn places(server: &ApiServer) -> Vec<(String, String)> {
    let (_, groups) = get(server, "/apis").await;
    let versions =
        groups["groups"].as_array().unwrap().iter().flat_map(|group| group["versions"].as_array().unwrap());
    let roots = versions.map(|version| format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
    let mut places = Vec::new();
    for root in roots.chain(["/api/v1".to_owned()]) {
        let (_, list) = get(server, &root).await;
        for resource in list["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            let (plural, sub) = name.split_once('/').map_or((name, ""), |(plural, sub)| (plural, sub));
            let space = if resource["namespaced"] == true { "/namespaces/kube-system" } else { "" };
            let sub = if sub.is_empty() { String::new() } else { format!("/{sub}") };
            places.push((plural.to_owned(), format!("{root}{space}/{plural}/x{sub}")));
            if sub.is_empty() {
                places.push((plural.to_owned(), format!("{root}{space}/{plural}")));
                places.push((plural.to_owned(), format!("{root}/{plural}?watch=true")));
            }
        }
    }
    places
}

#[tokio::test]
async fn no_verb_on_any_kind_is_open_to_strangers() {
    let server = server().await;
    let places = places(&server).await;
    assert!(places.len() > 250, "{}", places.len());
    let groups = ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"];
    let account = UserInfo::new("system:serviceaccount:default:plain", groups);
    let nobody = UserInfo::anonymous();
    for (plural, path) in &places {
        for method in METHODS {
            for user in [&nobody, &account] {
                let open = user.name == account.name && ABOUT_ONESELF.contains(&plural.as_str());
                // Accounts may read whom to trust (`system:cluster-trust-bundle-discovery`).
                let trusts = user.name == account.name
                    && plural == "clustertrustbundles"
                    && ["GET", "HEAD"].contains(&method);
                if trusts || open && method == "POST" {
                    continue;
                }
                let (code, answer) = json_as(&server, user.clone(), method, path, &json!({})).await;
                assert_eq!(code, 403, "{method} {path} as {}: {answer}", user.name);
            }
        }
    }
    assert_eq!(get(&server, "/healthz").await.0, 200);
}

/// A server that lets everybody do everything wants to know who they are (upstream's `ApplyAuthorization`).
#[tokio::test]
async fn nobody_is_anonymous_where_everything_is_allowed() {
    let open = ApiServer::builder().authorization([AuthorizationMode::AlwaysAllow]).anonymous(true);
    let server = open.build().unwrap();
    server.bootstrap().await.unwrap();
    let ask = async |user: Option<UserInfo>| {
        let request = Request::get("/api/v1/namespaces/kube-system/secrets").body(Full::new(Bytes::new()));
        let request = request.unwrap();
        let answer = match user {
            Some(user) => server.as_user(user).oneshot(request).await,
            None => server.clone().oneshot(request).await,
        };
        answer.unwrap().status().as_u16()
    };
    assert_eq!((ask(None).await, ask(Some(UserInfo::new("somebody", [""; 0]))).await), (401, 200));
}

/// What is there is told from what is not by nothing but the name that was asked for.
#[tokio::test]
async fn a_refusal_does_not_tell_what_there_is() {
    let server = server().await;
    let secret = json!({"metadata": {"name": "real"}, "stringData": {"password": "hunter2"}});
    assert_eq!(send(&server, "POST", "/api/v1/namespaces/default/secrets", &secret).await.0, 201);
    let account = UserInfo::new("system:serviceaccount:apart:plain", ["system:serviceaccounts"]);
    for method in METHODS {
        let mut told = Vec::new();
        for (namespace, name) in [("default", "real"), ("default", "none"), ("nowhere", "real")] {
            let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
            let (code, answer) = json_as(&server, account.clone(), method, &path, &secret).await;
            let text = answer.to_string();
            assert!(!text.contains("hunter2") && !text.contains("aHVudGVy"), "{text}");
            told.push((
                code,
                text.replace(namespace, "NAMESPACE")
                    .replace(&format!("\"{name}\""), "NAME")
                    .replace(&format!("\\\"{name}\\\""), "NAME"),
            ));
        }
        assert!(told.iter().all(|one| *one == told[0]), "{method}: {told:#?}");
    }
}

/// One request as it comes from the network, without an identity.
async fn raw(server: &ApiServer, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = server.clone().oneshot(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn nobody_becomes_somebody_by_headers() {
    let server = server().await;
    let path = "/api/v1/namespaces/kube-system/secrets";
    // `{"alg":"none"}` and a subject.
    let none = "Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMiLCJzdWIiOiJzeXN0ZW06YWRtaW4ifQ.";
    let cases: &[(&[(&str, &str)], u16)] = &[
        (&[], 403),
        (&[("x-remote-user", "admin"), ("x-remote-group", "system:masters")], 403),
        (&[("x-remote-extra-scopes", "all"), ("x-remote-uid", "0")], 403),
        (
            &[("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1"), ("forwarded", "for=127.0.0.1")],
            403,
        ),
        (&[("x-http-method-override", "GET"), ("x-original-url", "/healthz")], 403),
        (&[("impersonate-user", "admin")], 403),
        (&[("impersonate-user", "system:anonymous"), ("impersonate-group", "system:masters")], 403),
        (&[("impersonate-group", "system:masters")], 400),
        (&[("authorization", "Basic YWRtaW46YWRtaW4=")], 401),
        (&[("authorization", "Bearer")], 401),
        (&[("authorization", "Bearer x")], 401),
        (&[("authorization", "bearer  x"), ("authorization", "Bearer y")], 401),
        (&[("authorization", none)], 401),
        (
            &[
                ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.eA, v4.channel.k8s.io"),
                ("upgrade", "websocket"),
                ("connection", "upgrade"),
            ],
            401,
        ),
        (&[("cookie", "token=x"), ("x-auth-token", "x"), ("x-csrf-token", "x")], 403),
    ];
    for (headers, code) in cases {
        let (found, answer) = raw(&server, "GET", path, headers).await;
        assert_eq!(found, *code, "{headers:?}: {answer}");
        assert!(answer["items"].is_null(), "{headers:?}");
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_leads_past_the_gate() {
    let server = server().await;
    for path in [
        "//api/v1/secrets",
        "/api//v1/secrets",
        "/./api/v1/secrets",
        "/healthz/../api/v1/secrets",
        "/healthz/%2e%2e/api/v1/secrets",
        "/version/..%2fapi/v1/secrets",
        "/version%2f..%2fapi%2fv1%2fsecrets",
        "/livez//../../api/v1/secrets",
        "/api/v1/secrets;/healthz",
        "/api/v1/secrets%00/healthz",
        "/api/v1/secrets%23/healthz",
        "/api/v1/secrets%3f/healthz",
        "/API/V1/secrets",
        "/api/v1/%73ecrets",
        "/api/v1/secrets/",
        "/api/v1/watch/secrets",
        "/api/v1/proxy/nodes/n/healthz",
        "/api/v1/namespaces/default/pods/..%2f..%2fsecrets",
        "/api/v1/namespaces/..%2f..%2f..%2fhealthz",
        "/api/v1/secrets?access_token=x&token=x&as=admin",
        "/metrics",
        "/debug/pprof/",
        "/logs/",
        "/configz",
        "/flagz",
        "/statusz",
        "/healthz.php",
        "/healthzz",
        "/version.json",
    ] {
        for method in ["GET", "POST"] {
            let (code, answer) = raw(&server, method, path, &[]).await;
            assert!([401, 403].contains(&code), "{method} {path}: {code} {answer}");
        }
    }
}
