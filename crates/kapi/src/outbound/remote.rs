//! A service outside of the cluster that the server asks or tells: a kubeconfig says where it is and how to log in.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;

use super::{Outbound, ProxyCredentials, Target, call};
use crate::config::{self, ConfigError, Section};

/// A service that is reached by a kubeconfig: that of `--authentication-token-webhook-config-file`,
/// `--authorization-webhook-config-file` and `--audit-webhook-config-file`. Connections are kept and used again.
pub struct Remote {
    outbound: Outbound,
    target: Target,
    login: Login,
}

enum Login {
    None,
    Header(HeaderValue),
    /// Read for each call, as tokens in files change.
    File(PathBuf),
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.target.url()).finish()
    }
}

/// The answer of a service.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// `Retry-After`, if it is said.
    pub(crate) wait: Option<Duration>,
    pub(crate) body: Bytes,
}

impl Remote {
    /// Reads a kubeconfig file; files that it names are looked for beside it.
    ///
    /// # Errors
    /// When it can't be read, or is none; the error names the field.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| ConfigError::new("", format!("{}: {error}", path.display())))?;
        Self::from_kubeconfig(&text, path.parent().unwrap_or(Path::new(".")))
    }

    /// Reads a kubeconfig: the cluster and user of its current context. Files are looked for in `folder`.
    ///
    /// ```
    /// use kapi::outbound::Remote;
    ///
    /// let text = "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: b}}],
    ///     clusters: [{name: b, cluster: {server: 'ftp://example.com'}}]}";
    /// let why = Remote::from_kubeconfig(text, ".".as_ref()).unwrap_err();
    /// assert_eq!(why.field, "clusters[0].cluster.server");
    /// ```
    ///
    /// # Errors
    /// When it is none; the error names the field.
    pub fn from_kubeconfig(text: &str, folder: &Path) -> Result<Self, ConfigError> {
        let document = config::read(text, "Config", &["v1"])?;
        let root = Section::root(&document)?;
        let named = |list: &str, name: &str, what: &str| -> Result<Section<'_>, ConfigError> {
            for item in root.sections(list)? {
                if item.text("name")? == name {
                    return item.section(what)?.ok_or_else(|| item.wrong(what, "Required value"));
                }
            }
            Err(root.wrong(list, format!("there is no {name:?}")))
        };
        let contexts = root.sections("contexts")?;
        let current = match (root.text("current-context")?, contexts.as_slice()) {
            ("", [one]) => one.text("name")?,
            ("", _) => return Err(root.wrong("current-context", "Required value")),
            (current, _) => current,
        };
        let context = named("contexts", current, "context")?;
        let cluster = named("clusters", context.required("cluster")?, "cluster")?;
        let data = |section: &Section<'_>, field: &str| -> Result<Option<Vec<u8>>, ConfigError> {
            let inline = format!("{field}-data");
            let encoded = section.text(&inline)?;
            if !encoded.is_empty() {
                let bytes = STANDARD.decode(encoded);
                return bytes.map(Some).map_err(|_| section.wrong(&inline, "is no base64"));
            }
            let path = section.text(field)?;
            if path.is_empty() {
                return Ok(None);
            }
            let path = folder.join(path);
            let bytes = fs::read(&path);
            bytes.map(Some).map_err(|error| section.wrong(field, format!("{}: {error}", path.display())))
        };
        let authority = data(&cluster, "certificate-authority")?.unwrap_or_default();
        let insecure = cluster.flag("insecure-skip-tls-verify")?.unwrap_or(false);
        let server = cluster.required("server")?;
        let target = Target::of_url(server, authority, true).map_err(|why| cluster.wrong("server", why))?;
        let target = Target { insecure, ..target };
        let mut outbound = Outbound::default();
        let mut login = Login::None;
        if !context.text("user")?.is_empty() {
            let user = named("users", context.text("user")?, "user")?;
            let text = |field: &str| -> Result<Option<String>, ConfigError> {
                let text = data(&user, field)?.map(String::from_utf8).transpose();
                text.map_err(|_| user.wrong(field, "is no PEM"))
            };
            match (text("client-certificate")?, text("client-key")?) {
                (Some(certificate_pem), Some(key_pem)) => {
                    outbound.credentials = Some(ProxyCredentials { certificate_pem, key_pem });
                }
                (None, None) => {}
                _ => return Err(user.wrong("client-key", "a certificate and its key belong together")),
            }
            login = self::login(&user, folder)?;
        }
        Ok(Self { outbound, target, login })
    }

    /// Posts JSON to the service.
    ///
    /// # Errors
    /// When there was no answer: why, in words.
    pub(crate) async fn post(&self, body: Bytes, limit: Duration) -> Result<Answer, String> {
        let mut request = http::Request::post(&self.target.path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json");
        let read;
        let login = match &self.login {
            Login::None => None,
            Login::Header(value) => Some(value),
            Login::File(path) => {
                let token = tokio::fs::read_to_string(path).await.map_err(|error| error.to_string())?;
                read = bearer(token.trim()).ok_or("the token is no header's value")?;
                Some(&read)
            }
        };
        if let Some(value) = login {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(body).map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(limit, call(&self.outbound, &self.target, None, request)).await;
        let (head, body) = answer.map_err(|_| format!("no answer within {limit:?}"))??;
        let wait = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Answer { status: head.status, wait: wait.map(Duration::from_secs), body })
    }

    /// Posts a review and reads what comes back; tries again, with growing waits, when the service is only busy or away
    /// (`apiserver/pkg/util/webhook.WithExponentialBackoff`).
    ///
    /// # Errors
    /// When there was no good answer: why, in words.
    pub(crate) async fn review(&self, review: &Value, limit: Duration) -> Result<Value, String> {
        let body = Bytes::from(serde_json::to_vec(review).map_err(|error| error.to_string())?);
        let mut wait = REVIEW_BACKOFF;
        let mut attempt = 1;
        loop {
            let (why, again) = match self.post(body.clone(), limit).await {
                Ok(answer) if answer.status.is_success() => {
                    return serde_json::from_slice(&answer.body).map_err(|error| error.to_string());
                }
                Ok(answer) => {
                    let busy =
                        answer.status == StatusCode::TOO_MANY_REQUESTS || answer.status.is_server_error();
                    (format!("the server answered {}", answer.status), busy || answer.wait.is_some())
                }
                Err(why) => (why, true),
            };
            if !again || attempt >= REVIEW_TRIES_MAX {
                return Err(why);
            }
            tracing::debug!(attempt, why, "a review is tried again");
            tokio::time::sleep(wait).await;
            wait = wait.mul_f64(1.5);
            attempt += 1;
        }
    }
}

/// How often a review is tried (`webhook.DefaultRetryBackoff` has five steps).
pub const REVIEW_TRIES_MAX: u32 = 5;
/// How long to wait before the second try; then half as long again each time.
const REVIEW_BACKOFF: Duration = Duration::from_millis(500);

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn login(user: &Section<'_>, folder: &Path) -> Result<Login, ConfigError> {
    let token = user.text("token")?;
    let file = user.text("tokenFile")?;
    if !file.is_empty() {
        return Ok(Login::File(folder.join(file)));
    }
    if !token.is_empty() {
        let value = bearer(token).ok_or_else(|| user.wrong("token", "is no header's value"))?;
        return Ok(Login::Header(value));
    }
    let name = user.text("username")?;
    if name.is_empty() {
        return Ok(Login::None);
    }
    let basic = STANDARD.encode(format!("{name}:{}", user.text("password")?));
    let value = HeaderValue::from_str(&format!("Basic {basic}"));
    let mut value = value.map_err(|_| user.wrong("password", "is no header's value"))?;
    value.set_sensitive(true);
    Ok(Login::Header(value))
}
