//! Believing tokens of service accounts.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ahash::HashMap;
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::request::Parts;
use jiff::Timestamp;
use kcore::{Status, Stored};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Claims, Reference, ServiceAccountIssuer, claims::username, issuer::LEGACY_ISSUER};
use crate::{
    authn::{Authenticated, Authenticator, RequestedAudiences, UserInfo, bearer, in_their_group, jwt::Token},
    error::{ApiError, ApiResult},
    objects::{Objects, Write},
};

/// How much clocks may differ, and how long the token of an object outlives it (`jwt.DefaultLeeway`).
const LEEWAY: Duration = Duration::from_secs(60);
/// How long a day is.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How many tokens are remembered whose signature has been checked.
const CHECKED_MAX: usize = 4_096;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The label of a secret whose token is not to be used any more.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// The label of a secret with the day on which its token was used last (KEP-2799).
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";

/// Believes tokens of service accounts: those that the server's issuer has signed, as long as the account is there, and the
/// pod, secret or node that the token is bound to.
///
/// That an object is there is asked at each request; a signature is checked once, as that takes longer than all the rest.
pub(crate) struct ServiceAccountTokens {
    issuer: Arc<ServiceAccountIssuer>,
    objects: Arc<Objects>,
    /// What tokens say whose signature was good, by the digest of the token. Emptied when it is full.
    checked: Mutex<HashMap<[u8; 32], Arc<Checked>>>,
}

/// A token whose signature is good, with all of it that is the same for each request.
enum Checked {
    /// One that was asked for with `TokenRequest`.
    Bound(Box<Bound>),
    /// One that a secret holds.
    Secret(Value),
}

struct Bound {
    claims: Claims,
    /// The caller that it stands for, as long as what it is bound to is there.
    user: Arc<UserInfo>,
    /// Those of the API server's own audiences that it is for.
    own: Option<Arc<[String]>>,
}

impl ServiceAccountTokens {
    pub(crate) fn new(issuer: Arc<ServiceAccountIssuer>, objects: Arc<Objects>) -> Self {
        Self { issuer, objects, checked: Mutex::default() }
    }

    /// What a token says, if one of the keys has signed it; `None` if another issuer has.
    fn checked(&self, text: &str) -> ApiResult<Option<Arc<Checked>>> {
        let digest: [u8; 32] = Sha256::digest(text).into();
        let known = self.checked.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(token) = Token::parse(text) else {
            return Ok(None);
        };
        let issuer = token.claims["iss"].as_str().unwrap_or_default();
        if issuer != LEGACY_ISSUER && !self.issuer.issuers().iter().any(|known| known == issuer) {
            return Ok(None);
        }
        let keys = self.issuer.keys().iter().filter(|key| token.key.is_empty() || token.key == key.id());
        let mut keys = keys.peekable();
        if keys.peek().is_none() {
            return Err(refused("invalid signature, no keys found"));
        }
        if !keys.any(|key| token.verify(key)) {
            return Err(refused("go-jose/go-jose: error in cryptographic primitive"));
        }
        let found = Arc::new(if issuer == LEGACY_ISSUER {
            Checked::Secret(token.claims)
        } else {
            let claims =
                Claims::read(&token.claims).ok_or_else(|| refused("the token names no service account"))?;
            let own = self.audiences(&claims.audiences, self.issuer.audiences()).ok();
            let user = in_their_group(Arc::new(bound_user(&claims)));
            Checked::Bound(Box::new(Bound { user, own, claims }))
        });
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.len() >= CHECKED_MAX {
            checked.clear();
        }
        checked.insert(digest, Arc::clone(&found));
        Ok(Some(found))
    }

    /// Those of the audiences that are wanted which the token is for.
    fn audiences(&self, given: &[String], wanted: &[String]) -> ApiResult<Arc<[String]>> {
        let given = if given.is_empty() { self.issuer.audiences() } else { given };
        let shared: Arc<[String]> = given.iter().filter(|one| wanted.contains(one)).cloned().collect();
        if shared.is_empty() {
            let show = |list: &[String]| {
                let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
                format!("[{}]", quoted.join(" "))
            };
            return Err(refused(format!(
                "token audiences {} is invalid for the target audiences {}",
                show(given),
                show(wanted)
            )));
        }
        Ok(shared)
    }

    fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.objects.find("", "v1", plural, namespace, name)
    }

    /// The account is there, and is the one that the token was made for.
    fn check_account(&self, namespace: &str, account: &Reference, gone: Option<Timestamp>) -> ApiResult<()> {
        let Reference { name, uid } = account;
        let Some(object) = self.find("serviceaccounts", namespace, name) else {
            return Err(Status::not_found("", "serviceaccounts", name).into());
        };
        let header = object.header();
        if *header.uid != **uid {
            return Err(refused(format!(
                "service account UID ({}) does not match claim ({uid})",
                header.uid
            )));
        }
        if is_gone(&object, gone) {
            return Err(refused(format!("service account {namespace}/{name} has been deleted")));
        }
        Ok(())
    }

    /// The object that the token is bound to is there, and is the one that it was made for.
    fn check_bound(
        &self,
        plural: &str,
        namespace: &str,
        bound: &Reference,
        gone: Option<Timestamp>,
    ) -> ApiResult<()> {
        let invalidated = || refused("service account token has been invalidated");
        let object = self.find(plural, namespace, &bound.name).ok_or_else(invalidated)?;
        let uid = &object.header().uid;
        if **uid != *bound.uid {
            let kind = plural.trim_end_matches('s');
            return Err(refused(format!(
                "{kind} UID ({uid}) does not match service account {kind} ref claim ({})",
                bound.uid
            )));
        }
        if is_gone(&object, gone) { Err(invalidated()) } else { Ok(()) }
    }

    /// A token that was asked for with `TokenRequest` still counts.
    fn check_claims(&self, claims: &Claims, now: Timestamp) -> ApiResult<()> {
        check_times(claims, now)?;
        let gone = now.checked_sub(LEEWAY).ok();
        let namespace = &claims.namespace;
        self.check_account(namespace, &claims.account, gone)?;
        if let Some(secret) = &claims.secret {
            self.check_bound("secrets", namespace, secret, gone)?;
        }
        match (&claims.pod, &claims.node) {
            // The node of a pod is told, not checked: the pod is.
            (Some(pod), _) => self.check_bound("pods", namespace, pod, gone)?,
            (None, Some(node)) => self.check_bound("nodes", "", node, gone)?,
            (None, None) => {}
        }
        Ok(())
    }

    /// The caller that a token stands for which a secret holds, and why it is refused all the same: a token that is marked as
    /// invalid is still a token that is used.
    fn secret(&self, claims: &Value, token: &str) -> ApiResult<(UserInfo, Option<ApiError>)> {
        let text = |key: &str, name: &str| -> ApiResult<&str> {
            let text = claims[key].as_str().filter(|text| !text.is_empty());
            text.ok_or_else(|| refused(format!("{name} claim is missing")))
        };
        let subject = text("sub", "sub")?;
        let namespace = text("kubernetes.io/serviceaccount/namespace", "namespace")?;
        let secret = text("kubernetes.io/serviceaccount/secret.name", "secretName")?;
        let reference = Reference {
            name: text("kubernetes.io/serviceaccount/service-account.name", "serviceAccountName")?.to_owned(),
            uid: text("kubernetes.io/serviceaccount/service-account.uid", "serviceAccountUID")?.to_owned(),
        };
        if subject != username(namespace, &reference.name) {
            return Err(refused("sub claim is invalid"));
        }
        let object = self.find("secrets", namespace, secret);
        let object = object.filter(|object| object.header().deletion.is_none());
        let object = object.ok_or_else(|| refused("Token has been invalidated"))?;
        let value = object.value().map_err(Status::internal)?;
        let held = value["data"]["token"].as_str().and_then(|text| STANDARD.decode(text).ok());
        // Only who has the token gets here, so there is nothing to be learnt from how long this takes.
        if held.as_deref() != Some(token.as_bytes()) {
            return Err(refused("Token does not match server's copy"));
        }
        self.check_account(namespace, &reference, None)?;
        let marked = object.header().labels.get(INVALID_SINCE).is_some_and(|since| !since.is_empty());
        let why = marked.then(|| {
            let name = &reference.name;
            refused(format!(
                "the token in secret {namespace}/{secret} for service account {namespace}/{name} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ))
        });
        Ok((account(namespace, &reference), why))
    }

    /// Notes in a secret that its token is used, once a day. What does not get through is noted at the next use.
    async fn note_use(&self, claims: &Value, now: Timestamp) {
        let text = |key: &str| claims[key].as_str().unwrap_or_default();
        let namespace = text("kubernetes.io/serviceaccount/namespace");
        let name = text("kubernetes.io/serviceaccount/secret.name");
        let Some(resource) = self.objects.registry().find("", "v1", "secrets") else { return };
        let Some(secret) = self.objects.get(&resource, namespace, name) else { return };
        let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
        let (today, tomorrow) = (day(now), now.checked_add(DAY).map(day).unwrap_or_default());
        // Another server's clock may be ahead.
        let noted = secret.header().labels.get(LAST_USED);
        if noted.is_some_and(|noted| *noted == *today || *noted == *tomorrow) {
            return;
        }
        let Ok(mut object) = secret.value() else { return };
        if !object["metadata"]["labels"].is_object() {
            object["metadata"]["labels"] = json!({});
        }
        object["metadata"]["labels"][LAST_USED] = today.into();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        let write = Write {
            resource: &resource,
            namespace,
            name,
            replaced: Some(&secret),
            object: Some(&object),
            claims: &[],
            old_claims: &[],
            charges: &[],
        };
        if let Err(error) = self.objects.commit(write).await {
            tracing::debug!(?error, namespace, name, "the use of a token is not noted");
        }
    }
}

#[async_trait]
impl Authenticator for ServiceAccountTokens {
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
        let Some(token) = bearer(parts) else {
            return Ok(None);
        };
        let Some(checked) = self.checked(token)? else {
            return Ok(None);
        };
        let now = self.objects.clock().now();
        let wanted = parts.extensions.get::<RequestedAudiences>().map(|wanted| &*wanted.0);
        match &*checked {
            Checked::Bound(bound) => {
                let Bound { claims, user, own } = &**bound;
                let audiences = match own {
                    Some(own) if wanted.is_none() => Arc::clone(own),
                    _ => self.audiences(&claims.audiences, wanted.unwrap_or(self.issuer.audiences()))?,
                };
                self.check_claims(claims, now)?;
                Ok(Some(Authenticated { user: Arc::clone(user), audiences: Some(audiences) }))
            }
            Checked::Secret(claims) => {
                let audiences = self.audiences(&[], wanted.unwrap_or(self.issuer.audiences()))?;
                let (user, refusal) = self.secret(claims, token)?;
                self.note_use(claims, now).await;
                if let Some(why) = refusal {
                    return Err(why);
                }
                Ok(Some(Authenticated { user: Arc::new(user), audiences: Some(audiences) }))
            }
        }
    }
}

impl fmt::Debug for ServiceAccountTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountTokens").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// The caller that a token stands for which was asked for with `TokenRequest`.
fn bound_user(claims: &Claims) -> UserInfo {
    let mut extra = BTreeMap::new();
    let mut tell = |key: &str, text: &str| extra.insert(key.to_owned(), vec![text.to_owned()]);
    if let Some(pod) = claims.pod.as_ref().filter(|pod| !pod.name.is_empty() && !pod.uid.is_empty()) {
        tell(POD_NAME, &pod.name);
        tell(POD_UID, &pod.uid);
    }
    if !claims.id.is_empty() {
        tell(CREDENTIAL_ID, &format!("JTI={}", claims.id));
    }
    if let Some(node) = claims.node.as_ref().filter(|node| !node.name.is_empty()) {
        tell(NODE_NAME, &node.name);
        if !node.uid.is_empty() {
            tell(NODE_UID, &node.uid);
        }
    }
    UserInfo { extra, ..account(&claims.namespace, &claims.account) }
}

/// A caller with nothing extra.
fn account(namespace: &str, account: &Reference) -> UserInfo {
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    UserInfo { uid: account.uid.clone(), ..UserInfo::new(username(namespace, &account.name), groups) }
}

fn check_times(claims: &Claims, now: Timestamp) -> ApiResult<()> {
    let late = now.checked_sub(LEEWAY).unwrap_or(now);
    let early = now.checked_add(LEEWAY).unwrap_or(now);
    if claims.not_before.is_some_and(|time| early < time) {
        return Err(refused("service account token is not valid yet"));
    }
    if claims.expires.is_some_and(|time| late > time) {
        return Err(refused("service account token has expired"));
    }
    if early < claims.issued {
        return Err(refused("service account token is issued in the future"));
    }
    Ok(())
}

/// Whether an object that is still there was deleted before this time; at all if there is none.
fn is_gone(object: &Stored, before: Option<Timestamp>) -> bool {
    let Some(deletion) = &object.header().deletion else {
        return false;
    };
    let time = deletion.parse::<Timestamp>().ok();
    before.zip(time).is_none_or(|(before, time)| time < before)
}

/// 401, with the words that a review of the token shows.
fn refused(why: impl Into<String>) -> ApiError {
    Status { message: why.into(), ..Status::unauthorized() }.into()
}
