//! `KubeSchedulerConfiguration`, as kube-scheduler's `--config` reads it.

pub(crate) mod args;
mod extenders;
mod merge;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    config::{extenders::ExtenderConfiguration, merge::Merged},
    profile::{BuildError, Profile},
    registry::Registry,
};

/// The version that is read.
pub const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// Plug-ins that there were once, and that a file of this version must not name.
const REMOVED: [&str; 4] = ["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

/// Something that is wrong with a configuration, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct ConfigError {
    /// Where, from the root of what was read.
    pub path: String,
    /// What.
    pub why: String,
}

impl ConfigError {
    /// Says what is wrong with a field.
    pub fn new(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self { path: path.into(), why: why.into() }
    }

    pub(crate) fn invalid(path: impl Into<String>, value: impl fmt::Display, why: &str) -> Self {
        Self::new(path, format!("Invalid value: {value}: {why}"))
    }

    /// The same, with the path below another one.
    #[must_use]
    pub fn below(mut self, path: &str) -> Self {
        self.path = if self.path.is_empty() { path.to_owned() } else { format!("{path}.{}", self.path) };
        self
    }
}

/// All that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        match &texts[..] {
            [one] => f.write_str(one),
            all => write!(f, "[{}]", all.join(", ")),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// A `KubeSchedulerConfiguration`, read and checked.
///
/// What has no meaning here, because the scheduler is a library, is read and left to the program around it: the client's
/// connection, leader election, profiling. The back-off is for [`SchedulerBuilder::backoff`](crate::SchedulerBuilder::backoff).
/// `percentageOfNodesToScore`, of a profile or of all, counts when it is not 0: then not all nodes are looked at
/// ([`ProfileBuilder::percentage_of_nodes_to_score`](crate::ProfileBuilder::percentage_of_nodes_to_score)). `parallelism` is
/// checked and has no effect, as decisions are made by one task: it says how many threads look at nodes, and changes no
/// decision of upstream's either.
///
/// ```
/// use ksched::{config::SchedulerConfiguration, registry::Registry};
/// use serde_json::json;
///
/// let configuration = SchedulerConfiguration::from_value(json!({
///     "apiVersion": "kubescheduler.config.k8s.io/v1",
///     "kind": "KubeSchedulerConfiguration",
///     "profiles": [{
///         "schedulerName": "packing",
///         "plugins": {"score": {"disabled": [{"name": "ImageLocality"}]}},
///         "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}}],
///     }],
/// }))?;
/// let profiles = configuration.profiles(&Registry::default())?;
/// assert_eq!(profiles[0].scheduler_name(), "packing");
/// assert!(profiles[0].scores().all(|(name, _)| name != "ImageLocality"));
/// # Ok::<(), ksched::config::ConfigErrors>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SchedulerConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<ProfileConfiguration>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    parallelism: Option<i32>,
    percentage_of_nodes_to_score: Option<i32>,
    #[serde(default)]
    extenders: Vec<ExtenderConfiguration>,
    /// How the scheduler elects a leader: for the program around it.
    pub leader_election: Option<Value>,
    /// How it connects to the API server: for the program around it.
    pub client_connection: Option<Value>,
    /// For the program around it.
    pub enable_profiling: Option<bool>,
    /// For the program around it.
    pub enable_contention_profiling: Option<bool>,
    /// For the program around it.
    pub delay_cache_until_active: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileConfiguration {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    plugins: Option<Plugins>,
    #[serde(default)]
    plugin_config: Vec<PluginConfiguration>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfiguration {
    name: String,
    #[serde(default)]
    args: Value,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Plugins {
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
    multi_point: PluginSet,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<PluginName>,
    disabled: Vec<PluginName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginName {
    name: String,
    weight: Option<i32>,
}

impl PluginSet {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|disabled| disabled.name == name || disabled.name == "*")
    }
}

impl SchedulerConfiguration {
    /// Reads and checks a configuration, with upstream's defaults.
    ///
    /// # Errors
    /// All that is wrong with it; but when it can't be read at all, only that.
    pub fn from_value(value: Value) -> Result<Self, ConfigErrors> {
        let mut read: Self = serde_json::from_value(value).map_err(|why| {
            ConfigErrors(vec![ConfigError::new("", format!("strict decoding error: {why}"))])
        })?;
        if read.profiles.is_empty() {
            read.profiles.push(ProfileConfiguration::default());
        }
        if let [only] = &mut read.profiles[..] {
            only.scheduler_name.get_or_insert_with(|| crate::pod::DEFAULT_SCHEDULER_NAME.to_owned());
        }
        let errors = read.check();
        extenders::ignore_resources(&read.extenders, &mut read.profiles);
        if errors.is_empty() { Ok(read) } else { Err(ConfigErrors(errors)) }
    }

    /// The back-off of pods: the first and the longest one. 1 and 10 seconds by default.
    #[must_use]
    pub fn backoff(&self) -> (Duration, Duration) {
        let seconds = |field: Option<i64>, default| {
            Duration::from_secs(field.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(default))
        };
        (seconds(self.pod_initial_backoff_seconds, 1), seconds(self.pod_max_backoff_seconds, 10))
    }

    /// Makes the profiles, with the plug-ins of a registry.
    ///
    /// # Errors
    /// When a plug-in is not there, or its arguments are wrong.
    pub fn profiles(&self, registry: &Registry) -> Result<Vec<Profile>, ConfigErrors> {
        let (mut profiles, mut errors) = (Vec::new(), Vec::new());
        for (number, profile) in self.profiles.iter().enumerate() {
            match Merged::new(profile).build(profile, registry) {
                Ok(mut built) => {
                    let percent = profile.percentage_of_nodes_to_score.or(self.percentage_of_nodes_to_score);
                    let percent = percent.and_then(|percent| u8::try_from(percent).ok());
                    built.sample_percent = percent.filter(|percent| (1..100).contains(percent));
                    profiles.push(built);
                }
                Err(wrong) => {
                    errors.extend(wrong.into_iter().map(|error| error.below(&format!("profiles[{number}]"))))
                }
            }
        }
        if errors.is_empty() { Ok(profiles) } else { Err(ConfigErrors(errors)) }
    }

    fn check(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.api_version != API_VERSION || self.kind != "KubeSchedulerConfiguration" {
            let (kind, version) = (&self.kind, &self.api_version);
            let why = format!("no kind {kind:?} is registered for version {version:?}");
            errors.push(ConfigError::new("", why));
        }
        if let Some(parallelism) = self.parallelism.filter(|parallelism| *parallelism <= 0) {
            let why = "should be an integer value greater than zero";
            errors.push(ConfigError::invalid("parallelism", parallelism, why));
        }
        for (number, profile) in self.profiles.iter().enumerate() {
            let path = format!("profiles[{number}]");
            errors.extend(profile.check().into_iter().map(|error| error.below(&path)));
            let same = |other: &ProfileConfiguration| other.scheduler_name == profile.scheduler_name;
            if let Some(first) = self.profiles[..number].iter().position(same) {
                let why = format!("Duplicate value: \"profiles[{first}].schedulerName\"");
                errors.push(ConfigError::new(format!("{path}.schedulerName"), why));
            }
        }
        self.check_queue_sort(&mut errors);
        check_percentage(self.percentage_of_nodes_to_score, &mut errors);
        let (first, longest) =
            (self.pod_initial_backoff_seconds.unwrap_or(1), self.pod_max_backoff_seconds.unwrap_or(10));
        if first <= 0 {
            errors.push(ConfigError::invalid("podInitialBackoffSeconds", first, "must be greater than 0"));
        }
        if longest < first {
            let why = "must be greater than or equal to PodInitialBackoffSeconds";
            errors.push(ConfigError::invalid("podMaxBackoffSeconds", longest, why));
        }
        extenders::check(&self.extenders, &mut errors);
        if cfg!(not(feature = "http-extenders")) && !self.extenders.is_empty() {
            let why = "Forbidden: this scheduler is built without the feature http-extenders";
            errors.push(ConfigError::new("extenders", why));
        }
        errors
    }

    fn check_queue_sort(&self, errors: &mut Vec<ConfigError>) {
        let sort = |profile: &ProfileConfiguration| {
            profile.plugins.as_ref().map(|plugins| plugins.queue_sort.clone()).unwrap_or_default()
        };
        let first = sort(&self.profiles[0]);
        if first.enabled.len() > 1 {
            let path = "profiles[0].plugins.queueSort.Enabled";
            let why = "only one queue sort plugin can be enabled";
            errors.push(ConfigError::invalid(path, first.enabled.len(), why));
        }
        for (number, profile) in self.profiles.iter().enumerate().skip(1) {
            if sort(profile) != first {
                let path = format!("profiles[{number}].plugins.queueSort");
                let why = "Invalid value: must be the same for all profiles";
                errors.push(ConfigError::new(path, why));
            }
        }
    }
}

fn check_percentage(percentage: Option<i32>, errors: &mut Vec<ConfigError>) {
    if let Some(percentage) = percentage.filter(|percentage| !(0..=100).contains(percentage)) {
        let why = "not in valid range [0-100]";
        errors.push(ConfigError::invalid("percentageOfNodesToScore", percentage, why));
    }
}

impl ProfileConfiguration {
    fn check(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.scheduler_name.as_deref().unwrap_or_default().is_empty() {
            errors.push(ConfigError::new("schedulerName", "Required value"));
        }
        check_percentage(self.percentage_of_nodes_to_score, &mut errors);
        let removed = |path: String, name: &str, errors: &mut Vec<ConfigError>| {
            if REMOVED.contains(&name) {
                let why = format!(
                    "was invalid in version {API_VERSION:?} (KubeSchedulerConfiguration is version {API_VERSION:?})"
                );
                errors.push(ConfigError::invalid(path, format!("{name:?}"), &why));
            }
        };
        if let Some(plugins) = &self.plugins {
            for (point, set) in plugins.points() {
                for (number, plugin) in set.enabled.iter().enumerate() {
                    removed(format!("plugins.{point}.enabled[{number}]"), &plugin.name, &mut errors);
                }
            }
        }
        for (number, config) in self.plugin_config.iter().enumerate() {
            let path = format!("pluginConfig[{number}]");
            if self.plugin_config[..number].iter().any(|other| other.name == config.name) {
                errors.push(ConfigError::new(&path, format!("Duplicate value: {:?}", config.name)));
            }
            removed(path, &config.name, &mut errors);
        }
        errors
    }
}

impl Plugins {
    /// The sets of single extension points, by their names.
    fn points(&self) -> [(&'static str, &PluginSet); 12] {
        [
            ("preEnqueue", &self.pre_enqueue),
            ("queueSort", &self.queue_sort),
            ("preFilter", &self.pre_filter),
            ("filter", &self.filter),
            ("postFilter", &self.post_filter),
            ("preScore", &self.pre_score),
            ("score", &self.score),
            ("reserve", &self.reserve),
            ("permit", &self.permit),
            ("preBind", &self.pre_bind),
            ("bind", &self.bind),
            ("postBind", &self.post_bind),
        ]
    }
}

impl From<BuildError> for ConfigError {
    fn from(error: BuildError) -> Self {
        Self::new("plugins", error.to_string())
    }
}
