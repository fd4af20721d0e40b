//! The formats of text that schemas know, and what fulfils them.

use std::net::{Ipv4Addr, Ipv6Addr};

use kcore::selector::{is_dns_label, is_dns_subdomain};

/// A format of text. Others are not checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format(fn(&str) -> bool);

impl Format {
    /// The format of this name; dashes in names do not count.
    pub(super) fn find(name: &str) -> Option<Self> {
        let plain = name.replace('-', "");
        Some(Self(match plain.as_str() {
            "bsonobjectid" => |text| is_hex(text, 24),
            "uri" => is_uri,
            "email" => is_email,
            "hostname" => is_hostname,
            "ipv4" => |text| ipv4(text).is_some(),
            "ipv6" => |text| text.parse::<Ipv6Addr>().is_ok(),
            "cidr" => is_cidr,
            "mac" => is_mac,
            "uuid" => |text| is_uuid(text, None),
            "uuid3" => |text| is_uuid(text, Some(b'3')),
            "uuid4" => |text| is_uuid(text, Some(b'4')),
            "uuid5" => |text| is_uuid(text, Some(b'5')),
            "isbn" => |text| is_isbn10(text) || is_isbn13(text),
            "isbn10" => is_isbn10,
            "isbn13" => is_isbn13,
            "creditcard" => is_credit_card,
            "ssn" => is_ssn,
            "hexcolor" => is_hex_color,
            "rgbcolor" => is_rgb_color,
            "byte" => is_base64,
            "password" => |_| true,
            "date" => is_date,
            "duration" => is_duration,
            "datetime" => is_date_time,
            "k8sshortname" => |text| text.len() <= 63 && is_dns_label(text),
            "k8slongname" => |text| text.len() <= 253 && is_dns_subdomain(text),
            _ => return None,
        }))
    }

    pub(super) fn fits(self, text: &str) -> bool {
        self.0(text)
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What Go's `url.ParseRequestURI` takes: an absolute URI or an absolute path.
fn is_uri(text: &str) -> bool {
    let is_plain = !text.is_empty() && !text.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
    if !is_plain || !escapes_are_whole(text) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let mut bytes = scheme.bytes();
    let is_scheme = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let authority =
        rest.strip_prefix("//").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    is_scheme && authority.is_none_or(is_authority)
}

fn escapes_are_whole(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit))
}

fn is_authority(text: &str) -> bool {
    let host = text.rsplit_once('@').map_or(text, |(_, host)| host);
    let port = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((_, port)) => port,
            None => return false,
        },
        None => host.find(':').map_or("", |at| &host[at..]),
    };
    let has_bad = host.contains(['<', '>', '"', '\\', '^', '`', '{', '|', '}']);
    !has_bad
        && (port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.is_empty() || digits(port)))
}

/// An address as RFC 5322 has it: `a@b` or `Name <a@b>`.
fn is_email(text: &str) -> bool {
    let text = text.trim();
    let address = match text.strip_suffix('>') {
        Some(rest) => match rest.rsplit_once('<') {
            Some((_, address)) => address,
            None => return false,
        },
        None => text,
    };
    let is_atom = |text: &str| {
        text.split('.').all(|part| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c))
        })
    };
    let is_quoted = |text: &str| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    let is_literal = |text: &str| text.starts_with('[') && text.ends_with(']');
    address.rsplit_once('@').is_some_and(|(local, domain)| {
        (is_atom(local) || is_quoted(local)) && (is_atom(domain) || is_literal(domain))
    })
}

fn is_hostname(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphabetic() || c.is_ascii_digit() || c == '-' || is_symbol(c))
    };
    let labels: Vec<&str> = text.split('.').collect();
    let last_is_good = labels.len() == 1
        || labels
            .last()
            .is_some_and(|last| last.chars().count() >= 2 && last.chars().all(char::is_alphabetic));
    text.len() <= 255 && labels.iter().all(|label| is_label(label)) && last_is_good
}

/// A symbol beyond ASCII, such as an emoji, or one of those of ASCII that Unicode calls symbols.
fn is_symbol(c: char) -> bool {
    if c.is_ascii() {
        "$+<=>^`|~".contains(c)
    } else {
        !c.is_alphanumeric() && !c.is_whitespace() && !c.is_control()
    }
}

/// Dotted decimals; leading zeroes are read over, as older releases did.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| digits(part))?;
        let number = part.trim_start_matches('0');
        *octet = if number.is_empty() { 0 } else { number.parse().ok()? };
    }
    parts.next().is_none().then(|| octets.into())
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let limit = if ipv4(address).is_some() {
        32
    } else if address.parse::<Ipv6Addr>().is_ok() {
        128
    } else {
        return false;
    };
    digits(length) && length.parse::<u32>().is_ok_and(|length| length <= limit)
}

/// 6, 8 or 20 bytes, in pairs joined by colons or dashes, or in fours joined by dots.
fn is_mac(text: &str) -> bool {
    let (separator, width) = match text.chars().find(|c| !c.is_ascii_hexdigit()) {
        Some(separator @ (':' | '-')) => (separator, 2),
        Some('.') => ('.', 4),
        _ => return false,
    };
    let parts: Vec<&str> = text.split(separator).collect();
    [6, 8, 20].contains(&(parts.len() * width / 2)) && parts.iter().all(|part| is_hex(part, width))
}

fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let (mut rest, mut all) = (text, Vec::with_capacity(32));
    for (index, width) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some(part) = rest.get(..width).filter(|part| is_hex(part, width)) else { return false };
        all.extend_from_slice(part.as_bytes());
        rest = &rest[width..];
    }
    let variant_is_good =
        !matches!(version, Some(b'4' | b'5')) || matches!(all[16], b'8' | b'9' | b'a' | b'b' | b'A' | b'B');
    rest.is_empty() && version.is_none_or(|version| all[12] == version) && variant_is_good
}

fn isbn_digits(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = isbn_digits(text);
    if text.len() != 10 || !digits(&text[..9]) {
        return false;
    }
    let value = |byte: u8| if byte == b'X' { 10 } else { u32::from(byte.wrapping_sub(b'0')) };
    let last = text.as_bytes()[9];
    (last == b'X' || last.is_ascii_digit())
        && text.bytes().zip(1..).map(|(byte, weight)| weight * value(byte)).sum::<u32>() % 11 == 0
}

fn is_isbn13(text: &str) -> bool {
    let text = isbn_digits(text);
    text.len() == 13
        && digits(&text)
        && text
            .bytes()
            .zip([1, 3].into_iter().cycle())
            .map(|(byte, weight)| weight * u32::from(byte - b'0'))
            .sum::<u32>()
            % 10
            == 0
}

fn is_credit_card(text: &str) -> bool {
    let number: String = text.chars().filter(char::is_ascii_digit).collect();
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| number.starts_with(prefix));
    let is_known = match number.len() {
        13 => starts(&["4"]),
        14 => starts(&["300", "301", "302", "303", "304", "305", "36", "38"]),
        15 => starts(&["34", "37", "2131", "1800"]),
        16 => starts(&["4", "51", "52", "53", "54", "55", "6011", "65", "35"]),
        _ => false,
    };
    let sum: u32 = number
        .bytes()
        .rev()
        .enumerate()
        .map(|(index, byte)| {
            let digit = u32::from(byte - b'0') * if index % 2 == 1 { 2 } else { 1 };
            digit / 10 + digit % 10
        })
        .sum();
    is_known && sum.is_multiple_of(10)
}

fn is_ssn(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    let widths: Vec<usize> = text.split(['-', ' ']).map(str::len).collect();
    plain.len() == 9 && digits(&plain) && matches!(widths.as_slice(), [9] | [3, 6] | [5, 4] | [3, 2, 4])
}

fn is_hex_color(text: &str) -> bool {
    let text = text.strip_prefix('#').unwrap_or(text);
    is_hex(text, 3) || is_hex(text, 6)
}

fn is_rgb_color(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')')) else { return false };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    let is_part = |part: &&str| {
        digits(part) && (part.len() == 1 || !part.starts_with('0')) && part.parse::<u8>().is_ok()
    };
    parts.len() == 3 && parts.iter().all(is_part)
}

fn is_base64(text: &str) -> bool {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    !text.is_empty() && STANDARD.decode(text).is_ok()
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_date_time(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some((date, time)) = lower.split_once('t') else { return false };
    let Some((clock, rest)) = time.split_at_checked(8) else { return false };
    let parts: Vec<&str> = clock.split(':').collect();
    let limits = ["23", "59", "59"];
    let is_clock = parts.len() == 3
        && parts.iter().zip(limits).all(|(part, limit)| part.len() == 2 && digits(part) && *part <= limit);
    let zone = match rest.chars().next() {
        Some('z' | '+' | '-') | None => rest,
        Some(c) => rest[c.len_utf8()..].trim_start_matches(|c: char| c.is_ascii_digit()),
    };
    let has_fraction = rest.len() == zone.len() || rest.len() - zone.len() > 1;
    let is_offset = |zone: &str| {
        zone.len() == 6 && zone.as_bytes()[3] == b':' && digits(&zone[1..3]) && digits(&zone[4..])
    };
    is_date(date)
        && is_clock
        && has_fraction
        && (zone == "z" || zone.starts_with(['+', '-']) && is_offset(zone))
}

/// Go's durations (`1h30m`, `-1.5s`), and any text with a number and a unit in it (`3 weeks`).
fn is_duration(text: &str) -> bool {
    is_go_duration(text) || has_scala_duration(text)
}

fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let value = &rest[..number];
        if !value.bytes().any(|byte| byte.is_ascii_digit()) || value.matches('.').count() > 1 {
            return false;
        }
        rest = &rest[number..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        if !["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&&rest[..unit]) {
            return false;
        }
        rest = &rest[unit..];
    }
    true
}

fn has_scala_duration(text: &str) -> bool {
    const EXACT: [&str; 9] = ["ns", "us", "ms", "s", "m", "h", "d", "w", "µs"];
    const PREFIX: [&str; 8] = ["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let after = rest[start..].trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let length = after.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(after.len());
        let unit = after[..length].to_lowercase();
        if EXACT.contains(&unit.as_str())
            || ["hr", "wk"].contains(&unit.as_str())
            || PREFIX.iter().any(|prefix| unit.starts_with(prefix))
        {
            return true;
        }
        rest = &after[length..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kube-openapi, validation/strfmt: default_test.go, date_test.go, time_test.go, duration_test.go.
    #[test]
    fn formats_take_what_upstream_takes() {
        for (format, good, bad) in [
            (
                "uri",
                &["http://somewhere.com/x?y=1", "/a/b", "mailto:x@y"][..],
                &["somewhere.com", "", "http://a b", "http://x:y/"][..],
            ),
            (
                "email",
                &["somebody@somewhere.com", "A <a@b.c>", "string@some%2Fwhere"],
                &["somebody", "@", "a@b@", "x <y"],
            ),
            (
                "hostname",
                &["somewhere.com", "a", "localhost", "1a.example"],
                &["", "a..b", "-a.com", "x.c", "a b"],
            ),
            ("ipv4", &["192.168.254.1", "010.0.0.1"], &["192.168.254", "256.0.0.1", "::1", ""]),
            ("ipv6", &["::1", "2001:db8::68"], &["127.0.0.1", ":::"]),
            ("cidr", &["192.0.2.1/24", "2001:db8::/32"], &["192.0.2.1", "192.0.2.1/33", "x/1"]),
            (
                "mac",
                &["01:02:03:04:05:06", "01-02-03-04-05-06", "0102.0304.0506"],
                &["01:02:03:04:05", "01:02:03:04:05:0g"],
            ),
            (
                "uuid",
                &["a8098c1a-f86e-11da-bd1a-00112444be1e", "A8098C1AF86E11DABD1A00112444BE1E"],
                &["a8098c1a", "z8098c1a-f86e-11da-bd1a-00112444be1e"],
            ),
            (
                "uuid4",
                &["025b0d74-00a2-4048-bf57-227c5111bb34"],
                &["025b0d74-00a2-3048-bf57-227c5111bb34", "025b0d74-00a2-4048-1f57-227c5111bb34"],
            ),
            ("isbn", &["0321751043", "978-0321751041"], &["0321751044", "978-0321751042", "x"]),
            ("creditcard", &["4111-1111-1111-1111"], &["9999-9999-9999-9999", "4111-1111-1111-1112"]),
            ("ssn", &["111-11-1111", "111111111"], &["11-111-1111", "abc"]),
            ("hexcolor", &["#FFFFFF", "fff"], &["#ffff", "ggg"]),
            ("rgbcolor", &["rgb(255,255,255)", "rgb(0, 1, 2)"], &["rgb(300,0,0)", "rgb(1,2)"]),
            ("byte", &["ZWxpemFiZXRocG9zZXk="], &["=", "a"]),
            ("date", &["2014-12-15", "2024-02-29"], &["2014-13-15", "2023-02-29", "2014-1-1"]),
            (
                "date-time",
                &["2014-12-15T19:30:20.000Z", "2014-12-15t19:30:20+02:00"],
                &["2014-12-15", "2014-12-15T24:00:00Z", "2014-12-15T19:30:20", "2014-12-15T19:30:20.Z"],
            ),
            ("duration", &["22 ns", "1h30m", "-1.5s", "3 weeks", "0"], &["", "abc", "1x", "12"]),
            ("k8s-short-name", &["a", "web-1"], &["A", "-a", "a.b"]),
            ("k8s-long-name", &["a.b", "web-1"], &["a..b", "A"]),
        ] {
            let check = Format::find(format).unwrap();
            for text in good {
                assert!(check.fits(text), "{format}: {text}");
            }
            for text in bad {
                assert!(!check.fits(text), "{format}: {text}");
            }
        }
        assert!(Format::find("nonesuch").is_none());
    }
}
