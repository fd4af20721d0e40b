//! How a pod resolves names.

use kschema::error::FieldError;
use serde_json::Value;

use crate::check::{Look, Path, Report, address, form, texts};

/// The limits of `resolv.conf` that the kubelet keeps to.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_BYTES_MAX: usize = 2048;

/// Checks `dnsConfig`.
pub(crate) fn validate(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let config = spec.get_some("dnsConfig");
    if spec.text("dnsPolicy") == "None" {
        let Some(config) = config else {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        };
        if config.count("nameservers") == 0 {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(&path.field("nameservers"), why);
            return;
        }
    }
    let Some(config) = config else {
        return;
    };
    let field = path.field("nameservers");
    if config.count("nameservers") > NAMESERVERS_MAX {
        let why = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.invalid(&field, config.get("nameservers"), why);
    }
    for (index, server) in texts(config.list("nameservers")).enumerate() {
        address::address(&field.index(index), server, std::iter::empty(), errors);
    }
    let (field, searches) = (path.field("searches"), config.list("searches"));
    if searches.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.invalid(&field, config.get("searches"), why);
    }
    let bytes = texts(searches).map(str::len).sum::<usize>() + searches.len().saturating_sub(1);
    if bytes > SEARCH_BYTES_MAX {
        let why = format!(
            "must not have more than {SEARCH_BYTES_MAX} characters (including spaces) in the search list"
        );
        errors.invalid(&field, config.get("searches"), why);
    }
    for (index, search) in texts(searches).enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        errors.faults(&field.index(index), search, form::dns_subdomain_with_underscore(search));
    }
    let field = path.field("options");
    for (index, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errors.required(&field.index(index), "must not be empty");
        }
    }
}

/// Checks `hostAliases`.
pub(crate) fn validate_host_aliases(aliases: &[Value], list: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (index, alias) in aliases.iter().enumerate() {
        let path = list.index(index);
        address::address(&path.field("ip"), alias.text("ip"), std::iter::empty(), errors);
        let names = path.field("hostnames");
        for (index, name) in texts(alias.list("hostnames")).enumerate() {
            errors.faults(&names.index(index), name, form::dns_subdomain(name));
        }
    }
}
