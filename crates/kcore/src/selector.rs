//! Label and field selectors, parsed as the API server reads them from a query.

use std::fmt;

use crate::object::{Header, Labels};

/// The largest selector that is parsed, in bytes.
pub const SELECTOR_BYTES_MAX: usize = 64 * 1024;

/// A selector that can't be read; the message is worded as upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How its value is compared.
    pub operator: Operator,
    /// What it is compared with; empty for the two existence operators.
    pub values: Vec<String>,
}

/// The operators of label selectors (`k8s.io/apimachinery/pkg/selection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label is there and has one of the values.
    In,
    /// The label is missing or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The label is a number greater than the value.
    GreaterThan,
    /// The label is a number less than the value.
    LessThan,
}

/// A conjunction of requirements on labels. The empty selector selects everything.
///
/// ```
/// use kcore::selector::LabelSelector;
/// let selector = LabelSelector::parse("tier=web,version notin (v1,v2)")?;
/// assert!(selector.matches_pairs([("tier", "web")]));
/// assert!(!selector.matches_pairs([("tier", "web"), ("version", "v2")]));
/// # Ok::<(), kcore::selector::SelectorError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Parses the `labelSelector` query parameter.
    ///
    /// # Errors
    /// When the text is no selector, a key or value is not valid for labels, or it is longer than
    /// [`SELECTOR_BYTES_MAX`].
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError(format!("selector is longer than {SELECTOR_BYTES_MAX} bytes")));
        }
        Parser { text, at: 0 }.selector()
    }

    /// A selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Self { requirements: requirements.into_iter().collect() }
    }

    /// A selector as API objects have it (`metav1.LabelSelector`): the labels that must be there, and expressions of a key, an
    /// operator and values. `None` for an operator that there is not, which the API server refuses.
    ///
    /// ```
    /// use kcore::selector::LabelSelector;
    /// let selector = LabelSelector::of_object([("app", "a")], [("tier", "NotIn", vec!["db".to_owned()])]);
    /// assert!(selector.is_some_and(|selector| selector.matches_pairs([("app", "a")])));
    /// assert_eq!(LabelSelector::of_object([], [("tier", "Near", Vec::new())]), None);
    /// ```
    pub fn of_object<'a>(
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        expressions: impl IntoIterator<Item = (&'a str, &'a str, Vec<String>)>,
    ) -> Option<Self> {
        let labels = labels.into_iter().map(|(key, value)| {
            Some(Requirement { key: key.to_owned(), operator: Operator::In, values: vec![value.to_owned()] })
        });
        let expressions = expressions.into_iter().map(|(key, operator, values)| {
            let operator = match operator {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            Some(Requirement { key: key.to_owned(), operator, values })
        });
        labels.chain(expressions).collect::<Option<Vec<_>>>().map(Self::new)
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether the labels meet every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_with(|key| labels.get(key))
    }

    /// Whether labels that `get` looks up meet every requirement.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(get(&requirement.key)))
    }

    /// Whether these pairs meet every requirement.
    pub fn matches_pairs<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> bool {
        let pairs: Vec<_> = pairs.into_iter().collect();
        self.matches_with(|key| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| *value))
    }
}

impl Requirement {
    /// Whether a label with this value (`None`: no such label) meets the requirement.
    #[must_use]
    pub fn matches(&self, value: Option<&str>) -> bool {
        let has = |value: &str| self.values.iter().any(|candidate| candidate == value);
        let number = |compare: fn(i64, i64) -> bool| {
            let bound = self.values.first().and_then(|text| text.parse::<i64>().ok());
            let value = value.and_then(|text| text.parse::<i64>().ok());
            value.zip(bound).is_some_and(|(value, bound)| compare(value, bound))
        };
        match self.operator {
            Operator::In => value.is_some_and(has),
            Operator::NotIn => !value.is_some_and(has),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => number(|value, bound| value > bound),
            Operator::LessThan => number(|value, bound| value < bound),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let (key, values) = (&requirement.key, requirement.values.join(","));
            match requirement.operator {
                Operator::In if requirement.values.len() == 1 => write!(f, "{key}={values}")?,
                Operator::NotIn if requirement.values.len() == 1 => write!(f, "{key}!={values}")?,
                Operator::In => write!(f, "{key} in ({values})")?,
                Operator::NotIn => write!(f, "{key} notin ({values})")?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan => write!(f, "{key}>{values}")?,
                Operator::LessThan => write!(f, "{key}<{values}")?,
            }
        }
        Ok(())
    }
}

/// A recursive-descent parser for the grammar in `k8s.io/apimachinery/pkg/labels`.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'a str),
    End,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Token<'a> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at += rest.len() - trimmed.len();
        let Some(first) = trimmed.chars().next() else {
            return Token::End;
        };
        let special = |c: char| "=!(),><".contains(c);
        let length = if special(first) {
            if trimmed.starts_with("==") || trimmed.starts_with("!=") { 2 } else { 1 }
        } else {
            trimmed.find(|c: char| special(c) || c.is_ascii_whitespace()).unwrap_or(trimmed.len())
        };
        self.at += length;
        let text = &trimmed[..length];
        if special(first) { Token::Symbol(text) } else { Token::Word(text) }
    }

    fn peek(&mut self) -> Token<'a> {
        let at = self.at;
        let token = self.next();
        self.at = at;
        token
    }

    fn selector(&mut self) -> Result<LabelSelector, SelectorError> {
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(LabelSelector::default());
        }
        loop {
            requirements.push(self.requirement()?);
            match self.next() {
                Token::End => break,
                Token::Symbol(",") => match self.peek() {
                    Token::Word(_) | Token::Symbol("!") => {}
                    other => return Err(found(&other, "identifier after ','")),
                },
                other => return Err(found(&other, "',' or 'end of string'")),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements })
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.peek() == Token::Symbol("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key.to_owned(),
            other => return Err(found(&other, "!, identifier, or 'end of string'")),
        };
        if let Some(fault) = key_fault(&key) {
            return Err(SelectorError(format!("key: Invalid value: \"{key}\": {fault}")));
        }
        if absent {
            return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() });
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() });
        }
        let (operator, several) = match self.next() {
            Token::Symbol("=" | "==") => (Operator::In, false),
            Token::Symbol("!=") => (Operator::NotIn, false),
            Token::Symbol(">") => (Operator::GreaterThan, false),
            Token::Symbol("<") => (Operator::LessThan, false),
            Token::Word("in") => (Operator::In, true),
            Token::Word("notin") => (Operator::NotIn, true),
            other => return Err(found(&other, "in, notin, =, ==, !=, gt, lt")),
        };
        let values = if several { self.values()? } else { vec![self.value()] };
        for (index, value) in values.iter().enumerate() {
            let fault = match operator {
                Operator::GreaterThan | Operator::LessThan if value.parse::<i64>().is_err() => {
                    Some("for 'Gt', 'Lt' operators, the value must be an integer".to_owned())
                }
                _ => value_fault(value),
            };
            if let Some(fault) = fault {
                return Err(SelectorError(format!(
                    "values[{index}][{key}]: Invalid value: \"{value}\": {fault}"
                )));
            }
        }
        Ok(Requirement { key, operator, values })
    }

    fn value(&mut self) -> String {
        match self.peek() {
            Token::Word(value) => {
                self.next();
                value.to_owned()
            }
            _ => String::new(),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(found(&other, "'('")),
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value());
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => break,
                other => return Err(found(&other, "',' or ')'")),
            }
        }
        values.sort_unstable();
        values.dedup();
        Ok(values)
    }
}

fn found(token: &Token<'_>, expected: &str) -> SelectorError {
    let text = match token {
        Token::Word(text) | Token::Symbol(text) => text,
        Token::End => "",
    };
    SelectorError(format!("unable to parse requirement: found '{text}', expected: {expected}"))
}

/// What is wrong with a label's key (a qualified name), in upstream's words; `None` when nothing is.
#[must_use]
pub fn key_fault(key: &str) -> Option<String> {
    const NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    const PREFIX: &str = "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) if !name.contains('/') => (Some(prefix), name),
        Some(_) => {
            return Some("a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".to_owned());
        }
        None => (None, key),
    };
    match prefix {
        Some("") => return Some("prefix part must be non-empty".to_owned()),
        Some(prefix) if prefix.len() > 253 => {
            return Some("prefix part must be no more than 253 bytes".to_owned());
        }
        Some(prefix) if !is_dns_subdomain(prefix) => return Some(PREFIX.to_owned()),
        _ => {}
    }
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 bytes".to_owned());
    }
    (!is_label_text(name)).then(|| NAME.to_owned())
}

/// What is wrong with a label's value, in upstream's words; `None` when nothing is.
#[must_use]
pub fn value_fault(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!value.is_empty() && !is_label_text(value)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".to_owned()
    })
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Whether `text` is a lower-case RFC 1123 subdomain, of any length.
#[must_use]
pub fn is_dns_subdomain(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(is_dns_label)
}

/// Whether `text` is a lower-case RFC 1123 label, of any length.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let good = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.first().is_some_and(good)
        && bytes.last().is_some_and(good)
        && bytes.iter().all(|byte| good(byte) || *byte == b'-')
}

/// A conjunction of comparisons of an object's selectable fields.
///
/// The syntax is `path=value`, `path==value` and `path!=value`, separated by commas, with `\` before a comma, an equals
/// sign or a backslash that is meant as itself (`k8s.io/apimachinery/pkg/fields`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One comparison of a [`FieldSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// The field's path, such as `spec.nodeName`.
    pub path: String,
    /// Whether the field must have the value (`true`) or must not (`false`).
    pub equal: bool,
    /// The value.
    pub value: String,
}

impl FieldSelector {
    /// Parses the `fieldSelector` query parameter. Whether a path is selectable is for the caller to check.
    ///
    /// # Errors
    /// When a term has no operator or a value ends inside an escape.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError(format!("selector is longer than {SELECTOR_BYTES_MAX} bytes")));
        }
        let invalid =
            |part: &str| SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'"));
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let at = part.find('=').ok_or_else(|| invalid(part))?;
            let (path, equal) = match part[..at].strip_suffix('!') {
                Some(path) => (path, false),
                None => (&part[..at], true),
            };
            let value = &part[at + 1..];
            let value = if equal { value.strip_prefix('=').unwrap_or(value) } else { value };
            let value = unescape(value).ok_or_else(|| invalid(part))?;
            terms.push(FieldTerm { path: path.to_owned(), equal, value });
        }
        Ok(Self { terms })
    }

    /// A selector of these comparisons.
    pub fn new(terms: impl IntoIterator<Item = FieldTerm>) -> Self {
        Self { terms: terms.into_iter().collect() }
    }

    /// The comparisons.
    #[must_use]
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `path` must have, if there is such a term.
    #[must_use]
    pub fn required(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.path == path).map(|term| term.value.as_str())
    }

    /// Whether the header's fields meet every comparison; a field that the object lacks is empty.
    #[must_use]
    pub fn matches(&self, header: &Header) -> bool {
        self.terms
            .iter()
            .all(|term| (header.field(&term.path).unwrap_or_default() == term.value) == term.equal)
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|next| matches!(next, '\\' | ',' | '='))?),
            '=' | ',' => return None,
            _ => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, labels: &[(&str, &str)]) -> bool {
        LabelSelector::parse(text).unwrap().matches_pairs(labels.iter().copied())
    }

    #[test]
    fn label_selectors_match_as_upstream() {
        let web = [("app", "web"), ("n", "5")];
        for (text, matches) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=web", true),
            ("app==web,n", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (a, web)", true),
            ("app notin (a, web)", false),
            ("other notin (a)", true),
            ("n>4", true),
            ("n<5", false),
            ("other=", false),
            ("other in ()", false),
        ] {
            assert_eq!(check(text, &web), matches, "{text}");
        }
    }

    #[test]
    fn bad_label_selectors_are_refused_in_upstreams_words() {
        for (text, message) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b', expected: '('"),
            ("a,", "unable to parse requirement: found '', expected: identifier after ','"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        assert!(LabelSelector::parse("a=b/c").is_err());
        assert!(LabelSelector::parse("-a=b").is_err());
        assert!(LabelSelector::parse("a>x").is_err());
    }

    #[test]
    fn field_selectors_unescape_values() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b,spec.x!=\\").unwrap();
        assert_eq!(selector.required("metadata.name"), Some("a,b"));
        assert_eq!(
            selector.terms()[1],
            FieldTerm { path: "spec.x".into(), equal: false, value: "\\".into() }
        );
        assert!(FieldSelector::parse("metadata.name").is_err());
    }
}
