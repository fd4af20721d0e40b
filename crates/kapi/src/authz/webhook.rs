//! What another service allows: `SubjectAccessReview` (`--authorization-webhook-config-file`, KEP-3221).

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ahash::HashMap;
use async_trait::async_trait;
use kcel::{Bindings, Decl, Env, Program, limits::MATCH_CONDITIONS_COST_MAX};
use kcore::selector::Operator;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{Authorizer, Reason, Rules, Verdict};
use crate::{authn::UserInfo, config::ConfigError, outbound::Remote, request::RequestInfo};

/// How long a "yes" is believed unless told otherwise (`--authorization-webhook-cache-authorized-ttl`).
pub const ALLOWED_TTL: Duration = Duration::from_secs(300);
/// How long a "no" is (`--authorization-webhook-cache-unauthorized-ttl`).
pub const REFUSED_TTL: Duration = Duration::from_secs(30);
/// How many answers are kept; when there are more, those that are over, and then all, are forgotten.
pub const DECISIONS_MAX: usize = 8_192;
/// The most that callers may put into a question whose answer is kept, in bytes (`maxControlledAttrCacheSize`).
const ASKED_BYTES_MAX: usize = 10_000;
/// How many conditions there may be (upstream's limit).
pub const CONDITIONS_MAX: usize = 64;
/// How long the service may take unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is thought when the service can't be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// Others may know better.
    NoOpinion,
    /// No.
    #[default]
    Deny,
}

/// Asks a service whether somebody may do something.
///
/// ```no_run
/// use std::sync::Arc;
/// use kapi::{ApiServer, authz::AccessWebhook, outbound::Remote};
///
/// let remote = Remote::from_file("/etc/kplane/access-webhook.kubeconfig".as_ref())?;
/// let webhook = AccessWebhook::new(remote).conditions(["'kube-system' != request.resourceAttributes.namespace"])?;
/// let server = ApiServer::builder().authorizer(Arc::new(webhook)).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AccessWebhook {
    remote: Remote,
    allowed: Duration,
    refused: Duration,
    timeout: Duration,
    failure: FailurePolicy,
    conditions: Vec<Program>,
    known: Mutex<HashMap<[u8; 32], (Instant, Answer)>>,
}

#[derive(Clone)]
struct Answer {
    allowed: bool,
    denied: bool,
    reason: String,
}

impl fmt::Debug for AccessWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessWebhook").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl AccessWebhook {
    /// Asks this service about everything, and denies what it can't be asked about.
    #[must_use]
    pub fn new(remote: Remote) -> Self {
        Self {
            remote,
            allowed: ALLOWED_TTL,
            refused: REFUSED_TTL,
            timeout: TIMEOUT,
            failure: FailurePolicy::default(),
            conditions: Vec::new(),
            known: Mutex::default(),
        }
    }

    /// Believes a "yes" and a "no" for so long.
    #[must_use]
    pub fn ttl(mut self, allowed: Duration, refused: Duration) -> Self {
        (self.allowed, self.refused) = (allowed, refused);
        self
    }

    /// Gives the service so long for each try.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What is thought when the service, or a condition, gives no answer.
    #[must_use]
    pub fn on_failure(mut self, policy: FailurePolicy) -> Self {
        self.failure = policy;
        self
    }

    /// Asks only when all of these expressions over `request`, a `SubjectAccessReviewSpec`, are true (`matchConditions`).
    ///
    /// # Errors
    /// When one is no expression, or no bool; the error names it.
    pub fn conditions<S: AsRef<str>>(
        mut self,
        expressions: impl IntoIterator<Item = S>,
    ) -> Result<Self, ConfigError> {
        let env = Env::builder().variable("request", spec_decl()).build();
        for (index, text) in expressions.into_iter().enumerate() {
            let wrong = |why: String| {
                let why = format!("Invalid value: {:?}: {why}", text.as_ref());
                ConfigError::new(format!("matchConditions[{index}].expression"), why)
            };
            if index >= CONDITIONS_MAX {
                return Err(wrong(format!("must have at most {CONDITIONS_MAX} items")));
            }
            let program =
                env.compile(text.as_ref()).map_err(|why| wrong(format!("compilation failed: {why}")))?;
            let found = program.output_type().to_string();
            if found != "bool" {
                return Err(wrong(format!("must evaluate to bool but got {found}")));
            }
            self.conditions.push(program);
        }
        Ok(self)
    }

    /// Whether the service is to be asked: one condition that is false excludes it, whatever is wrong with the others.
    fn concerned(&self, spec: &Value) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let shown = for_conditions(spec);
        let bindings = Bindings::new().json("request", &shown);
        let mut budget = MATCH_CONDITIONS_COST_MAX;
        let mut errors = Vec::new();
        for program in &self.conditions {
            let outcome = program.eval(&bindings, budget);
            budget = budget.saturating_sub(outcome.cost);
            match outcome.result {
                Ok(value) if value.as_bool() == Some(false) => return Ok(false),
                Ok(_) => {}
                Err(why) => errors.push(why.to_string()),
            }
        }
        if errors.is_empty() { Ok(true) } else { Err(super::aggregate(&errors)) }
    }

    fn failed(&self, why: &str) -> Verdict {
        tracing::error!(why, "an authorization webhook gave no answer");
        match self.failure {
            FailurePolicy::NoOpinion => Verdict::NoOpinion(Reason::none()),
            FailurePolicy::Deny => Verdict::Deny(Reason::none()),
        }
    }

    async fn ask(&self, spec: &Value) -> Result<Answer, String> {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "metadata": {"creationTimestamp": null}, "spec": spec, "status": {"allowed": false}});
        let answer = self.remote.review(&review, self.timeout).await?;
        let status = &answer["status"];
        if !status.is_object() {
            return Err("the answer has no status".to_owned());
        }
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        Ok(Answer { allowed: status["allowed"] == true, denied: status["denied"] == true, reason })
    }

    fn keep(&self, key: [u8; 32], answer: &Answer) {
        let now = Instant::now();
        let until = now + if answer.allowed { self.allowed } else { self.refused };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DECISIONS_MAX {
            known.retain(|_, (until, _)| *until > now);
        }
        if known.len() >= DECISIONS_MAX {
            known.clear();
        }
        known.insert(key, (until, answer.clone()));
    }
}

#[async_trait]
impl Authorizer for AccessWebhook {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        let spec = spec(user, request);
        match self.concerned(&spec) {
            Ok(true) => {}
            Ok(false) => return Verdict::NoOpinion(Reason::none()),
            Err(why) => return self.failed(&why),
        }
        let key: [u8; 32] = Sha256::digest(spec.to_string()).into();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let answer = match known.filter(|(until, _)| *until > Instant::now()) {
            Some((_, answer)) => answer,
            None => match self.ask(&spec).await {
                Ok(answer) => {
                    if asked_bytes(request) < ASKED_BYTES_MAX {
                        self.keep(key, &answer);
                    }
                    answer
                }
                Err(why) => return self.failed(&why),
            },
        };
        let reason = Reason::from(answer.reason);
        match (answer.denied, answer.allowed) {
            (true, _) => Verdict::Deny(reason),
            (false, true) => Verdict::Allow(reason),
            (false, false) => Verdict::NoOpinion(reason),
        }
    }

    async fn rules(&self, _user: &UserInfo, _namespace: &str) -> Rules {
        let error = Some("webhook authorizer does not support user rule resolution".to_owned());
        Rules { incomplete: true, error, ..Rules::default() }
    }
}

fn asked_bytes(request: &RequestInfo) -> usize {
    let RequestInfo { path, verb, group, version, namespace, resource, subresource, name, .. } = request;
    [path, verb, group, version, namespace, resource, subresource, name].iter().map(|text| text.len()).sum()
}

/// An object of the texts that are not empty.
fn texts(pairs: &[(&str, &str)]) -> Map<String, Value> {
    let given = pairs.iter().filter(|(_, text)| !text.is_empty());
    given.map(|(key, text)| ((*key).to_owned(), json!(text))).collect()
}

/// The question as `SubjectAccessReviewSpec`.
fn spec(user: &UserInfo, request: &RequestInfo) -> Value {
    let mut spec = texts(&[("user", &user.name), ("uid", &user.uid)]);
    if !user.groups.is_empty() {
        spec.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
    if !request.is_resource {
        let attributes = texts(&[("path", &request.path), ("verb", &request.verb)]);
        spec.insert("nonResourceAttributes".to_owned(), attributes.into());
        return spec.into();
    }
    let mut attributes = texts(&[
        ("namespace", &request.namespace),
        ("verb", &request.verb),
        ("group", &request.group),
        ("version", &request.version),
        ("resource", &request.resource),
        ("subresource", &request.subresource),
        ("name", &request.name),
    ]);
    let fields = request.fields.terms().iter().map(|term| {
        json!({"key": term.path, "operator": if term.equal { "In" } else { "NotIn" }, "values": [term.value]})
    });
    let labels = request.labels.requirements().iter().filter_map(|one| {
        let operator = match one.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            // What is left out makes the question a broader one.
            _ => return None,
        };
        let mut requirement = json!({"key": one.key, "operator": operator});
        if !one.values.is_empty() {
            requirement["values"] = json!(one.values);
        }
        Some(requirement)
    });
    for (name, requirements) in
        [("fieldSelector", fields.collect::<Vec<_>>()), ("labelSelector", labels.collect::<Vec<_>>())]
    {
        if !requirements.is_empty() {
            attributes.insert(name.to_owned(), json!({"requirements": requirements}));
        }
    }
    spec.insert("resourceAttributes".to_owned(), attributes.into());
    spec.into()
}

/// The question as conditions see it: texts that are empty are there, too (`convertObjectToUnstructured`).
fn for_conditions(spec: &Value) -> Value {
    let mut shown = spec.clone();
    let mut fill = |path: &str, keys: &[&str], empty: Value| {
        if let Some(object) = shown.pointer_mut(path).and_then(Value::as_object_mut) {
            for key in keys {
                object.entry(*key).or_insert_with(|| empty.clone());
            }
        }
    };
    fill("", &["user", "uid"], json!(""));
    fill("", &["groups"], json!([]));
    fill("", &["extra"], json!({}));
    let resource = ["namespace", "verb", "group", "version", "resource", "subresource", "name"];
    fill("/resourceAttributes", &resource, json!(""));
    fill("/nonResourceAttributes", &["path", "verb"], json!(""));
    shown
}

fn spec_decl() -> Decl {
    let object = |name: &str, fields: &[(&str, Decl)]| {
        let empty = Decl::object(name);
        fields
            .iter()
            .fold(empty, |object, (field, decl)| object.field(field, decl.clone(), false))
            .named(name)
    };
    let text = Decl::string;
    let list = || Decl::list(Decl::string());
    let requirement = object(
        "kubernetes.SelectorRequirement",
        &[("key", text()), ("operator", text()), ("values", list())],
    );
    let selector = |name: &str| {
        object(name, &[("rawSelector", text()), ("requirements", Decl::list(requirement.clone()))])
    };
    let mut resource: Vec<(&str, Decl)> =
        ["namespace", "verb", "group", "version", "resource", "subresource", "name"]
            .map(|key| (key, text()))
            .into();
    resource.push(("fieldSelector", selector("kubernetes.FieldSelectorAttributes")));
    resource.push(("labelSelector", selector("kubernetes.LabelSelectorAttributes")));
    object(
        "kubernetes.SubjectAccessReviewSpec",
        &[
            ("resourceAttributes", object("kubernetes.ResourceAttributes", &resource)),
            (
                "nonResourceAttributes",
                object("kubernetes.NonResourceAttributes", &[("path", text()), ("verb", text())]),
            ),
            ("user", text()),
            ("groups", list()),
            ("extra", Decl::map(list())),
            ("uid", text()),
        ],
    )
}
