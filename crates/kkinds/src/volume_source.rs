//! Where a volume's files come from: the sources that pods and persistent volumes name
//! (`pkg/apis/core/validation/validation.go`).

use kschema::error::FieldError;
use serde_json::Value;

use crate::check::{Look, Path, Report, form, texts};

type Errors = Vec<FieldError>;

/// The names of the sources that a pod's volume may have, in the order in which they are checked.
pub(crate) const MODE_WORDS: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Fields that must not be empty.
pub(crate) fn needs(source: &Value, path: &Path<'_>, keys: &[&str], errors: &mut Errors) {
    for key in keys {
        errors.needs(source, path, key);
    }
}

/// The permissions of files.
pub(crate) fn mode(source: &Value, path: &Path<'_>, key: &str, errors: &mut Errors) {
    if let Some(mode) = source.some_int(key).filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(&path.field(key), mode, MODE_WORDS);
    }
}

/// A path that does not go up.
pub(crate) fn no_backsteps(target: &str, path: &Path<'_>, errors: &mut Errors) {
    if has_backsteps(target) {
        errors.invalid(path, target, "must not contain '..'");
    }
}

/// Whether a path goes up.
pub(crate) fn has_backsteps(target: &str) -> bool {
    target.contains("..") && target.split('/').any(|part| part == "..")
}

/// A path that stays below where it starts.
pub(crate) fn descending_path(target: &str, path: &Path<'_>, errors: &mut Errors) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    no_backsteps(target, path, errors);
}

/// [`descending_path`] whose first part is not one of those the kubelet keeps to itself.
pub(crate) fn local_path(target: &str, path: &Path<'_>, errors: &mut Errors) {
    descending_path(target, path, errors);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path, target, "must not start with '..'");
    }
}

/// `hostPath`.
pub(crate) fn host_path(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    if source.text("path").is_empty() {
        errors.required(&path.field("path"), "");
        return;
    }
    no_backsteps(source.text("path"), &path.field("path"), errors);
    errors.optional_one_of(source, path, "type", &TYPES);
}

/// `gcePersistentDisk` and `awsElasticBlockStore`.
pub(crate) fn cloud_disk(source: &Value, path: &Path<'_>, name: &str, errors: &mut Errors) {
    errors.needs(source, path, name);
    let partition = source.int("partition");
    if !(0..=255).contains(&partition) {
        errors.invalid(&path.field("partition"), partition, "must be between 1 and 255, inclusive");
    }
}

/// `nfs`.
pub(crate) fn nfs(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    needs(source, path, &["server", "path"], errors);
    if !source.text("path").starts_with('/') {
        errors.invalid(&path.field("path"), source.text("path"), "must be an absolute path");
    }
}

/// What is wrong with the name of an iSCSI target or initiator.
fn iscsi_name_fault(name: &str, prefix_words: &'static str) -> Option<&'static str> {
    let tagged = |tag: &str, length: usize| {
        let mut rest = name.strip_prefix(tag).unwrap_or_default().chars();
        rest.next().is_some() && {
            let rest = rest.as_str();
            rest.len() == length && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        }
    };
    let good = match name {
        _ if name.starts_with("iqn") => is_iqn(name),
        _ if name.starts_with("eui") => tagged("eui", 16),
        _ if name.starts_with("naa") => tagged("naa", 32),
        _ => return Some(prefix_words),
    };
    (!good).then_some("must be valid format")
}

/// `iqn.<year>-<month>.<reversed domain>:<rest>` (RFC 3720).
fn is_iqn(name: &str) -> bool {
    name.match_indices("iqn.").any(|(at, tag)| {
        let rest = &name[at + tag.len()..];
        let (head, tail) = rest.split_once(':').unwrap_or_default();
        let bytes = head.as_bytes();
        let digits = |range: std::ops::Range<usize>| {
            bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
        };
        digits(0..4)
            && bytes.get(4) == Some(&b'-')
            && digits(5..7)
            && bytes.get(7) == Some(&b'.')
            && bytes.len() > 8
            && bytes[8..].iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
            && !tail.is_empty()
            && !tail.contains(|c: char| ",;*&$|".contains(c) || c.is_ascii_whitespace())
    })
}

/// `iscsi`. `volume`: the persistent volume's name, if it is one's source.
pub(crate) fn iscsi(source: &Value, path: &Path<'_>, volume: Option<&str>, errors: &mut Errors) {
    const PREFIX: &str = "must be valid format starting with iqn, eui, or naa";
    const TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
    let portal = source.text("targetPortal");
    errors.needs(source, path, "targetPortal");
    if let Some(volume) = volume
        && source.has("initiatorName")
        && volume.len() + 1 + portal.len() > 64
    {
        errors.invalid(&path.field("targetportal"), portal, TOO_LONG);
    }
    let iqn = source.text("iqn");
    if iqn.is_empty() {
        errors.required(&path.field("iqn"), "");
    } else {
        let words = if volume.is_some() { "must be valid format" } else { PREFIX };
        if let Some(fault) = iscsi_name_fault(iqn, words) {
            errors.invalid(&path.field("iqn"), iqn, fault);
        }
    }
    errors.in_range(source, path, "lun", 0, 255);
    let secret = source.get_some("secretRef");
    if (source.flag("chapAuthDiscovery") || source.flag("chapAuthSession")) && secret.is_none() {
        errors.required(&path.field("secretRef"), "");
    }
    if let Some(secret) = secret.filter(|_| volume.is_some()) {
        errors.needs(secret, &path.field("secretRef"), "name");
    }
    if let Some(initiator) = source.some_text("initiatorName")
        && let Some(fault) = iscsi_name_fault(initiator, PREFIX)
    {
        errors.invalid(&path.field("initiatorname"), initiator, fault);
    }
}

/// What a pod's iSCSI volume adds: its name and the portal make a directory's name.
pub(crate) fn iscsi_directory(source: &Value, name: &str, path: &Path<'_>, errors: &mut Errors) {
    if source.has("initiatorName") && name.len() + 1 + source.text("targetPortal").len() > 64 {
        errors.invalid(&path.field("name"), name, "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.");
    }
}

/// `fc`.
pub(crate) fn fibre_channel(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (names, ids) = (source.count("targetWWNs"), source.count("wwids"));
    let field = path.field("targetWWNs");
    if names == 0 && ids == 0 {
        errors.required(&field, "must specify either targetWWNs or wwids, but not both");
    }
    if names != 0 && ids != 0 {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(&field, source.get("targetWWNs"), why);
    }
    if names != 0 {
        if source.has("lun") {
            errors.in_range(source, path, "lun", 0, 255);
        } else {
            errors.required(&path.field("lun"), "lun is required if targetWWNs is specified");
        }
    }
}

/// `quobyte`.
pub(crate) fn quobyte(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    const WORDS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source.text("registry");
    if registry.is_empty() {
        errors.required(&path.field("registry"), WORDS);
    } else if source.text("tenant").len() >= 65 {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        errors.required(&path.field("tenant"), why);
    } else {
        for pair in registry.split(',') {
            let host = pair.rsplit_once(':').map(|(host, _)| host);
            let good = host
                .is_some_and(|host| !host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
            if !good {
                errors.invalid(&path.field("registry"), registry, WORDS);
            }
        }
    }
    errors.needs(source, path, "volume");
}

/// `glusterfs`.
pub(crate) fn glusterfs(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    needs(source, path, &["endpoints", "path"], errors);
    if let Some(namespace) = source.some_text("endpointsNamespace") {
        let field = path.field("endpointsNamespace");
        if namespace.is_empty() {
            let why = "if the endpointnamespace is set, it must be a valid namespace name";
            errors.invalid(&field, namespace, why);
        } else {
            errors.faults(&field, namespace, form::dns_label(namespace));
        }
    }
}

/// `flocker`.
pub(crate) fn flocker(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (name, uuid) = (source.text("datasetName"), source.text("datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errors.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errors.invalid(&path.field("datasetName"), name, "must not contain '/'");
    }
}

/// `rbd`.
pub(crate) fn rbd(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    cephfs(source, path, errors);
    errors.needs(source, path, "image");
}

/// `cephfs`.
pub(crate) fn cephfs(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    if source.count("monitors") == 0 {
        errors.required(&path.field("monitors"), "");
    }
}

/// `cinder`. `whole`: the secret's namespace must be named too, as in a persistent volume.
pub(crate) fn cinder(source: &Value, path: &Path<'_>, whole: bool, errors: &mut Errors) {
    errors.needs(source, path, "volumeID");
    secret(source, path, whole, errors);
}

fn secret(source: &Value, path: &Path<'_>, whole: bool, errors: &mut Errors) {
    if let Some(secret) = source.get_some("secretRef") {
        let keys: &[&str] = if whole { &["name", "namespace"] } else { &["name"] };
        needs(secret, &path.field("secretRef"), keys, errors);
    }
}

/// `flexVolume`.
pub(crate) fn flex(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    errors.needs(source, path, "driver");
    for (key, _) in source.map("options") {
        let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(&path.field("options").key(key), key, why);
        }
    }
}

/// `azureFile`. `volume`: it is a persistent volume's source.
pub(crate) fn azure_file(source: &Value, path: &Path<'_>, volume: bool, errors: &mut Errors) {
    needs(source, path, &["secretName", "shareName"], errors);
    if volume && source.some_text("secretNamespace") == Some("") {
        errors.required(&path.field("secretNamespace"), "");
    }
}

/// `azureDisk`.
pub(crate) fn azure_disk(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    needs(source, path, &["diskName", "diskURI"], errors);
    errors.optional_one_of(source, path, "cachingMode", &["None", "ReadOnly", "ReadWrite"]);
    errors.optional_one_of(source, path, "kind", &["Dedicated", "Managed", "Shared"]);
    let uri = source.text("diskURI");
    match source.some_text("kind") {
        Some("Managed") if !uri.starts_with("/subscriptions/") => {
            errors.unsupported(&path.field("diskURI"), uri, &[MANAGED]);
        }
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => {
            errors.unsupported(&path.field("diskURI"), uri, &[BLOB]);
        }
        _ => {}
    }
}

/// `storageos`. `whole`: the secret's namespace must be named too, as in a persistent volume.
pub(crate) fn storage_os(source: &Value, path: &Path<'_>, whole: bool, errors: &mut Errors) {
    errors.name(&path.field("volumeName"), source.text("volumeName"), form::dns_label);
    errors.optional_name(&path.field("volumeNamespace"), source.text("volumeNamespace"), form::dns_label);
    secret(source, path, whole, errors);
}

/// The name of a CSI driver.
pub(crate) fn csi_driver(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(path, 63);
    }
    errors.faults(path, name, form::dns_subdomain(&name.to_lowercase()));
}

/// `csi` of a pod's volume.
pub(crate) fn csi(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    csi_driver(source.text("driver"), &path.field("driver"), errors);
    if let Some(secret) = source.get_some("nodePublishSecretRef") {
        let name = secret.text("name");
        if name.is_empty() {
            errors.required(&path.field("nodePublishSecretRef.name"), "");
        } else {
            errors.faults(&path.field("name"), name, form::dns_subdomain(name));
        }
    }
}

/// `csi` of a persistent volume.
pub(crate) fn csi_volume(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    csi_driver(source.text("driver"), &path.field("driver"), errors);
    errors.needs(source, path, "volumeHandle");
    for key in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        if let Some(secret) = source.get_some(key) {
            let path = path.field(key);
            errors.name(&path.field("name"), secret.text("name"), form::dns_subdomain);
            errors.name(&path.field("namespace"), secret.text("namespace"), form::dns_label);
        }
    }
}

/// `local`.
pub(crate) fn local(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    errors.needs(source, path, "path");
    no_backsteps(source.text("path"), &path.field("path"), errors);
}

/// The entries of a ConfigMap or Secret that become files.
pub(crate) fn key_to_path(items: &[Value], path: &Path<'_>, errors: &mut Errors) {
    for (index, item) in items.iter().enumerate() {
        let path = path.index(index);
        needs(item, &path, &["key", "path"], errors);
        local_path(item.text("path"), &path.field("path"), errors);
        mode(item, &path, "mode", errors);
    }
}

/// The access modes of a volume or claim.
pub(crate) fn access_modes(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let field = path.field("accessModes");
    let (mut once_pod, mut other) = (false, false);
    for mode in texts(spec.list("accessModes")) {
        if !MODES.contains(&mode) {
            errors.unsupported(&field, mode, &MODES);
        } else if mode == "ReadWriteOncePod" {
            once_pod = true;
        } else {
            other = true;
        }
    }
    if once_pod && other {
        errors.forbidden(&field, "may not use ReadWriteOncePod with other access modes");
    }
}
