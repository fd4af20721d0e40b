//! Paths: each resource's addresses, with the operations that its verbs allow.

use serde_json::{Map, Value, json};

use super::{Spec, root, schemas::Schemas};
use crate::{
    http::discovery,
    patch::MEDIA_TYPES,
    registry::{Resource, Verbs},
};

type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "Whether the answer is written for people.");
const DRY_RUN: Parameter = ("dryRun", "string", "If it is All, everything is done but keeping the change.");
const FIELD_MANAGER: Parameter = ("fieldManager", "string", "The name under which the change is made.");
const FIELD_VALIDATION: Parameter =
    ("fieldValidation", "string", "What becomes of unknown and duplicate fields: Ignore, Warn or Strict.");
const FORCE: Parameter = ("force", "boolean", "Whether an apply takes fields from other managers.");

const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Whether a watch may send bookmarks."),
    ("continue", "string", "Where a list in pieces goes on."),
    ("fieldSelector", "string", "Which objects, by their fields."),
    ("labelSelector", "string", "Which objects, by their labels."),
    ("limit", "integer", "How many objects a piece of a list may have."),
    ("resourceVersion", "string", "From which version on."),
    ("resourceVersionMatch", "string", "How the version is taken: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "Whether a watch begins with the objects there are."),
    ("timeoutSeconds", "integer", "How long the call may take."),
    ("watch", "boolean", "Whether to go on with changes."),
];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "How long the object has to end."),
    ("orphanDependents", "boolean", "Whether dependents stay; propagationPolicy says it better."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];
const CREATE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];

/// What an operation takes and gives.
struct Operation<'a> {
    method: &'static str,
    action: &'static str,
    /// The verb in the operation's id.
    verb: &'static str,
    description: String,
    parameters: &'a [Parameter],
    body: Option<Value>,
    answer: Value,
    codes: &'static [(&'static str, &'static str)],
}

const OK: &[(&str, &str)] = &[("200", "OK")];
const WRITTEN: &[(&str, &str)] = &[("200", "OK"), ("201", "Created")];
const MADE: &[(&str, &str)] = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];
const TAKEN: &[(&str, &str)] = &[("200", "OK"), ("202", "Accepted")];

/// The paths of one document.
pub(super) struct Paths {
    spec: Spec,
    made: Map<String, Value>,
}

/// Where an operation stands: what its id and extensions are made of.
struct Place<'a> {
    resource: &'a Resource,
    /// The id's part after the group version, such as `NamespacedPodStatus`.
    noun: String,
    gvk: Value,
}

impl Paths {
    pub(super) fn new(spec: Spec) -> Self {
        Self { spec, made: Map::new() }
    }

    pub(super) fn finish(self) -> Map<String, Value> {
        self.made
    }

    /// Adds a resource and its subresources.
    pub(super) fn add(&mut self, resource: &Resource, schemas: &mut Schemas<'_>) {
        let def = &resource.def;
        let base = format!("/{}", root(&def.group, &resource.version().name));
        let within = if def.namespaced { format!("{base}/namespaces/{{namespace}}") } else { base.clone() };
        let collection = format!("{within}/{}", def.plural);
        let scope = if def.namespaced { "Namespaced" } else { "" };
        let gvk = resource.gvk();
        let place = |noun: String| Place {
            resource,
            noun,
            gvk: json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind}),
        };
        let object = schemas.of_resource(resource);
        let operations = collection_operations(resource, &object, schemas);
        self.path(&collection, &place(format!("{scope}{}", def.kind)), operations);
        if def.verbs == Verbs::CreateOnly {
            return;
        }
        if def.namespaced {
            let list = collection_operations(resource, &object, schemas)
                .into_iter()
                .filter(|operation| operation.action == "list");
            self.path(
                &format!("{base}/{}", def.plural),
                &place(format!("{}ForAllNamespaces", def.kind)),
                list.collect(),
            );
        }
        let operations = object_operations(resource, &object, schemas);
        self.path(&format!("{collection}/{{name}}"), &place(format!("{scope}{}", def.kind)), operations);
        for name in resource.subresources() {
            self.subresource(resource, &collection, name, &object, schemas);
        }
    }

    fn subresource(
        &mut self,
        resource: &Resource,
        collection: &str,
        name: &str,
        object: &Value,
        schemas: &mut Schemas<'_>,
    ) {
        let def = &resource.def;
        let (kind, other, verbs) = discovery::subresource(resource, name);
        let (group, version) = other.unwrap_or((&def.group, &resource.version().name));
        let scope = if def.namespaced { "Namespaced" } else { "" };
        let title = upper(name);
        let place = Place {
            resource,
            noun: format!("{scope}{}{title}", def.kind),
            gvk: json!({"group": group, "version": version, "kind": kind}),
        };
        let schema = match name {
            "scale" => schemas.named("~autoscaling.v1.Scale"),
            "binding" => schemas.named("~core.v1.Binding"),
            "eviction" => schemas.named("~policy.v1.Eviction"),
            "token" => schemas.named("~authentication.v1.TokenRequest"),
            "log" | "exec" | "attach" | "portforward" | "proxy" => json!({"type": "string"}),
            _ => object.clone(),
        };
        let connects = ["exec", "attach", "portforward", "proxy"].contains(&name);
        let operations = verbs.iter().filter_map(|verb| {
            let mut operation = match *verb {
                "get" => read(&schema, &kind),
                "create" => create(&schema, &kind),
                "update" => replace(&schema, &kind),
                "patch" => patch(&schema, &kind, schemas),
                "delete" => delete(&schema, &kind, schemas),
                _ => return None,
            };
            if connects {
                (operation.action, operation.verb, operation.body) = ("connect", "connect", None);
                (operation.parameters, operation.codes) = (&[], OK);
            }
            Some(operation)
        });
        let operations: Vec<_> = operations.collect();
        self.path(&format!("{collection}/{{name}}/{name}"), &place, operations);
    }

    fn path(&mut self, path: &str, place: &Place<'_>, operations: Vec<Operation<'_>>) {
        let mut item = Map::new();
        for operation in operations {
            item.insert(operation.method.to_owned(), self.operation(place, operation));
        }
        let mut parameters = Vec::new();
        if path.contains("{name}") {
            parameters.push(self.path_parameter("name", &format!("name of the {}", place.resource.def.kind)));
        }
        if path.contains("{namespace}") {
            parameters.push(
                self.path_parameter(
                    "namespace",
                    "object name and auth scope, such as for teams and projects",
                ),
            );
        }
        parameters.push(self.query_parameter(PRETTY));
        item.insert("parameters".to_owned(), Value::Array(parameters));
        self.made.insert(path.to_owned(), Value::Object(item));
    }

    fn operation(&self, place: &Place<'_>, operation: Operation<'_>) -> Value {
        let def = &place.resource.def;
        let version = &place.resource.version().name;
        let group = def.group.trim_end_matches(".k8s.io");
        let group = if group.is_empty() { "core".to_owned() } else { camel(group) };
        let capital = upper(&group);
        let id = format!(
            "{}{capital}{}{}",
            operation.verb.trim_end_matches("Collection"),
            upper(version),
            noun(&operation, &place.noun)
        );
        let mut parameters: Vec<Value> =
            operation.parameters.iter().map(|parameter| self.query_parameter(*parameter)).collect();
        let mut value = json!({
            "tags": [format!("{group}_{version}")], "description": operation.description, "operationId": id,
            "x-kubernetes-action": operation.action, "x-kubernetes-group-version-kind": place.gvk,
        });
        let patches = operation.action == "patch";
        let built_in = matches!(place.resource.version().schema, crate::schema::Type::Named(_));
        let patch_types: Vec<&str> =
            MEDIA_TYPES.into_iter().filter(|kind| built_in || !kind.contains("strategic")).collect();
        let mut responses = Map::new();
        for (code, words) in operation.codes {
            let response = match self.spec {
                Spec::V2 => json!({"description": words, "schema": operation.answer}),
                Spec::V3 => {
                    json!({"description": words, "content": {"application/json": {"schema": operation.answer}}})
                }
            };
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        value["responses"] = Value::Object(responses);
        match (self.spec, operation.body) {
            (Spec::V2, body) => {
                if let Some(schema) = body {
                    parameters.insert(0, json!({"name": "body", "in": "body", "required": operation.action != "delete", "schema": schema}));
                }
                value["consumes"] = if patches { json!(patch_types) } else { json!(["*/*"]) };
                value["produces"] = json!(["application/json"]);
                value["schemes"] = json!(["https"]);
            }
            (Spec::V3, Some(schema)) => {
                let content: Map<String, Value> = if patches {
                    patch_types.iter().map(|kind| ((*kind).to_owned(), json!({"schema": schema}))).collect()
                } else {
                    Map::from_iter([("*/*".to_owned(), json!({"schema": schema}))])
                };
                value["requestBody"] = json!({"content": content, "required": operation.action != "delete"});
            }
            (Spec::V3, None) => {}
        }
        value["parameters"] = Value::Array(parameters);
        value
    }

    fn query_parameter(&self, (name, kind, description): Parameter) -> Value {
        match self.spec {
            Spec::V2 => {
                json!({"name": name, "in": "query", "description": description, "type": kind, "uniqueItems": true})
            }
            Spec::V3 => {
                json!({"name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": true}})
            }
        }
    }

    fn path_parameter(&self, name: &str, description: &str) -> Value {
        match self.spec {
            Spec::V2 => {
                json!({"name": name, "in": "path", "required": true, "description": description, "type": "string", "uniqueItems": true})
            }
            Spec::V3 => {
                json!({"name": name, "in": "path", "required": true, "description": description, "schema": {"type": "string", "uniqueItems": true}})
            }
        }
    }
}

fn collection_operations<'a>(
    resource: &Resource,
    object: &Value,
    schemas: &mut Schemas<'_>,
) -> Vec<Operation<'a>> {
    let (kind, verbs) = (&resource.def.kind, resource.def.verbs.names());
    let mut operations = Vec::new();
    if verbs.contains(&"list") {
        let answer = schemas.list_of(resource);
        let description = format!("list or watch objects of kind {kind}");
        operations.push(Operation {
            method: "get",
            action: "list",
            verb: "list",
            description,
            parameters: LIST,
            body: None,
            answer,
            codes: OK,
        });
    }
    if verbs.contains(&"create") {
        operations.push(create(object, kind));
    }
    if verbs.contains(&"deletecollection") {
        let mut operation = delete(object, kind, schemas);
        operation.answer = schemas.named("^Status");
        (operation.action, operation.verb) = ("deletecollection", "deleteCollection");
        operation.description = format!("delete collection of {kind}");
        operation.codes = OK;
        operations.push(operation);
    }
    operations
}

fn object_operations<'a>(
    resource: &Resource,
    object: &Value,
    schemas: &mut Schemas<'_>,
) -> Vec<Operation<'a>> {
    let kind = &resource.def.kind;
    if resource.def.verbs == Verbs::ReadOnly {
        return vec![read(object, kind)];
    }
    let mut removal = delete(object, kind, schemas);
    if !resource.def.traits.returns_deleted {
        removal.answer = schemas.named("^Status");
    }
    vec![read(object, kind), replace(object, kind), patch(object, kind, schemas), removal]
}

fn read<'a>(schema: &Value, kind: &str) -> Operation<'a> {
    let description = format!("read the specified {kind}");
    Operation {
        method: "get",
        action: "get",
        verb: "read",
        description,
        parameters: &[],
        body: None,
        answer: schema.clone(),
        codes: OK,
    }
}

fn create<'a>(schema: &Value, kind: &str) -> Operation<'a> {
    let description = format!("create a {kind}");
    Operation {
        method: "post",
        action: "post",
        verb: "create",
        description,
        parameters: CREATE,
        body: Some(schema.clone()),
        answer: schema.clone(),
        codes: MADE,
    }
}

fn replace<'a>(schema: &Value, kind: &str) -> Operation<'a> {
    let description = format!("replace the specified {kind}");
    Operation {
        method: "put",
        action: "put",
        verb: "replace",
        description,
        parameters: CREATE,
        body: Some(schema.clone()),
        answer: schema.clone(),
        codes: WRITTEN,
    }
}

fn patch<'a>(schema: &Value, kind: &str, schemas: &mut Schemas<'_>) -> Operation<'a> {
    let body = schemas.plain("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", json!({"type": "object", "description": "A change to an object, in one of the forms that the request's media type names."}));
    let description = format!("partially update the specified {kind}");
    Operation {
        method: "patch",
        action: "patch",
        verb: "patch",
        description,
        parameters: PATCH,
        body: Some(body),
        answer: schema.clone(),
        codes: WRITTEN,
    }
}

fn delete<'a>(schema: &Value, kind: &str, schemas: &mut Schemas<'_>) -> Operation<'a> {
    let description = format!("delete the specified {kind}");
    let body = Some(schemas.named("^DeleteOptions"));
    Operation {
        method: "delete",
        action: "delete",
        verb: "delete",
        description,
        parameters: DELETE,
        body,
        answer: schema.clone(),
        codes: TAKEN,
    }
}

/// The id's last part; a connection says its method before the noun, and deleting a collection that it is one.
fn noun(operation: &Operation<'_>, noun: &str) -> String {
    match operation.verb {
        "connect" => format!("{}{noun}", upper(operation.method)),
        "deleteCollection" => format!("Collection{noun}"),
        _ => noun.to_owned(),
    }
}

/// `rbac.authorization` as `rbacAuthorization`.
fn camel(group: &str) -> String {
    let mut parts = group.split('.');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + &upper(part))
}

fn upper(text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}
