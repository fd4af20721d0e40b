//! What is put together about one request while it is answered.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderValue, Response, header, request::Parts};
use jiff::Timestamp;
use kcore::Clock;
use serde_json::{Value, json};

use super::{
    AuditEvent, AuditPolicy, AuditSink, Level, ObjectReference, Stage,
    event::{header_text, source_ips, user_agent},
    policy::Kept,
};
use crate::{
    authn::{PeerCertificates, UserInfo},
    authz::Verdict,
    body::Body,
    http::decode,
    request::RequestInfo,
    schema::Catalog,
};

/// The longest answer that is kept whole, in bytes; of a longer one only its status is told.
pub const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest `Audit-ID` that a caller may choose, in bytes; a longer one is replaced.
const ID_BYTES_MAX: usize = 256;

const ID: &str = "audit-id";
/// What mutating webhooks changed is the content of objects.
const PATCHES: &str = "patch.webhook.admission.k8s.io/";

/// What a server audits, and where to.
pub(crate) struct Audit {
    pub(crate) policy: AuditPolicy,
    pub(crate) sink: Arc<dyn AuditSink>,
}

/// One request. Everything but making it is done only for those that the policy picks.
pub(crate) struct Trail {
    audit: Arc<Audit>,
    clock: Arc<dyn Clock>,
    received: Timestamp,
    pub(crate) id: String,
    known: Mutex<Option<Known>>,
}

/// What is known of a request that the policy picks.
struct Known {
    kept: Kept,
    uri: String,
    user: Option<Arc<UserInfo>>,
    impersonated: Option<Arc<UserInfo>>,
    source_ips: Vec<IpAddr>,
    user_agent: String,
    request: RequestInfo,
    object: Option<ObjectReference>,
    code: u16,
    status: Option<Value>,
    request_object: Option<Value>,
    response_object: Option<Value>,
    annotations: BTreeMap<String, String>,
    /// Nobody knows the caller: only that is told.
    stranger: bool,
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trail").field(&self.id).finish()
    }
}

impl Trail {
    pub(crate) fn new(audit: &Arc<Audit>, parts: &Parts, clock: &Arc<dyn Clock>) -> Self {
        let given = Some(header_text(&parts.headers, ID));
        let given = given.filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX);
        let id = given.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        let (audit, clock) = (Arc::clone(audit), Arc::clone(clock));
        let received = clock.now();
        Self { audit, clock, received, id, known: Mutex::new(None) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> Option<T> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(act)
    }

    /// Begins once it is known who asks.
    pub(crate) fn begin(
        &self,
        user: Option<&Arc<UserInfo>>,
        info: &RequestInfo,
        parts: &Parts,
    ) -> Result<(), String> {
        let kept = self.audit.policy.decide(user.map(|user| &**user), info);
        if kept.level == Level::None {
            return Ok(());
        }
        let object = info.is_resource.then(|| ObjectReference {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.with_selected_name().name.clone(),
            api_group: info.group.clone(),
            api_version: info.version.clone(),
            subresource: info.subresource.clone(),
            ..ObjectReference::default()
        });
        let status = user.is_none().then(|| json!({"message": attempted(parts)}));
        let uri = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Known {
            kept,
            uri,
            user: user.cloned(),
            impersonated: None,
            source_ips: source_ips(parts),
            user_agent: user_agent(&parts.headers),
            request: info.clone(),
            object,
            code: 0,
            status,
            request_object: None,
            response_object: None,
            annotations: BTreeMap::new(),
            stranger: user.is_none(),
        });
        if user.is_none() {
            return Ok(());
        }
        self.told(Stage::RequestReceived, |event| self.audit.sink.begin(event)).unwrap_or(Ok(()))
    }

    /// The caller acts as somebody else.
    pub(crate) fn impersonated(&self, user: &Arc<UserInfo>) {
        self.with(|known| known.impersonated = Some(Arc::clone(user)));
    }

    /// What the authorizers think (`filters.WithAuthorization`).
    pub(crate) fn decided(&self, verdict: &Verdict) {
        let (decision, reason) = match verdict {
            Verdict::Allow(reason) => ("allow", reason),
            Verdict::Deny(reason) | Verdict::NoOpinion(reason) => ("forbid", reason),
        };
        self.annotate("authorization.k8s.io/decision", || decision.to_owned());
        self.annotate("authorization.k8s.io/reason", || reason.to_string());
    }

    /// Adds an annotation; the first value of a key stays.
    pub(crate) fn annotate(&self, key: &str, value: impl FnOnce() -> String) {
        self.with(|known| {
            let hidden = key.starts_with(PATCHES) && known.kept.level < Level::Request;
            if !hidden && !known.annotations.contains_key(key) {
                known.annotations.insert(key.to_owned(), value());
            }
        });
    }

    /// Whether there is anything to tell about this request.
    pub(crate) fn is_kept(&self) -> bool {
        self.with(|_| ()).is_some()
    }

    /// The object of the request, once it is read (`audit.LogRequestObject`).
    pub(crate) fn object(&self, object: &Value) {
        self.with(|known| {
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
            if let Some(reference) = &mut known.object {
                for (field, key) in [
                    (&mut reference.namespace, "namespace"),
                    (&mut reference.name, "name"),
                    (&mut reference.uid, "uid"),
                    (&mut reference.resource_version, "resourceVersion"),
                ] {
                    if field.is_empty() {
                        text(key).clone_into(field);
                    }
                }
            }
            known.keep_body(object);
        });
    }

    /// A patch, or the options of a deletion.
    pub(crate) fn body(&self, body: &Value) {
        self.with(|known| known.keep_body(body));
    }

    /// The server failed.
    pub(crate) fn panicked(&self) {
        self.with(|known| {
            known.code = 500;
            known.status = Some(json!({
                "status": "Failure", "reason": "InternalError", "message": "APIServer panic'd",
            }));
        });
        self.tell(Stage::Panic);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The answer is there; what it says is told when it has been sent.
    pub(crate) fn answered(
        self: &Arc<Self>,
        response: &mut Response<Body>,
        lasts: bool,
        catalog: &Arc<Catalog>,
    ) {
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert(ID, id);
        }
        let code = response.status().as_u16();
        let Some((level, stranger)) = self.with(|known| {
            known.code = code;
            (known.kept.level, known.stranger)
        }) else {
            return;
        };
        if lasts || stranger {
            self.tell(Stage::ResponseStarted);
        }
        if stranger {
            return;
        }
        let whole = level == Level::RequestResponse && !lasts;
        let kind = header_text(response.headers(), header::CONTENT_TYPE.as_str());
        let kind = kind.split(';').next().unwrap_or_default().to_owned();
        let (trail, catalog) = (Arc::clone(self), Arc::clone(catalog));
        let body = std::mem::replace(response.body_mut(), Body::empty());
        let keep = if whole { RESPONSE_BYTES_MAX } else { 0 };
        *response.body_mut() = body.tapped(keep, move |bytes| {
            if let Some(bytes) = bytes.filter(|bytes| whole || may_be_status(code, &kind, bytes)) {
                trail.answer(&catalog, &kind, &bytes);
            }
            trail.tell(Stage::ResponseComplete);
        });
    }

    /// The body of the answer (`audit.LogResponseObject`).
    fn answer(&self, catalog: &Catalog, kind: &str, bytes: &Bytes) {
        let Ok((body, _)) = decode(catalog, kind, bytes) else {
            return;
        };
        self.with(|known| {
            if body["kind"] == "Status" && body["apiVersion"] == "v1" {
                known.status = Some(body.clone());
            }
            if known.kept.level == Level::RequestResponse {
                known.response_object = Some(known.without_managers(body));
            }
        });
    }

    fn tell(&self, stage: Stage) {
        self.told(stage, |event| self.audit.sink.record(event));
    }

    /// Shows a stage to the sink, if it is kept.
    fn told<T>(&self, stage: Stage, show: impl FnOnce(&AuditEvent<'_>) -> T) -> Option<T> {
        let mut said = None;
        self.with(|known| {
            if known.kept.omits(stage) {
                return;
            }
            said = Some(show(&AuditEvent {
                level: known.kept.level,
                stage,
                id: &self.id,
                uri: &known.uri,
                user: known.user.as_deref(),
                impersonated: known.impersonated.as_deref(),
                source_ips: &known.source_ips,
                user_agent: &known.user_agent,
                request: &known.request,
                object: known.object.as_ref(),
                code: known.code,
                status: known.status.as_ref(),
                request_object: known.request_object.as_ref(),
                response_object: known.response_object.as_ref(),
                received: self.received,
                at: self.clock.now(),
                annotations: &known.annotations,
            }));
        });
        said
    }
}

impl Known {
    fn keep_body(&mut self, body: &Value) {
        if self.kept.level >= Level::Request && self.request_object.is_none() {
            self.request_object = Some(self.without_managers(body.clone()));
        }
    }

    /// An object, or the objects of a list or a table, without `managedFields` if the policy says so.
    fn without_managers(&self, mut body: Value) -> Value {
        if !self.kept.omit_managed_fields {
            return body;
        }
        let forget = |object: &mut Value| {
            if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("managedFields");
            }
        };
        forget(&mut body);
        for item in body.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            forget(item);
        }
        for row in body.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(object) = row.get_mut("object") {
                forget(object);
            }
        }
        body
    }
}

/// A `Status` is short, and begins like one; only those are read where nothing else is wanted.
fn may_be_status(code: u16, kind: &str, bytes: &Bytes) -> bool {
    code >= 400 || (kind == "application/json" && bytes.starts_with(b"{\"kind\":\"Status\""))
}

/// How somebody tried to say who they are (`filters.getAuthMethods`).
fn attempted(parts: &Parts) -> String {
    let authorization = header_text(&parts.headers, header::AUTHORIZATION.as_str()).trim();
    let scheme = authorization.split_once(' ').map(|(scheme, _)| scheme.to_lowercase());
    let scheme = scheme.as_deref().filter(|scheme| ["basic", "bearer"].contains(scheme));
    let token = parts.uri.query().is_some_and(|query| {
        query.split('&').any(|pair| pair.strip_prefix("access_token=").is_some_and(|token| !token.is_empty()))
    });
    let certificate = parts.extensions.get::<PeerCertificates>().is_some_and(|chain| !chain.0.is_empty());
    let words = [scheme, token.then_some("access_token"), certificate.then_some("x509")];
    let words: Vec<&str> = words.into_iter().flatten().collect();
    if words.is_empty() {
        return "Authentication failed, no credentials provided".to_owned();
    }
    format!("Authentication failed, attempted: {}", words.join(", "))
}
