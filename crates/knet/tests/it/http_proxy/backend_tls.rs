//! Backends that are spoken to by TLS: whom the proxy believes, and what it asks for.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use knet::http_proxy::{Action, Authorities, BackendProtocol, BackendTls, RouteTable, SubjectName};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, string::Ia5String,
};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::parts::{Client, backend, one_rule, proxy};

pub(crate) type Issuer = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn authorities(issuer: &Issuer) -> Authorities {
    Authorities::from_pem(issuer.pem().as_bytes()).unwrap()
}

/// Serves with a certificate that has these names, and answers with the name that was asked for, the protocol, the scheme and the host.
pub(crate) async fn serve(issuer: &Issuer, names: &[SanType]) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = names.to_vec();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config =
        config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Who does not believe it goes away.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
                let service = service_fn(move |request: Request<Incoming>| {
                    let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
                    let scheme = request.uri().scheme_str().unwrap_or("-");
                    let host = host.unwrap_or_else(|| request.uri().host().unwrap().to_owned());
                    let text = format!("{name} {:?} {scheme} {host}", request.version());
                    async move {
                        request.into_body().collect().await.unwrap();
                        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
                    }
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn sealed(endpoint: SocketAddr, protocol: BackendProtocol, tls: BackendTls) -> RouteTable {
    let mut backend = backend(&[endpoint]);
    backend.protocol = protocol;
    backend.tls = Some(tls);
    one_rule(Action::Forward(vec![backend]))
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).unwrap())
}

#[tokio::test]
async fn backends_are_spoken_to_by_tls() {
    let issuer = authority();
    let endpoint = serve(&issuer, &[dns("web.example")]).await;
    let tls = || BackendTls::new("web.example", &[], &authorities(&issuer)).unwrap();
    assert_eq!(tls(), tls(), "connections are shared by policies that say the same");
    for (protocol, expected) in [
        (BackendProtocol::Http1, "web.example HTTP/1.1 - shop.example"),
        (BackendProtocol::Http2, "web.example HTTP/2.0 https shop.example"),
    ] {
        let (_proxy, address) = proxy(sealed(endpoint, protocol, tls())).await;
        let mut client = Client::http1(address).await;
        for _ in 0..3 {
            assert_eq!(client.post("text").await, (200, expected.to_owned()));
        }
    }
}

/// Who is not whom it should be gets nothing, and the client is told that the backend has failed.
#[tokio::test]
async fn backends_have_to_prove_who_they_are() {
    let (issuer, stranger) = (authority(), authority());
    let uri = "spiffe://cluster.example/web";
    let names = [dns("web.example"), dns("*.wild.example"), SanType::URI(uri.try_into().unwrap())];
    let endpoint = serve(&issuer, &names).await;
    let host = |name: &str| SubjectName::Host(name.into());
    let cases: [(&str, Vec<SubjectName>, &Issuer, u16); 11] = [
        ("web.example", vec![], &issuer, 200),
        ("a.wild.example", vec![], &issuer, 200),
        ("other.example", vec![], &issuer, 502),
        ("web.example", vec![], &stranger, 502),
        // With names of its own the one that is asked for proves nothing.
        ("other.example", vec![host("web.example")], &issuer, 200),
        ("web.example", vec![host("other.example")], &issuer, 502),
        ("web.example", vec![host("other.example"), host("*.wild.example")], &issuer, 200),
        ("web.example", vec![host("*.example")], &issuer, 502),
        ("other.example", vec![SubjectName::Uri(uri.into())], &issuer, 200),
        ("web.example", vec![SubjectName::Uri("spiffe://cluster.example/other".into())], &issuer, 502),
        ("other.example", vec![SubjectName::Uri(uri.into())], &stranger, 502),
    ];
    for (asked, names, believed, expected) in cases {
        let tls = BackendTls::new(asked, &names, &authorities(believed)).unwrap();
        let (_proxy, address) = proxy(sealed(endpoint, BackendProtocol::Http1, tls)).await;
        let (status, body) = Client::http1(address).await.post("text").await;
        assert_eq!(status, expected, "{asked} {names:?}: {body}");
        assert!(status != 200 || body.starts_with(asked), "{body}");
    }
}

/// A connection that was made by other rules is not used: another policy, or none.
#[tokio::test]
async fn connections_are_shared_by_equals_alone() {
    let (issuer, stranger) = (authority(), authority());
    let endpoint = serve(&issuer, &[dns("web.example")]).await;
    let by = |issuer: &Issuer| {
        let tls = BackendTls::new("web.example", &[], &authorities(issuer)).unwrap();
        sealed(endpoint, BackendProtocol::Http1, tls)
    };
    let (proxy, address) = proxy(by(&issuer)).await;
    let mut client = Client::http1(address).await;
    assert_eq!(client.get("/").await.0, 200);
    proxy.set_table(by(&stranger));
    assert_eq!(client.get("/").await.0, 502);
    proxy.set_table(one_rule(Action::Forward(vec![backend(&[endpoint])])));
    assert_eq!(client.get("/").await.0, 502, "in the clear it is not understood");
    proxy.set_table(by(&issuer));
    assert_eq!(client.get("/").await.0, 200);
}

#[test]
fn what_is_no_authority_or_name_is_refused() {
    let issuer = authority();
    for bundle in ["", "text", &issuer.pem().replace("MII", "AAA")] {
        assert!(Authorities::from_pem(bundle.as_bytes()).is_err(), "{bundle}");
    }
    let authorities = authorities(&issuer);
    for (host, name) in [("no host", "a.example"), ("a.example", "no host"), ("a.example", "*")] {
        let error = BackendTls::new(host, &[SubjectName::Host(name.into())], &authorities).unwrap_err();
        assert!(error.to_string().contains("is no name of a host"), "{error}");
    }
    assert!(Authorities::all([]).is_err());
}
