//! How a node gets its certificates: by itself, or by asking the cluster (Kubernetes, "TLS bootstrapping").

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
    runtime::wait::await_condition,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use crate::{
    ca::{Credentials, to_pem},
    kubeconfig,
};

/// The signers of upstream's for nodes.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// The group of all nodes.
const NODES: &str = "system:nodes";
/// How long a node that joins waits for its certificate (upstream's `requestNodeCertificate`).
pub const JOIN_WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a request for a further certificate is waited for before another one is made.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(15 * 60);

/// Why a node could not join a cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The request could not be made.
    #[error("the certificate could not be asked for")]
    Request(#[from] rcgen::Error),
    /// The API server could not be asked, or refused to be.
    #[error("the certificate could not be asked for")]
    Api(#[from] kube::Error),
    /// The answer could not be waited for.
    #[error("the certificate could not be waited for")]
    Wait(#[from] kube::runtime::wait::Error),
    /// Somebody denied the request, or it failed.
    #[error("the request {name} for a certificate was refused: {why}")]
    Refused {
        /// The request's name.
        name: String,
        /// What its condition says.
        why: String,
    },
    /// Nobody decided on the request.
    #[error("the request {name} for a certificate was not approved and signed within {} s", waited.as_secs())]
    Undecided {
        /// The request's name.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The bootstrap kubeconfig has no authority.
    #[error("the kubeconfig to join with names no certificate authority")]
    Authority,
}

/// Joins a cluster by a kubeconfig that may ask for a node's certificate, such as one with a bootstrap token: makes a key, asks for
/// a client certificate as `system:node:NAME`, waits until somebody approves it (controllers do, where the asker may
/// `create certificatesigningrequests/nodeclient`), and gives the node's own kubeconfig.
///
/// # Errors
/// See [`JoinError`]; it waits for [`JOIN_WAIT_MAX`]. A request that was made stays; the next try makes another one.
pub async fn join(bootstrap: Config, name: &str) -> Result<String, JoinError> {
    let server = bootstrap.cluster_url.to_string();
    let authority: Vec<String> = bootstrap.root_cert.iter().flatten().map(|der| to_pem(der)).collect();
    if authority.is_empty() {
        return Err(JoinError::Authority);
    }
    let client = Client::try_from(bootstrap)?;
    let issued = client_certificate(&client, name, JOIN_WAIT_MAX).await?;
    Ok(kubeconfig::render(&server, &authority.concat(), &issued))
}

/// Asks for a client certificate as `system:node:NAME`.
pub(super) async fn client_certificate(
    client: &Client,
    name: &str,
    wait: Duration,
) -> Result<Credentials, JoinError> {
    request(client, CLIENT_SIGNER, name, (&[], &["digital signature", "client auth"]), wait).await
}

/// Asks for a serving certificate for the node's name and address.
pub(super) async fn serving_certificate(
    client: &Client,
    name: &str,
    address: IpAddr,
    wait: Duration,
) -> Result<Credentials, JoinError> {
    let names = match rcgen::string::Ia5String::try_from(name) {
        Ok(host) => vec![SanType::DnsName(host), SanType::IpAddress(address)],
        Err(_) => vec![SanType::IpAddress(address)],
    };
    request(client, SERVING_SIGNER, name, (&names, &["digital signature", "server auth"]), wait).await
}

async fn request(
    client: &Client,
    signer: &str,
    node: &str,
    (names, usages): (&[SanType], &[&str]),
    wait: Duration,
) -> Result<Credentials, JoinError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.subject_alt_names = names.to_vec();
    let asked = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(params.serialize_request(&key)?.pem()?.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = requests.create(&PostParams::default(), &asked).await?;
    let name = made.metadata.name.unwrap_or_default();
    let decided = |found: Option<&CertificateSigningRequest>| {
        // One that is gone is not waited for.
        found.is_none_or(|found| certificate(found).is_some() || refusal(found).is_some())
    };
    let found = tokio::time::timeout(wait, await_condition(requests, &name, decided)).await;
    let found = found.map_err(|_elapsed| JoinError::Undecided { name: name.clone(), waited: wait })??;
    match found.as_ref().and_then(certificate) {
        Some(certificate_pem) => Ok(Credentials { certificate_pem, key_pem: key.serialize_pem() }),
        None => {
            let why = found.as_ref().and_then(refusal).unwrap_or_else(|| "it is gone".to_owned());
            Err(JoinError::Refused { name, why })
        }
    }
}

fn certificate(found: &CertificateSigningRequest) -> Option<String> {
    let bytes = &found.status.as_ref()?.certificate.as_ref()?.0;
    String::from_utf8(bytes.clone()).ok().filter(|text| !text.is_empty())
}

fn refusal(found: &CertificateSigningRequest) -> Option<String> {
    let conditions = found.status.as_ref()?.conditions.as_ref()?;
    let refused = conditions.iter().find(|one| ["Denied", "Failed"].contains(&one.type_.as_str()))?;
    let message = refused.message.as_deref().or(refused.reason.as_deref());
    Some(message.unwrap_or(&refused.type_).to_owned())
}

/// The certificate that the node has made for itself, now or at an earlier start.
pub(super) fn self_made(dir: &Path, name: &str, address: IpAddr) -> io::Result<Credentials> {
    let (certificate, key) = (dir.join("kubelet.crt"), dir.join("kubelet.key"));
    if let (Ok(certificate_pem), Ok(key_pem)) = (fs::read_to_string(&certificate), fs::read_to_string(&key)) {
        return Ok(Credentials { certificate_pem, key_pem });
    }
    let names = vec![name.to_owned(), address.to_string()];
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    let credentials =
        Credentials { certificate_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() };
    // The certificate comes last: one without its key would be of no use.
    write_private(&key, &credentials.key_pem)?;
    write_private(&certificate, &credentials.certificate_pem)?;
    Ok(credentials)
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_keeps_the_certificate_that_it_made() {
        let dir = tempfile::tempdir().unwrap();
        let made = || self_made(dir.path(), "n", [127, 0, 0, 1].into()).unwrap();
        let (first, second) = (made(), made());
        assert_eq!(first.certificate_pem, second.certificate_pem);
        let mode = fs::metadata(dir.path().join("kubelet.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(dir.path().join("kubelet.key")).unwrap();
        assert_ne!(
            made().certificate_pem,
            first.certificate_pem,
            "a certificate without its key is of no use"
        );
    }

    #[test]
    fn requests_are_decided_by_their_status() {
        let of = |status: Value| -> CertificateSigningRequest {
            let spec = json!({"request": "", "signerName": "s"});
            serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
        };
        let condition = |type_: &str| json!([{"type": type_, "status": "True", "message": "because"}]);
        for (status, has, why) in [
            (json!({}), false, None),
            (json!({"conditions": condition("Approved")}), false, None),
            (json!({"conditions": condition("Denied")}), false, Some("because")),
            (json!({"conditions": condition("Failed")}), false, Some("because")),
            (json!({"conditions": condition("Approved"), "certificate": "eA=="}), true, None),
            (json!({"conditions": condition("Approved"), "certificate": ""}), false, None),
        ] {
            let found = of(status.clone());
            assert_eq!(certificate(&found).is_some(), has, "{status}");
            assert_eq!(refusal(&found).as_deref(), why, "{status}");
        }
    }
}
