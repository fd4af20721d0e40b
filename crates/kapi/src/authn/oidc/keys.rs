//! The keys of a provider: found by its discovery document (OpenID Connect Discovery 1.0), as JSON Web Keys (RFC 7517).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rsa::PublicKeyComponents,
    signature::{self, RsaParameters, UnparsedPublicKey, VerificationAlgorithm},
};
use serde_json::Value;
use tokio::time::Instant;

use super::config::Provider;
use crate::{
    authn::jwt::Token,
    outbound::{self, Outbound, Target},
};

/// The algorithms that a token may be signed with: upstream's but for ES512, whose curve `ring` does not have.
pub const ALGORITHMS: [&str; 8] = ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512"];
/// How many keys of a provider are kept.
pub const KEYS_MAX: usize = 100;
/// How long to wait at least before keys are fetched again, so that made-up tokens don't become calls to the provider.
pub const REFETCH_MIN: Duration = Duration::from_secs(10);
/// How long a call to the provider may take.
const FETCH_MAX: Duration = Duration::from_secs(30);

const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// A key that tokens may be signed with.
#[derive(Debug)]
pub(super) struct JsonWebKey {
    pub(super) id: String,
    /// The one algorithm that the key is for, if the provider says so.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa(PublicKeyComponents<Vec<u8>>),
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
}

impl JsonWebKey {
    /// Reads a key; `None` if it is for something else or of a kind that is not known.
    pub(super) fn parse(key: &Value) -> Option<Self> {
        if key["use"].as_str().is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let number = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str()?).ok();
        let point = |length: usize| {
            let (x, y) = (number("x")?, number("y")?);
            (x.len() == length && y.len() == length).then(|| [&[4], &*x, &*y].concat())
        };
        let material = match (key["kty"].as_str()?, key["crv"].as_str()) {
            ("RSA", _) => {
                let trim = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect();
                Material::Rsa(PublicKeyComponents { n: trim(number("n")?), e: trim(number("e")?) })
            }
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            _ => return None,
        };
        let algorithm = key["alg"].as_str().map(str::to_owned);
        Some(Self { id: key["kid"].as_str().unwrap_or_default().to_owned(), algorithm, material })
    }

    /// Whether this key has signed a token. The kind of the key decides which algorithms come into question, never the token.
    pub(super) fn has_signed(&self, token: &Token<'_>) -> bool {
        let algorithm = token.algorithm();
        if self.algorithm.as_deref().is_some_and(|only| only != algorithm) {
            return false;
        }
        let (message, signature) = token.signed();
        let point = |algorithm: &'static dyn VerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
        };
        match (&self.material, algorithm) {
            (Material::P256(key), "ES256") => point(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Material::P384(key), "ES384") => point(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Material::Rsa(key), algorithm) => {
                let parameters: &RsaParameters = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                key.verify(parameters, message, signature).is_ok()
            }
            _ => false,
        }
    }
}

type Known = Arc<Vec<JsonWebKey>>;

/// The keys of a provider, as they were when they were fetched last.
pub(super) struct Keys {
    outbound: Outbound,
    issuer: String,
    discovery: String,
    authority: Vec<u8>,
    known: Mutex<Option<Known>>,
    /// When they were fetched last, with what came of it. Held while they are: one call at a time.
    last: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Keys {
    pub(super) fn new(provider: &Provider) -> Self {
        let usual = || format!("{}{WELL_KNOWN}", provider.url.trim_end_matches('/'));
        Self {
            outbound: Outbound::default(),
            issuer: provider.url.clone(),
            discovery: provider.discovery_url.clone().unwrap_or_else(usual),
            authority: provider.authority.clone(),
            known: Mutex::default(),
            last: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn known(&self) -> Option<Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Fetches the keys, unless somebody else did since `seen` was looked at, or just now.
    pub(super) async fn fetch(&self, seen: Option<&Known>) -> Result<Known, String> {
        let mut last = self.last.lock().await;
        let known = self.known();
        let is_new = |known: &Known| seen.is_none_or(|seen| !Arc::ptr_eq(seen, known));
        if let Some(fresh) = known.clone().filter(is_new) {
            return Ok(fresh);
        }
        if let Some((when, outcome)) = &*last
            && when.elapsed() < REFETCH_MIN
        {
            return match (outcome, known) {
                (Ok(()), Some(known)) => Ok(known),
                (Err(why), _) => Err(why.clone()),
                (Ok(()), None) => Err("no keys are known".to_owned()),
            };
        }
        let fetched = self.load().await.map(Arc::new);
        *last = Some((Instant::now(), fetched.as_ref().map(|_| ()).map_err(Clone::clone)));
        let keys = fetched?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&keys));
        Ok(keys)
    }

    async fn load(&self) -> Result<Vec<JsonWebKey>, String> {
        let document = self.get(&self.discovery).await?;
        let issuer = document["issuer"].as_str().unwrap_or_default();
        if issuer != self.issuer {
            return Err(format!(
                "oidc: issuer URL provided to client ({:?}) did not match the issuer URL returned by provider ({issuer:?})",
                self.issuer
            ));
        }
        let place = document["jwks_uri"].as_str().ok_or("provider did not return JWKS URL")?;
        let set = self.get(place).await?;
        let keys = set["keys"].as_array().ok_or("the key set has no keys")?;
        Ok(keys.iter().filter_map(JsonWebKey::parse).take(KEYS_MAX).collect())
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let target = Target::of_url(url, self.authority.clone(), false)?;
        let body =
            outbound::get(&self.outbound, &target, FETCH_MAX).await.map_err(|why| format!("{url}: {why}"))?;
        serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))
    }
}
