//! Names that belong to a domain.

use kschema::error::FieldError;

use super::{form, path::Path, report::Report};

/// Checks a domain, a slash, and what could be a path (`IsDomainPrefixedPath`).
pub(crate) fn prefixed_path(value: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if value.is_empty() {
        errors.required(path, "");
        return;
    }
    let (host, rest) = value.split_once('/').unwrap_or_default();
    if host.is_empty() || rest.is_empty() {
        errors.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        return;
    }
    errors.faults(path, host, form::dns_subdomain(host));
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    if !rest.bytes().all(fits) {
        errors.invalid(
            path,
            rest,
            "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
        );
    }
}

/// Checks a name of at least three labels (`IsFullyQualifiedName`).
pub(crate) fn full_name(value: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if value.is_empty() {
        errors.required(path, "");
        return;
    }
    let faults = form::dns_subdomain(value);
    if !faults.is_empty() {
        errors.invalid(path, value, faults.join(","));
    } else if value.split('.').count() < 3 {
        errors.invalid(path, value, "should be a domain with at least three segments separated by dots");
    }
}
