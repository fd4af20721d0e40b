//! Kinds of the embedder's own, from Rust types.

use std::{any::TypeId, sync::Arc};

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kschema::{
    error::FieldError,
    jsonpath::JsonPath,
    strategy::{Held, NameRule, Plain, Strategy},
    structural::Structural,
};
use schemars::{JsonSchema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Value, json};

use super::{Conversion, Definition, ScalePaths, Structure, definition::Column, strategy::CustomStrategy};
use crate::derived::Derive;
use crate::registry::{Origin, ResourceDef, Traits, Verbs, Version};

/// Why a type can't be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KindError {
    /// Its schema is not structural.
    #[error("the schema of {kind} is not structural: {why}")]
    Schema {
        /// The kind.
        kind: String,
        /// What is wrong with it.
        why: String,
    },
    /// A path that was given can't be read.
    #[error("{path:?} is no path: {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A kind of the embedder's own on its way to a [`ResourceDef`]; made by [`ResourceDef::of`].
#[must_use = "a kind is served when it is given to `ApiServerBuilder::kind`"]
#[derive(Debug)]
pub struct OwnKind {
    def: ResourceDef,
    source: Value,
    subresources: Vec<String>,
    scale: Option<ScalePaths>,
    columns: Vec<Column>,
    strategy: Arc<dyn Strategy>,
    derived: Option<Arc<dyn Derive>>,
}

impl ResourceDef {
    /// A kind that a Rust type describes: its group, version and names come from [`kube_core::Resource`], its schema from
    /// [`JsonSchema`] (kube's derive gives both). It is served as a custom resource is: pruned, defaulted and validated by its
    /// schema, with what a [`Strategy`] in Rust says beyond it.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use kapi::{ApiServer, registry::ResourceDef, error::FieldError, strategy::Strategy};
    /// use kube::CustomResource;
    /// use schemars::JsonSchema;
    /// use serde::{Deserialize, Serialize};
    /// use serde_json::Value;
    ///
    /// #[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
    /// #[kube(group = "example.com", version = "v1", kind = "Shirt", namespaced)]
    /// struct ShirtSpec { color: String, #[serde(default)] size: Option<u32> }
    ///
    /// /// What the schema can't say.
    /// #[derive(Debug)]
    /// struct Rules;
    /// impl Strategy for Rules {
    ///     fn validate(&self, shirt: &Value, errors: &mut Vec<FieldError>) {
    ///         if shirt["spec"]["color"] == "green" {
    ///             errors.push(FieldError::invalid_text("spec.color", "green", "is out of fashion"));
    ///         }
    ///     }
    /// }
    ///
    /// let shirts = ResourceDef::of::<Shirt>().strategy(Arc::new(Rules)).column("Color", "string", ".spec.color")?.build()?;
    /// let server = ApiServer::builder().kind(shirts).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of<K>() -> OwnKind
    where
        K: kube_core::Resource<DynamicType = ()> + JsonSchema,
        K::Scope: 'static,
    {
        let settings = SchemaSettings::openapi3().with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        });
        let settings = settings.with_transform(kube_core::schema::StructuralSchemaRewriter);
        let settings = settings.with_transform(RecursiveTransform(drop_titles));
        let mut source = settings.into_generator().into_root_schema_for::<K>().to_value();
        if let Some(map) = source.as_object_mut() {
            map.remove("$schema");
            map.remove("components");
            map.insert("type".to_owned(), json!("object"));
        }
        if let Some(properties) = source["properties"].as_object_mut() {
            properties.remove("apiVersion");
            properties.remove("kind");
            properties.insert("metadata".to_owned(), json!({"type": "object"}));
        }
        if let Some(required) = source["required"].as_array_mut() {
            required.retain(|name| !["apiVersion", "kind", "metadata"].iter().any(|own| name == own));
            if required.is_empty()
                && let Some(map) = source.as_object_mut()
            {
                map.remove("required");
            }
        }
        let scope = TypeId::of::<K::Scope>();
        let namespaced = scope == TypeId::of::<NamespaceResourceScope>();
        debug_assert!(
            namespaced || scope == TypeId::of::<ClusterResourceScope>(),
            "a scope that kube doesn't know"
        );
        let (group, version) = (K::group(&()), K::version(&()));
        OwnKind::new(&group, &version, (&K::kind(&()), &K::plural(&())), namespaced, source)
    }
}

/// Takes away what generators write and structural schemas don't have.
fn drop_titles(schema: &mut schemars::Schema) {
    schema.remove("title");
    schema.remove("$schema");
}

impl OwnKind {
    /// A kind with a schema as text would have it; `names` are its kind and its plural name.
    pub(crate) fn new(
        group: &str,
        version: &str,
        names: (&str, &str),
        namespaced: bool,
        source: Value,
    ) -> Self {
        let (kind, plural) = names;
        let def = ResourceDef {
            group: group.to_owned(),
            versions: vec![Version {
                name: version.to_owned(),
                schema: crate::schema::Type::Any,
                structure: None,
            }],
            singular: kind.to_lowercase(),
            plural: plural.to_owned(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced,
            verbs: Verbs::All,
            subresources: Vec::new(),
            selectable: Vec::new(),
            indexed: Vec::new(),
            traits: Traits { generation: true, needs_revision: true, ..Traits::default() },
            strategy: Arc::new(Plain),
            origin: Origin::BuiltIn,
            seal: None,
            kind: kind.to_owned(),
        };
        Self {
            def,
            source,
            subresources: Vec::new(),
            scale: None,
            columns: Vec::new(),
            strategy: Arc::new(Plain),
            derived: None,
        }
    }

    /// Another singular name than the kind in lower case.
    pub fn singular(mut self, name: impl Into<String>) -> Self {
        self.def.singular = name.into();
        self
    }

    /// Keeps no objects of this kind: they are made of others when they are asked for.
    pub fn derived(mut self, from: Arc<dyn Derive>) -> Self {
        self.def.verbs = Verbs::ReadOnly;
        self.derived = Some(from);
        self
    }

    /// Defaults, checks and preparation in Rust, beside what the schema says.
    pub fn strategy(mut self, strategy: Arc<dyn Strategy>) -> Self {
        self.strategy = strategy;
        self
    }

    /// Keeps the status apart: it is written through the subresource `status` alone.
    pub fn status(mut self) -> Self {
        self.subresources.push("status".to_owned());
        self
    }

    /// Serves the subresource `scale`; paths such as `spec.replicas`.
    pub fn scale(mut self, paths: ScalePaths) -> Self {
        self.subresources.push("scale".to_owned());
        self.scale = Some(paths);
        self
    }

    /// Short names for command lines.
    pub fn short_names<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.def.short_names = names.into_iter().map(Into::into).collect();
        self
    }

    /// Categories, such as `all`.
    pub fn categories<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.def.categories = names.into_iter().map(Into::into).collect();
        self
    }

    /// Lets field selectors name these paths, such as `spec.color`; they are indexed, so a list or watch by one of them reads
    /// only what it gives.
    pub fn selectable<S: AsRef<str>>(mut self, paths: impl IntoIterator<Item = S>) -> Self {
        self.def.selectable =
            paths.into_iter().map(|path| path.as_ref().trim_start_matches('.').into()).collect();
        self.def.indexed = self.def.selectable.clone();
        self
    }

    /// Shows a column in tables: its name, its type (`string`, `integer`, `number`, `boolean`, `date`) and where its values
    /// are, such as `.spec.color`.
    ///
    /// # Errors
    /// When the path can't be read.
    pub fn column(mut self, name: &str, kind: &str, path: &str) -> Result<Self, KindError> {
        let fault =
            |error: &dyn std::fmt::Display| KindError::Path { path: path.to_owned(), why: error.to_string() };
        let parsed = JsonPath::parse(path).map_err(|error| fault(&error))?;
        self.columns.push(Column {
            name: name.to_owned(),
            kind: kind.to_owned(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            path: Some(parsed),
        });
        Ok(self)
    }

    /// The definition, to be served with [`ApiServerBuilder::kind`](crate::ApiServerBuilder::kind).
    ///
    /// # Errors
    /// When the type's schema is not structural.
    pub fn build(self) -> Result<ResourceDef, KindError> {
        let Self { mut def, source, subresources, scale, columns, strategy, derived } = self;
        let schema = Structural::compile(&source)
            .map_err(|error| KindError::Schema { kind: def.kind.clone(), why: error.to_string() })?;
        let rules = super::rules::Rules::compile(&schema);
        let structure = Structure {
            rules,
            schema: Arc::new(schema),
            source,
            served: true,
            subresources,
            scale,
            columns: if columns.is_empty() { super::definition::age() } else { columns },
            warning: None,
        };
        def.origin = Origin::Structural(Arc::new(Definition {
            from_object: false,
            terminating: false,
            conversion: Conversion::None,
            list_kind: format!("{}List", def.kind),
            since: 0,
            derived,
        }));
        def.versions[0].schema = structure.as_type();
        def.versions[0].structure = Some(Arc::new(structure));
        def.strategy = Arc::new(Own {
            schema: CustomStrategy::new(&crate::schema::builtin::catalog(), &def.versions),
            own: strategy,
        });
        Ok(def)
    }
}

/// What the schema says, then what the embedder says.
#[derive(Debug)]
struct Own {
    schema: CustomStrategy,
    own: Arc<dyn Strategy>,
}

impl Strategy for Own {
    fn default(&self, object: &mut Value) {
        self.schema.default(object);
        self.own.default(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        // What a strategy does unless it says otherwise is to drop the status, which only a kind with a status of its own has.
        let status = object.get("status").cloned();
        self.own.prepare_create(object);
        if let (Some(status), Some(map)) = (status, object.as_object_mut())
            && !map.contains_key("status")
        {
            map.insert("status".to_owned(), status);
        }
        self.schema.prepare_create(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        self.schema.prepare_update(object, old);
        self.own.prepare_update(object, old);
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        self.own.prepare_status(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        self.schema.validate(object, errors);
        self.own.validate(object, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.schema.validate_change(object, old, errors);
        self.own.validate_change(object, old, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.schema.validate_status(object, old, errors);
        self.own.validate_status(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        self.own.warnings(object, old)
    }

    fn name_rule(&self) -> NameRule {
        self.own.name_rule()
    }

    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        self.own.grace_seconds(object, requested)
    }

    fn claims(&self, object: &Value) -> Vec<String> {
        self.own.claims(object)
    }

    fn allocates(&self) -> bool {
        self.own.allocates()
    }

    fn allocate(&self, object: &mut Value, old: Option<&Value>, held: &dyn Held) -> Result<(), FieldError> {
        self.own.allocate(object, old, held)
    }
}
