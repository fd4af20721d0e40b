//! From a CustomResourceDefinition to a [`ResourceDef`].

use std::sync::Arc;

use kschema::{Catalog, jsonpath::JsonPath, structural::Structural};
use serde_json::Value;

use super::{Conversion, Definition, ScalePaths, Structure, names, rules::Rules, strategy::CustomStrategy};
use crate::registry::{Origin, ResourceDef, Traits, Verbs, Version};

/// One additional printer column.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    pub(crate) path: Option<JsonPath>,
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The resource that a definition stands for; `None` while its names are not accepted, or its schema can't be read.
pub(super) fn served(catalog: &Arc<Catalog>, crd: &Value) -> Option<ResourceDef> {
    if !names::is_true(crd, "NamesAccepted") && !names::is_true(crd, "Established") {
        return None;
    }
    let spec = &crd["spec"];
    let accepted = &crd["status"]["acceptedNames"];
    let group = text(spec, "group");
    let mut versions = Vec::new();
    for version in spec["versions"].as_array()? {
        let name = text(version, "name");
        let kind = text(accepted, "kind");
        let structure = structure(version, &group, &name, &kind)?;
        let schema = structure.as_type();
        let version_of = Version { name, schema, structure: Some(Arc::new(structure)) };
        // The storage version comes first.
        if version["storage"] == true { versions.insert(0, version_of) } else { versions.push(version_of) }
    }
    let conversion = match spec["conversion"]["strategy"].as_str() {
        Some("Webhook") => Conversion::Webhook(Arc::new(spec["conversion"]["webhook"].clone())),
        _ => Conversion::None,
    };
    let selectable = spec["versions"].as_array().into_iter().flatten().flat_map(|version| {
        version["selectableFields"].as_array().into_iter().flatten().map(|field| text(field, "jsonPath"))
    });
    let mut selectable: Vec<Arc<str>> =
        selectable.map(|path| Arc::from(path.trim_start_matches('.'))).collect();
    selectable.sort();
    selectable.dedup();
    Some(ResourceDef {
        group,
        plural: text(accepted, "plural"),
        singular: text(accepted, "singular"),
        kind: text(accepted, "kind"),
        short_names: texts(&accepted["shortNames"]),
        categories: texts(&accepted["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: Verbs::All,
        subresources: Vec::new(),
        selectable,
        indexed: Vec::new(),
        traits: Traits { generation: true, needs_revision: true, ..Traits::default() },
        strategy: Arc::new(CustomStrategy::new(catalog, &versions)),
        versions,
        seal: None,
        origin: Origin::Structural(Arc::new(Definition {
            from_object: true,
            terminating: names::is_true(crd, "Terminating"),
            conversion,
            list_kind: text(accepted, "listKind"),
            since: 0,
            derived: None,
        })),
    })
}

fn structure(version: &Value, group: &str, name: &str, kind: &str) -> Option<Structure> {
    let schema = Structural::compile(&version["schema"]["openAPIV3Schema"]).ok()?;
    let rules = Rules::compile(&schema);
    let parts = &version["subresources"];
    let subresources = ["status", "scale"].into_iter().filter(|part| parts[part].is_object());
    let scale = parts["scale"].is_object().then(|| {
        let path = |key: &str| text(&parts["scale"], key).trim_start_matches('.').to_owned();
        ScalePaths {
            spec_replicas: path("specReplicasPath"),
            status_replicas: path("statusReplicasPath"),
            selector: Some(path("labelSelectorPath")).filter(|path| !path.is_empty()),
        }
    });
    let warning = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
        Some(words) => words.to_owned(),
        None => format!("{group}/{name} {kind} is deprecated"),
    });
    Some(Structure {
        schema: Arc::new(schema),
        rules,
        source: version["schema"]["openAPIV3Schema"].clone(),
        served: version["served"] == true,
        subresources: subresources.map(str::to_owned).collect(),
        scale,
        columns: columns(&version["additionalPrinterColumns"]),
        warning,
    })
}

/// The columns of a version; without any, upstream shows the age.
fn columns(list: &Value) -> Vec<Column> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return age();
    }
    let column = |column: &Value| {
        let path = text(column, "jsonPath");
        let description = match text(column, "description") {
            words if words.is_empty() => {
                format!("Custom resource definition column (in JSONPath format): {path}")
            }
            words => words,
        };
        Column {
            name: text(column, "name"),
            kind: text(column, "type"),
            format: text(column, "format"),
            description,
            priority: column["priority"].as_i64().unwrap_or(0),
            path: JsonPath::parse(&path).ok(),
        }
    };
    list.iter().map(column).collect()
}

/// The column that is there when there are no others.
pub(super) fn age() -> Vec<Column> {
    vec![Column {
        name: "Age".to_owned(),
        kind: "date".to_owned(),
        format: String::new(),
        description: "How long ago the object was created.".to_owned(),
        priority: 0,
        path: JsonPath::parse(".metadata.creationTimestamp").ok(),
    }]
}
