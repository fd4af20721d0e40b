//! Results, one file for each attachment, in the form that libcni keeps them in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::config::NetworkConfig;

/// What marks a file as one of these.
const KIND: &str = "cniCacheV1";

/// One attachment.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) device: String,
    pub(super) network: NetworkConfig,
    pub(super) netns: Option<PathBuf>,
    pub(super) arguments: String,
    pub(super) capabilities: Value,
    pub(super) result: Value,
}

impl Entry {
    fn to_value(&self) -> Value {
        let pairs = self.arguments.split(';').filter_map(|pair| pair.split_once('='));
        let pairs: Vec<[&str; 2]> = pairs.map(|(key, value)| [key, value]).collect();
        json!({
            "kind": KIND, "containerId": self.id, "ifName": self.device, "networkName": self.network.name,
            "config": STANDARD.encode(self.network.to_value().to_string()), "netns": self.netns,
            "cniArgs": pairs, "capabilityArgs": self.capabilities, "result": self.result,
        })
    }

    /// `None` when the file is something else.
    fn of(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let config = STANDARD.decode(value["config"].as_str()?).ok()?;
        let pairs = value["cniArgs"].as_array().into_iter().flatten();
        let pairs: Option<Vec<String>> =
            pairs.map(|pair| Some(format!("{}={}", pair[0].as_str()?, pair[1].as_str()?))).collect();
        (value["kind"] == KIND).then_some(())?;
        Some(Self {
            id: text("containerId")?,
            device: text("ifName")?,
            network: NetworkConfig::parse(serde_json::from_slice(&config).ok()?).ok()?,
            netns: text("netns").map(PathBuf::from),
            arguments: pairs?.join(";"),
            capabilities: value["capabilityArgs"].clone(),
            result: value["result"].clone(),
        })
    }
}

/// A directory of results.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, network: &str, id: &str, device: &str) -> PathBuf {
        self.dir.join(format!("{network}-{id}-{device}"))
    }

    pub(super) fn read(&self, network: &str, id: &str, device: &str) -> io::Result<Option<Entry>> {
        read_file(&self.path(network, id, device))
    }

    /// Writes it whole or not at all.
    pub(super) fn write(&self, entry: &Entry) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let path = self.path(&entry.network.name, &entry.id, &entry.device);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let draft = self.dir.join(format!(".{name}"));
        fs::write(&draft, entry.to_value().to_string())?;
        fs::rename(draft, path)
    }

    pub(super) fn remove(&self, network: &str, id: &str, device: &str) -> io::Result<()> {
        match fs::remove_file(self.path(network, id, device)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All attachments, in the order of their files' names.
    pub(super) fn all(&self) -> io::Result<Vec<Entry>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')));
        paths.sort();
        let read = paths.iter().map(|path| read_file(path));
        read.filter_map(Result::transpose).collect()
    }

    pub(super) fn of_container(&self, id: &str) -> io::Result<Vec<Entry>> {
        let mut entries = self.all()?;
        entries.retain(|entry| entry.id == id);
        Ok(entries)
    }
}

fn read_file(path: &Path) -> io::Result<Option<Entry>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let value = serde_json::from_slice(&bytes).ok();
    Ok(value.as_ref().and_then(Entry::of))
}
