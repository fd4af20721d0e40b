//! Tokens of service accounts: asked for, believed, reviewed. What is expected is upstream's
//! (`pkg/registry/core/serviceaccount/storage/token.go`, `pkg/serviceaccount`, `test/integration/auth/svcaccttoken_test.go`).

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use kapi::{
    ApiServer,
    authn::{ServiceAccountIssuer, StaticTokens, UserInfo, jwt::SigningKey},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{get, json, json_as, server};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/default/pods";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

async fn created(server: &ApiServer, path: &str, object: Value) -> Value {
    let (code, made) = json(server, "POST", path, &object).await;
    assert_eq!(code, 201, "{made}");
    made
}

/// What tokens are bound to in these tests.
async fn furnish(server: &ApiServer) {
    for name in ["robot", "other", "default"] {
        created(server, ACCOUNTS, json!({"metadata": {"name": name}})).await;
    }
    created(server, "/api/v1/nodes", json!({"metadata": {"name": "node"}})).await;
    created(server, "/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "secret"}})).await;
    for (name, account) in [("pod", "robot"), ("stranger", "other")] {
        let spec = json!({"serviceAccountName": account, "nodeName": "node", "containers": [{"name": "a", "image": "a"}]});
        created(server, PODS, json!({"metadata": {"name": name}, "spec": spec})).await;
    }
}

async fn furnished() -> ApiServer {
    let server = server().await;
    furnish(&server).await;
    server
}

async fn request(server: &ApiServer, spec: Value) -> (u16, Value) {
    json(server, "POST", &format!("{ACCOUNTS}/robot/token"), &json!({"spec": spec})).await
}

async fn token(server: &ApiServer, spec: Value) -> String {
    let (code, answer) = request(server, spec).await;
    assert_eq!(code, 201, "{answer}");
    answer["status"]["token"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// Who the server takes the bearer for: the answer to `SelfSubjectReview`.
async fn who(server: &ApiServer, token: &str) -> (u16, Value) {
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(b"{}")));
    let response = server.clone().oneshot(request.unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    (code, answer["status"]["userInfo"].clone())
}

async fn review(server: &ApiServer, spec: Value) -> Value {
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    created(server, path, json!({"spec": spec})).await["status"].clone()
}

#[tokio::test]
async fn a_token_says_who_made_it_for_whom() {
    let server = furnished().await;
    let (code, answer) = request(&server, json!({})).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(
        (answer["kind"].as_str(), answer["metadata"]["name"].as_str()),
        (Some("TokenRequest"), Some("robot"))
    );
    assert_eq!(
        answer["spec"],
        json!({"audiences": [ISSUER], "expirationSeconds": 3_600, "boundObjectRef": null})
    );
    let claims = claims(answer["status"]["token"].as_str().unwrap());
    let (_, account) = get(&server, &format!("{ACCOUNTS}/robot")).await;
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(claims["sub"], "system:serviceaccount:default:robot");
    assert_eq!(claims["aud"], json!([ISSUER]));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3_600);
    assert_eq!(claims["nbf"], claims["iat"]);
    assert!(!claims["jti"].as_str().unwrap().is_empty());
    let expected = json!({"namespace": "default", "serviceaccount": {"name": "robot", "uid": account["metadata"]["uid"]}});
    assert_eq!(claims["kubernetes.io"], expected);
}

#[tokio::test]
async fn requests_that_are_wrong_are_refused() {
    let server = furnished().await;
    let bound = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "name": name});
    for (body, code, why) in [
        (
            json!({"spec": {"expirationSeconds": 599}}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
        ),
        (
            json!({"spec": {"expirationSeconds": 4_294_967_297_i64}}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds",
        ),
        (
            json!({"metadata": {"name": "else"}}),
            422,
            "TokenRequest.authentication.k8s.io \"robot\" is invalid: metadata.name: Invalid value: \"else\": must match the service account name if specified",
        ),
        (
            json!({"metadata": {"namespace": "else"}}),
            422,
            "TokenRequest.authentication.k8s.io \"robot\" is invalid: metadata.namespace: Invalid value: \"else\": must match the service account namespace if specified",
        ),
        (json!({"spec": {"boundObjectRef": bound("Pod", "none")}}), 404, "pods \"none\" not found"),
        (json!({"spec": {"boundObjectRef": bound("Secret", "none")}}), 404, "secrets \"none\" not found"),
        (
            json!({"spec": {"boundObjectRef": bound("Pod", "stranger")}}),
            400,
            "cannot bind token for serviceaccount \"robot\" to pod running with different serviceaccount name.",
        ),
        (
            json!({"spec": {"boundObjectRef": bound("ConfigMap", "x")}}),
            400,
            "cannot bind token to object of type /v1, Kind=ConfigMap",
        ),
        (
            json!({"spec": {"expirationSeconds": "soon"}}),
            400,
            "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: json: cannot unmarshal string into Go struct field TokenRequestSpec.spec.expirationSeconds of type int64",
        ),
        (
            json!({"kind": "Pod", "apiVersion": "authentication.k8s.io/v1"}),
            400,
            "Pod in version \"v1\" cannot be handled as a TokenRequest: the kind in the data does not match the expected kind",
        ),
    ] {
        let answer = json(&server, "POST", &format!("{ACCOUNTS}/robot/token"), &body).await;
        assert_eq!((answer.0, answer.1["message"].as_str()), (code, Some(why)), "{body}");
    }
    for (uid, kind, name) in [("1", "Pod", "pod"), ("1", "Node", "node"), ("1", "Secret", "secret")] {
        let (code, answer) = request(
            &server,
            json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}}),
        )
        .await;
        assert_eq!((code, answer["reason"].as_str()), (409, Some("Conflict")), "{answer}");
    }
    let none = json(&server, "POST", &format!("{ACCOUNTS}/none/token"), &json!({})).await;
    assert_eq!((none.0, none.1["message"].as_str()), (404, Some("serviceaccounts \"none\" not found")));
    let other =
        json(&server, "POST", &format!("{ACCOUNTS}/robot/token"), &json!({"metadata": {"uid": "1"}})).await;
    assert_eq!(other.0, 409);
    assert_eq!(get(&server, &format!("{ACCOUNTS}/robot/token")).await.0, 405);
    let strict = format!("{ACCOUNTS}/robot/token?fieldValidation=Strict");
    let (code, answer) = json(&server, "POST", &strict, &json!({"spec": {"audience": "a"}})).await;
    let why = "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: strict decoding error: unknown field \"spec.audience\"";
    assert_eq!((code, answer["message"].as_str()), (400, Some(why)));
}

#[tokio::test]
async fn who_has_a_token_is_the_account() {
    let server = furnished().await;
    let (_, account) = get(&server, &format!("{ACCOUNTS}/robot")).await;
    let uid = &account["metadata"]["uid"];
    let pod = get(&server, &format!("{PODS}/pod")).await.1["metadata"]["uid"].clone();
    let node = get(&server, "/api/v1/nodes/node").await.1["metadata"]["uid"].clone();
    let of_pod = json!({
        "authentication.kubernetes.io/pod-name": ["pod"], "authentication.kubernetes.io/pod-uid": [pod],
        "authentication.kubernetes.io/node-name": ["node"], "authentication.kubernetes.io/node-uid": [node],
    });
    let of_node = json!({
        "authentication.kubernetes.io/node-name": ["node"], "authentication.kubernetes.io/node-uid": [node],
    });
    for (bound, mut extra) in [
        (Value::Null, json!({})),
        (json!({"apiVersion": "v1", "kind": "Pod", "name": "pod", "uid": pod}), of_pod),
        (json!({"apiVersion": "v1", "kind": "Node", "name": "node"}), of_node),
        (json!({"apiVersion": "v1", "kind": "Secret", "name": "secret"}), json!({})),
    ] {
        let token = token(&server, json!({"boundObjectRef": bound})).await;
        let id = claims(&token)["jti"].as_str().unwrap().to_owned();
        extra["authentication.kubernetes.io/credential-id"] = json!([format!("JTI={id}")]);
        let expected = json!({
            "username": "system:serviceaccount:default:robot", "uid": uid, "extra": extra,
            "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
        });
        assert_eq!(who(&server, &token).await, (200 + 1, expected), "{bound}");
    }
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    for (kind, path) in [
        ("Pod", format!("{PODS}/pod?gracePeriodSeconds=0")),
        ("Node", "/api/v1/nodes/node".to_owned()),
        ("Secret", "/api/v1/namespaces/default/secrets/secret".to_owned()),
        ("", format!("{ACCOUNTS}/robot")),
    ] {
        let server = furnished().await;
        let bound = match kind {
            "" => Value::Null,
            kind => json!({"apiVersion": "v1", "kind": kind, "name": kind.to_lowercase()}),
        };
        let token = token(&server, json!({"boundObjectRef": bound})).await;
        assert_eq!(who(&server, &token).await.0, 201, "{kind}");
        let (code, gone) = json(&server, "DELETE", &path, &Value::Null).await;
        assert_eq!(code, 200, "{gone}");
        assert_eq!(who(&server, &token).await.0, 401, "{kind}");
        // Another one of that name is not the same.
        if kind.is_empty() {
            created(&server, ACCOUNTS, json!({"metadata": {"name": "robot"}})).await;
            assert_eq!(who(&server, &token).await.0, 401);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_expire() {
    let server = furnished().await;
    let token = token(&server, json!({"expirationSeconds": 600})).await;
    // Clocks may differ by a minute.
    tokio::time::advance(Duration::from_secs(655)).await;
    assert_eq!(who(&server, &token).await.0, 201);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(who(&server, &token).await.0, 401);
    let status = review(&server, json!({"token": token})).await;
    assert_eq!(status, json!({"user": {}, "error": "service account token has expired"}));
}

#[tokio::test]
async fn reviews_ask_for_audiences() {
    let server = ApiServer::builder()
        .authenticator(Arc::new(StaticTokens::new().with("fixed", UserInfo::new("jane", ["dev"]))))
        .build()
        .unwrap();
    server.bootstrap().await.unwrap();
    furnish(&server).await;
    let own = token(&server, json!({})).await;
    let vault = token(&server, json!({"audiences": ["vault", ISSUER]})).await;
    let foreign = token(&server, json!({"audiences": ["vault"]})).await;
    let invalid = "invalid bearer token".to_owned();
    let refused = |given: &str, wanted: &str| {
        format!("token audiences [{given:?}] is invalid for the target audiences [{wanted:?}]")
    };
    for (token, wanted, expected) in [
        (&*own, json!([]), Ok(json!([ISSUER]))),
        (&*own, json!(["vault"]), Err(refused(ISSUER, "vault"))),
        (&*vault, json!(["vault", "bank"]), Ok(json!(["vault"]))),
        (&*vault, json!([]), Ok(json!([ISSUER]))),
        (&*foreign, json!(["vault"]), Ok(json!(["vault"]))),
        (&*foreign, json!([]), Err(refused("vault", ISSUER))),
        ("fixed", json!([]), Ok(json!([ISSUER]))),
        ("fixed", json!(["vault"]), Err(invalid.clone())),
        ("nobody's", json!([]), Err(invalid)),
    ] {
        let status = review(&server, json!({"token": token, "audiences": wanted})).await;
        let told = match status["authenticated"].as_bool() {
            Some(true) => Ok(status["audiences"].clone()),
            _ => Err(status["error"].as_str().unwrap_or_default().to_owned()),
        };
        assert_eq!(told, expected, "{wanted}");
    }
    // What is for somebody else does not open the API server.
    assert_eq!(who(&server, &foreign).await.0, 401);
    let none =
        json(&server, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", &json!({"spec": {}})).await;
    assert_eq!(none.0, 400);
}

#[tokio::test]
async fn keys_can_be_changed() {
    let first = ServiceAccountIssuer::generate().unwrap().issuer("https://a");
    let old = ApiServer::builder().service_accounts(first).build().unwrap();
    old.bootstrap().await.unwrap();
    furnish(&old).await;
    let (_, keys) = get(&old, "/openid/v1/jwks").await;
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(1));

    // One whose key signs, and the older one's is still believed.
    let pem = include_bytes!("../../src/authn/jwt/testdata/rsa_pkcs8.pem");
    let rsa = || SigningKey::of_pem(pem).unwrap();
    let issuer =
        ServiceAccountIssuer::generate().unwrap().issuer("https://a").also_verify([rsa().public().clone()]);
    let server = ApiServer::builder().service_accounts(issuer).build().unwrap();
    server.bootstrap().await.unwrap();
    furnish(&server).await;
    let (_, account) = get(&server, &format!("{ACCOUNTS}/robot")).await;
    let uid = account["metadata"]["uid"].as_str().unwrap();
    let legacy = ServiceAccountIssuer::new(rsa()).secret_token("default", "robot", uid, "kept").unwrap();
    // The secret must hold it.
    assert_eq!(who(&server, &legacy).await.0, 401);
    let secret = json!({
        "metadata": {"name": "kept", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token", "stringData": {"token": legacy},
    });
    created(&server, "/api/v1/namespaces/default/secrets", secret).await;
    let (code, user) = who(&server, &legacy).await;
    assert_eq!((code, user["username"].as_str()), (201, Some("system:serviceaccount:default:robot")));
    // KEP-2799: the day is noted, and since when days are.
    let today = kcore::Clock::now(&kcore::SystemClock).strftime("%Y-%m-%d").to_string();
    let (_, kept) = get(&server, "/api/v1/namespaces/default/secrets/kept").await;
    assert_eq!(kept["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"], today);
    let tracking = "kube-apiserver-legacy-service-account-token-tracking";
    let (_, map) = get(&server, &format!("/api/v1/namespaces/kube-system/configmaps/{tracking}")).await;
    assert_eq!(map["data"]["since"], today);
    assert_eq!(who(&server, &legacy).await.0, 201, "the second use changes nothing");
    // A token of a server with another key is none of these.
    assert_eq!(who(&server, &token(&old, json!({})).await).await.0, 401);

    let (_, keys) = get(&server, "/openid/v1/jwks").await;
    let kinds: Vec<&str> =
        keys["keys"].as_array().unwrap().iter().filter_map(|key| key["kty"].as_str()).collect();
    assert_eq!(kinds, ["EC", "RSA"]);
    let (_, told) = get(&server, "/.well-known/openid-configuration").await;
    assert_eq!(told["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
    assert_eq!(
        (told["issuer"].as_str(), told["jwks_uri"].as_str()),
        (Some("https://a"), Some("https://a/openid/v1/jwks"))
    );
}

#[tokio::test]
async fn what_is_asked_for_can_be_shortened_and_extended() {
    let issuer = ServiceAccountIssuer::generate().unwrap().expiration_max(Duration::from_secs(7_200));
    let server = ApiServer::builder().service_accounts(issuer).build().unwrap();
    server.bootstrap().await.unwrap();
    furnish(&server).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "name": "pod"});
    for (spec, expected, lives, warns) in [
        (json!({"expirationSeconds": 9_000}), 7_200, 7_200, None),
        (json!({"expirationSeconds": 3_607, "boundObjectRef": pod}), 3_607, 365 * 86_400, Some(3_607)),
        (json!({"expirationSeconds": 3_607}), 3_607, 3_607, None),
    ] {
        let (_, answer) = request(&server, spec.clone()).await;
        assert_eq!(answer["spec"]["expirationSeconds"], expected, "{spec}");
        let claims = claims(answer["status"]["token"].as_str().unwrap());
        let issued = claims["iat"].as_i64().unwrap();
        assert_eq!(claims["exp"].as_i64(), Some(issued + lives), "{spec}");
        let warned = claims["kubernetes.io"]["warnafter"].as_i64();
        assert_eq!(warned, warns.map(|seconds| issued + seconds), "{spec}");
    }
}

#[tokio::test]
async fn clients_that_speak_protobuf_get_tokens_too() {
    let server = furnished().await;
    let catalog = kapi::schema::builtin::catalog();
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"]}});
    let body = kapi::schema::protobuf::encode(&catalog, &body).unwrap();
    let request = Request::post(format!("{ACCOUNTS}/robot/token"))
        .header("content-type", "application/vnd.kubernetes.protobuf")
        .header("accept", "application/vnd.kubernetes.protobuf")
        .body(Full::new(Bytes::from(body)));
    let admin = server.as_user(UserInfo::new("admin", ["system:masters"]));
    let response = admin.oneshot(request.unwrap()).await.unwrap();
    let code = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(code, 201, "{}", String::from_utf8_lossy(&bytes));
    let answer = kapi::schema::protobuf::decode(&catalog, &bytes).unwrap();
    assert_eq!(claims(answer["status"]["token"].as_str().unwrap())["aud"], json!(["a"]));
}

/// Browsers say who they are among a WebSocket's subprotocols, as they can't set its headers.
#[tokio::test]
async fn a_websocket_may_have_its_token_among_its_subprotocols() {
    let tokens = StaticTokens::new().with("fixed", UserInfo::new("jane", ["system:masters"]));
    let server = ApiServer::builder().authenticator(Arc::new(tokens)).build().unwrap();
    server.bootstrap().await.unwrap();
    let prefix = "base64url.bearer.authorization.k8s.io.";
    for (protocols, code) in [
        (format!("{prefix}{}, v5.channel.k8s.io", URL_SAFE_NO_PAD.encode("fixed")), 200),
        (format!("{prefix}{}, v5.channel.k8s.io", URL_SAFE_NO_PAD.encode("other")), 401),
        (format!("{prefix}{}", URL_SAFE_NO_PAD.encode("fixed")), 401),
        ("v5.channel.k8s.io".to_owned(), 403),
    ] {
        let request = Request::get("/api/v1/namespaces").header("upgrade", "websocket");
        let request = request.header("sec-websocket-protocol", &protocols).body(Full::<Bytes>::default());
        let response = server.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), code, "{protocols}");
    }
}

/// Kubernetes, "Authenticating with Bootstrap Tokens": a node that has nothing else asks for its certificate by one.
#[tokio::test]
async fn nodes_join_by_bootstrap_tokens() {
    const TOKEN: &str = "foobar.0123456789abcdef";
    const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
    let secret = json!({"metadata": {"name": "bootstrap-token-foobar"}, "type": "bootstrap.kubernetes.io/token", "stringData": {
        "token-id": "foobar", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:workers"}});
    let closed = server().await;
    created(&closed, SECRETS, secret.clone()).await;
    assert_eq!(who(&closed, TOKEN).await.0, 401, "they are believed only where that is said");

    let server = ApiServer::builder().bootstrap_tokens(true).build().unwrap();
    server.bootstrap().await.unwrap();
    assert_eq!(who(&server, TOKEN).await.0, 401, "there is none");
    created(&server, SECRETS, secret).await;
    let (code, user) = who(&server, TOKEN).await;
    assert_eq!((code, &user["username"]), (201, &json!("system:bootstrap:foobar")));
    let groups = ["system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"];
    assert_eq!(user["groups"], json!(groups));
    for wrong in ["foobar.0123456789abcdee", "barfoo.0123456789abcdef", "foobar.", "FOOBAR.0123456789abcdef"]
    {
        assert_eq!(who(&server, wrong).await.0, 401, "{wrong}");
    }
    let (code, _) = json(&server, "DELETE", &format!("{SECRETS}/bootstrap-token-foobar"), &Value::Null).await;
    assert_eq!((code, who(&server, TOKEN).await.0), (200, 401), "it is gone");
}

/// A node has tokens made for whom its pods' volumes speak of, and whom a role names (KEP-4412; upstream's `Test_nodePlugin_Admit`).
#[tokio::test]
async fn a_node_asks_for_audiences_of_its_pods_alone() {
    let server = furnished().await;
    let driver =
        json!({"metadata": {"name": "d.example.com"}, "spec": {"tokenRequests": [{"audience": "driver"}]}});
    created(&server, "/apis/storage.k8s.io/v1/csidrivers", driver).await;
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "d.example.com", "volumeHandle": "h"}}});
    created(&server, "/api/v1/persistentvolumes", volume).await;
    let claim = json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    created(&server, "/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    let mut uids = Vec::new();
    for (name, volumes) in [
        ("plain", json!([])),
        (
            "projected",
            json!([{"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "audience": "vault"}}]}}]),
        ),
        ("inline", json!([{"name": "v", "csi": {"driver": "d.example.com"}}])),
        ("claimed", json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}])),
        ("lost", json!([{"name": "v", "persistentVolumeClaim": {"claimName": "none"}}])),
    ] {
        let spec = json!({"serviceAccountName": "robot", "nodeName": "node", "volumes": volumes,
            "automountServiceAccountToken": name == "plain", "containers": [{"name": "a", "image": "a"}]});
        let pod = created(&server, PODS, json!({"metadata": {"name": name}, "spec": spec})).await;
        uids.push((name, pod["metadata"]["uid"].clone()));
    }
    let node = UserInfo::new("system:node:node", ["system:nodes"]);
    let ask = async |pod: &str, audiences: Value| {
        let uid = &uids.iter().find(|(name, _)| *name == pod).unwrap().1;
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid});
        let body = json!({"spec": {"audiences": audiences, "boundObjectRef": bound}});
        let (code, answer) =
            json_as(&server, node.clone(), "POST", &format!("{ACCOUNTS}/robot/token"), &body).await;
        let message = answer["message"].as_str().unwrap_or_default();
        (code, message.split_once("forbidden: ").map_or(message, |(_, why)| why).to_owned())
    };
    let refused = |audience: &str| {
        let why = "not found in pod spec volume, system:node:node is not authorized to request tokens for this audience";
        (403, format!("audience {audience:?} {why}"))
    };
    let made = (201, String::new());
    for (pod, audiences, expected) in [
        ("plain", json!([]), made.clone()),
        ("plain", json!(["vault"]), refused("vault")),
        ("projected", json!(["vault"]), made.clone()),
        ("projected", json!(["other"]), refused("other")),
        ("projected", json!([]), refused("")),
        ("inline", json!(["driver"]), made.clone()),
        ("claimed", json!(["driver"]), made.clone()),
        ("claimed", json!(["vault"]), refused("vault")),
        ("plain", json!(["a", "b"]), (403, "node may only request 0 or 1 audiences".to_owned())),
        (
            "lost",
            json!(["driver"]),
            (403, r#"error validating audience "driver": persistentvolumeclaim "none" not found"#.to_owned()),
        ),
    ] {
        assert_eq!(ask(pod, audiences.clone()).await, expected, "{pod} {audiences}");
    }
    let rules = json!([{"apiGroups": [""], "resources": ["vault"], "resourceNames": ["robot"],
        "verbs": ["request-serviceaccounts-token-audience"]}]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    created(
        &server,
        &format!("{rbac}/clusterroles"),
        json!({"metadata": {"name": "vaults"}, "rules": rules}),
    )
    .await;
    let binding = json!({"metadata": {"name": "vaults"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "vaults"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:nodes"}]});
    created(&server, &format!("{rbac}/clusterrolebindings"), binding).await;
    assert_eq!(ask("plain", json!(["vault"])).await, made);
}
