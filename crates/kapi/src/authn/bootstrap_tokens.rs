//! Tokens by which nodes join a cluster (Kubernetes, "Authenticating with Bootstrap Tokens").

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::request::Parts;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Authenticated, Authenticator, UserInfo, bearer};
use crate::{error::ApiResult, objects::Objects};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// What the user's name begins with; the token's id follows.
const USER: &str = "system:bootstrap:";
/// The group of all who show such a token. Further ones begin with it.
const GROUP: &str = "system:bootstrappers";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
/// The longest name of a further group, in bytes, after [`GROUP`] and a colon.
const GROUP_BYTES_MAX: usize = 256;

/// Callers with a token whose secret is in `kube-system`.
pub(crate) struct BootstrapTokens(Arc<Objects>);

impl BootstrapTokens {
    pub(crate) fn new(objects: Arc<Objects>) -> Self {
        Self(objects)
    }
}

impl fmt::Debug for BootstrapTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapTokens").finish_non_exhaustive()
    }
}

#[async_trait]
impl Authenticator for BootstrapTokens {
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
        let Some((id, secret)) = bearer(parts).and_then(parse) else { return Ok(None) };
        let Some(secrets) = self.0.registry().find("", "v1", "secrets") else { return Ok(None) };
        let name = format!("{NAME}{id}");
        self.0.settle(&secrets, NAMESPACE, &name).await;
        let found = self.0.get(&secrets, NAMESPACE, &name).and_then(|found| found.value().ok());
        Ok(found.and_then(|found| user(&found, id, secret, self.0.clock().now())).map(Into::into))
    }
}

/// Id and secret of a token of the right form.
fn parse(token: &str) -> Option<(&str, &str)> {
    let is_word = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    token.split_once('.').filter(|(id, secret)| is_word(id, ID_LENGTH) && is_word(secret, SECRET_LENGTH))
}

/// Whom a token's object stands for now, if the secret is that of the token.
fn user(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let data = |key: &str| -> Option<String> {
        let text = object["data"][key].as_str()?;
        String::from_utf8(STANDARD.decode(text).ok()?).ok()
    };
    if object["metadata"]["deletionTimestamp"].is_string() || object["type"] != TYPE {
        return None;
    }
    // Digests are compared, so that the time it takes tells nothing of the secret.
    let same = Sha256::digest(data("token-secret").unwrap_or_default()) == Sha256::digest(secret);
    let is_for_this = same && data("token-id").as_deref() == Some(id);
    let may = data("usage-bootstrap-authentication").as_deref() == Some("true");
    let lives = match data("expiration").filter(|text| !text.is_empty()) {
        None => true,
        Some(text) => text.parse::<Timestamp>().is_ok_and(|end| now < end),
    };
    if !is_for_this || !may || !lives {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    if let Some(more) = data("auth-extra-groups").filter(|text| !text.is_empty()) {
        for group in more.split(',') {
            if !is_group(group) {
                return None;
            }
            groups.push(group.to_owned());
        }
    }
    groups.sort();
    groups.dedup();
    Some(UserInfo::new(format!("{USER}{id}"), groups))
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`.
fn is_group(name: &str) -> bool {
    let own = name.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':')).unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    own.len() <= GROUP_BYTES_MAX
        && own.bytes().last().is_some_and(is_plain)
        && own.bytes().all(|byte| is_plain(byte) || byte == b':' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The cases of upstream's `token/bootstrap/bootstrap_test.go`, and one for each further condition.
    #[test]
    fn only_tokens_that_may_be_used_are_known() {
        const SECRET: &str = "0123456789abcdef";
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let object = |changes: &[(&str, Option<&str>)]| {
            let mut data = json!({"token-id": "foobar", "token-secret": SECRET, "usage-bootstrap-authentication": "true"});
            for (key, value) in changes {
                data[*key] = json!(value);
            }
            let encoded = data.as_object().unwrap().iter().filter_map(|(key, value)| {
                Some((key.clone(), Value::from(STANDARD.encode(value.as_str()?))))
            });
            json!({"metadata": {"name": "bootstrap-token-foobar"}, "type": TYPE, "data": encoded.collect::<serde_json::Map<_, _>>()})
        };
        let plain: &[&str] = &["system:bootstrappers"];
        for (changes, expected) in [
            (&[][..], Some(plain)),
            (
                &[("auth-extra-groups", Some("system:bootstrappers:foo"))],
                Some(&["system:bootstrappers", "system:bootstrappers:foo"]),
            ),
            (&[("auth-extra-groups", Some(""))], Some(plain)),
            (&[("auth-extra-groups", Some("foo"))], None),
            (&[("auth-extra-groups", Some("system:bootstrappers:a,system:masters"))], None),
            (&[("auth-extra-groups", Some("system:bootstrappers:a-"))], None),
            (&[("usage-bootstrap-authentication", None)], None),
            (&[("usage-bootstrap-authentication", Some("yes"))], None),
            (&[("token-secret", Some("fedcba9876543210"))], None),
            (&[("token-secret", None)], None),
            (&[("token-id", Some("barfoo"))], None),
            (&[("expiration", Some("2009-11-10T23:00:00Z"))], None),
            (&[("expiration", Some("2109-11-10T23:00:00Z"))], Some(plain)),
            (&[("expiration", Some("tomorrow"))], None),
        ] {
            let found = user(&object(changes), "foobar", SECRET, now);
            let expected = expected.map(|groups| UserInfo::new("system:bootstrap:foobar", groups.to_vec()));
            assert_eq!(found, expected, "{changes:?}");
        }
        let mut gone = object(&[]);
        gone["metadata"]["deletionTimestamp"] = json!("2029-01-01T00:00:00Z");
        let mut other = object(&[]);
        other["type"] = json!("Opaque");
        assert!(
            user(&gone, "foobar", SECRET, now).is_none() && user(&other, "foobar", SECRET, now).is_none()
        );
    }

    #[test]
    fn tokens_have_one_form() {
        for (text, expected) in [
            ("foobar.0123456789abcdef", Some(("foobar", "0123456789abcdef"))),
            ("foo.0123456789abcdef", None),
            ("foobar.0123456789abcde", None),
            ("foobar.0123456789abcdeF", None),
            ("foobar.0123456789abcde.", None),
            ("foobar0123456789abcdef", None),
            ("../../.0123456789abcdef", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
