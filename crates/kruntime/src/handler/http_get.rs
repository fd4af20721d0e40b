//! Requests by HTTP and HTTPS.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Uri, header::LOCATION};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};
use tokio_util::task::AbortOnDropHandle;

use super::{ANSWER_BYTES_MAX, HandlerError, dial, pod_address, port};
use crate::agent::PodEntry;

/// How many requests are made for one answer: as many as Go's client follows redirects.
const REQUESTS_MAX: usize = 10;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    /// Where an answer says to go instead. `None`: that is another host, or makes no sense.
    fn redirected(&self, location: &str) -> Option<Self> {
        let uri: Uri = location.parse().ok()?;
        let is_tls = match uri.scheme_str() {
            None => self.is_tls,
            Some("http") => false,
            Some("https") => true,
            Some(_) => return None,
        };
        let Some(authority) = uri.authority() else {
            let path = match location {
                absolute if absolute.starts_with('/') => absolute.to_owned(),
                relative => {
                    let own = self.path.split('?').next().unwrap_or_default();
                    format!("{}/{relative}", own.rsplit_once('/').map_or("", |(dir, _)| dir))
                }
            };
            return Some(Self { path, ..self.clone() });
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        (host == self.host).then(|| Self { is_tls, host: host.to_owned(), port, path })
    }

    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// An answer with a status from 200 to 399 is a success. Redirects to the same host are followed; one to another host is a success with a
/// warning, which is given (upstream's `RedirectChecker`). Nobody's certificate is looked at.
pub(crate) async fn http_get(
    entry: &PodEntry,
    container: &Container,
    action: &HTTPGetAction,
) -> Result<Option<String>, HandlerError> {
    let path = action.path.as_deref().unwrap_or("/");
    let own = action.host.as_deref().filter(|host| !host.is_empty());
    let mut target = Target {
        is_tls: action.scheme.as_deref() == Some("HTTPS"),
        host: match own {
            Some(host) => host.to_owned(),
            None => pod_address(entry)?.to_string(),
        },
        port: port(container, &action.port)?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
    };
    for _ in 0..REQUESTS_MAX {
        let (response, _connection) = ask(entry, action, own, &target).await?;
        match response.status().as_u16() {
            200..=299 => return Ok(None),
            301 | 302 | 303 | 307 | 308 => {
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                match location.and_then(|location| target.redirected(location)) {
                    Some(next) => target = next,
                    None => return Ok(Some(terminated(response).await)),
                }
            }
            300..=399 => return Ok(Some(terminated(response).await)),
            status => return Err(HandlerError::Status(status)),
        }
    }
    Err(HandlerError::Bad("stopped after 10 redirects".to_owned()))
}

async fn terminated(response: Response<Incoming>) -> String {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    format!("Probe terminated redirects, Response body: {}", String::from_utf8_lossy(&body))
}

type Answer = (Response<Incoming>, AbortOnDropHandle<()>);

async fn ask(
    entry: &PodEntry,
    action: &HTTPGetAction,
    own: Option<&str>,
    target: &Target,
) -> Result<Answer, HandlerError> {
    let mut request = Request::get(&target.path);
    let mut has = [false; 3];
    for header in action.http_headers.iter().flatten() {
        for (has, name) in has.iter_mut().zip(["host", "user-agent", "accept"]) {
            *has |= header.name.eq_ignore_ascii_case(name);
        }
        request = request.header(&header.name, &header.value);
    }
    let defaults = [target.authority(), "kube-probe/1.37".to_owned(), "*/*".to_owned()];
    for ((has, name), value) in has.into_iter().zip(["host", "user-agent", "accept"]).zip(defaults) {
        if !has {
            request = request.header(name, value);
        }
    }
    let request = request.header("connection", "close").body(Full::<Bytes>::default())?;
    let stream = dial(entry, own, target.port).await?;
    if !target.is_tls {
        return send(stream, request).await;
    }
    let name = ServerName::try_from(target.host.clone());
    let name = name.map_err(|error| HandlerError::Bad(format!("{:?}: {error}", target.host)))?;
    let tls = TlsConnector::from(Arc::new(config()?)).connect(name, stream).await;
    send(tls.map_err(HandlerError::Tls)?, request).await
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, HandlerError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move { drop(connection.await) });
    let connection = AbortOnDropHandle::new(connection);
    Ok((sender.send_request(request).await?, connection))
}

fn config() -> Result<ClientConfig, HandlerError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| HandlerError::Bad(error.to_string()))?;
    let anybody = Arc::new(Anybody(provider));
    Ok(builder.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth())
}

/// Takes every certificate: a probe asks whether somebody answers, not who.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_with_the_host() {
        let from =
            Target { is_tls: false, host: "10.0.0.1".to_owned(), port: 8080, path: "/a/b?c".to_owned() };
        let to =
            |is_tls, port, path: &str| Some(Target { is_tls, port, path: path.to_owned(), ..from.clone() });
        let cases = [
            ("/ready", to(false, 8080, "/ready")),
            ("http://10.0.0.1:8080/x?y", to(false, 8080, "/x?y")),
            ("https://10.0.0.1/x", to(true, 443, "/x")),
            ("https://10.0.0.1:8443", to(true, 8443, "/")),
            ("http://10.0.0.2:8080/x", None),
            ("https://elsewhere.example/", None),
            ("ftp://10.0.0.1/", None),
            ("", None),
        ];
        for (location, expected) in cases {
            assert_eq!(from.redirected(location), expected, "{location}");
        }
        assert_eq!(Target { host: "fd00::1".to_owned(), ..from }.authority(), "[fd00::1]:8080");
    }
}
