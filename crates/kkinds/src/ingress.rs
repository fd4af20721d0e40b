//! Ingresses and their classes.

use kschema::{
    error::FieldError,
    fields::{child, set_default},
    quote::Quoted,
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::check::{Internal, Look, Path, Report, address, domain, form, texts};

type Errors = Vec<FieldError>;

/// The strategy of `ingresses`.
#[derive(Debug)]
pub(crate) struct Ingresses;

/// The strategy of `ingressclasses`.
#[derive(Debug)]
pub(crate) struct IngressClasses;

/// The annotation that the class was before it was a field.
const CLASS: &str = "kubernetes.io/ingress.class";
const CONTROLLER_BYTES_MAX: usize = 250;

/// What a change may keep although it is not valid any more.
#[derive(Clone, Copy, Default)]
struct Lax {
    secret_names: bool,
    wildcard_rules: bool,
}

fn host(host: &str, path: &Path<'_>, errors: &mut Errors) {
    let form = if host.contains('*') { form::wildcard_subdomain } else { form::dns_subdomain };
    errors.faults(path, host, form(host));
}

/// An object by its kind and name, which are steps of a path.
fn reference(target: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(group) = target.some_text("apiGroup") {
        errors.faults(&path.field("apiGroup"), group, form::dns_subdomain(group));
    }
    for key in ["kind", "name"] {
        errors.name(&path.field(key), target.text(key), form::path_segment);
    }
}

fn backend(backend: &Value, path: &Path<'_>, errors: &mut Errors) {
    match (backend.get_some("resource"), backend.get_some("service")) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (Some(resource), None) => reference(resource, &path.field("resource"), errors),
        (None, Some(service)) => {
            errors.name(&path.field("service.name"), service.text("name"), form::dns_label);
            let port = &service["port"];
            match (port.text("name"), port.int("number")) {
                ("", 0) => errors.required(path, "port name or number is required"),
                ("", number) => errors.port(&path.field("service.port.number"), number),
                (name, 0) => errors.faults(&path.field("service.port.name"), name, form::port_name(name)),
                _ => errors.invalid(path, "", "cannot set both port name & port number"),
            }
        }
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

fn http_path(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    const SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
    const ENDS: [&str; 2] = ["/..", "/."];
    let (text, field) = (rule.text("path"), path.field("path"));
    match rule.some_text("pathType") {
        None => {
            errors.required(&path.field("pathType"), "pathType must be specified");
            return;
        }
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                errors.invalid(&field, text, "must be an absolute path");
            }
            for sequence in SEQUENCES.iter().filter(|sequence| text.contains(**sequence)) {
                errors.invalid(&field, text, format_args!("must not contain '{sequence}'"));
            }
            for end in ENDS.iter().filter(|end| text.ends_with(**end)) {
                errors.invalid(&field, text, format_args!("cannot end with '{end}'"));
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.invalid(&field, text, "must be an absolute path");
            }
        }
        Some(other) => {
            let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.unsupported(&path.field("pathType"), other, &kinds);
        }
    }
    backend(&rule["backend"], &path.field("backend"), errors);
}

fn http(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(http) = rule.get_some("http") else {
        return;
    };
    let list = path.field("http.paths");
    if http.count("paths") == 0 {
        errors.required(&list, "");
    }
    for (index, rule) in http.list("paths").iter().enumerate() {
        http_path(rule, &list.index(index), errors);
    }
}

fn tls(spec: &Value, lax: Lax, list: &Path<'_>, errors: &mut Errors) {
    for (index, tls) in spec.list("tls").iter().enumerate() {
        let path = list.index(index);
        let hosts = path.field("hosts");
        for (index, name) in texts(tls.list("hosts")).enumerate() {
            host(name, &hosts.index(index), errors);
        }
        if !lax.secret_names {
            let name = tls.text("secretName");
            errors.optional_name(&path.field("secretName"), name, form::dns_subdomain);
        }
    }
}

fn validate(object: &Value, lax: Lax, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let default = spec.get_some("defaultBackend");
    if spec.count("rules") == 0 && default.is_none() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&path, Internal("~networking.v1.IngressRule", spec.get_some("rules")), why);
    }
    if let Some(default) = default {
        backend(default, &path.field("defaultBackend"), errors);
    }
    let list = path.field("rules");
    for (index, rule) in spec.list("rules").iter().enumerate() {
        let (item, name) = (list.index(index), rule.text("host"));
        if !name.is_empty() {
            if address::parse_lenient(name).is_some() {
                errors.invalid(&item.field("host"), name, "must be a DNS name, not an IP address");
            }
            host(name, &item.field("host"), errors);
        }
        if !lax.wildcard_rules || !name.contains('*') {
            http(rule, &item, errors);
        }
    }
    tls(spec, lax, &path.field("tls"), errors);
    if let Some(class) = spec.some_text("ingressClassName") {
        errors.faults(&path.field("ingressClassName"), class, form::dns_subdomain(class));
    }
}

fn class_annotation(object: &Value) -> Option<&str> {
    object["metadata"].get("annotations").and_then(|notes| notes.some_text(CLASS))
}

impl Strategy for Ingresses {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_status(&self, object: &mut Value, _old: &Value) {
        child(child(object, "status"), "loadBalancer");
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        validate(object, Lax::default(), errors);
        if let (Some(note), Some(class)) =
            (class_annotation(object), object["spec"].some_text("ingressClassName"))
            && note != class
        {
            let path = Path::root("annotations");
            let why = "must match `ingressClassName` when both are specified";
            errors.invalid(&path.field(CLASS), note, why);
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let was = &old["spec"];
        let mut faults = Vec::new();
        for rule in was.list("rules").iter().filter(|rule| rule.text("host").contains('*')) {
            http(rule, &Path::root(""), &mut faults);
        }
        let faulty = |name: &str| !name.is_empty() && !form::dns_subdomain(name).is_empty();
        let lax = Lax {
            secret_names: was.list("tls").iter().any(|tls| faulty(tls.text("secretName"))),
            wildcard_rules: !faults.is_empty(),
        };
        validate(object, lax, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let list = Path::root("status.loadBalancer.ingress");
        let points = |object: &'_ Value| -> Vec<Value> {
            object["status"]
                .get("loadBalancer")
                .map(|found| found.list("ingress").to_vec())
                .unwrap_or_default()
        };
        let was = points(old);
        for (index, point) in points(object).iter().enumerate() {
            let path = list.index(index);
            let ip = point.text("ip");
            if !ip.is_empty() {
                let known = was.iter().map(|point| point.text("ip")).filter(|ip| !ip.is_empty());
                address::address(&path.field("ip"), ip, known, errors);
            }
            let name = point.text("hostname");
            if !name.is_empty() {
                errors.faults(&path.field("hostname"), name, form::dns_subdomain(name));
                if address::parse_lenient(name).is_some() {
                    errors.invalid(&path.field("hostname"), name, "must be a DNS name, not an IP address");
                }
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() && class_annotation(object).is_some() && !object["spec"].has("ingressClassName") {
            out.push(format!(
                "annotation {CLASS} is deprecated, please use 'spec.ingressClassName' instead",
                CLASS = Quoted(CLASS)
            ));
        }
        out
    }

    fn subresource_warnings(&self, subresource: &str, object: &Value, _old: &Value) -> Vec<String> {
        let mut out = Vec::new();
        if subresource == "status" {
            let list = Path::root("status.loadBalancer.ingress");
            let points = object["status"].get("loadBalancer").map_or(&[][..], |found| found.list("ingress"));
            for (index, point) in points.iter().enumerate() {
                if !point.text("ip").is_empty() {
                    address::warnings(&list.index(index), point.text("ip"), &mut out);
                }
            }
        }
        out
    }
}

impl Strategy for IngressClasses {
    fn default(&self, object: &mut Value) {
        if let Some(parameters) = object.pointer_mut("/spec/parameters") {
            set_default(parameters, "scope", "Cluster");
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        let controller = spec.text("controller");
        if controller.len() > CONTROLLER_BYTES_MAX {
            errors.too_long(&path.field("controller"), CONTROLLER_BYTES_MAX);
        }
        domain::prefixed_path(controller, &path.field("controller"), errors);
        let Some(parameters) = spec.get_some("parameters") else {
            return;
        };
        let path = path.field("parameters");
        reference(parameters, &path, errors);
        let (namespace, field) = (parameters.some_text("namespace"), path.field("namespace"));
        match parameters.some_text("scope") {
            None => errors.required(&path.field("scope"), ""),
            Some("Namespace") => match namespace {
                None => errors.required(&field, "`parameters.scope` is set to 'Namespace'"),
                Some(namespace) => errors.faults(&field, namespace, form::dns_label(namespace)),
            },
            Some("Cluster") => {
                if namespace.is_some() {
                    errors.forbidden(&field, "`parameters.scope` is set to 'Cluster'");
                }
            }
            Some(other) => errors.unsupported(&path.field("scope"), other, &["Cluster", "Namespace"]),
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable(&object["spec"], &old["spec"], &Path::root("spec"), "controller");
        self.validate(object, errors);
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
