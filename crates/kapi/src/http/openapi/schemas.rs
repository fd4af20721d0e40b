//! Definitions: the catalog's types in OpenAPI's terms, with the extensions that Kubernetes adds.

use std::collections::BTreeMap;

use ahash::HashMap;
use serde_json::{Map, Value, json};

use super::Spec;
use crate::{
    registry::Resource,
    schema::{Catalog, Field, ListKind, Object, Type, builtin},
};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// The words of one definition.
#[derive(Debug, Default)]
pub(super) struct Doc {
    pub(super) description: String,
    pub(super) fields: HashMap<String, FieldDoc>,
}

/// The words of one field.
#[derive(Debug, Default)]
pub(super) struct FieldDoc {
    pub(super) description: String,
    /// The definition that the field is of, where the catalog only knows that it is anything.
    pub(super) reference: Option<String>,
}

/// The definitions of one document; those that are referred to come along.
pub(super) struct Schemas<'a> {
    catalog: &'a Catalog,
    spec: Spec,
    docs: HashMap<String, Doc>,
    kinds: HashMap<String, Vec<Value>>,
    made: BTreeMap<String, Value>,
}

impl<'a> Schemas<'a> {
    /// No definitions yet.
    pub(super) fn new(catalog: &'a Catalog, spec: Spec) -> Self {
        let mut kinds: HashMap<String, Vec<Value>> = HashMap::default();
        for (group, version, kind, id) in builtin::kinds(catalog) {
            let name = builtin::full_name(catalog.short_name(id));
            kinds.entry(name).or_default().push(json!({"group": group, "version": version, "kind": kind}));
        }
        Self { catalog, spec, docs: HashMap::default(), kinds, made: BTreeMap::new() }
    }

    /// Takes up the words for the definitions of a group version. Only one group version's are held at a time: all together
    /// take many times the room of the document.
    pub(super) fn begin(&mut self, group: &str, version: &str) {
        self.docs.clear();
        #[cfg(feature = "openapi-docs")]
        self.docs.extend(super::docs::of(group, version));
        #[cfg(not(feature = "openapi-docs"))]
        let _ = (group, version);
    }

    pub(super) fn finish(self) -> Map<String, Value> {
        self.made.into_iter().collect()
    }

    /// A reference to the definition of a resource's kind.
    pub(super) fn of_resource(&mut self, resource: &Resource) -> Value {
        let ty = &resource.version().schema;
        if let Some(structure) = &resource.version().structure {
            return self.structural(resource, &structure.source);
        }
        let (name, mut schema) = match self.catalog.resolve(ty) {
            Some(object) if matches!(ty, Type::Named(_)) => {
                let object = std::sync::Arc::clone(object);
                self.define(&object);
                return self.reference(&object.name);
            }
            Some(object) => {
                let object = std::sync::Arc::clone(object);
                let name = if object.name.is_empty() {
                    super::definition_name(resource)
                } else {
                    object.name.to_string()
                };
                (name, self.object(&object))
            }
            None => (super::definition_name(resource), json!({"type": "object"})),
        };
        let gvk = resource.gvk();
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": gvk.group, "version": gvk.version, "kind": gvk.kind}]);
        self.made.insert(name.clone(), schema);
        self.reference(&name)
    }

    /// A reference to the definition of a kind that brought its own schema, which is published as it was written.
    fn structural(&mut self, resource: &Resource, source: &Value) -> Value {
        let name = super::definition_name(resource);
        if self.made.contains_key(&name) {
            return self.reference(&name);
        }
        let mut schema = if source.is_object() { source.clone() } else { json!({"type": "object"}) };
        if self.spec == Spec::V2 {
            plain(&mut schema, 0);
        }
        let object_meta = self.named("^ObjectMeta");
        let properties = &mut schema["properties"];
        properties["apiVersion"] = json!({"type": "string", "description": "The group and version of the object's form, such as apps/v1."});
        properties["kind"] =
            json!({"type": "string", "description": "The kind of the object, in upper camel case."});
        properties["metadata"] = object_meta;
        let gvk = resource.gvk();
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": gvk.group, "version": gvk.version, "kind": gvk.kind}]);
        self.made.insert(name.clone(), schema);
        self.reference(&name)
    }

    /// A reference to the list of a resource's kind.
    pub(super) fn list_of(&mut self, resource: &Resource) -> Value {
        let item = self.of_resource(resource);
        let gvk = resource.gvk();
        let built_in = self
            .catalog
            .resolve(&resource.version().schema)
            .map(|object| short(&format!("{}List", object.name)));
        if let Some(name) = built_in.filter(|name| self.catalog.find(name).is_some()) {
            return self.named(&name);
        }
        let name = format!("{}List", super::definition_name(resource));
        let meta = self.named("^ListMeta");
        let schema = json!({
            "type": "object", "required": ["items"],
            "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": meta,
                "items": {"type": "array", "items": item}},
            "x-kubernetes-group-version-kind": [{"group": gvk.group, "version": gvk.version, "kind": crate::http::resource::list_kind(resource)}],
        });
        self.made.insert(name.clone(), schema);
        self.reference(&name)
    }

    /// A reference to a built-in definition, given in the catalog's short form; anything if there is none.
    pub(super) fn named(&mut self, short: &str) -> Value {
        let Some(id) = self.catalog.find(short) else {
            return json!({"type": "object"});
        };
        let object = std::sync::Arc::clone(self.catalog.object(id));
        self.define(&object);
        self.reference(&object.name)
    }

    /// A reference to a definition without structure of its own.
    pub(super) fn plain(&mut self, name: &str, schema: Value) -> Value {
        if !self.made.contains_key(name) {
            let mut schema = schema;
            if let Some(doc) = self.docs.get(name) {
                describe(&mut schema, &doc.description);
            }
            self.made.insert(name.to_owned(), schema);
        }
        self.reference(name)
    }

    fn reference(&self, name: &str) -> Value {
        match self.spec {
            Spec::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Spec::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn define(&mut self, object: &Object) {
        if self.made.contains_key(&*object.name) {
            return;
        }
        // Definitions refer to themselves: the place is taken before the fields are looked at.
        self.made.insert(object.name.to_string(), Value::Null);
        let schema = self.object(object);
        self.made.insert(object.name.to_string(), schema);
    }

    fn object(&mut self, object: &Object) -> Value {
        let mut schema = json!({"type": "object"});
        let doc = self.docs.remove(&*object.name).unwrap_or_default();
        describe(&mut schema, &doc.description);
        let is_list = object.name.ends_with("List") && object.field("items").is_some();
        let mut properties = Map::new();
        for field in &object.fields {
            let words = doc.fields.get(&*field.name);
            let mut property = self.field(field, words.and_then(|words| words.reference.as_deref()));
            if let Some(words) = words {
                describe(&mut property, &words.description);
            } else if is_list && cfg!(feature = "openapi-docs") {
                describe(&mut property, list_words(&field.name));
            }
            // As upstream, which leaves them out of the older form.
            let default = object.defaults.iter().find(|(name, _)| *name == field.name);
            if let Some((_, default)) =
                default.filter(|(_, default)| self.spec == Spec::V3 && !default.is_object())
            {
                property["default"] = default.clone();
            }
            properties.insert(field.name.to_string(), property);
        }
        if !properties.is_empty() {
            schema["properties"] = Value::Object(properties);
        }
        let required: Vec<&str> =
            object.fields.iter().filter(|field| field.required).map(|field| &*field.name).collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if let Some(kinds) = self.kinds.get(&*object.name) {
            schema["x-kubernetes-group-version-kind"] = json!(kinds);
        }
        if object.atomic {
            schema["x-kubernetes-map-type"] = json!("atomic");
        }
        schema
    }

    fn field(&mut self, field: &Field, reference: Option<&str>) -> Value {
        let mut schema = match (&field.ty, reference) {
            (Type::Any, Some(name)) => self.plain(name, any(name)),
            (ty, _) => self.ty(ty),
        };
        if self.spec == Spec::V3 && schema.get("$ref").is_some() {
            // A reference must stand alone in OpenAPI 3.0; what is said beside it goes around it.
            schema = json!({ "allOf": [schema] });
        }
        match &field.list {
            ListKind::Unset => {}
            ListKind::Atomic => schema["x-kubernetes-list-type"] = json!("atomic"),
            ListKind::Set => schema["x-kubernetes-list-type"] = json!("set"),
            ListKind::Map(keys) => {
                schema["x-kubernetes-list-type"] = json!("map");
                schema["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
        if field.atomic {
            schema["x-kubernetes-map-type"] = json!("atomic");
        }
        let strategy = match (field.patch_merge, field.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) if field.patch_replace => "replace",
            (false, false) => "",
        };
        if !strategy.is_empty() {
            schema["x-kubernetes-patch-strategy"] = json!(strategy);
        }
        if let Some(key) = &field.merge_key {
            schema["x-kubernetes-patch-merge-key"] = json!(key);
        }
        schema
    }

    fn ty(&mut self, ty: &Type) -> Value {
        let either = |a: &str, b: &str| json!([{"type": a}, {"type": b}]);
        match ty {
            // Kinds with structural schemas are published as they were written.
            Type::Any | Type::Structural(_) => json!({"type": "object"}),
            Type::String => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Time => {
                self.plain(&format!("{META}.Time"), json!({"type": "string", "format": "date-time"}))
            }
            Type::MicroTime => {
                self.plain(&format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"}))
            }
            Type::Quantity => {
                let schema = match self.spec {
                    Spec::V2 => json!({"type": "string"}),
                    Spec::V3 => json!({"oneOf": either("string", "number")}),
                };
                self.plain(QUANTITY, schema)
            }
            Type::IntOrString => {
                let schema = match self.spec {
                    Spec::V2 => json!({"type": "string", "format": "int-or-string"}),
                    Spec::V3 => json!({"oneOf": either("integer", "string"), "format": "int-or-string"}),
                };
                self.plain(INT_OR_STRING, schema)
            }
            Type::List(item) => json!({"type": "array", "items": self.ty(item)}),
            Type::Map(item) => json!({"type": "object", "additionalProperties": self.ty(item)}),
            Type::Named(id) => {
                let object = std::sync::Arc::clone(self.catalog.object(*id));
                self.define(&object);
                self.reference(&object.name)
            }
            Type::Object(object) => {
                let object = std::sync::Arc::clone(object);
                if object.name.is_empty() {
                    return self.object(&object);
                }
                self.define(&object);
                self.reference(&object.name)
            }
        }
    }
}

/// Takes out of a schema what Swagger 2.0 can't say (`ToStructuralOpenAPIV2` of the apiextensions server).
fn plain(schema: &mut Value, depth: usize) {
    let Some(map) = schema.as_object_mut().filter(|_| depth < crate::schema::json::DEPTH_MAX) else {
        return;
    };
    for key in ["allOf", "anyOf", "oneOf", "not", "nullable", "default", "x-kubernetes-validations"] {
        map.remove(key);
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        map.remove("items");
        map.remove("properties");
    }
    if map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        map.remove("type");
    }
    for (key, value) in map.iter_mut() {
        match key.as_str() {
            "properties" => {
                value.as_object_mut().into_iter().flatten().for_each(|(_, value)| plain(value, depth + 1))
            }
            "items" | "additionalProperties" => plain(value, depth + 1),
            _ => {}
        }
    }
}

/// The words of a list's fields; lists have no schemas of their own to take them from.
fn list_words(field: &str) -> &'static str {
    match field {
        "apiVersion" => "The group and version of the list.",
        "kind" => "The kind of the list.",
        "items" => "The objects, in the order of their keys.",
        "metadata" => "Metadata of the list: its version, and where it goes on.",
        _ => "",
    }
}

/// What is known of a definition that may hold anything.
fn any(name: &str) -> Value {
    // These hold more than objects.
    let free = ["JSON", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray"];
    if free.iter().any(|end| name.rsplit('.').next() == Some(end)) {
        json!({})
    } else {
        json!({"type": "object"})
    }
}

fn describe(schema: &mut Value, description: &str) {
    if !description.is_empty() {
        schema["description"] = json!(description);
    }
}

/// A full name in the catalog's short form.
fn short(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("io.k8s.api.") {
        return format!("~{rest}");
    }
    match name.strip_prefix(META) {
        Some(rest) => format!("^{}", rest.trim_start_matches('.')),
        None => name.to_owned(),
    }
}
