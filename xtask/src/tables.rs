//! The schema table that the other tables are made along.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};

/// The schema table, relative to the workspace.
pub(crate) const SCHEMA: &str = "crates/kschema/src/builtin.txt";

/// One line of the schema table.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    /// The name: `~` stands for `io.k8s.api.`, `^` for the meta/v1 package.
    pub(crate) short: String,
    /// Whether it is a kind of its own.
    pub(crate) has_kind: bool,
    /// The fields with their types.
    pub(crate) fields: BTreeMap<String, String>,
}

/// All definitions, in the table's order.
pub(crate) fn schema() -> Result<Vec<Definition>> {
    let text = fs::read_to_string(root().join(SCHEMA)).context("reading the schema table")?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines.map(definition).collect())
}

fn definition(line: &str) -> Definition {
    let mut parts = line.split('\t');
    let head = parts.next().unwrap_or_default();
    let fields = parts.filter_map(|part| {
        let (name, rest) = part.split_once(':')?;
        let ty = rest.split(';').next().unwrap_or_default();
        Some((name.trim_end_matches('!').to_owned(), ty.to_owned()))
    });
    Definition {
        short: head.split(' ').next().unwrap_or_default().to_owned(),
        has_kind: head.contains(" gvk="),
        fields: fields.collect(),
    }
}

/// The full name of a definition.
pub(crate) fn long(short: &str) -> String {
    if let Some(rest) = short.strip_prefix('~') {
        return format!("io.k8s.api.{rest}");
    }
    short
        .strip_prefix('^')
        .map_or_else(|| short.to_owned(), |rest| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{rest}"))
}

/// The workspace, from wherever this is run.
pub(crate) fn root() -> &'static std::path::Path {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
