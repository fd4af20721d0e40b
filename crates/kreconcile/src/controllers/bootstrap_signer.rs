//! What a node that joins may trust: `cluster-info`, signed with each bootstrap token (KEP-130).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kcore::Clock;
use ring::hmac;
use serde_json::{Value, json};

use super::{Context, token_cleaner::TOKEN_TYPE};
use crate::{
    controller::Controller,
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Requests, Written},
    resource::Selection,
    trigger::{MapTo, Trigger},
};

const NAMESPACE: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
const CONTENT: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
const SECRET_PREFIX: &str = "bootstrap-token-";

/// The controller `bootstrap-signer-controller`: signs the `kubeconfig` in the ConfigMap `cluster-info` of `kube-public` with
/// each bootstrap token whose `usage-bootstrap-signing` is `true` and that has not expired (a detached JWS, RFC 7515,
/// appendix F), and takes off the signatures of others. Without that ConfigMap there is nothing to do.
pub fn bootstrap_signer(context: &Context) -> Controller {
    const NAME: &str = "bootstrap-signer-controller";
    let infos = Selection::all().namespace(NAMESPACE).fields(format!("metadata.name={CLUSTER_INFO}"));
    let maps = context.informers().of::<ConfigMap>(infos);
    let tokens = Selection::all().namespace("kube-system").fields(format!("type={TOKEN_TYPE}"));
    let secrets = context.informers().of::<Secret>(tokens);
    let reconciler = BootstrapSigner {
        maps: maps.clone(),
        secrets: secrets.clone(),
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
    };
    let only = ObjectKey::new(NAMESPACE, CLUSTER_INFO);
    Controller::new(NAME, reconciler)
        .on(Trigger::new(&maps, MapTo::one(only.clone())))
        .on(Trigger::new(&secrets, MapTo::one(only)))
}

/// A token that signs: its id, its secret, and how long it still does.
#[derive(Debug, PartialEq)]
struct Token {
    id: String,
    secret: String,
    left: Option<Duration>,
}

fn token(secret: &Secret, now: Timestamp) -> Option<Token> {
    let data = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        value.and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default()
    };
    let (id, key) = (data("token-id"), data("token-secret"));
    let named = secret.metadata.name.as_deref().and_then(|name| name.strip_prefix(SECRET_PREFIX));
    let well_formed =
        id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let signs = data("usage-bootstrap-signing") == "true";
    if !well_formed
        || named != Some(id)
        || key.is_empty()
        || !signs
        || secret.type_.as_deref() != Some(TOKEN_TYPE)
    {
        return None;
    }
    let left = match data("expiration") {
        "" => None,
        text => {
            let at: Timestamp = text.parse().ok()?;
            Some(Duration::try_from(at.duration_since(now)).ok().filter(|left| !left.is_zero())?)
        }
    };
    Some(Token { id: id.to_owned(), secret: key.to_owned(), left })
}

/// The signature of `content` with a token, without the content itself.
fn signature(content: &str, token: &Token) -> String {
    let header = json!({"alg": "HS256", "kid": token.id}).to_string();
    let header = URL_SAFE_NO_PAD.encode(header);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret.as_bytes());
    let tag = hmac::sign(&key, message.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
}

/// What has to change in the data of `cluster-info`; nothing when it is signed as it should be.
fn changes(data: &BTreeMap<String, String>, tokens: &[Token]) -> BTreeMap<String, Value> {
    let Some(content) = data.get(CONTENT) else { return BTreeMap::new() };
    let wanted: BTreeMap<String, String> = tokens
        .iter()
        .map(|token| (format!("{SIGNATURE_PREFIX}{}", token.id), signature(content, token)))
        .collect();
    let old = data.keys().filter(|key| key.starts_with(SIGNATURE_PREFIX) && !wanted.contains_key(*key));
    let mut changes: BTreeMap<String, Value> = old.map(|key| (key.clone(), Value::Null)).collect();
    let new = wanted.into_iter().filter(|(key, signature)| data.get(key) != Some(signature));
    changes.extend(new.map(|(key, signature)| (key, signature.into())));
    changes
}

struct BootstrapSigner {
    maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for BootstrapSigner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(map) = self.maps.get(&key.namespace, &key.name) else { return Ok(Action::Done) };
        let now = self.clock.now();
        let tokens: Vec<Token> = self.secrets.list().iter().filter_map(|secret| token(secret, now)).collect();
        let data = map.data.clone().unwrap_or_default();
        let changes = changes(&data, &tokens);
        if !changes.is_empty() {
            let patch =
                json!({"metadata": {"resourceVersion": map.metadata.resource_version}, "data": changes});
            let path = self.maps.resource().path(&key.namespace, &key.name);
            match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
                Err(error) if !request::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        // A token that expires is deleted by somebody else, and may not be.
        let next = tokens.iter().filter_map(|token| token.left).min();
        Ok(next.map_or(Action::Done, Action::After))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    /// The cases of upstream's `util_test.go` (pkg/controller/bootstrap).
    #[test]
    fn tokens_sign_that_may() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let cases = [
            ("bootstrap-token-abcdef", "abcdef", "secret", "true", "", true),
            ("bootstrap-token-abcdef", "abcdef", "secret", "false", "", false),
            ("bootstrap-token-abcdef", "abcdef", "secret", "", "", false),
            ("bootstrap-token-abcdef", "ghijkl", "secret", "true", "", false),
            ("bootstrap-token-abcdef", "abcdef", "", "true", "", false),
            ("abcdef", "abcdef", "secret", "true", "", false),
            ("bootstrap-token-abc", "abc", "secret", "true", "", false),
            ("bootstrap-token-abcdef", "abcdef", "secret", "true", "2030-01-01T01:00:00Z", true),
            ("bootstrap-token-abcdef", "abcdef", "secret", "true", "2029-01-01T01:00:00Z", false),
            ("bootstrap-token-abcdef", "abcdef", "secret", "true", "soon", false),
        ];
        for (name, id, key, signing, expiration, expected) in cases {
            let entries = [
                ("token-id", id),
                ("token-secret", key),
                ("usage-bootstrap-signing", signing),
                ("expiration", expiration),
            ];
            let data = entries.map(|(key, value)| (key.to_owned(), ByteString(value.into())));
            let mut secret =
                Secret { data: Some(data.into()), type_: Some(TOKEN_TYPE.to_owned()), ..Secret::default() };
            secret.metadata.name = Some(name.to_owned());
            assert_eq!(token(&secret, now).is_some(), expected, "{name} {id} {key} {signing} {expiration}");
        }
    }

    /// The signature of upstream's `jws_test.go` (k8s.io/cluster-bootstrap/token/jws).
    #[test]
    fn signatures_are_those_of_upstream() {
        let token = |secret: &str| Token { id: "joshua".to_owned(), secret: secret.to_owned(), left: None };
        let (content, key) =
            ("Hello from the other side. I must have called a thousand times.", "my voice is my passcode");
        let cases = [
            (content, key, "VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"),
            ("", key, "7Ui1ALizW4jXphVUB7xUqC9vLYLL9RZeOFfVLoB7Tgk"),
            (content, "", "UfkqvDGiIFxrMnFseDj9LYJOLNrvjW8aHhF71mvvAs8"),
        ];
        let shown = |tag: &str| format!("eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..{tag}");
        for (content, key, expected) in cases {
            assert_eq!(signature(content, &token(key)), shown(expected), "{content} {key}");
        }

        let signed = BTreeMap::from([
            (CONTENT.to_owned(), content.to_owned()),
            (format!("{SIGNATURE_PREFIX}joshua"), shown(cases[0].2)),
            (format!("{SIGNATURE_PREFIX}gone"), "x".to_owned()),
        ]);
        let gone = BTreeMap::from([(format!("{SIGNATURE_PREFIX}gone"), Value::Null)]);
        assert_eq!(changes(&signed, &[token(key)]), gone);
        assert_eq!(changes(&signed, &[token("other")]).len(), 2);
        assert!(changes(&BTreeMap::new(), &[token(key)]).is_empty());
    }
}
