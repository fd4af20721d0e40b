//! IP addresses and ranges of them (`library/ip.go`, `library/cidr.go`).

use std::net::IpAddr;

use crate::{
    error::EvalError,
    eval::Eval,
    functions::{Body, Functions},
    native::{Cidr, Kind, Native, url::go_quoted},
    stdlib::add_network_text,
    value::Value,
};

pub(super) fn add(functions: &mut Functions) {
    add_network_text(functions);
    functions.global("ip", to_ip, &[("string_to_ip", "(string) net.IP")]);
    functions.global("isIP", is_ip, &[("is_ip", "(string) bool")]);
    functions.global("ip.isCanonical", is_canonical, &[("ip_is_canonical", "(string) bool")]);
    functions.member("family", family, &[("ip_family", "(net.IP) int")]);
    let tests: &[(&'static str, &'static str, Body)] = &[
        ("isUnspecified", "ip_is_unspecified", |args| test(args, |ip| ip.is_unspecified())),
        ("isLoopback", "ip_is_loopback", |args| test(args, |ip| ip.is_loopback())),
        ("isLinkLocalMulticast", "ip_is_link_local_multicast", |args| test(args, link_local_multicast)),
        ("isLinkLocalUnicast", "ip_is_link_local_unicast", |args| test(args, link_local_unicast)),
        ("isGlobalUnicast", "ip_is_global_unicast", |args| test(args, global_unicast)),
    ];
    for (name, id, body) in tests {
        functions.add(name, true, (*id).into(), "(net.IP) bool", *body);
    }
    functions.global("cidr", to_cidr, &[("string_to_cidr", "(string) net.CIDR")]);
    functions.global("isCIDR", is_cidr, &[("is_cidr", "(string) bool")]);
    functions.member(
        "containsIP",
        contains_ip,
        &[
            ("cidr_contains_ip_string", "(net.CIDR, string) bool"),
            ("cidr_contains_ip_ip", "(net.CIDR, net.IP) bool"),
        ],
    );
    functions.member(
        "containsCIDR",
        contains_cidr,
        &[
            ("cidr_contains_cidr_string", "(net.CIDR, string) bool"),
            ("cidr_contains_cidr", "(net.CIDR, net.CIDR) bool"),
        ],
    );
    functions.member("ip", cidr_ip, &[("cidr_ip", "(net.CIDR) net.IP")]);
    functions.member("prefixLength", prefix_length, &[("cidr_prefix_length", "(net.CIDR) int")]);
    functions.member("masked", masked, &[("cidr_masked", "(net.CIDR) net.CIDR")]);
}

/// An address without a zone that is no IPv4 address in IPv6 form.
fn parse_ip(text: &str) -> Result<IpAddr, EvalError> {
    let quoted = go_quoted(text);
    if let Some((address, zone)) = text.split_once('%')
        && !zone.is_empty()
        && address.parse::<std::net::Ipv6Addr>().is_ok()
    {
        return Err(EvalError::new(format!("IP address {quoted} with zone value is not allowed")));
    }
    let address: IpAddr = text.parse().map_err(|_| {
        let why = parse_failure(text);
        EvalError::new(format!(
            "IP Address {quoted} parse error during conversion from string: ParseAddr({quoted}): {why}"
        ))
    })?;
    if is_mapped(address) {
        return Err(EvalError::new(format!("IPv4-mapped IPv6 address {quoted} is not allowed")));
    }
    Ok(address)
}

/// Go's words for the usual mistakes.
fn parse_failure(text: &str) -> String {
    if text.contains(':') || !text.contains('.') {
        return "unable to parse IP".to_owned();
    }
    let fields: Vec<&str> = text.split('.').collect();
    for field in &fields {
        if field.is_empty() {
            return "IPv4 field must have at least one digit".to_owned();
        }
        if !field.bytes().all(|byte| byte.is_ascii_digit()) {
            return "unexpected character".to_owned();
        }
        if field.len() > 1 && field.starts_with('0') {
            return "IPv4 field has octet with leading zero".to_owned();
        }
        if field.parse::<u8>().is_err() {
            return "IPv4 field has value >255".to_owned();
        }
    }
    if fields.len() > 4 { "IPv4 address too long" } else { "IPv4 address too short" }.to_owned()
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

fn parse_cidr(text: &str) -> Result<Cidr, EvalError> {
    const FAILED: &str = "network address parse error during conversion from string: \
                          network address parse error during conversion from string";
    let quoted = go_quoted(text);
    let failed = |why: &str| EvalError::new(format!("{FAILED}: netip.ParsePrefix({quoted}): {why}"));
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| failed("no '/'"))?;
    let parsed: IpAddr = address
        .parse()
        .map_err(|_| failed(&format!("ParseAddr({}): {}", go_quoted(address), parse_failure(address))))?;
    let digits = !bits.is_empty()
        && bits.bytes().all(|byte| byte.is_ascii_digit())
        && (bits == "0" || !bits.starts_with('0'));
    let count: u8 = bits
        .parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| failed(&format!("bad bits after slash: {}", go_quoted(bits))))?;
    let most = if parsed.is_ipv4() { 32 } else { 128 };
    if count > most {
        return Err(failed("prefix length out of range"));
    }
    if is_mapped(parsed) {
        return Err(EvalError::new(format!(
            "network address parse error during conversion from string: IPv4-mapped IPv6 address {quoted} is not allowed"
        )));
    }
    Ok(Cidr { address: parsed, bits: count })
}

fn native<'a>(kind: Kind) -> Eval<'a> {
    Ok(Value::Native(Native(kind)))
}

fn text<'v>(args: &'v [Value<'_>]) -> Result<&'v str, EvalError> {
    match args {
        [Value::String(text)] => Ok(text),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn to_ip<'a>(args: &[Value<'a>]) -> Eval<'a> {
    native(Kind::Ip(parse_ip(text(args)?)?))
}

fn is_ip<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Bool(parse_ip(text(args)?).is_ok()))
}

fn is_canonical<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let text = text(args)?;
    Ok(Value::Bool(parse_ip(text)?.to_string() == text))
}

fn test<'a>(args: &[Value<'a>], holds: impl Fn(IpAddr) -> bool) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Ip(address)))] => Ok(Value::Bool(holds(*address))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn family<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Ip(address)))] => Ok(Value::Int(if address.is_ipv4() { 4 } else { 6 })),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn link_local_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    }
}

fn link_local_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn global_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(broadcast
        || address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || link_local_unicast(address))
}

fn to_cidr<'a>(args: &[Value<'a>]) -> Eval<'a> {
    native(Kind::Cidr(parse_cidr(text(args)?)?))
}

fn is_cidr<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Bool(parse_cidr(text(args)?).is_ok()))
}

fn contains_ip<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Cidr(cidr))), Value::String(text)] => {
            Ok(Value::Bool(cidr.contains(parse_ip(text)?)))
        }
        [Value::Native(Native(Kind::Cidr(cidr))), Value::Native(Native(Kind::Ip(address)))] => {
            Ok(Value::Bool(cidr.contains(*address)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn contains_cidr<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Cidr(cidr))), Value::String(text)] => {
            Ok(Value::Bool(cidr.contains_cidr(parse_cidr(text)?)))
        }
        [Value::Native(Native(Kind::Cidr(cidr))), Value::Native(Native(Kind::Cidr(other)))] => {
            Ok(Value::Bool(cidr.contains_cidr(*other)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn one_cidr(args: &[Value<'_>]) -> Result<Cidr, EvalError> {
    match args {
        [Value::Native(Native(Kind::Cidr(cidr)))] => Ok(*cidr),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn cidr_ip<'a>(args: &[Value<'a>]) -> Eval<'a> {
    native(Kind::Ip(one_cidr(args)?.address))
}

fn prefix_length<'a>(args: &[Value<'a>]) -> Eval<'a> {
    Ok(Value::Int(i64::from(one_cidr(args)?.bits)))
}

fn masked<'a>(args: &[Value<'a>]) -> Eval<'a> {
    native(Kind::Cidr(one_cidr(args)?.masked()))
}
