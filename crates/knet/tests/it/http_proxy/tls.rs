//! Certificates by name, and their exchange while connections are there.

use std::{net::SocketAddr, sync::Arc};

use knet::http_proxy::{Action, Certificate, HostName, Hosts, HttpProxy, ProxyOptions, RouteTable};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::parts::{Client, Echo, backend, one_rule};

fn made(name: &str) -> CertifiedKey<KeyPair> {
    generate_simple_self_signed([name.to_owned()]).unwrap()
}

fn certificate(made: &CertifiedKey<KeyPair>) -> Certificate {
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
}

fn tls_table(echo: SocketAddr, certificates: &[(&str, &CertifiedKey<KeyPair>)]) -> RouteTable {
    let mut table = one_rule(Action::Forward(vec![backend(&[echo])]));
    let mut routes = table.ports.remove(&80).unwrap();
    let mut hosts = Hosts::default();
    for (name, made) in certificates {
        hosts.insert(HostName::ingress(name), certificate(made));
    }
    routes.tls = Some(hosts);
    RouteTable { ports: [(443, routes)].into() }
}

/// A handshake with somebody who believes this certificate alone.
async fn handshake(
    address: SocketAddr,
    name: &str,
    believed: &CertifiedKey<KeyPair>,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(believed.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_exchanged_live() {
    let echo = Echo::start("echo").await;
    let (one, wild, default, next) =
        (made("one.example"), made("a.wild.example"), made("other.example"), made("one.example"));
    let options =
        ProxyOptions { default_certificate: Some(certificate(&default)), ..ProxyOptions::default() };
    let proxy = HttpProxy::new(options);
    proxy.set_table(tls_table(echo.address, &[("one.example", &one), ("*.wild.example", &wild)]));
    let address = proxy.serve(443, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    for (name, own) in [("one.example", &one), ("a.wild.example", &wild), ("other.example", &default)] {
        for other in [&one, &wild, &default] {
            let believed = std::ptr::eq(own, other);
            assert_eq!(handshake(address, name, other, &[]).await.is_ok(), believed, "{name}");
        }
    }
    let stream = handshake(address, "one.example", &one, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut two = Client::http2_over(stream).await;
    let stream = handshake(address, "one.example", &one, &["http/1.1"]).await.unwrap();
    let mut older = Client::http1_over(stream).await;
    assert_eq!(two.get("/").await, (200, "echo".to_owned()));
    assert_eq!(older.get("/").await, (200, "echo".to_owned()));
    assert_eq!(echo.seen().await.headers["x-forwarded-proto"], "https");
    proxy.set_table(tls_table(echo.address, &[("one.example", &next)]));
    assert!(handshake(address, "one.example", &one, &[]).await.is_err());
    assert!(handshake(address, "one.example", &next, &[]).await.is_ok());
    assert!(handshake(address, "a.wild.example", &wild, &[]).await.is_err());
    assert_eq!(two.get("/").await.0, 200, "connections that are there go on");
    assert_eq!(older.get("/").await.0, 200);
}

/// What one listener asks of connections holds for requests to its hosts, whatever connection they come on.
#[tokio::test]
async fn connections_are_for_one_listener() {
    use http::Request;
    use knet::http_proxy::{Match, PathMatch, PortRoutes, Rule};

    let (echo, own) = (Echo::start("echo").await, made("one.example"));
    let mut routes = PortRoutes::default();
    let action = Action::Forward(vec![backend(&[echo.address])]);
    let rule = Arc::new(Rule::new("all", Match::path(PathMatch::Prefix("/".into())), action));
    for host in ["*.example", "two.example"] {
        routes.add(HostName::gateway(host), HostName::gateway(host), Arc::clone(&rule));
    }
    routes.tls.get_or_insert_default().insert(HostName::Any, certificate(&own));
    let proxy = HttpProxy::new(ProxyOptions::default());
    proxy.set_table(RouteTable { ports: [(443, routes)].into() });
    let address = proxy.serve(443, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    let stream = handshake(address, "one.example", &own, &["http/1.1"]).await.unwrap();
    let mut client = Client::http1_over(stream).await;
    for (host, expected) in [
        ("one.example", 200),
        ("three.example", 200),
        ("two.example", 421),
        ("other", 421),
        ("one.example", 200),
    ] {
        let request = Request::get("/").header("host", host).body(super::parts::full("")).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{host}");
        // The next request waits until this answer was read.
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    }
}

/// The backend shows its own certificate; who asks for a name that nobody serves is turned away.
#[tokio::test]
async fn sealed_connections_pass_by_name() {
    use knet::http_proxy::{Match, PathMatch, PortRoutes, Rule};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let own = made("one.example");
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut text = [0; 4];
        stream.read_exact(&mut text).await.unwrap();
        stream.write_all(&text).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let dead = super::parts::dead_address().await;
    let action = Action::Forward(vec![backend(&[dead, endpoint])]);
    let rule = Arc::new(Rule::new("tls", Match::path(PathMatch::Prefix("/".into())), action));
    let mut routes = PortRoutes::default();
    routes.passthrough.entry(HostName::gateway("*.example")).insert(HostName::gateway("one.example"), rule);
    let proxy = HttpProxy::new(ProxyOptions::default());
    proxy.set_table(RouteTable { ports: [(443, routes)].into() });
    let address = proxy.serve(443, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    assert!(handshake(address, "two.example", &own, &[]).await.is_err());
    let mut stream = handshake(address, "one.example", &own, &[]).await.unwrap();
    stream.write_all(b"text").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "text");
}

#[test]
fn what_is_no_certificate_is_refused() {
    let (one, other) = (made("one.example"), made("other.example"));
    let (chain, key) = (one.cert.pem(), one.signing_key.serialize_pem());
    let wrong = other.signing_key.serialize_pem();
    for (chain, key, expected) in [
        ("", key.as_str(), "there is no certificate"),
        (chain.as_str(), "", "the private key is not PEM"),
        (chain.as_str(), wrong.as_str(), "keys may not be consistent"),
    ] {
        let error = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
