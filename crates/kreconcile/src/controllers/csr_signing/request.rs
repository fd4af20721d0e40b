//! What a certificate request asks for, and whether a signer may give it (upstream's `pkg/apis/certificates/helpers.go`).

use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
    prelude::FromDer,
};

/// The signer of client certificates for the API server.
pub(crate) const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// The signer of the nodes' client certificates.
pub(crate) const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// The signer of the nodes' server certificates.
pub(crate) const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
/// The signer that promises nothing; requests of `certificates.k8s.io/v1` can't name it.
pub(crate) const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// The parts of a certificate request (PKCS #10) that rules are about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ParsedRequest {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
    pub(crate) dns_names: usize,
    pub(crate) emails: usize,
    pub(crate) addresses: usize,
    pub(crate) uris: usize,
    /// The request itself, as it was signed.
    pub(crate) der: Vec<u8>,
}

/// Reads a request in PEM.
pub(crate) fn parse(pem: &[u8]) -> Result<ParsedRequest, &'static str> {
    let wrong_pem = "PEM block type must be CERTIFICATE REQUEST";
    let block = Pem::iter_from_buffer(pem).next().and_then(Result::ok).ok_or(wrong_pem)?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(wrong_pem);
    }
    let malformed = "the certificate request is malformed";
    let (rest, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|_parse_error| malformed)?;
    if !rest.is_empty() {
        return Err(malformed);
    }
    let subject = &request.certification_request_info.subject;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().map(ToOwned::to_owned).unwrap_or_default()
    };
    let mut parsed = ParsedRequest {
        common_name: subject.iter_common_name().last().map(text).unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
        ..ParsedRequest::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(_) => parsed.dns_names += 1,
                GeneralName::RFC822Name(_) => parsed.emails += 1,
                GeneralName::IPAddress(_) => parsed.addresses += 1,
                GeneralName::URI(_) => parsed.uris += 1,
                _ => {}
            }
        }
    }
    parsed.der = block.contents;
    Ok(parsed)
}

const SIGNATURE: &str = "digital signature";
const ENCIPHERMENT: &str = "key encipherment";
const CLIENT: &str = "client auth";
const SERVER: &str = "server auth";

/// Whether the usages are these two, with or without the encipherment of keys, which only RSA has.
fn are_usages(usages: &[String], auth: &str) -> bool {
    let known = |usage: &String| *usage == *SIGNATURE || *usage == *auth || *usage == *ENCIPHERMENT;
    let has = |wanted: &str| usages.iter().any(|usage| usage == wanted);
    usages.iter().all(known) && has(SIGNATURE) && has(auth)
}

/// Whether a node may have this client certificate.
pub(crate) fn check_node_client(request: &ParsedRequest, usages: &[String]) -> Result<(), String> {
    let why = if request.organizations != ["system:nodes"] {
        "subject organization is not system:nodes"
    } else if request.dns_names > 0 {
        "DNS subjectAltNames are not allowed"
    } else if request.emails > 0 {
        "Email subjectAltNames are not allowed"
    } else if request.addresses > 0 {
        "IP subjectAltNames are not allowed"
    } else if request.uris > 0 {
        "URI subjectAltNames are not allowed"
    } else if !request.common_name.starts_with("system:node:") {
        "subject common name does not begin with system:node:"
    } else if !are_usages(usages, CLIENT) {
        "usages did not match [client auth digital signature key encipherment]"
    } else {
        return Ok(());
    };
    Err(why.to_owned())
}

fn check_node_serving(request: &ParsedRequest, usages: &[String]) -> Result<(), String> {
    let why = if request.organizations != ["system:nodes"] {
        "subject organization is not system:nodes"
    } else if request.dns_names + request.addresses == 0 {
        "DNS or IP subjectAltName is required"
    } else if request.emails > 0 {
        "Email subjectAltNames are not allowed"
    } else if request.uris > 0 {
        "URI subjectAltNames are not allowed"
    } else if !are_usages(usages, SERVER) {
        "usages did not match [digital signature key encipherment server auth]"
    } else if !request.common_name.starts_with("system:node:") {
        "subject common name does not begin with system:node:"
    } else {
        return Ok(());
    };
    Err(why.to_owned())
}

fn check_api_client(usages: &[String]) -> Result<(), String> {
    if let Some(usage) =
        usages.iter().find(|usage| ![SIGNATURE, ENCIPHERMENT, CLIENT].contains(&usage.as_str()))
    {
        return Err(format!("invalid usage for client certificate: {usage}"));
    }
    if !usages.iter().any(|usage| usage == CLIENT) {
        return Err(format!("missing required usage for client certificate: {CLIENT}"));
    }
    Ok(())
}

/// Whether a signer may sign the request; `None` when it is not one of Kubernetes' own.
pub(super) fn check(signer: &str, request: &ParsedRequest, usages: &[String]) -> Option<Result<(), String>> {
    match signer {
        API_CLIENT => Some(check_api_client(usages)),
        NODE_CLIENT => Some(check_node_client(request, usages)),
        NODE_SERVING => Some(check_node_serving(request, usages)),
        LEGACY => Some(Ok(())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of upstream's `TestIsKubeletClientCSR`, `TestIsKubeletServingCSR` and `TestGetCSRVerificationFunc...`.
    #[test]
    fn each_signer_has_its_rules() {
        let node = || ParsedRequest {
            common_name: "system:node:a".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            ..ParsedRequest::default()
        };
        let named = || ParsedRequest { dns_names: 1, ..node() };
        let client = &[SIGNATURE, ENCIPHERMENT, CLIENT][..];
        let server = &[SIGNATURE, SERVER][..];
        let other = |change: fn(&mut ParsedRequest), mut request: ParsedRequest| {
            change(&mut request);
            request
        };
        let ok = Some(Ok(()));
        let no = |why: &str| Some(Err(why.to_owned()));
        let wrong_client = "usages did not match [client auth digital signature key encipherment]";
        let wrong_server = "usages did not match [digital signature key encipherment server auth]";
        let wrong_name = "subject common name does not begin with system:node:";
        let wrong_group = "subject organization is not system:nodes";
        let cases = [
            (NODE_CLIENT, node(), client, ok.clone()),
            (NODE_CLIENT, node(), &client[..2], no(wrong_client)),
            (NODE_CLIENT, node(), &[SIGNATURE, CLIENT], ok.clone()),
            (NODE_CLIENT, node(), &[SIGNATURE, CLIENT, SERVER], no(wrong_client)),
            (NODE_CLIENT, named(), client, no("DNS subjectAltNames are not allowed")),
            (
                NODE_CLIENT,
                other(|one| one.emails = 1, node()),
                client,
                no("Email subjectAltNames are not allowed"),
            ),
            (
                NODE_CLIENT,
                other(|one| one.addresses = 1, node()),
                client,
                no("IP subjectAltNames are not allowed"),
            ),
            (
                NODE_CLIENT,
                other(|one| one.uris = 1, node()),
                client,
                no("URI subjectAltNames are not allowed"),
            ),
            (NODE_CLIENT, other(|one| one.common_name = "a".into(), node()), client, no(wrong_name)),
            (NODE_CLIENT, other(|one| one.organizations.push("x".into()), node()), client, no(wrong_group)),
            (NODE_SERVING, named(), server, ok.clone()),
            (NODE_SERVING, other(|one| one.addresses = 1, node()), server, ok.clone()),
            (NODE_SERVING, node(), server, no("DNS or IP subjectAltName is required")),
            (NODE_SERVING, named(), client, no(wrong_server)),
            (
                NODE_SERVING,
                other(|one| one.uris = 1, named()),
                server,
                no("URI subjectAltNames are not allowed"),
            ),
            (NODE_SERVING, other(|one| one.organizations.clear(), named()), server, no(wrong_group)),
            (API_CLIENT, ParsedRequest::default(), client, ok.clone()),
            (API_CLIENT, node(), server, no("invalid usage for client certificate: server auth")),
            (
                API_CLIENT,
                node(),
                &[SIGNATURE],
                no("missing required usage for client certificate: client auth"),
            ),
            (LEGACY, node(), &["anything"], ok),
            ("example.com/mine", node(), client, None),
        ];
        for (signer, request, usages, expected) in cases {
            let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
            assert_eq!(check(signer, &request, &usages), expected, "{signer} {request:?} {usages:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_told() {
        for pem in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(parse(pem.as_bytes()), Err("PEM block type must be CERTIFICATE REQUEST"), "{pem}");
        }
        let broken = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
        assert_eq!(parse(broken.as_bytes()), Err("the certificate request is malformed"));
    }
}
