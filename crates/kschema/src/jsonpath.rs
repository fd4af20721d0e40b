//! JSONPath as kubectl and CustomResourceDefinitions write it: printer columns, selectable fields, the paths of scales.
//!
//! Upstream has its own dialect (`client-go/util/jsonpath`): paths start with a dot, `\.` is a dot within a name, filters are
//! `[?(@.type=="Ready")]`. What does not exist finds nothing.

use std::cmp::Ordering;

use serde_json::Value;

/// How long a path may be.
pub const PATH_BYTES_MAX: usize = 4096;
/// How many values a path may find.
pub const FOUND_MAX: usize = 10_000;

/// A path that has been read.
///
/// ```
/// use kschema::jsonpath::JsonPath;
/// use serde_json::json;
///
/// let ready = JsonPath::parse(".status.conditions[?(@.type==\"Ready\")].status")?;
/// let object = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
/// assert_eq!(ready.find(&object), [&json!("True")]);
/// # Ok::<(), kschema::jsonpath::JsonPathError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

/// A text that is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonPathError {
    /// The text is longer than [`PATH_BYTES_MAX`].
    #[error("the path is too long")]
    TooLong,
    /// There is something that is no step.
    #[error("unrecognized character in action at byte {0}")]
    Unrecognized(usize),
    /// A bracket or quote is not closed.
    #[error("unterminated array")]
    Unterminated,
    /// What stands in brackets makes no sense.
    #[error("invalid array index {0}")]
    Index(String),
    /// A filter makes no sense.
    #[error("unrecognized filter {0}")]
    Filter(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `.name`, `['name']`
    Field(String),
    /// `.*`, `[*]`
    All,
    /// `..`: everything below, with this.
    Deep,
    /// `[1]`, `[-1]`, `[0:2]`, `[::2]`
    Slice { start: Option<i64>, end: Option<i64>, by: i64, is_index: bool },
    /// `['a','b']`, `[0,2]`
    Union(Vec<Step>),
    /// `[?(@.a == "b")]`
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    test: Option<(Operator, Operand)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(Vec<Step>),
    Value(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Reads a path; a pair of braces around it does not count.
    ///
    /// # Errors
    /// When the text is no path.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(JsonPathError::TooLong);
        }
        let text = text.trim();
        let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        steps(inner.strip_prefix('$').unwrap_or(inner)).map(Self)
    }

    /// Every value that the path leads to, in the order of the object; at most [`FOUND_MAX`].
    #[must_use]
    pub fn find<'v>(&self, object: &'v Value) -> Vec<&'v Value> {
        walk(&self.0, object)
    }

    /// The names on the way, if the path has nothing but names: the field that it speaks of.
    #[must_use]
    pub fn names(&self) -> Option<Vec<&str>> {
        let name = |step: &'_ Step| matches!(step, Step::Field(_));
        self.0.iter().all(name).then(|| {
            let names = self.0.iter().filter_map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                _ => None,
            });
            names.collect()
        })
    }
}

fn walk<'v>(steps: &[Step], object: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![object];
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            apply(step, value, &mut next);
        }
        next.truncate(FOUND_MAX);
        found = next;
    }
    found
}

fn apply<'v>(step: &Step, value: &'v Value, out: &mut Vec<&'v Value>) {
    match step {
        Step::Field(name) => out.extend(value.get(name)),
        Step::All => match value {
            Value::Array(list) => out.extend(list),
            Value::Object(map) => out.extend(map.values()),
            _ => {}
        },
        Step::Deep => deep(value, out),
        Step::Slice { start, end, by, is_index } => {
            if let Value::Array(list) = value {
                slice(list, *start, *end, *by, *is_index, out);
            }
        }
        Step::Union(steps) => steps.iter().for_each(|step| apply(step, value, out)),
        Step::Filter(filter) => {
            if let Value::Array(list) = value {
                out.extend(list.iter().filter(|entry| filter.holds(entry)));
            }
        }
    }
}

fn deep<'v>(value: &'v Value, out: &mut Vec<&'v Value>) {
    if out.len() >= FOUND_MAX {
        return;
    }
    out.push(value);
    match value {
        Value::Array(list) => list.iter().for_each(|entry| deep(entry, out)),
        Value::Object(map) => map.values().for_each(|entry| deep(entry, out)),
        _ => {}
    }
}

fn slice<'v>(
    list: &'v [Value],
    start: Option<i64>,
    end: Option<i64>,
    by: i64,
    is_index: bool,
    out: &mut Vec<&'v Value>,
) {
    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let from_end = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
    let start = from_end(start.unwrap_or(0));
    let end = if is_index { start.saturating_add(1) } else { from_end(end.unwrap_or(length)) };
    let mut at = start.max(0);
    while at < end.min(length) && (start >= 0 || !is_index) {
        out.extend(usize::try_from(at).ok().and_then(|at| list.get(at)));
        at = at.saturating_add(by);
    }
}

impl Filter {
    fn holds(&self, entry: &Value) -> bool {
        let left = self.left.value(entry);
        let Some((operator, right)) = &self.test else { return left.is_some() };
        match (left, right.value(entry)) {
            (Some(left), Some(right)) => operator.holds(left, right),
            _ => false,
        }
    }
}

impl Operand {
    fn value<'v>(&'v self, entry: &'v Value) -> Option<&'v Value> {
        match self {
            Self::Path(steps) => walk(steps, entry).first().copied(),
            Self::Value(value) => Some(value),
        }
    }
}

impl Operator {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(left), Value::Number(right)) => left.as_f64().partial_cmp(&right.as_f64()),
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            (left, right) => (left == right).then_some(Ordering::Equal),
        };
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::NotEqual => order != Some(Ordering::Equal),
            Self::Less => order == Some(Ordering::Less),
            Self::LessOrEqual => order.is_some_and(Ordering::is_le),
            Self::Greater => order == Some(Ordering::Greater),
            Self::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
        }
    }
}

fn steps(text: &str) -> Result<Vec<Step>, JsonPathError> {
    let (mut steps, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Deep);
            let (name, after) = name(after);
            steps.extend((!name.is_empty()).then_some(Step::Field(name)));
            rest = after;
        } else if let Some(after) = rest.strip_prefix('.') {
            let (name, after) = name(after);
            match name.as_str() {
                // A dot alone is the object itself, before brackets nothing.
                "" if after.is_empty() || after.starts_with('[') => {}
                "" => return Err(JsonPathError::Unrecognized(text.len() - after.len())),
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Field(name)),
            }
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (inside, after) = bracket(after)?;
            steps.push(in_brackets(inside)?);
            rest = after;
        } else {
            return Err(JsonPathError::Unrecognized(text.len() - rest.len()));
        }
    }
    Ok(steps)
}

/// A name up to the next step; a backslash takes what follows into it.
fn name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            '.' | '[' | ']' | ' ' | '=' | '!' | '<' | '>' | '(' | ')' | '\'' | '"' | ',' => {
                return (name, &text[at..]);
            }
            c => name.push(c),
        }
    }
    (name, "")
}

/// What stands up to the closing bracket, and what follows it. Quotes and inner brackets are passed over.
fn bracket(text: &str) -> Result<(&str, &str), JsonPathError> {
    let (mut quote, mut depth) = (None, 0_usize);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (_, '\\') => {
                chars.next();
            }
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Ok((&text[..at], &text[at + 1..])),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    Err(JsonPathError::Unterminated)
}

fn in_brackets(text: &str) -> Result<Step, JsonPathError> {
    let text = text.trim();
    if let Some(filter) = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        return filter_of(filter).map(|filter| Step::Filter(Box::new(filter)));
    }
    let mut parts = split(text, ',').into_iter().map(one_in_brackets).collect::<Result<Vec<_>, _>>()?;
    match parts.len() {
        1 => Ok(parts.remove(0)),
        _ => Ok(Step::Union(parts)),
    }
}

fn one_in_brackets(text: &str) -> Result<Step, JsonPathError> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquoted(text) {
        return Ok(Step::Field(name));
    }
    let wrong = || JsonPathError::Index(text.to_owned());
    let number = |text: &str| match text.trim() {
        "" => Ok(None),
        text => text.parse::<i64>().map(Some).map_err(|_| wrong()),
    };
    let parts = text.split(':').map(number).collect::<Result<Vec<_>, _>>()?;
    match parts.as_slice() {
        [Some(at)] => Ok(Step::Slice { start: Some(*at), end: None, by: 1, is_index: true }),
        [start, end] => Ok(Step::Slice { start: *start, end: *end, by: 1, is_index: false }),
        [start, end, by] if by.unwrap_or(1) > 0 => {
            Ok(Step::Slice { start: *start, end: *end, by: by.unwrap_or(1), is_index: false })
        }
        _ => Err(wrong()),
    }
}

/// The parts between separators that stand outside of quotes.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut quote) = (Vec::new(), 0, None);
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if open == c => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == separator => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            None => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unquoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next()? } else { c });
    }
    Some(out)
}

fn filter_of(text: &str) -> Result<Filter, JsonPathError> {
    const OPERATORS: [(&str, Operator); 6] = [
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];
    let wrong = || JsonPathError::Filter(text.to_owned());
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if open == c => quote = None,
            Some(_) => continue,
            None if c == '\'' || c == '"' => quote = Some(c),
            None => {}
        }
        let found = OPERATORS.iter().find(|(symbol, _)| text[at..].starts_with(symbol));
        if let Some((symbol, operator)) = found {
            let left = operand(&text[..at]).ok_or_else(wrong)?;
            let right = operand(&text[at + symbol.len()..]).ok_or_else(wrong)?;
            return Ok(Filter { left, test: Some((*operator, right)) });
        }
    }
    Ok(Filter { left: operand(text).ok_or_else(wrong)?, test: None })
}

fn operand(text: &str) -> Option<Operand> {
    let text = text.trim();
    if let Some(path) = text.strip_prefix('@') {
        return steps(path).ok().map(Operand::Path);
    }
    if let Some(text) = unquoted(text) {
        return Some(Operand::Value(Value::String(text)));
    }
    serde_json::from_str(text).ok().map(Operand::Value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// client-go, util/jsonpath/jsonpath_test.go and parser_test.go.
    #[test]
    fn paths_find_what_upstream_finds() {
        let object = json!({
            "spec": {"replicas": 3, "a.b": "dotted", "list": [1, 2, 3, 4]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "n": 1}, {"type": "Other", "status": "False", "n": 2}]},
        });
        for (path, expected) in [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            ("$.spec.replicas", json!([3])),
            (".spec.none.at.all", json!([])),
            (".spec.a\\.b", json!(["dotted"])),
            (".spec['a.b']", json!(["dotted"])),
            ("['spec'].replicas", json!([3])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([4])),
            (".spec.list[7]", json!([])),
            (".spec.list[-7]", json!([])),
            (".spec.list[1:3]", json!([2, 3])),
            (".spec.list[:2]", json!([1, 2])),
            (".spec.list[-2:]", json!([3, 4])),
            (".spec.list[::2]", json!([1, 3])),
            (".spec.list[0,2]", json!([1, 3])),
            (".spec.list[*]", json!([1, 2, 3, 4])),
            (".status.conditions[*].type", json!(["Ready", "Other"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type == 'Other')].status", json!(["False"])),
            (".status.conditions[?(@.n>1)].type", json!(["Other"])),
            (".status.conditions[?(@.none)].type", json!([])),
            (".status.conditions[?(@.type!=\"Ready\")].type", json!(["Other"])),
            ("..type", json!(["Ready", "Other"])),
            (".spec['replicas','a.b']", json!([3, "dotted"])),
        ] {
            let found = JsonPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let found: Vec<Value> = found.find(&object).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), expected, "{path}");
        }
        assert_eq!(JsonPath::parse(".spec['a.b']").unwrap().names(), Some(vec!["spec", "a.b"]));
        assert_eq!(JsonPath::parse(".spec[0]").unwrap().names(), None);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["spec", ".a[", ".a[x]", ".a['x]", ".a[?(]", ".a[?(x==)]", ".a[1:2:0]", ".a b"] {
            assert!(JsonPath::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[.a\\[\\]'\"?(@)=<>!*:,0-9 \\\\é-]{0,24}") {
            if let Ok(path) = JsonPath::parse(&text) {
                let _ = path.find(&json!({"a": [{"a": 1}, [2]], "": {"a": 0}}));
            }
        }
    }
}
