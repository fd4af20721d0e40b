//! Aggregated API servers: requests for a group version that an `APIService` gives to another server go there.
//!
//! The caller's name and groups go along in `X-Remote-*` headers, which the other server believes because of the client
//! certificate that comes with them (Kubernetes, "Configure the Aggregation Layer"). As with definitions, what is given away is
//! a function of the objects in the store, looked at when their table has changed.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use ahash::HashMap;
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Full, Limited};
use kcore::{Status, clock::format_time};
use kstore::Range;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::{
    authn::{MASTERS, UserInfo},
    body::Body,
    custom,
    error::{ApiError, ApiResult},
    http::tunnel,
    objects::{Objects, stored},
    outbound::{self, Target},
    registry::Resource,
    server::Inner,
    write::Call,
};

const GROUP: &str = "apiregistration.k8s.io";
const PLURAL: &str = "apiservices";
/// The largest document that is read from another server, in bytes.
const DISCOVERY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long another server may take for such a document.
const DISCOVERY_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// A group version that another server serves.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) group: String,
    pub(crate) version: String,
    target: Target,
}

/// The group versions that other servers serve.
#[derive(Debug)]
pub(crate) struct Aggregation {
    table: Option<Arc<Resource>>,
    synced: AtomicU64,
    reading: Mutex<()>,
    remotes: ArcSwap<HashMap<(String, String), Arc<Remote>>>,
}

impl Aggregation {
    pub(crate) fn new(objects: &Objects) -> Self {
        Self {
            table: objects.registry().find(GROUP, "v1", PLURAL),
            synced: AtomicU64::new(0),
            reading: Mutex::default(),
            remotes: ArcSwap::default(),
        }
    }

    fn sync(&self, objects: &Objects) {
        let Some(services) = &self.table else {
            return;
        };
        let snapshot = objects.snapshot();
        let revision = snapshot.table_revision(services.table).get();
        if self.synced.load(Ordering::Acquire) >= revision {
            return;
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut remotes = HashMap::default();
        for entry in snapshot.range(services.table, Range::all()) {
            let Ok(object) = stored(&services.def, &entry).value() else {
                continue;
            };
            let spec = &object["spec"];
            let text = |key: &str| spec[key].as_str().unwrap_or_default().to_owned();
            if let Ok(Some(target)) = Target::of_api_service(spec) {
                let remote = Remote { group: text("group"), version: text("version"), target };
                remotes.insert((remote.group.clone(), remote.version.clone()), Arc::new(remote));
            }
        }
        self.remotes.store(Arc::new(remotes));
        self.synced.store(revision, Ordering::Release);
    }

    /// The other server that a path belongs to, if it does; its OpenAPI document is one of its paths.
    pub(crate) fn find(&self, objects: &Objects, path: &str) -> Option<Arc<Remote>> {
        let rest = path.strip_prefix("/openapi/v3").unwrap_or(path).strip_prefix("/apis/")?;
        self.sync(objects);
        let remotes = self.remotes.load();
        if remotes.is_empty() {
            return None;
        }
        let mut parts = rest.split('/');
        let key = (parts.next()?.to_owned(), parts.next()?.to_owned());
        remotes.get(&key).cloned()
    }

    /// All of them, in the order of their names.
    pub(crate) fn all(&self, objects: &Objects) -> Vec<Arc<Remote>> {
        self.sync(objects);
        let mut all: Vec<_> = self.remotes.load().values().cloned().collect();
        all.sort_by(|a, b| (&a.group, &a.version).cmp(&(&b.group, &b.version)));
        all
    }
}

/// Headers that belong to one connection and not to the request (RFC 9110, section 7.6.1), and those that say who asks.
fn is_dropped(name: &HeaderName) -> bool {
    const DROPPED: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "authorization",
    ];
    DROPPED.contains(&name.as_str()) || name.as_str().starts_with("x-remote-")
}

/// The caller in `X-Remote-*` headers.
fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let mut put = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    put("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        put("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        put("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", utf8_percent_encode(key, NON_ALPHANUMERIC));
        values.iter().for_each(|value| put(&name, value));
    }
}

fn unavailable(why: &str) -> ApiError {
    Status::failure(503, "ServiceUnavailable", format!("error trying to reach service: {why}")).into()
}

impl Remote {
    fn address(&self, server: &Inner) -> Option<String> {
        let (namespace, name) = self.target.service()?;
        server.objects.cluster_ip(namespace, name)
    }

    /// Hands a request on and its answer back; both bodies are passed on as they come.
    pub(crate) async fn forward<B>(
        &self,
        server: &Arc<Inner>,
        parts: &Parts,
        user: &UserInfo,
        body: B,
    ) -> ApiResult<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(parts.method.clone()).uri(path);
        if let Some(headers) = request.headers_mut() {
            let handed_on =
                |name: &HeaderName| !is_dropped(name) && !tunnel::is_for_neighbour(&parts.headers, name);
            for (name, value) in parts.headers.iter().filter(|(name, _)| handed_on(name)) {
                headers.append(name.clone(), value.clone());
            }
            identify(headers, user);
            tunnel::ask(&parts.headers, headers);
        }
        let body = http_body_util::BodyExt::map_err(body, |error| std::io::Error::other(error.to_string()));
        let request = request.body(body.boxed_unsync()).map_err(|error| unavailable(&error.to_string()))?;
        let address = self.address(server);
        let sent = outbound::send(server.objects.outbound(), &self.target, address.as_deref(), request).await;
        let answer = sent.map_err(|why| unavailable(&why))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return tunnel::open(parts, answer, ());
        }
        if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
            // The caller's credentials would go wherever the other server says.
            let why = "the backend attempted to redirect this request, which is not permitted";
            return Err(Status::failure(502, "BadGateway", why).into());
        }
        let (parts, body) = answer.into_parts();
        // An answer that breaks off ends: what was lacking shows in its content.
        let chunks = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
        let mut response = Response::new(Body::stream(chunks.filter_map(|chunk| async { chunk.ok() })));
        *response.status_mut() = parts.status;
        for (name, value) in parts.headers.iter().filter(|(name, _)| !is_dropped(name)) {
            response.headers_mut().append(name.clone(), value.clone());
        }
        Ok(response)
    }

    /// The other server's list of resources (`APIResourceList`).
    pub(crate) async fn resources(&self, server: &Inner) -> Result<Value, String> {
        let bytes = self.fetch(server, &format!("/apis/{}/{}", self.group, self.version)).await?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    }

    /// A document of the other server, asked for in the name of this one.
    pub(crate) async fn fetch(&self, server: &Inner, path: &str) -> Result<Bytes, String> {
        let mut request = Request::get(path).header(header::ACCEPT, "application/json");
        if let Some(headers) = request.headers_mut() {
            identify(headers, &UserInfo::new("system:kube-aggregator", [MASTERS]));
        }
        let request = request.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
        let address = self.address(server);
        let call = async {
            let response =
                outbound::send(server.objects.outbound(), &self.target, address.as_deref(), request).await?;
            if response.status() != StatusCode::OK {
                return Err(format!("bad status from the service: {}", response.status().as_u16()));
            }
            let body = Limited::new(response.into_body(), DISCOVERY_BYTES_MAX).collect().await;
            Ok(body.map_err(|error| error.to_string())?.to_bytes())
        };
        tokio::time::timeout(DISCOVERY_MAX, call).await.map_err(|_| "no answer in time".to_owned())?
    }
}

/// Whether a resource is that of `APIService`s.
pub(crate) fn is_api_services(resource: &Resource) -> bool {
    resource.def.group == GROUP && resource.def.plural == PLURAL
}

/// Says in the status of every `APIService` whether its server answers. Done after each write of one.
pub(crate) async fn settle(server: &Arc<Inner>) -> ApiResult<()> {
    let Some(services) = server.aggregation.table.clone() else {
        return Ok(());
    };
    let user = UserInfo::new("system:kube-aggregator", [MASTERS]);
    for entry in server.objects.snapshot().range(services.table, Range::all()) {
        let object = stored(&services.def, &entry);
        let value = object.value().map_err(Status::internal)?;
        let (status, reason, message) = available(server, &value).await;
        let now = format_time(server.objects.clock().now());
        let mut next = value.clone();
        custom::set_condition(&mut next, "Available", status, reason, &message, &now);
        if next == value {
            continue;
        }
        let call = Call::internal(server, &user, &services, "status", "", &object.header().name);
        match call.update(&|_| Ok(next.clone())).await {
            Err(error) if error.0.is("NotFound") || error.0.is("Conflict") => {}
            result => drop(result?),
        }
    }
    Ok(())
}

/// The condition `Available` of an `APIService` (kube-aggregator's availability controllers).
async fn available(server: &Arc<Inner>, object: &Value) -> (&'static str, &'static str, String) {
    let spec = &object["spec"];
    let target = match Target::of_api_service(spec) {
        Ok(Some(target)) => target,
        Ok(None) => return ("True", "Local", "Local APIServices are always available".to_owned()),
        Err(why) => return ("False", "FailedDiscoveryCheck", why),
    };
    if let Some((namespace, name)) = target.service()
        && server.objects.find("", "v1", "services", namespace, name).is_none()
    {
        let why = format!("service/{name} in {namespace:?} is not present");
        return ("False", "ServiceNotFound", why);
    }
    let text = |key: &str| spec[key].as_str().unwrap_or_default().to_owned();
    let remote = Remote { group: text("group"), version: text("version"), target };
    match remote.resources(server).await {
        Ok(_) => ("True", "Passed", "all checks passed".to_owned()),
        Err(why) => ("False", "FailedDiscoveryCheck", format!("failing or missing response: {why}")),
    }
}

/// The resources of a list of another server in the form of aggregated discovery (KEP-3352).
pub(crate) fn aggregated(remote: &Remote, list: Option<&Value>) -> Value {
    let Some(list) = list else {
        return json!({"version": remote.version, "resources": [], "freshness": "Stale"});
    };
    let kind = |entry: &Value| {
        let text = |key: &str, default: &str| {
            entry[key].as_str().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
        };
        json!({"group": text("group", &remote.group), "version": text("version", &remote.version), "kind": text("kind", "")})
    };
    let entries = || list["resources"].as_array().into_iter().flatten();
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    let resources = entries().filter(|entry| !name(entry).contains('/')).map(|entry| {
        let prefix = format!("{}/", name(entry));
        let mut value = json!({
            "resource": name(entry), "responseKind": kind(entry), "verbs": entry["verbs"],
            "scope": if entry["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": entry["singularName"].as_str().unwrap_or_default(),
        });
        kschema::fields::keep(&mut value, entry, "shortNames");
        kschema::fields::keep(&mut value, entry, "categories");
        let below = entries().filter_map(|other| {
            let subresource = name(other).strip_prefix(&prefix)?.to_owned();
            Some(json!({"subresource": subresource, "responseKind": kind(other), "verbs": other["verbs"]}))
        });
        let below: Vec<Value> = below.collect();
        if !below.is_empty() {
            value["subresources"] = json!(below);
        }
        value
    });
    json!({"version": remote.version, "resources": resources.collect::<Vec<_>>(), "freshness": "Current"})
}
