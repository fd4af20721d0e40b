//! Who may ask a node's agent for what, when it can be reached from elsewhere (Kubernetes, "Kubelet authentication/authorization").
//!
//! A caller is who their client certificate says, which the TLS layer has checked, or whose token they show, which the API server is asked
//! about (TokenReview). Nobody is anonymous. Whether they may do it is the API server's to say, too (SubjectAccessReview): each
//! request is one for a subresource of the Node, by the table below; where there are two the first that is allowed suffices
//! (KEP-2862).
//!
//! | path | subresources |
//! |---|---|
//! | `/stats/*` | `stats` |
//! | `/metrics`, `/metrics/*` | `metrics` |
//! | `/logs/*` | `log` |
//! | `/checkpoint/*` | `checkpoint` |
//! | `/statusz` | `statusz` |
//! | `/flagz` | `configz` |
//! | `/pods`, `/runningpods/*` | `pods`, `proxy` |
//! | `/healthz`, `/healthz/*` | `healthz`, `proxy` |
//! | `/configz` | `configz`, `proxy` |
//! | anything else: exec, attach, port-forward, run, containers' logs | `proxy` |

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode, header::AUTHORIZATION};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::Failure;

/// How long it is remembered whose a token is, or that it is nobody's (upstream's `authentication.webhook.cacheTTL`).
pub const TOKEN_TTL: Duration = Duration::from_secs(120);
/// How long it is remembered that something is allowed (upstream's `authorization.webhook.cacheAuthorizedTTL`).
pub const ALLOWED_TTL: Duration = Duration::from_secs(300);
/// How long it is remembered that something is not (upstream's `authorization.webhook.cacheUnauthorizedTTL`).
pub const REFUSED_TTL: Duration = Duration::from_secs(30);
/// How many answers of each kind are remembered; with more, all are forgotten.
pub const ANSWERS_MAX: usize = 4096;
/// How long the API server may take to answer.
pub const REVIEW_TIMEOUT: Duration = Duration::from_secs(30);
/// The group of everybody who is known.
const AUTHENTICATED: &str = "system:authenticated";

/// Somebody who is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The user's name.
    pub name: String,
    /// The user's uid; empty where none is known.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else is known of the user.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// Who a client certificate says: the common name is the user, each organization a group. The caller is in the group of all who
    /// are known, too.
    #[must_use]
    pub fn of_certificate(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }
}

/// The subresources of the Node that a path stands for, of which one has to be allowed. `parts` are the parts of the path between its
/// slashes, decoded, without empty ones.
#[must_use]
pub fn subresources(parts: &[&str]) -> &'static [&'static str] {
    match parts {
        ["pods" | "runningpods", ..] => &["pods", "proxy"],
        ["healthz", ..] => &["healthz", "proxy"],
        ["configz", ..] => &["configz", "proxy"],
        ["stats", ..] => &["stats"],
        ["metrics", ..] => &["metrics"],
        // As other subresources of that name (`pods/log`).
        ["logs", ..] => &["log"],
        ["checkpoint", ..] => &["checkpoint"],
        ["statusz", ..] => &["statusz"],
        ["flagz", ..] => &["configz"],
        _ => &["proxy"],
    }
}

/// The API's verb for a method of HTTP; empty for those that stand for none, which only who may do everything is allowed.
#[must_use]
pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Answers that hold for a while.
#[derive(Debug)]
struct Remembered<K, V>(Mutex<HashMap<K, (Instant, V), ahash::RandomState>>);

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, holds: Duration) {
        let now = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= ANSWERS_MAX {
            kept.retain(|_, (until, _)| *until > now);
        }
        if kept.len() >= ANSWERS_MAX {
            kept.clear();
        }
        kept.insert(key, (now + holds, value));
    }
}

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ask {
    caller: Arc<Caller>,
    node: String,
    verb: &'static str,
    subresource: &'static str,
}

/// Asks the API server who somebody is and what they may do, with the node's own identity. One for all connections.
#[derive(Debug)]
pub struct Reviews {
    client: DebugClient,
    tokens: Remembered<[u8; 32], Option<Arc<Caller>>>,
    decisions: Remembered<Ask, bool>,
}

struct DebugClient(Client);

impl std::fmt::Debug for DebugClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Reviews {
    /// Asks through this client, whose user may create TokenReviews and SubjectAccessReviews, as nodes may.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client: DebugClient(client), tokens: Remembered::default(), decisions: Remembered::default() }
    }

    /// Whose token it is; `None`: nobody's. The token itself is not kept.
    async fn authenticate(&self, token: &str) -> Result<Option<Arc<Caller>>, String> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.0.clone());
        let answer = self.ask(reviews.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).unwrap_or_default();
        let caller = user.username.filter(|name| !name.is_empty()).map(|name| {
            Arc::new(Caller {
                name,
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            })
        });
        self.tokens.put(key, caller.clone(), TOKEN_TTL);
        Ok(caller)
    }

    async fn is_allowed(&self, ask: Ask) -> Result<bool, String> {
        if let Some(known) = self.decisions.get(&ask) {
            return Ok(known);
        }
        let Caller { name, uid, groups, extra } = &*ask.caller;
        let attributes = ResourceAttributes {
            verb: Some(ask.verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(ask.subresource.to_owned()),
            name: Some(ask.node.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(name.clone()),
            uid: Some(uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(groups.clone()),
            extra: Some(extra.clone()).filter(|extra| !extra.is_empty()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.0.clone());
        let answer = self.ask(reviews.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        // What is denied is never allowed, whatever else is said.
        let allowed = status.allowed && status.denied != Some(true);
        self.decisions.put(ask, allowed, if allowed { ALLOWED_TTL } else { REFUSED_TTL });
        Ok(allowed)
    }

    async fn ask<T>(&self, answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, answer).await;
        answer.map_err(|late| late.to_string())?.map_err(|error| error.to_string())
    }
}

/// Lets in who is known and allowed, of one connection.
#[derive(Clone, Debug)]
pub struct Guard {
    reviews: Arc<Reviews>,
    peer: Option<Arc<Caller>>,
}

impl Guard {
    /// `peer`: who the connection's client certificate says, once it has been checked against an authority for clients.
    #[must_use]
    pub fn new(reviews: Arc<Reviews>, peer: Option<Caller>) -> Self {
        Self { reviews, peer: peer.map(Arc::new) }
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Failure> {
        let unauthorized = || Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized");
        if let Some(peer) = &self.peer {
            return Ok(Arc::clone(peer));
        }
        let token = bearer(headers).ok_or_else(unauthorized)?;
        match self.reviews.authenticate(token).await {
            Ok(caller) => caller.ok_or_else(unauthorized),
            Err(error) => {
                tracing::warn!(%error, "it can't be found out whose a token is");
                Err(unauthorized())
            }
        }
    }

    /// Whether the request may be answered.
    ///
    /// # Errors
    /// 401 for who is not known, 403 for who may not, 500 when the API server can't be asked.
    pub(super) async fn check(
        &self,
        node: &str,
        method: &Method,
        parts: &[&str],
        headers: &HeaderMap,
    ) -> Result<(), Failure> {
        let caller = self.caller(headers).await?;
        let (verb, subresources) = (verb(method), subresources(parts));
        for subresource in subresources {
            let ask = Ask { caller: Arc::clone(&caller), node: node.to_owned(), verb, subresource };
            match self.reviews.is_allowed(ask).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "it can't be found out who may do what");
                    let why = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        caller.name
                    );
                    return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why));
                }
            }
        }
        let why = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            caller.name,
            subresources.join(" ")
        );
        Err(Failure::new(StatusCode::FORBIDDEN, why))
    }
}

/// The bearer token of a request, if it has one (RFC 6750).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut words = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split(' ');
    let scheme = words.next()?;
    let token = words.next()?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{HeaderValue, Request, Response};
    use http_body_util::{BodyExt as _, Full};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// Cases of upstream's `TestGetRequestAttributes`, and paths that look like others.
    #[test]
    fn paths_stand_for_subresources() {
        for (path, expected) in [
            ("/", &["proxy"][..]),
            ("/exec/ns/pod/c", &["proxy"]),
            ("/run/ns/pod/c", &["proxy"]),
            ("/attach/ns/pod/c", &["proxy"]),
            ("/portForward/ns/pod", &["proxy"]),
            ("/containerLogs/ns/pod/c", &["proxy"]),
            ("/debug/pprof/heap", &["proxy"]),
            ("/stats", &["stats"]),
            ("/stats/summary", &["stats"]),
            ("/statsx", &["proxy"]),
            ("/metrics", &["metrics"]),
            ("/metrics/resource", &["metrics"]),
            ("/metricsx", &["proxy"]),
            ("/logs", &["log"]),
            ("/logs/syslog", &["log"]),
            ("/checkpoint/ns/pod/c", &["checkpoint"]),
            ("/statusz", &["statusz"]),
            ("/flagz", &["configz"]),
            ("/pods", &["pods", "proxy"]),
            ("/podsx", &["proxy"]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/healthz/ping", &["healthz", "proxy"]),
            ("/configz", &["configz", "proxy"]),
            ("//pods", &["pods", "proxy"]),
            ("/x/../pods", &["proxy"]),
        ] {
            let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
            assert_eq!(subresources(&parts), expected, "{path}");
        }
        for (method, expected) in [
            (Method::GET, "get"),
            (Method::POST, "create"),
            (Method::PUT, "update"),
            (Method::PATCH, "patch"),
            (Method::DELETE, "delete"),
            (Method::HEAD, ""),
            (Method::OPTIONS, ""),
        ] {
            assert_eq!(verb(&method), expected);
        }
    }

    /// An API server that knows the token `good` of `jane`, and lets users get what is named here.
    fn reviews(allowed: &'static [(&'static str, &'static str)]) -> (Arc<Reviews>, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                let is_token = request.uri().path().ends_with("tokenreviews");
                let body = request.into_body().collect().await?.to_bytes();
                let mut review: Value = serde_json::from_slice(&body)?;
                let spec = review["spec"].clone();
                review["status"] = if is_token {
                    match spec["token"].as_str() {
                        Some("good") => {
                            json!({"authenticated": true, "user": {"username": "jane", "uid": "7",
                            "groups": ["dev", "system:authenticated"], "extra": {"k": ["v"]}}})
                        }
                        Some("unsure") => json!({"authenticated": false, "user": {"username": "jane"}}),
                        _ => json!({"authenticated": false, "error": "invalid bearer token"}),
                    }
                } else {
                    let asked = &spec["resourceAttributes"];
                    assert_eq!((&asked["resource"], &asked["name"]), (&json!("nodes"), &json!("n")));
                    let is =
                        |(user, what): &(&str, &str)| spec["user"] == *user && asked["subresource"] == *what;
                    let may = asked["verb"] == "get" && allowed.iter().any(is);
                    json!({"allowed": may, "denied": spec["user"] == "denied"})
                };
                let response = Response::builder().header("content-type", "application/json");
                let body = Full::from(review.to_string());
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response.body(body)?)
            }
        });
        (Arc::new(Reviews::new(Client::new(service, "default"))), asked)
    }

    async fn code(guard: &Guard, method: Method, path: &str, token: Option<&str>) -> u16 {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(token).unwrap());
        }
        match guard.check("n", &method, &parts, &headers).await {
            Ok(()) => 200,
            Err(failure) => failure.into_response().status().as_u16(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_unknown_or_may_not_is_refused() {
        let (reviews, _) = reviews(&[("jane", "pods"), ("root", "proxy"), ("denied", "proxy")]);
        let of = |name: &str| Some(Caller::of_certificate(name, ["g".to_owned()]));
        for (peer, method, path, token, expected) in [
            (None, Method::GET, "/pods", None, 401),
            (None, Method::GET, "/pods", Some("Basic good"), 401),
            (None, Method::GET, "/pods", Some("Bearer "), 401),
            (None, Method::GET, "/pods", Some("Bearer bad"), 401),
            (None, Method::GET, "/pods", Some("Bearer unsure"), 401),
            (None, Method::GET, "/nowhere", None, 401),
            (None, Method::GET, "/pods", Some("Bearer good"), 200),
            (None, Method::GET, "/healthz", Some("Bearer good"), 403),
            (None, Method::GET, "/exec/a/b/c", Some("Bearer good"), 403),
            (None, Method::DELETE, "/pods", Some("Bearer good"), 403),
            (of("root"), Method::GET, "/exec/a/b/c", None, 200),
            // Who may do everything by the proxy may do what has a name of its own, too, but not the other way round.
            (of("root"), Method::GET, "/pods", None, 200),
            (of("root"), Method::GET, "/stats/summary", None, 403),
            (of("root"), Method::POST, "/exec/a/b/c", None, 403),
            (of("root"), Method::HEAD, "/healthz", None, 403),
            (of("other"), Method::GET, "/pods", Some("Bearer good"), 403),
            (of("denied"), Method::GET, "/exec/a/b/c", None, 403),
        ] {
            let shown = format!("{peer:?} {method} {path} {token:?}");
            let guard = Guard::new(Arc::clone(&reviews), peer);
            assert_eq!(code(&guard, method, path, token).await, expected, "{shown}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_hold_for_a_while_and_no_longer() {
        let (reviews, asked) = reviews(&[("jane", "pods")]);
        let guard = Guard::new(reviews, None);
        let count = || asked.load(Ordering::Relaxed);
        let get = async |path: &'static str| code(&guard, Method::GET, path, Some("Bearer good")).await;
        assert_eq!((get("/pods").await, count()), (200, 2));
        assert_eq!((get("/pods").await, count()), (200, 2));
        assert_eq!((get("/stats").await, count()), (403, 3));
        assert_eq!((get("/stats").await, count()), (403, 3));
        tokio::time::advance(REFUSED_TTL).await;
        assert_eq!((get("/stats").await, count()), (403, 4));
        tokio::time::advance(TOKEN_TTL).await;
        assert_eq!((get("/pods").await, count()), (200, 5), "the token only");
        tokio::time::advance(ALLOWED_TTL).await;
        assert_eq!((get("/pods").await, count()), (200, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_api_server_nobody_is_let_in() {
        let service = tower::service_fn(async |_: Request<Body>| {
            Err::<Response<Full<bytes::Bytes>>, _>(std::io::Error::other("down"))
        });
        let reviews = Arc::new(Reviews::new(Client::new(service, "default")));
        let guard = Guard::new(Arc::clone(&reviews), None);
        assert_eq!(code(&guard, Method::GET, "/pods", Some("Bearer good")).await, 401);
        let guard = Guard::new(reviews, Some(Caller::of_certificate("root", [])));
        assert_eq!(code(&guard, Method::GET, "/pods", None).await, 500);
    }

    #[tokio::test(start_paused = true)]
    async fn not_all_answers_are_kept() {
        let kept: Remembered<usize, ()> = Remembered::default();
        for key in 0..=ANSWERS_MAX {
            kept.put(key, (), TOKEN_TTL);
        }
        assert_eq!(kept.0.lock().unwrap().len(), 1);
        assert!(kept.get(&ANSWERS_MAX).is_some());
    }
}
