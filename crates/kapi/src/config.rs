//! Configuration files of the server (`audit.k8s.io`, `apiserver.config.k8s.io`): JSON or YAML, read strictly. What is wrong is
//! said with the path of the field.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::http::yaml;

/// The largest configuration file that is read, in bytes.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;

/// Why a configuration file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", if field.is_empty() { String::new() } else { format!("{field}: ") })]
pub struct ConfigError {
    /// The path of the field, such as `rules[0].level`; empty when the file as a whole is wrong.
    pub field: String,
    /// What is wrong with it. Never holds the value of a secret.
    pub why: String,
}

impl ConfigError {
    pub(crate) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

/// Reads a document that must be of this kind, in one of these versions.
pub(crate) fn read(text: &str, kind: &str, versions: &[&str]) -> Result<Value, ConfigError> {
    if text.len() > CONFIG_BYTES_MAX {
        return Err(ConfigError::new("", format!("more than {CONFIG_BYTES_MAX} bytes")));
    }
    let document = yaml::parse(text.as_bytes()).map_err(|why| ConfigError::new("", why))?;
    if !document.twice.is_empty() {
        return Err(ConfigError::new("", yaml::faults(&document.twice)));
    }
    let root = Section::root(&document.value)?;
    let version = root.text("apiVersion")?;
    if !versions.contains(&version) {
        return Err(ConfigError::new(
            "apiVersion",
            format!("{version:?} is none of {}", versions.join(", ")),
        ));
    }
    if root.text("kind")? != kind {
        return Err(ConfigError::new("kind", format!("{:?} is not {kind:?}", root.text("kind")?)));
    }
    Ok(document.value)
}

/// An object of a document, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Section<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(crate) fn root(value: &'a Value) -> Result<Self, ConfigError> {
        Self::at(String::new(), value)
    }

    fn at(path: String, value: &'a Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(fields) => Ok(Self { path, fields }),
            _ => Err(ConfigError::new(path, "is no object")),
        }
    }

    /// The path of a field.
    pub(crate) fn path(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// An error about a field.
    pub(crate) fn wrong(&self, field: &str, why: impl Into<String>) -> ConfigError {
        ConfigError::new(self.path(field), why)
    }

    /// Refuses fields other than these.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), ConfigError> {
        match self.fields.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(self.wrong(key, "unknown field")),
            None => Ok(()),
        }
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is given.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    /// A text; empty if it is not given.
    pub(crate) fn text(&self, field: &str) -> Result<&'a str, ConfigError> {
        match self.get(field) {
            None => Ok(""),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.wrong(field, "is no string")),
        }
    }

    /// A text that must be given.
    pub(crate) fn required(&self, field: &str) -> Result<&'a str, ConfigError> {
        match self.text(field)? {
            "" => Err(self.wrong(field, "Required value")),
            text => Ok(text),
        }
    }

    /// A flag, if it is given.
    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(field, "is no boolean")),
        }
    }

    /// A duration, such as `1m30s`, if it is given.
    pub(crate) fn duration(&self, field: &str) -> Result<Option<Duration>, ConfigError> {
        match self.text(field)? {
            "" => Ok(None),
            text => {
                duration(text).map(Some).ok_or_else(|| self.wrong(field, format!("{text:?} is no duration")))
            }
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, field: &str) -> Result<Vec<String>, ConfigError> {
        let text = |(index, value): (usize, &Value)| {
            let text = value.as_str().map(str::to_owned);
            text.ok_or_else(|| self.wrong(&format!("{field}[{index}]"), "is no string"))
        };
        self.list(field)?.iter().enumerate().map(text).collect()
    }

    fn list(&self, field: &str) -> Result<&'a [Value], ConfigError> {
        match self.get(field) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(self.wrong(field, "is no list")),
        }
    }

    /// An object, if it is given.
    pub(crate) fn section(&self, field: &str) -> Result<Option<Self>, ConfigError> {
        self.get(field).map(|value| Self::at(self.path(field), value)).transpose()
    }

    /// A list of objects.
    pub(crate) fn sections(&self, field: &str) -> Result<Vec<Self>, ConfigError> {
        let items = self.list(field)?.iter().enumerate();
        items.map(|(index, value)| Self::at(self.path(&format!("{field}[{index}]")), value)).collect()
    }
}

/// A duration as Go writes it, of positive parts: `3s`, `1m30s`, `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "\u{b5}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(value.parse::<f64>().ok()? * seconds).ok()?;
        (sum, rest) = (sum.checked_add(part)?, tail);
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: `time.ParseDuration`.
    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, milliseconds) in [
            ("3s", Some(3000)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("10", None),
            ("s", None),
            ("3x", None),
        ] {
            assert_eq!(duration(text).map(|found| found.as_millis()), milliseconds, "{text}");
        }
    }

    #[test]
    fn faults_are_named_by_their_path() {
        let text = "apiVersion: a/v1\nkind: B\nlist: [{x: 1}, {z: no}]";
        let value = read(text, "B", &["a/v1"]).unwrap();
        let root = Section::root(&value).unwrap();
        let items = root.sections("list").unwrap();
        for (error, expected) in [
            (read("kind: B", "B", &["a/v1"]).unwrap_err(), "apiVersion: \"\" is none of a/v1"),
            (read("apiVersion: a/v1\nkind: C", "B", &["a/v1"]).unwrap_err(), "kind: \"C\" is not \"B\""),
            (items[0].text("x").unwrap_err(), "list[0].x: is no string"),
            (items[1].only(&["x"]).unwrap_err(), "list[1].z: unknown field"),
            (items[1].required("x").unwrap_err(), "list[1].x: Required value"),
            (root.texts("list").unwrap_err(), "list[0]: is no string"),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }
}
