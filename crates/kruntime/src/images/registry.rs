//! Fetches images from registries, by the OCI distribution API.
//!
//! A client of our own, on the workspace's `hyper`: what is needed of the API are two kinds of requests and the tokens for
//! them, and the crates for it bring a second HTTP stack of more than a hundred crates.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;

use super::{
    ContentStore, Credential, Credentials, Descriptor, Digest, INDEX_DEPTH_MAX, Image, ImageError, Platform,
    Reference, UnpackLimits,
    manifest::{DOCUMENT_BYTES_MAX, Document, INDEX_TYPES, MANIFEST_TYPES, choose},
};

/// How many layers of one image are fetched at once (as containerd does by default).
const LAYERS_AT_ONCE_MAX: usize = 3;
/// How often a registry may send us elsewhere.
const REDIRECTS_MAX: usize = 5;
/// How long a registry may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How many tokens are kept.
const TOKENS_MAX: usize = 1024;
/// So much of an error's body is read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// The client of all registries. Cheap to clone; all clones are one.
///
/// Registries on this machine's loopback addresses are spoken to without TLS, as Docker does, and so are those that
/// [`plain`](Self::plain) names; all others by HTTPS.
#[derive(Clone)]
pub struct Registry {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    plain: Arc<Vec<String>>,
    tokens: Arc<Mutex<HashMap<String, String>>>,
    platform: Arc<Platform>,
    layer_bytes_max: u64,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("plain", &self.plain).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    /// A client that speaks TLS in this way: whom it believes is said there.
    #[must_use]
    pub fn new(tls: rustls::ClientConfig) -> Self {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            plain: Arc::default(),
            tokens: Arc::default(),
            platform: Arc::new(Platform::of_this_machine()),
            layer_bytes_max: UnpackLimits::default().layer_bytes_max,
        }
    }

    /// Names registries (`host` or `host:port`) that are spoken to without TLS.
    #[must_use]
    pub fn plain(mut self, registries: impl IntoIterator<Item = String>) -> Self {
        self.plain = Arc::new(registries.into_iter().collect());
        self
    }

    /// The machine that images are for; this one, if nothing is said.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Arc::new(platform);
        self
    }

    /// Fetches an image into `store` and gives it its name. What the store has is not fetched again.
    ///
    /// # Errors
    /// In containerd's words: [`ImageError::Registry`] with the image's name and what went wrong.
    pub async fn pull(
        &self,
        store: &ContentStore,
        name: &Reference,
        credentials: &Credentials,
    ) -> Result<Image, ImageError> {
        let _held = store.hold().await;
        let mut tries: Vec<Option<&Credential>> = credentials.for_image(name).into_iter().map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        let mut last = None;
        for credential in tries {
            match self.pull_as(store, name, credential).await {
                Err(error @ ImageError::Denied(_)) => last = Some(error),
                done => return done.map_err(|error| told(name, &error)),
            }
        }
        Err(last.map_or_else(|| ImageError::NotFound(name.to_string()), |error| told(name, &error)))
    }

    async fn pull_as(
        &self,
        store: &ContentStore,
        name: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Image, ImageError> {
        let from = From { registry: self, name, credential };
        let (mut bytes, mut expected) = (from.manifest(name.wanted()).await?, name.digest.clone());
        for _ in 0..=INDEX_DEPTH_MAX {
            let found = Digest::of(&bytes);
            if let Some(expected) = expected.filter(|expected| *expected != found) {
                let what = format!("manifest of {name}");
                return Err(ImageError::Mismatch {
                    what,
                    expected: expected.to_string(),
                    found: found.to_string(),
                });
            }
            match Document::parse(&bytes, &name.to_string())? {
                Document::Index(entries) => {
                    let Platform { os, architecture, .. } = &*self.platform;
                    let missing = || ImageError::Platform(format!("{os}/{architecture}"));
                    let entry = choose(&entries, &self.platform).ok_or_else(missing)?;
                    bytes = from.manifest(entry.digest.as_str()).await?;
                    expected = Some(entry.digest.clone());
                }
                Document::Manifest(manifest) => {
                    if manifest.config.size > DOCUMENT_BYTES_MAX {
                        let what = format!("configuration of {name}");
                        return Err(ImageError::TooLarge { what, limit: DOCUMENT_BYTES_MAX });
                    }
                    let mut fetches = Vec::new();
                    for part in manifest.layers.iter().chain([&manifest.config]) {
                        fetches.push(from.blob(store, part));
                    }
                    futures::stream::iter(fetches)
                        .buffer_unordered(LAYERS_AT_ONCE_MAX)
                        .try_collect::<()>()
                        .await?;
                    let digest = store.put(&bytes)?;
                    return store.tag(name, &digest);
                }
            }
        }
        Err(ImageError::TooLarge {
            what: format!("the depth of {name}'s index"),
            limit: INDEX_DEPTH_MAX as u64,
        })
    }

    fn base(&self, registry: &str) -> String {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let name = match registry.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => name,
            _ => registry,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let here = name == "localhost"
            || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let plain = here || self.plain.iter().any(|plain| plain == registry);
        format!("{}://{host}", if plain { "http" } else { "https" })
    }

    async fn send(&self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, ImageError> {
        let uri = request.uri().clone();
        let failed = |why: &dyn fmt::Display| {
            ImageError::Registry(format!("failed to do request: Get {:?}: {why}", uri.to_string()))
        };
        match tokio::time::timeout(SILENCE_MAX, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(&innermost(&error))),
            Err(_) => Err(failed(&"timeout awaiting response headers")),
        }
    }
}

/// What really went wrong, behind the layers of a client.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn told(name: &Reference, error: &ImageError) -> ImageError {
    let error = match error {
        ImageError::NotFound(_) | ImageError::Denied(_) | ImageError::Registry(_) => {
            format!("failed to resolve reference \"{name}\": {error}")
        }
        other => other.to_string(),
    };
    ImageError::Registry(format!("failed to pull and unpack image \"{name}\": {error}"))
}

/// One image's repository, as one user sees it.
struct From<'a> {
    registry: &'a Registry,
    name: &'a Reference,
    credential: Option<&'a Credential>,
}

impl From<'_> {
    fn url(&self, kind: &str, what: &str) -> String {
        format!("{}/v2/{}/{kind}/{what}", self.registry.base(&self.name.registry), self.name.repository)
    }

    async fn manifest(&self, wanted: &str) -> Result<Bytes, ImageError> {
        let response = self.get(&self.url("manifests", wanted)).await?;
        let limited =
            Limited::new(response.into_body(), usize::try_from(DOCUMENT_BYTES_MAX).unwrap_or(usize::MAX));
        let collected = tokio::time::timeout(SILENCE_MAX, limited.collect()).await;
        let collected = collected.map_err(|_| self.silent())?;
        collected.map(http_body_util::Collected::to_bytes).map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                ImageError::TooLarge { what: format!("manifest of {}", self.name), limit: DOCUMENT_BYTES_MAX }
            } else {
                ImageError::Registry(format!("reading the manifest of {}: {error}", self.name))
            }
        })
    }

    fn silent(&self) -> ImageError {
        ImageError::Registry(format!("the registry of {} says nothing more", self.name))
    }

    async fn blob(&self, store: &ContentStore, part: &Descriptor) -> Result<(), ImageError> {
        if store.has(&part.digest) {
            return Ok(());
        }
        if part.size > self.registry.layer_bytes_max {
            let what = format!("layer {}", part.digest);
            return Err(ImageError::TooLarge { what, limit: self.registry.layer_bytes_max });
        }
        let response = self.get(&self.url("blobs", part.digest.as_str())).await?;
        let mut body = response.into_body();
        let mut writer = store.write()?;
        loop {
            let frame = tokio::time::timeout(SILENCE_MAX, body.frame()).await.map_err(|_| self.silent())?;
            let Some(frame) = frame else { break };
            let broken =
                |error: hyper::Error| ImageError::Registry(format!("reading {}: {error}", part.digest));
            if let Some(bytes) = frame.map_err(broken)?.data_ref() {
                writer.write(bytes)?;
            }
            // More than was promised is not read to its end.
            if writer.size() > part.size {
                break;
            }
        }
        writer.commit(store, Some((&part.digest, part.size))).map(drop)
    }

    /// Asks, with a token if the registry wants one, and follows it elsewhere.
    async fn get(&self, url: &str) -> Result<Response<Incoming>, ImageError> {
        let key = format!(
            "{}/{} {}",
            self.name.registry,
            self.name.repository,
            self.credential.map_or("", |credential| &credential.user)
        );
        let known = self.registry.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let response = self.follow(url, known.as_deref()).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED {
            let Some(authorization) = self.authorization(&response).await? else {
                return Err(ImageError::Denied(self.name.to_string()));
            };
            let response = self.follow(url, Some(&authorization)).await?;
            let mut tokens = self.registry.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if tokens.len() >= TOKENS_MAX {
                tokens.clear();
            }
            tokens.insert(key, authorization);
            response
        } else {
            response
        };
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::NOT_FOUND => Err(ImageError::NotFound(self.name.to_string())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(ImageError::Denied(self.name.to_string()))
            }
            status => Err(ImageError::Registry(self.unexpected(status, response).await)),
        }
    }

    async fn unexpected(&self, status: StatusCode, response: Response<Incoming>) -> String {
        let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let said = serde_json::from_slice::<Errors>(&body).ok();
        let said: Vec<_> = said
            .into_iter()
            .flat_map(|said| said.errors)
            .map(|error| format!("{}: {}", error.code.to_lowercase(), error.message))
            .collect();
        format!("unexpected status from GET request to {}: {status}: {}", self.name, said.join(", "))
    }

    async fn follow(&self, url: &str, authorization: Option<&str>) -> Result<Response<Incoming>, ImageError> {
        let wrong = |why: String| ImageError::Registry(format!("{}: {why}", self.name));
        let mut uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
        let home = uri.authority().cloned();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::get(uri.clone());
            for kind in INDEX_TYPES.iter().chain(&MANIFEST_TYPES) {
                request = request.header(header::ACCEPT, *kind);
            }
            request = request.header(header::USER_AGENT, concat!("kplane/", env!("CARGO_PKG_VERSION")));
            // A token is not for those whom the registry sends us to.
            if let Some(authorization) = authorization.filter(|_| uri.authority() == home.as_ref()) {
                let value = HeaderValue::try_from(authorization).map_err(|error| wrong(error.to_string()))?;
                request = request.header(header::AUTHORIZATION, value);
            }
            let request = request.body(Empty::new()).map_err(|error| wrong(error.to_string()))?;
            let response = self.registry.send(request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            uri = elsewhere(&uri, location.unwrap_or_default())
                .ok_or_else(|| wrong("a bad redirection".to_owned()))?;
        }
        Err(wrong(format!("stopped after {REDIRECTS_MAX} redirects")))
    }

    /// What to say to a registry that answers 401: the password itself, or a token that its authority gives for it.
    async fn authorization(&self, response: &Response<Incoming>) -> Result<Option<String>, ImageError> {
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE);
        for challenge in challenges.iter().filter_map(|value| value.to_str().ok()) {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("basic") {
                return Ok(self.credential.map(basic));
            }
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(&parameters(rest)).await;
            }
        }
        Ok(None)
    }

    async fn token(&self, asked: &HashMap<String, String>) -> Result<Option<String>, ImageError> {
        let Some(realm) = asked.get("realm") else { return Ok(None) };
        let mut url = realm.clone();
        let scope = format!("repository:{}:pull", self.name.repository);
        let service = asked.get("service").map(String::as_str).unwrap_or_default();
        let scope = asked.get("scope").unwrap_or(&scope);
        for (name, value) in [("service", service), ("scope", scope)] {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={}", escaped(value)));
        }
        let wrong =
            |why: String| ImageError::Registry(format!("failed to authorize: failed to fetch token: {why}"));
        let mut request = Request::get(url);
        if let Some(credential) = self.credential {
            request = request.header(header::AUTHORIZATION, basic(credential));
        }
        let request = request.body(Empty::new()).map_err(|error| wrong(error.to_string()))?;
        let response = self.registry.send(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Ok(None),
            status => return Err(wrong(format!("unexpected status: {status}"))),
        }
        let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
        let body = body.map_err(|error| wrong(error.to_string()))?.to_bytes();
        let token: Token = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
        Ok(token.token.or(token.access_token).map(|token| format!("Bearer {token}")))
    }
}

fn basic(credential: &Credential) -> String {
    let pair =
        format!("{}:{}", credential.user, credential.identity_token.as_ref().unwrap_or(&credential.password));
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn elsewhere(from: &Uri, location: &str) -> Option<Uri> {
    if let Some(path) = location.strip_prefix('/').filter(|path| !path.starts_with('/')) {
        return format!("{}://{}/{path}", from.scheme_str()?, from.authority()?).parse().ok();
    }
    let uri: Uri = location.parse().ok()?;
    // From TLS nobody is sent to where there is none.
    let downgrade = from.scheme_str() == Some("https") && uri.scheme_str() != Some("https");
    (uri.authority().is_some() && !downgrade).then_some(uri)
}

/// `name="value",name=value`: commas in quotes do not separate.
fn parameters(text: &str) -> HashMap<String, String> {
    let (mut found, mut rest) = (HashMap::new(), text.trim());
    while let Some((name, after)) = rest.split_once('=') {
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(name.trim().to_lowercase(), value.trim().to_owned());
        rest = left.trim_start_matches([',', ' ']);
    }
    found
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let found = parameters(
            r#"realm="https://auth.example/token",service=r.example, scope="repository:a:pull,push""#,
        );
        assert_eq!(found["realm"], "https://auth.example/token");
        assert_eq!(found["service"], "r.example");
        assert_eq!(found["scope"], "repository:a:pull,push");
        assert!(parameters("nothing").is_empty());
    }

    #[test]
    fn redirections_keep_their_safety() {
        let check = |from: &str, location: &str, expected: Option<&str>| {
            let found = elsewhere(&from.parse().unwrap(), location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{from} {location}");
        };
        check("https://a/x", "/y?z", Some("https://a/y?z"));
        check("https://a/x", "https://b/y", Some("https://b/y"));
        check("https://a/x", "http://b/y", None);
        check("http://a/x", "http://b/y", Some("http://b/y"));
        check("https://a/x", "", None);
        check("https://a/x", "y", None);
    }
}
