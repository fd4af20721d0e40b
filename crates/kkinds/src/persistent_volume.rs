//! Persistent volumes.

use kschema::{
    error::FieldError,
    fields::{child, keep},
    strategy::Strategy,
};
use serde_json::{Value, json};

use crate::{
    check::{Internal, Look, Path, Report, diff, form, quantity, same, same_at},
    pod::{affinity, defaults::round_up_list, warnings},
    volume_source::{self as source, access_modes, needs},
};

type Errors = Vec<FieldError>;

/// The strategy of `persistentvolumes`.
#[derive(Debug)]
pub(crate) struct PersistentVolumes;

/// The sources that a volume may have: their fields, and where their faults stand, in the order in which they are checked.
const SOURCES: [(&str, &str, &str); 22] = [
    ("hostPath", "hostPath", "hostPath"),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs", "glusterfs"),
    ("flocker", "flocker", "flocker"),
    ("nfs", "nfs", "nfs"),
    ("rbd", "rbd", "rbd"),
    ("quobyte", "quobyte", "quobyte"),
    ("cephfs", "cephFS", "cephfs"),
    ("iscsi", "iscsi", "iscsi"),
    ("cinder", "cinder", "cinder"),
    ("fc", "fc", "fc"),
    ("flexVolume", "flexVolume", "flexVolume"),
    ("azureFile", "azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO", "scaleIO"),
    ("local", "local", "local"),
    ("storageos", "storageos", "storageos"),
    ("csi", "csi", "csi"),
];

const INLINE: &str = "may not be specified in the context of inline volumes";

/// Checks the specification at `path`. `inline`: it is that of an attachment, which has no object of its own.
pub(crate) fn validate_spec(
    spec: &Value,
    name: &str,
    inline: bool,
    old: Option<&Value>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if inline {
        if spec.has("claimRef") {
            errors.forbidden(&path.field("claimRef"), INLINE);
        }
        if spec.count("capacity") > 0 {
            errors.forbidden(&path.field("capacity"), INLINE);
        }
        if !spec.has("csi") {
            errors.required(&path.field("csi"), "has to be specified in the context of inline volumes");
        }
    }
    if spec.count("accessModes") == 0 {
        errors.required(&path.field("accessModes"), "");
    }
    access_modes(spec, path, errors);
    if !inline {
        capacity(spec, path, errors);
    }
    let policy = spec.text("persistentVolumeReclaimPolicy");
    let field = path.field("persistentVolumeReclaimPolicy");
    if inline {
        if !["", "Retain"].contains(&policy) {
            errors.forbidden(&field, "may only be Retain in the context of inline volumes");
        }
    } else {
        errors.optional_one_of(spec, path, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]);
    }
    match spec.get_some("nodeAffinity") {
        Some(_) if inline => errors.forbidden(&path.field("nodeAffinity"), INLINE),
        Some(nodes) => node_affinity(nodes, old, &path.field("nodeAffinity"), errors),
        None => {}
    }
    sources(spec, name, inline, path, errors);
    if policy == "Recycle"
        && spec["hostPath"].text("path").starts_with('/')
        && is_root(spec["hostPath"].text("path"))
    {
        errors.forbidden(&field, "may not be 'recycle' for a hostPath mount of '/'");
    }
    classes(spec, inline, path, errors);
}

/// The classes and the mode of a volume.
fn classes(spec: &Value, inline: bool, path: &Path<'_>, errors: &mut Errors) {
    let class = spec.text("storageClassName");
    if inline && !class.is_empty() {
        errors.forbidden(&path.field("storageClassName"), INLINE);
    } else {
        errors.optional_name(&path.field("storageClassName"), class, form::dns_subdomain);
    }
    if !inline {
        errors.optional_one_of(spec, path, "volumeMode", &["Block", "Filesystem"]);
    } else if spec.some_text("volumeMode").is_some_and(|mode| mode != "Filesystem") {
        let why = "may not specify volumeMode other than Filesystem in the context of inline volumes";
        errors.forbidden(&path.field("volumeMode"), why);
    }
    if let Some(class) = spec.some_text("volumeAttributesClassName") {
        let field = path.field("volumeAttributesClassName");
        if class.is_empty() {
            errors.required(&field, "an empty string is disallowed");
        } else {
            errors.faults(&field, class, form::dns_subdomain(class));
        }
        if !spec.has("csi") {
            errors.required(&path.field("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

/// Whether a path is the root, once its dots are resolved.
fn is_root(path: &str) -> bool {
    let mut depth: usize = 0;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    depth == 0
}

fn capacity(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("capacity");
    let capacity = spec.get_some("capacity");
    if spec.count("capacity") == 0 {
        errors.required(&field, "");
    }
    if !capacity.is_some_and(|capacity| capacity.has("storage")) || spec.count("capacity") > 1 {
        let shown = capacity.map_or_else(|| "null".to_owned(), Value::to_string);
        errors.fault(FieldError::not_supported_value(field.to_string(), shown, &["storage"]));
    }
    for (name, value) in spec.map("capacity") {
        let amount = quantity::amount(value);
        if amount.value() < 0 {
            errors.invalid(&field.key(name), amount.value(), "must be a valid resource quantity");
        }
        quantity::positive(value, &field.key(name), errors);
    }
}

fn node_affinity(nodes: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("required");
    let was = old.and_then(|old| old["nodeAffinity"].get_some("required"));
    let lax = was.is_some_and(affinity::selector_values_are_faulty);
    match nodes.get_some("required") {
        Some(required) => affinity::node_selector(required, lax, &field, errors),
        None => errors.required(&field, "must specify required node constraints"),
    }
}

fn sources(spec: &Value, name: &str, inline: bool, path: &Path<'_>, errors: &mut Errors) {
    let mut found = false;
    for (key, shown, at) in SOURCES {
        let Some(value) = spec.get_some(key) else {
            continue;
        };
        // Upstream forgets to refuse a second source only here.
        if found && key != "flexVolume" {
            errors.forbidden(&path.field(shown), "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        dispatch(key, value, name, &path.field(at), errors);
        if key == "local" && (inline || !spec.has("nodeAffinity")) {
            errors.required(&path.field("nodeAffinity"), "Local volume requires node affinity");
        }
    }
    if !found {
        errors.required(path, "must specify a volume type");
    }
}

fn dispatch(key: &str, value: &Value, name: &str, path: &Path<'_>, errors: &mut Errors) {
    match key {
        "hostPath" => source::host_path(value, path, errors),
        "gcePersistentDisk" => source::cloud_disk(value, path, "pdName", errors),
        "awsElasticBlockStore" => source::cloud_disk(value, path, "volumeID", errors),
        "glusterfs" => source::glusterfs(value, path, errors),
        "flocker" => source::flocker(value, path, errors),
        "nfs" => source::nfs(value, path, errors),
        "rbd" => source::rbd(value, path, errors),
        "quobyte" => source::quobyte(value, path, errors),
        "cephfs" => source::cephfs(value, path, errors),
        "iscsi" => source::iscsi(value, path, Some(name), errors),
        "cinder" => source::cinder(value, path, true, errors),
        "fc" => source::fibre_channel(value, path, errors),
        "flexVolume" => source::flex(value, path, errors),
        "azureFile" => source::azure_file(value, path, true, errors),
        "vsphereVolume" => needs(value, path, &["volumePath"], errors),
        "photonPersistentDisk" => needs(value, path, &["pdID"], errors),
        "portworxVolume" => needs(value, path, &["volumeID"], errors),
        "azureDisk" => source::azure_disk(value, path, errors),
        "scaleIO" => needs(value, path, &["gateway", "system", "volumeName"], errors),
        "local" => source::local(value, path, errors),
        "storageos" => source::storage_os(value, path, true, errors),
        _ => source::csi_volume(value, path, errors),
    }
}

/// Kinds of volumes that take mount options (`pkg/volume/validation`).
fn mount_options(object: &Value, errors: &mut Errors) {
    const ANNOTATION: &str = "volume.beta.kubernetes.io/mount-options";
    const WITH_OPTIONS: [&str; 13] = [
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "glusterfs",
        "nfs",
        "rbd",
        "quobyte",
        "iscsi",
        "cinder",
        "cephfs",
        "azureFile",
        "vsphereVolume",
        "azureDisk",
        "photonPersistentDisk",
    ];
    if object["metadata"]["annotations"].has(ANNOTATION)
        && !WITH_OPTIONS.iter().any(|key| object["spec"].has(key))
    {
        let why = "may not specify mount options for this volume type";
        errors.forbidden(&Path::root("metadata.annotations").field(ANNOTATION), why);
    }
}

/// The old label of a node that a newer one has replaced.
fn newer_label(key: &str) -> &str {
    match key {
        "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
        "beta.kubernetes.io/os" => "kubernetes.io/os",
        "beta.kubernetes.io/arch" => "kubernetes.io/arch",
        "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
        other => other,
    }
}

/// A copy of node affinity in which old labels stand under their newer names where `new` names those.
fn with_newer_labels(old: &Value, new: &Value) -> Value {
    let mut copy = old.clone();
    let terms = new["required"].list("nodeSelectorTerms");
    let old_terms = copy.pointer_mut("/required/nodeSelectorTerms").and_then(Value::as_array_mut);
    for (was, now) in old_terms.into_iter().flatten().zip(terms) {
        for (was, now) in
            kschema::fields::items_mut(was, "matchExpressions").zip(now.list("matchExpressions"))
        {
            if was.text("key") != now.text("key") && newer_label(was.text("key")) == now.text("key") {
                keep(was, now, "key");
            }
        }
    }
    copy
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let old = old.map(|old| &old["spec"]);
    validate_spec(&object["spec"], object["metadata"].text("name"), false, old, &Path::root("spec"), errors);
}

impl Strategy for PersistentVolumes {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            round_up_list(spec, "capacity");
        }
        if let Some(status) = object.get_mut("status").filter(|status| status.is_object()) {
            kschema::fields::set_default(status, "phase", "Pending");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        // The server has just written when the object was created.
        let now = object["metadata"]["creationTimestamp"].clone();
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now});
    }

    fn prepare_status(&self, object: &mut Value, old: &Value) {
        let key = "lastPhaseTransitionTime";
        let was = &old["status"];
        let status = child(object, "status");
        if status.text("phase") == was.text("phase") && !status.has(key) {
            keep(status, was, key);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
        mount_options(object, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate(object, Some(old), errors);
        mount_options(object, errors);
        validate(object, Some(old), errors);
        let (spec, was) = (&object["spec"], &old["spec"]);
        let mut new = spec.clone();
        // A secret for expansion may be added to a volume that has none.
        let secret = "controllerExpandSecretRef";
        if was.has("csi") && !was["csi"].has(secret) && new.has("csi") {
            keep(&mut new["csi"], &was["csi"], secret);
        }
        if SOURCES.iter().any(|(key, ..)| !same_at(&new, was, key)) {
            let difference = diff::between("~core.v1.PersistentVolumeSource", Some(was), Some(&new));
            let why = format_args!("spec.persistentvolumesource is immutable after creation\n{difference}");
            errors.forbidden(&Path::root("spec.persistentvolumesource"), why);
        }
        errors.immutable(spec, was, &Path::root(""), "volumeMode");
        if let Some(nodes) = was.get_some("nodeAffinity") {
            let new = &spec["nodeAffinity"];
            if !same(new, &with_newer_labels(nodes, new)) {
                let why = "field is immutable, except for updating from beta label to GA";
                errors.invalid(
                    &Path::root("nodeAffinity"),
                    Internal("~core.v1.VolumeNodeAffinity", spec.get("nodeAffinity")),
                    why,
                );
            }
        }
        if was.has("volumeAttributesClassName") && !spec.has("volumeAttributesClassName") {
            let path = Path::root("spec.volumeAttributesClassName");
            errors.forbidden(&path, "update from non-nil value to nil is forbidden");
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        const OLD: [(&str, &str, &str); 6] = [
            ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
            ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
            ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
            ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
            ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
            ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
        ];
        let (mut out, spec, path) = (Vec::new(), &object["spec"], Path::root("spec"));
        for (key, words) in [
            ("storage-class", "deprecated since v1.8; use \"storageClassName\" attribute instead"),
            ("mount-options", "deprecated since v1.31; use \"mountOptions\" attribute instead"),
        ] {
            let key = format!("volume.beta.kubernetes.io/{key}");
            if object["metadata"]["annotations"].has(&key) {
                out.push(format!("metadata.annotations[{key}]: {words}"));
            }
        }
        if spec.text("persistentVolumeReclaimPolicy") == "Recycle" {
            out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
        }
        let list = path.field("nodeAffinity.required.nodeSelectorTerms");
        for (index, term) in spec["nodeAffinity"]["required"].list("nodeSelectorTerms").iter().enumerate() {
            warnings::node_term(term, false, &list.index(index), &mut out);
        }
        let old = OLD.iter().filter(|(key, ..)| spec.has(key));
        out.extend(old.map(|(_, shown, words)| format!("{}: {words}", path.field(shown))));
        out
    }
}
