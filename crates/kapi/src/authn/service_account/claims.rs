//! What a token of a service account says.

use jiff::Timestamp;
use serde_json::{Value, json};

/// An object that a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Reference {
    fn read(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        value.is_object().then(|| Self { name: text("name"), uid: text("uid") })
    }

    fn show(&self) -> Value {
        let mut shown = json!({});
        for (key, text) in [("name", &self.name), ("uid", &self.uid)] {
            if !text.is_empty() {
                shown[key] = json!(text);
            }
        }
        shown
    }
}

/// The claims of a token that was asked for with `TokenRequest` (upstream's `privateClaims` and the registered ones of
/// RFC 7519).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) namespace: String,
    pub(crate) account: Reference,
    pub(crate) pod: Option<Reference>,
    pub(crate) secret: Option<Reference>,
    pub(crate) node: Option<Reference>,
    pub(crate) audiences: Vec<String>,
    pub(crate) issued: Timestamp,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) expires: Option<Timestamp>,
    /// When whoever uses it should have asked for another one.
    pub(crate) warn_after: Option<Timestamp>,
    pub(crate) id: String,
}

impl Claims {
    /// The claims as they are signed.
    pub(crate) fn show(&self, issuer: &str) -> Value {
        let mut kubernetes = json!({"namespace": self.namespace, "serviceaccount": self.account.show()});
        for (key, reference) in [("pod", &self.pod), ("secret", &self.secret), ("node", &self.node)] {
            if let Some(reference) = reference {
                kubernetes[key] = reference.show();
            }
        }
        if let Some(time) = self.warn_after {
            kubernetes["warnafter"] = json!(time.as_second());
        }
        let issued = self.issued.as_second();
        let mut claims = json!({
            "iss": issuer,
            "sub": username(&self.namespace, &self.account.name),
            "aud": self.audiences,
            "iat": issued,
            "nbf": self.not_before.map_or(issued, Timestamp::as_second),
            "jti": self.id,
            "kubernetes.io": kubernetes,
        });
        if let Some(time) = self.expires {
            claims["exp"] = json!(time.as_second());
        }
        claims
    }

    /// Reads claims whose signature has been checked. `None` when they name no account.
    pub(crate) fn read(claims: &Value) -> Option<Self> {
        let kubernetes = &claims["kubernetes.io"];
        let time = |value: &Value| seconds(value).and_then(|seconds| Timestamp::from_second(seconds).ok());
        Some(Self {
            namespace: kubernetes["namespace"].as_str()?.to_owned(),
            account: Reference::read(&kubernetes["serviceaccount"])?,
            pod: Reference::read(&kubernetes["pod"]),
            secret: Reference::read(&kubernetes["secret"]),
            node: Reference::read(&kubernetes["node"]),
            audiences: audiences(claims),
            issued: time(&claims["iat"]).unwrap_or(Timestamp::UNIX_EPOCH),
            not_before: time(&claims["nbf"]),
            expires: time(&claims["exp"]),
            warn_after: time(&kubernetes["warnafter"]),
            id: claims["jti"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

/// Whom a token is for: one text or a list of them (RFC 7519, section 4.1.3).
fn audiences(claims: &Value) -> Vec<String> {
    match &claims["aud"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// A `NumericDate` may have fractions, which count for nothing.
#[allow(clippy::cast_possible_truncation, reason = "a date out of range is none that a token has")]
fn seconds(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))
}

/// The user that a service account is.
pub(crate) fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> Reference {
        Reference { name: name.to_owned(), uid: format!("{name}-uid") }
    }

    #[test]
    fn claims_are_read_as_they_are_shown() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let claims = Claims {
            namespace: "ns".to_owned(),
            account: reference("sa"),
            pod: Some(reference("pod")),
            secret: None,
            node: Some(Reference { name: "node".to_owned(), uid: String::new() }),
            audiences: vec!["a".to_owned(), "b".to_owned()],
            issued: at(100),
            not_before: Some(at(100)),
            expires: Some(at(3_700)),
            warn_after: Some(at(200)),
            id: "id".to_owned(),
        };
        let shown = claims.show("https://issuer");
        // The names are those of upstream's `pkg/serviceaccount/claims_test.go`.
        let expected = json!({
            "iss": "https://issuer", "sub": "system:serviceaccount:ns:sa", "aud": ["a", "b"],
            "iat": 100, "nbf": 100, "exp": 3_700, "jti": "id",
            "kubernetes.io": {
                "namespace": "ns", "serviceaccount": {"name": "sa", "uid": "sa-uid"}, "pod": {"name": "pod", "uid": "pod-uid"},
                "node": {"name": "node"}, "warnafter": 200,
            },
        });
        assert_eq!(shown, expected);
        assert_eq!(Claims::read(&shown), Some(claims));
    }

    #[test]
    fn audiences_and_dates_have_two_forms() {
        let claims =
            json!({"aud": "one", "exp": 12.9, "kubernetes.io": {"namespace": "", "serviceaccount": {}}});
        let claims = Claims::read(&claims).unwrap();
        assert_eq!(claims.audiences, ["one"]);
        assert_eq!(claims.expires, Timestamp::from_second(12).ok());
        assert_eq!(Claims::read(&json!({"sub": "x"})), None);
    }
}
