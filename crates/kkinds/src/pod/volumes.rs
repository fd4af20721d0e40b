//! The volumes of a pod (`ValidateVolumes`).

use std::collections::{BTreeMap, BTreeSet};

use kcore::Quantity;
use kschema::{error::FieldError, quote::Quoted};
use serde_json::Value;

use super::{containers::all_containers, options::Options, projected};
use crate::{
    check::{Look, Path, Report, form, labels, quantity},
    claim_spec::{self, ClaimOptions},
    volume_source::{self as source, needs},
};

type Errors = Vec<FieldError>;

/// The volumes of a pod that are valid, by name.
pub(crate) type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

/// A source: its field, what upstream calls the field when there is more than one, and where its own faults stand.
const SOURCES: [(&str, &str, &str); 30] = [
    ("emptyDir", "emptyDir", "emptyDir"),
    ("hostPath", "hostPath", "hostPath"),
    ("gitRepo", "gitRepo", "gitRepo"),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret", "secret"),
    ("nfs", "nfs", "nfs"),
    ("iscsi", "iscsi", "iscsi"),
    ("glusterfs", "glusterfs", "glusterfs"),
    ("flocker", "flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd", "rbd"),
    ("cinder", "cinder", "cinder"),
    ("cephfs", "cephFS", "cephfs"),
    ("quobyte", "quobyte", "quobyte"),
    ("downwardAPI", "downwarAPI", "downwardAPI"),
    ("fc", "fc", "fc"),
    ("flexVolume", "flexVolume", "flexVolume"),
    ("configMap", "configMap", "configMap"),
    ("azureFile", "azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk", "azureDisk"),
    ("storageos", "storageos", "storageos"),
    ("projected", "projected", "projected"),
    ("scaleIO", "scaleIO", "scaleIO"),
    ("csi", "csi", "csi"),
    ("ephemeral", "ephemeral", "ephemeral"),
    ("image", "image", "image"),
];

/// What a volume is checked against.
#[derive(Clone, Copy)]
struct Volume<'a> {
    name: &'a str,
    pod: &'a str,
    options: Options,
}

/// Checks the volumes of a pod; returns those that are valid. `meta`: the pod's metadata; nothing for a template.
pub(crate) fn validate<'a>(
    spec: &'a Value,
    meta: Option<&'a Value>,
    path: &Path<'_>,
    options: Options,
    errors: &mut Errors,
) -> Volumes<'a> {
    let volumes = spec.list("volumes");
    let pod = meta.map_or("", |meta| meta.text("name"));
    let mut created: BTreeSet<String> = BTreeSet::new();
    if !pod.is_empty() {
        let ephemeral = volumes.iter().filter(|volume| volume.has("ephemeral"));
        created.extend(ephemeral.map(|volume| format!("{pod}-{}", volume.text("name"))));
    }
    let mut valid = Volumes::new();
    for (index, volume) in volumes.iter().enumerate() {
        let (path, name, before) = (path.index(index), volume.text("name"), errors.len());
        validate_source(volume, Volume { name, pod, options }, &path, errors);
        errors.name(&path.field("name"), name, form::dns_label);
        if valid.contains_key(name) {
            errors.duplicate(&path.field("name"), name);
        }
        if errors.len() == before {
            valid.insert(name, volume);
        }
        if let Some(claim) = volume.get_some("persistentVolumeClaim").map(|claim| claim.text("claimName"))
            && created.contains(claim)
        {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(&path.field("persistentVolumeClaim.claimName"), claim, why);
        }
    }
    valid
}

fn validate_source(volume: &Value, scope: Volume<'_>, path: &Path<'_>, errors: &mut Errors) {
    let several = volume.as_object().is_some_and(|map| map.len() > 2);
    let mut found = false;
    let mut one = |(key, shown, at): (&'static str, &'static str, &'static str), value: &Value| {
        if found {
            errors.forbidden(&path.field(shown), "may not specify more than 1 volume type");
        } else {
            found = true;
            dispatch(key, value, scope, &path.field(at), path, errors);
        }
        if key == "iscsi" {
            source::iscsi_directory(value, scope.name, path, errors);
        }
    };
    if several {
        for entry in SOURCES {
            if let Some(value) = volume.get_some(entry.0) {
                one(entry, value);
            }
        }
    } else {
        // The usual volume has a name and one source.
        for (key, value) in volume.as_object().into_iter().flatten() {
            if let Some(entry) = SOURCES.iter().find(|entry| entry.0 == key.as_str() && !value.is_null()) {
                one(*entry, value);
            }
        }
    }
    if !found {
        errors.required(path, "must specify a volume type");
    }
}

fn dispatch(
    key: &str,
    value: &Value,
    scope: Volume<'_>,
    path: &Path<'_>,
    volume: &Path<'_>,
    errors: &mut Errors,
) {
    match key {
        "emptyDir" => empty_dir(value, path, errors),
        "hostPath" => source::host_path(value, path, errors),
        "gitRepo" => {
            errors.needs(value, path, "repository");
            source::descending_path(value.text("directory"), &path.field("directory"), errors);
        }
        "gcePersistentDisk" => source::cloud_disk(value, path, "pdName", errors),
        "awsElasticBlockStore" => source::cloud_disk(value, path, "volumeID", errors),
        "secret" => files(value, path, "secretName", errors),
        "configMap" => files(value, path, "name", errors),
        "nfs" => source::nfs(value, path, errors),
        "iscsi" => source::iscsi(value, path, None, errors),
        "glusterfs" => source::glusterfs(value, path, errors),
        "flocker" => source::flocker(value, path, errors),
        "persistentVolumeClaim" => needs(value, path, &["claimName"], errors),
        "rbd" => source::rbd(value, path, errors),
        "cinder" => source::cinder(value, path, false, errors),
        "cephfs" => source::cephfs(value, path, errors),
        "quobyte" => source::quobyte(value, path, errors),
        "downwardAPI" => {
            source::mode(value, path, "defaultMode", errors);
            for file in value.list("items") {
                projected::downward_file(file, path, errors);
            }
        }
        "fc" => source::fibre_channel(value, path, errors),
        "flexVolume" => source::flex(value, path, errors),
        "azureFile" => source::azure_file(value, path, false, errors),
        "vsphereVolume" => needs(value, path, &["volumePath"], errors),
        "photonPersistentDisk" => needs(value, path, &["pdID"], errors),
        "portworxVolume" => needs(value, path, &["volumeID"], errors),
        "azureDisk" => source::azure_disk(value, path, errors),
        "storageos" => source::storage_os(value, path, false, errors),
        "projected" => projected::validate(value, scope.options, path, errors),
        "scaleIO" => needs(value, path, &["gateway", "system", "volumeName"], errors),
        "csi" => source::csi(value, path, errors),
        "ephemeral" => ephemeral(value, scope, path, volume, errors),
        _ => {
            if scope.options.pod {
                errors.needs(value, path, "reference");
            }
            let policies = ["Always", "IfNotPresent", "Never"];
            errors.one_of(&path.field("pullPolicy"), value.text("pullPolicy"), &policies);
        }
    }
}

fn empty_dir(value: &Value, path: &Path<'_>, errors: &mut Errors) {
    if value.get_some("sizeLimit").is_some_and(|limit| quantity::amount(limit) < Quantity::default()) {
        errors.forbidden(&path.field("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
}

fn files(value: &Value, path: &Path<'_>, name: &str, errors: &mut Errors) {
    errors.needs(value, path, name);
    source::mode(value, path, "defaultMode", errors);
    source::key_to_path(value.list("items"), &path.field("items"), errors);
}

fn ephemeral(value: &Value, scope: Volume<'_>, path: &Path<'_>, volume: &Path<'_>, errors: &mut Errors) {
    let path = path.field("volumeClaimTemplate");
    let Some(template) = value.get_some("volumeClaimTemplate") else {
        errors.required(&path, "");
        return;
    };
    if let Some(meta) = template.get_some("metadata") {
        template_metadata(meta, &path.field("metadata"), errors);
    }
    claim_spec::validate(&template["spec"], &path.field("spec"), ClaimOptions::default(), errors);
    if !scope.pod.is_empty() && !scope.name.is_empty() {
        let claim = format!("{}-{}", scope.pod, scope.name);
        for fault in form::dns_subdomain(&claim) {
            errors.invalid(
                &volume.field("name"),
                scope.name,
                format_args!("PVC name {claim}: {fault}", claim = Quoted(&claim)),
            );
        }
    }
}

/// The metadata of a template may hold labels and annotations alone (`ValidateTemplateObjectMeta`).
pub(crate) fn template_metadata(meta: &Value, path: &Path<'_>, errors: &mut Errors) {
    const OTHERS: [(&str, &str); 13] = [
        ("name", "name"),
        ("generateName", "generateName"),
        ("namespace", "namespace"),
        ("selfLink", "selfLink"),
        ("uid", "uID"),
        ("resourceVersion", "resourceVersion"),
        ("generation", "generation"),
        ("creationTimestamp", "creationTimestamp"),
        ("deletionTimestamp", "deletionTimestamp"),
        ("deletionGracePeriodSeconds", "deletionGracePeriodSeconds"),
        ("ownerReferences", "ownerReferences"),
        ("finalizers", "finalizers"),
        ("managedFields", "managedFields"),
    ];
    labels::annotations(meta, path, errors);
    labels::labels(meta, path, "labels", errors);
    for (key, shown) in OTHERS {
        let given = meta.get_some(key).is_some_and(|value| *value != "" && *value != 0);
        if given {
            errors.forbidden(&path.field(shown), "cannot be set");
        }
    }
}

/// Variables that are read from a file name a volume that is an empty directory (KEP-3721).
pub(crate) fn validate_file_keys(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (list, index, container) in all_containers(spec) {
        for (at, variable) in container.list("env").iter().enumerate() {
            let Some(key) = variable.get("valueFrom").and_then(|from| from.get_some("fileKeyRef")) else {
                continue;
            };
            let list = path.field(list);
            let item = list.index(index);
            let env = item.field("env");
            let entry = env.index(at);
            let (field, name) = (entry.field("valueFrom.fileKeyRef.volumeName"), key.text("volumeName"));
            // Of two volumes with one name the last counts, as in a map.
            match spec.list("volumes").iter().rfind(|volume| volume.text("name") == name) {
                None => errors.not_found(&field, name),
                Some(volume) if !volume.has("emptyDir") => {
                    errors.invalid(&field, name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    }
}
