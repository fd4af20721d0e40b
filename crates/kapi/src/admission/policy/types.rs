//! What the expressions of a policy get wrong about the types of the objects that it is for, told in the policy's status
//! (KEP-3488, "Type Checking"; upstream's `policy/validating/typechecking.go`). It changes nothing of what the policy does.

use std::{collections::BTreeSet, sync::Arc};

use kcel::{Decl, PolicyEnv};
use kcore::Status;
use kschema::types::{Catalog, DefinitionId, Object, Type};
use serde_json::{Value, json};

use crate::{
    admission::matching::GROUP,
    authn::{MASTERS, UserInfo},
    custom,
    error::ApiResult,
    objects::stored,
    registry::{Registry, Resource},
    server::Inner,
    write::Call,
};

const PLURAL: &str = "validatingadmissionpolicies";
/// The most kinds that a rule of a policy is checked for.
const KINDS_MAX: usize = 10;
/// How deep types may stand in each other. No kind that is built in goes further but those that stand in themselves.
const DEPTH_MAX: usize = 32;

/// Whether a resource is that of policies that have such a status.
pub(crate) fn is_checked(resource: &Resource) -> bool {
    resource.def.group == GROUP && resource.def.plural == PLURAL
}

/// Brings the status of every policy up to date whose specification is newer than that. Done after each write of one.
pub(crate) async fn settle(server: &Arc<Inner>) -> ApiResult<()> {
    let registry = server.objects.registry();
    let Some(policies) = registry.find(GROUP, "v1", PLURAL) else { return Ok(()) };
    let user = UserInfo::new(
        "system:serviceaccount:kube-system:validatingadmissionpolicy-status-controller",
        [MASTERS],
    );
    for entry in server.objects.snapshot().range(policies.table, kstore::Range::all()) {
        let object = stored(&policies.def, &entry);
        let value = object.value().map_err(Status::internal)?;
        let generation = value["metadata"]["generation"].as_i64().unwrap_or(0);
        if generation <= value["status"]["observedGeneration"].as_i64().unwrap_or(0) {
            continue;
        }
        let warnings = warnings(registry, &value["spec"]);
        let checked = match warnings.is_empty() {
            true => json!({}),
            false => json!({"expressionWarnings": warnings}),
        };
        let change = |old: &Value| {
            let mut new = old.clone();
            // Who has changed it meanwhile settles it, too.
            if old["metadata"]["generation"].as_i64() == Some(generation) {
                let status = kschema::fields::child(&mut new, "status");
                status["observedGeneration"] = generation.into();
                status["typeChecking"] = checked.clone();
            }
            Ok(new)
        };
        let call = Call::internal(server, &user, &policies, "status", "", &object.header().name);
        match call.update(&change).await {
            Err(error) if error.0.is("NotFound") || error.0.is("Conflict") => {}
            result => drop(result?),
        }
    }
    Ok(())
}

/// Group, version and kind as upstream shows them.
fn shown(resource: &Resource) -> String {
    let gvk = resource.gvk();
    format!("{}/{}, Kind={}", gvk.group, gvk.version, gvk.kind)
}

/// The `expressionWarnings` of a policy's specification: of validations and their messages, for each kind that the policy names
/// without wildcards.
fn warnings(registry: &Registry, spec: &Value) -> Vec<Value> {
    let has_params = spec["paramKind"].is_object();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let params = has_params
        .then(|| {
            registry.find_kind(&text(&spec["paramKind"]["apiVersion"]), &text(&spec["paramKind"]["kind"]))
        })
        .flatten()
        .and_then(|resource| declared(registry.catalog(), &resource));
    let kinds = kinds(registry, spec).into_iter();
    let envs: Vec<(String, PolicyEnv)> = kinds
        .map(|resource| {
            let object = declared(registry.catalog(), &resource);
            let mut env = PolicyEnv::new(has_params).with_types(object, params.clone()).with_variables();
            for variable in spec["variables"].as_array().into_iter().flatten() {
                // What is wrong with a variable itself was refused when the policy was written, or is found where it is used.
                let _ = env.declare(&text(&variable["name"]), &text(&variable["expression"]));
            }
            (shown(&resource), env)
        })
        .collect();
    let check = |expression: &str| -> String {
        let faults = envs.iter().filter_map(|(kind, env)| {
            let errors = env.check(expression).err()?;
            Some(format!("{kind}: {errors}\n"))
        });
        faults.collect::<Vec<_>>().join("\n")
    };
    let mut warnings = Vec::new();
    for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for key in ["expression", "messageExpression"] {
            let expression = validation[key].as_str().unwrap_or_default();
            let found = if expression.is_empty() { String::new() } else { check(expression) };
            if !found.is_empty() {
                let place = format!("spec.validations[{index}].{key}");
                warnings.push(json!({"fieldRef": place, "warning": found}));
            }
        }
    }
    warnings
}

/// The kinds that a policy names, in the order of group, version and kind.
fn kinds(registry: &Registry, spec: &Value) -> Vec<Arc<Resource>> {
    let words = |rule: &Value, key: &str| -> Vec<String> {
        let words = rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut words: Vec<String> = words.map(str::to_owned).collect();
        words.sort();
        words
    };
    let mut found: Vec<Arc<Resource>> = Vec::new();
    let mut seen = BTreeSet::new();
    'rules: for rule in spec["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let (groups, versions) = (words(rule, "apiGroups"), words(rule, "apiVersions"));
        if groups.iter().chain(&versions).any(|word| word.contains('*')) {
            continue;
        }
        let mut resources = words(rule, "resources");
        resources.retain(|word| !word.contains(['*', '/']));
        let mut count = 0;
        for group in &groups {
            for (version, resource) in
                versions.iter().flat_map(|version| resources.iter().map(move |resource| (version, resource)))
            {
                let Some(resource) = registry.find(group, version, resource) else { continue };
                let gvk = resource.gvk();
                if seen.insert((gvk.group, gvk.version, gvk.kind)) {
                    found.push(resource);
                }
                count += 1;
                if count == KINDS_MAX {
                    break 'rules;
                }
            }
        }
    }
    found.sort_by_key(|resource| {
        let gvk = resource.gvk();
        (gvk.group, gvk.version, gvk.kind)
    });
    found
}

/// What expressions see of objects of a kind; `None` when nothing is known of them.
fn declared(catalog: &Catalog, resource: &Resource) -> Option<Decl> {
    let decl = match &resource.version().schema {
        Type::Structural(schema) => custom::declared(schema),
        ty => of(catalog, ty, &mut Vec::new(), 0).ok().flatten(),
    };
    decl.map(|decl| decl.named(&resource.def.kind))
}

/// The type stands in itself: upstream does not declare such kinds.
struct Circular;

/// As upstream's `SchemaDeclType` of what OpenAPI says of the type. Quantities have no single type there, so they, and what is made
/// of them, are not seen.
fn of(
    catalog: &Catalog,
    ty: &Type,
    within: &mut Vec<DefinitionId>,
    depth: usize,
) -> Result<Option<Decl>, Circular> {
    if depth > DEPTH_MAX {
        return Err(Circular);
    }
    Ok(Some(match ty {
        Type::String => Decl::string(),
        Type::Bytes => Decl::bytes(),
        Type::Time | Type::MicroTime => Decl::date_time(),
        Type::Int32 | Type::Int64 => Decl::int(),
        Type::Double => Decl::double(),
        Type::Bool => Decl::bool(),
        Type::IntOrString => Decl::int_or_string(),
        Type::Quantity => return Ok(None),
        Type::Any | Type::Structural(_) => Decl::object("object"),
        Type::List(item) => return Ok(of(catalog, item, within, depth + 1)?.map(Decl::list)),
        Type::Map(item) => return Ok(of(catalog, item, within, depth + 1)?.map(Decl::map)),
        Type::Object(object) => fields(catalog, object, within, depth)?,
        Type::Named(id) => {
            if within.contains(id) {
                return Err(Circular);
            }
            within.push(*id);
            let decl = fields(catalog, catalog.object(*id), within, depth)?;
            within.pop();
            decl
        }
    }))
}

fn fields(
    catalog: &Catalog,
    object: &Object,
    within: &mut Vec<DefinitionId>,
    depth: usize,
) -> Result<Decl, Circular> {
    let mut decl = Decl::object("object");
    for field in &object.fields {
        if let Some(of) = of(catalog, &field.ty, within, depth + 1)? {
            decl = decl.field(&field.name, of, field.required);
        }
    }
    Ok(decl)
}
