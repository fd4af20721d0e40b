//! Every part of a schema, with its place: for what is compiled from a schema elsewhere, such as rules in CEL.

use super::{Additional, Structural};
use crate::types::ListKind;

/// A part of a schema and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The place in the CustomResourceDefinition, such as `spec.versions[0].schema.openAPIV3Schema.properties[spec]`.
    pub path: &'a str,
    /// The part.
    pub schema: &'a Structural,
    /// The list whose entries cannot be told from each other over a change, if this is in one: rules may not speak of `oldSelf`.
    pub uncorrelatable: Option<&'a str>,
}

impl Structural {
    /// Calls `each` with this schema, which stands at `path`, and every part of it: fields, entries, other fields. What stands
    /// below `allOf` and its like is no part.
    ///
    /// ```
    /// use kschema::structural::Structural;
    /// use serde_json::json;
    ///
    /// let rule = json!([{"rule": "self > 0"}]);
    /// let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "x-kubernetes-validations": rule}}});
    /// let mut found = Vec::new();
    /// Structural::compile(&schema)?.visit("schema", &mut |part| {
    ///     found.extend(part.schema.rules.iter().map(|rule| format!("{}: {}", part.path, rule.rule)));
    /// });
    /// assert_eq!(found, ["schema.properties[n]: self > 0"]);
    /// # Ok::<(), kschema::structural::CompileError>(())
    /// ```
    pub fn visit(&self, path: &str, each: &mut dyn FnMut(Part<'_>)) {
        self.visit_below(path, None, each);
    }

    fn visit_below(&self, path: &str, uncorrelatable: Option<&str>, each: &mut dyn FnMut(Part<'_>)) {
        each(Part { path, schema: self, uncorrelatable });
        if let Additional::Schema(other) = &self.additional {
            other.visit_below(&format!("{path}.additionalProperties"), uncorrelatable, each);
        }
        for (name, property) in &self.properties {
            property.visit_below(&format!("{path}.properties[{name}]"), uncorrelatable, each);
        }
        if let Some(items) = &self.items {
            let here = (!matches!(self.list, ListKind::Map(_))).then_some(path);
            items.visit_below(&format!("{path}.items"), uncorrelatable.or(here), each);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// apiextensions-apiserver, validation.go: entries of lists are told from each other by map keys alone.
    #[test]
    fn parts_are_visited_with_the_lists_that_hide_old_values() {
        let leaf = json!({"type": "string"});
        let entry = json!({"type": "object", "properties": {"k": leaf}});
        let schema = json!({"type": "object", "properties": {
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": entry},
            "list": {"type": "array", "items": {"type": "array", "items": leaf}},
            "other": {"type": "object", "additionalProperties": leaf}}});
        let mut found = Vec::new();
        Structural::compile(&schema).unwrap().visit("s", &mut |part| {
            found.push(format!("{} {}", part.path, part.uncorrelatable.unwrap_or("-")));
        });
        let expected = [
            "s -",
            "s.properties[list] -",
            "s.properties[list].items s.properties[list]",
            "s.properties[list].items.items s.properties[list]",
            "s.properties[map] -",
            "s.properties[map].items -",
            "s.properties[map].items.properties[k] -",
            "s.properties[other] -",
            "s.properties[other].additionalProperties -",
        ];
        assert_eq!(found, expected);
    }
}
