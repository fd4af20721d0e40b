//! The names of signers and of the bundles of certificates that they publish (`pkg/apis/core/validation/names.go`).

use kschema::{error::FieldError, quote::Quoted};

use crate::check::{Faults, Path, Report, form};

/// Whether a signer is Kubernetes' own.
pub(crate) fn is_kubernetes_signer(name: &str) -> bool {
    let host = name.split('/').next().unwrap_or_default();
    host == "kubernetes.io" || host.ends_with(".kubernetes.io")
}

/// Checks the name of a signer: a domain and a path.
pub(crate) fn validate_signer(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    const WHOLE_BYTES_MAX: usize = form::SUBDOMAIN_BYTES_MAX * 2 + form::LABEL_BYTES_MAX + 2;
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let (domain, rest) = match name.split_once('/') {
        Some((domain, rest)) if !rest.contains('/') => (domain, rest),
        _ => {
            let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            errors.invalid(path, name, why);
            return;
        }
    };
    if domain.len() > form::SUBDOMAIN_BYTES_MAX {
        errors.too_long(path, form::SUBDOMAIN_BYTES_MAX);
    }
    first_fault(domain, form::dns_label, path, errors);
    if !domain.contains('.') {
        errors.invalid(path, domain, "should be a domain with at least two segments separated by dots");
    }
    first_fault(rest, form::dns_subdomain, path, errors);
    if name.len() > WHOLE_BYTES_MAX {
        errors.too_long(path, WHOLE_BYTES_MAX);
    }
}

fn first_fault(text: &str, form: fn(&str) -> Faults, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let faulty = text.split('.').map(|label| (label, form(label))).find(|(_, faults)| !faults.is_empty());
    if let Some((label, faults)) = faulty {
        for fault in faults {
            errors.invalid(
                path,
                text,
                format_args!("validating label {label}: {fault}", label = Quoted(label)),
            );
        }
    }
}

/// The signer that a bundle's name tells; empty if it is not a signer's.
pub(crate) fn signer_of_trust_bundle(name: &str) -> String {
    name.rsplit_once(':').map(|(signer, _)| signer.replace(':', "/")).unwrap_or_default()
}

/// What is wrong with the name of a bundle of this signer (empty: of none).
pub(crate) fn trust_bundle_faults(name: &str, signer: &str) -> Faults {
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".into()];
        }
        return form::dns_subdomain(name);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        None => vec![
            format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}").into(),
        ],
        Some(rest) => form::dns_subdomain(rest),
    }
}
