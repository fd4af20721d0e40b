//! Named formats that text is validated against (`library/format.go`).

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    native::{Kind, Native, url::Url},
    value::{Value, parse_date, parse_date_time},
};

/// A format.
#[derive(Debug)]
pub(crate) struct NamedFormat {
    pub(crate) name: &'static str,
    /// What is wrong with a text; nothing if it is valid.
    validate: fn(&str) -> Vec<String>,
    /// The length of the regular expression that its cost is reckoned by.
    pub(crate) pattern_size: u64,
}

type Entry = (&'static str, &'static str, NamedFormat);

const fn entry(
    key: &'static str,
    function: &'static str,
    name: &'static str,
    validate: fn(&str) -> Vec<String>,
    pattern_size: u64,
) -> Entry {
    (key, function, NamedFormat { name, validate, pattern_size })
}

static FORMATS: &[Entry] = &[
    entry("dns1123Label", "format.dns1123Label", "DNS1123Label", dns1123_label, 30),
    entry("dns1123Subdomain", "format.dns1123Subdomain", "DNS1123Subdomain", dns1123_subdomain, 60),
    entry("dns1035Label", "format.dns1035Label", "DNS1035Label", dns1035_label, 30),
    entry("qualifiedName", "format.qualifiedName", "QualifiedName", qualified_name, 60),
    entry(
        "dns1123LabelPrefix",
        "format.dns1123LabelPrefix",
        "DNS1123LabelPrefix",
        |text| dns1123_label(&masked(text)),
        30,
    ),
    entry(
        "dns1123SubdomainPrefix",
        "format.dns1123SubdomainPrefix",
        "DNS1123SubdomainPrefix",
        |text| dns1123_subdomain(&masked(text)),
        60,
    ),
    entry(
        "dns1035LabelPrefix",
        "format.dns1035LabelPrefix",
        "DNS1035LabelPrefix",
        |text| dns1035_label(&masked(text)),
        30,
    ),
    entry("labelValue", "format.labelValue", "LabelValue", label_value, 40),
    entry("uri", "format.uri", "URI", |text| Url::parse(text).err().into_iter().collect(), 1103),
    entry("uuid", "format.uuid", "uuid", uuid, 77),
    entry(
        "byte",
        "format.byte",
        "byte",
        |text| unless(!text.is_empty() && STANDARD.decode(text).is_ok(), "invalid base64"),
        84,
    ),
    entry("date", "format.date", "date", |text| unless(parse_date(text).is_some(), "invalid date"), 85),
    entry(
        "datetime",
        "format.datetime",
        "datetime",
        |text| unless(!text.is_empty() && parse_date_time(text).is_some(), "invalid datetime"),
        85,
    ),
];

pub(super) fn add(functions: &mut Functions) {
    functions.member(
        "validate",
        validate,
        &[("format-validate", "(kubernetes.NamedFormat, string) optional<list<string>>")],
    );
    functions.global("format.named", named, &[("format-named", "(string) optional<kubernetes.NamedFormat>")]);
    let bodies: [crate::functions::Body; 13] = [
        |_| format_at(0),
        |_| format_at(1),
        |_| format_at(2),
        |_| format_at(3),
        |_| format_at(4),
        |_| format_at(5),
        |_| format_at(6),
        |_| format_at(7),
        |_| format_at(8),
        |_| format_at(9),
        |_| format_at(10),
        |_| format_at(11),
        |_| format_at(12),
    ];
    for ((_, function, _), body) in FORMATS.iter().zip(bodies) {
        functions.add(function, false, (*function).into(), "() kubernetes.NamedFormat", body);
    }
}

fn format_at<'a>(index: usize) -> Eval<'a> {
    let (_, _, format) = FORMATS.get(index).ok_or_else(EvalError::no_such_overload)?;
    Ok(Value::Native(Native(Kind::Format(format))))
}

fn named<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(name)] => {
            let found = FORMATS.iter().find(|(key, _, _)| *key == &**name);
            Ok(Value::optional(found.map(|(_, _, format)| Value::Native(Native(Kind::Format(format))))))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn validate<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::Native(Native(Kind::Format(format))), Value::String(text)] => {
            let wrong: Vec<Value<'a>> = (format.validate)(text).into_iter().map(Value::from).collect();
            Ok(Value::optional((!wrong.is_empty()).then(|| Value::from(wrong))))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn unless(valid: bool, message: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![message.to_owned()] }
}

/// A dash at the end of a prefix stands for what will follow it.
fn masked(text: &str) -> String {
    match text.char_indices().rev().nth(1) {
        Some((before, _)) if text.ends_with('-') => format!("{}a", &text[..before]),
        _ => text.to_owned(),
    }
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

/// A label of lower-case letters, digits and dashes, that neither begins nor ends with a dash.
fn label_like(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub(super) fn is_dns_label(text: &str) -> bool {
    dns1123_label(text).is_empty()
}

pub(super) fn is_dns_subdomain(text: &str) -> bool {
    dns1123_subdomain(text).is_empty()
}

fn too_long(text: &str, most: usize, unit: &str) -> Vec<String> {
    if text.len() > most { vec![format!("must be no more than {most} {unit}")] } else { Vec::new() }
}

fn dns1123_label(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, LABEL_MAX, "characters");
    if !label_like(text) {
        wrong.push(if text.split('.').all(label_like) {
            "must not contain dots".to_owned()
        } else {
            format!(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{LABEL}')"
            )
        });
    }
    wrong
}

fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, SUBDOMAIN_MAX, "characters");
    if !text.split('.').all(label_like) {
        wrong.push(format!(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{SUBDOMAIN}')"
        ));
    }
    wrong
}

fn dns1035_label(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, LABEL_MAX, "characters");
    if !label_like(text) || text.starts_with(|letter: char| letter.is_ascii_digit()) {
        wrong.push(format!(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '{LABEL_1035}')"
        ));
    }
    wrong
}

fn name_like(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() && bytes.iter().all(inner)
        }
        _ => false,
    }
}

fn name_error(part: &str) -> String {
    format!(
        "{part} {NAME_RULE} (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{NAME}')"
    )
}

fn qualified_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        ["", name] => {
            wrong.push("prefix part must be non-empty".to_owned());
            *name
        }
        [prefix, name] => {
            wrong.extend(dns1123_subdomain(prefix).iter().map(|message| format!("prefix part {message}")));
            *name
        }
        _ => {
            let message = name_error("a valid label key");
            wrong.push(format!(
                "{message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return wrong;
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    }
    wrong.extend(too_long(name, LABEL_MAX, "bytes").iter().map(|message| format!("name part {message}")));
    if !name_like(name) {
        wrong.push(name_error("name part"));
    }
    wrong
}

fn label_value(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, LABEL_MAX, "bytes");
    if !text.is_empty() && !name_like(text) {
        wrong.push(format!(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '({NAME})?')"
        ));
    }
    wrong
}

fn uuid(text: &str) -> Vec<String> {
    static UUID: LazyLock<Option<regex::Regex>> = LazyLock::new(|| {
        regex::Regex::new("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$").ok()
    });
    unless(UUID.as_ref().is_some_and(|uuid| uuid.is_match(text)), "does not match the UUID format")
}
