//! The keys of signed tokens, as they come in PEM files.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    rsa,
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, KeyPair as _, UnparsedPublicKey,
    },
};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::der;

/// A key that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is no PEM, or has no key in it.
    #[error("there is no key in the PEM text")]
    NoKey,
    /// The key is of a kind or size that is not supported: RSA of 2048 bits and more, P-256 and P-384 are.
    #[error("the key is of a kind that is not supported")]
    Unsupported,
    /// There was no randomness to sign with.
    #[error("the key can't sign")]
    Unsigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
}

impl Kind {
    fn info(self) -> &'static [u8] {
        match self {
            Self::Rsa => der::RSA,
            Self::P256 => der::P256,
            Self::P384 => der::P384,
        }
    }
}

/// A key that signatures are checked with.
#[derive(Clone)]
pub struct VerifyingKey {
    kind: Kind,
    id: String,
    /// An `RSAPublicKey`, or an uncompressed point.
    bytes: Vec<u8>,
}

impl VerifyingKey {
    fn new(kind: Kind, bytes: &[u8]) -> Self {
        let info = der::public_key_info(kind.info(), bytes);
        Self { kind, id: URL_SAFE_NO_PAD.encode(Sha256::digest(info)), bytes: bytes.to_owned() }
    }

    /// The keys of a PEM text: public keys, certificates, and the public halves of private keys, as
    /// `--service-account-key-file` takes them.
    ///
    /// # Errors
    /// When there is no key, or one that is not supported.
    pub fn all_of_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, bytes) = section.map_err(|_| KeyError::NoKey)?;
            match kind {
                SectionKind::PublicKey => keys.push(Self::of_info(&bytes)?),
                SectionKind::Certificate => {
                    let (_, certificate) = X509Certificate::from_der(&bytes).map_err(|_| KeyError::NoKey)?;
                    keys.push(Self::of_info(certificate.public_key().raw)?);
                }
                _ => keys.extend(SigningKey::of_section(kind, &bytes)?.map(|key| key.public)),
            }
        }
        if keys.is_empty() { Err(KeyError::NoKey) } else { Ok(keys) }
    }

    fn of_info(info: &[u8]) -> Result<Self, KeyError> {
        let (algorithm, key) = der::read_public_key_info(info).ok_or(KeyError::Unsupported)?;
        let kinds = [Kind::Rsa, Kind::P256, Kind::P384];
        let kind = kinds.into_iter().find(|kind| kind.info() == algorithm).ok_or(KeyError::Unsupported)?;
        let fits = match kind {
            Kind::Rsa => der::read_rsa_public_key(key).is_some(),
            Kind::P256 => key.len() == 65,
            Kind::P384 => key.len() == 97,
        };
        if fits { Ok(Self::new(kind, key)) } else { Err(KeyError::Unsupported) }
    }

    /// The key's id: the digest of its `SubjectPublicKeyInfo`, as upstream derives it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The algorithm's name in tokens.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self.kind {
            Kind::Rsa => "RS256",
            Kind::P256 => "ES256",
            Kind::P384 => "ES384",
        }
    }

    /// Whether this is the signature of that message.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self.kind {
            Kind::Rsa => &signature::RSA_PKCS1_2048_8192_SHA256,
            Kind::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Kind::P384 => &signature::ECDSA_P384_SHA384_FIXED,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok()
    }

    /// The key as a JSON Web Key (RFC 7517).
    pub(crate) fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let point = || {
            let coordinates = self.bytes.get(1..).unwrap_or_default();
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            (text(x), text(y))
        };
        let mut key = match self.kind {
            Kind::Rsa => {
                let (modulus, exponent) = der::read_rsa_public_key(&self.bytes).unwrap_or_default();
                json!({"kty": "RSA", "n": text(modulus), "e": text(exponent)})
            }
            Kind::P256 => json!({"kty": "EC", "crv": "P-256", "x": point().0, "y": point().1}),
            Kind::P384 => json!({"kty": "EC", "crv": "P-384", "x": point().0, "y": point().1}),
        };
        key["use"] = json!("sig");
        key["kid"] = json!(self.id);
        key["alg"] = json!(self.algorithm());
        key
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("kind", &self.kind).field("id", &self.id).finish_non_exhaustive()
    }
}

/// A key that tokens are signed with, and its public half.
pub struct SigningKey {
    private: Private,
    public: VerifyingKey,
    random: SystemRandom,
}

enum Private {
    Rsa(Box<rsa::KeyPair>),
    Ec(Box<EcdsaKeyPair>),
}

impl SigningKey {
    /// A new key on the curve P-256.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|_| KeyError::Unsigned)?;
        Self::of_pkcs8(key.as_ref())
    }

    /// The first private key of a PEM text, in PKCS#8, PKCS#1 or SEC1 form, as `--service-account-signing-key-file` takes it.
    ///
    /// # Errors
    /// When there is no key, or it is not supported.
    pub fn of_pem(pem: &[u8]) -> Result<Self, KeyError> {
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, bytes) = section.map_err(|_| KeyError::NoKey)?;
            if let Some(key) = Self::of_section(kind, &bytes)? {
                return Ok(key);
            }
        }
        Err(KeyError::NoKey)
    }

    fn of_section(kind: SectionKind, bytes: &[u8]) -> Result<Option<Self>, KeyError> {
        match kind {
            SectionKind::PrivateKey => Self::of_pkcs8(bytes).map(Some),
            SectionKind::RsaPrivateKey => {
                let key = rsa::KeyPair::from_der(bytes).map_err(|_| KeyError::Unsupported)?;
                Ok(Some(Self::rsa(key)))
            }
            SectionKind::EcPrivateKey => {
                let (private, public) = der::read_ec_private_key(bytes).ok_or(KeyError::Unsupported)?;
                let kinds = [
                    (Kind::P256, &ECDSA_P256_SHA256_FIXED_SIGNING),
                    (Kind::P384, &ECDSA_P384_SHA384_FIXED_SIGNING),
                ];
                let key = kinds.into_iter().find_map(|(kind, algorithm)| {
                    let random = SystemRandom::new();
                    let key =
                        EcdsaKeyPair::from_private_key_and_public_key(algorithm, private, public, &random);
                    Some(Self::ec(kind, key.ok()?))
                });
                key.map(Some).ok_or(KeyError::Unsupported)
            }
            _ => Ok(None),
        }
    }

    fn of_pkcs8(bytes: &[u8]) -> Result<Self, KeyError> {
        if let Ok(key) = rsa::KeyPair::from_pkcs8(bytes) {
            return Ok(Self::rsa(key));
        }
        let ec = |kind, algorithm: &'static EcdsaSigningAlgorithm| {
            let key = EcdsaKeyPair::from_pkcs8(algorithm, bytes, &SystemRandom::new()).ok()?;
            Some(Self::ec(kind, key))
        };
        ec(Kind::P256, &ECDSA_P256_SHA256_FIXED_SIGNING)
            .or_else(|| ec(Kind::P384, &ECDSA_P384_SHA384_FIXED_SIGNING))
            .ok_or(KeyError::Unsupported)
    }

    fn rsa(key: rsa::KeyPair) -> Self {
        let public = VerifyingKey::new(Kind::Rsa, key.public_key().as_ref());
        Self { private: Private::Rsa(Box::new(key)), public, random: SystemRandom::new() }
    }

    fn ec(kind: Kind, key: EcdsaKeyPair) -> Self {
        let public = VerifyingKey::new(kind, key.public_key().as_ref());
        Self { private: Private::Ec(Box::new(key)), public, random: SystemRandom::new() }
    }

    /// The half that everybody may know.
    #[must_use]
    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.private {
            Private::Ec(key) => {
                let signature = key.sign(&self.random, message).map_err(|_| KeyError::Unsigned)?;
                Ok(signature.as_ref().to_owned())
            }
            Private::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &self.random, message, &mut signature)
                    .map_err(|_| KeyError::Unsigned)?;
                Ok(signature)
            }
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that were made for this test with `openssl genpkey`, `genrsa -traditional` and `ecparam -genkey`.
    const RSA_PKCS8: &str = include_str!("testdata/rsa_pkcs8.pem");
    const RSA_PKCS1: &str = include_str!("testdata/rsa_pkcs1.pem");
    const EC_SEC1: &str = include_str!("testdata/ec_sec1.pem");
    const EC_P384: &str = include_str!("testdata/ec_p384.pem");

    #[test]
    fn keys_of_every_form_sign_and_verify() {
        for (pem, algorithm, kind) in [
            (RSA_PKCS8, "RS256", "RSA"),
            (RSA_PKCS1, "RS256", "RSA"),
            (EC_SEC1, "ES256", "EC"),
            (EC_P384, "ES384", "EC"),
        ] {
            let key = SigningKey::of_pem(pem.as_bytes()).unwrap();
            assert_eq!(key.public().algorithm(), algorithm);
            let signature = key.sign(b"message").unwrap();
            assert!(key.public().verify(b"message", &signature), "{algorithm}");
            assert!(!key.public().verify(b"other", &signature), "{algorithm}");
            let jwk = key.public().jwk();
            assert_eq!((jwk["kty"].as_str(), jwk["use"].as_str()), (Some(kind), Some("sig")));
            let again = VerifyingKey::all_of_pem(pem.as_bytes()).unwrap();
            assert_eq!(again[0].id(), key.public().id());
        }
    }

    #[test]
    fn the_id_is_the_digest_of_the_public_key() {
        // `openssl pkey -pubout -outform der | openssl dgst -sha256 -binary | basenc --base64url`.
        let id = include_str!("testdata/ec_sec1.id").trim();
        let public = include_str!("testdata/ec_sec1.pub.pem");
        assert_eq!(VerifyingKey::all_of_pem(public.as_bytes()).unwrap()[0].id(), id);
        assert_eq!(SigningKey::of_pem(EC_SEC1.as_bytes()).unwrap().public().id(), id);
    }

    #[test]
    fn certificates_bring_their_keys() {
        let pair = rcgen::generate_simple_self_signed(["sa".to_owned()]).unwrap();
        let keys = VerifyingKey::all_of_pem(pair.cert.pem().as_bytes()).unwrap();
        let private = SigningKey::of_pem(pair.signing_key.serialize_pem().as_bytes()).unwrap();
        assert_eq!(keys[0].id(), private.public().id());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for pem in ["", "no PEM", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(SigningKey::of_pem(pem.as_bytes()).is_err(), "{pem}");
            assert!(VerifyingKey::all_of_pem(pem.as_bytes()).is_err(), "{pem}");
        }
    }
}
