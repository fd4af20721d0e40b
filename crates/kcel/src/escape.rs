//! Names of properties as identifiers, by the rules of `x-kubernetes-validations`.

use std::borrow::Cow;

/// The words of CEL's grammar, which a property of that name is escaped for.
const WORDS: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether a property of that name is escaped because the name is a word of the grammar.
pub(crate) fn is_word(name: &str) -> bool {
    WORDS.contains(&name)
}

const SEQUENCES: &[(&str, &str)] =
    &[("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")];

/// The identifier by which expressions name a property; none if the name has characters that can't be escaped.
///
/// ```
/// use kcel::escape;
/// assert_eq!(escape("namespace").as_deref(), Some("__namespace__"));
/// assert_eq!(escape("x-prop").as_deref(), Some("x__dash__prop"));
/// assert_eq!(escape("redact__d").as_deref(), Some("redact__underscores__d"));
/// assert_eq!(escape("1st"), None);
/// ```
#[must_use]
pub fn escape(name: &str) -> Option<Cow<'_, str>> {
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    if WORDS.contains(&name) {
        return Some(Cow::Owned(format!("__{name}__")));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte)) {
        return None;
    }
    if !name.contains("__") && !name.contains(['.', '-', '/']) {
        return Some(Cow::Borrowed(name));
    }
    let mut escaped = String::with_capacity(name.len() + 16);
    let mut rest = name;
    while !rest.is_empty() {
        match SEQUENCES.iter().find(|(from, _)| rest.starts_with(from)) {
            Some((from, to)) => {
                escaped.push_str(to);
                rest = &rest[from.len()..];
            }
            None => {
                escaped.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    Some(Cow::Owned(escaped))
}

/// The property that an identifier names; none if it has an escape that is none.
///
/// ```
/// use kcel::unescape;
/// assert_eq!(unescape("x__dash__prop").as_deref(), Some("x-prop"));
/// assert_eq!(unescape("x__no__y"), None);
/// ```
#[must_use]
pub fn unescape(name: &str) -> Option<Cow<'_, str>> {
    if !name.contains("__") {
        return Some(Cow::Borrowed(name));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(start) = rest.find("__") {
        // An escape is two underscores, something without underscores, and two underscores.
        let body = &rest[start + 2..];
        let length = body.find('_').unwrap_or(body.len());
        if length == 0 || !body[length..].starts_with("__") {
            // No escape begins here, but one may begin at the next character.
            out.push_str(&rest[..=start]);
            rest = &rest[start + 1..];
            continue;
        }
        let (word, after) = (&body[..length], &body[length + 2..]);
        out.push_str(&rest[..start]);
        match word {
            "underscores" => out.push_str("__"),
            "dot" => out.push('.'),
            "dash" => out.push('-'),
            "slash" => out.push('/'),
            _ if WORDS.contains(&word) && start == 0 && rest.len() == name.len() && after.is_empty() => {
                out.push_str(word);
            }
            _ => return None,
        }
        rest = after;
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}
