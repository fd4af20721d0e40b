//! Signed tokens: JSON Web Signatures in compact form (RFC 7515), with the algorithms that service accounts use (RFC 7518).
//!
//! The arithmetic is `ring`'s, which TLS brings along anyway.

mod der;
mod key;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

pub use self::key::{KeyError, SigningKey, VerifyingKey};

/// The longest token that is looked at, in bytes; those that the server makes have less than two thousand.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// A token that has been taken apart; nothing of it is to be believed before [`verify`](Self::verify) says so.
pub(crate) struct Token<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    algorithm: String,
    /// The id of the key that it says it is signed with; may be empty.
    pub(crate) key: String,
    /// What it claims.
    pub(crate) claims: Value,
}

impl<'a> Token<'a> {
    /// Takes a token apart; `None` if it is none.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let read = |part: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
        };
        let (header, claims) = (read(header)?, read(payload)?);
        let said = |key: &str| header[key].as_str().unwrap_or_default().to_owned();
        // Extensions that must be understood are not (RFC 7515, section 4.1.11).
        if header.get("crit").is_some() || !claims.is_object() {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Self { signed, signature, algorithm: said("alg"), key: said("kid"), claims })
    }

    /// The algorithm that it says it is signed with.
    pub(crate) fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// What is signed, and the signature.
    pub(crate) fn signed(&self) -> (&[u8], &[u8]) {
        (self.signed.as_bytes(), &self.signature)
    }

    /// Whether this key has signed it. The algorithm is the key's: what the token says must agree with it.
    pub(crate) fn verify(&self, key: &VerifyingKey) -> bool {
        self.algorithm == key.algorithm() && key.verify(self.signed.as_bytes(), &self.signature)
    }
}

/// A token with these claims.
///
/// # Errors
/// When the key can't sign, which happens only when there is no randomness.
pub(crate) fn sign(key: &SigningKey, claims: &Value) -> Result<String, KeyError> {
    let header = serde_json::json!({"alg": key.public().algorithm(), "kid": key.public().id()});
    let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_signed_is_read_and_what_is_changed_is_not() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let text = sign(&key, &json!({"sub": "me"})).unwrap();
        let token = Token::parse(&text).unwrap();
        assert_eq!((token.claims["sub"].as_str(), &*token.key), (Some("me"), key.public().id()));
        assert!(token.verify(key.public()));
        assert!(!token.verify(other.public()));

        let parts: Vec<&str> = text.split('.').collect();
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for (changed, why) in [
            (format!("{}.{}.{}", parts[0], part(json!({"sub": "you"})), parts[2]), "other claims"),
            (format!("{}.{}.{}", part(json!({"alg": "none"})), parts[1], parts[2]), "no algorithm"),
            (format!("{}.{}.{}", part(json!({"alg": "HS256"})), parts[1], parts[2]), "a shared secret"),
            (format!("{}.{}.", parts[0], parts[1]), "no signature"),
            (format!("{}.{}.{}", parts[0], parts[1], "AAAA"), "another signature"),
        ] {
            assert!(!Token::parse(&changed).unwrap().verify(key.public()), "{why}");
        }
    }

    #[test]
    fn what_is_no_token_is_none() {
        let list = URL_SAFE_NO_PAD.encode("[]");
        let critical = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","crit":["b64"]}"#);
        let object = URL_SAFE_NO_PAD.encode("{}");
        for text in [
            "",
            "a",
            "a.b",
            "a.b.c",
            "!.!.!",
            &format!("{object}.{list}.AAAA"),
            &format!("{critical}.{object}.AAAA"),
            &format!("{object}.{object}.{}", "A".repeat(TOKEN_BYTES_MAX)),
            &format!("{object}.{object}.AAAA.AAAA"),
        ] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
    }
}
