//! What texts must look like, with upstream's words for what is wrong
//! (`k8s.io/apimachinery/pkg/util/validation` and `.../api/validate/content`).

use std::borrow::Cow;

use super::report::Faults;

/// The form of a DNS label.
const LABEL_REGEX: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_WORDS: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const KEY_WORDS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// The longest DNS subdomain, in bytes.
pub(crate) const SUBDOMAIN_BYTES_MAX: usize = 253;
/// The longest DNS label, in bytes.
pub(crate) const LABEL_BYTES_MAX: usize = 63;

fn one(good: bool, words: impl FnOnce() -> Cow<'static, str>) -> Faults {
    if good { Faults::new() } else { vec![words()] }
}

fn longer_than(value: &str, limit: usize, unit: &str) -> Faults {
    one(value.len() <= limit, || format!("must be no more than {limit} {unit}").into())
}

fn is_low(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| is_low(*byte))
        && bytes.last().is_some_and(|byte| is_low(*byte))
        && bytes.iter().all(|byte| is_low(*byte) || *byte == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A lower-case RFC 1123 label of at most 63 bytes.
pub(crate) fn dns_label(value: &str) -> Faults {
    let mut faults = longer_than(value, LABEL_BYTES_MAX, "characters");
    if !is_label(value) {
        faults.push(if is_subdomain(value) {
            "must not contain dots".into()
        } else {
            format!("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{LABEL_REGEX}')").into()
        });
    }
    faults
}

/// A lower-case RFC 1123 subdomain of at most 253 bytes.
pub(crate) fn dns_subdomain(value: &str) -> Faults {
    subdomain(value, "characters")
}

/// [`dns_subdomain`] as declarative validation words it.
pub(crate) fn long_name(value: &str) -> Faults {
    subdomain(value, "bytes")
}

/// [`long_name`] in any case.
pub(crate) fn long_name_caseless(value: &str) -> Faults {
    let mut faults = longer_than(value, SUBDOMAIN_BYTES_MAX, "bytes");
    if !is_subdomain(&value.to_ascii_lowercase()) {
        faults.push(
            format!("an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'Example.com', regex used for validation is '{LABEL_REGEX}(\\.{LABEL_REGEX})*')")
                .into(),
        );
    }
    faults
}

fn subdomain(value: &str, unit: &str) -> Faults {
    let mut faults = longer_than(value, SUBDOMAIN_BYTES_MAX, unit);
    if !is_subdomain(value) {
        faults.push(
            format!("{SUBDOMAIN_WORDS} (e.g. 'example.com', regex used for validation is '{LABEL_REGEX}(\\.{LABEL_REGEX})*')")
                .into(),
        );
    }
    faults
}

/// A subdomain whose labels may hold underscores, as search domains do.
pub(crate) fn dns_subdomain_with_underscore(value: &str) -> Faults {
    let label = |text: &str| {
        let text = text.strip_prefix('_').unwrap_or(text);
        let bytes = text.as_bytes();
        bytes.first().is_some_and(|byte| is_low(*byte))
            && bytes.last().is_some_and(|byte| is_low(*byte))
            && bytes.iter().all(|byte| is_low(*byte) || matches!(byte, b'-' | b'_'))
    };
    let mut faults = longer_than(value, SUBDOMAIN_BYTES_MAX, "characters");
    if !value.split('.').all(label) {
        const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
        faults.push(format!("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{LABEL}(\\.{LABEL})*')").into());
    }
    faults
}

/// A subdomain that starts with `*.`.
pub(crate) fn wildcard_subdomain(value: &str) -> Faults {
    let mut faults = longer_than(value, SUBDOMAIN_BYTES_MAX, "characters");
    if !value.strip_prefix("*.").is_some_and(is_subdomain) {
        faults.push(format!("a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.{LABEL_REGEX}(\\.{LABEL_REGEX})*')").into());
    }
    faults
}

/// A lower-case RFC 1035 label of at most 63 bytes.
pub(crate) fn dns_1035_label(value: &str) -> Faults {
    let mut faults = longer_than(value, LABEL_BYTES_MAX, "characters");
    if !(value.starts_with(|c: char| c.is_ascii_lowercase()) && is_label(value)) {
        faults.push("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')".into());
    }
    faults
}

/// A label's key: a name with an optional domain before it.
pub(crate) fn qualified_name(value: &str) -> Faults {
    let mut faults = Faults::new();
    let name = match value.split_once('/') {
        None => value,
        Some((_, rest)) if rest.contains('/') => {
            return vec![
                format!(
                    "a valid label key {KEY_WORDS} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
                )
                .into(),
            ];
        }
        Some(("", name)) => {
            faults.push("prefix part must be non-empty".into());
            name
        }
        Some((prefix, name)) => {
            faults.extend(long_name(prefix).into_iter().map(|fault| format!("prefix part {fault}").into()));
            name
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else if name.len() > LABEL_BYTES_MAX {
        faults.push("name part must be no more than 63 bytes".into());
    }
    if !is_label_text(name) {
        faults.push(format!("name part {KEY_WORDS}").into());
    }
    faults
}

/// [`qualified_name`] of what the text is in lower case, as annotations' keys are checked.
pub(crate) fn qualified_name_caseless(value: &str) -> Faults {
    if value.bytes().any(|byte| byte.is_ascii_uppercase()) || !value.is_ascii() {
        qualified_name(&value.to_lowercase())
    } else {
        qualified_name(value)
    }
}

/// A label's value.
pub(crate) fn label_value(value: &str) -> Faults {
    let mut faults = longer_than(value, LABEL_BYTES_MAX, "bytes");
    if !value.is_empty() && !is_label_text(value) {
        faults.push("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".into());
    }
    faults
}

/// The name of a port, as in `/etc/services` (RFC 6335).
pub(crate) fn port_name(value: &str) -> Faults {
    let bytes = value.as_bytes();
    let mut faults = longer_than(value, 15, "characters");
    if value.is_empty() || !bytes.iter().all(|byte| is_low(*byte) || *byte == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        faults.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        faults.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        faults.push("must not begin or end with a hyphen".into());
    }
    faults
}

/// A percentage.
pub(crate) fn percent(value: &str) -> Faults {
    let good = value
        .strip_suffix('%')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    one(good, || {
        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')".into()
    })
}

/// The name of an HTTP header.
pub(crate) fn http_header(value: &str) -> Faults {
    let good = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    one(good, || {
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')".into()
    })
}

/// The name of an environment variable (KEP-4369: any printable ASCII but `=`).
pub(crate) fn variable_name(value: &str) -> Faults {
    let mut faults = one(!value.is_empty(), || "environment variable name must be non-empty".into());
    if value.bytes().any(|byte| !(0x20..0x7f).contains(&byte) || byte == b'=') {
        faults.push("a valid environment variable name must consist only of printable ASCII characters other than '='".into());
    }
    faults
}

/// The key of an entry of a ConfigMap or Secret.
pub(crate) fn config_key(value: &str) -> Faults {
    let mut faults = longer_than(value, SUBDOMAIN_BYTES_MAX, "characters");
    let good = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !good {
        faults.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into());
    }
    match value {
        "." => faults.push("must not be '.'".into()),
        ".." => faults.push("must not be '..'".into()),
        _ if value.starts_with("..") => faults.push("must not start with '..'".into()),
        _ => {}
    }
    faults
}

/// A C identifier.
pub(crate) fn c_identifier(value: &str) -> Faults {
    let good = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    one(good, || {
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')".into()
    })
}

/// A part of a URL's path.
pub(crate) fn path_segment(value: &str) -> Faults {
    match value {
        "." | ".." => vec![format!("may not be '{value}'").into()],
        _ => ["/", "%"]
            .iter()
            .filter(|part| value.contains(**part))
            .map(|part| format!("may not contain '{part}'").into())
            .collect(),
    }
}

/// A whole number in decimal, without a sign `+` and leading zeros.
pub(crate) fn decimal_integer(value: &str) -> Faults {
    if value.is_empty() {
        return vec!["must be non-empty".into()];
    }
    let digits = value.strip_prefix('-').unwrap_or(value);
    let good = value == "0"
        || (!digits.is_empty()
            && !digits.starts_with('0')
            && digits.bytes().all(|byte| byte.is_ascii_digit()));
    one(good, || "must be a valid decimal integer in canonical form".into())
}

#[cfg(test)]
mod tests {
    use super::{super::report::Form, *};

    /// From `k8s.io/apimachinery/pkg/util/validation/validation_test.go` and `.../api/validate/content/kube_test.go`.
    #[test]
    fn texts_are_judged_as_upstream_does() {
        let long = "a".repeat(64);
        let cases: [(Form, &[&str], &[&str]); 9] = [
            (dns_label, &["a", "a-1", "0", "1--a--b--2"], &["", "A", "-", "a-", "a.b", "a_b", &long]),
            (dns_subdomain, &["a", "a.b.c", "11.22", "a--1.0"], &["", ".", "a..b", "A.a", "a.-b", "a_b"]),
            (dns_1035_label, &["a", "a-1"], &["", "1a", "-", "a.b"]),
            (
                qualified_name,
                &["simple", "1.2.3.4/5678", "Uppercase_Is_OK-123", "example.com/A.b"],
                &["", "/a", "a/", "nospecialchars%^=@", "a/b/c", "A/b", "only/one/slash", "-a"],
            ),
            (label_value, &["", "a", "A-1_b.c"], &["-", "a b", ".a", &long]),
            (
                port_name,
                &["telnet", "re-mail-ck", "a", "6-4-2z"],
                &["", "longerthan15characters", "1-2", "-a", "a-", "a--b", "A"],
            ),
            (config_key, &["a", "good", ".good"], &["", ".", "..", "..bad", "b*d", "bad&bad"]),
            (percent, &["0%", "00000%", "1%", "145%"], &["", "0", "1", "-1%", "1%%"]),
            (wildcard_subdomain, &["*.example.com", "*.b"], &["*", "*.", "*a", "*.*", "*.a.*", "a.*.b"]),
        ];
        for (form, good, bad) in cases {
            for text in good {
                assert_eq!(form(text), Faults::new(), "{text}");
            }
            for text in bad {
                assert_ne!(form(text), Faults::new(), "{text}");
            }
        }
    }
}
