//! Networks as files say them: lists of plug-ins, or one plug-in alone.

use std::{fs, io, path::Path};

use serde_json::{Map, Value, json};

/// The newest version of the protocol that is spoken.
const VERSION: (u64, u64) = (1, 1);
/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest name of a device, in bytes (`IFNAMSIZ` without the end).
const DEVICE_BYTES_MAX: usize = 15;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The directory has no configuration.
    #[error("no network configuration in {0}")]
    None(String),
    /// A file can't be read.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// It isn't JSON.
    #[error("{0}: {1}")]
    Json(String, #[source] serde_json::Error),
    /// It is no network.
    #[error("{0}")]
    Invalid(String),
}

/// One plug-in's part of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConfig(Map<String, Value>);

impl PluginConfig {
    /// A part, from its JSON object; anything else is an empty one.
    #[must_use]
    pub fn new(config: Value) -> Self {
        Self(match config {
            Value::Object(map) => map,
            _ => Map::new(),
        })
    }

    /// The plug-in's name: that of its executable.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.0.get("type").and_then(Value::as_str).unwrap_or_default()
    }
}

/// A network: plug-ins in the order that they are run in.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NetworkConfig {
    /// Its name.
    pub name: String,
    /// The version of the protocol that the plug-ins are asked in.
    pub version: String,
    /// The plug-ins.
    pub plugins: Vec<PluginConfig>,
    /// Whether `CHECK` isn't used.
    pub disable_check: bool,
    /// Whether `GC` isn't used.
    pub disable_gc: bool,
}

impl NetworkConfig {
    /// The network of a directory: the first file, by name, that ends in `.conflist`, `.conf` or `.json` and is one.
    ///
    /// # Errors
    /// When there is none; if there are files, with what is wrong with the first.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let none = || ConfigError::None(dir.display().to_string());
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
            Err(error) => return Err(ConfigError::Io(dir.display().to_string(), error)),
        };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| {
            let end = path.extension().and_then(|end| end.to_str());
            matches!(end, Some("conflist" | "conf" | "json"))
        });
        paths.sort();
        let mut first = None;
        for path in paths {
            match Self::read(&path) {
                Ok(network) => return Ok(network),
                Err(error) => {
                    tracing::debug!(%error, "a network configuration is passed over");
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(none))
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let size = fs::metadata(path).map_err(|error| ConfigError::Io(shown.clone(), error))?.len();
        if size > FILE_BYTES_MAX {
            return Err(ConfigError::Invalid(format!("{shown} is longer than {FILE_BYTES_MAX} bytes")));
        }
        let bytes = fs::read(path).map_err(|error| ConfigError::Io(shown.clone(), error))?;
        let config =
            serde_json::from_slice(&bytes).map_err(|error| ConfigError::Json(shown.clone(), error))?;
        Self::parse(config).map_err(|error| ConfigError::Invalid(format!("{shown}: {error}")))
    }

    /// A network from a list, or from the configuration of one plug-in.
    ///
    /// # Errors
    /// When it is no network: no name, no plug-ins, or one without a type.
    pub fn parse(config: Value) -> Result<Self, ConfigError> {
        let wrong = |what: &str| ConfigError::Invalid(what.to_owned());
        let Value::Object(config) = config else { return Err(wrong("not an object")) };
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        // Early lists had it as text.
        let flag = |key: &str| match config.get(key) {
            Some(Value::Bool(set)) => *set,
            Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
            _ => false,
        };
        let name = text("name");
        check_id(&name)?;
        let version = version_of(&config)?;
        let plugins = match config.get("plugins") {
            Some(Value::Array(plugins)) => plugins.iter().cloned().map(PluginConfig::new).collect(),
            Some(_) => return Err(wrong("plugins is no list")),
            None => vec![PluginConfig(config.clone())],
        };
        if plugins.is_empty() {
            return Err(wrong("no plugins in list"));
        }
        if plugins.iter().any(|plugin: &PluginConfig| plugin.kind().is_empty()) {
            return Err(wrong("a plugin has no type"));
        }
        Ok(Self {
            name,
            version,
            plugins,
            disable_check: flag("disableCheck"),
            disable_gc: flag("disableGC"),
        })
    }

    /// The same as one list, as it is kept with a result.
    pub(super) fn to_value(&self) -> Value {
        let plugins: Vec<Value> = self.plugins.iter().map(|plugin| Value::Object(plugin.0.clone())).collect();
        json!({
            "name": self.name, "cniVersion": self.version, "plugins": plugins,
            "disableCheck": self.disable_check, "disableGC": self.disable_gc,
        })
    }

    /// Whether the plug-ins are asked in this version or a newer one.
    pub(super) fn is_at_least(&self, major: u64, minor: u64) -> bool {
        parse_version(&self.version).is_some_and(|(a, b, _)| (a, b) >= (major, minor))
    }

    /// What a plug-in reads: its part with the network's name and version, what the runtime has for its capabilities, and the
    /// result before it.
    pub(super) fn input(
        &self,
        plugin: &PluginConfig,
        previous: Option<&Value>,
        capabilities: &Value,
    ) -> Value {
        let mut input = plugin.0.clone();
        input.insert("name".to_owned(), self.name.clone().into());
        input.insert("cniVersion".to_owned(), self.version.clone().into());
        let wanted = input.remove("capabilities");
        let wanted = wanted.as_ref().and_then(Value::as_object).into_iter().flatten();
        let given: Map<String, Value> = wanted
            .filter(|(_, set)| **set == Value::Bool(true))
            .filter_map(|(name, _)| Some((name.clone(), capabilities.get(name)?.clone())))
            .collect();
        if !given.is_empty() {
            input.insert("runtimeConfig".to_owned(), given.into());
        }
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(input)
    }
}

/// The newest version that the configuration offers and that is spoken here.
fn version_of(config: &Map<String, Value>) -> Result<String, ConfigError> {
    let offered = config.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let offered = offered.chain(config.get("cniVersion")).filter_map(Value::as_str);
    let mut best: Option<((u64, u64, u64), &str)> = None;
    let mut any = false;
    for text in offered.filter(|text| !text.is_empty()) {
        any = true;
        let version = parse_version(text)
            .ok_or_else(|| ConfigError::Invalid(format!("{text:?} is no version of the interface")))?;
        if (version.0, version.1) <= VERSION && best.is_none_or(|(known, _)| known < version) {
            best = Some((version, text));
        }
    }
    match best {
        Some((_, text)) => Ok(text.to_owned()),
        None if any => {
            Err(ConfigError::Invalid("no version of the interface that is spoken here".to_owned()))
        }
        // The first version had no field for it.
        None => Ok("0.1.0".to_owned()),
    }
}

fn parse_version(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}

/// Names of networks and containers: they become parts of file names.
pub(super) fn check_id(id: &str) -> Result<(), ConfigError> {
    let fits = id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.chars().all(|one| one.is_ascii_alphanumeric() || "_.-".contains(one));
    if fits {
        Ok(())
    } else {
        Err(ConfigError::Invalid(format!("{id:?} is no name of a network or container")))
    }
}

/// Names of devices.
pub(super) fn check_device(name: &str) -> Result<(), ConfigError> {
    let fits = !name.is_empty()
        && name.len() <= DEVICE_BYTES_MAX
        && !matches!(name, "." | "..")
        && !name.contains(|one: char| "/:".contains(one) || one.is_whitespace());
    if fits { Ok(()) } else { Err(ConfigError::Invalid(format!("{name:?} is no name of a device"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's sections 1 ("Network configuration format") and 3 ("Deriving execution configuration").
    #[test]
    fn lists_become_what_plugins_read() {
        let list = json!({
            "cniVersion": "1.0.0", "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "9.0.0"], "name": "dbnet",
            "disableCheck": "true",
            "plugins": [
                {"type": "bridge", "ipam": {"type": "host-local"}, "name": "other"},
                {"type": "portmap", "capabilities": {"portMappings": true, "ips": false, "mac": true}},
            ],
        });
        let network = NetworkConfig::parse(list).unwrap();
        assert_eq!((network.version.as_str(), network.disable_check), ("1.0.0", true));
        assert_eq!(NetworkConfig::parse(network.to_value()).unwrap(), network);
        let capabilities = json!({"portMappings": [{"hostPort": 80}], "ips": ["10.0.0.1/8"]});
        let first = network.input(&network.plugins[0], None, &capabilities);
        assert_eq!(
            first,
            json!({"type": "bridge", "ipam": {"type": "host-local"}, "name": "dbnet", "cniVersion": "1.0.0"})
        );
        let second = network.input(&network.plugins[1], Some(&json!({"ips": []})), &capabilities);
        assert_eq!(
            second,
            json!({"type": "portmap", "name": "dbnet", "cniVersion": "1.0.0", "prevResult": {"ips": []},
                "runtimeConfig": {"portMappings": [{"hostPort": 80}]}})
        );
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let plugin = json!([{"type": "bridge"}]);
        for (config, expected) in [
            (json!([]), "not an object"),
            (json!({"plugins": plugin}), "\"\" is no name of a network or container"),
            (json!({"name": "../x", "plugins": plugin}), "\"../x\" is no name of a network or container"),
            (json!({"name": "x", "plugins": []}), "no plugins in list"),
            (json!({"name": "x", "plugins": [{}]}), "a plugin has no type"),
            (
                json!({"name": "x", "cniVersion": "1", "plugins": plugin}),
                "\"1\" is no version of the interface",
            ),
            (
                json!({"name": "x", "cniVersion": "2.0.0", "plugins": plugin}),
                "no version of the interface that is spoken here",
            ),
        ] {
            assert_eq!(NetworkConfig::parse(config).unwrap_err().to_string(), expected);
        }
        for name in ["", "..", "a/b", "a b", "a:b", "sixteen-letters-"] {
            assert!(check_device(name).is_err(), "{name}");
        }
        check_device("fifteen-letters").unwrap();
    }
}
