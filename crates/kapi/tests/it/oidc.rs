//! Tokens of OpenID Connect providers, against a provider in this process. Expected results: upstream's
//! `plugin/pkg/authenticator/token/oidc/oidc_test.go` and `apis/apiserver/validation/validation_test.go`.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kapi::{ApiServer, authn::AuthenticationConfig};
use kcore::Clock as _;
use rcgen::KeyPair;
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
        RsaKeyPair,
    },
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt as _;

use crate::aggregate::pki;

const RSA: &str = include_str!("../../src/authn/jwt/testdata/rsa_pkcs8.pem");

/// A key of a provider.
struct Key {
    id: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let random = SystemRandom::new();
        let bytes = KeyPair::generate().unwrap().serialize_der();
        Self {
            id,
            pair: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes, &random).unwrap(),
        }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig", "alg": "ES256", "x": text(&point[1..33]), "y": text(&point[33..])})
    }

    fn sign(&self, claims: &Value) -> String {
        token(&json!({"alg": "ES256", "kid": self.id}), claims, |text| {
            self.pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec()
        })
    }
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(sign(text.as_bytes())))
}

struct Provider {
    url: String,
    authority: String,
    keys: Arc<Mutex<Vec<Value>>>,
    fetched: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn provider(keys: Vec<Value>) -> Provider {
    let pki = pki("localhost");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let keys = Arc::new(Mutex::new(keys));
    let fetched = Arc::new(AtomicUsize::new(0));
    let (shown, count, issuer) = (Arc::clone(&keys), Arc::clone(&fetched), url.clone());
    let acceptor = tokio_rustls::TlsAcceptor::from(pki.server);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let (shown, count, issuer) = (Arc::clone(&shown), Arc::clone(&count), issuer.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let body = match request.uri().path() {
                    "/.well-known/openid-configuration" => {
                        json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
                    }
                    "/elsewhere" => {
                        json!({"issuer": "https://other.example.com", "jwks_uri": format!("{issuer}/keys")})
                    }
                    _ => {
                        count.fetch_add(1, Ordering::Relaxed);
                        json!({"keys": *shown.lock().unwrap()})
                    }
                };
                std::future::ready(Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(
                    body.to_string(),
                )))))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Provider { url, authority: pki.authority_pem, keys, fetched, task }
}

impl Provider {
    fn config(&self, mappings: &Value, more: &Value) -> String {
        let issuer = json!({"url": self.url, "audiences": ["cluster", "other"], "audienceMatchPolicy": "MatchAny", "certificateAuthority": self.authority});
        let mut one = json!({"issuer": issuer, "claimMappings": mappings});
        for (key, value) in more.as_object().unwrap() {
            one[key] = value.clone();
        }
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [one]}).to_string()
    }

    fn server(&self, mappings: &Value, more: &Value) -> ApiServer {
        let config = AuthenticationConfig::parse(&self.config(mappings, more)).unwrap();
        ApiServer::builder().authentication(config).build().unwrap()
    }

    fn claims(&self) -> Value {
        let now = now();
        json!({"iss": self.url, "aud": "cluster", "sub": "jane", "exp": now + 600, "iat": now, "groups": ["dev", "ops"],
            "email": "jane@example.com", "email_verified": true, "hd": "example.com", "jti": "7"})
    }
}

fn now() -> i64 {
    kcore::TokioClock::new().now().as_second()
}

/// Who the server takes the bearer of a token for; the status if it refuses him.
async fn whoami(server: &ApiServer, token: &str) -> Result<Value, u16> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = server.clone().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    if code == 201 { Ok(body["status"]["userInfo"].clone()) } else { Err(code) }
}

async fn server_of(provider: &Provider) -> ApiServer {
    let server = provider.server(
        &json!({"username": {"claim": "sub", "prefix": "id:"}, "groups": {"claim": "groups", "prefix": ""}}),
        &json!({}),
    );
    server.bootstrap().await.unwrap();
    server
}

#[tokio::test]
async fn forged_and_stale_tokens_are_refused() {
    let key = Key::new("one");
    let stranger = Key::new("one");
    let unknown = Key::new("two");
    let provider = provider(vec![key.jwk()]).await;
    let server = server_of(&provider).await;
    let claims = provider.claims();
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = claims.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let good = key.sign(&claims);
    assert_eq!(whoami(&server, &good).await.unwrap()["username"], "id:jane");
    assert_eq!(
        whoami(&server, &key.sign(&with("aud", json!(["x", "other"])))).await.unwrap()["username"],
        "id:jane"
    );
    let public = key.pair.public_key().as_ref().to_vec();
    let shared = |text: &[u8]| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &public);
        ring::hmac::sign(&key, text).as_ref().to_vec()
    };
    let parts: Vec<&str> = good.split('.').collect();
    let other_payload = URL_SAFE_NO_PAD.encode(with("sub", json!("root")).to_string());
    for (what, token) in [
        ("expired", key.sign(&with("exp", json!(now() - 1)))),
        ("never ends", key.sign(&without("exp"))),
        ("another audience", key.sign(&with("aud", json!("elsewhere")))),
        ("no audience", key.sign(&without("aud"))),
        ("another issuer", key.sign(&with("iss", json!("https://evil.example.com")))),
        ("not yet", key.sign(&with("nbf", json!(now() + 3600)))),
        ("no subject", key.sign(&without("sub"))),
        ("alg: none", token(&json!({"alg": "none", "kid": "one"}), &claims, |_| Vec::new())),
        ("HS256 with the public key", token(&json!({"alg": "HS256", "kid": "one"}), &claims, shared)),
        ("signed by another key of the same name", stranger.sign(&claims)),
        ("signed by a key that is not known", unknown.sign(&claims)),
        ("other claims", format!("{}.{other_payload}.{}", parts[0], parts[2])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        (
            "another algorithm of the key's",
            token(&json!({"alg": "ES384", "kid": "one"}), &claims, |text| {
                key.pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec()
            }),
        ),
        ("nothing", "x.y.z".to_owned()),
    ] {
        assert_eq!(whoami(&server, &token).await, Err(401), "{what}");
    }
    // Tokens of strangers don't become calls to the provider.
    assert_eq!(provider.fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn keys_are_fetched_anew_when_they_change() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let provider = provider(vec![old.jwk()]).await;
    let server = server_of(&provider).await;
    assert!(whoami(&server, &old.sign(&provider.claims())).await.is_ok());
    *provider.keys.lock().unwrap() = vec![new.jwk()];
    let token = new.sign(&provider.claims());
    assert_eq!(whoami(&server, &token).await, Err(401));
    tokio::time::pause();
    tokio::time::advance(kapi::authn::REFETCH_MIN).await;
    tokio::time::resume();
    assert_eq!(whoami(&server, &token).await.unwrap()["username"], "id:jane");
}

#[tokio::test]
async fn rsa_signs_in_all_its_ways() {
    let bytes = RSA.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
    let pair = RsaKeyPair::from_pkcs8(&bytes).unwrap();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let components: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
    let provider =
        provider(vec![json!({"kty": "RSA", "kid": "r", "n": text(&components.n), "e": text(&components.e)})])
            .await;
    let server = server_of(&provider).await;
    for (algorithm, padding) in
        [("PS256", &RSA_PSS_SHA256 as &dyn ring::signature::RsaEncoding), ("RS512", &RSA_PKCS1_SHA512)]
    {
        let sign = |text: &[u8]| {
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(padding, &SystemRandom::new(), text, &mut signature).unwrap();
            signature
        };
        for (claimed, expected) in [(algorithm, true), ("RS256", false)] {
            let token = token(&json!({"alg": claimed, "kid": "r"}), &provider.claims(), sign);
            assert_eq!(whoami(&server, &token).await.is_ok(), expected, "{algorithm} as {claimed}");
        }
    }
}

#[tokio::test]
async fn claims_become_users() {
    let key = Key::new("one");
    let provider = provider(vec![key.jwk()]).await;
    let name = json!({"username": {"claim": "sub", "prefix": ""}});
    let jti = json!({"authentication.kubernetes.io/credential-id": ["JTI=7"]});
    for (mappings, more, expected) in [
        (
            json!({"username": {"claim": "email", "prefix": "x:"}, "groups": {"claim": "hd", "prefix": "g:"}}),
            json!({}),
            Some(
                json!({"username": "x:jane@example.com", "groups": ["g:example.com", "system:authenticated"], "extra": jti}),
            ),
        ),
        (
            json!({"username": {"expression": "'u:' + claims.sub"}, "groups": {"expression": "claims.groups.filter(g, g != 'ops')"},
            "uid": {"expression": "claims.jti"}, "extra": [{"key": "example.com/domain", "valueExpression": "claims.hd"}]}),
            json!({}),
            Some(json!({"username": "u:jane", "uid": "7", "groups": ["dev", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/credential-id": ["JTI=7"], "example.com/domain": ["example.com"]}})),
        ),
        (json!({"username": {"expression": "claims.nothing"}}), json!({}), None),
        (json!({"username": {"expression": "claims.groups"}}), json!({}), None),
        (
            name.clone(),
            json!({"claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"}]}),
            Some(json!({"username": "jane", "groups": ["system:authenticated"], "extra": jti})),
        ),
        (
            name.clone(),
            json!({"claimValidationRules": [{"claim": "hd", "requiredValue": "example.org"}]}),
            None,
        ),
        (name.clone(), json!({"claimValidationRules": [{"claim": "none", "requiredValue": ""}]}), None),
        (
            name.clone(),
            json!({"claimValidationRules": [{"expression": "claims.exp - claims.iat > 3600", "message": "too short"}]}),
            None,
        ),
        (
            name.clone(),
            json!({"userValidationRules": [{"expression": "!user.username.startsWith('jane')", "message": "no"}]}),
            None,
        ),
        (
            name,
            json!({"userValidationRules": [{"expression": "user.groups.all(g, !g.startsWith('system:'))"}]}),
            Some(json!({"username": "jane", "groups": ["system:authenticated"], "extra": jti})),
        ),
    ] {
        let server = provider.server(&mappings, &more);
        server.bootstrap().await.unwrap();
        let found = whoami(&server, &key.sign(&provider.claims())).await;
        assert_eq!(found.as_ref().ok(), expected.as_ref(), "{mappings} {more}");
    }
    let server = provider.server(&json!({"username": {"claim": "email", "prefix": ""}}), &json!({}));
    let mut claims = provider.claims();
    claims["email_verified"] = json!(false);
    assert_eq!(whoami(&server, &key.sign(&claims)).await, Err(401));
}

#[tokio::test]
async fn a_document_of_another_issuer_is_not_believed() {
    let key = Key::new("one");
    let provider = provider(vec![key.jwk()]).await;
    let mut config: Value = serde_json::from_str(
        &provider.config(&json!({"username": {"claim": "sub", "prefix": ""}}), &json!({})),
    )
    .unwrap();
    config["jwt"][0]["issuer"]["discoveryURL"] = json!(format!("{}/elsewhere", provider.url));
    let config = AuthenticationConfig::parse(&config.to_string()).unwrap();
    let server = ApiServer::builder().authentication(config).build().unwrap();
    assert_eq!(whoami(&server, &key.sign(&provider.claims())).await, Err(401));
}

#[test]
fn faults_of_a_configuration_are_named() {
    let base = json!({"issuer": {"url": "https://a.example.com", "audiences": ["a"]}, "claimMappings": {"username": {"claim": "sub", "prefix": ""}}});
    for (path, value, field) in [
        ("/issuer/url", json!("http://a.example.com"), "jwt[0].issuer.url"),
        ("/issuer/url", json!("https://u:p@a.example.com"), "jwt[0].issuer.url"),
        ("/issuer/url", json!("https://a.example.com?x=1"), "jwt[0].issuer.url"),
        ("/issuer/url", json!(""), "jwt[0].issuer.url"),
        ("/issuer/audiences", json!([]), "jwt[0].issuer.audiences"),
        ("/issuer/audiences", json!(["a", "b"]), "jwt[0].issuer.audienceMatchPolicy"),
        ("/issuer/audiences", json!([""]), "jwt[0].issuer.audiences[0]"),
        (
            "/issuer",
            json!({"url": "https://a", "audiences": ["a"], "certificateAuthority": "x"}),
            "jwt[0].issuer.certificateAuthority",
        ),
        (
            "/issuer",
            json!({"url": "https://a", "audiences": ["a"], "discoveryURL": "https://a/"}),
            "jwt[0].issuer.discoveryURL",
        ),
        ("/issuer", json!({"url": "https://a", "audiences": ["a"], "other": 1}), "jwt[0].issuer.other"),
        ("/claimMappings/username", json!({}), "jwt[0].claimMappings.username"),
        ("/claimMappings/username", json!({"claim": "sub"}), "jwt[0].claimMappings.username.prefix"),
        (
            "/claimMappings/username",
            json!({"expression": "claims.("}),
            "jwt[0].claimMappings.username.expression",
        ),
        (
            "/claimMappings/username",
            json!({"expression": "claims.email"}),
            "jwt[0].claimMappings.username.expression",
        ),
        (
            "/claimMappings/username",
            json!({"claim": "a", "prefix": "", "expression": "claims.b"}),
            "jwt[0].claimMappings.username.expression",
        ),
        (
            "/claimMappings",
            json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": "foo", "valueExpression": "'a'"}]}),
            "jwt[0].claimMappings.extra[0].key",
        ),
        (
            "/claimMappings",
            json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": "a.k8s.io/b", "valueExpression": "'a'"}]}),
            "jwt[0].claimMappings.extra[0].key",
        ),
        (
            "/claimValidationRules",
            json!([{"claim": "a", "message": "b"}]),
            "jwt[0].claimValidationRules[0].message",
        ),
        (
            "/claimValidationRules",
            json!([{"expression": "'a'"}]),
            "jwt[0].claimValidationRules[0].expression",
        ),
        (
            "/userValidationRules",
            json!([{"expression": "user.nothing == 'a'"}]),
            "jwt[0].userValidationRules[0].expression",
        ),
    ] {
        let mut one = base.clone();
        match path.rsplit_once('/').unwrap() {
            ("", key) => one[key] = value.clone(),
            (parent, key) => one.pointer_mut(parent).unwrap()[key] = value.clone(),
        }
        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [one]});
        let error = AuthenticationConfig::parse(&config.to_string()).unwrap_err();
        assert_eq!(error.field, field, "{path} {value}: {error}");
    }
    let closed = "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, anonymous: {enabled: false, conditions: [{path: /a}]}}";
    assert_eq!(AuthenticationConfig::parse(closed).unwrap_err().field, "anonymous.conditions");
}

#[tokio::test]
async fn strangers_are_let_in_to_the_paths_that_are_said() {
    let text = "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, anonymous: {enabled: true, conditions: [{path: /livez}]}}";
    let server =
        ApiServer::builder().authentication(AuthenticationConfig::parse(text).unwrap()).build().unwrap();
    server.bootstrap().await.unwrap();
    for (path, code) in [("/livez", 200), ("/readyz", 401), ("/livez/ping", 401), ("/api/v1/namespaces", 401)]
    {
        let request = Request::get(path).body(Full::new(Bytes::new())).unwrap();
        assert_eq!(server.clone().oneshot(request).await.unwrap().status(), code, "{path}");
    }
}
