//! Reads the messages of upstream's `generated.proto` files.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};

/// A message: its fields by number.
pub(crate) type Message = BTreeMap<u32, Field>;

/// A field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Its name, which is the one in JSON but for structs that stand inline there.
    pub(crate) name: String,
    /// The message type, if it is one, as a full name.
    pub(crate) message: Option<String>,
}

/// All messages below a directory, by their full name in OpenAPI.
pub(crate) fn read(folder: &Path, messages: &mut BTreeMap<String, Message>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read(&path, messages)?;
        } else if path.file_name().is_some_and(|name| name == "generated.proto") {
            parse(&fs::read_to_string(&path)?, messages);
        }
    }
    Ok(())
}

/// Messages stand at the left margin and are not nested; that is how Kubernetes generates them.
fn parse(text: &str, messages: &mut BTreeMap<String, Message>) {
    let mut package = String::new();
    let mut current: Option<(String, Message)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("package ") {
            package = rest.trim_end_matches(';').to_owned();
        } else if let Some(rest) = line.strip_prefix("message ") {
            current = Some((rest.trim_end_matches(['{', ' ', '}']).to_owned(), Message::new()));
            if line.ends_with("{}") {
                finish(&package, current.take(), messages);
            }
        } else if line == "}" {
            finish(&package, current.take(), messages);
        } else if let Some((_, message)) = &mut current
            && let Some((number, field)) = field(&package, line.trim())
        {
            message.insert(number, field);
        }
    }
}

fn finish(package: &str, current: Option<(String, Message)>, messages: &mut BTreeMap<String, Message>) {
    if let Some((name, message)) = current {
        messages.insert(full_name(&format!("{package}.{name}")), message);
    }
}

fn field(package: &str, line: &str) -> Option<(u32, Field)> {
    let line = line.strip_suffix(';').filter(|line| !line.starts_with("//"))?;
    let (declared, number) = line.split_once(" = ")?;
    let number = number.split(' ').next()?.parse().ok()?;
    let (ty, name) = declared.rsplit_once(' ')?;
    let ty = ty.trim_start_matches("optional ").trim_start_matches("repeated ");
    let ty = ty.strip_prefix("map<string, ").map_or(ty, |ty| ty.trim_end_matches('>'));
    let scalar = ["string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double", "float"];
    let message = match ty.strip_prefix('.') {
        _ if scalar.contains(&ty) => None,
        Some(full) => Some(full_name(full)),
        None => Some(full_name(&format!("{package}.{ty}"))),
    };
    Some((number, Field { name: name.to_owned(), message }))
}

/// `k8s.io.api.core.v1.Pod` as OpenAPI names it.
fn full_name(name: &str) -> String {
    let name = name.strip_prefix("k8s.io.").unwrap_or(name);
    let name = name.replace("apiextensions_apiserver.", "apiextensions-apiserver.");
    format!("io.k8s.{}", name.replace("kube_aggregator.", "kube-aggregator."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_generated() {
        let text = "package k8s.io.api.core.v1;\n\n// A pod = 1;\nmessage Pod {\n  // comment = 3;\n  optional \
            .k8s.io.apimachinery.pkg.apis.meta.v1.ObjectMeta metadata = 1;\n\n  repeated Container items = 2;\n  \
            map<string, string> labels = 11;\n}\n\nmessage Empty {\n}\n";
        let mut messages = BTreeMap::new();
        parse(text, &mut messages);
        let field = |name: &str, message: Option<&str>| Field {
            name: name.into(),
            message: message.map(str::to_owned),
        };
        let pod = Message::from([
            (1, field("metadata", Some("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"))),
            (2, field("items", Some("io.k8s.api.core.v1.Container"))),
            (11, field("labels", None)),
        ]);
        let expected = [
            ("io.k8s.api.core.v1.Empty".to_owned(), Message::new()),
            ("io.k8s.api.core.v1.Pod".to_owned(), pod),
        ];
        assert_eq!(messages, BTreeMap::from(expected));
    }
}
