//! Agents of nodes in other processes and on other machines, over TLS, as kube-apiserver reaches its kubelets (Kubernetes,
//! "Communication between Nodes and the Control Plane").

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{NodeConnection, NodeDialer, NodeTarget};
use crate::outbound::{self, ProxyCredentials};

/// Which address of a node is taken: the first that it has of a type, in this order (`--kubelet-preferred-address-types`, as kubeadm
/// sets it). Upstream's own default begins with host names, which few networks resolve.
pub const ADDRESS_TYPES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];
/// The port of a node that tells none.
pub const KUBELET_PORT: u16 = 10250;
/// How long connecting may take (that of Go's `net/http`).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the TLS handshake may take (that of Go's `net/http`).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whose serving certificates of nodes are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServingAuthority {
    /// Nobody's: nodes are not reached.
    #[default]
    Nobody,
    /// Those that one of these authorities has signed, in PEM.
    Pem(String),
    /// A certificate is not looked at, as upstream does unless it is told otherwise, since what a kubelet makes for itself is signed
    /// by nobody. Whoever can answer at a node's address is taken for the node then, and sees what is sent to it.
    Unchecked,
}

/// How nodes are reached.
#[derive(Clone)]
pub struct KubeletOptions {
    /// The client certificate and its key, in PEM, by which nodes know the server (`--kubelet-client-certificate`,
    /// `--kubelet-client-key`). Without it they refuse everything.
    pub identity: Option<(String, String)>,
    /// Whose serving certificates are believed (`--kubelet-certificate-authority`). Default: nobody's, so that no node is reached.
    pub authority: ServingAuthority,
    /// The types of addresses, the preferred first. Default: [`ADDRESS_TYPES`].
    pub address_types: Vec<String>,
    /// Whether loopback addresses are reached: where nodes share a machine with the server. Default: no, so that no node can have the
    /// server talk to itself. Addresses that are only near (RFC 3927) never are.
    pub loopback: bool,
}

impl Default for KubeletOptions {
    fn default() -> Self {
        let address_types = ADDRESS_TYPES.map(str::to_owned).to_vec();
        Self { identity: None, authority: ServingAuthority::Nobody, address_types, loopback: false }
    }
}

impl fmt::Debug for KubeletOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeletOptions")
            .field("identity", &self.identity.is_some())
            .field("authority", &self.authority)
            .field("address_types", &self.address_types)
            .field("loopback", &self.loopback)
            .finish()
    }
}

/// Why nodes can't be reached like this.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeletDialerError {
    /// The authority is none.
    #[error("the authority of nodes' certificates can't be used: {0}")]
    Authority(String),
    /// Certificate or key can't be used.
    #[error("the certificate for nodes can't be used: {0}")]
    Identity(String),
}

/// Reaches nodes by the addresses and the port of their status.
#[derive(Clone)]
pub struct KubeletDialer {
    /// None: no certificate is believed.
    connector: Option<TlsConnector>,
    address_types: Vec<String>,
    loopback: bool,
}

impl fmt::Debug for KubeletDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeletDialer")
            .field("address_types", &self.address_types)
            .field("loopback", &self.loopback)
            .finish_non_exhaustive()
    }
}

impl KubeletDialer {
    /// A way with these options.
    ///
    /// # Errors
    /// When a certificate or key is none.
    pub fn new(options: KubeletOptions) -> Result<Self, KubeletDialerError> {
        let wrong = |error: &dyn fmt::Display| KubeletDialerError::Authority(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| wrong(&error))?;
        let (builder, reaches) = match &options.authority {
            ServingAuthority::Nobody => (builder.with_root_certificates(RootCertStore::empty()), false),
            ServingAuthority::Unchecked => (outbound::without_verification(builder, provider), true),
            ServingAuthority::Pem(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|error| wrong(&error))?;
                    roots.add(certificate).map_err(|error| wrong(&error))?;
                }
                if roots.is_empty() {
                    return Err(wrong(&"there is no certificate"));
                }
                (builder.with_root_certificates(roots), true)
            }
        };
        let identity =
            options.identity.map(|(certificate_pem, key_pem)| ProxyCredentials { certificate_pem, key_pem });
        let config = outbound::with_credentials(builder, identity.as_ref());
        let config = config.map_err(KubeletDialerError::Identity)?;
        let connector = reaches.then(|| TlsConnector::from(Arc::new(config)));
        Ok(Self { connector, address_types: options.address_types, loopback: options.loopback })
    }

    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut last = None;
        for address in lookup_host((host, port)).await? {
            if !outbound::may_be_reached(address.ip(), self.loopback) {
                last = Some(io::Error::new(io::ErrorKind::PermissionDenied, "address not allowed"));
                continue;
            }
            match open(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
    }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The address to reach a node at (upstream's `GetPreferredNodeAddress`).
fn preferred<'a>(node: &'a NodeTarget, types: &[String]) -> Result<&'a str, String> {
    let of = |type_: &String| node.addresses.iter().find(|(found, _)| found == type_);
    let found = types.iter().find_map(of).map(|(_, address)| address.as_str());
    found.ok_or_else(|| {
        let known: Vec<String> = node.addresses.iter().map(|(type_, _)| type_.clone()).collect();
        format!("no preferred addresses found; known addresses: [{}]", known.join(" "))
    })
}

#[async_trait]
impl NodeDialer for KubeletDialer {
    async fn dial(&self, node: &NodeTarget) -> io::Result<Box<dyn NodeConnection>> {
        let Some(connector) = &self.connector else {
            let why = "no authority is given whose serving certificates of nodes are believed (--kubelet-certificate-authority)";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        };
        let host = preferred(node, &self.address_types).map_err(io::Error::other)?;
        let stream = self.connect(host, node.port.unwrap_or(KUBELET_PORT)).await?;
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await??;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The order is that of the types, not that of the node (cases of upstream's `TestGetPreferredNodeAddress`).
    #[test]
    fn the_preferred_address_is_taken() {
        let node = json!({"status": {
            "addresses": [
                {"type": "ExternalIP", "address": "1.2.3.5"},
                {"type": "ExternalIP", "address": "1.2.3.6"},
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "Hostname", "address": "localhost"},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 1234}},
        }});
        let node = NodeTarget::of("n", Some(&node));
        assert_eq!(node.port, Some(1234));
        for (types, expected) in [
            (&["InternalIP", "ExternalIP"][..], Ok("10.0.0.1")),
            (&["ExternalIP", "InternalIP"], Ok("1.2.3.5")),
            (&["InternalDNS", "Hostname"], Ok("localhost")),
            (
                &["InternalDNS"],
                Err(
                    "no preferred addresses found; known addresses: [ExternalIP ExternalIP InternalIP Hostname]",
                ),
            ),
            (
                &[],
                Err(
                    "no preferred addresses found; known addresses: [ExternalIP ExternalIP InternalIP Hostname]",
                ),
            ),
        ] {
            let types: Vec<String> = types.iter().map(|type_| (*type_).to_owned()).collect();
            assert_eq!(preferred(&node, &types), expected.map_err(str::to_owned), "{types:?}");
        }
    }

    #[test]
    fn a_status_that_says_nothing_gives_no_way() {
        let empty = |name: &str| NodeTarget { name: name.to_owned(), ..NodeTarget::default() };
        for port in [json!(0), json!(70_000), json!(-1), json!("10250"), json!(null)] {
            let node = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
            assert_eq!(NodeTarget::of("n", Some(&node)), empty("n"), "{node}");
        }
        assert_eq!(NodeTarget::of("n", None), empty("n"));
    }

    #[test]
    fn texts_that_are_no_certificates_are_refused() {
        for options in [
            KubeletOptions { authority: ServingAuthority::Pem("x".to_owned()), ..KubeletOptions::default() },
            KubeletOptions { identity: Some(("x".to_owned(), "y".to_owned())), ..KubeletOptions::default() },
        ] {
            let shown = format!("{options:?}");
            assert!(KubeletDialer::new(options).is_err(), "{shown}");
        }
    }

    /// A node says itself where it is: it must not be able to have the server call itself, or the cloud's metadata service.
    #[tokio::test]
    async fn addresses_near_the_server_are_not_reached() {
        let authority = ServingAuthority::Unchecked;
        let dialer = KubeletDialer::new(KubeletOptions { authority, ..KubeletOptions::default() }).unwrap();
        for address in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "fe80::1", "localhost"] {
            let addresses = vec![("InternalIP".to_owned(), address.to_owned())];
            let node = NodeTarget { name: "n".to_owned(), addresses, port: Some(1) };
            let refused = dialer.dial(&node).await.err().map(|error| error.to_string());
            assert_eq!(refused.as_deref(), Some("address not allowed"), "{address}");
        }
    }

    #[tokio::test]
    async fn without_an_authority_no_node_is_reached() {
        let dialer =
            KubeletDialer::new(KubeletOptions { loopback: true, ..KubeletOptions::default() }).unwrap();
        let addresses = vec![("InternalIP".to_owned(), "127.0.0.1".to_owned())];
        let node = NodeTarget { name: "n".to_owned(), addresses, port: Some(1) };
        let refused = dialer.dial(&node).await.err().map(|error| error.to_string());
        assert!(refused.is_some_and(|why| why.contains("--kubelet-certificate-authority")));
    }
}
