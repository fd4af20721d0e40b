//! IP addresses and networks as fields hold them, strict and lenient (`k8s.io/apimachinery/pkg/util/validation/ip.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kschema::{error::FieldError, quote::Quoted};

use super::{path::Path, report::Report};

/// An address, read as Go 1.16 did: octets may have leading zeros, which do not make them octal.
pub(crate) fn parse_lenient(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some((head, tail)) = text.rsplit_once(':') {
        // An IPv6 address that ends in an IPv4 one.
        let octets = parse_octets(tail)?;
        return format!("{head}:{octets}").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    parse_octets(text).map(IpAddr::V4)
}

fn parse_octets(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|error| if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(error) })
            .ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// An address and the length of its network's prefix.
pub(crate) fn parse_network_lenient(text: &str) -> Option<(IpAddr, u32)> {
    let (address, length) = text.split_once('/')?;
    let address = parse_lenient(address)?;
    let good = !length.is_empty() && length.len() < 10 && length.bytes().all(|byte| byte.is_ascii_digit());
    let length: u32 = good.then(|| length.parse().ok())??;
    (length <= width(address)).then_some((address, length))
}

/// How many bits an address has.
pub(crate) fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all bits beyond the prefix cleared.
pub(crate) fn masked(address: IpAddr, length: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

/// Go shows an IPv4-mapped IPv6 address as IPv4.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Checks an address in a field that once took more than it does now; what the old object held may stay.
pub(crate) fn address<'o>(
    path: &Path<'_>,
    value: &str,
    mut old: impl Iterator<Item = &'o str>,
    errors: &mut Vec<FieldError>,
) -> bool {
    if old.any(|old| old == value) {
        return true;
    }
    strict(path, value, errors).is_some()
}

fn strict(path: &Path<'_>, value: &str, errors: &mut Vec<FieldError>) -> Option<IpAddr> {
    let Some(address) = parse_lenient(value) else {
        errors.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        return None;
    };
    if value.parse::<IpAddr>().is_err() {
        errors.invalid(path, value, "must not have leading 0s");
        return None;
    }
    if is_mapped(address) {
        errors.invalid(path, value, "must not be an IPv4-mapped IPv6 address");
        return None;
    }
    Some(address)
}

/// Checks an address in a field that takes the canonical form only.
pub(crate) fn canonical_address(path: &Path<'_>, value: &str, errors: &mut Vec<FieldError>) {
    if let Some(address) = strict(path, value, errors)
        && address.to_string() != value
    {
        errors.invalid(path, value, format_args!("must be in canonical form (\"{address}\")"));
    }
}

/// Checks a network in a field that once took more than it does now; what the old object held may stay.
pub(crate) fn network<'o>(
    path: &Path<'_>,
    value: &str,
    mut old: impl Iterator<Item = &'o str>,
    errors: &mut Vec<FieldError>,
) {
    if !old.any(|old| old == value) {
        strict_network(path, value, errors);
    }
}

fn strict_network(path: &Path<'_>, value: &str, errors: &mut Vec<FieldError>) -> Option<(IpAddr, u32)> {
    let Some((address, length)) = parse_network_lenient(value) else {
        errors.invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        return None;
    };
    let (text, digits) = value.split_once('/').unwrap_or_default();
    if text.parse::<IpAddr>().is_err() || (digits.len() > 1 && digits.starts_with('0')) {
        errors.invalid(path, value, "must not have leading 0s in IP or prefix length");
    } else if is_mapped(address) {
        errors.invalid(path, value, "must not have an IPv4-mapped IPv6 address");
    } else if masked(address, length) != address {
        errors.invalid(path, value, "must not have bits set beyond the prefix length");
    } else {
        return Some((address, length));
    }
    None
}

/// Checks a network in a field that takes the canonical form only.
pub(crate) fn canonical_network(path: &Path<'_>, value: &str, errors: &mut Vec<FieldError>) {
    if let Some((address, length)) = strict_network(path, value, errors) {
        let canonical = format!("{address}/{length}");
        if canonical != value {
            errors.invalid(
                path,
                value,
                format_args!("must be in canonical form ({canonical})", canonical = Quoted(&canonical)),
            );
        }
    }
}

/// Checks that traffic can be sent to an address from elsewhere (`ValidateEndpointIP`). `loopback`: the whole cluster is on
/// this machine, so that loopback addresses can be reached too.
pub(crate) fn endpoint(path: &Path<'_>, value: &str, loopback: bool, errors: &mut Vec<FieldError>) {
    let Some(address) = parse_lenient(value).map(canonical) else {
        errors.invalid(path, value, "must be a valid IP address");
        return;
    };
    if address.is_unspecified() {
        errors.invalid(path, value, format_args!("may not be unspecified ({value})"));
    }
    if address.is_loopback() && !loopback {
        errors.invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (local, local_group) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if local {
        errors.invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if local_group {
        errors.invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Whether these are at most one address of each family; `Err` with upstream's words if one is no address.
pub(crate) fn is_dual_stack<'v>(values: impl Iterator<Item = &'v str>) -> Result<bool, String> {
    let (mut four, mut six) = (false, false);
    for (index, value) in values.enumerate() {
        match parse_lenient(value).map(canonical) {
            Some(IpAddr::V4(_)) => four = true,
            Some(IpAddr::V6(_)) => six = true,
            None => return Err(format!("ip[{index}] is an invalid IP: {value}")),
        }
    }
    Ok(four && six)
}

/// What is unusual about an address that is valid.
pub(crate) fn warnings(path: &Path<'_>, value: &str, warnings: &mut Vec<String>) {
    let Some(lenient) = parse_lenient(value) else {
        return;
    };
    if value.parse::<IpAddr>().is_err() || is_mapped(lenient) {
        let shown = canonical(lenient);
        warnings.push(format!(
            "{path}: non-standard IP address {value} is invalid: use \"{shown}\"",
            value = Quoted(value)
        ));
    } else if lenient.is_ipv6() && lenient.to_string() != value {
        warnings.push(format!(
            "{path}: IPv6 address {value} should be in RFC 5952 canonical format (\"{lenient}\")",
            value = Quoted(value)
        ));
    }
}

/// What is unusual about a network that is valid.
pub(crate) fn network_warnings(path: &Path<'_>, value: &str, warnings: &mut Vec<String>) {
    let Some((address, length)) = parse_network_lenient(value) else {
        return;
    };
    let network = masked(address, length);
    if network != address {
        let (single, whole) = (width(address), format!("{network}/{length}"));
        warnings.push(format!("{path}: CIDR value {value} is ambiguous in this context (should be {whole} or \"{address}/{single}\"?)", value = Quoted(value), whole = Quoted(&whole)));
        return;
    }
    let (text, digits) = value.split_once('/').unwrap_or_default();
    let standard = text.parse::<IpAddr>().is_ok() && !(digits.len() > 1 && digits.starts_with('0'));
    if !standard || is_mapped(address) {
        let shown = canonical(network);
        warnings.push(format!(
            "{path}: non-standard CIDR value {value} is invalid: use \"{shown}/{length}\"",
            value = Quoted(value)
        ));
    } else if address.is_ipv6() && format!("{address}/{length}") != value {
        warnings.push(format!(
            "{path}: IPv6 CIDR value {value} should be in RFC 5952 canonical format (\"{address}/{length}\")",
            value = Quoted(value)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `k8s.io/apimachinery/pkg/util/validation/ip_test.go`.
    #[test]
    fn addresses_and_networks_are_judged_as_upstream_does() {
        for (value, words) in [
            ("1.2.3.4", ""),
            ("::1", ""),
            ("2001:db8::1", ""),
            ("1.2.3", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            ("myhost.mydomain", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            ("1.2.3.04", "must not have leading 0s"),
            ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
        ] {
            let mut errors = Vec::new();
            address(&Path::root("ip"), value, std::iter::empty(), &mut errors);
            let shown = errors.first().map(ToString::to_string).unwrap_or_default();
            let expected = if words.is_empty() {
                String::new()
            } else {
                format!("ip: Invalid value: {value:?}: {words}")
            };
            assert_eq!(shown, expected);
        }
        for (value, words) in [
            ("1.0.0.0/8", ""),
            ("::/0", ""),
            ("0.0.0.0/0", ""),
            ("1.0.0.0", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            ("1.0.0.0/33", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            ("1.2.3.0/08", "must not have leading 0s in IP or prefix length"),
            ("1.2.3.4/8", "must not have bits set beyond the prefix length"),
            ("::ffff:1.2.3.0/120", "must not have an IPv4-mapped IPv6 address"),
        ] {
            let mut errors = Vec::new();
            network(&Path::root("ip"), value, std::iter::empty(), &mut errors);
            let shown = errors.first().map(ToString::to_string).unwrap_or_default();
            let expected = if words.is_empty() {
                String::new()
            } else {
                format!("ip: Invalid value: {value:?}: {words}")
            };
            assert_eq!(shown, expected);
        }
    }
}
