//! Devices by their names in the Container Device Interface (CDI, <https://github.com/cncf-tags/container-device-interface>): files of a machine
//! say what a container gets with each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::runtime::RuntimeError;

/// Where such files are by default; those of a later directory go before those of an earlier one.
pub(super) const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The largest file that is read, in bytes.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How many files of a directory are read.
const FILES_MAX: usize = 1024;

/// A file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    container_edits: Edits,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What is changed of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    net_devices: Vec<Value>,
    hooks: Vec<Hook>,
    mounts: Vec<Mount>,
    intel_rdt: Option<Value>,
    #[serde(rename = "additionalGids")]
    additional_groups: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceNode {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<u32>,
    minor: Option<u32>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// A device with the file that it is of.
type Found = (usize, Edits);

/// What the files of a machine say.
#[derive(Debug, Default)]
struct Registry {
    specs: Vec<Spec>,
    /// By qualified names.
    devices: BTreeMap<String, Found>,
    /// Names that two files of one directory have.
    conflicts: BTreeSet<String>,
}

impl Registry {
    fn read(dirs: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for dir in dirs {
            let mut here = BTreeSet::new();
            let mut files: Vec<PathBuf> =
                fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            files.retain(|path| path.extension().is_some_and(|end| end == "json" || end == "yaml"));
            files.sort();
            for path in files.into_iter().take(FILES_MAX) {
                match read(&path) {
                    Ok(spec) => registry.add(spec, &mut here),
                    Err(why) => tracing::warn!(file = %path.display(), why, "a CDI file is not read"),
                }
            }
        }
        registry
    }

    fn add(&mut self, spec: Spec, here: &mut BTreeSet<String>) {
        let index = self.specs.len();
        for device in &spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            if !here.insert(name.clone()) {
                self.conflicts.insert(name);
                continue;
            }
            // A later directory goes before an earlier one, conflicts of that included.
            self.conflicts.remove(&name);
            self.devices.insert(name, (index, device.container_edits.clone()));
        }
        self.specs.push(spec);
    }

    fn find(&self, name: &str) -> Option<&Found> {
        self.devices.get(name).filter(|_| !self.conflicts.contains(name))
    }
}

fn read(path: &Path) -> Result<Spec, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > BYTES_MAX {
        return Err("it is too large".to_owned());
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    // JSON is YAML.
    let spec: Spec = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
    let is_known = ["0.", "1."].iter().any(|major| spec.cdi_version.starts_with(major));
    if !is_known {
        return Err(format!("invalid CDI version {:?}", spec.cdi_version));
    }
    match spec.kind.split_once('/') {
        Some((vendor, class)) if !vendor.is_empty() && !class.is_empty() => Ok(spec),
        _ => Err(format!("invalid kind {:?}", spec.kind)),
    }
}

/// Changes an OCI configuration as the files in `dirs` say for these names.
///
/// # Errors
/// [`RuntimeError::Create`] for names that no file has, in the words of upstream's library, and for what is asked for and can't be done.
pub(super) fn inject(dirs: &[PathBuf], names: &[String], config: &mut Value) -> Result<(), RuntimeError> {
    if names.is_empty() {
        return Ok(());
    }
    let registry = Registry::read(dirs);
    let missing: Vec<&str> =
        names.iter().filter(|name| registry.find(name).is_none()).map(String::as_str).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(RuntimeError::Create(format!(
            "CDI device injection failed: unresolvable CDI devices {missing}"
        )));
    }
    let (mut applied, unique) = (BTreeSet::new(), names.iter().collect::<BTreeSet<_>>());
    for (index, edits) in unique.into_iter().filter_map(|name| registry.find(name)) {
        // What a file says for all its devices is done once.
        if applied.insert(*index) {
            apply(&registry.specs[*index].container_edits, config)?;
        }
        apply(edits, config)?;
    }
    Ok(())
}

fn list<'a>(config: &'a mut Value, pointer: &[&str]) -> &'a mut Vec<Value> {
    let place = pointer.iter().fold(config, |value, key| &mut value[*key]);
    if !place.is_array() {
        *place = json!([]);
    }
    match place {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list"),
    }
}

fn apply(edits: &Edits, config: &mut Value) -> Result<(), RuntimeError> {
    let wrong = |what: String| RuntimeError::Create(format!("CDI device injection failed: {what}"));
    if edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
        return Err(wrong("network devices and cache allocation are not supported".to_owned()));
    }
    for variable in &edits.env {
        let (name, _) = variable.split_once('=').unwrap_or((variable, ""));
        let env = list(config, &["process", "env"]);
        let is_same = |known: &Value| {
            known.as_str().and_then(|text| text.split_once('=')).is_some_and(|(known, _)| known == name)
        };
        env.retain(|known| !is_same(known));
        env.push(json!(variable));
    }
    for node in &edits.device_nodes {
        let (device, access) = device(node).map_err(wrong)?;
        let rule = json!({"allow": true, "type": device["type"], "major": device["major"], "minor": device["minor"],
            "access": access});
        let is_block_or_char = ["b", "c", "u"].iter().any(|kind| device["type"] == *kind);
        let devices = list(config, &["linux", "devices"]);
        devices.retain(|known| known["path"] != device["path"]);
        devices.push(device);
        if is_block_or_char {
            list(config, &["linux", "resources", "devices"]).push(rule);
        }
    }
    for mount in &edits.mounts {
        let options = if mount.options.is_empty() { vec!["rbind".to_owned()] } else { mount.options.clone() };
        let kind = mount.kind.clone().unwrap_or_else(|| "bind".to_owned());
        let mounts = list(config, &["mounts"]);
        mounts.retain(|known| known["destination"] != mount.container_path);
        mounts.push(json!({"destination": mount.container_path, "type": kind, "source": mount.host_path,
            "options": options}));
    }
    // What is mounted below another mount comes after it.
    if !edits.mounts.is_empty() {
        let depth =
            |mount: &Value| Path::new(mount["destination"].as_str().unwrap_or_default()).components().count();
        list(config, &["mounts"]).sort_by_key(depth);
    }
    for hook in &edits.hooks {
        let kinds =
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        if !kinds.contains(&hook.hook_name.as_str()) {
            return Err(wrong(format!("unknown hook {:?}", hook.hook_name)));
        }
        let mut made = json!({"path": hook.path});
        for (key, texts) in [("args", &hook.args), ("env", &hook.env)] {
            if !texts.is_empty() {
                made[key] = json!(texts);
            }
        }
        if let Some(timeout) = hook.timeout {
            made["timeout"] = json!(timeout);
        }
        list(config, &["hooks", &hook.hook_name]).push(made);
    }
    for group in &edits.additional_groups {
        let groups = list(config, &["process", "user", "additionalGids"]);
        if *group != 0 && !groups.iter().any(|known| known == group) {
            groups.push(json!(group));
        }
    }
    Ok(())
}

/// A device of the configuration, and what may be done with it. What the file does not say is as the machine's device has it.
fn device(node: &DeviceNode) -> Result<(Value, String), String> {
    let host = node.host_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(&node.path);
    let (mut kind, mut numbers) = (node.kind.clone().unwrap_or_default(), (node.major, node.minor));
    if kind.is_empty() || (kind != "p" && (numbers.0.is_none() || numbers.1.is_none())) {
        let meta = fs::metadata(host)
            .map_err(|error| format!("failed to stat CDI host device {host:?}: {error}"))?;
        let found = if meta.file_type().is_block_device() {
            "b"
        } else if meta.file_type().is_char_device() {
            "c"
        } else if meta.file_type().is_fifo() {
            "p"
        } else {
            return Err(format!("{host:?} is not a device node"));
        };
        if !kind.is_empty() && kind != found && !(kind == "u" && found == "c") {
            return Err(format!(
                "CDI device ({:?}, {host:?}), host type mismatch ({kind}, {found})",
                node.path
            ));
        }
        kind = found.to_owned();
        numbers = (Some(major(meta.rdev())), Some(minor(meta.rdev())));
    }
    let mut device = json!({"path": node.path, "type": kind});
    let fields = [
        ("major", numbers.0),
        ("minor", numbers.1),
        ("fileMode", node.file_mode),
        ("uid", node.uid),
        ("gid", node.gid),
    ];
    for (key, number) in fields {
        if let Some(number) = number.filter(|_| kind != "p" || !["major", "minor"].contains(&key)) {
            device[key] = json!(number);
        }
    }
    let access = node.permissions.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "rwm".to_owned());
    Ok((device, access))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let root = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = ["etc", "run"].iter().map(|name| root.path().join(name)).collect();
        for (path, text) in list {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (root, dirs)
    }

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn containers_get_what_the_files_say() {
        let (_root, dirs) = files(&[
            (
                "etc/a.json",
                r#"{"cdiVersion": "0.6.0", "kind": "v.example/thing",
                "containerEdits": {"env": ["ALL=1", "OWN=theirs"], "additionalGids": [7, 0]},
                "devices": [
                    {"name": "one", "containerEdits": {
                        "deviceNodes": [{"path": "/dev/one", "hostPath": "/dev/null", "permissions": "rw", "uid": 5}],
                        "mounts": [{"hostPath": "/lib/x", "containerPath": "/a/b", "options": ["ro", "bind"]}],
                        "hooks": [{"hookName": "createContainer", "path": "/bin/h", "args": ["h", "x"], "timeout": 3}]}},
                    {"name": "two", "containerEdits": {"deviceNodes": [{"path": "/dev/two", "type": "b", "major": 9, "minor": 8}]}}]}"#,
            ),
            (
                "run/b.yaml",
                "cdiVersion: 1.0.0\nkind: v.example/thing\ndevices:\n- name: two\n  containerEdits:\n    env: [TWO=run]\n",
            ),
            ("etc/broken.json", "{"),
            ("etc/other.txt", "not read"),
        ]);
        let mut config = json!({"process": {"env": ["OWN=x", "PATH=/p"], "user": {}}, "linux": {},
            "mounts": [{"destination": "/a/b/c"}, {"destination": "/proc"}]});
        inject(&dirs, &names("v.example/thing=one v.example/thing=one v.example/thing=two"), &mut config)
            .unwrap();
        assert_eq!(config["process"]["env"], json!(["PATH=/p", "ALL=1", "OWN=theirs", "TWO=run"]));
        assert_eq!(config["process"]["user"]["additionalGids"], json!([7]));
        assert_eq!(
            config["linux"]["devices"],
            json!([{"path": "/dev/one", "type": "c", "major": 1, "minor": 3, "uid": 5}])
        );
        assert_eq!(config["linux"]["resources"]["devices"][0]["access"], "rw");
        let places: Vec<&Value> =
            config["mounts"].as_array().unwrap().iter().map(|one| &one["destination"]).collect();
        assert_eq!(places, ["/proc", "/a/b", "/a/b/c"]);
        let hook = json!({"path": "/bin/h", "args": ["h", "x"], "timeout": 3});
        assert_eq!(config["hooks"]["createContainer"], json!([hook]));
    }

    #[test]
    fn names_that_are_nobodys_or_two_files_are_refused() {
        let file = |device: &str| {
            format!(
                "{{\"cdiVersion\": \"0.3.0\", \"kind\": \"v.example/t\", \"devices\": [{{\"name\": \"{device}\", \"containerEdits\": {{\"env\": [\"A=B\"]}}}}]}}"
            )
        };
        let (one, two) = (file("one"), file("two"));
        let (_root, dirs) =
            files(&[("etc/a.json", &one), ("etc/b.json", &one), ("etc/c.json", &two), ("run/c.json", &two)]);
        let inject = |list: &str| {
            let mut config = json!({});
            inject(&dirs, &names(list), &mut config).map_err(|error| error.to_string())
        };
        assert_eq!(inject("v.example/t=two"), Ok(()));
        assert_eq!(
            inject("v.example/t=one v.example/t=two x/y=z").unwrap_err(),
            "CDI device injection failed: unresolvable CDI devices v.example/t=one, x/y=z"
        );
        let (_root, dirs) = files(&[(
            "etc/a.json",
            r#"{"cdiVersion": "0.3.0", "kind": "v/t", "devices": [{"name": "n", "containerEdits": {"netDevices": [{"hostInterfaceName": "e"}]}},
                {"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-device-anywhere"}]}}]}"#,
        )]);
        for name in ["v/t=n", "v/t=gone"] {
            assert!(super::inject(&dirs, &names(name), &mut json!({})).is_err(), "{name}");
        }
    }
}
