//! Calls that the server makes to others: conversion webhooks and aggregated API servers.
//!
//! They name a service of the cluster or a URL. How a service is reached is a [`ServiceDialer`]'s matter: by its cluster IP
//! unless the embedder knows better. On a connection is spoken HTTP/1.1. Calls that post something use those again that
//! earlier calls have left ([`IDLE_MAX`]); requests that are passed on have one of their own.

mod pool;
mod remote;

use std::{fmt::Debug, io, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use self::pool::{Key, Pool};
pub use self::{
    pool::{IDLE_MAX, IDLE_MAX_PER_TARGET, IDLE_TIME_MAX},
    remote::{REVIEW_TRIES_MAX, Remote},
};
use crate::node::NodeConnection;

/// How long a call may take unless it says otherwise; upstream gives webhooks 30 seconds.
pub const CALL_MAX: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reaches the services of the cluster that the server itself calls.
///
/// Called with the port of the service whenever no earlier call has left a connection to it ([`IDLE_TIME_MAX`]). The server speaks TLS on it, so it
/// need not be trusted.
#[async_trait]
pub trait ServiceDialer: Debug + Send + Sync + 'static {
    /// Opens a connection to a port of a service. `cluster_ip` is the service's address, if it has one.
    ///
    /// # Errors
    /// When the service can't be reached; the caller sees it as the reason of a failed call.
    async fn dial(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
        cluster_ip: Option<&str>,
    ) -> io::Result<Box<dyn NodeConnection>>;
}

/// Connects to the cluster IP, which works wherever a service proxy runs beside the server: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterIps;

#[async_trait]
impl ServiceDialer for ClusterIps {
    async fn dial(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
        cluster_ip: Option<&str>,
    ) -> io::Result<Box<dyn NodeConnection>> {
        let address = cluster_ip.filter(|address| *address != "None").ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("service {name:?} in {namespace:?} has no cluster IP"),
            )
        })?;
        let stream = TcpStream::connect((address, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// The way out: how services are reached, and the certificate that the server shows to those it calls.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    pub(crate) dialer: Arc<dyn ServiceDialer>,
    pub(crate) credentials: Option<ProxyCredentials>,
    pool: Arc<Pool>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self { dialer: Arc::new(ClusterIps), credentials: None, pool: Arc::default() }
    }
}

/// The client certificate by which aggregated servers know that `X-Remote-User` is to be believed
/// (`--proxy-client-cert-file`, `--proxy-client-key-file`), in PEM.
#[derive(Clone)]
pub struct ProxyCredentials {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

impl std::fmt::Debug for ProxyCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProxyCredentials")
    }
}

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    place: Place,
    port: u16,
    /// The path of the call.
    pub(crate) path: String,
    /// Who signs the server's certificate, in PEM; where nobody is named the system's authorities are believed.
    authority: Vec<u8>,
    /// Whether the certificate is not looked at.
    insecure: bool,
    /// Whether nothing is encrypted.
    plain: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Service { namespace: String, name: String },
    Host(String),
}

impl Target {
    /// Reads a `WebhookClientConfig`: a service or a URL, and an authority.
    pub(crate) fn of_webhook(config: &Value) -> Result<Self, String> {
        let authority = STANDARD.decode(config["caBundle"].as_str().unwrap_or_default());
        let authority = authority.map_err(|error| format!("caBundle: {error}"))?;
        let service = &config["service"];
        if service.is_object() {
            let text = |key: &str| service[key].as_str().unwrap_or_default().to_owned();
            let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
            let place = Place::Service { namespace: text("namespace"), name: text("name") };
            let path = format!("/{}", text("path").trim_start_matches('/'));
            return Ok(Self { place, port, path, authority, insecure: false, plain: false });
        }
        let url = config["url"].as_str().ok_or("neither a service nor a URL is given")?;
        Self::of_url(url, authority, false)
    }

    /// Reads a URL, whose server's certificate is signed by `authority`. `plain`: it may be one without TLS.
    pub(crate) fn of_url(url: &str, authority: Vec<u8>, plain: bool) -> Result<Self, String> {
        let uri: http::Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        let (plain, port) = match uri.scheme_str() {
            Some("https") => (false, 443),
            Some("http") if plain => (true, 80),
            _ => return Err(format!("{url:?} does not begin with https")),
        };
        let host =
            uri.host().ok_or_else(|| format!("{url:?} has no host"))?.trim_matches(['[', ']']).to_owned();
        let path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
        let place = Place::Host(host);
        Ok(Self { place, port: uri.port_u16().unwrap_or(port), path, authority, insecure: false, plain })
    }

    /// Reads the `spec` of an `APIService` that names a service; `None`: it is served locally.
    pub(crate) fn of_api_service(spec: &Value) -> Result<Option<Self>, String> {
        let service = &spec["service"];
        if !service.is_object() {
            return Ok(None);
        }
        let mut target =
            Self::of_webhook(&serde_json::json!({"service": service, "caBundle": spec["caBundle"]}))?;
        target.insecure = spec["insecureSkipTLSVerify"] == true;
        Ok(Some(target))
    }

    /// The name that the server's certificate must be for.
    fn server_name(&self) -> String {
        match &self.place {
            Place::Service { namespace, name } => format!("{name}.{namespace}.svc"),
            Place::Host(host) => host.clone(),
        }
    }

    /// Where the call goes, for messages.
    pub(crate) fn url(&self) -> String {
        let name = self.server_name();
        let is_usual = matches!(self.place, Place::Host(_)) && self.port == 443;
        if is_usual {
            format!("https://{name}{}", self.path)
        } else {
            format!("https://{name}:{}{}", self.port, self.path)
        }
    }

    /// The service, if it is one.
    pub(crate) fn service(&self) -> Option<(&str, &str)> {
        match &self.place {
            Place::Service { namespace, name } => Some((namespace, name)),
            Place::Host(_) => None,
        }
    }

    fn tls(&self, credentials: Option<&ProxyCredentials>) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        if self.insecure {
            return with_credentials(without_verification(builder, provider), credentials);
        }
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authority) {
            let added = certificate
                .map_err(|error| error.to_string())
                .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
            added.map_err(|error| format!("caBundle: {error}"))?;
        }
        if roots.is_empty() {
            if !self.authority.is_empty() {
                return Err("caBundle holds no certificate".to_owned());
            }
            // Some of a system's authorities are of kinds that are not supported: those are not believed.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            return Err("there is no caBundle, and the system has no authorities".to_owned());
        }
        with_credentials(builder.with_root_certificates(roots), credentials)
    }
}

/// Neither the server's own machine, unless the whole cluster is there, nor what is only near it (upstream's `IsProxyableIP`): for
/// addresses that somebody wrote into a status or an endpoint.
pub(crate) fn may_be_reached(address: IpAddr, loopback: bool) -> bool {
    let address = address.to_canonical();
    let near = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80 || v6.is_multicast(),
    };
    !near && !address.is_unspecified() && (loopback || !address.is_loopback())
}

/// TLS that takes any certificate.
pub(crate) fn without_verification(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
}

/// TLS that shows this certificate, if there is one.
pub(crate) fn with_credentials(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    credentials: Option<&ProxyCredentials>,
) -> Result<ClientConfig, String> {
    let Some(ProxyCredentials { certificate_pem, key_pem }) = credentials else {
        return Ok(builder.with_no_client_auth());
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes()).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| error.to_string())?;
    builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
}

/// Takes any certificate, as `insecureSkipTLSVerify` asks for.
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS to an address without looking at the certificate, as the API's own proxy speaks to pods and services.
///
/// # Errors
/// What went wrong, in words.
pub(crate) async fn unverified(
    stream: TcpStream,
    address: IpAddr,
) -> Result<Box<dyn NodeConnection>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = without_verification(builder, provider).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::IpAddress(address.into()), stream).await;
    stream.map(|stream| Box::new(stream) as Box<dyn NodeConnection>).map_err(|error| error.to_string())
}

/// Opens a connection to where a call goes.
async fn connect<B>(
    outbound: &Outbound,
    target: &Target,
    cluster_ip: Option<&str>,
) -> Result<http1::SendRequest<B>, String>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let words = |error: &dyn std::error::Error| error.to_string();
    let stream = match &target.place {
        Place::Service { namespace, name } => {
            outbound.dialer.dial(namespace, name, target.port, cluster_ip).await
        }
        Place::Host(host) => {
            let connected = TcpStream::connect((host.as_str(), target.port)).await;
            connected.map(|stream| Box::new(stream) as Box<dyn NodeConnection>)
        }
    };
    let stream = stream.map_err(|error| words(&error))?;
    if target.plain {
        return speak(TokioIo::new(stream)).await;
    }
    let server = ServerName::try_from(target.server_name()).map_err(|error| words(&error))?;
    let connector = TlsConnector::from(Arc::new(target.tls(outbound.credentials.as_ref())?));
    speak(TokioIo::new(connector.connect(server, stream).await.map_err(|error| words(&error))?)).await
}

async fn speak<B, I>(stream: I) -> Result<http1::SendRequest<B>, String>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
    // The task ends with the connection, which ends when its sender is dropped and the answer has been read or dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to another server ended");
        }
    });
    Ok(sender)
}

fn name_host<B>(target: &Target, request: &mut Request<B>) {
    let name = target.server_name();
    let usual = matches!(target.place, Place::Service { .. }) || [80, 443].contains(&target.port);
    let host = if usual { name } else { format!("{name}:{}", target.port) };
    if let Ok(host) = http::HeaderValue::from_str(&host) {
        request.headers_mut().insert(http::header::HOST, host);
    }
}

/// Sends a request and gives the answer as it begins; the body is the caller's to read. `cluster_ip` is that of the target's
/// service.
///
/// # Errors
/// What went wrong, in words.
pub(crate) async fn send<B>(
    outbound: &Outbound,
    target: &Target,
    cluster_ip: Option<&str>,
    mut request: Request<B>,
) -> Result<Response<Incoming>, String>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut sender = connect(outbound, target, cluster_ip).await?;
    name_host(target, &mut request);
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// Sends a request over a connection that is there, or a new one, and reads the whole answer.
///
/// # Errors
/// What went wrong, in words.
pub(crate) async fn call(
    outbound: &Outbound,
    target: &Target,
    cluster_ip: Option<&str>,
    request: Request<Bytes>,
) -> Result<(http::response::Parts, Bytes), String> {
    let mut request = request.map(Full::new);
    name_host(target, &mut request);
    let key = Key::new(target, cluster_ip);
    // What the other side closed in the meantime took nothing of the request, which goes over the next connection then.
    let (mut sender, answer) = loop {
        let kept = outbound.pool.take(&key);
        let is_new = kept.is_none();
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(outbound, target, cluster_ip).await?,
        };
        match sender.try_send_request(request).await {
            Ok(answer) => break (sender, answer),
            Err(mut error) => match error.take_message() {
                Some(unsent) if !is_new => request = unsent,
                _ => return Err(error.into_error().to_string()),
            },
        }
    };
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    if sender.ready().await.is_ok() {
        outbound.pool.put(key, sender);
    }
    Ok((head, body.to_bytes()))
}

/// Gets a document, which must be there.
///
/// # Errors
/// What went wrong, in words.
pub(crate) async fn get(outbound: &Outbound, target: &Target, limit: Duration) -> Result<Bytes, String> {
    let request = Request::get(&target.path)
        .header(http::header::ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(limit, call(outbound, target, None, request)).await;
    let (head, body) = answer.map_err(|_| format!("no answer within {limit:?}"))??;
    if !head.status.is_success() {
        return Err(format!("the server answered {}", head.status));
    }
    Ok(body)
}

/// Posts JSON and reads the answer, which must be a success.
///
/// # Errors
/// What went wrong, in words.
pub(crate) async fn post(
    outbound: &Outbound,
    target: &Target,
    cluster_ip: Option<&str>,
    body: &Value,
    limit: Duration,
) -> Result<Value, String> {
    let bytes = serde_json::to_vec(body).map_err(|error| error.to_string())?;
    let request = Request::post(&target.path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json")
        .body(Bytes::from(bytes))
        .map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(limit, call(outbound, target, cluster_ip, request)).await;
    let (head, body) = answer.map_err(|_| format!("no answer within {limit:?}"))??;
    if !head.status.is_success() {
        return Err(format!("the server answered {}", head.status));
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_near_the_server_is_not_reached() {
        for (address, loopback, expected) in [
            ("10.0.0.1", false, true),
            ("127.0.0.1", false, false),
            ("127.0.0.1", true, true),
            ("169.254.169.254", true, false),
            ("224.0.0.1", false, false),
            ("0.0.0.0", true, false),
            ("fe80::1", true, false),
            ("::1", false, false),
            ("2001:db8::1", false, true),
            ("::ffff:127.0.0.1", false, false),
            ("::ffff:169.254.169.254", true, false),
        ] {
            assert_eq!(may_be_reached(address.parse().unwrap(), loopback), expected, "{address}");
        }
    }

    #[test]
    fn targets_are_read_as_upstream_does() {
        for (config, expected) in [
            (
                json!({"url": "https://hooks.example.com/convert?x=1"}),
                Ok(("hooks.example.com", 443, "/convert?x=1")),
            ),
            (json!({"url": "https://127.0.0.1:8443"}), Ok(("127.0.0.1", 8443, "/"))),
            (json!({"service": {"namespace": "a", "name": "b"}}), Ok(("b.a.svc", 443, "/"))),
            (
                json!({"service": {"namespace": "a", "name": "b", "path": "c", "port": 9443}}),
                Ok(("b.a.svc", 9443, "/c")),
            ),
            (json!({"url": "http://example.com"}), Err("\"http://example.com\" does not begin with https")),
            (json!({}), Err("neither a service nor a URL is given")),
        ] {
            let found = Target::of_webhook(&config);
            match (&found, expected) {
                (Ok(target), Ok((name, port, path))) => {
                    assert_eq!((&*target.server_name(), target.port, &*target.path), (name, port, path));
                }
                (Err(error), Err(expected)) => assert_eq!(error, expected),
                _ => panic!("{config}: {found:?}"),
            }
        }
    }
}
