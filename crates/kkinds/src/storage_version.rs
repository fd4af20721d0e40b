//! In which versions the API servers of a cluster store a resource (KEP-2339).

use kschema::{
    error::FieldError,
    strategy::{NameRule, Strategy},
};
use serde_json::{Value, json};

use crate::check::{Look, Path, Report, form, texts};

type Errors = Vec<FieldError>;

/// The strategy of `storageversions`.
#[derive(Debug)]
pub(crate) struct StorageVersions;

/// What is wrong with `group/version`, joined.
fn version_faults(text: &str) -> String {
    const EMPTY: &str = "must be non-empty";
    let parts: Vec<&str> = text.split('/').collect();
    let (group, version) = match parts.as_slice() {
        [version] => (None, *version),
        [group, version] => (Some(*group), *version),
        _ => {
            return "an apiVersion is a DNS-1035 label, which must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyVersion')".to_owned();
        }
    };
    let mut faults = Vec::new();
    match group {
        Some("") => faults.push(format!("group part: {EMPTY}")),
        Some(group) => {
            faults.extend(form::dns_subdomain(group).iter().map(|fault| format!("group part: {fault}")));
        }
        None => {}
    }
    if version.is_empty() {
        faults.push(format!("version part: {EMPTY}"));
    } else {
        faults.extend(form::dns_1035_label(version).iter().map(|fault| format!("version part: {fault}")));
    }
    faults.join(",")
}

fn version(text: &str, path: &Path<'_>, errors: &mut Errors) {
    let faults = version_faults(text);
    if !faults.is_empty() {
        errors.invalid(path, text, faults);
    }
}

fn server(server: &Value, path: &Path<'_>, errors: &mut Errors) {
    let id = server.text("apiServerID");
    errors.faults(&path.field("apiServerID"), id, form::dns_subdomain(id));
    let encoding = server.text("encodingVersion");
    version(encoding, &path.field("encodingVersion"), errors);
    let decodable: Vec<&str> = texts(server.list("decodableVersions")).collect();
    let list = path.field("decodableVersions");
    for (index, one) in decodable.iter().enumerate() {
        version(one, &list.index(index), errors);
    }
    if !decodable.contains(&encoding) {
        let why = format!("decodableVersions must include encodingVersion {encoding}");
        errors.invalid(&list, server.get_some("decodableVersions"), why);
    }
    let list = path.field("servedVersions");
    for (index, one) in texts(server.list("servedVersions")).enumerate() {
        version(one, &list.index(index), errors);
        if !decodable.contains(&one) {
            let why = format!(
                "individual served version : {one} must be included in decodableVersions : [{}]",
                decodable.join(" ")
            );
            errors.invalid(&list.index(index), one, why);
        }
    }
}

/// The version that all servers store, if they agree, is to be named.
fn common(status: &Value, path: &Path<'_>, errors: &mut Errors) {
    let servers = status.list("storageVersions");
    let first = servers.first().map(|server| server.text("encodingVersion"));
    let agreed = first.filter(|first| servers.iter().all(|server| server.text("encodingVersion") == *first));
    let field = path.field("commonEncodingVersion");
    match (agreed, status.some_text("commonEncodingVersion")) {
        (None, Some(named)) => {
            let why = "should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet";
            errors.invalid(&field, named, why);
        }
        (Some(agreed), None) => {
            errors.invalid(&field, None, format_args!("the common encoding version is {agreed}"));
        }
        (Some(agreed), Some(named)) if agreed != named => {
            errors.invalid(&field, named, format_args!("the actual common encoding version is {agreed}"));
        }
        _ => {}
    }
}

fn validate(status: &Value, errors: &mut Errors) {
    let path = Path::root("status");
    let (list, servers) = (path.field("storageVersions"), status.list("storageVersions"));
    for (index, one) in servers.iter().enumerate() {
        let (item, id) = (list.index(index), one.text("apiServerID"));
        if servers[..index].iter().any(|other| other.text("apiServerID") == id) {
            errors.duplicate(&item.field("apiServerID"), id);
        }
        server(one, &item, errors);
    }
    common(status, &path, errors);
    let found = status.list("conditions");
    for (index, one) in found.iter().enumerate() {
        // Upstream leaves the list's name out.
        let (item, kind) = (path.index(index), one.text("type"));
        if let Some(at) = found[..index].iter().rposition(|other| other.text("type") == kind) {
            let why = format!("the type of the condition is not unique, it also appears in conditions[{at}]");
            errors.invalid(&item.field("type"), kind, why);
        }
        for key in ["type", "status"] {
            errors.faults(&item.field(key), one.text(key), form::qualified_name(one.text(key)));
        }
        errors.needs(one, &item, "reason");
        errors.needs(one, &item, "message");
    }
}

impl Strategy for StorageVersions {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let (name, path) = (object["metadata"].text("name"), Path::root("metadata.name"));
        match name.rsplit_once('.') {
            None => errors.invalid(&path, name, "name must be in the form of <group>.<resource>"),
            Some((group, resource)) => {
                for fault in form::dns_subdomain(group) {
                    errors.invalid(&path, name, format_args!("the group segment {fault}"));
                }
                for fault in form::dns_1035_label(resource) {
                    errors.invalid(&path, name, format_args!("the resource segment {fault}"));
                }
            }
        }
        validate(&object["status"], errors);
    }

    fn validate_change(&self, _object: &Value, _old: &Value, _errors: &mut Errors) {}

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        validate(&object["status"], errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}
